"""The page *Does it hold elsewhere?*: a grid of networks and data sets in one picture, its table, what tells cells apart."""

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from matplotlib import pyplot as plt
from matplotlib import ticker
from matplotlib.figure import Figure
from scipy import stats
from torch import nn

from csgbook.evidence import grid, rules
from csgbook.evidence.grid import Cell, called
from csgbook.pages import origin
from csgbook.pages.figures import COLOURS, GREY, styled
from csgbook.pages.tables import markdown, spread
from csglib import networks
from csglib.runs import Run

MARKERS = {"csg": "o", "picnn": "s", "matched": "^", "std": "D"}
TITLES = {"accuracy": "accuracy", "mis_normalised": "MIS / bound", "removed": "accuracy without own filters"}
LACKING = "not run here"


# The picture


@styled
def differences(cells: Sequence[Cell]) -> Figure:
    """A row per network, two columns per data set: differences from standard training, a mark per method.

    Networks and data sets without runs are left out, unless none has any.
    """
    drawn = [c for c in cells if any(c.holds(method) is not None for method in ("csg", "picnn"))]
    names = list(dict.fromkeys(c.network for c in drawn or cells))
    data = list(dict.fromkeys(c.data for c in drawn or cells[:1]))
    size = (6.4, 1.2 + 0.3 * len(names))
    fig, axes = plt.subplots(1, 2 * len(data), figsize=size, sharey=True, layout="constrained", squeeze=False)
    for (of, metric), ax in zip([(d, m) for d in data for m in grid.METRICS], axes[0], strict=True):
        ax.axvline(0, color=GREY, lw=0.8)
        if metric == "accuracy":
            ax.axvspan(-grid.TOLERANCE, 0, color=GREY, alpha=0.2, lw=0)
        for cell in (c for c in drawn if c.data == of):
            draw_cell(ax, cell, metric, names.index(cell.network))
        ax.set_title(f"{called(of)}\n{TITLES[metric]}", fontsize=8 if len(data) < 3 else 6.5)
        ax.set_yticks(range(len(names)), [called(name) for name in names])
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.margins(x=0.15)
        if not drawn:
            ax.set_xlim(-0.05, 0.05)
            ax.text(0.5, 0.5, LACKING, transform=ax.transAxes, ha="center", color=GREY)
        ax.xaxis.set_major_locator(ticker.MaxNLocator(2))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.grid(axis="y", color=GREY, alpha=0.15, lw=0.6)
    axes[0, 0].set_xlabel("difference from STD")
    marks = [
        plt.Line2D([], [], color=COLOURS[method], marker=MARKERS[method], ls="", label=f"{method.upper()} − STD")
        for method in ("csg", "picnn")
    ]
    fig.legend(handles=marks, loc="outside upper center", ncols=2)
    return fig


def draw_cell(ax, cell: Cell, metric: str, row: int) -> None:
    for method, shift in (("csg", -0.15), ("picnn", 0.15)):
        color, marker = COLOURS[method], MARKERS[method]
        d = cell.difference(method, metric)
        if method in cell.diverged:
            ax.text(0, row + shift, " diverged", color=color, fontsize=6, va="center")
        elif d:
            ends = None if d.low is None else [[d.mean - d.low], [d.high - d.mean]]
            ax.errorbar(
                d.mean, row + shift, xerr=ends, fmt=marker, color=color, ms=4, capsize=2, lw=1, mfc=color if ends else "white"
            )


# The verdict


def answer(cells: Sequence[Cell]) -> Markdown:
    """The verdict on PICNN's claim over the networks, and CSG by the same rule, each with its uncertainty."""
    told = [sentence(cells, method) for method in ("picnn", "csg")]
    if not any(told):
        return Markdown("**Not answered yet:** the runs that would tell are not here.")
    return Markdown(f"**{' '.join(filter(None, told))}**{so_far(cells)}")


def so_far(cells: Sequence[Cell]) -> str:
    """How much of the grid the answer rests on, where that is not all of it."""
    ran = [c for c in cells if c.holds("picnn") is not None or c.holds("csg") is not None]
    most = max((len(group) for c in ran for group in c.runs.values()), default=0)
    if len(ran) == len(cells) and most >= rules.SEEDS:
        return ""
    seeds = "" if most >= rules.SEEDS else ", none with three seeds: nothing is decided yet"
    return f" So far {len(ran)} of {len(cells)} cells have runs{seeds}."


def sentence(cells: Sequence[Cell], method: str) -> str:
    """Empty where no cell tells."""
    s = grid.signs(cells, method)
    if s is None:
        return ""
    found = [holds for c in cells if (holds := c.holds(method)) is not None]
    claim = {
        "picnn": "PICNN's claim, filters that tell more of one class at equal or higher accuracy, holds",
        "csg": "By the same rule the claim holds for CSG",
    }[method]
    n = len(s.holds) + len(s.fails)
    return (
        f"{claim} in {len(s.holds)} of {n} network{'s' * (n > 1)} (95 % interval of the share {s.low:.2f} to {s.high:.2f}, "
        f"sign test p = {s.p:.2g}), and in {sum(found)} of {len(found)} cells of network and data set."
    )


def count(cells: Sequence[Cell]) -> Markdown:
    """How many cells hold, which half fails in the others, for both methods; and the sign tests of each half."""
    if all(c.holds(method) is None for c in cells for method in ("picnn", "csg")):
        return Markdown("There is no cell to count yet.")
    rows = []
    for method in ("picnn", "csg"):
        told = [c for c in cells if c.holds(method) is not None]
        halves = [halves_of(c, method) for c in told if method not in c.diverged]
        row = {"Method": method.upper(), "Cells": len(told), "Claim holds": halves.count((True, True))}
        row["of these by intervals"] = sum(bool(c.holds(method)) and c.sure(method) for c in told)
        row |= {"Accuracy lower": halves.count((False, True)), "MIS not greater": halves.count((True, False))}
        row |= {"Both": halves.count((False, False)), "Diverged": sum(method in c.diverged for c in told)}
        rows.append({title: str(value) for title, value in row.items()})
    return markdown(pd.DataFrame(rows))


def halves_of(cell: Cell, method: str) -> tuple[bool, bool]:
    """Whether the accuracy is kept, and whether MIS is greater."""
    accuracy, mis = (cell.difference(method, metric).mean for metric in grid.METRICS)
    return accuracy >= -grid.TOLERANCE, mis > 0


# The table


def table(cells: Sequence[Cell]) -> Markdown:
    """A table per data set that has runs: of each network standard training's numbers, and what every other method changes."""
    parts = []
    for data in dict.fromkeys(c.data for c in cells):
        of = [c for c in cells if c.data == data]
        rows = [row for c in of if started(c) for row in table_rows(c)]
        parts.append(f"*{called(data)}*\n\n{markdown(pd.DataFrame(rows)).data}" if rows else f"*{called(data)}*: {LACKING}.")
        if rows and (empty := [called(c.network) for c in of if not started(c)]):
            parts.append(f"No run yet: {', '.join(empty)}.")
    return Markdown("\n\n".join(parts))


def started(c: Cell) -> bool:
    """Whether there is anything to tell of it."""
    return bool(c.diverged or any(c.runs.values()))


def table_rows(c: Cell) -> list[dict[str, str]]:
    """Standard training first, then each other method less it; what has no run is left out."""
    rows = []
    for method in dict.fromkeys(["std", *c.runs, *c.diverged]):
        group = c.runs.get(method, [])
        if not group and method not in c.diverged:
            continue
        row = {"Network": "" if rows else called(c.network), "K / C": "" if rows else ratio(c)}
        row["Method"] = "STD" if method == "std" else f"{method.upper()} − STD"
        for metric in grid.METRICS:
            alone = spread([r.metrics[metric] for r in group], 3)
            row[title(metric)] = alone if method == "std" and group else told(c, method, metric)
        answer = {True: "holds", False: "fails", None: ""}[None if method == "std" else c.holds(method)]
        row["Claim"] = answer + " †" * (method != "std" and c.sure(method))
        rows.append(row | {"Seeds": str(len(group))})
    return rows


def told(cell: Cell, method: str, metric: str) -> str:
    """A difference with its interval; what a training was stopped by; nothing without runs."""
    if method in cell.diverged:
        return f"diverged: {cell.diverged[method]}"
    d = cell.difference(method, metric)
    if d is None:
        return ""
    values = [d.mean] if d.low is None else [d.mean, d.low, d.high]
    mean, *ends = [f"{value:+.3f}".replace("-", "−") for value in values]
    return mean + (f" ({' to '.join(ends)})" if ends else "")


def ratio(cell: Cell) -> str:
    C, K = cell.classes, traits(cell.recipe.net)["Filters K"]
    return "" if C is None else f"{K / C:.1f}" + " (< 5)" * (K < grid.FEW * C)


def few(cells: Sequence[Cell]) -> Markdown:
    """Which cells have fewer than five filters per class."""
    known = [(c, traits(c.recipe.net)["Filters K"] / c.classes) for c in cells if c.classes]
    if not known:
        return Markdown("How many filters there are per class is not known yet: run a cell, or `python tools/grid_pace.py`.")
    named = [f"{called(c.network)} on {called(c.data)} ({each:.1f})" for c, each in known if each < grid.FEW]
    if not named:
        return Markdown("Every network here has at least five filters per class.")
    return Markdown(
        f"Fewer than five filters per class, so that a cluster is often empty when PICNN starts: {', '.join(named)}. Its claim "
        "is counted there all the same."
    )


# What tells the cells apart


@functools.cache
def traits(net: str) -> dict[str, int | float | str]:
    """Of a network by its recipe's name: what it has at the gate, found in the network itself."""
    torch.manual_seed(0)
    built = networks.build(net, 10).eval()
    norms = [m for m in built.features.modules() if type(m).__name__.startswith(("BatchNorm", "LayerNorm"))]
    with torch.no_grad():
        maps = built.maps(torch.rand(2, 3, 32, 32))
    weighted = [m for m in built.features.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.MultiheadAttention)]
    return {
        "Filters K": built.num_filters,
        "Side of the map": maps.shape[2],
        "Convolutions and linear layers before the gate": len(weighted),
        "Weights, millions": sum(p.numel() for p in built.features.parameters()) / 1e6,
        "Negative values at the gate": float((maps < 0).float().mean()),
        "Normalisation": "batch" if norms and type(norms[-1]).__name__.startswith("Batch") else "layer",
    }


def apart(cells: Sequence[Cell], method: str = "picnn") -> Markdown:
    """For each trait its median in the networks in which the claim holds and in the others, and an exact rank test's p."""
    s = grid.signs(cells, method)
    if s is None or not s.holds or not s.fails:
        return Markdown("The networks cannot be told apart: there are none of both kinds yet.")
    nets = {c.network: c for c in cells}
    described = {name: facts(cells, nets[name]) for name in (*s.holds, *s.fails)}
    rows = []
    for trait in next(iter(described.values())):
        sides = [[described[name][trait] for name in names] for names in (s.holds, s.fails)]
        if isinstance(sides[0][0], str):
            shown = [", ".join(f"{side.count(w)} {w}" for w in sorted(set(sides[0] + sides[1]))) for side in sides]
            first = sorted(set(sides[0] + sides[1]))[0]
            counts = [[side.count(first), len(side) - side.count(first)] for side in sides]
            p = float(stats.fisher_exact(counts).pvalue)
        else:
            shown = [f"{np.median(side):.3g}" for side in sides]
            p = ranks_apart(*sides)
        rows.append({"Trait": trait, f"Holds ({len(s.holds)})": shown[0], f"Fails ({len(s.fails)})": shown[1], "p": f"{p:.2f}"})
    n = len(described)
    least = min(1.0, 2 / math.comb(n, len(s.holds)))
    hold, fail = (", ".join(map(called, side)) for side in (s.holds, s.fails))
    text = (
        f"Holds: {hold}. Fails: {fail}. With {n} networks split so, the smallest p of a rank "
        f"test is {least:.2g}, and {len(rows)} traits are tried, so that one of them below 0.05 would prove nothing: read "
        "the rows as questions for a larger grid."
    )
    return Markdown(f"{pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)}\n\n{text}")


def ranks_apart(a: list[int | float], b: list[int | float]) -> float:
    """Two-sided p of the rank sum, over every way to deal the values to the two sides.

    scipy's permutation_test refuses a side of one network, and its exact mannwhitneyu knows no ties.
    """
    ranks = stats.rankdata(a + b)
    sums = np.array([ranks[list(side)].sum() for side in itertools.combinations(range(len(ranks)), len(a))])
    seen = ranks[: len(a)].sum()
    return min(1.0, 2 * float(min((sums <= seen + 1e-9).mean(), (sums >= seen - 1e-9).mean())))


def facts(cells: Sequence[Cell], cell: Cell) -> dict[str, int | float | str]:
    """A network's traits, and how well it learns without a gate."""
    std = [run.metrics for c in cells if c.network == cell.network for run in c.runs.get("std", [])]
    of = [c.classes for c in cells if c.network == cell.network and c.classes and started(c)]
    known = traits(cell.recipe.net)
    more = {"Filters per class, K / C": float(known["Filters K"] / np.mean(of))} if of else {}
    return known | more | {f"{title(m)} of STD": float(np.mean([run[m] for run in std])) for m in grid.METRICS}


# Where to put the gate


@styled
def stages(cells: Sequence[Cell]) -> Figure:
    """Accuracy, MIS and removal with the network ending after each stage, a line per method."""
    fig, axes = plt.subplots(1, 3, figsize=(6.4, 2.4), layout="constrained")
    for ax, metric in zip(axes, (*grid.METRICS, "removed"), strict=True):
        for method in ("std", "csg", "picnn"):
            color, marker = COLOURS[method], MARKERS[method]
            values = [[r.metrics[metric] for r in c.runs.get(method, []) if r.metrics.get(metric) is not None] for c in cells]
            at = [i for i, v in enumerate(values) if v]
            ms = {"csg": 7}.get(method, 4)  # to be seen where PICNN's mark lies on it
            ax.plot(at, [np.mean(values[i]) for i in at], color=color, marker=marker, ms=ms, lw=1, label=method.upper())
            for i in at:
                ax.plot([i] * len(values[i]), values[i], ".", color=color, ms=3, alpha=0.6)
        ax.set_xticks(range(len(cells)), [called(c.network) for c in cells], rotation=30, ha="right")
        ax.set_title(TITLES[metric].replace(" without ", "\nwithout "))
        if not any(any(c.runs.values()) for c in cells):
            ax.set_yticks([])
            ax.text(0.5, 0.5, LACKING, transform=ax.transAxes, ha="center", color=GREY)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return fig


def stage_table(cells: Sequence[Cell]) -> Markdown:
    rows = []
    for c in cells:
        known = traits(c.recipe.net)
        start = {
            "Gate after": called(c.network),
            "Filters K": str(known["Filters K"]),
            "Side of the map": str(known["Side of the map"]),
        }
        for method in ("std", "csg", "picnn"):
            group = c.runs.get(method, [])
            row = start | {"Method": method.upper()}
            for metric in (*grid.METRICS, "removed"):
                row[title(metric)] = spread([r.metrics.get(metric) for r in group], 3) if group else ""
            if method in c.diverged:
                row[title("accuracy")] = f"diverged: {c.diverged[method]}"
            rows.append(row | {"Runs": str(len(group)) if group else LACKING})
    return markdown(pd.DataFrame(rows))


def title(metric: str) -> str:
    return TITLES[metric][0].upper() + TITLES[metric][1:]


def provenance(runs: dict[str, list[Run]]) -> Markdown:
    """The strip of a page's end, folded: a grid has many rows."""
    told = origin.strip({name: group for name, group in runs.items() if group}).data
    return Markdown(f"::::{{dropdown}} Recipe, seeds, commit and hardware of every cell\n{told}\n::::\n")
