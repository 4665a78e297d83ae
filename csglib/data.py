"""The data sets as uint8 tensors that live on the device; augmented there, verified by digest, read without pickle.

`cifar10` is the official binary release; `cifar10-mini` is the sample of 2,000 + 1,000 of its images in this repository;
`voc:PATH` are the objects of a folder in PASCAL VOC's layout, one an image (objects.py); `folder:PATH` is any tree of pictures
with one subfolder a class (folders.py); pictures.py says what may follow a PATH.
"""

import dataclasses
import hashlib
import importlib
import os
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int, UInt8
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from csglib import Problem

HERE = Path(__file__).resolve().parent
CLONE = not (HERE / "root").exists()  # else a wheel, whose csglib/root carries what it needs of the repository
ROOT = HERE.parent if CLONE else HERE / "root"
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


@dataclass(frozen=True)
class Images:
    """N pictures and their classes, on one device."""

    images: UInt8[Tensor, "N 3 H W"]  # red, green, blue
    labels: Int[Tensor, " N"]  # the numbers of their classes
    groups: Int[Tensor, " N"] | None = None  # images of one group, a photograph or its copies, stay on one side of a split

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Images":
        return Images(self.images.to(device), self.labels.to(device), self.groups)

    def take(self, order: Int[Tensor, " n"] | slice) -> "Images":
        return Images(self.images[order], self.labels[order], None if self.groups is None else self.groups[order])


@dataclass(frozen=True)
class Dataset:
    """Pictures to train on and to test on, and what their classes are called."""

    name: str
    classes: tuple[str, ...]
    train: Images
    test: Images
    digest: str  # of the files that were read
    report: str = ""  # one line on what was left out of them

    def to(self, device: torch.device | str) -> "Dataset":
        return dataclasses.replace(self, train=self.train.to(device), test=self.test.to(device))


def load(name: str) -> Dataset:
    """A data set by name, its files verified.  Raises Problem where it is unknown, absent or altered."""
    if source := own(name):
        return importlib.import_module(source).load(name)
    if name not in DATASETS:
        refuse(name)
    return DATASETS[name]()


def own(name: str) -> str | None:
    """The module that reads pictures of one's own of this name."""
    return {"voc": "csglib.objects", "folder": "csglib.folders"}.get(name.partition(":")[0]) if ":" in name else None


def refuse(name: str, *more: str) -> None:
    there = f"; the folder of this name is folder:{name}" if os.path.isdir(os.path.expanduser(name)) else ""
    raise Problem(
        f"unknown dataset {name!r}: choose one of {', '.join([*DATASETS, *more])}, or folder:PATH, pictures of your own with "
        f"one subfolder a class, or voc:PATH, photographs with boxes{there}"
    )


def present(name: str) -> bool:
    """Whether pictures of one's own are there; other data sets can be fetched or say themselves what they lack."""
    if not own(name):
        return True
    from csglib.pictures import asked

    try:
        return bool(asked(name))
    except Problem:
        return False


def folder() -> Path:
    """Where downloads lie: the environment variable CSGLIB_DATA, or data/raw in the repository, or a cache without one."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "csglib"
    return Path(os.environ.get("CSGLIB_DATA") or (ROOT / "data" / "raw" if CLONE else cache))


def digest(path: Path, algorithm: str = "sha256") -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, algorithm).hexdigest()


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


DATASETS = {"cifar10": load_cifar10, "cifar10-mini": load_cifar10_mini}
EMBEDDED = {"cifar10": "cifar10-mini"}  # what the repository holds of a data set that has to be fetched


def get_cifar10(root: Path | None = None, url: str = CIFAR10_URL, md5: str = CIFAR10_MD5) -> Path:
    """Download, check and unpack the official release, 162 MiB; the folder appears whole or not at all.

    Raises Problem where the address cannot be read or what it gives is not the release.
    """
    root = root or folder()
    target = root / CIFAR10_FOLDER
    if target.exists():
        verify_cifar10(root)
        return target
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as tmp:
        archive = Path(tmp) / "cifar10.tar.gz"
        try:
            with urllib.request.urlopen(url, timeout=60) as source, archive.open("wb") as sink:
                size = int(source.headers.get("Content-Length") or 0) or None
                with tqdm.wrapattr(source, "read", total=size, desc="CIFAR-10") as stream:
                    while block := stream.read(1 << 20):
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
        verify_cifar10(Path(tmp))
        os.rename(Path(tmp) / CIFAR10_FOLDER, target)
    return target


def draw(data: Images, generator: torch.Generator) -> tuple[Int[Tensor, " N"], Int[Tensor, "2 N"], Bool[Tensor, " N"]]:
    """The order of an epoch's images, and the shift and the flip of the image at each place."""
    N, _, H, _ = data.images.shape
    order = torch.randperm(N, generator=generator)
    shift = torch.randint(0, 2 * (H // 8) + 1, (2, N), generator=generator)
    return order, shift, torch.rand(N, generator=generator) < 0.5


def batches(
    data: Images, size: int, generator: torch.Generator, part: slice = slice(None)
) -> Iterator[tuple[UInt8[Tensor, "B 3 H W"], Tensor]]:
    """One epoch of full batches in random order, each image cropped from a border of zeros and flipped at random.

    The border is an eighth of the height: 4 pixels of CIFAR's 32.

    All randomness comes from the generator, which lies on the CPU so that the order is the same on every device; the
    incomplete last batch is left out, so that every step has the same shape.  `part` takes rows of every batch.
    """
    N, _, H, _ = data.images.shape
    order, shift, flip = (t.to(data.images.device) for t in draw(data, generator))
    for i in range(0, N - size + 1, size):
        rows = slice(i, i + size)
        index = order[rows][part]
        yield augment(data.images[index], *shift[:, rows][:, part], flip[rows][part], H // 8), data.labels[index]


def augment(
    images: UInt8[Tensor, "B 3 H W"], dy: Tensor, dx: Tensor, flip: Tensor, border: int = 4
) -> UInt8[Tensor, "B 3 H W"]:
    """Crop at (dy, dx) of each image's zero-padded border, then mirror where flip says so."""
    B, _, H, W = images.shape
    windows = F.pad(images, (border,) * 4).unfold(2, H, 1).unfold(3, W, 1)  # (B, 3, 9, 9, H, W), a view
    crops = windows[torch.arange(B, device=images.device), :, dy, dx]
    return torch.where(flip[:, None, None, None], crops.flip(3), crops)


def to_float(images: UInt8[Tensor, "B 3 H W"]) -> Tensor:
    """To [0, 1], channels last: the layout in which convolutions run fastest on CPUs and GPUs alike."""
    return images.to(memory_format=torch.channels_last).float().div_(255)
