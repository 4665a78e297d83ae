"""Pictures of one's own: one reader of files, and one set of checks, for every source of them (folders.py, objects.py).

A data set of one's own is called KIND:PATH, with options behind it, each after an @:

- `folder:my-pictures@64`: brought to 64 x 64 pixels; without it 128
- `folder:my-pictures@64@skip`: what cannot be read is left out and counted; without it, it stops with its name
- `voc:pets@cat,dog`: of VOC's objects those of these classes; `@all` of all that there are
- `imagenet:PATH@20classes`: of the classes of ImageNet, or of Tiny ImageNet, so many

PATH is looked for in the current folder, then beside the downloads.  What is left out is counted, by reasons, in one line.
"""

import functools
import hashlib
import os
import re
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from csglib.data.images import Dataset, Pictures
from csglib.errors import Damaged, Missing, Problem
from csglib.files import MIB, check_size, short
from csglib.paths import folder

SIZE, SIZES = 128, (16, 512)  # pixels of a side: without another, and what may be asked for
PIXELS = 50_000_000  # of a file's picture: 150 MB in memory
FILE = 64 * MIB
KINDS = 12  # of what was left out, that are told one by one
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "QOI")
VAGUE = ("TGA", "PCX", "SGI", "ICO", "DIB")  # begin with a byte or two that damaged files have too: under their endings alone

# What a name asks for


@dataclass(frozen=True)
class Asked:
    root: Path
    size: int = SIZE
    skip: bool = False
    classes: tuple[str, ...] = ()  # none: those of the source
    subset: int | None = None  # how many classes; None: all


def asked(name: str, size: int = SIZE) -> Asked:
    """What a name stands for, of that size where it names none.

    Raises Problem where there is no such folder or an option is out of range.
    """
    kind, _, path = name.partition(":")
    options = {}
    while "@" in path:
        rest, _, option = path.rpartition("@")
        if re.fullmatch(r"[0-9]{1,9}", option):
            options["size"] = int(option)
        elif option == "skip" and kind in ("folder", "voc"):
            options["skip"] = True
        elif kind in ("imagenet", "tiny-imagenet") and re.fullmatch(r"[0-9]{1,6}classes", option):
            options["subset"] = int(option.removesuffix("classes"))
        elif kind == "voc":
            options["classes"] = tuple(word.strip() for word in option.split(","))
        else:
            break
        path = rest
    size = options.setdefault("size", size)
    if not SIZES[0] <= size <= SIZES[1]:
        raise Problem(f"{name} asks for pictures of {size} x {size} pixels: choose a size from {SIZES[0]} to {SIZES[1]}")
    if not path:
        raise Problem(f"{name} names no folder: give its path, as in {kind}:my-pictures")
    here = Path(os.path.expanduser(path))
    for root in (here, folder() / here):
        if root.is_dir():
            return Asked(root, **options)
    if kind == "tiny-imagenet":
        raise Missing(f"Tiny ImageNet is not in {folder()}: `csglib data get tiny-imagenet` fetches it, or unpack it there")
    inside = {
        "folder": "a subfolder of pictures for each class",
        "voc": "JPEGImages, Annotations and ImageSets",
        "imagenet": "train and val, with a subfolder per class",
    }[kind]
    more = "; behind a PATH may stand a size such as @64, and @skip" if "@" in path else ""
    raise Missing(
        f"there is no folder {here} here and no {folder() / here}: name one that has {inside}, as in {kind}:my-pictures{more}"
    )


PART = re.compile(  # with or without what people add to it: Train, training_set, seg_test, val2017
    r"[\W_\d]*(?:(?:set|data|dataset|images?|imgs?|pictures|photos|seg|split)[\W_]*)?"
    r"(train|test|val|dev|eval|hold[\W_]?out)(?:ing|s|id|idation|elopment|uation)?"
    r"(?:[\W_]*(?:set|data|dataset|images?|imgs?|pictures|photos|split))?[\W_\d]*",
    re.IGNORECASE,
)


def part_of(name: str) -> str | None:
    """Which part of a data set a folder or list of this name is: train, test, val, dev, eval, holdout, or none."""
    found = PART.fullmatch(name)
    return re.sub(r"[\W_]", "", found[1].lower()) if found else None


def composed(text: str) -> str:
    """In one of the forms that Unicode has: a Mac takes accents apart."""
    return unicodedata.normalize("NFC", text)


def plain(text: str) -> str:
    """A class's name.  Pages and figures escape it where it could be markup."""
    text = composed(text)
    odd = any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in "\u202a\u202b\u202c\u202d\u202e" for c in text)
    if not text.strip() or odd or len(text) > 80:
        raise Problem(f"there is a class {short(text, 80)!r}: rename it, to at most 80 characters in one line")
    return text


# What is told of it


@dataclass
class Report:
    """What was left out, and what else should be known, counted by the words for it."""

    skip: bool = False  # whether what cannot be read is left out too
    left: Counter = field(default_factory=Counter)
    noted: Counter = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def fails(self, problem: Problem) -> None:
        """What cannot be read stops, or is left out."""
        if not self.skip:
            raise Problem(f"{problem}; @skip behind the data set's name leaves out what cannot be read")
        self.broken.append(str(problem))

    def __str__(self) -> str:
        """One line; empty where there is nothing to tell."""
        most = Counter(dict(self.left.most_common(KINDS)))
        most["things of other kinds"] = self.left.total() - most.total()
        left = counted(most)
        if self.broken:
            left += counted({"files that cannot be read": len(self.broken)}) + [f"first: {self.broken[0]}"]
        told = [f"left out: {', '.join(left)}"] * bool(left) + counted(self.noted)
        return "".join(c if c.isprintable() else "?" for c in "; ".join(told))


def counted(words: dict[str, int]) -> list[str]:
    """Each begins with a plural."""
    return [f"{n:,} " + (text if n > 1 else re.sub(r"^([a-z]+)s", r"\1", text)) for text, n in words.items() if n]


# The reader


@functools.cache
def endings() -> dict[str, str]:
    """The endings of the files that are read, and the formats that they promise."""
    return {e: kind for e, kind in Image.registered_extensions().items() if kind in (*FORMATS, *VAGUE, "MPO")}


def check(path: Path, remedy: str) -> None:
    if path.is_symlink() and not path.exists():
        raise Missing(f"{path} is a link to {os.readlink(path)}, which is not there: {remedy}")
    check_size(path, FILE, remedy)


@contextmanager
def opened(path: Path, remedy: str, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """The file as Pillow has it; whatever goes wrong with it inside is a Problem with its name."""
    check(path, remedy)
    endings()  # Pillow knows all its formats now
    try:
        with Image.open(path, formats=[kind for kind in formats if kind in Image.OPEN]) as picture:
            if picture.width * picture.height > PIXELS:
                raise Problem(f"{path} has {picture.width} x {picture.height} pixels, more than {PIXELS}: {remedy}")
            yield picture
    except Problem:
        raise
    except Exception as error:  # damaged metadata fail in any way
        raise Damaged(f"{path} does not decode ({short(str(error))}): {remedy}") from None


def read(path: Path, remedy: str, near: int = 0) -> Image.Image:
    """The picture in 8 bits of red, green and blue, turned as its camera says; of several frames, counted in `info`, the first.

    A large JPEG may be decoded at a half, a quarter or an eighth, so that no side is below `near`.
    """
    own = endings().get(path.suffix.lower())
    with opened(path, remedy, (*FORMATS, own) if own in VAGUE else FORMATS) as picture:
        if near:
            picture.draft("RGB", (near, near))
        tags = getattr(picture, "tag_v2", {})  # of TIFF
        (bits, *_), signs, white_is_zero = tags.get(258, (16,)), tags.get(339, (1,)), tags.get(262) == 0
        whole = picture.mode != "F" and (picture.mode != "I" or picture.format in ("PNG", "PPM")) and set(signs) <= {1, 4}
        if not whole:
            raise Problem(
                f"{path} holds signed, fractional or 32-bit numbers, of which nobody can know what is black and white: save it "
                "with 8 or 16 bits"
            )
        upright = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I"):
            grey = (np.asarray(upright) >> bits - 8).astype(np.uint8)  # Pillow would clip them; of 16-bit colours it does this
            upright = Image.fromarray(255 - grey if white_is_zero else grey)
        found = upright.convert("RGB")
        found.info["frames"] = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)  # a camera's has previews
        return found


# The checks


def checked(
    name: str,
    classes: tuple[str, ...],
    train: Pictures,
    test: Pictures,
    digest: str,
    report: Report,
    remedy: str,
    keys: list[list[str]] | None = None,
) -> Dataset:
    """The data set, and one line on what was left out.  A picture in two classes has none, and is left out of both.

    Told is what is in both parts: the same picture, or the same photograph, which `groups` numbers over both parts.  Pictures
    of one key are one; without keys, those of the same pixels.
    """
    parts = [train, test]
    if keys is None:
        keys = [[hashlib.sha256(image).hexdigest() for image in part.images.numpy()] for part in parts]
    known = defaultdict(set)
    for key, label in zip(chain(*keys), chain(*(part.labels.tolist() for part in parts)), strict=True):
        known[key].add(label)
    for i, part in enumerate(parts):
        kept = [j for j, key in enumerate(keys[i]) if len(known[key]) == 1]
        if len(kept) < len(part):
            report.left["pictures in two classes"] += len(part) - len(kept)
            parts[i], keys[i] = part.take(torch.tensor(kept, dtype=torch.long)), [keys[i][j] for j in kept]
    for part, word in zip(parts, ("training", "test"), strict=True):
        if absent := sorted(set(range(len(classes))) - set(part.labels.tolist())):
            told = f" ({report})" if str(report) else ""
            raise Problem(f"{name} has no {word} picture of class {classes[absent[0]]!r}{told}: {remedy}")
    seen = [set(keys[0]), set() if train.groups is None else set(parts[0].groups.tolist())]
    groups = [None] * len(parts[1]) if test.groups is None else parts[1].groups.tolist()
    if both := sum(key in seen[0] or group in seen[1] for key, group in zip(keys[1], groups, strict=True)):
        report.noted["pictures in both parts, training and test: take them out of one"] += both
    if told := str(report):
        warnings.warn(f"{name}: {told}", stacklevel=2)
    return Dataset(name, classes, *parts, digest, told)
