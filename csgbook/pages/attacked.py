"""Adversarial images: how surely they are detected, and what they look like.  Numbers: data/measured/detection.json."""

from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from csgbook import measured
from csgbook.evidence.rules import interval
from csgbook.pages.figures import COLOURS, GREY, styled
from csgbook.pages.origin import stamped, unmeasured
from csgbook.pages.tables import grid, spread
from csglib import data
from csglib.analysis import attacks
from csglib.runs import Run

NAMES = {"fgsm": "FGSM", "bim": "BIM", "mim": "MIM", "pgd": "PGD", "match": "adaptive"}


def is_measured(run: Run) -> bool:
    return measured.of("detection", run) is not None


def detection(runs: dict[str, list[Run]], size: int = 1000) -> Markdown:
    """The detector's error under each attack; mean and deviation over seeds."""
    table = by_attack(runs, lambda entry, attack: float(np.mean(v)) if (v := errors_of(entry, attack, size)) else None)
    return stamped(table, "detection", runs)


def success(runs: dict[str, list[Run]]) -> Markdown:
    """Attack success rate: the share of images that each attack changes the class of, of those classified rightly before."""
    return by_attack(runs, lambda entry, attack: entry["attacks"][attack]["turned"])


def by_attack(runs: dict[str, list[Run]], value: Callable[[dict, str], float | None]) -> Markdown:
    entries = measured.found("detection", runs)
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
    entries = {name: es for name, es in measured.found("detection", runs).items() if es}
    return draw_curves(entries) if entries else unmeasured("detection")


@styled
def draw_curves(entries: dict[str, list[dict]]) -> Figure:
    fig, axes = plt.subplots(2, 3, figsize=(6.4, 4.2), sharex=True, layout="constrained")
    sizes = sorted({int(s) for es in entries.values() for e in es for a in e["attacks"].values() for s in a["errors"]})
    for ax, (attack, title) in zip(axes.flat, NAMES.items(), strict=False):
        for i, ((name, es), marker) in enumerate(zip(entries.items(), "os^", strict=False)):
            colour = COLOURS.get(name, GREY)
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
def pictures(runs: dict[str, Run], classes: tuple[str, ...], shown: int = 6) -> Figure:
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
