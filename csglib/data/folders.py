"""Image folders: a tree with one subfolder per class is a data set, `folder:PATH` (pictures.py says what may follow).

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
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from csglib import data
from csglib.data.decoded import REMEDY, kept
from csglib.data.images import Dataset, Images
from csglib.data.pictures import Report, asked, check, checked, composed, endings, part_of, plain
from csglib.data.streamed import AUTO, Crop, Reading, Streamed
from csglib.data.sums import sums
from csglib.errors import Problem
from csglib.paths import digest, folder

CLASSES = 1000
TESTS = ("test", "val", "dev", "eval", "holdout")  # the first that is there tests
SYSTEM = ("__macosx", "@eadir", "__pycache__", "$recycle.bin", "system volume information", "lost+found")  # no folders of ours
UNREAD = (".heic", ".heif", ".jxl", ".psd", ".svg", ".eps", ".dng", ".raw", ".cr2", ".nef", ".arw")  # of other pictures


class Picture(NamedTuple):
    sha256: str  # of the file
    path: Path
    label: int
    name: str  # beneath the root, with / between
    tests: bool


def load(name: str, crop: Crop = "border", reading: Reading = AUTO) -> Dataset:
    """The data set of a name `folder:PATH`: pictures of SIZE x SIZE pixels, classes by the sorted names of their folders.

    In memory copies of a picture are told by their pixels, else by their files, and the digest says which.  Raises Problem
    where the folder, a class or a picture is not what it should be, with its name and the remedy.
    """
    wanted = asked(name)
    root, size, report = wanted.root, wanted.size, Report(wanted.skip)

    def streams(pictures: int) -> bool:
        return reading.streams(name, pictures, size, crop)

    classes, found = listing(root, report, lambda paths: sums(root, paths) if streams(len(paths)) else each(paths))
    seen = hashlib.sha256()
    for p in sorted(found, key=lambda p: p.name):
        seen.update(f"{p.sha256} {p.name}\n".encode(errors="surrogateescape"))
    number = {sha256: i for i, sha256 in enumerate(dict.fromkeys(p.sha256 for p in found))}
    labels, groups = torch.tensor([p.label for p in found]), torch.tensor([number[p.sha256] for p in found])
    if streamed := streams(len(found)):
        if report.skip:
            raise Problem(
                f"{name} is read while it trains, and @skip would have to know before what cannot be read: leave @skip out, "
                "and take out what is named then; `csglib data verify` reads every picture"
            )
        seen.update(b"copies by files")
        paths, broken = np.array([os.fsencode(p.path.relative_to(root)) for p in found]), set()
        pictures = Streamed(root, paths, labels, size, crop, reading.workers, groups)
    else:
        images, broken = kept(root, [p.path for p in found], size, seen.hexdigest(), report)
        pictures = Images(images, labels, groups)
    sides = [[i for i, p in enumerate(found) if p.tests is tests and i not in broken] for tests in (False, True)]
    parts = [pictures.take(torch.tensor(side, dtype=torch.long)) for side in sides]
    own = any(part_of(p.name.split("/")[0]) for p in found)
    remedy = "add pictures to its folder, or take the folder out" + (
        "" if own else ", or lay out the two parts yourself, in folders train and test with one subfolder per class"
    )
    keys = [[found[i].sha256 for i in side] for side in sides] if streamed else None
    return checked(name, classes, *parts, seen.hexdigest(), report, remedy, keys)


def named(path: object, size: object) -> str:
    """The data set of a notebook's parameters: without a path, the folder that `sample` writes."""
    if isinstance(size, bool) or not re.fullmatch(r"[0-9]{1,9}(\.0*)?", str(size)):
        raise Problem(f"size {size!r} is no whole number of pixels: use one such as 32")
    return f"folder:{str(path or sample()).removeprefix('folder:')}@{int(float(size))}"


# Which files


def each(paths: Sequence[Path]) -> list[str]:
    """The sum of each file."""
    return [digest(path) for path in paths]


def listing(
    root: Path, report: Report | None = None, summed: Callable[[Sequence[Path]], list[str]] = each
) -> tuple[tuple[str, ...], list[Picture]]:
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
                    found.append((path, label, tests))
                except Problem as problem:
                    report.fails(problem)
    pictures = []
    for (path, label, tests), sha256 in zip(found, summed([path for path, *_ in found]), strict=True):
        tested = int(sha256, 16) % 5 == 0 if tests is None else tests
        pictures.append(Picture(sha256, path, label, composed(path.relative_to(root).as_posix()), tested))
    return names, sorted(pictures)


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
