"""Image folders: a tree with one subfolder a class is a data set, `folder:PATH` (pictures.py says what may follow).

Pictures are turned as their camera says, resized so that the shorter side has SIZE pixels, cut to the middle square, and kept
as uint8 in one file beside the downloads, which is made anew when the pictures change.  What is hidden, is of another format
or was walked through before, as in a loop of links, is left out and counted.

Which pictures test: those of `test` (else `val`, `dev`, `eval`), if it lies beside a folder `train` with the same classes; they
may be called Training or validation_set too.  Else a picture tests if the sha256 of its file, as a number, is divisible by 5:
about a fifth of them, the same ones whatever else is in the folder, and copies of a picture are on one side.  Both parts are in
the order of these sums, which is random, so that a recipe's `holdout` takes some of every class.  The digest of the data covers
every name and every file's sum.
"""

import hashlib
import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
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

from csglib import data
from csglib.data.images import Dataset, Images
from csglib.data.pictures import Report, asked, check, checked, composed, endings, part_of, plain, read
from csglib.errors import Problem
from csglib.files import MIB, short, write
from csglib.paths import digest, folder

BYTES = 2048 * MIB  # of all pictures together, in memory: 43,690 of 128 x 128
CLASSES = 1000
TESTS = ("test", "val", "dev", "eval", "holdout")  # the first that is there tests
SYSTEM = ("__macosx", "@eadir", "__pycache__", "$recycle.bin", "system volume information", "lost+found")  # no folders of ours
HOW = "shorter side to size, middle square, bilinear; 2"  # changes with what is done to a picture
UNREAD = (".heic", ".heif", ".jxl", ".psd", ".svg", ".eps", ".dng", ".raw", ".cr2", ".nef", ".arw")  # of other pictures
REMEDY = "restore it, or take it out of the folder"


class Picture(NamedTuple):
    sha256: str  # of the file
    path: Path
    label: int
    name: str  # beneath the root, with / between
    tests: bool


def load(name: str) -> Dataset:
    """The data set of a name `folder:PATH`: images (N, 3, SIZE, SIZE), classes by the sorted names of their folders.

    Raises Problem where the folder, a class or a picture is not what it should be, with its name and the remedy.
    """
    wanted = asked(name)
    root, size, report = wanted.root, wanted.size, Report(wanted.skip)
    classes, found = listing(root, report)
    room = len(found) * 3 * size * size
    if room > BYTES:
        raise Problem(
            f"{root} has {len(found)} pictures, which take {room / MIB:,.0f} MiB in {size} x {size} pixels, and at most "
            f"{BYTES / MIB:g} can be had: choose a smaller size, such as folder:PATH@{size // 2}, or fewer pictures"
        )
    seen = hashlib.sha256()
    for p in sorted(found, key=lambda p: p.name):
        seen.update(f"{p.sha256} {p.name}\n".encode(errors="surrogateescape"))
    images, broken = cached(root, found, size, seen.hexdigest(), report)
    number = {sha256: i for i, sha256 in enumerate(dict.fromkeys(p.sha256 for p in found))}
    labels, groups = torch.tensor([p.label for p in found]), torch.tensor([number[p.sha256] for p in found])
    sides = [[i for i, p in enumerate(found) if p.tests is tests and i not in broken] for tests in (False, True)]
    parts = [Images(images, labels, groups).take(torch.tensor(side, dtype=torch.long)) for side in sides]
    own = any(part_of(p.name.split("/")[0]) for p in found)
    remedy = "add pictures to its folder, or take the folder out" + (
        "" if own else ", or lay out the two parts yourself, in folders train and test with one subfolder a class"
    )
    return checked(name, classes, *parts, seen.hexdigest(), report, remedy)


def named(path: object, size: object) -> str:
    """The data set of a notebook's parameters: without a path, the folder that `sample` writes."""
    if isinstance(size, bool) or not re.fullmatch(r"[0-9]{1,9}(\.0*)?", str(size)):
        raise Problem(f"size {size!r} is no whole number of pixels: use one such as 32")
    return f"folder:{str(path or sample()).removeprefix('folder:')}@{int(float(size))}"


# Which files


def listing(root: Path, report: Report | None = None) -> tuple[tuple[str, ...], list[Picture]]:
    """The classes, and every picture in the order of its sum."""
    report = report or Report()
    inside = subfolders(root, report)
    parts = parts_of(root, inside, report)
    classes = [class_folders(part, subfolders(part, report)) for part, _ in parts] or [class_folders(root, inside)]
    if odd := sorted(set(classes[0]) ^ set(classes[-1])):
        names = " and ".join(part.name for part, _ in parts)
        raise Problem(f"{root} has class {odd[0]!r} in one of {names} alone: give both the same classes")
    names = tuple(sorted(classes[0]))
    seen = {
        place(f) for top in [root, *(part for part, _ in parts), *chain(*(c.values() for c in classes))] for f in under(top)
    }
    found = []
    for (_, tests), folders in zip(parts or [(root, None)], classes, strict=True):
        for label, name in enumerate(names):
            for path in walk(folders[name], seen, report):
                try:
                    check(path, REMEDY)
                except Problem as problem:
                    report.fails(problem)
                    continue
                sha256 = digest(path)
                tested = int(sha256, 16) % 5 == 0 if tests is None else tests
                found.append(Picture(sha256, path, label, composed(path.relative_to(root).as_posix()), tested))
    return names, sorted(found)


def parts_of(root: Path, inside: list[Path], report: Report) -> list[tuple[Path, bool]]:
    """The folders of the two parts, and whether they test; none where the pictures' sums decide."""
    kinds = {f: part_of(f.name) for f in inside}
    train = [f for f in inside if kinds[f] == "train"]
    tests = sorted((f for f in inside if kinds[f] in TESTS), key=lambda f: TESTS.index(kinds[f]))
    if train and tests:
        if twice := train[1:] or [f for f in tests[1:] if kinds[f] == kinds[tests[0]]]:
            first = train[0] if train[1:] else tests[0]
            raise Problem(f"{root} has {first.name} and {twice[0].name}, which name the same part: put them together")
        for other in set(inside) - {train[0], tests[0]}:
            report.left[f"files in {other.name}, beside {train[0].name} and {tests[0].name}"] += count(other)
        return [(train[0], False), (tests[0], True)]
    if parts := train or tests:
        first, *others = [{f.name for f in subfolders(f, Report())} for f in parts[:1] + [f for f in inside if f != parts[0]]]
        if all(kinds.values()) or any(len(first & other) > 1 for other in others):
            raise Problem(
                f"{root} has {', '.join(f.name for f in inside)}, parts of a data set and not its classes, and none called "
                f"{'test' if train else 'train'}: name the two parts train and test, or give one alone, as in folder:{parts[0]}"
            )
    return []


def class_folders(root: Path, inside: list[Path]) -> dict[str, Path]:
    """The folders by the names of their classes."""
    if not 2 <= len(inside) <= CLASSES:
        raise Problem(
            f"{root} has {len(inside)} subfolders, where there should be one for each of 2 to {CLASSES} classes: "
            "put the pictures of each class into a folder of its name"
            + (f", or name the folder that has them, such as folder:{inside[0]}" if len(inside) == 1 else "")
        )
    found = {plain(f.name): f for f in inside}
    if len(found) < len(inside):
        raise Problem(f"{root} has two folders whose names differ in the form of an accent alone: put them together")
    return found


def walk(root: Path, seen: set[tuple[int, int]], report: Report, away: bool = False) -> Iterator[Path]:
    """Every picture beneath; where links lead, a folder that is read at its own place or was read before is not read again."""
    for path in subfolders(root, report, pictures := []):
        led = away or path.is_symlink()
        if led and place(path) in seen:
            report.left["links to a folder that is read already"] += 1
        else:
            seen.add(place(path))
            yield from walk(path, seen, report, led)
    yield from pictures


def subfolders(root: Path, report: Report, pictures: list[Path] | None = None) -> list[Path]:
    """The folders in a folder, by their names, and into the list its pictures; all else is counted."""
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        raise Problem(f"{root} cannot be listed ({error.strerror}): make it readable, or take it out") from None
    folders = []
    for entry in entries:
        ending, hidden = Path(entry.name).suffix.lower(), entry.name.startswith(".")
        if entry.is_dir():
            if hidden or entry.name.lower() in SYSTEM:
                report.left[f"files in {entry.name}"] += count(Path(entry.path))
            else:
                folders.append(Path(entry.path))
        elif hidden:  # such as ._NAME.jpg, in archives that a Mac has made
            report.left["files that are hidden"] += 1
        elif ending in UNREAD:
            report.left[f"pictures {ending}, which are not read (convert them to PNG or JPEG)"] += 1
        elif ending not in endings():
            report.left[f"files {ending}" if ending else "files without an ending"] += 1
        elif pictures is None:
            report.left["pictures outside of the classes' folders"] += 1
        else:
            pictures.append(Path(entry.path))
    return folders


def count(root: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(root))


def under(root: Path) -> list[Path]:
    """It and every folder beneath, without the links'."""
    return [Path(folder) for folder, _, _ in os.walk(root)]


def place(path: Path) -> tuple[int, int]:
    """What a folder and all links to it have in common."""
    return path.stat().st_dev, path.stat().st_ino


# Their pixels


def cached(
    root: Path, found: list[Picture], size: int, listing: str, report: Report
) -> tuple[UInt8[Tensor, "N 3 S S"], set[int]]:
    """The pictures' pixels, read from the file that an earlier call left, or made and left there; and which cannot be read."""
    own = hashlib.sha256(str(root.resolve()).encode(errors="surrogateescape")).hexdigest()[:12]
    where = folder() / "folders" / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', root.name)[:80]}-{size}-{own}.safetensors"
    told = {"listing": listing, "how": f"{HOW}, {size}"}
    if (kept := read_cache(where, told, len(found), size)) is None:
        images, aside = kept = decoded(root, found, size, report)
        try:
            where.parent.mkdir(parents=True, exist_ok=True)
            alone = where.with_name(f"{where.stem}-{os.getpid()}.safetensors")  # of two processes each writes its own
            told |= {"aside": (text := json.dumps(aside)), "sum": sum_of(images, text)}
            write(alone, save({"images": images}, told))
            os.replace(alone, where)
        except (OSError, Problem) as error:
            remedy = "set CSGLIB_DATA to a folder that can be written"
            warnings.warn(f"{root} will be decoded each time anew, since {short(str(error))}: {remedy}", stacklevel=3)
    images, aside = kept
    for words in aside["broken"].values():
        report.fails(Problem(words))
    report.noted["pictures of several frames, of which the first is read"] += aside["frames"]
    return images, {int(i) for i in aside["broken"]}


def decoded(root: Path, found: list[Picture], size: int, report: Report) -> tuple[UInt8[Tensor, "N 3 S S"], dict]:
    """The pixels, what is wrong with those that are left out, and how many have several frames."""
    images, broken, frames = torch.zeros((len(found), 3, size, size), dtype=torch.uint8), {}, 0

    def attempt(picture: Picture) -> tuple[np.ndarray, int] | Problem:
        try:
            return read_picture(picture.path, size)
        except Problem as problem:
            return problem

    hidden = bool(os.environ.get("TQDM_DISABLE"))
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")  # of metadata that nobody reads, and of pixels, which are bounded
        for i, made in enumerate(tqdm(pool.map(attempt, found), f"{root}", len(found), delay=1, disable=hidden)):
            if isinstance(made, Problem):
                broken[str(i)] = str(made)
                if not report.skip:  # do not read the rest first
                    pool.shutdown(cancel_futures=True)
                    report.fails(made)
            else:
                images[i] = torch.from_numpy(made[0])
                frames += made[1] > 1
    return images, {"broken": broken, "frames": frames}


def sum_of(images: UInt8[Tensor, "N 3 S S"], aside: str) -> str:
    seen = hashlib.sha256(images.numpy())
    seen.update(aside.encode())
    return seen.hexdigest()


def read_cache(path: Path, told: dict[str, str], n: int, size: int) -> tuple[UInt8[Tensor, "N 3 S S"], dict] | None:
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
    aside = stored.get("aside", "")
    return (images, json.loads(aside)) if fits and sum_of(images, aside) == stored.get("sum") else None


def read_picture(path: Path, size: int) -> tuple[np.ndarray, int]:
    """3 x size x size, uint8; and how many frames the file has."""
    picture = read(path, REMEDY, near=size)
    square = ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(square).transpose(2, 0, 1).copy(), picture.info["frames"]


def sample(name: str = "sample-pictures", classes: int = 5) -> str:
    """Write the first classes of the embedded sample as PNG files, beside the downloads: a folder for first steps.

    Returns its name, for folder:NAME; it appears whole or not at all, and one that is there is left as it is.
    """
    target = folder() / name
    if not target.exists():
        mini = data.load("cifar10-mini")
        try:
            folder().mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Problem(f"{folder()} cannot be made ({error.strerror}): set CSGLIB_DATA to a folder of yours") from None
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
