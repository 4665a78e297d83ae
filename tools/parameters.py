"""The values that papermill sets in a page's notebook."""

from pathlib import Path

import papermill

from csgbook import experiments
from csglib import Problem
from csglib.paths import ROOT


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
