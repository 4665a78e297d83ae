"""Figures of the page on the gate's leak; what they show is computed in leak.py and measured by tools/label_leak.py."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from csgbook import measured
from csgbook.evidence import leak
from csgbook.pages.figures import BLUE, GREY, ORANGE, styled
from csgbook.pages.leak_tables import GROUPS, MASKED, SHOWN, Runs, chance_of, masked, trainings, values

DRAWN = ("label", "predicted", "wrong", "followed", "without_image", "by_logit", "ungated")  # from top to bottom
MARKS = {"csg": (BLUE, "o"), "meaningless": (GREY, "x"), "std": (ORANGE, "s")}


@styled
def rows(runs: Runs) -> Figure:
    """How often the gated path is right under each row, one mark per seed, and how often it names a wrong row's class."""
    found = masked(runs)
    fig, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for (kind, group), shift in zip(found.items(), (-0.22, 0.22, 0), strict=True):
        color, marker = MARKS[kind]
        for i, name in enumerate(DRAWN):
            seeds = values(group, name)
            ax.plot(seeds, [i + shift] * len(seeds), marker, ms=5, color=color, label=MASKED[kind] if i == 0 else None)
    if found["csg"]:
        ax.axvline(chance_of(runs), color=GREY, ls=":", lw=1)
        ax.text(chance_of(runs) + 0.01, len(DRAWN) - 0.45, "chance", color=GREY, fontsize=8, va="center")
        fig.legend(loc="outside upper center", ncols=3, fontsize=8)
    ax.set(xlim=(-0.03, 1.03), ylim=(len(DRAWN) - 0.3, -0.5), xlabel="share of test images")
    ax.set_yticks(range(len(DRAWN)), [SHOWN[name] for name in DRAWN])
    ax.grid(axis="y", lw=0.3)
    return fig


@styled
def random_labels() -> Figure:
    """Accuracy on held-out images, epoch by epoch: mean over seeds, and in the band all of them."""
    fig, axes = plt.subplots(2, 1, figsize=(6.4, 4.4), sharex=True, layout="constrained")
    curves = (
        ("csg", "test_accuracy_gated", ORANGE, "-", "CSG, gated path, row of the label"),
        ("csg", "test_accuracy", BLUE, "-", "CSG, ungated path"),
        ("standard", "test_accuracy", GREY, "--", "standard training"),
    )
    for ax, (labels, title) in zip(axes, GROUPS.items(), strict=True):
        for method, field, color, dash, label in curves:
            seeds = [t["history"] for t in trainings() if (t["labels"], t["recipe"]["method"]) == (labels, method)]
            if seeds:
                shown = zip(*seeds, strict=False)  # of all seeds: by epoch
                draw_band(ax, np.array([[row.get(field, np.nan) for row in rows] for rows in shown]).T, color, dash, label)
        if trainings():
            ax.axhline(1 / measured.read("label-leak")["classes"], color=GREY, ls=":", lw=1)
        ax.set_title(title, loc="left")
        ax.set(ylabel="held-out accuracy", ylim=(0, 1.03))
    axes[1].set_xlabel("epoch")
    axes[1].xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, names = axes[0].get_legend_handles_labels()
    if handles:
        fig.legend(handles, names, loc="outside upper center")
    return fig


def draw_band(ax, accuracies: np.ndarray, color: str, dash: str = "-", label: str | None = None) -> None:
    """(seeds, epochs): the mean as a line, the range of the seeds as a band."""
    epochs = np.arange(1, accuracies.shape[1] + 1)
    ax.fill_between(epochs, accuracies.min(0), accuracies.max(0), color=color, alpha=0.2, lw=0)
    ax.plot(epochs, accuracies.mean(0), dash, color=color, lw=1.3, label=label)


@styled
def before_and_after(runs: Runs) -> Figure:
    """Above, test accuracy after each epoch; below, its change over each gated epoch.  Means over seeds, bands of all seeds."""
    fig, (top, low) = plt.subplots(2, 1, figsize=(6.4, 4.2), sharex=True, height_ratios=(3, 2), layout="constrained")
    for name, color, dash, label in (("std", GREY, "--", "standard training"), ("csg", BLUE, "-", "CSG")):
        if group := runs.get(name, []):
            accuracies = np.array([[row["test_accuracy"] for row in run.history] for run in group])
            draw_band(top, accuracies, color, dash, label)
            steps = [leak.gated_steps(run) for run in group]
            changes = np.array([[step.after - step.before for step in seed] for seed in steps])
            places = [step.epoch for step in steps[0]]
            low.fill_between(places, changes.min(0), changes.max(0), color=color, alpha=0.2, lw=0)
            low.plot(places, changes.mean(0), dash, color=color, marker="o", ms=3, lw=1)
    if group := runs.get("csg", []):
        mean = np.mean([[row["test_accuracy"] for row in run.history] for run in group], 0)
        gated = [i for i, row in enumerate(group[0].history) if row["path"] == "gated"]
        top.plot(np.array(gated) + 1, mean[gated], "s", ms=5, color=ORANGE, label="CSG, after a gated epoch")
        top.legend(loc="lower right")
    low.axhline(0, color=GREY, lw=0.8)
    top.set_ylabel("test accuracy,\nungated path")
    low.set(xlabel="epoch", ylabel="change over\na gated epoch")
    low.xaxis.set_major_locator(MaxNLocator(integer=True))
    return fig
