"""A network split where the gate sits: `features` gives maps (N, K, H, W), `head` is linear on their spatial mean.

Images enter as floats in [0, 1]; normalisation is the network's first step, so that attacks and saliency work in pixels.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from csglib import files
from csglib.errors import Problem

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)  # of the training images, channel by channel, in [0, 1]
CIFAR10_STD = (0.2470, 0.2435, 0.2616)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Split(nn.Module):
    """A classifier cut in two: normalisation and `features` before the gate, pooling and a linear `head` after it."""

    def __init__(self, features: nn.Module, head: nn.Linear, mean=CIFAR10_MEAN, std=CIFAR10_STD):
        super().__init__()
        self.features, self.head = features, head
        self.mask = nn.Identity()  # ICNN's spatial mask takes this place
        self.normalises = mean is not None  # else the loader does
        mean, std = ((0.0,) * 3, (1.0,) * 3) if mean is None else (mean, std)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    @property
    def num_filters(self) -> int:
        """K."""
        return self.head.in_features

    @property
    def num_classes(self) -> int:
        """C."""
        return self.head.out_features

    def train(self, mode: bool = True) -> "Split":
        """A frozen layer keeps its statistics: its batch normalisation stays in eval mode."""
        super().train(mode)
        for m in self.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.affine and not m.weight.requires_grad:
                m.eval()
        return self

    def maps(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N K h w"]:
        """The layer's maps of images in [0, 1], or as the loader normalised them."""
        return self.features((images - self.mean) / self.std)

    def pooled(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N K"]:
        """Spatial mean of each filter's map.  Gating commutes with it, so the gate multiplies these N x K numbers."""
        return self.mask(self.maps(images)).mean((2, 3))

    def forward(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N C"]:
        """Logits of the standard path."""
        return self.head(self.pooled(images))

    def gated(self, images: Float[Tensor, "N 3 H W"], gate: nn.Module, labels: Int[Tensor, " N"]) -> Float[Tensor, "N C"]:
        """Logits of the gated path: each image's features times its label's row; gating the maps first gives the same."""
        return self.head(gate(self.pooled(images), labels))


@contextmanager
def differentiable(net: nn.Module) -> Iterator[None]:
    """Eval mode and gradients, whatever the caller has set; afterwards each module is in the mode that it was in."""
    modes = {m: m.training for m in net.modules()}
    net.eval()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for m, mode in modes.items():
            m.training = mode


@torch.no_grad()
def check_fits(net: Split, name: str, images: UInt8[Tensor, "N 3 H W"]) -> None:
    """Refuse pictures of a size that the network does not take, before a training starts."""
    modes = {m: m.training for m in net.modules()}
    try:
        net.eval()(images[:1].float() / 255)
    except (RuntimeError, AssertionError, ValueError) as error:
        height, width = images.shape[2:]
        raise Problem(
            f"{name} does not take pictures of {height} x {width} pixels ({files.short(str(error))}): choose another size, as "
            "folder:PATH@224 does, or another net"
        ) from None
    finally:
        for m, mode in modes.items():
            m.training = mode


def freeze(net: Split, thaw: str) -> None:
    """Let only the layers of `features` learn whose names begin with one of these words, and the head; all if it is empty."""
    if not thaw:
        return
    words = tuple(word.strip() for word in thaw.split(","))
    known = [name for name, _ in net.features.named_parameters()]
    for word in words:
        if not any(name.startswith(word) for name in known):
            layers = dict.fromkeys(".".join(name.split(".")[:2]) for name in known)
            raise Problem(f"no layer to thaw begins with {word!r}: the network has {', '.join(layers)}")
    for name, p in net.features.named_parameters():
        p.requires_grad_(name.startswith(words))
