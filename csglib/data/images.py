"""Images as uint8 tensors that stay on the device: batches in random order, augmented there."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int, UInt8
from torch import Tensor


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
