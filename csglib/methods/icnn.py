"""ICNN's templates (Zhang, Wu, Zhu, CVPR 2018): a filter should fire for one class, and in one place of the map.

The loss of a filter is -MI(X; T), the mutual information between its maps X and a set of templates T: one for each position of
the map, and one for "not here".  `information` and `gradient` compute it and its derivative exactly.  Training follows the
released code instead, which injects an approximate gradient: `filter_loss` has that gradient, and no meaning as a value.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from csglib.errors import Problem
from csglib.methods.standard import Losses
from csglib.networks.split import Split
from csglib.recipe import Recipe

TEMPERATURE = 0.5  # of the released code's exponentials


def templates(n: int, beta: float = 4.0) -> Float[Tensor, "T n n"]:
    """The paper's n^2 positive templates, tau max(1 - beta |p - mu|_1 / n, -1), and last the negative one, -tau everywhere."""
    tau = 0.5 / n**2
    place = torch.cartesian_prod(torch.arange(n), torch.arange(n)).double()  # (n^2, 2)
    distance = (place[:, None] - place[None]).abs().sum(2).view(-1, n, n)
    positive = tau * (1 - beta * distance / n).clamp(min=-1)
    return torch.cat((positive, torch.full((1, n, n), -tau, dtype=torch.float64)))


def fitness(maps: Float[Tensor, "N K n n"], T: Float[Tensor, "T n n"]) -> tuple[Tensor, Tensor]:
    """log p(x | T), normalised over the N maps of a filter, and log p(x) under equal priors of all n^2 + 1 templates."""
    trace = torch.einsum("nkij,tij->nkt", maps.double(), T.to(maps.device))
    log_p = trace - trace.logsumexp(0)
    return log_p, log_p.logsumexp(2) - math.log(len(T))


def information(maps: Float[Tensor, "N K n n"]) -> Float[Tensor, " K"]:
    """MI(X; T) of each filter over the N maps, in nats; minus the paper's loss.  Differentiable."""
    log_p, log_x = fitness(maps, T := templates(maps.shape[2]))
    return (log_p.exp() * (log_p - log_x[..., None])).sum((0, 2)) / len(T)


def gradient(maps: Float[Tensor, "N K n n"]) -> Float[Tensor, "N K n n"]:
    """The exact derivative of -MI(X; T): -sum_T p(T) p(x|T) T (log[p(x|T) / p(x)] - KL_T).

    The paper holds Z_T constant and so loses KL_T = sum_x p(x|T) log[p(x|T) / p(x)].
    """
    log_p, log_x = fitness(maps, T := templates(maps.shape[2]))
    log_ratio = log_p - log_x[..., None]
    KL = (log_p.exp() * log_ratio).sum(0)
    return -torch.einsum("nkt,tij->nkij", log_p.exp() * (log_ratio - KL) / len(T), T.to(maps.device))


class TemplateMask(nn.Module):
    """Masks each map around the centre of its activation; keeps each filter's class and the steepness of its masks.

    After the released code: the centre is the activation's centroid, not its maximum, and the steepness follows the spread
    of the activation.  `matrix` assigns each filter to the class with the largest mean peak; training alone moves it.
    """

    def __init__(self, num_classes: int, num_filters: int):
        super().__init__()
        self.register_buffer("steepness", torch.full((num_filters,), 2.0))
        self.register_buffer("peaks", torch.zeros(num_classes, num_filters))  # moving average of the maps' maxima by class

    @property
    def matrix(self) -> Float[Tensor, "C K"]:
        """One-hot columns: each filter's class."""
        return torch.zeros_like(self.peaks).scatter_(0, self.peaks.argmax(0, keepdim=True), 1)

    def forward(self, x: Float[Tensor, "N K H W"]) -> Float[Tensor, "N K H W"]:
        """The activated maps times their masks, of which the negative part counts as 0."""
        return F.relu(x) * self.masks(x).clamp(min=0).to(x.dtype)

    @torch.no_grad()
    def masks(self, x: Float[Tensor, "N K H W"]) -> Float[Tensor, "N K H W"]:
        """max(1 - w |p - mu|_1, -1) with positions from -1 to 1 and mu the rounded centroid."""
        N, K, H, W = x.shape
        if H * W == 1:
            raise Problem("icnn needs maps with a place to look at, and this layer gives 1 x 1: choose an earlier layer")
        weight = F.relu(x).float()
        dy, dx = apart(weight.sum(3))[..., :, None], apart(weight.sum(2))[..., None, :]
        return (1 - self.steepness[:, None, None] * (dy + dx)).clamp(min=-1)

    @torch.no_grad()
    def update(self, x: Float[Tensor, "N K H W"], labels: Int[Tensor, " N"]) -> None:
        """Move peaks and steepness towards this batch.  A class that is not in the batch keeps its peaks."""
        x = F.relu(x).float()
        member = F.one_hot(labels, len(self.peaks)).to(x)  # (N, C)
        count = member.sum(0)[:, None]
        peak = torch.zeros_like(self.peaks).index_add(0, labels, x.amax((2, 3)))  # float32 under autocast too
        seen = peak / count.clamp(min=1)
        first = self.peaks.amax() == 0
        moved = torch.where(first, seen.clamp(min=0.1), 0.9 * self.peaks + 0.1 * seen)  # as released
        self.peaks.copy_(torch.where(count > 0, moved, torch.where(first, 0.1, self.peaks)))

        # The spread of each map in pixels of one axis; averaged over the images of the filter's class, by their activation.
        strength = x.sum((2, 3)) * (self.matrix.argmax(0) == labels[:, None])  # (N, K)
        spread = sum(variance(sums) for sums in (x.sum(3), x.sum(2))).div(2).sqrt()
        sigma = (strength * spread).sum(0) / strength.sum(0).clamp(min=1e-9)
        target = (3 / sigma.clamp(min=1e-9)).clamp(1.5, 3.0)
        # 0.05 an update, our choice: the released code multiplies several rates and divides by the batch
        self.steepness.lerp_(torch.where(strength.sum(0) > 0, target, self.steepness), 0.05)


def centroid(sums: Float[Tensor, "N K L"]) -> tuple[Tensor, Tensor]:
    """The positions along one axis, and the mean position of each map's activation; 0 where there is none."""
    grid = torch.arange(sums.shape[2], device=sums.device, dtype=sums.dtype)
    return grid, (sums * grid).sum(2) / sums.sum(2).clamp(min=1e-9)  # no matrix product: autocast would round it


def apart(sums: Float[Tensor, "N K L"]) -> Float[Tensor, "N K L"]:
    """Distance of each position from the rounded centroid, on an axis from -1 to 1."""
    grid, centre = centroid(sums)
    return (grid - centre.round()[..., None]).abs() * (2 / max(len(grid) - 1, 1))


def variance(sums: Float[Tensor, "N K L"]) -> Float[Tensor, "N K"]:
    """Of the positions along one axis, weighted by the activation there, in squared pixels; 0 where there is none."""
    grid, centre = centroid(sums)
    return (sums * (grid - centre[..., None]) ** 2).sum(2) / sums.sum(2).clamp(min=1e-9)


def filter_loss(x: Float[Tensor, "N K H W"], labels: Int[Tensor, " N"], mask: TemplateMask) -> Float[Tensor, ""]:
    """A loss whose derivative in the maps x is the gradient that the released code injects, over N images in the mean.

    In images of the filter's class the activation around its centre rises, by how well it fits already; in all others it
    falls everywhere.  That is the rule: the weights s, held constant, turn negative where a map fits much worse than most,
    and are large where their mean is near 0, as in the released code.  Before the first update no filter has a class, and
    the loss is 0.
    """
    x = F.relu(x).float()
    N, C = len(x), len(mask.peaks)
    with torch.no_grad():
        M = mask.masks(x)
        own = mask.matrix.argmax(0) == labels[:, None]  # (N, K)
        fits, silent = (x * M).mean((2, 3)), -x.mean((2, 3))
        # log Z, up to the temperature: its masks are those of another filter on another image
        elsewhere = (x * M.flip(0, 1)).mean((2, 3))
        # so that both kinds weigh the same where classes are balanced; the code has this for more than ten classes
        s_own = 0.5 * C * strength(fits, elsewhere, own)
        s_other = 0.5 / (1 - 1 / C) * strength(silent, silent, ~own)
    loss = (s_other * x.sum((2, 3)) - s_own * (M * x).sum((2, 3))).sum() / N
    return loss * (mask.peaks.amax() > 0)


def strength(fit: Float[Tensor, "N K"], base: Float[Tensor, "N K"], where: Bool[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """exp(t/a) (t - a log Z + a), a log Z = a log mean exp(base/a), divided by its mean over each filter's marked images."""
    a = TEMPERATURE
    log_z = a * ((base / a).logsumexp(0) - math.log(len(base)))
    s = torch.where(where, (fit / a).exp() * (fit - log_z + a), 0).nan_to_num()
    mean = s.sum(0) / where.sum(0).clamp(min=1)
    return (s / mean).nan_to_num(nan=0, posinf=0, neginf=0)


def template_mask(recipe: Recipe, net: Split) -> TemplateMask:
    """The mask becomes a part of the network, since ICNN's evaluation needs it too."""
    net.mask = TemplateMask(net.num_classes, net.num_filters)
    return net.mask


def icnn_loss(
    recipe: Recipe,
    epoch: int | Tensor,
    net: Split,
    gate: TemplateMask,
    images: Float[Tensor, "B 3 H W"],
    labels: Int[Tensor, " B"],
) -> Losses:
    """CE(y, y~) on the masked maps, plus the filter loss on the maps before the mask, with a weight that falls as 1/epoch."""
    x = net.maps(images)
    logits = net.head(gate(x).mean((2, 3)))
    loss = F.cross_entropy(logits, labels) + recipe.template_weight / (epoch + 1) * filter_loss(x, labels, gate)
    gate.update(x, labels)  # after the loss, as the released code does
    return loss, logits
