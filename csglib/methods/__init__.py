"""What one training step computes, for each method: the gate, which path an epoch trains, the loss, what follows a step.

A path is `standard` (all filters), `gated` (each filter times its class's gate entry), `joint` (both at once) or `skipped` (no
training).  Evaluation always takes the standard path: at test time there is no label.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from csglib.errors import check_name
from csglib.methods import controls, csg, icnn, picnn, standard
from csglib.methods.csg import ClassGate
from csglib.methods.icnn import TemplateMask
from csglib.methods.picnn import SampledGate
from csglib.networks.hooked import Network
from csglib.recipe import Recipe

PATHS = ("standard", "gated", "joint", "skipped")  # of an epoch, as the history tells them
Gate = ClassGate | SampledGate | TemplateMask  # each has a `matrix`, C x K


@dataclass(frozen=True)
class Method:
    """What one training step computes, part by part; images (B, 3, H, W) in [0, 1], labels (B), logits (B, C)."""

    options: tuple[str, ...]  # the recipe's fields that this method reads beside those that all methods read
    gate: Callable[[Recipe, Network], Gate | None]  # made for this network, which it may change
    path: Callable[[Recipe, int], str]  # recipe, epoch -> the path that this epoch trains
    loss: Callable[[Recipe, int | Tensor, Network, Gate | None, Tensor, Tensor], tuple[Tensor, Tensor]]  # -> loss, logits
    optimiser: Callable[..., torch.optim.Optimizer] | None = None  # recipe, gate, on_gpu -> the gate's; none: no step moves it
    after_step: Callable[[Recipe, Gate], None] | None = None  # after each step of that optimiser
    by_epoch: bool = False  # whether the loss computes with the epoch, a tensor on the device where steps are captured
    draws: bool = False  # whether the loss draws random numbers


SCHEDULE = ("cycle", "warmup")
GATE = ("gate_start", "gate_lr", "gate_momentum", "gate_penalty", "gate_density", "gate_projection")
PICNN = ("picnn_weight", "theta_lr", "theta_decay", "correspondence")
METHODS = {
    "standard": Method((), standard.no_gate, standard.always_standard, standard.cross_entropy),
    "matched": Method(SCHEDULE, standard.no_gate, controls.skip_gated, standard.cross_entropy),
    "csg": Method(SCHEDULE + GATE, csg.class_gate, csg.alternate, csg.csg_loss, csg.gate_sgd, csg.after_step),
    "joint": Method(GATE, controls.joint_gate, controls.always_joint, controls.joint_loss, csg.gate_sgd, csg.after_step),
    "fixed": Method((*SCHEDULE, "fixed_gate"), controls.fixed_gate, csg.alternate, controls.fixed_loss),
    "picnn": Method(PICNN, picnn.sampled_gate, controls.always_joint, picnn.picnn_loss, picnn.theta_adam, draws=True),
    "icnn": Method(("template_weight",), icnn.template_mask, standard.always_standard, icnn.icnn_loss, by_epoch=True),
}


def method(recipe: Recipe) -> Method:
    """The recipe's method; refuses an unknown name, and a value set for an option that the method does not read."""
    check_name("method", recipe.method, METHODS)
    chosen = METHODS[recipe.method]
    special = {name for m in METHODS.values() for name in m.options}
    recipe.refuse_options(special - set(chosen.options))
    return chosen
