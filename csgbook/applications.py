"""Tables and pictures of applications: what betrays an attacked image, where a network looks, what excites its filters.

Numbers come from data/measured (measured.py), pictures from images that are there.
"""

from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from csgbook import measured
from csgbook.figures import BLUE, GREY, ORANGE, styled
from csgbook.markup import in_markdown
from csgbook.tables import commit, spread
from csgbook.verdicts import interval
from csglib import data, paths
from csglib.analysis import attacks, localize, metrics
from csglib.data import objects
from csglib.errors import Problem
from csglib.recipe import Recipe
from csglib.runs import Run

NAMES = {"fgsm": "FGSM", "bim": "BIM", "mim": "MIM", "pgd": "PGD", "match": "adaptive"}


def grid(cells: dict[str, dict[str, str]], corner: str) -> Markdown:
    """Row name -> column name -> text."""
    table = pd.DataFrame([{corner: row} | columns for row, columns in cells.items()])
    return Markdown(table.to_markdown(index=False, disable_numparse=True))


def found(kind: str, runs: dict[str, list[Run]]) -> dict[str, list[dict]]:
    """What was measured of the runs; those of which nothing was are left out."""
    return {name: [entry for run in group if (entry := measured.of(kind, run))] for name, group in runs.items()}


def unmeasured(kind: str) -> Markdown:
    return Markdown(f"Not measured for these runs yet: `python {measured.TOOLS[kind]}` does it.")


def stamped(table: Markdown, kind: str, runs: dict[str, list[Run]]) -> Markdown:
    """The table with a sentence on the code that measured it."""
    commits = dict.fromkeys(commit(entry) for entries in found(kind, runs).values() for entry in entries)
    told = f"\n\nMeasured by `{measured.TOOLS[kind]}` at commit {' / '.join(commits)}." if commits else ""
    return Markdown(table.data + told)


# Adversarial images


def detection(runs: dict[str, list[Run]], size: int = 1000) -> Markdown:
    """The detector's error under each attack; mean and deviation over seeds."""
    table = by_attack(runs, lambda entry, attack: float(np.mean(v)) if (v := errors_of(entry, attack, size)) else None)
    return stamped(table, "detection", runs)


def turned(runs: dict[str, list[Run]]) -> Markdown:
    """The share of images that each attack turns, of those that the network had classified rightly."""
    return by_attack(runs, lambda entry, attack: entry["attacks"][attack]["turned"])


def by_attack(runs: dict[str, list[Run]], value: Callable[[dict, str], float | None]) -> Markdown:
    entries = found("detection", runs)
    if not any(entries.values()):
        return unmeasured("detection")
    rows = {
        title: {name: spread([value(e, attack) for e in es], 3) for name, es in entries.items()}
        for attack, title in NAMES.items()
    }
    return grid(rows, "Attack")


def errors_of(entry: dict, attack: str, size: int) -> list[float]:
    """One error a split; none where too few images were turned for this size."""
    return entry["attacks"][attack]["errors"].get(str(size), [])


def detection_curves(runs: dict[str, list[Run]]) -> Figure | Markdown:
    """The detector's error over the size of its training set: a line over the runs, for each run its splits' interval."""
    entries = {name: es for name, es in found("detection", runs).items() if es}
    return draw_curves(entries) if entries else unmeasured("detection")


@styled
def draw_curves(entries: dict[str, list[dict]]) -> Figure:
    fig, axes = plt.subplots(2, 3, figsize=(6.4, 4.2), sharex=True, layout="constrained")
    sizes = sorted({int(s) for es in entries.values() for e in es for a in e["attacks"].values() for s in a["errors"]})
    for ax, (attack, title) in zip(axes.flat, NAMES.items(), strict=False):
        for i, ((name, es), colour, marker) in enumerate(zip(entries.items(), (BLUE, GREY, ORANGE), "os^", strict=False)):
            means = [np.mean([np.mean(v) for e in es if (v := errors_of(e, attack, s))] or [np.nan]) for s in sizes]
            ax.plot(sizes, means, color=colour, lw=1, label=name)
            for j, entry in enumerate(es):
                for s in sizes:
                    if v := errors_of(entry, attack, s):
                        low, high = interval(v)
                        x = s * (1 + 0.03 * (j - 1) + 0.1 * (i - 1))
                        ax.errorbar(
                            x, np.mean(v), [[np.mean(v) - low], [high - np.mean(v)]], fmt=marker, ms=3, color=colour, lw=0.8
                        )
        ax.set_title(title, loc="left")
        ax.set_xscale("log")
        ax.set_xticks(sizes, [str(s) for s in sizes])
        ax.minorticks_off()
        ax.set_ylim(bottom=0)
    axes[-1, -1].axis("off")
    axes[-1, -1].legend(*axes[0, 0].get_legend_handles_labels(), loc="center")
    fig.supxlabel("images that the detector learned from", fontsize=9)
    fig.supylabel("error of the detector", fontsize=9)
    return fig


@styled
def attacked(runs: dict[str, Run], classes: tuple[str, ...], shown: int = 6) -> Figure:
    """Images of the embedded sample, PGD's change of them for each network, and what the network takes them for."""
    sample = data.load("cifar10-mini").test
    first = torch.stack([(sample.labels == c).nonzero()[0, 0] for c in range(shown)])
    images, labels = data.to_float(sample.images[first]).contiguous(), sample.labels[first]
    fig, axes = plt.subplots(2 * len(runs) + 1, shown, figsize=(6.4, 1.2 * (2 * len(runs) + 1)), layout="constrained")

    def row(number: int, pictures: Float[Tensor, "N 3 H W"], titles: list[str], name: str) -> None:
        for ax, picture, title in zip(axes[number], pictures, titles, strict=True):
            ax.imshow(picture.permute(1, 2, 0).numpy())
            ax.set_title(title, fontsize=7)
            ax.set(xticks=[], yticks=[])
        axes[number, 0].set_ylabel(name, fontsize=8)

    row(0, images, [classes[c] for c in labels], "images")
    for i, (name, run) in enumerate(runs.items()):
        net = run.network().eval()
        x = attacks.attack(net, images, labels, "pgd", torch.Generator().manual_seed(0))
        with torch.no_grad():
            before, after = net(images).argmax(1), net(x).argmax(1)
        row(2 * i + 1, x, [f"{classes[b]} → {classes[a]}" for b, a in zip(before, after, strict=True)], f"{name}, attacked")
        row(2 * i + 2, 0.5 + 8 * (x - images), [""] * shown, "8 × change")
    return fig


# Localisation

SCORES = {  # the words for each score: crop, method, name
    "CAM: IoU of the hottest 30 %": ("tight", "cam", "iou"),
    "CAM: AP30": ("tight", "cam", "ap30"),
    "ActivMap: IoU": ("tight", "activation", "iou"),
    "ActivMap: AP30": ("tight", "activation", "ap30"),
    "ActivMap: share of filters with threshold 0": ("tight", "activation", "zero_thresholds"),
    "ActivMap of firing places: IoU": ("tight", "firing", "iou"),
    "ActivMap of firing places: AP30": ("tight", "firing", "ap30"),
    "GradMap: IoU": ("tight", "gradient", "iou"),
    "GradMap: AP20": ("tight", "gradient", "ap20"),
    "Wide crops, CAM: IoU of the hottest 30 %": ("wide", "cam", "iou"),
    "Wide crops, box accuracy": ("wide", "cam", "box_accuracy"),
    "Wide crops, MaxBoxAcc": ("wide", "cam", "max_box_accuracy"),
}
CHANCE = {  # what a guess without a network scores there
    ("cam", "iou"): "middle_iou",
    ("activation", "iou"): "whole_iou",
    ("firing", "iou"): "whole_iou",
    ("gradient", "iou"): "whole_iou",
    ("cam", "box_accuracy"): "box_accuracy",
    ("cam", "max_box_accuracy"): "box_accuracy",
}


def localisation(runs: dict[str, list[Run]]) -> Markdown:
    """One row a score, one column an experiment, and what a guess without a network scores."""
    entries = found("localisation", runs)
    if not any(entries.values()):
        return unmeasured("localisation")
    some = next(e for es in entries.values() for e in es)["crops"]
    rows = {}
    for title, (crop, method, score) in SCORES.items():
        guess = CHANCE.get((method, score))
        row = {name: spread([e["crops"][crop][method][score] for e in es], 3) for name, es in entries.items()}
        rows[title] = row | {"no network": f"{some[crop]['chance'][guess]:.3f}" if guess else "–"}
    return stamped(grid(rows, "Score"), "localisation", runs)


def filters_of_classes(runs: dict[str, list[Run]], classes: tuple[str, ...] = objects.ANIMALS) -> Markdown:
    """How many filters find the objects of each class best, by ActivMap of firing places; mean and deviation over seeds."""
    entries = found("localisation", runs)
    if not any(entries.values()):
        return unmeasured("localisation")
    rows = {
        name: {
            in_markdown(c): spread([float(e["crops"]["tight"]["firing"]["filters"][i]) for e in es], 0)
            for i, c in enumerate(classes)
        }
        for name, es in entries.items()
    }
    return grid(rows, "Network")


def animals(runs: dict[str, list[Run]]) -> Markdown:
    """Accuracy, information, density and time of the networks fine-tuned on animals."""
    stored = {"Accuracy": "accuracy", "MIS, nats": "mis", "Null": "mis_null", "L1-density": "l1_density", "ACC3": "acc3"}
    rows = {}
    for name, group in runs.items():
        row = {title: spread([run.metrics[m] for run in group], 3) for title, m in stored.items()}
        minutes = [run.provenance["train_seconds"] / 60 for run in group]
        rows[name] = row | {"Minutes a run": spread(minutes, 1), "Runs": str(len(group))}
    return grid(rows, "Network")


def trials() -> Markdown:
    """What each value tried gave on the training photographs set apart."""
    if not (kept := measured.read("animals-trials")):
        return Markdown("No trials have been kept: `python tools/trials.py` does it.")
    rows = []
    for trial in kept["trials"]:
        recipe = Recipe.from_dict(trial["recipe"], "data/measured/animals-trials.json")
        gated = trial["l1_density"] is not None
        layers = ", ".join(word.removeprefix("network._") for word in recipe.thaw.split(","))
        row = {"Method": recipe.method, "Layers that learn": layers, "`lr`": f"{recipe.lr:g}"}
        row |= {
            "`gate_lr`": f"{recipe.gate_lr:g}" if gated else "–",
            "`gate_penalty`": f"{recipe.gate_penalty:g}" if gated else "–",
        }
        row |= {"Accuracy": f"{trial['accuracy']:.3f}", "MIS, nats": f"{trial['mis']:.4f}"}
        rows.append(row | {"L1-density": f"{trial['l1_density']:.3f}" if gated else "–"})
    return Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True))


def looks(runs: dict[str, list[Run]]) -> Figure | Markdown:
    """`heat_maps` of the first run of each experiment where runs and photographs are there, else a sentence."""
    first = {name: group[0] for name, group in runs.items() if group}
    try:
        if len(first) < len(runs):
            raise Problem("a run of each network is needed")
        folders = ["voc_animals", "voc2012", "voc2010", *(run.recipe.dataset.removeprefix("voc:") for run in first.values())]
        there = [paths.folder() / name for name in folders if (paths.folder() / name).exists()]
        if not there:
            raise Problem(f"none of {', '.join(dict.fromkeys(folders))} is under `CSGLIB_DATA`")
        return heat_maps(first, objects.read_voc(there[0], "val", size=256, context=2.0))
    except Problem as problem:
        return Markdown(
            f"Here would be pictures, but {problem}. `csglib data get voc2012` fetches photographs with boxes, the extra "
            "`csglib[lite]` brings the network; then build the book again."
        )


@styled
def heat_maps(runs: dict[str, Run], val: objects.Objects) -> Figure:
    """One object a class in its photograph: its box, and the class activation map of each network with its hottest 30 %."""
    val = val.take([(val.labels == c).nonzero()[0, 0].item() for c in range(len(objects.ANIMALS))])
    images, size = data.to_float(val.images).contiguous(), tuple(val.images.shape[2:])
    fig, axes = plt.subplots(len(runs) + 1, len(val), figsize=(6.4, 1.12 * (len(runs) + 1) + 0.2), layout="constrained")
    for ax, picture, label in zip(axes[0], val.images, val.labels, strict=True):
        ax.imshow(picture.permute(1, 2, 0).numpy())
        ax.set_title(objects.ANIMALS[label], fontsize=8)
    for row, (name, run) in zip(axes[1:], runs.items(), strict=True):
        net = run.network().eval()
        with torch.no_grad():
            heat = localize.enlarge(localize.cam(net.maps(images), net.head.weight, val.labels), size)
        for ax, picture, h, chosen in zip(row, val.images, heat, localize.hottest(heat, 0.3), strict=True):
            ax.imshow(picture.permute(1, 2, 0).float().mean(2).numpy(), cmap="gray")
            ax.imshow(h.numpy(), cmap="inferno", alpha=0.55)
            ax.contour(chosen.numpy(), [0.5], colors=["white"], linewidths=0.8)
        row[0].set_ylabel(name, fontsize=8)
    for row in axes:
        for ax, box in zip(row, val.boxes, strict=True):
            ax.add_patch(rectangle(box))
            ax.set(xticks=[], yticks=[])
    return fig


def rectangle(box: Float[Tensor, " 4"]) -> plt.Rectangle:
    left, top, right, bottom = box.tolist()
    return plt.Rectangle((left, top), right - left, bottom - top, fill=False, color="#56b4e9", lw=1.2)


# What excites the filters of a class


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
                ax.set_title(classes[label], fontsize=6, color=ORANGE, pad=2)
        axes[c, 0].set_ylabel(classes[c], fontsize=7, rotation=0, ha="right", va="center")
    return fig
