"""Execute the notebooks as a reader on Colab does: each in an empty folder, with the repository's address and no file of it.

    python tools/colab.py PYTHON REPOSITORY [PAGE ...]

PYTHON is the interpreter that runs the kernel, in an environment with Colab's packages or in Colab's public image; csglib is
taken out of it before each page, so that the set-up cell has to bring it.  REPOSITORY is what `git clone` takes.  Of
google.colab a stand-in is there, which says what it would have downloaded.  Pages that train do so in their smoke form.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import yaml
from nbclient import NotebookClient

BOOK = Path(__file__).resolve().parent.parent / "book"
KEPT = ("torch", "torchvision", "numpy", "ipywidgets", "ipykernel", "matplotlib")
STAND_IN = """
import sys, types
colab = types.ModuleType("google.colab")
colab.files = types.SimpleNamespace(download=lambda path: print("downloaded", path))
sys.modules["google.colab"] = colab
"""
LAST = """
import os, csglib
assert csglib.__file__.startswith(os.getcwd()), csglib.__file__
"""


def fill(nb: nbformat.NotebookNode, values: dict) -> None:
    """Enter values into the forms, as a reader does."""
    for name, value in values.items():
        line, count = re.compile(rf"^{name} = .*?(?=  # @param)", re.M), 0
        for cell in nb.cells:
            cell.source, n = line.subn(lambda _, n=name, v=value: f"{n} = {v!r}", cell.source)
            count += n
        if count != 1:
            raise SystemExit(f"the notebook has {count} forms for {name}, not one")


def execute(page: str, python: str, repository: str) -> list[str]:
    """Run a page from top to bottom in an empty folder; returns what it offered for download."""
    nb = nbformat.read(BOOK / f"{page}.ipynb", as_version=4)
    smoke = (yaml.safe_load((BOOK / "experiments.yml").read_text())["pages"][page] or {}).get("parameters", {}).get("smoke", {})
    fill(nb, {"repository": repository} | smoke)
    nb.cells.append(nbformat.v4.new_code_cell(LAST))
    with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryDirectory() as away:
        (Path(away) / "sitecustomize.py").write_text(STAND_IN)
        spec = Path(away) / "kernels" / "colab"
        spec.mkdir(parents=True)
        argv = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        environment = {"PYTHONPATH": away, "CSGLIB_DATA": ""}
        (spec / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Colab", "env": environment}))
        os.environ["JUPYTER_PATH"] = away  # where the kernel is looked for
        NotebookClient(nb, kernel_name="colab", timeout=1800, resources={"metadata": {"path": empty}}).execute()
        rest = {p.name for p in Path(empty).iterdir()}
    streams = "".join(o.get("text", "") for c in nb.cells if c.cell_type == "code" for o in c.outputs)
    downloaded = [Path(name).name for name in re.findall(r"^downloaded (.+)$", streams, re.M)]
    if rest - {"csglib-book"} != set(downloaded):
        raise SystemExit(f"{page} left {sorted(rest)} behind")
    return downloaded


def versions(python: str) -> dict[str, str]:
    code = f"import json; from importlib.metadata import version; print(json.dumps({{n: version(n) for n in {KEPT}}}))"
    return json.loads(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    python, repository, *pages = sys.argv[1:]
    before = versions(python)
    for page in pages or sorted(p.stem for p in BOOK.glob("*.ipynb")):
        subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "csglib"], check=True, capture_output=True)
        started = time.monotonic()
        downloaded = execute(page, python, repository)
        print(f"{page}: {time.monotonic() - started:.0f} s", *(f"download {name}" for name in downloaded), sep=", ", flush=True)
        if (after := versions(python)) != before:
            sys.exit(f"{page} changed what Colab had: {before} became {after}")
    print("unchanged:", ", ".join(f"{name} {number}" for name, number in before.items()))
