"""The values that papermill sets in a page's notebook."""

import sys
from pathlib import Path

sys.modules["rfc3987_syntax"] = None  # as in execute.py
import papermill  # noqa: E402

from csgbook import experiments  # noqa: E402
from csglib import Problem  # noqa: E402
from csglib.paths import ROOT  # noqa: E402


def parameters(page: str, profile: str, runs_folder: str | Path) -> dict:
    """papermill would drop an unknown name with no more than a log line, so it is refused here."""
    known = papermill.inspect_notebook(str(ROOT / "book" / f"{page}.ipynb"))
    values = experiments.parameters(page, profile)
    if experiments.recipes(page, profile):
        values = {"profile": profile, "runs_folder": str(runs_folder)} | values
    if unknown := sorted(set(values) - set(known)):
        raise Problem(
            f"book/experiments.yml sets {', '.join(unknown)} for {page}, which is no parameter of that notebook: "
            f"its parameters cell has {', '.join(known)}"
        )
    return values
