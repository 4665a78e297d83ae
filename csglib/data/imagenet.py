"""ImageNet and Tiny ImageNet as they are released: a folder for the pictures of each WordNet number.

- `imagenet:PATH@224`: `train/WNID/*.JPEG` and `val/WNID/*.JPEG`, or `val/*.JPEG` beside the devkit, which says what they show
- `tiny-imagenet@64`: tiny-imagenet-200 beside the downloads: train/WNID/images, val/images and val/val_annotations.txt
- `tiny-imagenet@20classes`: of all classes, in the order of their numbers, 20 at equal distances

Both parts are in the order of the sha256 of the pictures' names, which is random, so that a recipe's `holdout` takes some of
every class.  The digest of the data covers names and lengths, which takes seconds where 150 GB of contents would take many
minutes: a picture that is missing, new, renamed or of another length is noticed.  Other contents of the same length are
noticed by `csglib data verify`, which reads every picture and remembers its sum.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from csglib.data.decoded import kept
from csglib.data.images import Dataset, Images, Pictures
from csglib.data.pictures import Asked, Report, asked, endings, plain
from csglib.data.released import TINY
from csglib.data.streamed import AUTO, Crop, Reading, Streamed
from csglib.errors import Damaged, Missing, Problem
from csglib.files import MIB, apart, check_size, read_text, short

DEVKIT = Path("ILSVRC2012_devkit_t12") / "data"
WORDS = ("words.txt", "LOC_synset_mapping.txt")  # Tiny ImageNet's, and that of ImageNet as Kaggle has it


@dataclass(frozen=True)
class Listed:
    """One part: for each picture its name beneath the root, its length in bytes and its class's WordNet number."""

    names: list[str]
    bytes: list[int]
    wnids: list[str]


def load(name: str, crop: Crop = "border", reading: Reading = AUTO) -> Dataset:
    """The data set of a name `imagenet:PATH`; raises Problem, with the remedy, where something of it is not as released."""
    wanted = asked(name, size=224)
    root = wanted.root
    train = in_folders(root / "train", root)
    wnids = sorted(set(train.wnids))
    inside = sorted(f.name for f in os.scandir(root / "val") if f.is_dir()) if (root / "val").is_dir() else []
    test, words = (in_folders(root / "val", root), {}) if inside else from_devkit(root)
    return dataset(name, wanted, (train, test), titles(wnids, words_of(root) or words), crop, reading)


def load_tiny(name: str, crop: Crop = "border", reading: Reading = AUTO) -> Dataset:
    """The data set of a name `tiny-imagenet`, of its release's pictures."""
    wanted = asked(name.replace("tiny-imagenet", f"tiny-imagenet:{TINY.folder}", 1), size=64)
    root = wanted.root
    wnids = read_text(root / "wnids.txt", "restore the release's file").split()
    train = in_folders(root / "train", root, inside="images")
    if odd := sorted(set(wnids) ^ set(train.wnids)):
        raise Damaged(f"{root} has {odd[0]} in one of wnids.txt and train alone: restore the release")
    parts = train, annotated(root, set(wnids))
    return dataset(name, wanted, parts, titles(sorted(wnids), words_of(root)), crop, reading)


# What lies where


def in_folders(part: Path, root: Path, inside: str = "") -> Listed:
    """The pictures of a folder with one subfolder per class."""
    if not part.is_dir():
        raise Missing(f"there is no folder {part}: {root.name} needs train and val, with a subfolder per class")
    found = Listed([], [], [])
    for wnid in sorted(f.name for f in os.scandir(part) if f.is_dir() and not f.name.startswith(".")):
        add(found, root, part / wnid / inside, lambda _, wnid=wnid: wnid)
    if not found.names:
        raise Missing(f"{part} has no picture in a subfolder of its class: unpack the release into {root}")
    return found


def add(found: Listed, root: Path, folder: Path, wnid_of) -> None:
    """The pictures that lie in a folder, in the order of their names."""
    if not folder.is_dir():
        raise Missing(f"there is no folder {folder}: restore it, or take its class out of both parts")
    beneath = folder.relative_to(root).as_posix()
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if not entry.name.startswith(".") and Path(entry.name).suffix.lower() in endings():
            found.names.append(f"{beneath}/{entry.name}")
            found.bytes.append(size_of(entry))
            found.wnids.append(wnid_of(entry.name))


def size_of(entry: os.DirEntry) -> int:
    try:
        return entry.stat().st_size
    except OSError as error:
        raise Missing(f"{entry.path} cannot be found ({error.strerror}): restore it, or take it out") from None


def annotated(root: Path, wnids: set[str]) -> Listed:
    """Tiny ImageNet's validation set: each line of its list begins with a picture's name and its class."""
    source = root / "val" / "val_annotations.txt"
    lines = [line.split("\t") for line in read_text(source, "restore the release's file").splitlines() if line.strip()]
    if odd := [line for line in lines if len(line) < 2 or line[1] not in wnids]:
        raise Damaged(f"{source} has a line {short(odd[0][0])!r} without a class of wnids.txt: restore the release's file")
    return labelled(root, root / "val" / "images", source, dict(line[:2] for line in lines))


def labelled(root: Path, folder: Path, source: Path, wnid_of: dict[str, str]) -> Listed:
    """The pictures of a folder whose classes stand in a list; both must name the same."""
    found = Listed([], [], [])
    add(found, root, folder, lambda name: wnid_of.get(name, ""))
    there = {name.rsplit("/", 1)[1] for name in found.names}
    if absent := sorted(set(wnid_of) - there):
        raise Missing(f"{source} names {absent[0]}, which is not in {folder}: restore it, or take out its line")
    if unnamed := sorted(there - set(wnid_of)):
        raise Problem(f"{folder / unnamed[0]} is not named in {source}: take it out, or restore the list")
    return found


def from_devkit(root: Path) -> tuple[Listed, dict[str, str]]:
    """ImageNet's validation set as released, one folder of pictures, and the words for the classes: both by the devkit's lists.

    The i-th line of the list is the number of the i-th picture's class, which meta.mat translates.
    """
    meta, truth = root / DEVKIT / "meta.mat", root / DEVKIT / "ILSVRC2012_validation_ground_truth.txt"
    if not truth.is_file() or not meta.is_file():
        raise Missing(
            f"{root / 'val'} has no subfolder per class, and {truth.parent} lacks the devkit's lists, which say what the "
            "pictures show: unpack ILSVRC2012_devkit_t12.tar.gz there, or sort them into folders of their WordNet numbers"
        )
    check_size(meta, 64 * MIB, "restore it from the devkit")
    synsets = apart(read_meta, meta, "restore it from the devkit")
    lines = read_text(truth, "restore it from the devkit").split()
    if unknown := [line for line in lines if line not in synsets]:
        raise Damaged(f"{truth} names class {short(unknown[0])!r}, which meta.mat does not have: restore both from the devkit")
    folder = root / "val"
    pictures = sorted(e.name for e in os.scandir(folder) if Path(e.name).suffix.lower() in endings()) if folder.is_dir() else []
    if len(pictures) != len(lines):
        raise Damaged(f"{folder} has {len(pictures)} pictures, and {truth} lists {len(lines)}: unpack the whole validation set")
    listed = dict(zip(pictures, (synsets[line][0] for line in lines), strict=True))
    return labelled(root, folder, truth, listed), dict(synsets.values())


def read_meta(path: Path) -> dict[str, tuple[str, str]]:
    """The number of each leaf of the devkit's tree, as text -> its WordNet number and its words.  As torchvision reads it."""
    from scipy.io import loadmat

    synsets = np.atleast_1d(loadmat(path, squeeze_me=True)["synsets"])
    return {str(int(s[0])): (str(s[1]), str(s[2])) for s in synsets if int(s[4]) == 0}  # 4: how many children


def words_of(root: Path) -> dict[str, str]:
    """What the WordNet numbers mean, where a file of the release says it."""
    for name in WORDS:
        if (path := root / name).is_file():
            lines = read_text(path, "restore it, or remove it").splitlines()
            return {wnid: words for wnid, _, words in (line.replace("\t", " ", 1).partition(" ") for line in lines)}
    return {}


# The data set


def dataset(
    name: str, wanted: Asked, both: tuple[Listed, Listed], called: dict[str, str], crop: Crop, reading: Reading
) -> Dataset:
    """Both parts, to train and to test, of all classes or some, in memory or in their files; `called` names all classes."""
    root, size, wnids = wanted.root, wanted.size, list(called)
    for part, other, where in ((*both, "val"), (*both[::-1], "train")):
        if odd := sorted(set(part.wnids) - set(other.wnids)):
            raise Missing(f"{root} has no picture of class {odd[0]} in {where}: restore them, or take its pictures out of both")
    if (n := wanted.subset) is not None:
        if not 2 <= n <= len(wnids):
            raise Problem(f"{name} asks for {n} classes: choose 2 to {len(wnids)}")
        wnids = [wnids[i * len(wnids) // n] for i in range(n)]
    number = {wnid: i for i, wnid in enumerate(wnids)}
    seen, parts = hashlib.sha256(), []
    for part in both:
        rows = [row for row in zip(part.names, part.bytes, part.wnids, strict=True) if row[2] in number]
        for path, length, _ in sorted(rows):
            seen.update(f"{length} {path}\n".encode(errors="surrogateescape"))
        parts.append(sorted(rows, key=lambda row: hashlib.sha256(row[0].encode(errors="surrogateescape")).digest()))
    digest, rows = seen.hexdigest(), parts[0] + parts[1]
    labels = torch.tensor([number[wnid] for *_, wnid in rows])
    if reading.streams(name, len(rows), size, crop):
        paths = np.array([os.fsencode(path) for path, *_ in rows])
        pictures: Pictures = Streamed(root, paths, labels, size, crop, reading.workers)
    else:
        pictures = Images(kept(root, [root / path for path, *_ in rows], size, digest, Report())[0], labels)
    n = len(parts[0])
    return Dataset(name, tuple(called[wnid] for wnid in wnids), pictures.take(slice(n)), pictures.take(slice(n, None)), digest)


def titles(wnids: Iterable[str], words: dict[str, str]) -> dict[str, str]:
    """The first word for each class, with its number where two share one; the number alone where no file says more."""
    first = {wnid: words.get(wnid, wnid).split(",")[0].strip()[:60] or wnid for wnid in wnids}
    often = Counter(first.values())
    return {wnid: plain(title if often[title] == 1 else f"{title} {wnid}") for wnid, title in first.items()}
