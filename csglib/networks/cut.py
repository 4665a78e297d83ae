"""Any network cut after a layer, for a gate: where the channels are, which call is meant, whether its head is linear."""

import copy
import math
import os
import re
import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from csglib import files
from csglib.errors import Problem
from csglib.networks.split import IMAGENET_MEAN, IMAGENET_STD, Split


def gated(
    network: nn.Module,
    layer: str,
    num_classes: int | None = None,
    mean: Sequence[float | int] | None = IMAGENET_MEAN,
    std: Sequence[float | int] | None = IMAGENET_STD,
) -> Split:
    """Cut a network after a named layer, where a gate can sit: its maps, their spatial mean, a linear head.

    Args:
        network: Takes a batch of images and nothing else; it stays as it is.
        layer: A module's name, or a node's of torch.fx.  Of a module that is called several times the last call is taken, and
            a warning names it.  Its output is (N, K, H, W), or (N, H, W, K) as in a Swin transformer, told apart by which
            sizes follow the image's; or (N, P + HW, K), tokens of a vision transformer, whose first P, of class and registers,
            are left out.
        num_classes: Of a new head.  None keeps the network's own, which must be linear on the spatial mean of that layer.
        mean, std: By which images in [0, 1] are normalised, a number per channel; None leaves that to the loader.

    Returns:
        The cut network, with the parts `maps`, `pooled` and `head`; a call gives the logits.

    Raises:
        Problem: For what is no such network, or has no such layer.
    """
    check_network(network)
    if num_classes is not None and num_classes < 2:
        raise Problem(f"num_classes is {num_classes}: give 2 or more, or None for the network's own head")
    cut = nn.Sequential(extractor(network, layer), Maps(layer))
    probe = image_for(network)
    try:
        cut[1].learn(network, cut.eval(), probe)
        with torch.no_grad():
            pooled = cut(probe).mean((2, 3))
    except (RuntimeError, AssertionError, ValueError, TypeError, AttributeError) as error:
        first = next((m.in_channels for m in network.modules() if isinstance(m, nn.Conv2d)), 3)
        remedy = "give one that takes a batch of images and nothing else"
        if first != 3:
            remedy = f"its first convolution takes {first} channel{'s' * (first > 1)}; put one of 3 in its place"
        raise Problem(
            f"the network does not take images of shape {tuple(probe.shape)} ({files.short(str(error))}): {remedy}"
        ) from None
    K = pooled.shape[1]
    cut.train(network.training)
    if num_classes is not None:
        return Split(cut, nn.Linear(K, num_classes), mean, std).to(probe.device)
    if (head := own_head(network, probe, pooled)) is None:
        raise Problem(
            f"the network's own head is not linear on the spatial mean of {layer!r}, and a gate needs that: give num_classes "
            "for a new head, or name the last layer before the average pooling"
        )
    return Split(cut, head, mean, std).to(probe.device)


def check_network(network) -> None:
    """Refuse what is given in a network's place, each with its remedy."""
    wrapped = "give the network inside, as network"
    for found, what, remedy in (
        (isinstance(network, dict), "a dictionary of weights", "build the network, and give it after its load_state_dict"),
        (isinstance(network, str | os.PathLike), "a path", "build the network, and give it after its load_state_dict"),
        (isinstance(network, Split), "cut already", "give the network that it was made from"),
        (isinstance(network, torch.jit.ScriptModule), "scripted or traced", "give the Python module that it was made from"),
        (hasattr(network, "_orig_mod"), "compiled", f"{wrapped}._orig_mod, and compile what gated returns"),
        (isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel), "wrapped for GPUs", f"{wrapped}.module"),
        (not isinstance(network, nn.Module), f"of type {type(network).__name__}", "give a torch.nn.Module, not what makes one"),
    ):
        if found:
            raise Problem(f"gated needs a network, and this is {what}: {remedy}")
    parameters = list(network.parameters())
    if not parameters or any(p.is_meta or isinstance(p, nn.parameter.UninitializedParameter) for p in parameters):
        raise Problem("gated needs a network with weights, and this one has none yet: load them, or run it once, first")
    if other := {str(p.dtype) for p in parameters if p.dtype != torch.float32}:
        raise Problem(f"gated needs weights in float32, and these are in {', '.join(other)}: give network.float()")


@torch.no_grad()
def image_for(network: nn.Module) -> Float[Tensor, "1 3 S S"]:
    """Noise of a size that the whole network takes: its own or ImageNet's, else CIFAR's and other usual ones."""
    own = getattr(network, "image_size", None)
    sizes = (own,) if isinstance(own, int) else (224, 32, 64, 96, 128, 256, 28)
    device, trial = next(network.parameters()).device, copy.deepcopy(network).eval()
    images = [torch.randn(1, 3, S, S, generator=torch.Generator().manual_seed(0)).to(device) for S in sizes]
    for image in images:
        try:
            trial(image)
            return image
        except Exception:  # torch has many for a wrong size, and the network may have its own
            continue
    return images[0]


def extractor(network: nn.Module, layer: str) -> nn.Module:
    """A copy of the network that ends at the layer and gives its output, as torch.fx traces it."""
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    try:
        names = get_graph_node_names(network, suppress_diff_warning=True)[1]  # of the graph in eval mode
    except Exception as error:  # torch.fx's own, or whatever the network raises when it is given no tensor
        raise Problem(
            f"the network cannot be traced by torch.fx ({files.short(str(error))}), for instance as its forward asks for the "
            "values of its input: give the part of it that computes the maps, with num_classes"
        ) from None
    if not any(name == layer or name.startswith(f"{layer}.") for name in names):
        shown = dict.fromkeys(".".join(name.split(".")[:2]) for name in names)
        raise Problem(f"the network has no layer {layer!r}: it has {', '.join(shown)}, and what these contain")
    modules = dict(network.named_modules())
    calls = [n for n in names if n == layer or (re.fullmatch(re.escape(layer) + r"_\d+", n) and n not in modules)]
    node = calls[-1] if layer in modules and calls else layer
    if len(calls) > 1 and node != layer:
        warnings.warn(f"{layer} is called {len(calls)} times: the maps are those of the last call, {node}", stacklevel=3)
    try:
        return create_feature_extractor(copy.deepcopy(network), {node: "maps"}, suppress_diff_warning=True)
    except ValueError as error:
        raise Problem(f"the network cannot be cut after {layer!r} ({files.short(str(error))}): name another layer") from None


@torch.no_grad()
def own_head(network: nn.Module, probe: Float[Tensor, "1 3 H W"], pooled: Float[Tensor, "1 K"]) -> nn.Linear | None:
    """The network's last linear layer or 1x1 convolution, if it computes the logits from these features; None if not.

    Tried on a copy with other weights in that layer, as those of a fresh network may be zero.
    """

    def last(of: nn.Module) -> nn.Module | None:
        heads = [m for m in of.modules() if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1))]
        return heads[-1] if heads else None

    trial = copy.deepcopy(network).eval()
    head = last(trial)
    if head is None or head.weight[0].numel() != pooled.shape[1]:
        return None
    head.weight.normal_()
    try:
        logits = trial(probe)
    except RuntimeError:  # no size was found that the whole network takes
        return None
    if not isinstance(logits, Tensor) or logits.flatten(1).shape[1] != len(head.weight):
        return None
    same = torch.allclose(linear(head)(pooled), logits.flatten(1), 1e-3, 1e-4)
    return linear(last(network)) if same else None


def linear(head: nn.Linear | nn.Conv2d) -> nn.Linear:
    """A copy of a head as a linear layer, with a bias of zeros where it has none."""
    W = head.weight.detach().flatten(1)
    copied = nn.Linear(W.shape[1], W.shape[0]).to(W)
    copied.weight.data.copy_(W)
    copied.bias.data.copy_(torch.zeros(len(W)) if head.bias is None else head.bias.detach())
    return copied


class Maps(nn.Module):
    """What a feature extractor gives, as maps: those that it gives, channels last turned round, tokens put in position."""

    def __init__(self, layer: str):
        super().__init__()
        self.layer = layer
        self.last = False  # whether the channels come last
        self.extra = 1  # tokens before those of the patches

    @torch.no_grad()
    def learn(self, network: nn.Module, cut: nn.Sequential, probe: Float[Tensor, "1 3 S S"]) -> None:
        """Find the layout from the output's sizes, and from how they follow the image's where these may change."""
        x, S = cut[0](probe)["maps"], probe.shape[2]
        if not isinstance(x, Tensor) or x.ndim not in (3, 4) or len(x) != 1:
            shape = tuple(x.shape) if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise Problem(f"layer {self.layer!r} gives {shape}, not maps (N, K, H, W): choose an earlier layer")
        if x.ndim == 3:
            strides = (m.stride[0] for m in network.modules() if isinstance(m, nn.Conv2d))
            patch = getattr(network, "patch_size", None) or next(strides, S)
            places = (S // patch) ** 2
            if places > x.shape[1]:
                raise Problem(
                    f"layer {self.layer!r} gives {tuple(x.shape)}, which are not the tokens (N, P + {places}, K) of {patch} x "
                    f"{patch} patches: choose a layer that gives tokens or maps (N, K, H, W)"
                )
            self.extra = x.shape[1] - places
            return
        try:
            wider = tuple(cut[0](torch.cat((probe, probe), 3))["maps"].shape)
        except (RuntimeError, AssertionError, ValueError):  # the network takes one size alone
            wider = tuple(x.shape)
        grown = [i for i in range(4) if wider[i] != x.shape[i]]
        if not grown:  # the output has one size, whatever the image's: square maps tell where they are
            n, a, b, c = x.shape
            grown = [3] if b == c else [2] if a == b else [0]
        self.last = grown == [2]
        if grown not in ([2], [3]):
            raise Problem(
                f"layer {self.layer!r} gives {tuple(x.shape)} of {S} x {S} pixels and {wider} of {S} x {2 * S}, which are not "
                "maps (N, K, H, W) or (N, H, W, K): choose another layer"
            )

    def forward(self, out: dict[str, Tensor]) -> Float[Tensor, "N K h w"]:
        """The layer's output as maps (N, K, h, w), whatever its own layout is."""
        x = out["maps"]
        if x.ndim == 4:
            return x.permute(0, 3, 1, 2) if self.last else x
        side = math.isqrt(x.shape[1] - self.extra)
        if side * side != x.shape[1] - self.extra:
            raise Problem(f"layer {self.layer!r} gives {tuple(x.shape)}, whose positions form no square: give square images")
        return x[:, self.extra :].transpose(1, 2).unflatten(2, (side, side))
