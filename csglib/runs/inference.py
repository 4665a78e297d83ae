"""A run's network and what it computes: its readout made anew, its maps on sample images."""

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from csglib import data, networks
from csglib.analysis.metrics import class_means, cluster
from csglib.data.images import Pictures
from csglib.errors import Problem
from csglib.methods import Gate
from csglib.precision import autocast
from csglib.readout import Readout
from csglib.runs import Run


@torch.no_grad()
def read_out(
    net: networks.Split,
    gate: Gate | None,
    images: Pictures,
    precision: str = "float32",
    gates: Sequence[Float[Tensor, "C K"]] = (),
) -> Readout:
    """The network's last layers on all images, in eval mode, ungated.

    Args:
        net: On the images' device; it is left in eval mode.
        gate: Whose matrix is kept beside, None without one.
        images: Read in batches, from memory or from files.
        precision: float32 for what is measured; bfloat16 or float16 by autocast.
        gates: The gate after each gated epoch, kept for the pages.
    """
    net.eval()
    device, features = images.device, []
    many, least = (1000, 100) if device.type == "cuda" else (200, 8)  # what fills a GPU, what a CPU's caches hold, at 32 pixels
    many = max(least, many * 32**2 // max(32, images.size) ** 2)  # 200 pictures of 128 pixels took 0.2 GB per layer
    for batch in images.read(torch.arange(len(images)).split(many)):
        with autocast(device, precision):
            features.append(net.pooled(data.to_float(batch)).float())
    a = torch.cat(features)
    W, b = net.head.weight, net.head.bias
    return Readout(
        features=a,
        labels=images.labels,
        weight=W.detach(),
        bias=b.detach(),
        gate=None if gate is None else gate.matrix.detach(),
        gates=torch.stack(list(gates)) if len(gates) else None,
    )


def read_images(run: Run) -> Readout:
    """A run's readout made anew from its weights and the test images; equal to the stored one up to its rounding."""
    dataset = data.of(run.recipe)
    if dataset.digest != run.provenance["data_digest"]:
        raise Problem(
            f"{run.path} was trained on other pictures than {run.recipe.dataset} has now: restore them, or train again"
        )
    readout = read_out(run.network(), None, dataset.test)
    return dataclasses.replace(readout, gate=run.readout.gate, gates=run.readout.gates)


def sample(run: Run) -> UInt8[Tensor, "N 3 H W"]:
    """Test images to look at."""
    return data.at_hand(run.recipe).test.first(1000)


@torch.no_grad()
def sample_maps(run: Run) -> Float[Tensor, "N K h w"]:
    """A network's last maps on those images, before ICNN's mask."""
    images = data.to_float(sample(run))
    net = run.network().eval()
    return torch.cat([net.maps(batch) for batch in images.split(500)])


def fitted_matrix(run: Run, n: int = 2000) -> Float[Tensor, "C K"]:
    """A class matrix for a network trained without one: each filter to the class that excites it most, in training images."""
    images = data.at_hand(run.recipe).train.take(slice(n))
    return cluster(class_means(read_out(run.network(), None, images)))
