"""What one training step computes, for each method: the gate, which path an epoch trains, the loss, what follows a step.

A path is `standard` (all filters) or `gated` (each filter times its class's gate entry).  Evaluation always takes the standard
path: at test time there is no label.
"""

from collections.abc import Callable
from dataclasses import dataclass

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
    after_step: Callable[[ClassGate], None] | None = None  # after each step of the gated path


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
    bound = density_bound(recipe.gate_density, net.num_classes, net.num_filters)
    return F.cross_entropy(logits, labels) + recipe.gate_penalty * gate.penalty(bound), logits


METHODS = {
    "standard": Method((), no_gate, always_standard, cross_entropy),
    "csg": Method(
        ("cycle", "warmup", "gate_start", "gate_lr", "gate_momentum", "gate_penalty", "gate_density"),
        class_gate,
        alternate,
        csg_loss,
        ClassGate.project,
    ),
}


def method(recipe: Recipe) -> Method:
    """The recipe's method; refuses an unknown name, and a value set for an option that the method does not read."""
    check_name("method", recipe.method, METHODS)
    chosen = METHODS[recipe.method]
    special = {name for m in METHODS.values() for name in m.options}
    recipe.refuse_options(special - set(chosen.options))
    return chosen
