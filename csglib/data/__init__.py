"""The data sets as uint8 pictures, which live on the device or are read from their files; augmented on the device, verified.

`cifar10`, `cifar100` and `stl10` are the official binary releases (released.py), in another size where one is named, as in
`stl10@224`; `cifar10-mini` is the sample of 2,000 + 1,000 images of the first in this repository.  `voc:PATH` are the objects
of a folder in PASCAL VOC's layout, one per image (objects.py); `folder:PATH` is any tree of pictures, one subfolder per class
(folders.py); `imagenet:PATH` and `tiny-imagenet` are those two as released (imagenet.py).  pictures.py says what may follow a
PATH; streamed.py reads what memory cannot hold.
"""

import dataclasses
import os
from functools import partial

from csglib.data import folders, imagenet, objects, released
from csglib.data.cifar10 import CLASSES, load_cifar10_mini
from csglib.data.images import Dataset, Images, augment, batches, draw, to_float
from csglib.data.pictures import asked
from csglib.data.released import get, sized, verify
from csglib.data.streamed import AUTO, Crop, Reading
from csglib.errors import Problem, Unknown
from csglib.recipe import Recipe

__all__ = ["CLASSES", "Dataset", "Images", "augment", "batches", "draw", "to_float"]
__all__ += ["at_hand", "get", "load", "of", "present", "refuse", "sized", "verify"]

DATASETS = {
    "cifar10": partial(released.load, "cifar10"),
    "cifar10-mini": load_cifar10_mini,
    "cifar100": partial(released.load, "cifar100"),
    "stl10": partial(released.load, "stl10"),
}
OWN = {"voc": objects.load, "folder": folders.load, "imagenet": imagenet.load}  # before the colon of KIND:PATH
# What may be too large for memory
IN_FILES = {"folder": folders.load, "imagenet": imagenet.load, "tiny-imagenet": imagenet.load_tiny}
EMBEDDED = {"cifar10": "cifar10-mini"}  # what the repository holds of a data set that has to be fetched


def load(name: str, crop: Crop = "border", reading: Reading = AUTO) -> Dataset:
    """A data set by name, its files verified.

    Args:
        name: cifar10, cifar10-mini, cifar100, stl10 (or stl10@224), tiny-imagenet, or folder:PATH, voc:PATH, imagenet:PATH with
            their options.
        crop: How training pictures will be cropped, which decides what is read of them.
        reading: Whether pictures in files are held in memory.

    Raises:
        Problem: Where it is unknown, absent or altered.
    """
    if kind := in_files(name):
        return IN_FILES[kind](name, crop, reading)
    if not own(name) and name not in DATASETS and not sized(name):
        refuse(name)
    if crop != "border" or reading.where == "streamed":
        what = "--crop resized" if crop != "border" else "--read streamed"
        raise Problem(f"{what} is for pictures in files, {', '.join(IN_FILES)}, and {name} has none: leave it out")
    if own(name):
        return OWN[name.partition(":")[0]](name)
    return DATASETS[name]() if name in DATASETS else released.load(name)


def in_files(name: str) -> str | None:
    """Which of IN_FILES the name asks for, if any."""
    kind = name.partition(":")[0]
    if kind in IN_FILES and kind in OWN:
        return kind if own(name) else None
    return kind if (kind := name.partition("@")[0]) in IN_FILES else None


def own(name: str) -> bool:
    """Whether the name is of pictures of one's own."""
    kind, colon, _ = name.partition(":")
    return bool(colon) and kind in OWN


def refuse(name: str, *more: str) -> None:
    """Raise the Problem of an unknown data set, with the choice and what more there is."""
    there = f"; the folder of this name is folder:{name}" if os.path.isdir(os.path.expanduser(name)) else ""
    known = ", ".join(dict.fromkeys([*DATASETS, "tiny-imagenet", *more]))
    raise Unknown(
        f"unknown dataset {name!r}: choose one of {known}, or folder:PATH, pictures of your own with "
        f"one subfolder per class, voc:PATH, photographs with boxes, or imagenet:PATH{there}"
    )


def present(name: str) -> bool:
    """Whether pictures of one's own are there; other data sets can be fetched or say themselves what they lack."""
    if not own(name):
        return True
    try:
        return bool(asked(name))
    except Problem:
        return False


def of(recipe: Recipe, reading: Reading = AUTO) -> Dataset:
    """The recipe's data; with a holdout, the last training images in place of the test images, which stay unseen."""
    dataset, n = load(recipe.dataset, recipe.crop, reading), recipe.holdout
    if not n:
        return dataset
    a = dataset.train
    while n < len(a) and a.groups is not None and a.groups[-n] == a.groups[-n - 1]:
        n += 1  # take the photograph, or the copies of a picture, whole
    if n >= len(a):
        raise Problem(f"holdout {recipe.holdout} leaves none of the {len(a)} training images: choose a smaller one")
    return dataclasses.replace(dataset, train=a.take(slice(-n)), test=a.take(slice(-n, None)))


def at_hand(recipe: Recipe) -> Dataset:
    """The recipe's data, or what the repository holds of them, so that no download is needed."""
    return load(EMBEDDED[recipe.dataset]) if recipe.dataset in EMBEDDED else of(recipe)
