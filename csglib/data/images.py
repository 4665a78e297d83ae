"""Pictures and their classes, in memory; batches of them, or of pictures in files, in random order, augmented on the device."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int, UInt8
from torch import Tensor


@runtime_checkable  # the tests check annotations
class Pictures(Protocol):
    """What a training asks of pictures, wherever they lie: `Images` are in memory, `Streamed` in files."""

    labels: Int[Tensor, " N"]  # the numbers of their classes, on the device
    groups: Int[Tensor, " N"] | None  # images of one group, a photograph or its copies, stay on one side of a split

    @property
    def size(self) -> int: ...  # height in pixels

    @property
    def border(self) -> int: ...  # of zeros around a picture, from which a crop may take

    @property
    def crop(self) -> str: ...  # border or resized: how a training picture is cropped

    @property
    def device(self) -> torch.device: ...

    @property
    def where(self) -> str: ...  # in words

    def __len__(self) -> int: ...

    def to(self, device: torch.device | str) -> "Pictures": ...

    def take(self, order: Int[Tensor, " n"] | slice) -> "Pictures": ...

    def first(self, n: int) -> UInt8[Tensor, "n 3 H W"]: ...

    def read(self, chunks: Sequence[Tensor], seeds: Int[Tensor, " N"] | None = None) -> Iterator[Tensor]: ...


@dataclass(frozen=True)
class Images:
    """N pictures and their classes, in the memory of one device."""

    images: UInt8[Tensor, "N 3 H W"]  # red, green, blue
    labels: Int[Tensor, " N"]
    groups: Int[Tensor, " N"] | None = None

    crop = "border"
    where = "held in memory"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> int:
        return self.images.shape[2]

    @property
    def border(self) -> int:
        return self.size // 8  # 4 pixels of CIFAR's 32

    @property
    def device(self) -> torch.device:
        return self.images.device

    def first(self, n: int) -> UInt8[Tensor, "n 3 H W"]:
        return self.images[:n]

    def read(self, chunks: Sequence[Tensor], seeds: Int[Tensor, " N"] | None = None) -> Iterator[Tensor]:
        """The pictures of one chunk of places after another."""
        for chunk in torch.cat(list(chunks)).to(self.device).split([len(chunk) for chunk in chunks]):
            yield self.images[chunk]

    def to(self, device: torch.device | str) -> "Images":
        return Images(self.images.to(device), self.labels.to(device), self.groups)

    def take(self, order: Int[Tensor, " n"] | slice) -> "Images":
        return Images(self.images[order], self.labels[order], None if self.groups is None else self.groups[order])


@dataclass(frozen=True)
class Dataset:
    """Pictures to train on and to test on, and what their classes are called."""

    name: str
    classes: tuple[str, ...]
    train: Pictures
    test: Pictures
    digest: str  # of the files that were read
    report: str = ""  # one line on what was left out of them

    def to(self, device: torch.device | str) -> "Dataset":
        return dataclasses.replace(self, train=self.train.to(device), test=self.test.to(device))


def draw(
    data: Pictures, generator: torch.Generator
) -> tuple[Int[Tensor, " N"], Int[Tensor, "2 N"], Bool[Tensor, " N"], Int[Tensor, " N"] | None]:
    """The order of an epoch, the shift and the flip of the image at each place; each image's seed for resized crops."""
    N = len(data)
    order = torch.randperm(N, generator=generator)
    shift = torch.randint(0, 2 * data.border + 1, (2, N), generator=generator)
    flip = torch.rand(N, generator=generator) < 0.5
    return order, shift, flip, torch.randint(2**62, (N,), generator=generator) if data.crop == "resized" else None


def batches(
    data: Pictures, size: int, generator: torch.Generator, part: slice = slice(None)
) -> Iterator[tuple[UInt8[Tensor, "B 3 H W"], Tensor]]:
    """One epoch of full batches in random order, each image cropped and flipped at random.

    A crop is one of a border of zeros, an eighth of the height: 4 pixels of CIFAR's 32.  Where the recipe says resized, it is
    one of the file's own picture instead.

    All randomness comes from the generator, which lies on the CPU so that the order is the same on every device, from memory
    and from files; the incomplete last batch is left out, so that every step has the same shape.  `part` takes rows of every
    batch.
    """
    order, shift, flip, seeds = draw(data, generator)
    rows = [slice(i, i + size) for i in range(0, len(data) - size + 1, size)]
    if not rows:
        return
    labels, shift, flip = data.labels[order.to(data.device)], shift.to(data.device), flip.to(data.device)
    for r, images in zip(rows, data.read([order[r][part] for r in rows], seeds), strict=True):
        yield augment(images, *shift[:, r][:, part], flip[r][part], data.border), labels[r][part]


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
