"""A grid of networks and data sets: in which of its cells a claim holds, and what a learning rate was chosen by.

These rules were committed before the runs.  A cell is a network on a data set.  PICNN's claim, greater interpretability at
equal or higher accuracy, holds in a cell where MIS as a share of its bound is greater than with standard training, and the
accuracy at most half a point lower: the means over the seeds that both have.  A training that diverged has neither.  In a
network it holds where it does so by the means over its data sets.  The sign test counts networks, not cells, since those of one
network resemble each other.  Where a method changes nothing, MIS is greater in every other network, and both halves hold in no
more: the test against one half then finds the claim too seldom, never too often.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from csgbook import experiments, measured
from csgbook.evidence import rules
from csglib.recipe import FORMS, Recipe
from csglib.runs import Run

TOLERANCE = 0.005  # of the accuracy, as in the claim picnn-accuracy
METRICS = ("accuracy", "mis_normalised")  # the claim's two halves
RELEASED = {  # of what need not be here, by its release; of Tiny ImageNet 500 and 50 pictures per class
    "tiny-imagenet@32@20classes": {"train": 10_000, "test": 1000, "pixels": 32, "classes": 20},
    "stl10@224": {"train": 5000, "test": 8000, "pixels": 224, "classes": 10},
}
CALLED = {  # what people call them; another name stays as it is
    "resnet20": "ResNet-20", "resnet18": "ResNet-18", "vgg11": "VGG-11", "densenet": "DenseNet", "mobilenet": "MobileNetV2",
    "shufflenet": "ShuffleNetV2", "efficientnet": "EfficientNet-B0", "regnet": "RegNet", "convnext": "ConvNeXt", "vit": "ViT",
    "cifar10": "CIFAR-10", "tiny-imagenet": "Tiny ImageNet", "stage1": "stage 1", "stage2": "stage 2", "stage3": "stage 3",
    "stage4": "stage 4", "resnet50": "ResNet-50", "stl10": "STL-10", "imagenet100": "ImageNet-100",
}  # fmt: skip
FEW = 5  # filters per class: PICNN's interpretation path needs so many (csglib/methods/picnn.py)


def called(name: str) -> str:
    """A network, data set or stage of experiments.yml, as people call it."""
    return CALLED.get(name, name)


@dataclass(frozen=True)
class Difference:
    """Of a metric from standard training's, over the seeds of both; an interval from three on."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Cell:
    """A network on a data set."""

    data: str
    network: str
    recipe: Recipe  # of standard training, the first seed's
    runs: dict[str, list[Run]]  # method -> those that exist
    diverged: dict[str, str]  # method -> what a training was stopped by

    @property
    def classes(self) -> int | None:
        """Of the data set: as it was measured, or as a run with a readout tells; None where nothing does."""
        known = size(self.recipe.dataset)
        whole = (run for group in self.runs.values() for run in group if not run.left_out)
        return known["classes"] if known else next((len(run.readout.bias) for run in whole), None)

    def difference(self, method: str, metric: str) -> Difference | None:
        """None where no seed has a run of both."""
        ours, std = ({run.recipe.seed: run.metrics.get(metric) for run in self.runs.get(m, [])} for m in (method, "std"))
        seeds = [seed for seed in sorted(ours.keys() & std.keys()) if ours[seed] is not None and std[seed] is not None]
        if not seeds:
            return None
        a, b = (np.array([side[seed] for seed in seeds]) for side in (ours, std))
        if len(seeds) < rules.SEEDS:
            return Difference(float((a - b).mean()), None, None, len(seeds))
        e = rules.of_difference(a, b, paired=True)
        return Difference(float(e.mean), *map(float, e.interval()), len(seeds))

    def holds(self, method: str) -> bool | None:
        """Whether the claim does; None where nothing tells."""
        if method in self.diverged and self.runs.get("std"):
            return False
        found = [self.difference(method, metric) for metric in METRICS]
        return None if None in found else both(*(d.mean for d in found))

    def sure(self, method: str) -> bool:
        """Whether the intervals of both halves lie on one side each, so that more seeds would hardly turn the answer over."""
        accuracy, mis = (self.difference(method, metric) for metric in METRICS)
        if not accuracy or not mis or accuracy.low is None or mis.low is None:
            return False
        fails = accuracy.high < -TOLERANCE or mis.high <= 0
        return fails or (accuracy.low >= -TOLERANCE and mis.low > 0)


def size(dataset: str) -> dict[str, int] | None:
    """Images to train on and to test on, pixels of a side, classes: as measured or released; None where neither tells."""
    return measured.read("grid-pace").get("sizes", {}).get(dataset) or RELEASED.get(dataset)


def both(accuracy: float, mis: float) -> bool:
    return bool(accuracy >= -TOLERANCE and mis > 0)


def cells(grid: str, profile: str, runs: dict[str, list[Run]], folder: Path | str | None = None) -> list[Cell]:
    """The grid's cells in the profile, with the runs that exist of each; empty where there are none yet."""
    found: dict[tuple[str, str], Cell] = {}
    for name, recipes in experiments.cells(experiments.profile(profile), grid).items():
        data, network, method = name.split("/")
        cell = found.setdefault((data, network), Cell(data, network, recipes[0], {}, {}))
        cell.runs[method] = runs.get(name, [])
        stopped = [told for r in recipes for form in forms(r) if (told := experiments.diverged(form, folder))]
        if stopped:
            cell.diverged[method] = stopped[0]
    return list(found.values())


def forms(recipe: Recipe) -> Iterable[Recipe]:
    """In which its run may lie there: one precision and loop, or any where it is left open."""
    return [recipe.in_form(form) for form in FORMS] if recipe.precision == "auto" else [recipe]


@dataclass(frozen=True)
class Signs:
    """In how many of the networks that tell it holds, an exact 95 % interval of that share, and the sign test's p."""

    holds: list[str]
    fails: list[str]
    low: float
    high: float
    p: float


def signs(found: Iterable[Cell], method: str) -> Signs | None:
    """The sign test over networks, each by its means over data sets; None where no network tells."""
    by_network: dict[str, list[Cell]] = {}
    for cell in found:
        if cell.holds(method) is not None:
            by_network.setdefault(cell.network, []).append(cell)
    holding, failing = [], []
    for network, group in by_network.items():
        told = [[c.difference(method, metric) for metric in METRICS] for c in group]
        lost = any(method in c.diverged for c in group)
        means = np.mean([[d.mean for d in pair] for pair in told if None not in pair] or [[-1.0, -1.0]], 0)
        (failing if lost or not both(*means) else holding).append(network)
    if not by_network:
        return None
    test = stats.binomtest(len(holding), len(by_network), 0.5)
    interval = test.proportion_ci(0.95, "exact")
    return Signs(holding, failing, float(interval.low), float(interval.high), float(test.pvalue))


def rates(profile: str, runs: dict[str, list[Run]]) -> dict[str, dict[float, Run]]:
    """Network -> learning rate -> the trial on held-out images, of the grid `rates`."""
    found: dict[str, dict[float, Run]] = {}
    for name in experiments.cells(experiments.profile(profile), "rates"):
        for run in runs.get(name, []):
            found.setdefault(name.split("/")[1], {})[run.recipe.lr] = run
    return found


def taken(trials: dict[float, Run]) -> float:
    """The rate with which standard training classifies most of the held-out images, the smallest of equals."""
    return max(sorted(trials), key=lambda lr: trials[lr].metrics["accuracy"])
