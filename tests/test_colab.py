"""Colab: what every notebook has to bring along, and each of them executed in an environment with Colab's packages."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from csglib.paths import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import colab  # noqa: E402

NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
PINS = ROOT / "tests" / "colab.txt"
TRAINS = ("train-a-gate", "gate-your-own")
pages = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def code_cells(path: Path) -> list:
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


@pages
def test_a_notebook_begins_with_its_set_up_and_has_forms_for_all_its_parameters(path):
    cells = code_cells(path)
    assert cells[0].source.startswith("# @title Set up") and cells[0].metadata["cellView"] == "form"
    (parameters,) = [c.source for c in cells if "parameters" in c.metadata.get("tags", [])]
    names = [line.split(" = ")[0] for line in parameters.splitlines() if not line.startswith("#")]
    assert "profile" in names or path.stem == "gate-your-own"  # which trains on pictures, whatever the profile
    assert re.findall(r"^(\w+) = .+  # @param (?:\{.+\}|\[.+\])$", parameters, re.M) == names


@pages
def test_a_notebook_ends_with_a_download_of_its_runs(path):
    last = code_cells(path)[-1]
    assert last.source.startswith("# @title Take the run") and "release.download(" in last.source
    assert last.metadata["cellView"] == "form" and "remove-cell" in last.metadata["tags"]
    assert nbformat.read(path, as_version=4).cells[-1] == last
    if path.stem not in TRAINS:  # a page that trains nothing offers what it reads, and only if asked
        assert 'download = False  # @param {type: "boolean"}' in last.source


@pages
def test_a_notebook_uses_csglib_the_standard_library_and_what_colab_has_and_opens_no_file_by_its_path(path):
    brought = {"csglib", "csgbook", "IPython", "torch", "torchvision", "numpy", "matplotlib", "pandas"}
    brought |= set(sys.stdlib_module_names)
    for cell in code_cells(path):
        tree = ast.parse(cell.source)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert {a.name.split(".")[0] for a in node.names} <= brought
            if isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] in brought
            if isinstance(node, ast.Call):
                assert getattr(node.func, "id", "") != "open"
                read = getattr(node.func, "attr", "") in ("read_csv", "read_text", "read_bytes", "imread", "load_file")
                assert not read, ast.unparse(node)


def test_the_set_up_cell_installs_beside_colabs_packages_and_asks_for_an_address():
    cell = code_cells(NOTEBOOKS[0])[0].source
    kept = re.search(r"for p in \((.+)\)\]", cell)[1]
    assert {"torch", "torchvision", "numpy", "ipywidgets"} == {n.strip(' "') for n in kept.split(",")}
    assert "*kept" in cell and "assert repository" in cell


def test_a_form_is_filled_as_a_reader_fills_it_and_an_unknown_name_is_refused():
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('epochs = 24  # @param {type: "integer"}\nother = 1')])
    colab.fill(nb, {"epochs": 4})
    assert nb.cells[0].source == 'epochs = 4  # @param {type: "integer"}\nother = 1'
    with pytest.raises(SystemExit, match="0 forms for other"):
        colab.fill(nb, {"other": 2})


def test_the_pins_are_those_of_the_lock_where_both_name_a_package_that_must_agree():
    pins = dict(re.findall(r"^([a-z]+)==(\S+)$", PINS.read_text(), re.M))
    assert set(colab.KEPT) <= set(pins)
    lock = (ROOT / "requirements.lock").read_text()
    assert all(f"\n{name}=={pins[name]} " in lock for name in ("torch", "torchvision"))


@pytest.fixture(scope="session")
def colab_python(tmp_path_factory) -> str:
    """The interpreter of an environment with Colab's pins: CSGLIB_COLAB, or made here, about 5 GB."""
    if value := os.environ.get("CSGLIB_COLAB"):
        return value
    candidates = [shutil.which("python3.13"), *sorted(Path.home().glob(".pyenv/versions/3.13.*/bin/python"))]
    python = next(filter(None, candidates), None)
    if python is None:
        pytest.skip("no Python 3.13 here, which Colab has: install one, or name an interpreter in CSGLIB_COLAB")
    folder = tmp_path_factory.mktemp("colab")
    probe = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--no-cache-dir",
        "tqdm",
        "--dest",
        folder / "probe",
    ]
    if subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("no network here: Colab's packages cannot be installed")
    subprocess.run([python, "-m", "venv", folder / "venv"], check=True)
    found = str(folder / "venv" / "bin" / "python")
    uv = shutil.which("uv")
    install = [uv, "pip", "install", "--python", found] if uv else [found, "-m", "pip", "install"]
    subprocess.run([*install, "--quiet", "--requirement", PINS], check=True)
    return found


@pytest.mark.long
def test_every_notebook_runs_in_an_environment_like_colabs_from_an_empty_folder(colab_python):
    """With a clone of the last commit in place of the network's, and pip's packages from the network."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone: git cannot fetch the book from here")
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CSGLIB_DATA")}
    command = [sys.executable, ROOT / "tools" / "colab.py", colab_python, ROOT.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    finished = re.findall(r"^([a-z0-9-]+): \d+ s(, download .+\.zip)?$", done.stdout, re.M)
    assert {page for page, _ in finished} == {p.stem for p in NOTEBOOKS}
    assert {page for page, offered in finished if offered} == set(TRAINS)
    assert "unchanged: torch 2.11.0, torchvision 0.26.0" in done.stdout
