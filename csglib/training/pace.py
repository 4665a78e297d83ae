"""How long a recipe will take on this machine, from a few measured steps."""

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from csglib import memory
from csglib.data import AUTO, Reading, in_files
from csglib.data import of as load
from csglib.data.images import Dataset, Images
from csglib.methods import method
from csglib.precision import native
from csglib.recipe import Recipe
from csglib.runs.inference import read_out
from csglib.training.loop import loop_of
from csglib.training.prepare import build, optimisers_of

KNOWN = {  # so that none is read for its size
    "cifar10": (50_000, 10_000, 32, 10),
    "cifar10-mini": (2_000, 1_000, 32, 10),
    "cifar100": (50_000, 10_000, 32, 100),
    "stl10": (5_000, 8_000, 96, 10),
}
STEPS = {"cpu": 2, "cuda": 20}  # measured after as many that warm up


@dataclass(frozen=True)
class Size:
    """Of a data set: images, their width in pixels, classes."""

    train: int
    test: int
    pixels: int
    classes: int


@dataclass(frozen=True)
class Pace:
    """Seconds per image: in a step of training, and read out after an epoch."""

    train: float
    test: float


def tell(recipe: Recipe, dataset: Dataset, device: torch.device) -> None:
    """Print what is predicted, unless measuring would take long beside the training itself, a minute on the sample."""
    if recipe.epochs * len(dataset.train) > 100_000:
        print(predict(recipe, size_of(dataset), device), file=sys.stderr)


def size_of(dataset: Dataset) -> Size:
    return Size(len(dataset.train), len(dataset.test), dataset.train.size, len(dataset.classes))


def size(recipe: Recipe) -> Size:
    called, _, side = recipe.dataset.partition("@")
    if called in KNOWN:
        train, test, pixels, classes = KNOWN[called]
        n = recipe.holdout
        return Size(train - n, n or test, int(side) if side.isdecimal() else pixels, classes)
    whole = in_files(recipe.dataset) not in (None, "folder")  # where listing the files is enough
    return size_of(load(recipe, Reading("streamed") if whole else AUTO))


def measure(recipe: Recipe, of: Size, device: torch.device) -> Pace:
    """Some steps of the recipe's plain loop on random pixels, and one batch read out.  Its precision must be named."""
    memory.keep()
    recipe = replace(recipe, loop="plain", weights="fresh")  # compiling would take longer than it tells
    m, net, gate = build(recipe, of.classes)
    net.to(device, memory_format=torch.channels_last)
    if gate is not None:
        gate.to(device)
    n = recipe.batch_size * STEPS[device.type]
    pixels = torch.randint(0, 256, (n, 3, of.pixels, of.pixels), dtype=torch.uint8)
    images = Images(pixels.to(device), torch.randint(0, of.classes, (n,)).to(device))
    loop = loop_of(recipe, m, net, gate, optimisers_of(recipe, m, net, gate), images)
    epoch = next(e for e in range(recipe.epochs) if m.path(recipe, e) != "skipped")
    for _ in range(2):  # the first warms up
        began = time.perf_counter()
        loop.start(epoch, tqdm(disable=True))
        loop.row(epoch)
        trained = time.perf_counter() - began
    few = Images(images.images[:200], images.labels[:200])
    began = time.perf_counter()
    read_out(net, gate, few, recipe.precision).logits.sum().item()
    return Pace(trained / n, (time.perf_counter() - began) / len(few))


def seconds(recipe: Recipe, of: Size, pace: Pace) -> float:
    """Of all its epochs, each with its evaluation; a loop captured on a GPU takes less."""
    m = method(recipe)
    epochs = sum(m.path(recipe, e) != "skipped" for e in range(recipe.epochs))
    images = of.train // recipe.batch_size * recipe.batch_size
    return epochs * (images * pace.train + of.test * pace.test)


def predict(recipe: Recipe, of: Size, device: torch.device) -> str:
    """One sentence: the time that training will take here, and what another precision would take where it is faster."""
    pace = measure(recipe, of, device)
    rate = f"{1 / pace.train:,.0f} images/s in {recipe.precision}"
    told = f"{recipe.method}, {recipe.epochs} epochs: about {words(seconds(recipe, of, pace))} here, {rate}"
    better = replace(recipe, precision=native(device)[0])
    if better.precision == recipe.precision:
        return told
    other = measure(better, of, device)
    if other.train < pace.train:
        told += f"; with --precision {better.precision} about {words(seconds(better, of, other))}"
    return told


def total(recipes: Iterable[Recipe], device: torch.device) -> float:
    """Seconds of several trainings one after the other; what differs in seed or schedule alone is measured once."""
    paces: dict[tuple, Pace] = {}
    spent = 0.0
    for recipe in recipes:
        of = size(recipe)
        alike = (of, recipe.net, recipe.method, recipe.batch_size, recipe.precision, recipe.thaw)
        if alike not in paces:
            paces[alike] = measure(recipe, of, device)
        spent += seconds(recipe, of, paces[alike])
    return spent


def words(s: float) -> str:
    """A time as one says it: 40 s, 25 min, 1 h 55 min, 3 days."""
    if s < 90:
        return f"{max(1, round(s))} s"
    minutes = round(s / 60)
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{round(s / 86400)} days"
