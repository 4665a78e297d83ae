"""What a readout says: accuracy, mutual information score, density.  Tensors in, numbers out; no files, no images."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from csglib.gate import density
from csglib.information import entropy, mutual_information
from csglib.runs import Readout


def accuracy(logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> float:
    """Share of samples whose largest logit is their label's."""
    return (logits.argmax(1) == labels).double().mean().item()


def mis(features: Float[Tensor, "N K"], labels: Int[Tensor, " N"], num_classes: int) -> float:
    """Mutual information score of the paper, in nats: the mean over filters of max_c I(a_k ; 1[y = c])."""
    return mutual_information(features, labels, num_classes).amax(0).mean().item()


def mis_null(features: Float[Tensor, "N K"], labels: Int[Tensor, " N"], num_classes: int, seed: int = 0) -> float:
    """The score that the same features reach with shuffled labels: what estimator noise and the maximum over classes give."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return mis(features, labels[order.to(labels.device)], num_classes)


def cluster(gate: Float[Tensor, "C K"]) -> Float[Tensor, "C K"]:
    """Each filter given wholly to the class of its largest gate entry, the first of equals: a one-hot mask."""
    return torch.zeros_like(gate).scatter_(0, gate.argmax(0, keepdim=True), 1)


def masked_accuracy(readout: Readout, mask: Float[Tensor, "N K"]) -> float:
    """Accuracy of the standard path with each sample's filters multiplied by its mask, without retraining."""
    return accuracy((readout.features * mask) @ readout.weight.T + readout.bias, readout.labels)


def evaluate(readout: Readout) -> dict[str, float | None]:
    """All metrics of one readout; those that need a gate are None without one.

    acc1, acc2, acc3 after PICNN, made deterministic: all filters; only the cluster of the class that the network
    predicts; all but the cluster of the true class (low where a class depends on its own filters).
    """
    C = readout.logits.shape[1]
    score = mis(readout.features, readout.labels, C)
    values = {
        "accuracy": accuracy(readout.logits, readout.labels),
        "mis": score,
        "mis_null": mis_null(readout.features, readout.labels, C),
        "mis_normalised": score / entropy(1 / C),
        "l1_density": None,
        "acc1": accuracy(readout.logits, readout.labels),
        "acc2": None,
        "acc3": None,
    }
    if readout.gate is not None:
        own = cluster(readout.gate)
        values["l1_density"] = density(readout.gate)
        values["acc2"] = masked_accuracy(readout, own[readout.logits.argmax(1)])
        values["acc3"] = masked_accuracy(readout, 1 - own[readout.labels])
    return values
