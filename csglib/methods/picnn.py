"""PICNN (Guo et al., AAAI 2024): each filter has a distribution over the classes, its column of P.

From it the filter's membership in the cluster of a class is drawn anew for each image; an interpretation loss asks that the
cluster of an image's class alone classify it.
"""

import warnings

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from csglib.methods.controls import equal_shares
from csglib.methods.standard import Losses
from csglib.networks.split import Split
from csglib.recipe import Recipe


class SampledGate(nn.Module):
    """PICNN's P = softmax(theta) over classes, uniform up to a little noise at the start; columns sum to 1."""

    def __init__(self, num_classes: int, num_filters: int):
        super().__init__()
        self.theta = nn.Parameter(torch.rand(num_classes, num_filters).softmax(0))

    @property
    def matrix(self) -> Float[Tensor, "C K"]:
        """P: probability that a filter belongs to a class."""
        return self.theta.softmax(0)

    def forward(self, a: Float[Tensor, "N K"], logits: Float[Tensor, "N C"]) -> tuple[Float[Tensor, "N K"], Int[Tensor, " N"]]:
        """Pooled features times drawn masks, and the drawn classes.

        The class of an image is drawn from the network's own softmax, not from its label; each filter then belongs to the
        cluster of that class with probability P.  Both draws are exact and pass their gradients straight through.  Under
        autocast to bfloat16 the probability q is rounded by up to 0.002, far below the noise of a draw.
        """
        s = logits.float().softmax(1)
        z = draw(s.nan_to_num(1))  # a diverging loss is told at the epoch's end
        q = (straight_through(F.one_hot(z, s.shape[1]).float(), s) @ self.matrix).clamp(0, 1)
        return a * straight_through(torch.bernoulli(q.nan_to_num()), q).to(a.dtype), z


def draw(s: Float[Tensor, "N C"]) -> Int[Tensor, " N"]:
    """A class for each row of probabilities: torch.multinomial's, to the bit, which in older torch stops a GPU in each step."""
    return (s / torch.empty_like(s).exponential_()).argmax(1)


def straight_through(drawn: Tensor, probability: Tensor) -> Tensor:
    """The values of what was drawn, exactly, with the gradient of its probability (Bengio et al. 2013)."""
    return drawn + (probability - probability.detach())


def sampled_gate(recipe: Recipe, net: Split) -> SampledGate:
    """P as it starts; for the random control one-hot and frozen.  Warns of layers too narrow for their classes."""
    C, K = net.num_classes, net.num_filters
    if K < 5 * C:
        warnings.warn(
            f"{K} filters are few for {C} classes: at the start the cluster of a class is empty with probability "
            f"{(1 - 1 / C) ** K:.0%}, and then the interpretation path sees the bias alone; use a layer of at least {5 * C}",
            stacklevel=2,
        )
    gate = SampledGate(C, K)
    if recipe.correspondence == "random":
        gate.theta.data = 1000 * equal_shares(net)  # whose softmax is one-hot, exactly
        gate.theta.requires_grad_(False)
    return gate


def picnn_loss(
    recipe: Recipe, epoch: int, net: Split, gate: SampledGate, images: Float[Tensor, "B 3 H W"], labels: Int[Tensor, " B"]
) -> Losses:
    """CE(y, y~) + lambda mean of CE(y, y~^m) over the images whose drawn class is their label; 0 if there is none."""
    a = net.pooled(images)
    logits = net.head(a)
    masked, z = gate(a, logits)
    interpretation = F.cross_entropy(net.head(masked), labels, reduction="none")
    drawn = (z == labels).to(interpretation)
    interpretation = (drawn * interpretation).sum() / drawn.sum().clamp(min=1)
    return F.cross_entropy(logits, labels) + recipe.picnn_weight * interpretation, logits


def theta_adam(recipe: Recipe, gate: SampledGate, on_gpu: bool = False) -> torch.optim.Optimizer:
    """Adam for theta, at a constant rate, with weight decay; on a GPU fused and capturable."""
    decay = recipe.theta_decay
    return torch.optim.Adam(gate.parameters(), recipe.theta_lr, weight_decay=decay, fused=on_gpu, capturable=on_gpu)
