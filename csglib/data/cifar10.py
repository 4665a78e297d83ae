"""The sample of 2,000 + 1,000 of CIFAR-10's images in this repository."""

import numpy as np
import torch
from PIL import Image

from csglib.data.images import Dataset, Images
from csglib.errors import Damaged, Missing
from csglib.paths import ROOT, digest

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MINI_SHA256 = "b3a53ce1e7098a3d1924b65adfbaf44a04e1c672bb615a3a7dbef629d1531e0a"  # of the sample's SHA256SUMS


def load_cifar10_mini() -> Dataset:
    """The embedded sample: the first 200 training and 100 test images of each class, as columns of tiles in lossless WebP."""
    where = ROOT / "data" / "cifar10-mini"
    sums = where / "SHA256SUMS"
    if not sums.is_file():
        raise Missing(f"the embedded sample is not in {where}: clone the whole repository, `git checkout data` restores it")
    if digest(sums) != MINI_SHA256:
        raise Damaged(f"{sums} was altered: `git checkout data/cifar10-mini` restores it")
    for line in sums.read_text().splitlines():
        sha256, name = line.split()
        path = where / name
        if not path.is_file() or digest(path) != sha256:
            raise Damaged(f"{path} is missing or altered: `git checkout data/cifar10-mini` restores it")

    def read(part: str) -> Images:
        tiles = np.asarray(Image.open(where / f"{part}.webp").convert("RGB"))
        images = tiles.reshape(500, 32, -1, 32, 3).transpose(2, 0, 4, 1, 3).reshape(-1, 3, 32, 32)  # N, 3, H, W
        labels = np.fromfile(where / f"{part}.labels", np.uint8)
        return Images(torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64)))

    return Dataset("cifar10-mini", CLASSES, read("train"), read("test"), MINI_SHA256)
