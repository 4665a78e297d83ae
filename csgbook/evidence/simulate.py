"""How often the rules err, and how much they see: experiments with an effect and without, judged by the lines of rules.py.

The pages take their tables from here.  The rule that judged orderings until commit b2d7419, a bootstrap over seeds, stands at
the end: it is needed to show why it was changed, and what changed with it.
"""

import math
from itertools import product

import numpy as np
import pandas as pd
from jaxtyping import Float

from csgbook import measured
from csgbook.claims import CLAIMS, Claim
from csgbook.evidence import rules
from csglib.errors import Problem

REPEATS = 20_000  # a share of 5 % is then known to 0.3 points, at twice its standard error
COUNTS = (3, 5)  # of seeds
NOISE = {  # of a side's seeds: its kind, and how many times as far the second side's spread
    "normal": ("normal", 1.0),
    "normal, one side three times as wide": ("normal", 3.0),
    "heavy tails (Student's t, 3 degrees of freedom)": ("heavy", 1.0),
    "heavy tails, one side three times as wide": ("heavy", 3.0),
}
SKEWED = {"skewed (exponential), one side three times as wide": ("skewed", 3.0)}  # what the rules are not made for
CORRELATIONS = (0.0, 0.8)  # of the two sides over seeds, where they are pairs

Sides = tuple[Float[np.ndarray, "rows n"], Float[np.ndarray, "rows n"]]


def draw(n: int, kind: str = "normal", ratio: float = 1.0, effect: float = 0.0, correlation: float = 0.0) -> Sides:
    """Many experiments of n seeds per side, whose first mean lies `effect` standard deviations of a seed above the second."""
    rng = np.random.default_rng(0)

    def noise() -> Float[np.ndarray, "rows n"]:
        if kind == "heavy":
            return rng.standard_t(3, (REPEATS, n)) / np.sqrt(3)
        if kind == "skewed":
            return rng.exponential(size=(REPEATS, n)) - 1
        return rng.standard_normal((REPEATS, n))

    common, first, second = noise(), noise(), noise()
    shared, own = np.sqrt(correlation), np.sqrt(1 - correlation)
    return effect + shared * common + own * first, ratio * (shared * common + own * second)


def decided(sides: Sides, paired: bool) -> tuple[float, float]:
    """The shares of experiments in which an ordering is decided as claimed, and the other way round."""
    way = rules.direction(rules.of_difference(*sides, paired))
    return float((way == 1).mean()), float((way == -1).mean())


def false_decisions() -> pd.DataFrame:
    """Without an effect: shares of decisive verdicts, in the claim's favour and against it."""
    rows = []
    for (noise, (kind, ratio)), paired in product((NOISE | SKEWED).items(), (True, False)):
        shares = {n: decided(draw(n, kind, ratio), paired) for n in COUNTS}
        rows.append(("ordering, paired" if paired else "ordering, Welch's", noise, shares))
    edge = {n: rules.closeness(rules.of_mean(draw(n, effect=1.0)[0]), 0.0, 1.0) for n in COUNTS}
    shares = {n: (float((near == 1).mean()), float((near == -1).mean())) for n, near in edge.items()}
    rows.append(("number, on the edge of its tolerance", "normal", shares))
    p = bootstrap(*draw(3))
    rows.append(("ordering, the rule until b2d7419", "normal", {3: (float((p >= 0.95).mean()), float((p <= 0.05).mean()))}))
    table = [{"Test": test, "Noise": noise} | {f"{n} seeds": shares.get(n) for n in COUNTS} for test, noise, shares in rows]
    return pd.DataFrame(table)


def power() -> pd.DataFrame:
    """With an effect of 1, 2 and 3 standard deviations of a seed: shares of orderings that are decided as claimed."""
    tests = [(f"paired, correlation {c:g}", True, c) for c in CORRELATIONS] + [("Welch's", False, 0.0)]
    rows = []
    for (name, paired, correlation), n in product(tests, COUNTS):
        row = {"Interval": name, "Seeds of each side": n}
        for effect in (1.0, 2.0, 3.0):
            row[f"effect {effect:g} SD"] = decided(draw(n, effect=effect, correlation=correlation), paired)[0]
        rows.append(row)
    return pd.DataFrame(rows)


# Tables of the pages


def false_table() -> str:
    """Shares of decisive verdicts without an effect, in Markdown: together, and in brackets for the claim and against it."""
    table = false_decisions()
    for n in COUNTS:
        shares = table[f"{n} seeds"]
        table[f"{n} seeds"] = [
            "–" if s is None else f"{100 * sum(s):.1f} % ({100 * s[0]:.1f} + {100 * s[1]:.1f})" for s in shares
        ]
    return f"{told(table)}\n"


def power_table() -> str:
    """Shares of orderings that are decided rightly, in Markdown."""
    table = power()
    for name in table.columns[2:]:
        table[name] = [f"{100 * share:.0f} %" for share in table[name]]
    return f"{told(table)}\n"


def pairing(judged: list[dict]) -> str:
    """What pairing changes: both intervals of each ordering that pairing decides otherwise, in Markdown."""
    rows, narrower, tested = [], 0, 0
    for c in judged:
        if not (c["paired"] and c["tests"]):
            continue
        a, b = (np.array(side) for side in c["values"])
        pairs, welch = (rules.of_difference(a, b, paired) for paired in (True, False))
        null = -(c["tolerance"] or 0.0)
        tested += 1
        narrower += bool(np.ptp(pairs.interval()) < np.ptp(welch.interval()))
        if rules.direction(pairs, null) != rules.direction(welch, null):
            row = {"Claim": linked(c["sentence"], c["page"]), "Difference": f"{c['ours']:+.4f}"}
            rows.append(row | {"Paired": band(pairs), "Welch's": band(welch), "Verdict": c["verdict"]})
    text = f"Pairing makes the interval narrower for {narrower} of {tested} orderings, and wider for the others."
    if not rows:
        return f"{text} It changes no verdict.\n"
    return f"{text} It decides {len(rows)} of them otherwise than Welch's interval would:\n\n{told(pd.DataFrame(rows))}\n"


def together(judged: list[dict]) -> str:
    """How many false decisions the whole list may hold, and what survives Holm's correction, in Markdown."""
    tests = [(c, name, p) for c in judged for name, p in c["tests"].items()]
    kept = [linked(c["sentence"], c["page"]) for c in judged if c["holm"]]
    made = sum(p < rules.LEVEL for *_, p in tests)
    text = (
        f"The {len(judged)} claims make {len(tests)} tests, a direction and a size of one claim counted apart. If none of the "
        f"effects existed, {rules.LEVEL * len(tests):.2f} decisive verdicts would be expected by chance at most; there are "
        f"{made}. A test of each of the {len(judged)} claims would give {rules.LEVEL * len(judged):.2f}. "
    )
    if not kept:
        return text + "None survives Holm's correction over the whole list.\n"
    listed = "\n".join(f"- {sentence}" for sentence in kept)
    return f"{text}These survive Holm's correction over the whole list, and carry a † in the tables:\n\n{listed}\n"


def changed() -> str:
    """The verdicts that the book gave until commit b2d7419, beside those of today's rules on the same numbers, in Markdown."""
    otherwise, renamed = [], []
    claims = {claim.id: claim for claim in CLAIMS}
    for entry in measured.read("first-verdicts")["claims"]:
        if (claim := claims.get(entry["id"])) is None:
            raise Problem(f"first-verdicts.json has a claim {entry['id']!r} that claims.py has not: bring that claim back")
        n = min(map(len, entry["values"])) if claim.over else len(entry["values"][0])
        ours, other = (np.array(side[:n], float) for side in entry["values"])
        now = rules.rule(claim, ours, other, entry["paired"], entry["comparable"], entry["held"])
        if now.verdict == entry["verdict"]:
            continue
        row = {"Claim": linked(claim.sentence, claim.page), "Until b2d7419": entry["verdict"], "Now": now.verdict}
        if n >= rules.SEEDS:
            e = rules.of_difference(ours, other, entry["paired"]) if claim.over else rules.of_mean(ours)
            row |= {"Ours": f"{e.mean:{'+' if claim.over else ''}.4f}", "95 % interval": band(e, "+" if claim.over else "")}
        before = {"reproduced": 1, "contradicted": -1}.get(entry["verdict"], 0)
        after = {"as claimed": 1, "reproduced": 1, "opposite": -1, "excluded": -1}.get(now.direction or now.size, 0)
        (renamed if before == after else otherwise).append(row)
    first, second = (told(pd.DataFrame(rows).fillna("–")) for rows in (otherwise, renamed))
    return (
        f"Decided otherwise than before ({len(otherwise)}):\n\n{first}\n\n"
        f":::{{dropdown}} Decided alike, in other words ({len(renamed)})\n{second}\n:::\n"
    )


def linked(sentence: str, page: str) -> str:
    return f"{sentence} ({{doc}}`{page}`)"


def told(table: pd.DataFrame) -> str:
    return table.to_markdown(index=False, disable_numparse=True)


def band(e: rules.Estimate, sign: str = "+") -> str:
    low, high = e.interval()
    return f"{low:{sign}.4f} to {high:{sign}.4f}"


# The rule until commit b2d7419


def bootstrap(a: Float[np.ndarray, "*rows n"], b: Float[np.ndarray, "*rows m"]) -> Float[np.ndarray, "*rows"] | float:
    """Probability over all resamples of few seeds that mean(a) > mean(b), ties counted half."""

    def means(x: Float[np.ndarray, "*rows n"]) -> Float[np.ndarray, "*rows draws"]:
        return np.sort(x, -1)[..., np.array(list(product(range(x.shape[-1]), repeat=x.shape[-1])))].mean(-1)

    gap = means(a)[..., :, None] - means(b)[..., None, :]
    return ((gap > rules.SAME).mean((-2, -1)) + (gap >= -rules.SAME).mean((-2, -1))) / 2


def first_verdict(claim: Claim, ours: Float[np.ndarray, " n"], other: Float[np.ndarray, " m"], comparable: bool) -> str:
    """By the rules that stood until then."""
    if not len(ours) or (claim.over and not len(other)):
        return "not run here"
    if claim.over:
        if min(len(ours), len(other)) < 3:
            return "inconclusive"
        p = bootstrap(ours + (claim.tolerance or 0), other)
        return "reproduced" if p >= 0.95 else "contradicted" if p <= 0.05 else "inconclusive"
    low, high = rules.of_mean(ours).interval() if len(ours) > 1 else (math.inf, -math.inf)
    inside = len(ours) >= 3 and low <= claim.paper <= high
    if inside or abs(ours.mean() - claim.paper) <= (claim.tolerance or 0):
        return "reproduced"
    return "contradicted" if comparable and len(ours) >= 3 else "inconclusive"
