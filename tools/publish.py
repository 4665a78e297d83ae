"""Publish runs without their weights and readouts, which are too large to keep for every cell of a grid.

    python tools/publish.py [--sample IMAGES] [--release DIR] FOLDER...

--sample keeps the readout of so many test images, for the explorers of large runs.  --release also packs what is left out into
DIR, one file per run, for the project's release `runs`, from which `csglib data get runs` fetches it.

Each folder is a finished run, or holds some.  A run is verified first, weights and all; one that is published already is
passed over.  Of a training that diverged its report goes along, since that is its result.
"""

import argparse
import shutil
import sys
from pathlib import Path

from csglib import Problem, runs
from csglib.runs.release import publish_without_weights


def found(folder: Path) -> list[Path]:
    """The folders of finished runs, and of trainings that diverged."""
    marks = ("provenance.json", "report.json")
    return sorted({p.parent for mark in marks for p in [*folder.glob(mark), *folder.glob(f"*/{mark}")]})


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sample", type=int, default=0)
    parser.add_argument("--release", type=Path)
    parser.add_argument("folders", nargs="+", type=Path)
    asked = parser.parse_args(words)
    for path in (p for folder in asked.folders for p in found(folder)):
        if (path / "report.json").exists():
            name = path.name.removesuffix(".part")
            target = runs.part(runs.PUBLISHED / name)
            if runs.diverged(path.with_name(name)) and not target.exists():
                target.mkdir()
                shutil.copy(path / "report.json", target)
            print(f"{name}: diverged, its report is kept")
            continue
        run = runs.read(path)
        if (runs.PUBLISHED / run.recipe.name).exists():
            print(f"{run.recipe.name}: published already")
        else:
            out = publish_without_weights(run, sample=asked.sample, released=asked.release)
            print(f"{out.name}: published", flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Problem as problem:
        sys.exit(f"csglib: {problem}")
