"""Execute one notebook of the book with papermill.

python tools/execute.py PAGE PARAMETERS OUT

PARAMETERS is a JSON object, from parameters.py.  This process imports no torch, as its kernel does that already.
"""

import json
import os
import re
import sys
from pathlib import Path

sys.modules["rfc3987_syntax"] = None  # jsonschema would build its grammars, 2 s, for a format that no notebook has
import papermill  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
PROBLEMS = re.findall(r"^class (\w+)", (ROOT / "csglib" / "errors.py").read_text(), re.M)  # read, as csglib imports torch


def execute(page: str, parameters: dict, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part.ipynb")  # papermill writes after every cell; the name is given when all have run
    papermill.execute_notebook(
        str(ROOT / "book" / f"{page}.ipynb"),
        str(part),
        parameters=parameters,
        cwd=str(ROOT),
        kernel_name="python3",
        progress_bar=False,
        execution_timeout=1800,
    )
    os.replace(part, out)


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"  # a progress bar would stay in the page
    page, parameters, out = sys.argv[1:]
    try:
        execute(page, json.loads(parameters), Path(out))
    except papermill.PapermillExecutionError as error:
        if error.ename not in PROBLEMS:  # a traceback is of use to who wrote the page
            raise
        sys.exit(f"csglib: {page}: {error.evalue}")
    except OSError as error:
        sys.exit(f"csglib: {error}: check that the disk has room and the path can be written, and give the same command again")
