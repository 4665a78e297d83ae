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
from jupyter_client import KernelManager  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
PROBLEMS = re.findall(r"^class (\w+)", (ROOT / "csglib" / "errors.py").read_text(), re.M)  # read, as csglib imports torch


def execute(page: str, parameters: dict, out: Path, solutions: bool = False, kernel: KernelManager | None = None) -> None:
    """Execute the page with the parameters, in a kernel of its own; one that is given goes on, without the page's names."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part.ipynb")  # papermill writes after every cell; the name is given when all have run
    source = ROOT / "book" / f"{page}.ipynb"
    if solutions or kernel:
        nbformat.write(with_more(source, solutions, "%reset -f" if kernel else ""), part)
        source = part
    papermill.execute_notebook(
        str(source),
        str(part),
        parameters=parameters,
        cwd=str(ROOT),
        kernel_name="python3",
        progress_bar=False,
        execution_timeout=1800,
        km=kernel,
    )
    if source == part:
        done = nbformat.read(part, 4)
        done.cells = [cell for cell in done.cells if "not-kept" not in cell.metadata.get("tags", [])]
        nbformat.write(done, part)
    os.replace(part, out)


def with_more(source: Path, solutions: bool, last: str) -> nbformat.NotebookNode:
    """The page with more cells at its end: the blocks of Python in its prose, solutions of exercises, and a last one."""
    page = nbformat.read(source, 4)
    prose = "\n".join(cell.source for cell in page.cells if cell.cell_type == "markdown")
    more = re.findall(r"^```py\n(.*?)^```$", prose, re.S | re.M) if solutions else []
    page.cells += [nbformat.v4.new_code_cell(code, metadata={"tags": ["not-kept"]}) for code in (*more, last) if code]
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
