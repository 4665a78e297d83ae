"""How much of a network a class needs: accuracy as connections between classes and filters are cut.

A connection (c, k) is the head's weight W[c, k], by which filter k enters the logit of class c.  A matrix orders the
connections; the first of them are kept, the others are set to zero, and nothing is trained again.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from csglib.analysis import metrics
from csglib.readout import Readout

# Of all connections, in per cent; with ten classes each filter has one left at 10
LEVELS = (*range(1, 11), 12, 14, 16, 18, 20, *range(25, 101, 5))


def by_activation(readout: Readout) -> Float[Tensor, "C K"]:
    """Mean activation by class, each filter divided by its largest."""
    means = metrics.class_means(readout).nan_to_num()
    return means / means.amax(0).clamp(min=1e-12)


def by_head(readout: Readout) -> Float[Tensor, "C K"]:
    """The head's positive weights, each filter divided by its largest."""
    weight = readout.weight.clamp(min=0)
    return weight / weight.amax(0).clamp(min=1e-12)


def ranks(matrix: Float[Tensor, "C K"], ties: Float[Tensor, "C K"]) -> Int[Tensor, "C K"]:
    """The place of each connection, 0 for the largest entry; of equal entries the one that is larger in `ties` comes first."""
    order = ties.flatten().argsort(descending=True, stable=True)
    order = order[matrix.flatten()[order].argsort(descending=True, stable=True)]
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order))
    return places.view_as(matrix)


def kept(levels: tuple[int, ...], connections: int) -> list[int]:
    """How many connections each level keeps."""
    return [max(1, round(level * connections / 100)) for level in levels]


def accuracies(readout: Readout, places: Int[Tensor, "C K"], counts: list[int]) -> Float[Tensor, "L C"]:
    """Accuracy on the images of each class where so many connections are kept; NaN for a class without images."""
    member = torch.nn.functional.one_hot(readout.labels, len(readout.bias)).double()
    rows = []
    for n in counts:
        logits = readout.features @ (readout.weight * (places < n)).T + readout.bias
        rows.append((member * (logits.argmax(1) == readout.labels)[:, None]).sum(0) / member.sum(0))
    return torch.stack(rows)


def assignments(readout: Readout) -> list[Float[Tensor, "C K"]]:
    """Ways to give each filter to one class: by the gate, or without one by mean activation; and by the head's weights."""
    return [metrics.own_filters(readout), metrics.cluster(readout.weight)]


def one_group(readout: Readout) -> float:
    """Accuracy where each class's logit is summed over its own filters alone, no retraining: each entry of the head that
    does not belong to the filter's class is set to zero.  Of the ways to assign filters the one that suits the network best."""
    r = readout
    return max(metrics.accuracy(r.features @ (r.weight * own).T + r.bias, r.labels) for own in assignments(r))


def one_group_loss(readout: Readout) -> float:
    return metrics.accuracy(readout.logits, readout.labels) - one_group(readout)
