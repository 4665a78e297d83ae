"""A filter may fire for a class and yet not be used for it: numbers that tell the two apart, from a readout alone.

Nothing in CSG's gated loss silences a filter for the classes that its gate is closed to: there the activation is multiplied by
zero, so that neither its value nor its gradient reaches the loss.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from csgbook.evidence.cut import one_group_loss
from csgbook.evidence.verdicts import removed
from csglib.analysis import metrics
from csglib.readout import Readout
from csglib.runs import Run


def evidence(readout: Readout) -> Float[Tensor, "C K"]:
    """What filter k adds to the logit of class c above the mean logit, in the mean over images of c; what it takes off is 0.

    (W_ck - mean_j W_jk) mean_i a_k(x_i), since only differences between logits count.
    """
    return (metrics.class_means(readout) * (readout.weight - readout.weight.mean(0))).clamp(min=0)


def own_evidence(readout: Readout) -> float:
    """Mean over classes of the share of a class's evidence that its own filters give."""
    E, own = evidence(readout), metrics.own_filters(readout)
    return ((E * own).sum(1) / E.sum(1).clamp(min=1e-12)).mean().item()


def elsewhere(readout: Readout) -> float:
    """Mean activation on images of other classes over that on images of the filter's own class, mean over filters."""
    own, other = sides(readout)
    return (other[0] / own[0].clamp(min=1e-12)).mean().item()


def separation(readout: Readout) -> float:
    """Distance of a filter's means on its own class and on the others, in pooled standard deviations; mean over filters."""
    own, other = sides(readout)
    return ((own[0] - other[0]) / ((own[1] + other[1]) / 2).sqrt().clamp(min=1e-12)).mean().item()


def within(readout: Readout) -> float:
    """The pooled standard deviation inside the own class and the others, relative to the own class's mean; over filters."""
    own, other = sides(readout)
    return (((own[1] + other[1]) / 2).sqrt() / own[0].clamp(min=1e-12)).mean().item()


def sides(readout: Readout) -> tuple[Float[Tensor, "2 K"], Float[Tensor, "2 K"]]:
    """Mean and variance of every filter on the images of its own class, and on those of the others."""
    a = readout.features.double()
    mine = (F.one_hot(readout.labels, len(readout.bias))[:, metrics.owners(readout)]).double()  # (N, K)

    def moments(member: Tensor) -> Tensor:
        n = member.sum(0).clamp(min=1)
        mean = (a * member).sum(0) / n
        return torch.stack((mean, ((a - mean) ** 2 * member).sum(0) / n))

    return moments(mine), moments(1 - mine)


def unseen(readout: Readout) -> float | None:
    """Share of all activation that the gated path multiplies by zero: no gradient of the gated loss reaches it."""
    if readout.gate is None:
        return None
    closed = (readout.gate == 0).float()[readout.labels]  # (N, K)
    return ((readout.features * closed).sum() / readout.features.sum()).item()


def exciting(readout: Readout, top: int = 6) -> float:
    """Share of each filter's `top` most exciting images that show the filter's own class, mean over filters."""
    best: Int[Tensor, "T K"] = readout.features.argsort(dim=0, descending=True, stable=True)[:top]
    return (readout.labels[best] == metrics.owners(readout)).double().mean().item()


def of(statistic):
    """The same of a run's readout."""
    return lambda run: statistic(run.readout)


MEASURES = {  # of the table on the page of the method: what fires, what is used, what is known
    "Fires: share of a class's mean activation that falls on its own filters": of(metrics.own_share),
    "Fires: mean activation on other classes, relative to the own class": of(elsewhere),
    "Fires: sparsity of an image's features (Hoyer, 1 is one-hot)": lambda run: metrics.hoyer(run.readout.features),
    "Used: share of a class's support that comes from its own filters": of(own_evidence),
    "Used: accuracy left on a class without its filters": lambda run: removed(run)[0],
    "Used: accuracy lost where each class may use its own filters alone": of(one_group_loss),
    "Tells: standard deviation inside own and other classes, relative to the own class's mean": of(within),
    "Tells: distance between own and other classes, in standard deviations": of(separation),
    "Tells: mutual information score, nats": lambda run: run.metrics["mis"],
    "Trained: share of the activation that no gradient of the gated loss reaches": of(unseen),
}  # fmt: skip


def means(measure, runs: list[Run]) -> float:
    return sum(measure(run) for run in runs) / len(runs)
