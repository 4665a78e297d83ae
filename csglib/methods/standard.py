"""Standard training: what every method is compared with."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from csglib.networks.hooked import Network
from csglib.recipe import Recipe

Losses = tuple[Float[Tensor, ""], Float[Tensor, "B C"]]  # of a batch: the loss, and the logits of the path that was trained


def no_gate(recipe: Recipe, net: Network) -> None:
    """The method has none."""
    return None


def always_standard(recipe: Recipe, epoch: int | Tensor) -> str:
    """No gate in any epoch."""
    return "standard"


def cross_entropy(
    recipe: Recipe,
    epoch: int,
    net: Network,
    gate: nn.Module | None,
    images: Float[Tensor, "B 3 H W"],
    labels: Int[Tensor, " B"],
) -> Losses:
    """CE(y, y~) on the ungated path."""
    logits = net(images)
    return F.cross_entropy(logits, labels), logits
