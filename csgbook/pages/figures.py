"""Plots that pages show.  Each function takes runs or tensors and returns a figure, in colours for all eyes."""

import inspect
from collections.abc import Callable
from functools import wraps

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from csgbook.evidence.verdicts import last_weights, removed_filters, responses
from csgbook.pages.tables import percent
from csglib import data
from csglib.analysis import metrics
from csglib.analysis.information import entropy
from csglib.runs import Run
from csglib.runs.inference import sample, sample_maps

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#6b6b6b"  # of Okabe and Ito's palette, safe for colour-blind readers
COLOURS = {  # of a network, the same in every figure and on the first page
    "csg": BLUE, "std": ORANGE, "matched": GREY, "picnn": "#009e73", "icnn": "#cc79a7",
    "csg-joint": "#56b4e9", "fixed": "#000000", "picnn-random": "#e69f00",
    "alternating": BLUE, "joint": ORANGE,
}  # fmt: skip
CELLS = 500  # of a matrix, in each direction: a page has about two pixels for one
NAMED = 20  # classes along an axis
STYLE = {
    "figure.dpi": 200,  # twice what a page shows, for sharp screens
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "legend.frameon": False,
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the book's style, and close the figure, so that a notebook shows it once, as its cell's value.

    Names of classes are drawn as they are, whatever is in them.
    """

    @wraps(draw)
    def styled_draw(*args, **kwargs) -> Figure:
        given = inspect.signature(draw).bind(*args, **kwargs)
        if "classes" in given.arguments:
            given.arguments["classes"] = tuple(map(drawn, given.arguments["classes"]))
        with plt.rc_context(STYLE):
            figure = draw(*given.args, **given.kwargs)
        plt.close(figure)
        return figure

    return styled_draw


def drawn(name: str) -> str:
    """To matplotlib two dollars enclose a formula, and a label that begins with _ is not for the legend."""
    return " " * name.startswith("_") + name.replace("$", r"\$")


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
    im = draw_matrix(ax, gate)
    name_classes(ax.yaxis, classes)
    return im


def draw_matrix(ax, values: Float[Tensor, "R K"], top: float = 1.0):
    """One cell per entry; of a matrix with more entries than a page has room for, a cell is the largest of a block of them."""
    R, K = values.shape
    block = -(-R // CELLS), -(-K // CELLS)
    if max(block) > 1:
        values = F.max_pool2d(values.nan_to_num()[None], block, ceil_mode=True)[0]
        told = f"a cell: the largest of {block[0]} x {block[1]}"
        ax.text(0.99, 0.97, told, fontsize=5, ha="right", va="top", transform=ax.transAxes)
    shown = {"vmin": 0, "vmax": top, "cmap": "Blues", "aspect": "auto", "interpolation": "none"}
    im = ax.imshow(values.numpy(), extent=(-0.5, K - 0.5, R - 0.5, -0.5), **shown)
    ax.tick_params(length=0)
    return im


def name_classes(axis: Axis, classes: tuple[str, ...], fontsize: int = 6, **style) -> None:
    """Name classes along an axis: each, or of more than NAMED ten at equal distances."""
    if len(classes) <= NAMED:
        axis.set_ticks(range(len(classes)), classes, fontsize=fontsize, **style)
        return
    places = np.linspace(0, len(classes) - 1, 10).round().astype(int)
    axis.set_ticks(places, [cut(classes[c]) for c in places], fontsize=fontsize, **style)


def cut(text: str, most: int = 18) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


@styled
def gate(run: Run, classes: tuple[str, ...]) -> Figure:
    """The final gate of one run, filters sorted by class, and how many filters each class owns."""
    G = run.readout.gate
    order = G.argmax(0).argsort(stable=True)
    owned = np.bincount(G.argmax(0), minlength=len(classes))
    fig, (left, right) = plt.subplots(1, 2, figsize=(6.4, 2.3), width_ratios=(4, 1), sharey=True, layout="constrained")
    draw_gate(left, G[:, order], classes)
    left.set_title(f"gate, density {G.mean():.3f}", loc="left")
    left.set_xlabel("filter, sorted by class")
    right.barh(range(len(classes)), owned, height=0.8 if len(classes) <= NAMED else 1, color=BLUE)
    right.set(xlabel="filters", title="owned by class")
    return fig


@styled
def curves(run: Run) -> Figure:
    """Test accuracy of both paths and the gate's density, epoch by epoch; gated epochs are shaded."""
    history = pd.DataFrame(run.history)
    epoch = history["epoch"] + 1
    fig, (top, low) = plt.subplots(2, 1, figsize=(6.4, 3.6), sharex=True, height_ratios=(2, 1), layout="constrained")
    for ax in (top, low):
        shade_gated(ax, history)
    top.plot(epoch, history["test_accuracy"], color=BLUE, marker="o", ms=2.5, label="standard path")
    if "test_accuracy_gated" in history:
        top.plot(epoch, history["test_accuracy_gated"], color=ORANGE, marker="s", ms=2.5, label="gated path (sees the label)")
    top.set(ylabel="test accuracy", ylim=(0, 1.02))
    top.legend(loc="lower right")
    if "density" in history:
        low.plot(epoch, history["density"], color=BLUE, marker="o", ms=2.5)
        low.set_ylim(0, 1.1 * history["density"].max())
    low.set(xlabel="epoch (shaded: gated)", ylabel="density")
    low.xaxis.set_major_locator(MaxNLocator(integer=True))
    return fig


def shade_gated(ax, history: pd.DataFrame) -> None:
    for e in history["epoch"][history["path"] == "gated"] + 1:
        ax.axvspan(e - 0.5, e + 0.5, color=GREY, alpha=0.12, lw=0)


@styled
def compare(runs: dict[str, list[Run]]) -> Figure:
    """Test accuracy of the standard path and density of the gate: a mean over seeds per experiment, its band all seeds."""
    fig, (top, low) = plt.subplots(2, 1, figsize=(6.4, 3.9), sharex=True, height_ratios=(2, 1), layout="constrained")
    for (name, group), dash in zip(runs.items(), ("-", "--", ":"), strict=False):
        color = COLOURS.get(name.lower(), GREY)
        for ax, column in ((top, "test_accuracy"), (low, "density")):
            if values := [history[column] for run in group if column in (history := pd.DataFrame(run.history))]:
                draw_seeds(ax, pd.concat(values, axis=1), color, dash, name)
    for ax, label in ((top, "test accuracy, standard path"), (low, "density")):
        ax.set_ylabel(label)
        if ax.lines:  # as far as there is something to see
            ax.set_ylim(0.9 * min(np.nanmin(line.get_ydata()) for line in ax.lines), None)
    if any(runs.values()):
        top.legend(loc="lower right")
    low.set_xlabel("epoch")
    low.xaxis.set_major_locator(MaxNLocator(integer=True))
    return fig


def draw_seeds(ax, values: pd.DataFrame, color: str, dash: str, label: str) -> None:
    """Rows are epochs, columns seeds: the mean as a line, and a band from the lowest to the highest."""
    epoch = values.index + 1
    ax.plot(epoch, values.mean(axis=1), dash, color=color, lw=1.5, label=label)
    if values.shape[1] > 1:
        ax.fill_between(epoch, values.min(axis=1), values.max(axis=1), color=color, alpha=0.2, lw=0)


@styled
def losses(run: Run) -> Figure:
    """Cross entropy of both paths on the test images, epoch by epoch, on a logarithmic scale; gated epochs are shaded."""
    history = pd.DataFrame(run.history)
    epoch = history["epoch"] + 1
    fig, ax = plt.subplots(figsize=(6.4, 2.6), layout="constrained")
    shade_gated(ax, history)
    ax.plot(epoch, history["test_loss"], color=BLUE, marker="o", ms=2.5, label="standard path")
    ax.plot(epoch, history["test_loss_gated"], color=ORANGE, marker="s", ms=2.5, label="gated path (sees the label)")
    ax.set(xlabel="epoch (shaded: gated)", ylabel="cross entropy, nats", yscale="log")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return fig


@styled
def gate_and_information(runs: dict[str, Run], classes: tuple[str, ...]) -> Figure:
    """One column per network: the gate, the information M of filters and classes, and their product.

    A network without a gate shows the best one-hot assignment, that of each filter's largest information.
    """
    fig, axes = plt.subplots(3, len(runs), figsize=(6.4, 5), sharey=True, squeeze=False, layout="constrained")
    for column, (name, run) in zip(axes.T, runs.items(), strict=True):
        M = metrics.information(run.readout)
        G = metrics.cluster(M) if run.readout.gate is None else run.readout.gate
        order = G.argmax(0).argsort(stable=True)
        top = entropy(1 / len(classes))
        draw_gate(column[0], G[:, order], classes)
        im = draw_matrix(column[1], M[:, order], top)
        draw_matrix(column[2], (G * M)[:, order], top)
        share = metrics.overlap(M, run.readout.gate)
        column[0].set_title(f"{name}: {'best class' if run.readout.gate is None else 'gate'}", loc="left")
        column[1].set_title("information, nats", loc="left")
        column[2].set_title(f"product: {percent(float(share))} of the information", loc="left")
        column[2].set_xlabel("filter, sorted by class")
        for ax in column:
            name_classes(ax.yaxis, classes)
    fig.colorbar(im, ax=axes[1:], label="nats, up to H(1/C)", shrink=0.6)
    return fig


@styled
def correlations(runs: dict[str, Run]) -> Figure:
    """|cos| of all pairs of filters, sorted by class: of their last weights above, of their responses below.

    The last column is the control: the first network again, its filters dealt to the classes at random.
    """
    groups = [(name, run, metrics.owners(run.readout)) for name, run in runs.items()]
    groups += [(f"{name}, shuffled", run, metrics.shuffled(own)) for name, run, own in groups[:1]]
    fig, axes = plt.subplots(2, len(groups), figsize=(6.4, 4.4), squeeze=False, layout="constrained")
    for column, (name, run, own) in zip(axes.T, groups, strict=True):
        order = own.argsort(stable=True)
        edges = np.flatnonzero(np.diff(own[order])) + 0.5
        for ax, vectors, kind in zip(column, (last_weights(run), responses(run)), ("weights", "responses"), strict=True):
            matrix = metrics.correlation(vectors)
            same, different = metrics.blocks(matrix, own)
            im = draw_matrix(ax, matrix[order][:, order])
            ax.set(aspect="equal", xticks=[], yticks=[])
            ax.set_title(f"{name}: {kind}\n{same:.2f} within, {different:.2f} between", loc="left", fontsize=8)
            if len(edges) < 2 * NAMED:  # more would hide what they part
                ax.hlines(edges, -0.5, len(own) - 0.5, color=ORANGE, lw=0.4)
                ax.vlines(edges, -0.5, len(own) - 0.5, color=ORANGE, lw=0.4)
    fig.colorbar(im, ax=axes, label="|cos|", shrink=0.6)
    return fig


@styled
def removals(accuracies: dict[str, Float[Tensor, "C C"]], classes: tuple[str, ...]) -> Figure:
    """One heat map per entry: the class whose filters are removed (rows), accuracy on each class (columns)."""
    fig, axes = plt.subplots(1, len(accuracies), figsize=(6.4, 3), sharey=True, squeeze=False, layout="constrained")
    for ax, (name, values) in zip(axes[0], accuracies.items(), strict=True):
        im = draw_matrix(ax, values)
        ax.set_title(name, fontsize=8)
        name_classes(ax.xaxis, classes, rotation=90)
        ax.set_xlabel("accuracy on")
    name_classes(axes[0, 0].yaxis, classes)
    axes[0, 0].set_ylabel("filters removed of")
    fig.colorbar(im, ax=axes, label="accuracy", shrink=0.6)
    return fig


@styled
def confusions(runs: dict[str, Run], removed: Int[Tensor, " R"], classes: tuple[str, ...]) -> Figure:
    """Confusion matrices with all filters (above) and without the filters of the removed classes (below)."""
    fig, axes = plt.subplots(2, len(runs), figsize=(6.4, 5.8), sharex=True, sharey=True, squeeze=False, layout="constrained")
    for column, (name, run) in zip(axes.T, runs.items(), strict=True):
        masks = removed_filters(run)
        for ax, mask, title in zip(
            column,
            (torch.zeros_like(masks[0]), masks[removed].amax(0)),
            ("all filters", "without " + cut(", ".join(classes[c] for c in removed), 24)),
            strict=True,
        ):
            im = draw_matrix(ax, metrics.confusion(run.readout, mask))
            ax.set_title(f"{name}, {title}", loc="left", fontsize=8)
            name_classes(ax.xaxis, classes, rotation=90)
            name_classes(ax.yaxis, classes)
        column[1].set_xlabel("predicted class")
    for ax in axes[:, 0]:
        ax.set_ylabel("true class")
    fig.colorbar(im, ax=axes, label="share of the class's images", shrink=0.6)
    return fig


@styled
def centres(runs: dict[str, Run], classes: tuple[str, ...]) -> Figure:
    """Mean features of each class, filters sorted by the class that they serve, all networks on one scale."""
    fig, axes = plt.subplots(len(runs), 1, figsize=(6.4, 1.9 * len(runs)), squeeze=False, layout="constrained")
    means = {name: metrics.class_means(run.readout) for name, run in runs.items()}
    top = max((mean.nan_to_num().max().item() for mean in means.values()), default=1.0)
    for ax, (name, run) in zip(axes[:, 0], runs.items(), strict=True):
        im = draw_matrix(ax, means[name][:, metrics.owners(run.readout).argsort(stable=True)], top)
        ax.set_title(
            f"{name}: {percent(metrics.own_share(run.readout))} of a centre lies in the class's own filters", loc="left"
        )
        name_classes(ax.yaxis, classes)
    if runs:
        fig.colorbar(im, ax=axes, label="mean activation")
    axes[-1, 0].set_xlabel("filter, sorted by the class that it serves")
    return fig


@styled
def places(runs: dict[str, Run], classes: tuple[str, ...], filters: int = 4, shown: int = 5) -> Figure:
    """Where filters fire: for a few classes and each network the sample's images that excite the class's first filter most.

    The line encloses what exceeds half of the map's maximum.  Classes are spread over those that have a filter in each network;
    where there is none, over all, and a network without a filter of one has an empty row.
    """
    maps_of = {name: sample_maps(run) for name, run in runs.items()}
    firing: dict[str, dict[int, int]] = {}  # the first filter of each class that fires at all
    for name, run in runs.items():
        alive = maps_of[name].amax((0, 2, 3)) > 0
        firing[name] = {c: k for k, c in reversed([*enumerate(metrics.owners(run.readout).tolist())]) if alive[k]}
    common = sorted(set.intersection(*map(set, firing.values())) or set.union(*map(set, firing.values())))
    filters = min(filters, len(common))
    rows = [common[round(i * (len(common) - 1) / max(filters - 1, 1))] for i in range(filters)]

    columns = len(runs) * (shown + 1) - 1  # an empty column between two networks holds the names of the filters
    fig, axes = plt.subplots(filters, columns, figsize=(6.4, 0.66 * filters + 0.3), squeeze=False)
    for ax in axes[:, shown :: shown + 1].flat:
        ax.remove()
    for j, (name, run) in enumerate(runs.items()):
        images, maps = sample(run), maps_of[name]
        for row, c in zip(axes[:, j * (shown + 1) : j * (shown + 1) + shown], rows, strict=True):
            if (k := firing[name].get(c)) is None:
                for ax in row:
                    ax.axis("off")
                continue
            best = maps[:, k].amax((1, 2)).argsort(dim=0, descending=True, stable=True)[:shown]
            for ax, n in zip(row, best.tolist(), strict=True):
                size = images.shape[2:]
                heat = F.interpolate(maps[n, k][None, None], size, mode="bilinear")[0, 0]
                ax.imshow(images[n].permute(1, 2, 0).numpy())
                ax.contour(heat.numpy(), [heat.max().item() / 2], colors=[ORANGE], linewidths=1)
                ax.set(xticks=[], yticks=[])
            row[0].set_ylabel(classes[c], fontsize=7)
        axes[0, j * (shown + 1)].set_title(name, loc="left")
    fig.subplots_adjust(left=0.05, right=0.99, top=0.9, bottom=0.01, wspace=0.08, hspace=0.08)
    return fig


@styled
def trade(runs: dict[str, list[Run]]) -> Figure:
    """Accuracy against mutual information score, one dot per run, one colour and marker per method."""
    fig, ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    for i, (name, group) in enumerate((name, group) for name, group in runs.items() if group):
        points = [[run.metrics[m] for run in group] for m in ("accuracy", "mis")]
        ax.plot(*points, "os^Dv<>P"[i % 8], ms=5, color=COLOURS.get(name, GREY), label=name)
    ax.set(xlabel="test accuracy", ylabel="MIS, nats")
    ax.grid(lw=0.3)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return fig


@styled
def clusters(runs: dict[str, Run], classes: tuple[str, ...], n: int = 1500) -> Figure:
    """The first n test images in two dimensions, by PCA (left) and t-SNE (right), each coloured by its class.

    Of more than ten classes ten at equal distances have colours.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    fig, axes = plt.subplots(len(runs), 2, figsize=(6.4, 3 * len(runs) + 0.4), squeeze=False, layout="constrained")
    shown = np.linspace(0, len(classes) - 1, min(10, len(classes))).round().astype(int)
    for row, (name, run) in zip(axes, runs.items(), strict=True):
        a, y = run.readout.features[:n].numpy(), run.readout.labels[:n].numpy()
        pca = PCA(2).fit(a)
        share = pca.explained_variance_ratio_.sum()
        tsne = TSNE(2, init="pca", perplexity=min(30, len(a) // 4), random_state=0, n_jobs=1)
        for ax, points, title in (
            (row[0], pca.transform(a), f"{name}, PCA ({percent(float(share))} of the variance)"),
            (row[1], tsne.fit_transform(a), f"{name}, t-SNE"),
        ):
            if len(classes) > 10:
                at = points[~np.isin(y, shown)]
                ax.scatter(at[:, 0], at[:, 1], s=2, color=GREY, alpha=0.4, lw=0, label="other classes")
            for i, c in enumerate(shown):
                marker = "os^Dv"[i % 5]  # colour is not the only mark
                at = points[y == c]
                ax.scatter(at[:, 0], at[:, 1], s=4, marker=marker, color=plt.cm.tab10(i), lw=0, label=cut(classes[c]))
            ax.set_title(title, loc="left", fontsize=8)
            ax.set(xticks=[], yticks=[])
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=7, markerscale=2)
    return fig


@styled
def owned(runs: dict[str, list[Run]], classes: tuple[str, ...]) -> Figure:
    """How many filters serve each class: one bar per class, one marker per seed."""
    fig, axes = plt.subplots(1, len(runs), figsize=(6.4, 2.6), sharey=True, squeeze=False, layout="constrained")
    for ax, (name, group) in zip(axes[0], runs.items(), strict=True):
        counts = np.array([np.bincount(metrics.owners(r.readout), minlength=len(classes)) for r in group])
        ax.bar(range(len(classes)), counts.mean(0), color=BLUE, alpha=0.35)
        for row in counts:
            ax.plot(range(len(classes)), row, "o", ms=3, color=BLUE)
        name_classes(ax.xaxis, classes, 7, rotation=90)
        ax.set_title(name, loc="left")
    axes[0, 0].set_ylabel("filters")
    axes[0, 0].yaxis.set_major_locator(MaxNLocator(integer=True))
    return fig


@styled
def ablations(runs: dict[str, list[Run]], base: str) -> Figure:
    """Accuracy and MIS of each experiment, one dot per seed; the band spans the seeds of the base."""
    names = [name for name, group in runs.items() if group]
    fig, axes = plt.subplots(1, 2, figsize=(6.4, 0.26 * len(names) + 0.8), sharey=True, layout="constrained")
    for ax, metric, title in zip(axes, ("accuracy", "mis"), ("accuracy", "MIS, nats"), strict=True):
        if values := [run.metrics[metric] for run in runs[base]]:
            ax.axvspan(min(values), max(values), color=GREY, alpha=0.2, lw=0)
        for i, name in enumerate(names):
            values = [run.metrics[metric] for run in runs[name]]
            ax.plot(values, [i] * len(values), "o", ms=4, color=ORANGE if name == base else BLUE)
        ax.set(title=title)
        ax.grid(axis="y", lw=0.3)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    return fig


@styled
def exciting(run: Run, images: data.Images, classes: tuple[str, ...], shown: int = 7, rows: int = 10) -> Figure:
    """For each of the first classes, the test images for which its filters fire most; of another class, its name above."""
    shown, rows = min(shown, len(images)), min(rows, len(classes))
    best = metrics.class_scores(run.readout).topk(shown, 0).indices  # (shown, C)
    fig, axes = plt.subplots(rows, shown, figsize=(6.4, 0.95 * rows), squeeze=False, layout="constrained")
    for c in range(rows):
        for ax, i in zip(axes[c], best[:, c].tolist(), strict=True):
            ax.imshow(images.images[i].permute(1, 2, 0).numpy())
            ax.set(xticks=[], yticks=[])
            if (label := int(images.labels[i])) != c:
                ax.set_title(cut(classes[label], 12), fontsize=6, color=ORANGE, pad=2)
        axes[c, 0].set_ylabel(cut(classes[c]), fontsize=7, rotation=0, ha="right", va="center")
    return fig
