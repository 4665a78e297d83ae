"""Does the gap close when training is longer?  Differences between networks after ever more epochs, as figures and tables."""

import itertools
from collections.abc import Sequence

import numpy as np
from IPython.display import Markdown
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from csgbook.claims import CLAIMS, Claim
from csgbook.evidence import rules, verdicts
from csgbook.evidence.schedules import NETWORKS, Runs
from csgbook.pages import tables
from csgbook.pages.figures import BLUE, GREY, ORANGE, styled

NAMES = {"accuracy": "accuracy", "mis": "MIS"}
GAPS = ("accuracy-order", "accuracy-matched", "mis-order", "mis-matched")  # the claims on the differences of Table 1
TITLES = {  # of the other statistics that compare the same networks, in the order of the figure
    "overlap": "information in the gate",
    "weight_contrast": "contrast of weights",
    "response_contrast": "contrast of responses",
    "removed_own": "accuracy without own filters",
    "own_share": "centres on own filters",
    "hoyer": "sparsity of features",
    "detection": "error of the detector",
    "detection_match": "the same, adaptive attack",
    "one_group": "accuracy with one group",
    "followed": "predictions that follow the row",
    "by_own_row": "accuracy by own rows",
    "gated_change": "change over gated epochs",
}
MARKS = {
    "std": (BLUE, "o", 0.96),
    "matched": (ORANGE, "s", 1.04),
}  # of the network that CSG is compared with: colour, marker, shift


def metrics_tables(schedules: Sequence[Runs], others: dict[str, dict[str, dict[str, float]]]) -> Markdown:
    """A table of metrics a schedule, the first beside the numbers of others."""
    parts = []
    for i, runs in enumerate(schedules):
        first = next((group[0] for group in runs.values() if group), None)
        title = f"After {verdicts.schedule(first.recipe)}:\n\n" if first and len(schedules) > 1 else ""
        table = tables.metrics_table({name: runs[name] for name in NETWORKS}, {} if i else others)
        parts.append(title + table.data)
    return Markdown("\n\n".join(parts))


def gaps(lengths: dict[int, Runs], claims: Sequence[Claim] | None = None) -> list[tuple[int, dict]]:
    """The number of epochs, and a claim on a difference judged after it, where there are runs of both sides."""
    asked = [c for c in CLAIMS if c.id in GAPS] if claims is None else claims
    judged = [(n, verdicts.judge(claim, runs)) for n, runs in lengths.items() for claim in asked]
    return [(n, c) for n, c in judged if c["n"]]


def others(lengths: dict[int, Runs]) -> list[tuple[int, dict]]:
    """The same of the claims on TITLES, all of them differences between the same networks."""
    return gaps(lengths, [c for c in CLAIMS if c.metric in TITLES and {c.of, c.over} <= set(NETWORKS)])


def draw(ax: Axes, told: Sequence[tuple[int, dict]], ticks: Sequence[int], dots: bool = True) -> None:
    """Differences by the number of epochs: means with 95 % intervals, hollow where seeds are too few, and a dot per seed."""
    ax.axhline(0, color=GREY, lw=0.8)
    for over, (color, marker, shift) in MARKS.items():
        shown = [(n * shift, c) for n, c in told if c["over"] == over]
        for x, c in shown:
            enough = c["n"] >= rules.SEEDS
            ends = np.maximum([[c["ours"] - c["low"]], [c["high"] - c["ours"]]], 0) if enough else None  # rounding goes below 0
            if c["paired"] and dots:
                ax.plot([x] * c["n"], np.subtract(*c["values"]), ".", color=color, ms=3, alpha=0.6)
            ax.errorbar(x, c["ours"], ends, fmt=marker, color=color, ms=5, capsize=3, mfc=color if enough else "white")
        if shown:
            ax.plot(*zip(*[(x, c["ours"]) for x, c in shown], strict=True), color=color, lw=1, label=f"CSG − {over.upper()}")
    ax.set(xscale="log")
    ax.set_xticks(ticks, map(str, ticks))
    ax.set_xlim(ticks[0] * 0.75, ticks[-1] * 1.35)
    ax.xaxis.set_minor_locator(NullLocator())


@styled
def gap_figure(lengths: dict[int, Runs]) -> Figure:
    """Differences of accuracy (left) and MIS (right) by the number of epochs."""
    told = gaps(lengths)
    fig, axes = plt.subplots(1, 2, figsize=(6.4, 2.8), layout="constrained")
    for ax, metric, title in zip(axes, ("accuracy", "mis"), ("accuracy", "MIS, nats"), strict=True):
        draw(ax, [(n, c) for n, c in told if c["metric"] == metric], sorted({n for n, _ in told}))
        ax.set(title=title, xlabel="epochs")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return fig


@styled
def others_figure(lengths: dict[int, Runs]) -> Figure:
    """A panel per statistic: CSG's difference from the other networks by the number of epochs."""
    told = [(n, toward(c)) for n, c in others(lengths)]
    ticks = sorted({n for n, _ in told})
    shown = [metric for metric in TITLES if any(c["metric"] == metric for _, c in told)]
    rows = -(-len(shown) // 3)
    fig, axes = plt.subplots(rows, 3, figsize=(6.4, 1.5 * rows), layout="constrained", squeeze=False)
    for ax, metric in zip(axes.flat, shown, strict=False):
        draw(ax, [(n, c) for n, c in told if c["metric"] == metric], ticks, dots=False)
        ax.set_title(TITLES[metric], fontsize=8)
        ax.tick_params(labelsize=7)
    for ax in axes.flat[len(shown) :]:
        ax.set_visible(False)
    for ax in axes[-1]:
        ax.set_xlabel("epochs", fontsize=8)
    handles = {label: line for ax in axes.flat for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=2)
    return fig


def toward(judged: dict) -> dict:
    """The judged difference as CSG's from the other network, whichever the claim puts first."""
    if judged["of"] == "csg":
        return judged
    ends = {} if judged["low"] is None else {"low": -judged["high"], "high": -judged["low"]}
    turned = {"of": "csg", "over": judged["of"], "ours": -judged["ours"], "values": judged["values"][::-1]} | ends
    return judged | turned


def others_table(lengths: dict[int, Runs]) -> Markdown:
    """Each statistic's difference by the number of epochs, in bold where its interval leaves out zero, and how it moves."""
    told = [(n, toward(c)) for n, c in others(lengths)]
    ticks = sorted({n for n, _ in told})
    if not ticks:
        return Markdown("No network that is compared has a run yet.")
    head = ["CSG's difference in", "From", *(f"{n} epochs" for n in ticks), "Moves from one length to the next"]
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for key in dict.fromkeys((c["metric"], c["over"]) for _, c in told):
        by_length = {n: c for n, c in told if (c["metric"], c["over"]) == key}
        cells = [number(by_length[n]) if n in by_length else "–" for n in ticks]
        steps = [change(by_length[n], by_length[m]) for m, n in itertools.pairwise(by_length)]
        moves = ["–" if e is None else {1: "up", -1: "down", 0: "open"}[int(rules.direction(e))] for e in steps]
        link = f"{{doc}}`{TITLES[key[0]]} <{next(c['page'] for c in by_length.values())}>`"
        rows.append(f"| {' | '.join([link, key[1].upper(), *cells, ', '.join(moves) or '–'])} |")
    return Markdown("\n".join(rows))


def number(judged: dict) -> str:
    """The mean, in bold where its interval leaves out zero."""
    mean, n = f"{judged['ours']:+.4f}", judged["n"]
    if n < rules.SEEDS:
        return f"{mean} ({n} seed{'s' * (n > 1)})"
    return f"**{mean}**" if judged["low"] > 0 or judged["high"] < 0 else mean


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
    e = change(now, before)
    if e is None:
        return f"- {what}: {before['ours']:+.4f} after {m} epochs and {now['ours']:+.4f} after {n}."
    low, high = map(float, e.interval())
    told = f"{float(e.mean):+.4f} ({verdicts.ends(low, high, '+')})"
    if not rules.direction(e):
        return f"- {what} changes by {told} from {m} to {n} epochs, which may be chance."
    return f"- {what} {'rises' if rules.direction(e) > 0 else 'falls'} from {m} to {n} epochs, by {told}."


def change(now: dict, before: dict) -> rules.Estimate | None:
    """By how much a difference has moved, seed by seed; None where too few seeds have both."""
    a, b = by_seed(now), by_seed(before)
    both = sorted(a.keys() & b.keys())
    if len(both) < rules.SEEDS:
        return None
    return rules.of_difference(np.array([a[seed] for seed in both]), np.array([b[seed] for seed in both]), paired=True)


def by_seed(judged: dict) -> dict[int, float]:
    """The differences within pairs, by their seeds; none where the sides are no pairs."""
    seeds = [seed for _, seed, _ in judged["behind"]][: judged["n"]]
    return dict(zip(seeds, np.subtract(*judged["values"]).tolist(), strict=True)) if judged["paired"] else {}
