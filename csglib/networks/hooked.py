"""A network gated where it stands, by a forward hook: its layers, its head and its state_dict stay as they are.

Exact for any head behind the layer, since a gate multiplies each channel by one number.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from csglib.errors import Problem
from csglib.networks.cut import check_network, image_for
from csglib.networks.split import Split

GATED: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # the layers that have a gate on them now


class Hooked(nn.Module):
    """A network and the layer on which a gate sits; `network` itself is kept, not a copy.

    Raises Problem where there is no layer of that name, or its output has no channels in its second dimension.
    """

    def __init__(self, network: nn.Module, layer: str):
        super().__init__()
        check_network(network)
        modules = dict(network.named_modules())
        if not layer or layer not in modules:
            shown = dict.fromkeys(".".join(name.split(".")[:2]) for name in modules if name)
            raise Problem(f"the network has no layer {layer!r}: it has {', '.join(shown)}, and what these contain")
        self.network, self.layer = network, layer
        self.num_filters, self.num_classes = sizes(network, modules[layer], layer)

    def forward(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N C"]:
        """Logits of the network as it is."""
        return self.network(images)

    def gated(self, images: Float[Tensor, "N 3 H W"], gate: nn.Module, labels: Int[Tensor, " N"]) -> Float[Tensor, "N C"]:
        """Logits with the layer's channels times the gate's rows of the labels."""
        with gate.on(self.network.get_submodule(self.layer), labels):
            return self.network(images)


Network = Split | Hooked


@torch.no_grad()
def sizes(network: nn.Module, module: nn.Module, layer: str) -> tuple[int, int]:
    """K and C: the channels of the layer's output and the network's logits, seen on an image of noise."""
    seen = []
    handle = module.register_forward_hook(lambda *call: seen.append(call[2]))
    modes = {m: m.training for m in network.modules()}
    try:
        logits = network.eval()(image_for(network))
    except (RuntimeError, ValueError, TypeError) as error:
        raise Problem(
            f"the network does not take a batch of images ({str(error).splitlines()[0]:.100}): gate another"
        ) from None
    finally:
        handle.remove()
        for m, mode in modes.items():
            m.training = mode
    if not seen:
        raise Problem(f"the forward pass of the network does not reach {layer!r}: name a layer that it calls")
    check_channels(seen[-1], None)
    return seen[-1].shape[1], logits.shape[1]


def check_channels(output: object, num_filters: int | None) -> None:
    """Raises Problem for an output without channels, or with another number of them than the gate has."""
    if not isinstance(output, Tensor) or output.ndim not in (2, 4):
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise Problem(
            f"the layer gives {found}, and a gate needs channels, (N, K, H, W) or (N, K): choose a convolution or its like"
        )
    if num_filters is not None and output.shape[1] != num_filters:
        raise Problem(f"the layer gives {output.shape[1]} channels, and the gate has {num_filters}: make a gate of that many")


@contextmanager
def hooked(layer: nn.Module, times: Callable[[Tensor], Tensor], num_filters: int) -> Iterator[None]:
    """Within this block the layer's output goes through `times`.

    Raises Problem where another gate is on the layer already, its output has no such channels, or no forward pass reached it.
    """
    if layer in GATED:
        raise Problem("this layer has a gate on it already: leave that block first, or gate another layer")
    reached = 0

    def through(module: nn.Module, images: tuple, output: Tensor) -> Tensor:
        nonlocal reached
        check_channels(output, num_filters)
        reached += 1
        return times(output)

    handle = layer.register_forward_hook(through)
    GATED.add(layer)
    try:
        yield
    finally:
        handle.remove()
        GATED.discard(layer)
    if not reached:
        raise Problem(
            "no forward pass reached the gated layer: call the network within the block, and gate a layer that it calls"
        )
