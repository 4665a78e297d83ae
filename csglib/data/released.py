"""Data sets as they were released: CIFAR-10, CIFAR-100 and STL-10, which are binary files, and where Tiny ImageNet is.

- `cifar10`: 50,000 + 10,000 images of 32 x 32 pixels, 10 classes
- `cifar100`: 50,000 + 10,000 images of 32 x 32 pixels, 100 classes, the fine ones
- `stl10`: 5,000 + 8,000 images of 96 x 96 pixels, 10 classes; its 100,000 images without a label are not read

A size may follow, as in `stl10@224`: all images are then brought to it.  Every file is compared with its digest, and none
holds a pickle.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from jaxtyping import UInt8

from csglib import memory
from csglib.data import download
from csglib.data.cifar10 import CLASSES
from csglib.data.download import ALGORITHMS, Archive
from csglib.data.images import Dataset, Images
from csglib.data.pictures import SIZES, plain
from csglib.errors import Damaged, Missing, Problem, check_name
from csglib.files import KIB, MIB, read_text, short
from csglib.paths import digest, folder

Pixels = UInt8[np.ndarray, "N 3 S S"]
Labels = UInt8[np.ndarray, " n"]  # n is N, which is checked where both are known


# How their bytes are read


def records(paths: list[Path], side: int, label_bytes: int) -> tuple[Pixels, Labels]:
    """Files of records: label bytes, of which the last is taken, then the planes red, green and blue, row by row."""
    found = np.concatenate([np.fromfile(p, np.uint8).reshape(-1, label_bytes + 3 * side * side) for p in paths])
    return found[:, label_bytes:].reshape(-1, 3, side, side), found[:, label_bytes - 1]


def columns(paths: list[Path], side: int) -> tuple[Pixels, Labels]:
    """A file of planes, column by column, and one of labels that count from 1; a label of 0 becomes 255."""
    pixels, labels = (np.fromfile(path, np.uint8) for path in paths)
    return pixels.reshape(-1, 3, side, side).transpose(0, 1, 3, 2), labels - np.uint8(1)


# What was released


@dataclass(frozen=True)
class Release:
    """A published archive: where it is, and what has to be in it."""

    called: str
    folder: str  # of the archive, and beside other downloads
    archive: Archive
    terms: str  # what whoever takes it agrees to, or is asked for
    needs: tuple[str, ...] = ()  # files and folders, where no digests of files are known


@dataclass(frozen=True)
class Binary(Release):
    """One whose files are arrays of bytes."""

    train: dict[str, str] = dataclasses.field(default_factory=dict)  # files -> their digests
    test: dict[str, str] = dataclasses.field(default_factory=dict)
    classes: int = 10
    names: str | tuple[str, ...] = ()  # of the classes, or the file that lists them
    side: int = 32
    images: int = 60_000  # to train and to test
    read: Callable[[list[Path], int], tuple[Pixels, Labels]] = partial(records, label_bytes=1)

    @property
    def sums(self) -> dict[str, str]:
        return self.train | self.test

    @property
    def files(self) -> list[str]:
        """All that are read."""
        return [*self.sums, *([self.names] if isinstance(self.names, str) else [])]


CIFAR10 = Binary(  # addresses and the archives' md5: the page https://www.cs.toronto.edu/~kriz/cifar.html
    called="CIFAR-10",
    folder="cifar-10-batches-bin",
    archive=Archive(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", 170_052_171, 184_380_000
    ),
    terms="its author asks to cite A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
    train={
        "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
        "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    },
    test={"test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d"},
    names=CLASSES,
)
# The archive's size: tensorflow/datasets, url_checksums/cifar100.txt.  The files' sha1: MXNet, gluon/data/vision/datasets.py,
# whose sums of CIFAR-10's six files are those of the files with the md5 above.
CIFAR100 = Binary(
    called="CIFAR-100",
    folder="cifar-100-binary",
    archive=Archive(
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", 168_513_733, 184_442_000
    ),
    terms=CIFAR10.terms,
    train={"train.bin": "e207cd2e05b73b1393c74c7f5e7bea451d63e08e"},
    test={"test.bin": "8fb6623e830365ff53cf14adec797474f5478006"},
    classes=100,
    names="fine_label_names.txt",
    read=partial(records, label_bytes=2),
)
STL10 = Binary(  # torchvision.datasets.STL10; the archive's size: tensorflow/datasets, url_checksums/stl10.txt
    called="STL-10",
    folder="stl10_binary",
    archive=Archive(
        "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
        "91f7769df0f17e558f3565bffb0c7dfb",
        2_640_397_119,
        359_438_000,
    ),
    terms="its images are ImageNet's, and its authors ask to cite A. Coates, H. Lee and A. Ng, AISTATS 2011",
    train={"train_X.bin": "918c2871b30a85fa023e0c44e0bee87f", "train_y.bin": "5a34089d4802c674881badbb80307741"},
    test={"test_X.bin": "7f263ba9f9e0b06b93213547f721ac82", "test_y.bin": "36f9794fa4beb8a2c72628de14fa638e"},
    names="class_names.txt",
    side=96,
    images=13_000,
    read=columns,
)
# Address and md5: Avalanche, avalanche/benchmarks/datasets/tiny_imagenet; with that md5 others name this size.
TINY = Release(
    called="Tiny ImageNet",
    folder="tiny-imagenet-200",
    archive=Archive(
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de", 248_100_043, 500_000_000
    ),
    terms="its pictures are ImageNet's, for research and teaching without profit, and not to be passed on",
    needs=("wnids.txt", "words.txt", "train", "val/images", "val/val_annotations.txt"),
)
RELEASES: dict[str, Release] = {"cifar10": CIFAR10, "cifar100": CIFAR100, "stl10": STL10, "tiny-imagenet": TINY}


# Got, verified, loaded


def get(name: str, root: Path | None = None) -> Path:
    """Download, check and unpack a release; its folder appears whole or not at all, and one that is there is only verified.

    A download that broke goes on where it broke, in the same call or in the next.

    Args:
        name: cifar10, 162 MiB; cifar100, 161; stl10, 2,518, of which 343 are kept; tiny-imagenet, 237.
        root: Where its folder will be.  Default: `csglib.paths.folder()`.

    Raises:
        Problem: Where the address cannot be read, what it sends is not the release, or the disk is full.
    """
    check_name("release", name, RELEASES)
    release, root = RELEASES[name], root or folder()
    target = root / release.folder
    if target.exists():
        verify(name, root)
        return target
    remedy = f"put the release's files into {target} by hand"
    with download.fetched(release.archive, release.called, root / f"{release.folder}.part", remedy) as archive:
        unpacked = archive.parent / "unpacked"
        names = release.files if isinstance(release, Binary) else ()
        download.unpack(archive, unpacked, {PurePosixPath(release.folder, file) for file in names})
        check(release, unpacked / release.folder, f"try again, or {remedy}")
        os.rename(unpacked / release.folder, target)
    return target


def verify(name: str, root: Path | None = None) -> str:
    """Compare every file with its digest; return one sha256 over the sums, the digest of the set.

    Of tiny-imagenet, whose files have no published digests, only that its parts are there: the empty string.

    Raises:
        Problem: Where a file is missing or altered.
    """
    check_name("release", name, RELEASES)
    where = (root or folder()) / RELEASES[name].folder
    return check(RELEASES[name], where, remedy_of(name, where))


def check(release: Release, where: Path, remedy: str) -> str:
    """The digest of a release's files, as `verify` says.  Raises Missing or Damaged, with the remedy."""
    known = release.sums if isinstance(release, Binary) else {}
    for file in release.files if isinstance(release, Binary) else release.needs:
        path, told = where / file, known.get(file)
        if not path.exists():
            raise Missing(f"{release.called} is not complete in {where.parent}: {file} is missing; {remedy}")
        large = path.stat().st_size > release.archive.room  # no file of it is: it need not be read
        if told and (not path.is_file() or large or digest(path, ALGORITHMS[len(told)]) != told):
            raise Damaged(f"{path} differs from the official release: {remedy}")
    if not isinstance(release, Binary):
        return ""
    sums = list(known.values())
    if isinstance(release.names, str):  # nobody has published its digest
        read_names(release, where, remedy)
        sums.append(digest(where / release.names))
    return hashlib.sha256("".join(sums).encode()).hexdigest()


def remedy_of(name: str, where: Path) -> str:
    told = f"run `csglib data get {name}`, or set CSGLIB_DATA to the folder that holds {where.name}"
    return f"remove {where}, then {told}" if where.exists() else told


def read_names(release: Binary, where: Path, remedy: str) -> tuple[str, ...]:
    """The names of its classes.  Raises Damaged where its list names another number of them, or one twice."""
    if not isinstance(release.names, str):
        return release.names
    path = where / release.names
    found = tuple(plain(line.strip()) for line in read_text(path, remedy, 16 * KIB).splitlines() if line.strip())
    if len(found) != release.classes or len(set(found)) < len(found):
        raise Damaged(f"{path} should name {release.classes} classes, one per line, and names {len(set(found))}: {remedy}")
    return found


def sized(name: str) -> bool:
    """Whether a name is that of a binary release with a size behind it."""
    called, at, _ = name.partition("@")
    return bool(at) and isinstance(RELEASES.get(called), Binary)


def side_of(name: str, size: str) -> int:
    """The side that is asked for; Problem where it is none, or all images of that size are more than memory holds."""
    if not re.fullmatch(r"[0-9]{1,9}", size) or not SIZES[0] <= int(size) <= SIZES[1]:
        raise Problem(f"{name} asks for a size of {short(size)}: choose one from {SIZES[0]} to {SIZES[1]}, as in stl10@224")
    room = 3 * int(size) ** 2 * RELEASES[name.partition("@")[0]].images
    if room > (there := memory.total()):
        raise Problem(f"{name} takes {room / MIB:,.0f} MiB, and this machine has {there / MIB:,.0f}: choose a smaller size")
    return int(size)


def load(name: str) -> Dataset:
    """A binary release, verified.

    Raises Problem where a file is missing or altered or has a label of no class, or the size behind the name cannot be.
    """
    called, _, size = name.partition("@")
    side = side_of(name, size) if size else RELEASES[called].side
    checked, release = verify(called), RELEASES[called]
    where = folder() / release.folder
    remedy = remedy_of(called, where)

    def read(files: dict[str, str]) -> Images:
        paths = [where / file for file in files]
        try:
            pixels, labels = release.read(paths, release.side)
        except ValueError as error:  # numpy's, where the bytes are no whole number of images
            raise Damaged(f"{paths[0]} holds no whole number of images ({error}): {remedy}") from None
        if (outside := int((labels >= release.classes).sum())) or len(pixels) != len(labels):
            told = (
                f"{len(labels):,} labels for {len(pixels):,} images, {outside:,} of them of none of {release.classes} classes"
            )
            raise Damaged(f"{paths[-1]} has {told}: {remedy}")
        images = torch.from_numpy(np.ascontiguousarray(pixels))
        if side != release.side:
            from torchvision.transforms.v2.functional import resize  # takes a second to import

            images = torch.cat([resize(part, [side, side]) for part in images.split(1000)])  # bilinear, antialiased
        return Images(images, torch.from_numpy(labels.astype(np.int64)))

    return Dataset(name, read_names(release, where, remedy), read(release.train), read(release.test), checked)
