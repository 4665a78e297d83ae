"""Execute one notebook of the book with papermill.

python tools/execute.py PAGE PARAMETERS OUT [--solutions]

PARAMETERS is a JSON object, from parameters.py.  With --solutions the code of the exercises' solutions is run too, behind the
page's own cells, and not kept.  This process imports no torch, as its kernel does that already.
"""

import json
import os
import re
import sys
from pathlib import Path

sys.modules["rfc3987_syntax"] = None  # jsonschema would build its grammars, 2 s, for a format that no notebook has
import nbformat  # noqa: E402
import papermill  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
PROBLEMS = re.findall(r"^class (\w+)", (ROOT / "csglib" / "errors.py").read_text(), re.M)  # read, as csglib imports torch


def execute(page: str, parameters: dict, out: Path, solutions: bool = False) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part.ipynb")  # papermill writes after every cell; the name is given when all have run
    source = ROOT / "book" / f"{page}.ipynb"
    if solutions:
        nbformat.write(with_solutions(source), part)
        source = part
    papermill.execute_notebook(
        str(source),
        str(part),
        parameters=parameters,
        cwd=str(ROOT),
        kernel_name="python3",
        progress_bar=False,
        execution_timeout=1800,
    )
    if solutions:
        done = nbformat.read(part, 4)
        done.cells = [cell for cell in done.cells if "solution" not in cell.metadata.get("tags", [])]
        nbformat.write(done, part)
    os.replace(part, out)


def with_solutions(source: Path) -> nbformat.NotebookNode:
    """The page with the blocks of Python in its prose, which are solutions of exercises, as cells at its end."""
    page = nbformat.read(source, 4)
    prose = "\n".join(cell.source for cell in page.cells if cell.cell_type == "markdown")
    blocks = re.findall(r"^```py\n(.*?)^```$", prose, re.S | re.M)
    page.cells += [nbformat.v4.new_code_cell(block, metadata={"tags": ["solution"]}) for block in blocks]
    return page


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"  # a progress bar would stay in the page
    page, parameters, out, *flags = sys.argv[1:]
    try:
        execute(page, json.loads(parameters), Path(out), solutions=flags == ["--solutions"])
    except papermill.PapermillExecutionError as error:
        if error.ename not in PROBLEMS:  # a traceback is of use to who wrote the page
            raise
        sys.exit(f"csglib: {page}: {error.evalue}")
    except OSError as error:
        sys.exit(f"csglib: {error}: check that the disk has room and the path can be written, and give the same command again")
