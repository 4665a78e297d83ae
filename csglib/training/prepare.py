"""What is there before the first step: network, gate and optimisers of a recipe, and what must hold of the machine."""

import copy
import os
import shutil

import torch
from torch import nn

from csglib import data, networks
from csglib.data.images import Pictures
from csglib.errors import Problem
from csglib.methods import Gate, Method, method
from csglib.recipe import Recipe


def build(recipe: Recipe, num_classes: int) -> tuple[Method, networks.Split, Gate | None]:
    """The recipe's method, and its network and gate as they start."""
    m = method(recipe)
    torch.manual_seed(recipe.seed)
    net = networks.build(recipe.net, num_classes, recipe.weights)
    networks.freeze(net, recipe.thaw)
    return m, net, m.gate(recipe, net)


def optimisers_of(recipe: Recipe, m: Method, net: networks.Split, gate: Gate | None) -> list[torch.optim.Optimizer]:
    """That of the weights, and that of the gate where a step moves it; made for the device on which they are."""
    on_gpu = net.head.weight.is_cuda
    return [weights_optimiser(net, recipe)] + ([m.optimiser(recipe, gate, on_gpu)] if m.optimiser is not None else [])


def weights_optimiser(net: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """SGD with Nesterov's momentum over what learns of the network; the gate is not among it, nor in its weight decay."""
    learning = [p for p in net.parameters() if p.requires_grad]
    return torch.optim.SGD(learning, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True, fused=True)


def check_compiler(device: torch.device) -> None:
    """What torch.compile needs beside torch: for a processor a C++ compiler, for a GPU Triton, which asks for a C compiler."""
    if device.type == "cuda" and (found := torch.cuda.get_device_capability(device)) < (7, 0):
        name = torch.cuda.get_device_name(device)
        raise Problem(f"loop fast needs a GPU of capability 7.0, and {name} has {found[0]}.{found[1]}: leave --loop out")
    variable, language, known = ("CC", "C", ("gcc", "clang")) if device.type == "cuda" else ("CXX", "C++", ("g++", "clang++"))
    if not (os.environ.get(variable) or any(map(shutil.which, known))):
        raise Problem(f"loop fast needs a {language} compiler, and there is none: install {known[0]}, or leave --loop out")


@torch.no_grad()
def draws(net: networks.Split, images: Pictures) -> bool:
    """Whether the network draws random numbers in training, as dropout does: found by trying a copy, on two images."""
    before = torch.get_rng_state()
    copy.deepcopy(net).train()(data.to_float(images.first(2)))
    return not torch.equal(torch.get_rng_state(), before)
