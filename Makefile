# Everything a reader, a tester or a maintainer types. `make book` needs Python 3.11+, make and git; nothing else.
PYTHON ?= python3
PROFILE ?= quick
CORES ?= $(shell getconf _NPROCESSORS_ONLN)
# slurm or kubernetes, as cluster/CLUSTER/config.yaml says: missing runs are trained there first
CLUSTER ?=
BIN := .venv/bin

.PHONY: book recipes test bench reproduce pdf zip address lock lint clean

book: .venv/ready $(if $(CLUSTER),recipes)
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --quiet rules --cores $(CORES) --rerun-triggers mtime input --rerun-incomplete \
	  --nolock --config profile='$(PROFILE)'

recipes: .venv/cluster
	@test -f 'cluster/$(CLUSTER)/config.yaml' || { echo 'csglib: no cluster "$(CLUSTER)": use slurm or kubernetes' >&2; exit 2; }
	@test '$(PROFILE)' != quick || { echo 'csglib: profile quick trains nothing: use PROFILE=short or paper' >&2; exit 2; }
	PATH="$(CURDIR)/$(BIN):$$PATH" PWD="$(CURDIR)" snakemake --profile 'cluster/$(CLUSTER)' --rerun-triggers mtime input \
	  --rerun-incomplete --nolock --config profile='$(PROFILE)'

test: .venv/ready  # with bytecode kept, whatever the environment says: many tests start processes, and each would compile all anew
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(CORES) --dist loadfile --no-loadscope-reorder

bench: .venv/ready  # 30 minutes on two cores, with nothing else running; ONLY="mis csg_step" measures some figures
	$(BIN)/python tools/bench.py $(if $(ONLY),only $(ONLY))
	$(MAKE) book

reproduce: PROFILE := short
reproduce: book

pdf zip: book  # build/csglib.pdf, which needs a Chromium; build/csglib-html.zip, which reads from disk
	$(BIN)/python tools/offline.py $@ build

address: .venv/ready  # after a change of the repository's address in pyproject.toml: into the notebooks' set-up cells
	$(BIN)/python tools/address.py

lint: .venv/ready
	$(BIN)/ruff check . && $(BIN)/nbstripout --keep-id --verify book/*.ipynb

.venv/ready: requirements.lock tests/requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "csglib needs Python 3.11 or newer: make PYTHON=python3.11 book")'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r tests/requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

.venv/cluster: .venv/ready cluster/requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r cluster/requirements.lock
	touch $@

COMPILE := uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11
CLUSTERS := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["cluster"], sep="\n")

lock:  # for Linux and macOS, every Python from 3.11 on; needs uv
	$(COMPILE) pyproject.toml --extra book --extra lite --extra test --output-file requirements.lock
	$(PYTHON) -c '$(CLUSTERS)' | $(COMPILE) - --constraints requirements.lock --output-file cluster/requirements.lock

clean:
	rm -rf build .snakemake
