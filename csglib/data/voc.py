"""A folder in the layout of PASCAL VOC: its lists, what its annotations say of the photographs, and VOC itself to download.

It holds JPEGImages/NAME.jpg (or a picture of another format), Annotations/NAME.xml and ImageSets/Main/SPLIT.txt with one NAME a
line; a line that ends with -1, as in VOC's lists of one class, is left out.
"""

import os
import re
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from csglib.data import download
from csglib.data.download import Archive
from csglib.data.pictures import Report, composed, endings, part_of, plain
from csglib.errors import Damaged, Missing, Problem, Unknown
from csglib.files import MIB, check_size, read_text, short
from csglib.paths import folder

TESTS = ("val", "test", "dev", "eval", "holdout")  # the first that is there tests; VOC keeps what is in `test` to itself
OUTSIDE = 2  # pixels: a box that leaves its photograph by no more, as by rounding or by counting from 0, is clipped


@dataclass(frozen=True)
class Box:
    name: str  # class
    left: int  # 0-based
    top: int
    right: int  # the first column outside
    bottom: int


@dataclass(frozen=True)
class Annotation:
    boxes: list[Box]
    size: tuple[int, int]  # of the photograph, as it says; 0 where it does not
    left: Counter  # objects of other classes
    noted: Counter


def voc_folder(root: Path) -> Path:
    """The folder itself, or the only one of VOC's layout in its VOCdevkit, which VOC 2011 has in TrainVal."""
    found = [
        p
        for p in (root, *sorted(root.glob("VOCdevkit/*")), *sorted(root.glob("TrainVal/VOCdevkit/*")))
        if (p / "Annotations").is_dir()
    ]
    if len(found) != 1:
        there = ", ".join(p.name for p in found) or "none"
        raise Missing(f"{root} should hold one folder with JPEGImages, Annotations and ImageSets, and has {there}: name it")
    return found[0]


def splits(voc: Path) -> tuple[str, str]:
    """What its two lists are called."""
    return "train", next((split for split in TESTS if list_of(voc, split)), "val")


def list_of(voc: Path, split: str) -> Path | None:
    """The list of a part, also under another name of it, such as Train or validation."""
    main = voc / "ImageSets" / "Main"
    if (path := main / f"{split}.txt").is_file():
        return path
    alike = [path for path in sorted(main.glob("*.txt")) if part_of(split) and part_of(path.stem) == part_of(split)]
    return alike[0] if len(alike) == 1 else None


def names(voc: Path, split: str, report: Report) -> list[str]:
    """The photographs of a list."""
    if (path := list_of(voc, split)) is None:
        known = ", ".join(sorted(p.stem for p in (voc / "ImageSets" / "Main").glob("*.txt") if "_" not in p.stem)) or "no list"
        raise Unknown(
            f"{voc} has no split {split!r}: ImageSets/Main has {known}; write {split}.txt, one photograph's name a line"
        )
    known, found = {composed(p.stem): p.stem for p in (voc / "Annotations").glob("*.xml")}, []
    for line in read_text(path, "correct the list").lstrip("\ufeff").splitlines():
        name = composed(line.strip())
        if name not in known and (of_class := re.fullmatch(r"(.*\S)\s+(-1|0|1)", name)):
            name = of_class[1]
            if of_class[2] == "-1":
                report.left[f"photographs that {path.name} marks with -1"] += 1
                continue
        if name not in known and (bare := name.rpartition("."))[0] in known and f".{bare[2]}".lower() in endings():
            name = bare[0]
        if re.search(r"[/\\]|^\.", name) or not name.isprintable() or len(name) > 200:
            raise Missing(f"{path} names {name[:80]!r}, which is no file of JPEGImages: correct the list")
        found += [known.get(name, name)] * bool(name)
    if len(found) > len(set(found)):
        raise Problem(f"{path} names a photograph twice: correct the list")
    return found


def picture_of(voc: Path, name: str) -> Path:
    """A JPEG, or else a picture of another format."""
    first = voc / "JPEGImages" / f"{name}.jpg"
    others = (first.with_name(name + case(ending)) for ending in endings() for case in (str.lower, str.upper))
    return first if first.is_file() else next((path for path in others if path.is_file()), first)


def remedy(name: str) -> str:
    return f"correct it, or take {name} out of its list"


def all_classes(voc: Path, skip: bool) -> tuple[str, ...]:
    """Every class of both lists, sorted; of names that differ in small and capital letters alone the most frequent."""
    found = Counter()
    for name in (name for split in splits(voc) for name in names(voc, split, Report())):
        try:
            found.update(called(thing) for thing in read_tree(voc / "Annotations" / f"{name}.xml").iter("object"))
        except Problem:
            if not skip:
                raise
    return tuple(sorted({name.casefold(): plain(name) for name, _ in reversed(found.most_common()) if name}.values()))


def called(thing: ET.Element) -> str:
    return composed((thing.findtext("name") or "").strip())


def class_of(name: str, classes: tuple[str, ...]) -> str | None:
    """The class of this name, or the only one that differs from it in small and capital letters alone."""
    alike = [c for c in classes if c.casefold() == name.casefold()]
    return name if name in classes else alike[0] if len(alike) == 1 else None


def read_tree(path: Path) -> ET.Element:
    check_size(path, MIB, remedy(path.stem))
    try:
        return ET.parse(path, ET.XMLParser(target=Tree())).getroot()
    except (ET.ParseError, ValueError, LookupError) as error:
        raise Damaged(f"{path} cannot be read ({short(str(error))}): {remedy(path.stem)}") from None


class Tree(ET.TreeBuilder):
    """Refuses what an annotation has no use for: entities, which may name each other until memory is full, or other files."""

    def doctype(self, *_) -> None:
        raise ValueError("it declares a document type")


SIDES = (("xmin", 1), ("ymin", 1), ("xmax", 0), ("ymax", 0))  # VOC counts from 1, and its right and bottom are inside


def read_xml(path: Path, classes: tuple[str, ...]) -> Annotation:
    """An annotation's boxes of these classes, from 0, and the photograph's size.  Raises Damaged where numbers are missing."""
    boxes, left, noted = [], Counter(), Counter()
    tree = read_tree(path)
    try:
        for thing in tree.iter("object"):
            name = called(thing)
            if (known := class_of(name, classes)) is None:
                left[f"objects called {short(name, 40)}" if name else "objects without a name"] += 1
                continue
            noted[f"objects called {short(name, 40)} and taken for {known}"] += name != known
            sides = (round(float(thing.findtext(f"bndbox/{side}"))) - first for side, first in SIDES)
            boxes.append(Box(known, *sides))
        width, height = (round(float(tree.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
    except (TypeError, ArithmeticError, ValueError) as error:
        raise Damaged(f"{path} cannot be read ({short(str(error))}): {remedy(path.stem)}") from None
    return Annotation(boxes, (width, height), left, noted)


def boxes_of(found: Annotation, picture: Image.Image, name: str) -> list[Box]:
    """The boxes within their photograph, if it is the one that was annotated: turned or resized since, they would lie aside."""
    width, height = picture.size
    if all(found.size) and found.size != picture.size:
        turned = ", turned as its camera says," if found.size == (height, width) else ""
        told = "{} x {}".format(*found.size)
        raise Damaged(f"photograph {name} has {width} x {height} pixels{turned} and {told} in its annotation: {remedy(name)}")
    boxes = []
    for b in found.boxes:
        within = Box(b.name, max(b.left, 0), max(b.top, 0), min(b.right, width), min(b.bottom, height))
        out = max(-b.left, -b.top, b.right - width, b.bottom - height)
        if out > OUTSIDE or within.left >= within.right or within.top >= within.bottom:
            raise Damaged(
                f"the {b.name} of photograph {name} has a box outside of its {width} x {height} pixels "
                f"({b.left}, {b.top}, {b.right}, {b.bottom}): {remedy(name)}"
            )
        found.noted[f"objects with a box up to {OUTSIDE} pixels out of the photograph, which was clipped"] += out > 0
        boxes.append(within)
    return boxes


def get_voc(year: str = "2010", root: Path | None = None) -> Path:
    """Download PASCAL VOC's training and validation photographs of a year; the folder appears whole or not at all."""
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    root = root or folder()
    target, listed = root / f"voc{year}", DATASET_YEAR_DICT[year]
    if target.exists():
        voc_folder(target)
        return target
    archive, remedy = Archive(listed["url"], listed["md5"]), f"unpack its VOCdevkit into {target} by hand"
    with download.fetched(archive, f"PASCAL VOC {year}", root / f"voc{year}.part", remedy) as path:
        download.unpack(path, path.parent / "unpacked")
        os.rename(path.parent / "unpacked", target)
    return target
