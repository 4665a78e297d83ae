"""Does the gap close when training is longer?  The differences of Table 1 after ever more epochs, as a figure and a table."""

from collections.abc import Sequence

import numpy as np
from IPython.display import Markdown
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from csgbook.claims import CLAIMS
from csgbook.evidence import rules, verdicts
from csgbook.evidence.schedules import NETWORKS, Runs
from csgbook.pages import tables
from csgbook.pages.figures import BLUE, GREY, ORANGE, styled

NAMES = {"accuracy": "accuracy", "mis": "MIS"}
GAPS = ("accuracy-order", "accuracy-matched", "mis-order", "mis-matched")  # the claims on the differences


def metrics_tables(schedules: Sequence[Runs], others: dict[str, dict[str, dict[str, float]]]) -> Markdown:
    """A table of metrics a schedule, the first beside the numbers of others."""
    parts = []
    for i, runs in enumerate(schedules):
        first = next((group[0] for group in runs.values() if group), None)
        title = f"After {verdicts.schedule(first.recipe)}:\n\n" if first and len(schedules) > 1 else ""
        table = tables.metrics_table({name: runs[name] for name in NETWORKS}, {} if i else others)
        parts.append(title + table.data)
    return Markdown("\n\n".join(parts))


def gaps(lengths: dict[int, Runs]) -> list[tuple[int, dict]]:
    """The number of epochs, and a claim on a difference judged after it, where there are runs of both sides."""
    four = [next(claim for claim in CLAIMS if claim.id == name) for name in GAPS]
    judged = [(n, verdicts.judge(claim, runs)) for n, runs in lengths.items() for claim in four]
    return [(n, c) for n, c in judged if c["n"]]


@styled
def gap_figure(lengths: dict[int, Runs]) -> Figure:
    """Differences of accuracy (left) and MIS (right) by the number of epochs: means with 95 % intervals, and a dot a seed."""
    told = gaps(lengths)
    ticks = sorted({n for n, _ in told})
    fig, axes = plt.subplots(1, 2, figsize=(6.4, 2.8), layout="constrained")
    for ax, metric, title in zip(axes, ("accuracy", "mis"), ("accuracy", "MIS, nats"), strict=True):
        ax.axhline(0, color=GREY, lw=0.8)
        for over, color, marker, shift in (("std", BLUE, "o", 0.96), ("matched", ORANGE, "s", 1.04)):
            shown = [(n * shift, c) for n, c in told if (c["metric"], c["over"]) == (metric, over)]
            for x, c in shown:
                ends = [[c["ours"] - c["low"]], [c["high"] - c["ours"]]] if c["n"] >= rules.SEEDS else None
                if c["paired"]:
                    ax.plot([x] * c["n"], np.subtract(*c["values"]), ".", color=color, ms=3, alpha=0.6)
                ax.errorbar(x, c["ours"], ends, fmt=marker, color=color, ms=5, capsize=3, mfc=color if ends else "white")
            ax.plot([x for x, _ in shown], [c["ours"] for _, c in shown], color=color, lw=1, label=f"CSG − {over.upper()}")
        ax.set(title=title, xlabel="epochs", xscale="log")
        ax.set_xticks(ticks, map(str, ticks))
        ax.xaxis.set_minor_locator(NullLocator())
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return fig


def gap_table(lengths: dict[int, Runs]) -> Markdown:
    """The differences in numbers, how each moves from one length to the next, and which networks are missing."""
    rows = ["| Epochs | Difference | In | Mean | 95 % interval | Seeds |", "|---|---|---|---|---|---|"]
    before: dict[str, tuple[dict, int]] = {}
    moves = []
    for n, c in gaps(lengths):
        what, metric, decided = f"CSG − {c['over'].upper()}", NAMES[c["metric"]], c["n"] >= rules.SEEDS
        band = verdicts.ends(c["low"], c["high"], "+") if decided else c["verdict"]
        rows.append(f"| {n} | {what} | {metric} | {c['ours']:+.4f} | {band} | {c['n']} |")
        if decided:
            moves += [moved(f"{what} in {metric}", c, n, *before[c["id"]])] if c["id"] in before else []
            before[c["id"]] = (c, n)
    text = "\n".join(moves) or "Whether the gap closes is open: that takes two lengths with three seeds of each network."
    lacking = {n: [name.upper() for name, group in runs.items() if not group] for n, runs in lengths.items()}
    absent = "; ".join(f"{', '.join(names)} after {n} epochs" for n, names in lacking.items() if names)
    more = f"\n\nNot run here: {absent}." if absent else ""
    return Markdown("\n".join(rows) + f"\n\n{text}{more}")


def moved(what: str, now: dict, n: int, before: dict, m: int) -> str:
    """An item on how a difference changes with the schedule, seed by seed."""
    a, b = by_seed(now), by_seed(before)
    both = sorted(a.keys() & b.keys())
    if len(both) < rules.SEEDS:
        return f"- {what}: {before['ours']:+.4f} after {m} epochs and {now['ours']:+.4f} after {n}."
    e = rules.of_difference(np.array([a[seed] for seed in both]), np.array([b[seed] for seed in both]), paired=True)
    low, high = map(float, e.interval())
    words = {1: "rises", -1: "falls", 0: "does not change measurably"}[int(rules.direction(e))]
    told = f"{float(e.mean):+.4f} ({verdicts.ends(low, high, '+')})"
    return f"- {what} {words} from {m} to {n} epochs, by {told}."


def by_seed(judged: dict) -> dict[int, float]:
    """The differences within pairs, by their seeds; none where the sides are no pairs."""
    seeds = [seed for _, seed, _ in judged["behind"]][: judged["n"]]
    return dict(zip(seeds, np.subtract(*judged["values"]).tolist(), strict=True)) if judged["paired"] else {}
