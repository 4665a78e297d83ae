"""Recompute every published run and list them in data/measured/verified.json, so that a book need not do it again.

    python tools/verify_all.py

A run that changes, or whose measurements do, leaves the list by its digest, and the next book recomputes it.  Of a run that was
published without weights nothing can be recomputed; the line says what was compared instead.
"""

import sys

from csgbook import measured
from csglib import Problem, runs
from csglib.runs.verify import verify


def main() -> None:
    marks = {}
    for path in sorted(p.parent for p in runs.PUBLISHED.glob("*/provenance.json")):
        run = runs.read(path)
        told = verify(run)
        marks[path.name] = measured.mark(run)
        print(f"{path.name}: {told}", flush=True)
    measured.write("verified", marks)


if __name__ == "__main__":
    try:
        main()
    except Problem as problem:
        sys.exit(f"csglib: {problem}")
