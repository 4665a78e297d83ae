# Everything a reader, a tester or a maintainer types. `make book` needs Python 3.11+, make and git; nothing else.
PYTHON ?= python3
PROFILE ?= quick
CORES ?= $(shell getconf _NPROCESSORS_ONLN)
CLUSTER ?= # slurm or kubernetes, with cluster/NAME/config.yaml: recipes train there
BIN := .venv/bin

.PHONY: book test reproduce lock lint clean

book: .venv/ready
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --quiet rules --cores $(CORES) --rerun-triggers mtime input --rerun-incomplete \
	  --nolock --config profile='$(PROFILE)'

test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(CORES) --dist loadfile

reproduce: PROFILE := short
reproduce: book

lint: .venv/ready
	$(BIN)/ruff check . && $(BIN)/nbstripout --keep-id --verify book/*.ipynb

.venv/ready: requirements.lock tests/requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "csglib needs Python 3.11 or newer: make PYTHON=python3.11 book")'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r tests/requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

lock:  # for Linux and macOS, every Python from 3.11 on; needs uv
	uv pip compile pyproject.toml --all-extras --universal --generate-hashes --no-emit-index-url --no-header \
	  --python-version 3.11 --output-file requirements.lock

clean:
	rm -rf build .snakemake
