"""CIFAR-10: the official binary release, and the sample of 2,000 + 1,000 of its images in this repository."""

import hashlib
import os
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from csglib.data import download
from csglib.data.images import Dataset, Images
from csglib.errors import Problem
from csglib.paths import ROOT, digest, folder

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
CIFAR10_BYTES = 200_000_000  # more than the archive's 170 million; its files take 184 million
CIFAR10_FOLDER = "cifar-10-batches-bin"
CIFAR10_FILES = {  # md5 of the official files; each holds 10,000 records of one label byte and 3 x 32 x 32 pixels
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
MINI_SHA256 = "b3a53ce1e7098a3d1924b65adfbaf44a04e1c672bb615a3a7dbef629d1531e0a"  # of the sample's SHA256SUMS


def verify_cifar10(root: Path | None = None) -> str:
    """Compare the six files with their official md5 sums; return one sha256 over the sums, the digest of the set."""
    where = (root or folder()) / CIFAR10_FOLDER
    remedy = "run `csglib data get cifar10`, or set CSGLIB_DATA to the folder that holds " + CIFAR10_FOLDER
    if where.exists():
        remedy = f"remove {where}, then {remedy}"
    for name, md5 in CIFAR10_FILES.items():
        path = where / name
        if not path.is_file():
            raise Problem(f"CIFAR-10 is not complete in {where.parent}: {name} is missing; {remedy}")
        if path.stat().st_size > CIFAR10_BYTES or digest(path, "md5") != md5:
            raise Problem(f"{path} differs from the official release: {remedy}")
    return hashlib.sha256("".join(CIFAR10_FILES.values()).encode()).hexdigest()


def load_cifar10() -> Dataset:
    checked = verify_cifar10()
    where = folder() / CIFAR10_FOLDER

    def read(names: list[str]) -> Images:
        parts = [np.fromfile(where / n, np.uint8).reshape(-1, 1 + 3072) for n in names]
        images = np.concatenate([records[:, 1:] for records in parts])
        labels = np.concatenate([records[:, 0] for records in parts]).astype(np.int64)
        return Images(torch.from_numpy(images.reshape(-1, 3, 32, 32)), torch.from_numpy(labels))

    *train, test = CIFAR10_FILES
    return Dataset("cifar10", CLASSES, read(train), read([test]), checked)


def load_cifar10_mini() -> Dataset:
    """The embedded sample: the first 200 training and 100 test images of each class, as columns of tiles in lossless WebP."""
    where = ROOT / "data" / "cifar10-mini"
    sums = where / "SHA256SUMS"
    if not sums.is_file():
        raise Problem(f"the embedded sample is not in {where}: clone the whole repository, `git checkout data` restores it")
    if digest(sums) != MINI_SHA256:
        raise Problem(f"{sums} was altered: `git checkout data/cifar10-mini` restores it")
    for line in sums.read_text().splitlines():
        sha256, name = line.split()
        path = where / name
        if not path.is_file() or digest(path) != sha256:
            raise Problem(f"{path} is missing or altered: `git checkout data/cifar10-mini` restores it")

    def read(part: str) -> Images:
        tiles = np.asarray(Image.open(where / f"{part}.webp").convert("RGB"))
        images = tiles.reshape(500, 32, -1, 32, 3).transpose(2, 0, 4, 1, 3).reshape(-1, 3, 32, 32)  # N, 3, H, W
        labels = np.fromfile(where / f"{part}.labels", np.uint8)
        return Images(torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64)))

    return Dataset("cifar10-mini", CLASSES, read("train"), read("test"), MINI_SHA256)


def get_cifar10(root: Path | None = None, url: str = CIFAR10_URL, md5: str = CIFAR10_MD5) -> Path:
    """Download, check and unpack the official release, 162 MiB; the folder appears whole or not at all.

    Raises Problem where the address cannot be read or what it gives is not the release.
    """
    root = root or folder()
    target = root / CIFAR10_FOLDER
    if target.exists():
        verify_cifar10(root)
        return target
    with download.beside(root) as tmp:
        archive = tmp / "cifar10.tar.gz"
        try:
            with download.stream(url, "CIFAR-10") as source, archive.open("wb") as sink:
                while block := source.read(1 << 20):
                    if sink.tell() > CIFAR10_BYTES:
                        raise OSError("it is larger than the release")
                    sink.write(block)
        except OSError as error:
            raise Problem(
                f"could not download {url} ({error}): try again, or put the release's files into {target} by hand"
            ) from None
        if digest(archive, "md5") != md5:
            raise Problem(f"the archive from {url} is not the official release (its md5 differs): try again")
        try:
            with tarfile.open(archive) as tar:
                if sum(member.size for member in tar) > 2 * CIFAR10_BYTES:
                    raise tarfile.TarError("it unpacks to more than the release")
                tar.extractall(tmp, filter="data")  # refuses paths that leave the folder
        except tarfile.TarError as error:
            raise Problem(f"the archive from {url} cannot be unpacked ({error}): try again") from None
        verify_cifar10(tmp)
        os.rename(tmp / CIFAR10_FOLDER, target)
    return target
