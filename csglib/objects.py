"""Photographs with boxes in the layout of PASCAL VOC, cut to one object an image, the box in the pixels of the cut.

A folder holds JPEGImages/NAME.jpg, Annotations/NAME.xml and ImageSets/Main/SPLIT.txt with one NAME a line.  Since a split lists
photographs, no two objects of one photograph are on different sides.
"""

import re
import warnings
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from csglib import Problem
from csglib.files import MIB, check_size, read_text

ANIMALS = ("bird", "cat", "cow", "dog", "horse", "sheep")
PIXELS = 50_000_000  # of a photograph: 150 MB in memory


@dataclass(frozen=True)
class Objects:
    images: UInt8[Tensor, "N 3 S S"]
    labels: Int[Tensor, " N"]
    boxes: Float[Tensor, "N 4"]  # left, top, right, bottom in pixels of the cut; right and bottom outside the object
    photographs: tuple[str, ...]  # the name of each object's photograph

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def groups(self) -> Int[Tensor, " N"]:
        """Which photograph each object is of, numbered in their order."""
        place = {name: i for i, name in enumerate(dict.fromkeys(self.photographs))}
        return torch.tensor([place[name] for name in self.photographs])

    def take(self, order: list[int]) -> "Objects":
        names = tuple(self.photographs[i] for i in order)
        return Objects(self.images[order], self.labels[order], self.boxes[order], names)


@dataclass(frozen=True)
class Box:
    name: str  # class
    left: int  # 0-based
    top: int
    right: int  # the first column outside
    bottom: int


def read_voc(
    root: Path | str,
    split: str,
    classes: tuple[str, ...] = ANIMALS,
    size: int = 128,
    context: float = 1.0,
    skip: bool = False,
) -> Objects:
    """All objects of these classes in a split, each cut to a square of `context` times its box's longer side.

    What lies outside the photograph is black, as in the paper's crops (context 1).  What is wrong with a photograph raises
    Problem; with `skip` it is left out with a warning.
    """
    folder = voc_folder(Path(root))
    images, labels, boxes, photographs = [], [], [], []
    for name in names(folder, split):
        try:
            found = read_xml(folder / "Annotations" / f"{name}.xml", classes)
            picture = read_jpeg(folder / "JPEGImages" / f"{name}.jpg") if found else None
            for box in found:
                check_box(box, picture, name)
        except Problem as problem:
            if not skip:
                raise
            warnings.warn(f"left out: {problem}", stacklevel=2)
            continue
        for box in found:
            cut, inside = cut_out(picture, box, size, context)
            images.append(torch.from_numpy(np.asarray(cut).copy()).permute(2, 0, 1))
            labels.append(classes.index(box.name))
            boxes.append(inside)
            photographs.append(name)
    if absent := [c for i, c in enumerate(classes) if i not in labels]:
        raise Problem(f"{folder} has no object of class {absent[0]} in split {split}: leave the class out, or add photographs")
    return Objects(torch.stack(images), torch.tensor(labels), torch.tensor(boxes), tuple(photographs))


def load(root: Path | str) -> tuple[Objects, Objects]:
    """The animals of the lists train and val.  The photographs of train are shuffled, so that its end can be held out."""
    train, val = read_voc(root, "train"), read_voc(root, "val")
    rank = torch.randperm(int(train.groups.max()) + 1, generator=torch.Generator().manual_seed(0))
    return train.take(rank[train.groups].argsort(stable=True).tolist()), val


def voc_folder(root: Path) -> Path:
    """The folder itself, or the only one of VOC's layout in its VOCdevkit."""
    found = [p for p in (root, *sorted(root.glob("VOCdevkit/*"))) if (p / "Annotations").is_dir()]
    if len(found) != 1:
        there = ", ".join(p.name for p in found) or "none"
        raise Problem(f"{root} should hold one folder with JPEGImages, Annotations and ImageSets, and has {there}: name it")
    return found[0]


def names(folder: Path, split: str) -> list[str]:
    path = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt") if "_" not in p.stem)) or "no list"
        raise Problem(f"{folder} has no split {split!r}: ImageSets/Main has {known}")
    found = [line.split()[0] for line in read_text(path, "correct the list").splitlines() if line.strip()]
    if bad := [name for name in found if not re.fullmatch(r"[\w.+-]+", name)]:
        raise Problem(f"{path} names {bad[0][:80]!r}, which is no file of JPEGImages: correct the list")
    if len(found) > len(set(found)):
        raise Problem(f"{path} names a photograph twice: correct the list")
    return found


def read_xml(path: Path, classes: tuple[str, ...]) -> list[Box]:
    remedy = f"correct it, or take {path.stem} out of its list"
    check_size(path, MIB, remedy)
    try:
        return [
            Box(o.findtext("name"), *(round(float(o.findtext(f"bndbox/{side}"))) - first for side, first in SIDES))
            for o in ET.parse(path, ET.XMLParser(target=Tree())).getroot().iter("object")
            if o.findtext("name") in classes
        ]
    except (ET.ParseError, TypeError, ArithmeticError, ValueError, LookupError) as error:
        raise Problem(f"{path} cannot be read ({error}): {remedy}") from None


class Tree(ET.TreeBuilder):
    """Refuses what an annotation has no use for: entities, which may name each other until memory is full, or other files."""

    def doctype(self, *_) -> None:
        raise ValueError("it declares a document type")


SIDES = (("xmin", 1), ("ymin", 1), ("xmax", 0), ("ymax", 0))  # VOC counts from 1, and its right and bottom are inside


def read_jpeg(path: Path) -> Image.Image:
    remedy = f"restore it, or take {path.stem} out of its list"
    try:
        with warnings.catch_warnings(), Image.open(path, formats=["JPEG"]) as picture:
            warnings.simplefilter("ignore")  # of pixels and metadata; the next line bounds the one, nobody reads the other
            if picture.width * picture.height > PIXELS:
                raise Problem(f"{path} has {picture.width} x {picture.height} pixels, more than {PIXELS}: {remedy}")
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Problem(f"{path} does not decode ({error}): {remedy}") from None


def check_box(box: Box, picture: Image.Image, name: str) -> None:
    if not (0 <= box.left < box.right <= picture.width and 0 <= box.top < box.bottom <= picture.height):
        raise Problem(
            f"the {box.name} of photograph {name} has a box outside of its {picture.width} x {picture.height} pixels "
            f"({box.left}, {box.top}, {box.right}, {box.bottom}): correct the annotation"
        )


def cut_out(picture: Image.Image, box: Box, size: int, context: float) -> tuple[Image.Image, list[float]]:
    """The square around a box, resized, and the box in its pixels."""
    side = max(1, round(context * max(box.right - box.left, box.bottom - box.top)))
    left = round((box.left + box.right - side) / 2)
    top = round((box.top + box.bottom - side) / 2)
    cut = picture.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BILINEAR)
    scale = size / side
    sides = ((box.left - left), (box.top - top), (box.right - left), (box.bottom - top))
    return cut, [min(max(scale * s, 0.0), float(size)) for s in sides]
