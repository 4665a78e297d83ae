"""CSG with one part of it changed: what the gate owes to alternation, to learning, to the labels and to the epochs."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from csglib.methods.csg import ClassGate, alternate, density_bound, hinge
from csglib.methods.standard import Losses, cross_entropy
from csglib.networks.split import Split
from csglib.recipe import Recipe


def skip_gated(recipe: Recipe, epoch: int) -> str:
    """The standard epochs of CSG at their places in the schedule, the gated ones left out: the matched baseline."""
    return "standard" if alternate(recipe, epoch) == "standard" else "skipped"


def joint_gate(recipe: Recipe, net: Split) -> ClassGate:
    """CSG's gate, for every epoch.  Raises Problem for a density below 1/C."""
    density_bound(recipe.density(net.num_classes), net.num_classes, net.num_filters)
    return ClassGate(net.num_classes, net.num_filters, recipe.gate_start)


def always_joint(recipe: Recipe, epoch: int) -> str:
    """Both paths in every epoch."""
    return "joint"


def joint_loss(
    recipe: Recipe, epoch: int, net: Split, gate: ClassGate, images: Float[Tensor, "B 3 H W"], labels: Int[Tensor, " B"]
) -> Losses:
    """CE(y, y~) + CE(y, y~^G) + lambda2 ReLU(||G||_1 - g): the paper's objective, with lambda1 = 1, in every step."""
    a = net.pooled(images)
    logits, gated = net.head(a), net.head(gate(a, labels))
    return F.cross_entropy(logits, labels) + F.cross_entropy(gated, labels) + hinge(recipe, net, gate), logits


def fixed_gate(recipe: Recipe, net: Split) -> ClassGate:
    """One class per filter, equal shares; filter k serves class k mod C, which is random since the first weights are."""
    gate = ClassGate(net.num_classes, net.num_filters)
    gate.matrix.data = equal_shares(net)
    gate.matrix.requires_grad_(False)
    return gate


def equal_shares(net: Split) -> Float[Tensor, "C K"]:
    """One class per filter, k mod C for filter k: one-hot columns."""
    return F.one_hot(torch.arange(net.num_filters) % net.num_classes, net.num_classes).T.float()


def fixed_loss(
    recipe: Recipe, epoch: int, net: Split, gate: ClassGate, images: Float[Tensor, "B 3 H W"], labels: Int[Tensor, " B"]
) -> Losses:
    """CSG's without the penalty.  Shuffled, each image takes the row of the one before it: masks without meaning."""
    if alternate(recipe, epoch) == "standard":
        return cross_entropy(recipe, epoch, net, gate, images, labels)
    rows = labels if recipe.fixed_gate == "random" else labels.roll(1)
    logits = net.head(gate(net.pooled(images), rows))
    return F.cross_entropy(logits, labels), logits
