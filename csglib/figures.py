"""Tables and plots that pages show.  Each function takes runs or tensors and returns a figure or Markdown."""

import json
from collections.abc import Callable
from functools import wraps

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from csglib.claims import schedule
from csglib.data import ROOT
from csglib.runs import Recipe, Run

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#6b6b6b"  # of Okabe and Ito's palette, safe for colour-blind readers
STYLE = {
    "figure.dpi": 200,  # twice what a page shows, for sharp screens
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "legend.frameon": False,
}
METRICS = {  # what a table calls each number of metrics.json
    "accuracy": "Accuracy",
    "mis": "MIS, nats",
    "mis_null": "MIS, shuffled labels",
    "mis_normalised": "MIS / H(1/C)",
    "l1_density": "L1-density",
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the book's style, and close the figure, so that a notebook shows it once, as its cell's value."""

    @wraps(draw)
    def styled_draw(*args, **kwargs) -> Figure:
        with plt.rc_context(STYLE):
            figure = draw(*args, **kwargs)
        plt.close(figure)
        return figure

    return styled_draw


@styled
def gate_film(gates: Float[Tensor, "T C K"], classes: tuple[str, ...], shown: int = 4) -> Figure:
    """The gate after some of its epochs, the first and the last among them; filters sorted by their class in the last."""
    T, C, K = gates.shape
    order = gates[-1].argmax(0).argsort(stable=True)
    picked = np.unique(np.linspace(0, T - 1, min(shown, T)).round().astype(int))
    height = 1.3 * len(picked) + 0.4
    fig, axes = plt.subplots(len(picked), 1, figsize=(6.4, height), sharex=True, squeeze=False, layout="constrained")
    for ax, t in zip(axes[:, 0], picked, strict=True):
        im = draw_gate(ax, gates[t][:, order], classes)
        ax.set_title(f"after gated epoch {t + 1} of {T}: density {gates[t].mean():.3f}", loc="left")
    axes[-1, 0].set_xlabel("filter, sorted by class in the last gate")
    fig.colorbar(im, ax=axes[:, 0], label="gate", shrink=0.6)
    return fig


def draw_gate(ax, gate: Float[Tensor, "C K"], classes: tuple[str, ...]):
    im = ax.imshow(gate.numpy(), vmin=0, vmax=1, cmap="Blues", aspect="auto", interpolation="none")
    ax.set_yticks(range(len(classes)), classes, fontsize=6)
    ax.tick_params(length=0)
    return im


@styled
def gate(run: Run, classes: tuple[str, ...]) -> Figure:
    """The final gate of one run, filters sorted by class, and how many filters each class owns."""
    G = run.readout.gate
    order = G.argmax(0).argsort(stable=True)
    owned = np.bincount(G.argmax(0), minlength=len(classes))
    fig, (left, right) = plt.subplots(1, 2, figsize=(6.4, 2.3), width_ratios=(4, 1), sharey=True, layout="constrained")
    draw_gate(left, G[:, order], classes)
    left.set(xlabel="filter, sorted by class", title=f"gate, density {G.mean():.3f}")
    right.barh(range(len(classes)), owned, color=BLUE)
    right.set(xlabel="filters", title="owned by class")
    return fig


@styled
def curves(run: Run) -> Figure:
    """Test accuracy of both paths and the gate's density, epoch by epoch; gated epochs are shaded."""
    history = pd.DataFrame(run.history)
    epoch = history["epoch"] + 1
    fig, (top, low) = plt.subplots(2, 1, figsize=(6.4, 3.6), sharex=True, height_ratios=(2, 1), layout="constrained")
    for ax in (top, low):
        for e in epoch[history["path"] == "gated"]:
            ax.axvspan(e - 0.5, e + 0.5, color=GREY, alpha=0.12, lw=0)
    top.plot(epoch, history["test_accuracy"], color=BLUE, marker="o", ms=2.5, label="standard path")
    if "test_accuracy_gated" in history:
        top.plot(epoch, history["test_accuracy_gated"], color=ORANGE, marker="s", ms=2.5, label="gated path (sees the label)")
    top.set(ylabel="test accuracy", ylim=(0, 1.02))
    top.legend(loc="lower right")
    if "density" in history:
        low.plot(epoch, history["density"], color=BLUE, marker="o", ms=2.5)
    low.set(xlabel="epoch (shaded: gated)", ylabel="density", ylim=(0, 1.02))
    low.xaxis.set_major_locator(MaxNLocator(integer=True))
    return fig


def metrics_table(runs: dict[str, list[Run]], paper: dict[str, dict[str, float]]) -> Markdown:
    """One row a metric; for each experiment ours, as mean and standard deviation over seeds, and the paper's number."""
    table = {"": [*METRICS.values(), "runs"]}
    for experiment, group in runs.items():
        name, theirs = experiment.upper(), paper.get(experiment, {})
        table[f"{name}, ours"] = [*(spread([r.metrics[m] for r in group]) for m in METRICS), str(len(group))]
        table[f"{name}, paper"] = [*(spread([theirs.get(m)]) for m in METRICS), ""]
    return markdown(pd.DataFrame(table))


def markdown(table: pd.DataFrame) -> Markdown:
    return Markdown(table.to_markdown(index=False, disable_numparse=True))


def spread(values: list[float | None]) -> str:
    values = [v for v in values if v is not None]
    if not values:
        return "–"
    return f"{np.mean(values):.4f}" + (f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else "")


def trained(run: Run) -> Markdown:
    """One sentence on how long the training took, where, and in which precision for what reason."""
    p = run.provenance
    return Markdown(
        f"Trained in {p['train_seconds']:.0f} seconds on {machine(run)}, in {run.recipe.precision}: {p['precision_reason']}."
    )


def machine(run: Run) -> str:
    hardware = run.provenance["hardware"]
    return hardware["gpu"] or f"{hardware['processor']}, {hardware['threads']} thread{'s' * (hardware['threads'] > 1)}"


def provenance(runs: dict[str, list[Run]]) -> Markdown:
    """Where the numbers of a page come from: each run with schedule, seed, commit, hardware, versions, time and command."""
    rows = []
    for run in (r for group in runs.values() for r in group):
        p = run.provenance
        rows.append(
            {
                "Run": f"`{run.recipe.name}`",
                "Schedule": f"{schedule(run.recipe)}, seed {run.recipe.seed}, {run.recipe.precision}",
                "Commit": f"`{(p['commit'] or 'unknown')[:8]}`" + (" (dirty)" if p["dirty"] else ""),
                "Made with": f"{machine(run)}, torch {p['versions']['torch']}",
                "Minutes": f"{p['train_seconds'] / 60:.1f}",
            }
        )
    if not rows:
        return Markdown("No run behind this page yet.")
    return markdown(pd.DataFrame(rows))


def missing(recipes: list[Recipe]) -> Markdown:
    """The commands that train what a page lacks."""
    if not recipes:
        return Markdown("All runs of this page are there.")
    commands = "\n".join(recipe.command for recipe in recipes)
    return Markdown(f"Not run yet, so not in the numbers above:\n\n```sh\n{commands}\n```")


def third_party() -> Markdown:
    """The metrics of the third-party ResNet-20, as tools/third_party.py measured them."""
    measured = json.loads((ROOT / "data" / "third-party-resnet20.json").read_text())
    row = {title: spread([measured["metrics"][metric]]) for metric, title in METRICS.items() if metric != "l1_density"}
    return markdown(pd.DataFrame([{"": "STD, third party", **row}]))
