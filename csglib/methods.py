"""What one training step computes, for each method: the gate, which path an epoch trains, the loss, what follows a step.

A path is `standard` (all filters), `gated` (each filter times its class's gate entry), `joint` (both at once) or `skipped` (no
training).  Evaluation always takes the standard path: at test time there is no label.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from csglib import Problem, check_name
from csglib.gate import ClassGate, SampledGate, density_bound
from csglib.nets import Split
from csglib.runs import Recipe
from csglib.templates import TemplateMask, filter_loss

Gate = ClassGate | SampledGate | TemplateMask  # each has a `matrix`, C x K


@dataclass(frozen=True)
class Method:
    """What one training step computes, part by part; images (B, 3, H, W) in [0, 1], labels (B), logits (B, C)."""

    options: tuple[str, ...]  # the recipe's fields that this method reads beside those that all methods read
    gate: Callable[[Recipe, Split], Gate | None]  # made for this network, which it may change
    path: Callable[[Recipe, int], str]  # recipe, epoch -> the path that this epoch trains
    loss: Callable[[Recipe, int | Tensor, Split, Gate | None, Tensor, Tensor], tuple[Tensor, Tensor]]  # -> loss, logits
    optimiser: Callable[..., torch.optim.Optimizer] | None = None  # recipe, gate, on_gpu -> the gate's; none: no step moves it
    after_step: Callable[[Recipe, Gate], None] | None = None  # after each step of that optimiser
    by_epoch: bool = False  # whether the loss computes with the epoch, a tensor on the device where steps are captured
    draws: bool = False  # whether the loss draws random numbers


def no_gate(recipe: Recipe, net: Split) -> None:
    return None


def always_standard(recipe: Recipe, epoch: int) -> str:
    return "standard"


def cross_entropy(recipe, epoch, net, gate, images, labels):
    """CE(y, y~) on the ungated path."""
    logits = net(images)
    return F.cross_entropy(logits, labels), logits


def class_gate(recipe: Recipe, net: Split) -> ClassGate:
    density_bound(recipe.density(net.num_classes), net.num_classes, net.num_filters)  # refuses a bound below 1/C
    if all(alternate(recipe, epoch) == "standard" for epoch in range(recipe.epochs)):
        raise Problem(
            f"no epoch would train the gate: {recipe.epochs} epochs, warm-up {recipe.warmup}, cycle {recipe.cycle}, and the "
            "last epoch is standard; train longer, or choose a cycle with an earlier g"
        )
    return ClassGate(net.num_classes, net.num_filters, recipe.gate_start)


def alternate(recipe: Recipe, epoch: int) -> str:
    """After the warm-up the cycle repeats, one letter an epoch: s standard, g gated.  The last epoch is standard."""
    after = epoch - recipe.warmup
    if after < 0 or epoch == recipe.epochs - 1:
        return "standard"
    return "gated" if recipe.cycle[after % len(recipe.cycle)] == "g" else "standard"


def csg_loss(recipe, epoch, net, gate, images, labels):
    """CE(y, y~) in standard epochs; CE(y, y~^G) + lambda2 ReLU(||G||_1 - g) in gated ones: never their sum."""
    if alternate(recipe, epoch) == "standard":
        return cross_entropy(recipe, epoch, net, gate, images, labels)
    logits = net.head(gate(net.pooled(images), labels))  # gating the maps and then pooling gives the same
    return F.cross_entropy(logits, labels) + hinge(recipe, net, gate), logits


def hinge(recipe: Recipe, net: Split, gate: ClassGate) -> Tensor:
    return recipe.gate_penalty * gate.penalty(density_bound(recipe.density(net.num_classes), net.num_classes, net.num_filters))


def gate_sgd(recipe: Recipe, gate: ClassGate, on_gpu: bool = False) -> torch.optim.Optimizer:
    return torch.optim.SGD(gate.parameters(), recipe.gate_lr, recipe.gate_momentum, fused=on_gpu)


def project(recipe: Recipe, gate: ClassGate) -> None:
    gate.project() if recipe.gate_projection == "max" else gate.clip()


def skip_gated(recipe: Recipe, epoch: int) -> str:
    """The standard epochs of CSG at their places in the schedule, the gated ones left out: the matched baseline."""
    return "standard" if alternate(recipe, epoch) == "standard" else "skipped"


def joint_gate(recipe: Recipe, net: Split) -> ClassGate:
    density_bound(recipe.density(net.num_classes), net.num_classes, net.num_filters)
    return ClassGate(net.num_classes, net.num_filters, recipe.gate_start)


def always_joint(recipe: Recipe, epoch: int) -> str:
    return "joint"


def joint_loss(recipe, epoch, net, gate, images, labels):
    """CE(y, y~) + CE(y, y~^G) + lambda2 ReLU(||G||_1 - g): the paper's objective, with lambda1 = 1, in every step."""
    a = net.pooled(images)
    logits, gated = net.head(a), net.head(gate(a, labels))
    return F.cross_entropy(logits, labels) + F.cross_entropy(gated, labels) + hinge(recipe, net, gate), logits


def fixed_gate(recipe: Recipe, net: Split) -> ClassGate:
    """One class a filter, equal shares; filter k serves class k mod C, which is random since the first weights are."""
    gate = ClassGate(net.num_classes, net.num_filters)
    gate.matrix.data = equal_shares(net)
    gate.matrix.requires_grad_(False)
    return gate


def equal_shares(net: Split) -> Float[Tensor, "C K"]:
    return F.one_hot(torch.arange(net.num_filters) % net.num_classes, net.num_classes).T.float()


def fixed_loss(recipe, epoch, net, gate, images, labels):
    """CSG's without the penalty.  Shuffled, each image takes the row of the one before it: masks without meaning."""
    if alternate(recipe, epoch) == "standard":
        return cross_entropy(recipe, epoch, net, gate, images, labels)
    rows = labels if recipe.fixed_gate == "random" else labels.roll(1)
    logits = net.head(gate(net.pooled(images), rows))
    return F.cross_entropy(logits, labels), logits


def sampled_gate(recipe: Recipe, net: Split) -> SampledGate:
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


def picnn_loss(recipe, epoch, net, gate, images, labels):
    """CE(y, y~) + lambda mean of CE(y, y~^m) over the images whose drawn class is their label; 0 if there is none."""
    a = net.pooled(images)
    logits = net.head(a)
    masked, z = gate(a, logits)
    interpretation = F.cross_entropy(net.head(masked), labels, reduction="none")
    drawn = (z == labels).to(interpretation)
    interpretation = (drawn * interpretation).sum() / drawn.sum().clamp(min=1)
    return F.cross_entropy(logits, labels) + recipe.picnn_weight * interpretation, logits


def theta_adam(recipe: Recipe, gate: SampledGate, on_gpu: bool = False) -> torch.optim.Optimizer:
    decay = recipe.theta_decay
    return torch.optim.Adam(gate.parameters(), recipe.theta_lr, weight_decay=decay, fused=on_gpu, capturable=on_gpu)


def template_mask(recipe: Recipe, net: Split) -> TemplateMask:
    """The mask becomes a part of the network, since ICNN's evaluation needs it too."""
    net.mask = TemplateMask(net.num_classes, net.num_filters)
    return net.mask


def icnn_loss(recipe, epoch, net, gate, images, labels):
    """CE(y, y~) on the masked maps, plus the filter loss on the maps before the mask, with a weight that falls as 1/epoch."""
    x = net.maps(images)
    logits = net.head(gate(x).mean((2, 3)))
    loss = F.cross_entropy(logits, labels) + recipe.template_weight / (epoch + 1) * filter_loss(x, labels, gate)
    gate.update(x, labels)  # after the loss, as the released code does
    return loss, logits


SCHEDULE = ("cycle", "warmup")
GATE = ("gate_start", "gate_lr", "gate_momentum", "gate_penalty", "gate_density", "gate_projection")
PICNN = ("picnn_weight", "theta_lr", "theta_decay", "correspondence")
METHODS = {
    "standard": Method((), no_gate, always_standard, cross_entropy),
    "matched": Method(SCHEDULE, no_gate, skip_gated, cross_entropy),
    "csg": Method(SCHEDULE + GATE, class_gate, alternate, csg_loss, gate_sgd, project),
    "joint": Method(GATE, joint_gate, always_joint, joint_loss, gate_sgd, project),
    "fixed": Method((*SCHEDULE, "fixed_gate"), fixed_gate, alternate, fixed_loss),
    "picnn": Method(PICNN, sampled_gate, always_joint, picnn_loss, theta_adam, draws=True),
    "icnn": Method(("template_weight",), template_mask, always_standard, icnn_loss, by_epoch=True),
}


def method(recipe: Recipe) -> Method:
    """The recipe's method; refuses an unknown name, and a value set for an option that the method does not read."""
    check_name("method", recipe.method, METHODS)
    chosen = METHODS[recipe.method]
    special = {name for m in METHODS.values() for name in m.options}
    recipe.refuse_options(special - set(chosen.options))
    return chosen
