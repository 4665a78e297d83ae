"""Adversarial images in pixels of [0, 1], and how well a random forest tells them from natural ones by their features.

Every attack stays within eps of the image in the maximum norm and inside [0, 1].  FGSM (Goodfellow et al. 2015), BIM (Kurakin
et al. 2017), MIM (Dong et al. 2018) and PGD (Madry et al. 2018) are one iteration with different starts, steps and memory.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from csglib.errors import Problem, check_finite, check_name
from csglib.networks.split import Split, differentiable


@dataclass(frozen=True)
class Attack:
    """An iteration in the maximum norm, in pixels of [0, 1]."""

    steps: int  # of the iteration
    step: float  # length of one, in pixels of [0, 1]
    decay: float = 0.0  # of the gradient's memory
    random_start: bool = False  # begin at a random point of the eps ball, else at the image
    eps: float = 8 / 255  # largest change of a pixel


ATTACKS = {
    "fgsm": Attack(1, 8 / 255),
    "bim": Attack(10, 2 / 255),
    "mim": Attack(10, 2 / 255, decay=1.0),
    "pgd": Attack(10, 2 / 255, random_start=True),
}


def attack(
    net: nn.Module,
    images: Float[Tensor, "N 3 H W"],
    labels: Int[Tensor, " N"],
    name: str,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "N 3 H W"]:
    """Images changed so that the network's cross entropy on their labels rises.

    The network is attacked in eval mode, and left in the mode it was in.

    Args:
        net: Takes images in [0, 1].
        images: In [0, 1]; what comes back is so too, and no pixel is further away than the attack allows.
        labels: One per image.
        name: fgsm, bim, mim or pgd.
        generator: Of pgd's first step; None takes torch's own.

    Raises:
        Problem: For an unknown attack, and for labels that are not the images'.
    """
    check_name("attack", name, ATTACKS)
    check_split(net)
    if labels.shape != images.shape[:1] or (len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < net.num_classes):
        raise Problem(f"attacks need one label per image, from 0 to {net.num_classes - 1}: these are {tuple(labels.shape)}")
    with torch.inference_mode(False):
        y = labels.clone()  # what was made in inference mode takes no part in a gradient
    return ascend(net, images, lambda x: -F.cross_entropy(net(x), y, reduction="none"), ATTACKS[name], generator)


def match(
    net: Split,
    images: Float[Tensor, "N 3 H W"],
    features: Float[Tensor, "N K"],
    how: Attack = Attack(40, 1 / 255),
) -> Float[Tensor, "N 3 H W"]:
    """The adaptive attack: images whose pooled features come near those of natural images of other classes.

    Who knows that the detector reads the features makes them look like natural ones (after Sabour et al. 2016).
    """
    check_split(net)
    if features.shape != (len(images), net.num_filters):
        raise Problem(f"features of shape {tuple(features.shape)} do not belong to {len(images)} images: give a row for each")
    with torch.inference_mode(False):
        target = features.detach().clone()
    return ascend(net, images, lambda x: ((net.pooled(x) - target) ** 2).sum(1), how)


def ascend(
    net: nn.Module, images: Float[Tensor, "N 3 H W"], loss: Callable[[Tensor], Tensor], how: Attack, generator=None
) -> Float[Tensor, "N 3 H W"]:
    """Descend the per-sample loss by signed steps, each image for itself, so that batches do not matter."""
    check_split(net)
    if not images.is_floating_point() or not images.numel():
        raise Problem(f"attacks need pixels in [0, 1], not {images.dtype} of shape {tuple(images.shape)}: divide bytes by 255")
    low, high = images.amin().item(), images.amax().item()
    if not (low >= 0 and high <= 1):  # NaN is neither
        raise Problem(f"attacks need pixels in [0, 1], and these lie in [{low:g}, {high:g}]: undo their normalisation first")
    with differentiable(net):
        images = images.detach().clone()
        least, most = (images - how.eps).clamp(min=0), (images + how.eps).clamp(max=1)
        x = images
        if how.random_start:
            noise = torch.rand(images.shape, generator=generator, dtype=images.dtype).to(images.device)
            x = (images + how.eps * (2 * noise - 1)).clamp(least, most)
        memory = torch.zeros_like(images)
        for _ in range(how.steps):
            x = x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss(x).sum(), x)
            check_finite("gradients of the loss in the pixels", gradient)
            size = gradient.abs().sum((1, 2, 3), keepdim=True).clamp(min=1e-12)
            memory = how.decay * memory + gradient / size
            x = (x.detach() - how.step * memory.sign()).clamp(least, most)
    return x


def check_split(net: nn.Module) -> None:
    if not isinstance(net, Split):
        raise Problem("attacks need a network that takes pixels in [0, 1] and normalises them itself: use csglib.gated")


def detection_errors(
    natural: Float[Tensor, "N K"], adversarial: Float[Tensor, "N K"], size: int, splits: int = 5, seed: int = 0
) -> list[float]:
    """Error of a random forest that tells adversarial features from natural ones, one value per split.

    Row n of both is the same image, and stays on one side of a split.  `size` samples train, half of them adversarial; all
    other images test.  Chance is 0.5.
    """
    from sklearn.ensemble import RandomForestClassifier

    if natural.shape != adversarial.shape:
        raise Problem(
            f"{tuple(natural.shape)} natural and {tuple(adversarial.shape)} adversarial features: give the same images"
        )
    check_finite("features", natural, adversarial)
    N, half = len(natural), size // 2
    if N - half < 50:
        raise Problem(f"{size} training samples take {half} images and leave fewer than 50 of {N} for tests: use more images")
    x = np.stack([natural.numpy(), adversarial.numpy()])  # (2, N, K)
    errors = []
    for split in range(splits):
        order = np.random.default_rng([seed, split]).permutation(N)
        train, test = order[:half], order[half:]
        truth = [np.repeat([0, 1], len(part)) for part in (train, test)]
        forest = RandomForestClassifier(100, random_state=split, n_jobs=1).fit(np.concatenate(x[:, train]), truth[0])
        errors.append(float((forest.predict(np.concatenate(x[:, test])) != truth[1]).mean()))
    return errors
