"""Execute one notebook of the book with papermill.

python tools/execute.py PAGE PROFILE RUNS_FOLDER OUT
"""

import os
import sys
from pathlib import Path

import papermill

from csgbook import experiments
from csglib import Problem
from csglib.paths import ROOT


def source(page: str) -> Path:
    return ROOT / "book" / f"{page}.ipynb"


def parameters(page: str, profile: str, runs_folder: str) -> dict:
    """What papermill sets.  papermill would drop an unknown name with no more than a log line, so it is refused here."""
    known = papermill.inspect_notebook(str(source(page)))
    values = experiments.parameters(page, profile)
    if experiments.recipes(page, profile):
        values = {"profile": profile, "runs_folder": str(runs_folder)} | values
    if unknown := sorted(set(values) - set(known)):
        raise Problem(
            f"book/experiments.yml sets {', '.join(unknown)} for {page}, which is no parameter of that notebook: "
            f"its parameters cell has {', '.join(known)}"
        )
    return values


def execute(page: str, profile: str, runs_folder: str, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part.ipynb")  # papermill writes after every cell; the name is given when all have run
    papermill.execute_notebook(
        str(source(page)),
        str(part),
        parameters=parameters(page, profile, runs_folder),
        cwd=str(ROOT),
        kernel_name="python3",
        progress_bar=False,
        execution_timeout=1800,
    )
    os.replace(part, out)


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"  # a progress bar would stay in the page
    page, profile, runs_folder, out = sys.argv[1:]
    try:
        execute(page, profile, runs_folder, Path(out))
    except Problem as problem:
        sys.exit(f"csglib: {problem}")
    except papermill.PapermillExecutionError as error:
        if error.ename != "Problem":  # a traceback is of use to who wrote the page
            raise
        sys.exit(f"csglib: {page}: {error.evalue}")
    except OSError as error:
        sys.exit(f"csglib: {error}: check that the disk has room and the path can be written, and give the same command again")
