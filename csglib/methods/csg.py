"""The gates: matrices with one row per class and one column per filter, which say which filter may fire for which class.

`ClassGate` is the Class-Specific Gate of Liang et al. (ECCV 2020).  On the gated path, filter k of an image of class y is
multiplied by G[y, k].  The feasible set of the paper is

    V_G = { G in [0, 1]^(C x K) : max_c G[c, k] = 1 for every filter k },

so that every filter serves at least one class fully, and K <= ||G||_1 <= CK.

`SampledGate` is the correspondence matrix of PICNN (Guo et al., AAAI 2024): every filter has a distribution over the classes,
from which its membership in the cluster of a class is drawn anew for each image.
"""

from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from csglib.errors import Problem
from csglib.methods.standard import Losses, cross_entropy
from csglib.networks.hooked import Network, hooked
from csglib.recipe import Recipe


class ClassGate(nn.Module):
    """A learnable C x K gate, started at one value everywhere; `project` brings it back into V_G after a gradient step.

    Raises Problem for a start outside (0, 1].
    """

    def __init__(self, num_classes: int, num_filters: int, start: float = 0.5):
        super().__init__()
        if not 0 < start <= 1:
            raise Problem(f"the gate's start value must lie in (0, 1], not {start}: use 0.5, as the released code does")
        self.matrix = nn.Parameter(torch.full((num_classes, num_filters), float(start)))

    def forward(self, a: Float[Tensor, "N K *space"], labels: Int[Tensor, " N"]) -> Float[Tensor, "N K *space"]:
        """Multiply the activations of each image by its class's row.  Maps (N, K, H, W) or pooled features (N, K).

        The product is computed in the activations' precision; the matrix itself stays float32.
        """
        g = F.embedding(labels, self.matrix)  # (N, K); its gradient is summed in a fixed order, that of indexing is not
        return a * g.to(a.dtype).reshape(g.shape + (1,) * (a.ndim - 2))

    def on(self, layer: nn.Module, labels: Int[Tensor, " N"]) -> AbstractContextManager[None]:
        """Within `with gate.on(model.layer4, labels):` the layer's output is gated, and the network stays as it is."""
        return hooked(layer, lambda a: self(a, labels), self.matrix.shape[1])

    def penalty(self, bound: float) -> Float[Tensor, ""]:
        """The hinge ReLU(||G||_1 - bound): no force once the sum of all entries is below the bound g."""
        return torch.relu(self.matrix.abs().sum() - bound)

    @torch.no_grad()
    def project(self) -> None:
        """Bring the matrix back into V_G, in place."""
        self.matrix.copy_(project(self.matrix))

    @torch.no_grad()
    def clip(self) -> None:
        """The control without the division: entries stay in [0, 1], but a filter's maximum may fall below 1."""
        self.matrix.clamp_(0, 1)


def project(matrix: Float[Tensor, "C K"]) -> Float[Tensor, "C K"]:
    """The paper's step back into V_G: divide each filter's column by its maximum, then clip to [0, 1].

    Where a column's maximum is zero or below, the division is undefined (0/0) or turns the signs over and resets the
    column to ones.  Such a column becomes one-hot at its largest entry, the first of equals: that is its Euclidean
    projection onto V_G.  NaN stays NaN, for the training loop to stop at.  Idempotent.
    """
    top, winner = matrix.max(dim=0, keepdim=True)  # (1, K)
    alive = top > torch.finfo(matrix.dtype).tiny  # below it the quotient may be 0/0 where subnormals are flushed
    scaled = (matrix / torch.where(alive, top, 1)).clamp(0, 1)
    one_hot = torch.zeros_like(matrix).scatter_(0, winner, 1)
    return torch.where(alive | top.isnan(), scaled, one_hot)


def density(matrix: Float[Tensor, "C K"], projected: bool = True) -> float:
    """L1-density ||G||_1 / (CK), in [1/C, 1] for a projected gate; below 1/C the program has an error, and this raises."""
    C, K = matrix.shape
    value = matrix.double().abs().sum().item() / (C * K)
    if projected and not value >= 1 / C:  # also catches NaN
        raise ArithmeticError(f"density {value} lies below 1/C = {1 / C}: the gate has left its feasible set")
    return value


def sharpness(matrix: Float[Tensor, "C K"]) -> float:
    """Mean over filters of the largest share that one class has in the filter's entries: 1/C if uniform, 1 if one-hot."""
    m = matrix.double()
    return (m.amax(0) / m.sum(0).clamp(min=1e-12)).mean().item()


def density_bound(fraction: float, num_classes: int, num_filters: int) -> float:
    """g = fraction * CK, the bound on ||G||_1.  A fraction below 1/C asks for a gate outside V_G and is refused."""
    if not 1 / num_classes <= fraction <= 1:
        raise Problem(
            f"gate_density {fraction:g} lies outside [1/C, 1]: with {num_classes} classes every filter keeps at least "
            f"one of them, so choose a value from {1 / num_classes:g} (one class per filter) to 1 (no pressure)"
        )
    return fraction * num_classes * num_filters


def class_gate(recipe: Recipe, net: Network) -> ClassGate:
    """The gate as it starts.  Raises Problem for a density below 1/C, and where no epoch would be gated."""
    density_bound(recipe.density(net.num_classes), net.num_classes, net.num_filters)  # refuses a bound below 1/C
    if all(alternate(recipe, epoch) == "standard" for epoch in range(recipe.epochs)):
        raise Problem(
            f"no epoch would train the gate: {recipe.epochs} epochs, warm-up {recipe.warmup}, cycle {recipe.cycle}, and the "
            "last epoch is standard; train longer, or choose a cycle with an earlier g"
        )
    return ClassGate(net.num_classes, net.num_filters, recipe.gate_start)


def alternate(recipe: Recipe, epoch: int) -> str:
    """After the warm-up the cycle repeats, one letter per epoch: s standard, g gated.  The last epoch is standard."""
    after = epoch - recipe.warmup
    if after < 0 or epoch == recipe.epochs - 1:
        return "standard"
    return "gated" if recipe.cycle[after % len(recipe.cycle)] == "g" else "standard"


def csg_loss(
    recipe: Recipe, epoch: int, net: Network, gate: ClassGate, images: Float[Tensor, "B 3 H W"], labels: Int[Tensor, " B"]
) -> Losses:
    """CE(y, y~) in standard epochs; CE(y, y~^G) + lambda2 ReLU(||G||_1 - g) in gated ones: never their sum."""
    if alternate(recipe, epoch) == "standard":
        return cross_entropy(recipe, epoch, net, gate, images, labels)
    logits = net.gated(images, gate, labels)
    return F.cross_entropy(logits, labels) + hinge(recipe, net, gate), logits


def hinge(recipe: Recipe, net: Network, gate: ClassGate) -> Tensor:
    """lambda2 ReLU(||G||_1 - g), with the recipe's weight and density."""
    return recipe.gate_penalty * gate.penalty(density_bound(recipe.density(net.num_classes), net.num_classes, net.num_filters))


def gate_sgd(recipe: Recipe, gate: ClassGate, on_gpu: bool = False) -> torch.optim.Optimizer:
    """The gate's own SGD, at a constant rate and without weight decay; on a GPU fused."""
    return torch.optim.SGD(gate.parameters(), recipe.gate_lr, recipe.gate_momentum, fused=on_gpu)


def after_step(recipe: Recipe, gate: ClassGate) -> None:
    """Back into the feasible set, or only to [0, 1]."""
    if recipe.gate_projection == "max":
        gate.project()
    else:
        gate.clip()
