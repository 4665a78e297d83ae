"""Photographs with boxes in the layout of PASCAL VOC, cut to one object per image, the box in the pixels of the cut.

Which photographs there are, and what is in them, voc.py reads.  Since a list is of photographs, no two objects of one are on
different sides.  Masks are read where there are any: those of objects and parts from PASCAL-Part's Annotations_Part/NAME.mat,
else those of objects from VOC's SegmentationObject/NAME.png.
"""

import hashlib
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor

from csglib.data.images import Dataset, Images
from csglib.data.pictures import SIZE, Report, asked, checked, opened, plain, read
from csglib.data.voc import Box, all_classes, boxes_of, names, picture_of, read_xml, remedy, splits, voc_folder
from csglib.errors import Damaged, Missing, Problem
from csglib.files import MIB, apart, check_size
from csglib.paths import digest

ANIMALS = ("bird", "cat", "cow", "dog", "horse", "sheep")
NO_OBJECT = "photographs without an object of these classes"
FRAMES = "pictures of several frames, of which the first is read"
REMEDY = "add photographs, or name the classes that are there, as in voc:pets@cat,dog, or all of them, voc:pets@all"


@dataclass(frozen=True)
class Objects:
    """N objects, each cut from its photograph into a square of S pixels."""

    images: UInt8[Tensor, "N 3 S S"]
    labels: Int[Tensor, " N"]
    boxes: Float[Tensor, "N 4"]  # left, top, right, bottom in pixels of the cut; right and bottom outside the object
    photographs: tuple[str, ...]  # the name of each object's photograph
    masks: Bool[Tensor, "N S S"]  # empty of objects without one
    parts: tuple[dict[str, Bool[Tensor, "S S"]], ...]  # the masks of each object's parts by their names
    sums: tuple[str, ...] = ()  # the sha256 of each object's photograph

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def groups(self) -> Int[Tensor, " N"]:
        """Which photograph each object is of, numbered in their order; copies of one have one number."""
        return numbers(self.sums)

    def take(self, order: list[int]) -> "Objects":
        names = tuple(self.photographs[i] for i in order)
        parts, sums = tuple(self.parts[i] for i in order), tuple(self.sums[i] for i in order if self.sums)
        return Objects(self.images[order], self.labels[order], self.boxes[order], names, self.masks[order], parts, sums)


def numbers(keys: tuple[str, ...]) -> Int[Tensor, " N"]:
    place = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return torch.tensor([place[key] for key in keys])


@dataclass(frozen=True)
class Shape:
    mask: np.ndarray  # of the photograph's pixels, bool
    parts: dict[str, np.ndarray]


def load(name: str) -> Dataset:
    """The data set of a name `voc:PATH`: objects of its list `train` to learn from, of `val` (else `test`) to be tested on."""
    wanted = asked(name)
    report, classes = Report(wanted.skip), tuple(map(plain, wanted.classes)) or ANIMALS
    if classes == ("all",):
        classes = all_classes(voc_folder(wanted.root), wanted.skip)
    train, test = both(wanted.root, wanted.size, classes=classes, report=report)
    seen = hashlib.sha256()
    for part in (train, test):
        seen.update(part.images.numpy().tobytes())
        seen.update(part.labels.numpy().tobytes())
    if wanted.classes:
        seen.update(repr(classes).encode())
    groups = numbers(train.sums + test.sums).split([len(train), len(test)])
    parts = [Images(p.images, p.labels, g) for p, g in zip((train, test), groups, strict=True)]
    return checked(name, classes, *parts, seen.hexdigest(), report, REMEDY)


def both(
    root: Path | str,
    size: int = SIZE,
    context: float = 1.0,
    classes: tuple[str, ...] = ANIMALS,
    report: Report | None = None,
) -> tuple[Objects, Objects]:
    """The objects of both lists.  The photographs of train are shuffled, so that its end can be held out."""
    train, val = (read_voc(root, split, classes, size, context, report=report) for split in splits(voc_folder(Path(root))))
    rank = torch.randperm(int(train.groups.max()) + 1, generator=torch.Generator().manual_seed(0))
    return train.take(rank[train.groups].argsort(stable=True).tolist()), val


def read_voc(
    root: Path | str,
    split: str,
    classes: tuple[str, ...] = ANIMALS,
    size: int = SIZE,
    context: float = 1.0,
    skip: bool = False,
    report: Report | None = None,
) -> Objects:
    """All objects of these classes in a split, each cut to a square of `context` times its box's longer side.

    The paper's crops have context 1, the object in the middle and black outside the photograph; a wider square is moved into
    the photograph as far as that goes.  What is left out is counted in the report, or told by a warning where none is given.

    Raises:
        Problem: For a photograph that cannot be believed, unless `skip` leaves it out; and for a class without an object.
    """
    voc, told = voc_folder(Path(root)), report or Report(skip)
    found = []
    for name in names(voc, split, told):
        try:
            photograph = read_photograph(voc, name, classes)
        except Problem as problem:
            told.fails(problem)
            continue
        told.left.update(photograph.left)
        told.noted.update(photograph.noted)
        found += [cut(photograph, box, classes, size, context) for box in photograph.boxes]
    here = {thing.label for thing in found}
    if absent := [c for i, c in enumerate(classes) if i not in here]:
        why = f" ({told})" if str(told) else ""
        raise Missing(f"{voc} has no object of class {absent[0]} in split {split}{why}: {REMEDY}")
    if report is None and str(told):
        warnings.warn(f"{voc}, {split}: {told}", stacklevel=2)
    return stacked(found)


@dataclass(frozen=True)
class Photograph:
    """One photograph as its files describe it, before objects are cut from it."""

    name: str
    picture: Image.Image | None  # not decoded where no object is wanted of it
    boxes: list[Box]
    shapes: list[Shape]
    digest: str
    left: Counter[str]  # what is left out of it, and what is worth telling
    noted: Counter[str]


def read_photograph(voc: Path, name: str, classes: tuple[str, ...]) -> Photograph:
    """A photograph with its boxes of these classes and its masks.  Raises Problem where one of them cannot be believed."""
    found = read_xml(voc / "Annotations" / f"{name}.xml", classes)
    path = picture_of(voc, name)
    if not found.boxes:
        return Photograph(name, None, [], [], "", found.left + Counter([NO_OBJECT]), found.noted)
    with warnings.catch_warnings(action="ignore"):  # of pixels, which are bounded, and of metadata that nobody reads
        picture = read(path, remedy(name))
        shapes = read_shapes(voc, picture, name)
    boxes = boxes_of(found, picture, name)
    left = found.left + Counter([] if boxes else [NO_OBJECT])
    noted = found.noted + Counter([FRAMES] if boxes and picture.info["frames"] > 1 else [])
    return Photograph(name, picture, boxes, shapes, digest(path), left, noted)


@dataclass(frozen=True)
class Cut:
    """One object."""

    image: UInt8[Tensor, "3 S S"]
    label: int
    box: list[float]
    photograph: str
    mask: Bool[Tensor, "S S"]
    parts: dict[str, Bool[Tensor, "S S"]]
    digest: str


def cut(photograph: Photograph, box: Box, classes: tuple[str, ...], size: int, context: float) -> Cut:
    """The box with so much of its surroundings, in a square of `size` pixels, and the mask that fits it best."""
    square, shape = around(box, context, photograph.picture), best_shape(photograph.shapes, box)
    pixels = np.asarray(cut_out(photograph.picture, square, size)).copy()
    return Cut(
        image=torch.from_numpy(pixels).permute(2, 0, 1),
        label=classes.index(box.name),
        box=inside(box, square, size),
        photograph=photograph.name,
        mask=cut_mask(shape.mask, square, size) if shape else torch.zeros(size, size, dtype=torch.bool),
        parts={part: cut_mask(m, square, size) for part, m in shape.parts.items()} if shape else {},
        digest=photograph.digest,
    )


def stacked(found: list[Cut]) -> Objects:
    return Objects(
        images=torch.stack([thing.image for thing in found]),
        labels=torch.tensor([thing.label for thing in found]),
        boxes=torch.tensor([thing.box for thing in found]),
        photographs=tuple(thing.photograph for thing in found),
        masks=torch.stack([thing.mask for thing in found]),
        parts=tuple(thing.parts for thing in found),
        sums=tuple(thing.digest for thing in found),
    )


def read_shapes(folder: Path, picture: Image.Image, name: str) -> list[Shape]:
    """The masks of a photograph's objects, in no order; none where the data have none."""
    mat, png = folder / "Annotations_Part" / f"{name}.mat", folder / "SegmentationObject" / f"{name}.png"
    if mat.is_file():
        shapes = read_mat(mat)
    elif png.is_file():
        with opened(png, "restore it, or remove it", ("PNG",)) as picture_of_ids:
            ids = np.asarray(picture_of_ids)
        if ids.ndim != 2:
            raise Damaged(f"{png} is no picture of object numbers, one per pixel: restore it, or remove it")
        shapes = [Shape(ids == i, {}) for i in np.unique(ids) if i not in (0, 255)]  # 0 is background, 255 the border
    else:
        return []
    if wrong := [s for s in shapes if s.mask.shape != (picture.height, picture.width)]:
        raise Damaged(f"a mask of {name} has {wrong[0].mask.shape} pixels, not those of its photograph: restore it")
    return shapes


def read_mat(path: Path) -> list[Shape]:
    """PASCAL-Part's masks: anno.objects, each with its mask and its parts, each with part_name and mask."""
    from scipy.io import loadmat

    def several(value) -> list[dict]:  # one alone is no list
        return [value] if isinstance(value, dict) else list(value)

    def parse(path: Path) -> list[Shape]:
        return [
            Shape(np.asarray(thing["mask"]) > 0, {p["part_name"]: np.asarray(p["mask"]) > 0 for p in several(thing["parts"])})
            for thing in several(loadmat(path, simplify_cells=True)["anno"]["objects"])
        ]

    remedy = "restore it, or remove it"
    check_size(path, MIB, remedy)  # the largest masks compress to some KB
    return apart(parse, path, remedy)


def best_shape(shapes: list[Shape], box: Box) -> Shape | None:
    """The shape whose own box meets this one best, if it does by half: the order of files is not relied on."""

    def overlap(shape: Shape) -> float:
        rows, columns = np.nonzero(shape.mask)
        if not len(rows):
            return 0.0
        sides = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        both = np.clip(np.minimum(sides[2:], (box.right, box.bottom)) - np.maximum(sides[:2], (box.left, box.top)), 0, None)
        areas = np.prod(sides[2:] - sides[:2]) + (box.right - box.left) * (box.bottom - box.top)
        return float(both.prod() / (areas - both.prod()))

    best = max(shapes, key=overlap, default=None)
    return best if best is not None and overlap(best) >= 0.5 else None


def around(box: Box, context: float, picture: Image.Image) -> tuple[int, int, int]:
    """Left, top and side of the square around a box."""
    side = max(1, round(context * max(box.right - box.left, box.bottom - box.top)))
    left, top = round((box.left + box.right - side) / 2), round((box.top + box.bottom - side) / 2)
    if context > 1:
        left = min(max(left, 0), picture.width - side) if side <= picture.width else left
        top = min(max(top, 0), picture.height - side) if side <= picture.height else top
    return left, top, side


def cut_out(picture: Image.Image, square: tuple[int, int, int], size: int) -> Image.Image:
    left, top, side = square
    return picture.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BILINEAR)


def cut_mask(mask: np.ndarray, square: tuple[int, int, int], size: int) -> Bool[Tensor, "S S"]:
    cut = cut_out(Image.fromarray(mask.astype(np.uint8) * 255), square, size)
    return torch.from_numpy(np.asarray(cut) >= 128)


def inside(box: Box, square: tuple[int, int, int], size: int) -> list[float]:
    """The box in pixels of the resized square."""
    left, top, side = square
    sides = (box.left - left, box.top - top, box.right - left, box.bottom - top)
    return [min(max(s * size / side, 0.0), float(size)) for s in sides]
