"""Image folders: a tree with one subfolder a class is a data set, `folder:PATH` or `folder:PATH@SIZE`.

PATH is looked for in the current folder, then beside the downloads.  Listed is what torchvision's ImageFolder lists, but for
hidden files and folders.  Pictures are turned as their camera says, resized so that the shorter side has SIZE (128) pixels, cut
to the middle square, and kept as uint8 in one file beside the downloads, which is made anew when the pictures change.

Which pictures test: those of `test` (else `val`, `valid` or `validation`), if it lies beside a folder `train` with the same
classes.  Else a picture tests if the sha256 of its file, as a number, is divisible by 5: about a fifth of them, the same ones
whatever else is in the folder, and copies of a picture are on one side.  Both parts are in the order of these sums, which is
random, so that a recipe's `holdout` takes some of every class.  The digest of the data covers every name and every file's sum.
"""

import hashlib
import os
import re
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm.auto import tqdm

from csglib import Problem, data
from csglib.data import Dataset, Images, digest, folder
from csglib.files import MIB, check_size, short, write
from csglib.objects import PIXELS

SIZE, SIZES = 128, (16, 512)  # pixels of a side: what the animals of objects.py have, and what may be asked for
BYTES = 2048 * MIB  # of all pictures together, in memory: 43,690 of 128 x 128
PICTURE = 64 * MIB  # of one file
CLASSES = 1000
TESTS = ("test", "val", "valid", "validation")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF")  # those of ImageFolder's extensions
PLAIN = re.compile(r"[\w .,:;()@+-]{1,80}")  # a class's name reaches pages and figures: no markup, no formula
HOW = "shorter side to size, middle square, bilinear; 1"  # changes with what is done to a picture


class Picture(NamedTuple):
    sha256: str  # of the file
    path: Path
    label: int
    name: str  # beneath the root, with / between
    tests: bool


def load(name: str) -> Dataset:
    """The data set of a name `folder:PATH[@SIZE]`: images (N, 3, SIZE, SIZE), classes by the sorted names of their folders.

    Raises Problem where the folder, a class or a picture is not what it should be, with its name and the remedy.
    """
    root, size = parse(name)
    classes, pictures = listing(root)
    room = len(pictures) * 3 * size * size
    if room > BYTES:
        raise Problem(
            f"{root} has {len(pictures)} pictures, which take {room / MIB:,.0f} MiB in {size} x {size} pixels, and at most "
            f"{BYTES / MIB:g} can be had: choose a smaller size, such as folder:PATH@{SIZE // 2}, or fewer pictures"
        )
    seen = hashlib.sha256()
    for p in sorted(pictures, key=lambda p: p.name):
        seen.update(f"{p.sha256} {p.name}\n".encode(errors="surrogateescape"))
    images = cached(root, pictures, size, seen.hexdigest())
    labels, tests = torch.tensor([p.label for p in pictures]), torch.tensor([p.tests for p in pictures])
    parts = [Images(images[chosen], labels[chosen]) for chosen in (~tests, tests)]
    for part, word in zip(parts, ("training", "test"), strict=True):
        if absent := set(range(len(classes))) - set(part.labels.tolist()):
            raise Problem(
                f"{root} has no {word} picture of class {classes[min(absent)]!r}: add pictures, or lay out the two parts "
                "yourself, in folders train and test with one subfolder a class"
            )
    return Dataset(name, classes, *parts, seen.hexdigest())


def present(name: str) -> bool:
    """Whether the folder is there."""
    return any(path.is_dir() for path in places(name))


def places(name: str) -> tuple[Path, Path]:
    path = re.sub(r"@\d+$", "", name.removeprefix("folder:"))
    return Path(path), folder() / path


def parse(name: str) -> tuple[Path, int]:
    """The folder and the size that a name stands for."""
    here, beside = places(name)
    size = int(found[1]) if (found := re.search(r"@(\d{1,9})$", name)) else SIZE
    if not SIZES[0] <= size <= SIZES[1]:
        raise Problem(f"{name} asks for pictures of {size} x {size} pixels: choose a size from {SIZES[0]} to {SIZES[1]}")
    if here == Path():
        raise Problem(f"{name} names no folder: give its path, as in folder:my-pictures")
    for path in (here, beside):
        if path.is_dir():
            return path, size
    raise Problem(
        f"there is no folder {here} here and no {beside}: name one that has a subfolder of pictures for each class, "
        "as in folder:my-pictures"
    )


def listing(root: Path) -> tuple[tuple[str, ...], list[Picture]]:
    """The classes, and every picture in the order of its sum."""
    inside = [entry.name for entry in os.scandir(root) if entry.is_dir()]
    held = [word for word in TESTS if word in inside]
    if "train" not in inside or not held:
        classes = class_names(root)
        found = pictures(root, "", classes, None)
    else:
        if len(held) > 1:
            warnings.warn(f"{root} has {' and '.join(held)}: {held[0]} is what tests, the rest is left out", stacklevel=2)
        classes, others = class_names(root / "train"), class_names(root / held[0])
        if classes != others:
            odd = sorted(set(classes) ^ set(others))[0]
            raise Problem(f"{root} has class {odd!r} in one of train and {held[0]} alone: give both the same classes")
        found = [p for part in ("train", held[0]) for p in pictures(root / part, f"{part}/", classes, part != "train")]
        if both := {p.sha256 for p in found if p.tests} & {p.sha256 for p in found if not p.tests}:
            warnings.warn(f"{len(both)} pictures of {root} are in both train and {held[0]}: take them out of one", stacklevel=2)
    return classes, sorted(found)


def class_names(root: Path) -> tuple[str, ...]:
    """The names of the folders that are not hidden, sorted."""
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not 2 <= len(names) <= CLASSES:
        raise Problem(
            f"{root} has {len(names)} subfolders, where there should be one for each of 2 to {CLASSES} classes: "
            "put the pictures of each class into a folder of its name"
        )
    if odd := [name for name in names if not PLAIN.fullmatch(name)]:
        raise Problem(
            f"{root} has a class {short(odd[0], 80)!r}: rename its folder; a class is called by at most 80 letters, digits, "
            "spaces and . _ - + , : ; @ ( )"
        )
    return tuple(names)


def pictures(root: Path, part: str, classes: tuple[str, ...], tests: bool | None) -> list[Picture]:
    """Those of one tree; where `tests` is None, their sums decide."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension, make_dataset

    def wanted(path: str) -> bool:  # ._NAME.jpg, in archives that a Mac has made, is no picture
        return has_file_allowed_extension(path, IMG_EXTENSIONS) and not os.path.basename(path).startswith(".")

    numbers = {name: i for i, name in enumerate(classes)}
    found = []
    for text, label in make_dataset(root, numbers, is_valid_file=wanted, allow_empty=True):
        path = Path(text)
        check_size(path, PICTURE, "make it smaller, or take it out of the folder")
        sha256 = digest(path)
        name = part + path.relative_to(root).as_posix()
        found.append(Picture(sha256, path, label, name, int(sha256, 16) % 5 == 0 if tests is None else tests))
    return found


def cached(root: Path, pictures: list[Picture], size: int, listing: str) -> UInt8[Tensor, "N 3 S S"]:
    """The pictures' pixels, read from the file that an earlier call left, or made and left there."""
    own = hashlib.sha256(str(root.resolve()).encode(errors="surrogateescape")).hexdigest()[:12]
    where = folder() / "folders" / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', root.name)[:80]}-{size}-{own}.safetensors"
    told = {"listing": listing, "how": f"{HOW}, {size}"}
    if (kept := read_cache(where, told, len(pictures), size)) is not None:
        return kept
    images = torch.empty((len(pictures), 3, size, size), dtype=torch.uint8)
    hidden = bool(os.environ.get("TQDM_DISABLE"))
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")  # of metadata that nobody reads, and of pixels, which are bounded
        made = pool.map(lambda p: read_picture(p.path, size), pictures)
        try:
            for i, pixels in enumerate(tqdm(made, f"{root}", len(pictures), delay=1, disable=hidden)):
                images[i] = torch.from_numpy(pixels)
        except Problem:
            pool.shutdown(cancel_futures=True)  # do not read the rest first
            raise
    where.parent.mkdir(parents=True, exist_ok=True)
    alone = where.with_name(f"{where.stem}-{os.getpid()}.safetensors")  # of two processes each writes its own
    write(alone, save({"images": images}, told | {"pixels": pixel_sum(images)}))
    os.replace(alone, where)
    return images


def pixel_sum(images: UInt8[Tensor, "N 3 S S"]) -> str:
    return hashlib.sha256(images.numpy()).hexdigest()


def read_cache(path: Path, told: dict[str, str], n: int, size: int) -> UInt8[Tensor, "N 3 S S"] | None:
    """None where the file is absent, damaged, or of other pictures: it is made again."""
    try:
        with safe_open(path, "pt") as f:
            stored = f.metadata() or {}
            if any(stored.get(word) != value for word, value in told.items()):
                return None
            images = f.get_tensor("images")
    except (OSError, SafetensorError):
        return None
    fits = images.dtype == torch.uint8 and tuple(images.shape) == (n, 3, size, size)
    return images if fits and pixel_sum(images) == stored.get("pixels") else None


def read_picture(path: Path, size: int) -> np.ndarray:
    """3 x size x size, uint8."""
    remedy = "restore it, or take it out of the folder"
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if picture.width * picture.height > PIXELS:
                raise Problem(f"{path} has {picture.width} x {picture.height} pixels, more than {PIXELS}: {remedy}")
            picture.draft("RGB", (size, size))  # a large JPEG is decoded at a half, a quarter or an eighth
            upright = ImageOps.exif_transpose(picture).convert("RGB")
        square = ImageOps.fit(upright, (size, size), Image.Resampling.BILINEAR)
    except Problem:
        raise
    except Exception as error:  # damaged metadata fail in any way
        raise Problem(f"{path} does not decode ({short(str(error))}): {remedy}") from None
    return np.asarray(square).transpose(2, 0, 1).copy()


def sample(name: str = "sample-pictures", classes: int = 5) -> str:
    """Write the first classes of the embedded sample as PNG files, beside the downloads: a folder for first steps.

    Returns its name, for folder:NAME; it appears whole or not at all, and one that is there is left as it is.
    """
    target = folder() / name
    if not target.exists():
        mini = data.load("cifar10-mini")
        folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder(), prefix=".sample-") as tmp:
            for part, images in (("train", mini.train), ("test", mini.test)):
                for i in range(len(images)):
                    if (label := int(images.labels[i])) < classes:
                        place = Path(tmp) / name / part / mini.classes[label]
                        place.mkdir(parents=True, exist_ok=True)
                        Image.fromarray(images.images[i].permute(1, 2, 0).numpy()).save(place / f"{i:04}.png")
            with suppress(OSError):  # another process was faster
                os.rename(Path(tmp) / name, target)
    return name
