"""Keep how the claims were judged first, by which numbers: data/measured/first-verdicts.json, for the page on deviations.

    python tools/first_verdicts.py

It takes the runs of the profile short that had ended when the rules were changed, so that later runs leave it as it is.
"""

import numpy as np
import torch

from csgbook import claims, experiments, measured
from csgbook.evidence import simulate, verdicts
from csglib.runs import provenance

UNTIL = ("b2d741926ca23b83f1b7bbba3ee9358799572b1a", "2026-11-21T21:54:09+00:00")  # the last commit of the first rules

if __name__ == "__main__":
    found = []
    for claim in claims.CLAIMS:
        published = experiments.published(claim.page, "short").items()
        then = {name: [run for run in group if run.provenance["finished"] <= UNTIL[1]] for name, group in published}
        judged = verdicts.judge(claim, then)
        sides = [np.array(side) for side in judged["values"]]
        verdict = simulate.first_verdict(claim, *sides, judged["comparable"])
        kept = {name: judged[name] for name in ("values", "paired", "comparable", "held", "runs")}
        found.append({"id": claim.id, "verdict": verdict} | kept)
    here = provenance.here(torch.device("cpu"))
    measured.write("first-verdicts", {"until": UNTIL[0], "claims": found, "commit": here["commit"], "dirty": here["dirty"]})
