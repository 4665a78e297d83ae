"""Keep what trial runs gave on the training images set apart: data/measured/animals-trials.json.

    python tools/trials.py FOLDER

FOLDER holds the trial runs, which are too large to publish.
"""

import sys
from pathlib import Path

from csgbook import measured
from csglib import runs

if __name__ == "__main__":
    found = []
    for path in sorted(Path(sys.argv[1]).iterdir()):
        if (path / "provenance.json").exists():
            run = runs.read(path)
            kept = {name: run.metrics[name] for name in ("accuracy", "mis", "l1_density")}
            found.append({"recipe": run.recipe.changed(), "commit": run.provenance["commit"]} | kept)
    measured.write("animals-trials", {"trials": found})
