"""The command `csgbook`: missing | verify | results."""

import json
import sys
from pathlib import Path

from tyro.conf import Positional

from csglib.cli import run_command
from csglib.errors import Problem
from csglib.paths import PUBLISHED


def missing(
    profile: str = "paper", page: str | None = None, at_once: int = 1, device: str | None = None, runs_folder: Path = PUBLISHED
) -> None:
    """Train the recipes of a profile that are not published yet, several at once, and publish each when it ends.

    Those whose images are not here, and those that diverged before, are named and left out.

    Args:
        profile: smoke, quick, short or paper.
        page: Of this page alone.
        at_once: How many train side by side.
        device: cpu or cuda.  Default: cuda where there is one.
        runs_folder: Where the runs lie, and where new ones go.
    """
    from csgbook import experiments
    from csglib.methods import method
    from csglib.precision import pick_device
    from csglib.training import pace
    from csglib.training.trainer import side_by_side

    if at_once < 1:
        raise Problem(f"{at_once} trainings at once cannot be: use 1, 2, 3, ...")
    pages = [page] if page else experiments.book()["pages"]
    asked = dict.fromkeys(r for name in pages for r in experiments.missing(name, profile, runs_folder))
    wanted = []
    for recipe in asked:
        if why := experiments.obstacle(recipe, runs_folder):
            print(f"{why}, left out: {recipe.command}", file=sys.stderr)
        else:
            wanted.append(recipe)
    if wanted:
        print(f"{len(wanted)} to train, about {pace.words(pace.total(wanted, pick_device(device)))} here", file=sys.stderr)
    together, alone = ([r for r in wanted if method(r).draws is draws] for draws in (False, True))
    groups = [together[i : i + at_once] for i in range(0, len(together), at_once)] + [[r] for r in alone]
    for group in groups:
        try:
            side_by_side([(r, runs_folder / r.name) for r in group], device)
        except Problem as problem:
            if not any(experiments.diverged(r, runs_folder) for r in group):
                raise
            print(f"csgbook: {problem}", file=sys.stderr)  # a result as well; the others are trained


def results(profile: str = "quick", runs_folder: Path = PUBLISHED, out: Path = Path("build/results.json")) -> None:
    """Judge every claim by the runs that exist and write the list.

    Args:
        profile: Whose recipes count: smoke, quick, short or paper.
        runs_folder: Where their runs lie.
        out: The file to write.
    """
    from csgbook.evidence import verdicts
    from csglib.files import write

    judged = verdicts.every(profile, runs_folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    write(out, json.dumps(judged, indent=2) + "\n")


def verify(folders: Positional[tuple[Path, ...]]) -> None:
    """Recompute what runs say of themselves, as `csglib verify` does, and compare what tools measured of them.

    Args:
        folders: Run folders.
    """
    from csgbook import measured
    from csglib import runs
    from csglib.runs.verify import verify

    for folder in folders:
        told, found = verify(run := runs.read(folder)), measured.check(run)
        print(f"{folder}: {told}{'; what tools measured' if found else ''}")


def main() -> None:
    run_command("csgbook", __doc__, {"missing": missing, "verify": verify, "results": results})
