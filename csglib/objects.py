"""Photographs with boxes in the layout of PASCAL VOC, cut to one object an image, the box in the pixels of the cut.

A folder holds JPEGImages/NAME.jpg, Annotations/NAME.xml and ImageSets/Main/SPLIT.txt with one NAME a line.  Since a split lists
photographs, no two objects of one photograph are on different sides.  Masks are read where there are any: those of objects and
parts from PASCAL-Part's Annotations_Part/NAME.mat, else those of objects from VOC's SegmentationObject/NAME.png.
"""

import os
import re
import tarfile
import tempfile
import warnings
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor

from csglib import Problem
from csglib.files import MIB, apart, check_size, read_text

ANIMALS = ("bird", "cat", "cow", "dog", "horse", "sheep")
PIXELS = 50_000_000  # of a photograph: 150 MB in memory


@dataclass(frozen=True)
class Objects:
    images: UInt8[Tensor, "N 3 S S"]
    labels: Int[Tensor, " N"]
    boxes: Float[Tensor, "N 4"]  # left, top, right, bottom in pixels of the cut; right and bottom outside the object
    photographs: tuple[str, ...]  # the name of each object's photograph
    masks: Bool[Tensor, "N S S"]  # empty of objects without one
    parts: tuple[dict[str, Bool[Tensor, "S S"]], ...]  # the masks of each object's parts by their names

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def groups(self) -> Int[Tensor, " N"]:
        """Which photograph each object is of, numbered in their order."""
        place = {name: i for i, name in enumerate(dict.fromkeys(self.photographs))}
        return torch.tensor([place[name] for name in self.photographs])

    def take(self, order: list[int]) -> "Objects":
        names = tuple(self.photographs[i] for i in order)
        parts = tuple(self.parts[i] for i in order)
        return Objects(self.images[order], self.labels[order], self.boxes[order], names, self.masks[order], parts)


@dataclass(frozen=True)
class Box:
    name: str  # class
    left: int  # 0-based
    top: int
    right: int  # the first column outside
    bottom: int


@dataclass(frozen=True)
class Shape:
    mask: np.ndarray  # of the photograph's pixels, bool
    parts: dict[str, np.ndarray]


def read_voc(
    root: Path | str,
    split: str,
    classes: tuple[str, ...] = ANIMALS,
    size: int = 128,
    context: float = 1.0,
    skip: bool = False,
) -> Objects:
    """All objects of these classes in a split, each cut to a square of `context` times its box's longer side.

    The paper's crops have context 1, the object in the middle and black outside the photograph; a wider square is moved into
    the photograph as far as that goes.  What is wrong with a photograph raises
    Problem; with `skip` it is left out with a warning.
    """
    folder = voc_folder(Path(root))
    images, labels, boxes, photographs, masks, parts = [], [], [], [], [], []
    for name in names(folder, split):
        try:
            found = read_xml(folder / "Annotations" / f"{name}.xml", classes)
            picture = read_image(folder / "JPEGImages" / f"{name}.jpg") if found else None
            for box in found:
                check_box(box, picture, name)
            shapes = read_shapes(folder, picture, name) if found else []
        except Problem as problem:
            if not skip:
                raise
            warnings.warn(f"left out: {problem}", stacklevel=2)
            continue
        for box in found:
            square = around(box, context, picture)
            shape = best_shape(shapes, box)
            images.append(torch.from_numpy(np.asarray(cut_out(picture, square, size)).copy()).permute(2, 0, 1))
            labels.append(classes.index(box.name))
            boxes.append(inside(box, square, size))
            photographs.append(name)
            masks.append(cut_mask(shape.mask, square, size) if shape else torch.zeros(size, size, dtype=torch.bool))
            parts.append({part: cut_mask(m, square, size) for part, m in shape.parts.items()} if shape else {})
    if absent := [c for i, c in enumerate(classes) if i not in labels]:
        raise Problem(f"{folder} has no object of class {absent[0]} in split {split}: leave the class out, or add photographs")
    where = torch.tensor(labels), torch.tensor(boxes), tuple(photographs)
    return Objects(torch.stack(images), *where, torch.stack(masks), tuple(parts))


def load(root: Path | str, size: int = 128, context: float = 1.0) -> tuple[Objects, Objects]:
    """The animals of the lists train and val.  The photographs of train are shuffled, so that its end can be held out."""
    train, val = (read_voc(root, split, size=size, context=context) for split in ("train", "val"))
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


def read_image(path: Path, mode: str | None = "RGB") -> Image.Image:
    """A JPEG photograph in colours or, without a mode, a PNG of object numbers as it is."""
    remedy = f"restore it, or take {path.stem} out of its list"
    try:
        with warnings.catch_warnings(), Image.open(path, formats=["JPEG" if mode else "PNG"]) as picture:
            warnings.simplefilter("ignore")  # of pixels and metadata; the next line bounds the one, nobody reads the other
            if picture.width * picture.height > PIXELS:
                raise Problem(f"{path} has {picture.width} x {picture.height} pixels, more than {PIXELS}: {remedy}")
            return picture.convert(mode) if mode else picture.copy()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Problem(f"{path} does not decode ({error}): {remedy}") from None


def check_box(box: Box, picture: Image.Image, name: str) -> None:
    if not (0 <= box.left < box.right <= picture.width and 0 <= box.top < box.bottom <= picture.height):
        raise Problem(
            f"the {box.name} of photograph {name} has a box outside of its {picture.width} x {picture.height} pixels "
            f"({box.left}, {box.top}, {box.right}, {box.bottom}): correct the annotation"
        )


def read_shapes(folder: Path, picture: Image.Image, name: str) -> list[Shape]:
    """The masks of a photograph's objects, in no order; none where the data have none."""
    mat, png = folder / "Annotations_Part" / f"{name}.mat", folder / "SegmentationObject" / f"{name}.png"
    if mat.is_file():
        shapes = read_mat(mat)
    elif png.is_file():
        ids = np.asarray(read_image(png, None))
        if ids.ndim != 2:
            raise Problem(f"{png} is no picture of object numbers, one a pixel: restore it, or remove it")
        shapes = [Shape(ids == i, {}) for i in np.unique(ids) if i not in (0, 255)]  # 0 is background, 255 the border
    else:
        return []
    if wrong := [s for s in shapes if s.mask.shape != (picture.height, picture.width)]:
        raise Problem(f"a mask of {name} has {wrong[0].mask.shape} pixels, not those of its photograph: restore it")
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


def get_voc(year: str = "2010", root: Path | None = None) -> Path:
    """Download PASCAL VOC's training and validation photographs of a year; the folder appears whole or not at all."""
    from torchvision.datasets import VOCDetection

    from csglib.data import folder

    root = root or folder()
    target = root / f"voc{year}"
    if target.exists():
        voc_folder(target)
        return target
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as tmp:
        before = vars(tarfile.TarFile)["extraction_filter"]
        tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
        try:
            VOCDetection(tmp, year, "trainval", download=True)  # checks the archive's md5; the filter keeps it in its folder
        except (OSError, RuntimeError, tarfile.TarError) as error:
            raise Problem(
                f"could not download PASCAL VOC {year} ({error}): try again, or unpack its VOCdevkit into {target} by hand"
            ) from None
        finally:
            tarfile.TarFile.extraction_filter = before
        for archive in Path(tmp).glob("*.tar"):
            archive.unlink()
        os.rename(tmp, target)
        os.mkdir(tmp)  # for its own removal
    return target
