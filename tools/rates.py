"""Write the learning rates of the grid into book/experiments.yml, each with what it was chosen by.

    python tools/rates.py [FOLDER]

FOLDER holds the trials, the runs of the grid `rates` (default: the published runs).  Of each network's rates that is taken with
which standard training classifies most of the held-out images; a network without all its trials stays as it is.  The gates
earlier in a network have its rate.
"""

import re
import sys
from pathlib import Path

from csgbook import experiments
from csgbook.evidence import grid
from csglib import Problem, files, runs

PAGE, PROFILE = "elsewhere", "short"


def main(folder: Path) -> None:
    found = grid.rates(PROFILE, experiments.published(PAGE, PROFILE, folder))
    asked: dict[str, int] = {}
    stopped: dict[str, list[str]] = {}
    for name, recipes in experiments.cells(experiments.profile(PROFILE), "rates").items():
        network = name.split("/")[1]
        asked[network] = asked.get(network, 0) + 1
        if any(experiments.diverged(form, folder) for r in recipes for form in grid.forms(r)):
            stopped.setdefault(network, []).append(f"{recipes[0].lr:g} diverged")
    text = experiments.FILE.read_text()
    for network, trials in found.items():
        if len(trials) + len(stopped.get(network, [])) < asked[network]:
            print(f"{network}: {len(trials)} of {asked[network]} rates tried, left as it is")
            continue
        lr = grid.taken(trials)
        told = [f"{r:g} {trials[r].metrics['accuracy']:.3f}" for r in sorted(trials)] + stopped.get(network, [])
        text = written(text, trials[lr].recipe.net, lr, f"held out: {', '.join(told)}")
        print(f"{network}: {lr:g} ({', '.join(told)})")
    files.write(experiments.FILE, text)


def written(text: str, net: str, lr: float, note: str) -> str:
    """The file with a rate for a network, and what it was chosen by behind its line in the grid; earlier gates get the rate."""
    before, start, rest = text.partition("\n  short:")
    body, end, after = rest.partition("      rates:")
    if not start or not end:
        raise Problem(f"{experiments.FILE} has another layout than this tool knows: write the rates by hand")
    stem = re.escape(net.partition("@")[0])
    body = re.sub(rf'(net: "?{stem}(?:@[^",]*)?"?, lr: )[0-9.]+', rf"\g<1>{lr:g}", body)
    body = re.sub(rf'(net: "?{re.escape(net)}"?, lr: [^}}]*\}}) #.*', lambda m: f"{m[1]} # {note}", body)
    return before + start + body + end + after


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else runs.PUBLISHED)
    except Problem as problem:
        sys.exit(f"csglib: {problem}")
