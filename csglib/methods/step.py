"""One training step of a method, in this project's loop and in yours: the loss of a batch, and what the gate does after it."""

import torch
from torch import Tensor, nn

from csglib.errors import Problem
from csglib.methods import Gate, Method, method
from csglib.networks.hooked import Hooked, Network
from csglib.networks.split import Split
from csglib.recipe import Recipe


class Step(nn.Module):
    """A method with its network, its gate and the gate's optimiser.

    A call gives the loss of a batch; after the backward pass and the step of the weights' optimiser, `step` moves the gate.
    """

    def __init__(self, recipe: Recipe, m: Method, net: Network, gate: Gate | None, optimiser: torch.optim.Optimizer | None):
        super().__init__()
        self.recipe, self.m, self.net, self.gate, self.optimiser = recipe, m, net, gate, optimiser
        self.path = "standard"

    def forward(self, images: Tensor, labels: Tensor, epoch: int | Tensor) -> tuple[Tensor, Tensor]:
        """Loss and logits of a batch, on the path that this epoch trains."""
        self.path = self.m.path(self.recipe, epoch)
        return self.m.loss(self.recipe, epoch, self.net, self.gate, images, labels)

    def step(self, scaler: torch.amp.GradScaler | None = None) -> None:
        """The gate's step and projection, which stay out of standard epochs; its gradients are cleared in any case."""
        if self.optimiser is None:
            return
        if self.path != "standard":
            if scaler is None:
                self.optimiser.step()
            else:
                scaler.step(self.optimiser)
            if self.m.after_step is not None:
                self.m.after_step(self.recipe, self.gate)
        self.optimiser.zero_grad()


class InYourLoop(Step):
    """A method for a training loop of one's own:

        loss, logits = csg(images, labels, epoch)
        loss.backward(); optimiser.step(); csg.step(); optimiser.zero_grad()

    The weights' optimiser holds `net.parameters()`; the gate has its own.  Raises Problem, at the first step, for images
    that are not as the network takes them, labels outside its classes, an epoch out of range, and a step that is forgotten
    or taken twice.
    """

    def __init__(self, net: Network, recipe: Recipe):
        if not isinstance(net, Network):
            raise Problem(
                f"{type(net).__name__} is not cut yet: give csglib.gated(network, 'layer4', num_classes), or for CSG the "
                "network itself and layer='layer4'"
            )
        m = method(recipe)
        device = next(net.parameters()).device
        gate = m.gate(recipe, net)
        if gate is not None:
            gate.to(device)
        optimiser = None if m.optimiser is None else m.optimiser(recipe, gate, device.type == "cuda")
        super().__init__(recipe, m, net, gate, optimiser)
        self.seen, self.owed = False, False  # a batch; and a step after the last one

    def forward(self, images: Tensor, labels: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Loss and logits of a batch: images (B, 3, H, W), labels (B), epochs counted from 0."""
        if not 0 <= epoch < self.recipe.epochs:
            raise Problem(f"epoch {epoch} is out of range: count from 0 to {self.recipe.epochs - 1}, or give more epochs")
        if self.owed:
            raise Problem(
                "step() was not called after the last batch: call it once a batch, after the optimiser's step; after an "
                "interruption, call it once by hand"
            )
        if not self.seen or labels.device.type == "cpu":  # a GPU would have to stop for it in each step
            check_batch(self.net, images, labels)
            self.seen = True
        self.owed = torch.is_grad_enabled()
        return super().forward(images, labels, epoch)

    def step(self, scaler: torch.amp.GradScaler | None = None) -> None:
        """The gate's step and projection, once after each batch; with the scaler of float16, if there is one."""
        if not self.owed:
            raise Problem("step() was called twice, or before a batch: call it once a batch, after the optimiser's step")
        self.owed = False
        super().step(scaler)


def check_batch(net: Network, images: Tensor, labels: Tensor) -> None:
    """Raises Problem for images and labels that are not as the network takes them."""
    if not images.is_floating_point():
        raise Problem(f"the images are {images.dtype}, and a network takes floats: divide bytes by 255, as ToTensor does")
    if labels.dtype.is_floating_point or labels.ndim != 1 or len(labels) != len(images):
        raise Problem(f"labels of {len(images)} images are as many whole numbers, not {labels.dtype} {tuple(labels.shape)}")
    low, high = int(labels.min()), int(labels.max())
    if not 0 <= low <= high < net.num_classes:
        raise Problem(f"the labels go from {low} to {high}, and the network has classes 0 to {net.num_classes - 1}")
    if isinstance(net, Split) and net.normalises and not -0.01 <= float(images.min()) <= float(images.max()) <= 1.01:
        raise Problem(
            f"the images go from {float(images.min()):.2g} to {float(images.max()):.2g}, and this network normalises images "
            "in [0, 1] itself: leave Normalize out of the loader, or cut the network by gated(..., mean=None, std=None)"
        )


class CSG(InYourLoop):
    """Class-specific gates (Liang et al., ECCV 2020) over so many epochs; `gate.matrix` is the gate, classes by filters.

    Args:
        net: A network cut by `csglib.gated`; or any network, gated at `layer` by a forward hook.
        epochs: How many will be trained; which of them train the gated path, `cycle` says, one letter each, after `warmup`.
        density: The share of the gate's entries where the penalty ends, from 1/C to 1; the default follows C.
        start: Every gate entry before the first step.
        lr, momentum, penalty: Of the gate's SGD, and lambda2.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        epochs: int,
        layer: str | None = None,
        density: float = Recipe.gate_density,
        cycle: str = Recipe.cycle,
        warmup: int = Recipe.warmup,
        start: float = Recipe.gate_start,
        lr: float = Recipe.gate_lr,
        momentum: float = Recipe.gate_momentum,
        penalty: float = Recipe.gate_penalty,
    ):
        gate = {"gate_density": density, "gate_start": start, "gate_lr": lr, "gate_momentum": momentum, "gate_penalty": penalty}
        recipe = Recipe(method="csg", epochs=epochs, cycle=cycle, warmup=warmup, **gate)
        super().__init__(net if layer is None else Hooked(net, layer), recipe)


class PICNN(InYourLoop):
    """PICNN (Guo et al., AAAI 2024): `gate.matrix` is P, whose columns are distributions of the filters over the classes.

    Args:
        net: A network cut by `csglib.gated`.
        epochs: How many will be trained, all alike.
        weight: lambda of the interpretation loss.
        lr, decay: Of the matrix's Adam.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        epochs: int,
        weight: float = Recipe.picnn_weight,
        lr: float = Recipe.theta_lr,
        decay: float = Recipe.theta_decay,
    ):
        super().__init__(net, Recipe(method="picnn", epochs=epochs, picnn_weight=weight, theta_lr=lr, theta_decay=decay))


class ICNN(InYourLoop):
    """ICNN (Zhang et al., CVPR 2018): the network gets a mask, and `gate.matrix` tells the class of each filter.

    Args:
        net: A network cut by `csglib.gated`, which gets a mask behind its maps.
        epochs: How many will be trained.
        weight: Of the filter loss in the first epoch; in epoch e it is divided by e + 1.
    """

    def __init__(self, net: nn.Module, *, epochs: int, weight: float = Recipe.template_weight):
        super().__init__(net, Recipe(method="icnn", epochs=epochs, template_weight=weight))
