"""What one training step computes, for each method: the gate, which path an epoch trains, the loss, what follows a step.

A path is `standard` (all filters), `gated` (each filter times its class's gate entry), `joint` (both at once) or `skipped` (no
training).  Evaluation always takes the standard path: at test time there is no label.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from csglib import Problem, check_name
from csglib.gate import ClassGate, density_bound
from csglib.nets import Split
from csglib.runs import Recipe


@dataclass(frozen=True)
class Method:
    options: tuple[str, ...]  # the recipe's fields that this method reads beside those that all methods read
    gate: Callable[[Recipe, Split], ClassGate | None]
    path: Callable[[Recipe, int], str]  # recipe, epoch -> the path that this epoch trains
    loss: Callable[[Recipe, str, Split, ClassGate | None, Tensor, Tensor], tuple[Tensor, Tensor]]  # -> loss, logits
    after_step: Callable[[Recipe, ClassGate], None] | None = None  # after each step that may move the gate


def no_gate(recipe: Recipe, net: Split) -> None:
    return None


def always_standard(recipe: Recipe, epoch: int) -> str:
    return "standard"


def cross_entropy(recipe, path, net, gate, images, labels):
    """CE(y, y~) on the ungated path."""
    logits = net(images)
    return F.cross_entropy(logits, labels), logits


def class_gate(recipe: Recipe, net: Split) -> ClassGate:
    density_bound(recipe.gate_density, net.num_classes, net.num_filters)  # refuses a bound below 1/C
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


def csg_loss(recipe, path, net, gate, images, labels):
    """CE(y, y~) in standard epochs; CE(y, y~^G) + lambda2 ReLU(||G||_1 - g) in gated ones: never their sum."""
    if path == "standard":
        return cross_entropy(recipe, path, net, gate, images, labels)
    logits = net.head(gate(net.pooled(images), labels))  # gating the maps and then pooling gives the same
    return F.cross_entropy(logits, labels) + hinge(recipe, net, gate), logits


def hinge(recipe: Recipe, net: Split, gate: ClassGate) -> Tensor:
    return recipe.gate_penalty * gate.penalty(density_bound(recipe.gate_density, net.num_classes, net.num_filters))


def project(recipe: Recipe, gate: ClassGate) -> None:
    gate.project() if recipe.gate_projection == "max" else gate.clip()


def skip_gated(recipe: Recipe, epoch: int) -> str:
    """The standard epochs of CSG at their places in the schedule, the gated ones left out: the matched baseline."""
    return "standard" if alternate(recipe, epoch) == "standard" else "skipped"


def joint_gate(recipe: Recipe, net: Split) -> ClassGate:
    density_bound(recipe.gate_density, net.num_classes, net.num_filters)
    return ClassGate(net.num_classes, net.num_filters, recipe.gate_start)


def always_joint(recipe: Recipe, epoch: int) -> str:
    return "joint"


def joint_loss(recipe, path, net, gate, images, labels):
    """CE(y, y~) + CE(y, y~^G) + lambda2 ReLU(||G||_1 - g): the paper's objective, with lambda1 = 1, in every step."""
    a = net.pooled(images)
    logits, gated = net.head(a), net.head(gate(a, labels))
    return F.cross_entropy(logits, labels) + F.cross_entropy(gated, labels) + hinge(recipe, net, gate), logits


def fixed_gate(recipe: Recipe, net: Split) -> ClassGate:
    """One class a filter, equal shares; filter k serves class k mod C, which is random since the first weights are."""
    gate = ClassGate(net.num_classes, net.num_filters)
    gate.matrix.data = F.one_hot(torch.arange(net.num_filters) % net.num_classes, net.num_classes).T.float()
    gate.matrix.requires_grad_(False)
    return gate


def fixed_loss(recipe, path, net, gate, images, labels):
    """CSG's without the penalty.  Shuffled, each image takes the row of the one before it: masks without meaning."""
    if path == "standard":
        return cross_entropy(recipe, path, net, gate, images, labels)
    rows = labels if recipe.fixed_gate == "random" else labels.roll(1)
    logits = net.head(gate(net.pooled(images), rows))
    return F.cross_entropy(logits, labels), logits


SCHEDULE = ("cycle", "warmup")
GATE = ("gate_start", "gate_lr", "gate_momentum", "gate_penalty", "gate_density", "gate_projection")
METHODS = {
    "standard": Method((), no_gate, always_standard, cross_entropy),
    "matched": Method(SCHEDULE, no_gate, skip_gated, cross_entropy),
    "csg": Method(SCHEDULE + GATE, class_gate, alternate, csg_loss, project),
    "joint": Method(GATE, joint_gate, always_joint, joint_loss, project),
    "fixed": Method((*SCHEDULE, "fixed_gate"), fixed_gate, alternate, fixed_loss),
}


def method(recipe: Recipe) -> Method:
    """The recipe's method; refuses an unknown name, and a value set for an option that the method does not read."""
    check_name("method", recipe.method, METHODS)
    chosen = METHODS[recipe.method]
    special = {name for m in METHODS.values() for name in m.options}
    recipe.refuse_options(special - set(chosen.options))
    return chosen
