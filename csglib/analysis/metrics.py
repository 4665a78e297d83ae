"""Metrics of a readout: accuracy, mutual information, density; which class owns a filter, and what removing it does.

Tensors in, numbers out; no files, no images.  One answer where there is nothing to measure, everywhere: of a class without
images, of a filter or image without activation the number is NaN, and a mean is over the rest; NaN where nothing is left.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from csglib.analysis.information import balanced_information, check_samples, entropy, mutual_information
from csglib.errors import Problem, check_finite
from csglib.methods.csg import density, sharpness
from csglib.methods.icnn import variance
from csglib.readout import Readout

FEW = 10  # classes, up to which `mis` has room enough: the paper's own numbers for 6 and 10 classes fit its bound


def accuracy(logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> float:
    """Share of samples whose largest logit is their label's; NaN where a logit is not finite: none is the largest."""
    if labels.shape != logits.shape[:1]:
        raise Problem(f"{tuple(labels.shape)} labels do not belong to logits of shape {tuple(logits.shape)}: give one per row")
    if not logits.isfinite().all():
        return math.nan
    return (logits.argmax(1) == labels).double().mean().item()


def mis(features: Float[Tensor, "N K"], labels: Int[Tensor, " N"], num_classes: int) -> float:
    """Mutual information score of the paper, in nats: the mean over filters of max_c I(a_k ; 1[y = c]).

    At most H(1/C) with classes of equal size: 0.3251 for ten, 0.0079 for a thousand.
    """
    return mutual_information(features, labels, num_classes).amax(0).mean().item()


def mis_null(features: Float[Tensor, "N K"], labels: Int[Tensor, " N"], num_classes: int, seed: int = 0) -> float:
    """The score that the same features reach with shuffled labels: what estimator noise and the maximum over classes give."""
    return mis(features, shuffled(labels, seed), num_classes)


def mis_balanced(features: Float[Tensor, "N K"], labels: Int[Tensor, " N"], num_classes: int, seed: int = 0) -> float:
    """`mis` with half of the samples of each class in turn (`balanced_information`): at most ln 2 for any number of classes.

    The paper's code draws samples so behind a flag, which is off.  That its numbers for ImageNet, 0.55 and 0.63, are of this
    kind is inferred and unconfirmed: they exceed H(1/1000) = 0.0079 by far.  Read it beside `mis_balanced_null`, a larger
    share of its bound than `mis_null` is.
    """
    return balanced_information(features, labels, num_classes, seed=seed).amax(0).mean().item()


def mis_balanced_null(features: Float[Tensor, "N K"], labels: Int[Tensor, " N"], num_classes: int, seed: int = 0) -> float:
    """What `mis_balanced` is for the same features with shuffled labels."""
    return mis_balanced(features, shuffled(labels, seed), num_classes, seed)


def shuffled(labels: Int[Tensor, " N"], seed: int = 0) -> Int[Tensor, " N"]:
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).to(labels.device)]


def normalised(information: Float[Tensor, "C K"], labels: Int[Tensor, " N"]) -> float:
    """What a filter says of its best class as a share of all there is to say, its entropy H(p_c); the mean over filters.

    In [0, 1], and 1 where each filter tells one class perfectly, however many images the class has; with classes of equal
    size it is MIS / H(1/C).  The estimate of a perfect filter exceeds H(p_c) by up to 1.5 / N, so the mean is cut off at 1.
    A rare class is more easily told by chance: look at the chance level beside it.
    """
    count = torch.bincount(labels, minlength=len(information)).tolist()
    top = information.new_tensor([entropy(n / len(labels)) for n in count])[:, None]
    return min(1.0, torch.where(top > 0, information / top, 0).amax(0).mean().item())


def cluster(gate: Float[Tensor, "C K"]) -> Float[Tensor, "C K"]:
    """Each filter given wholly to the class of its largest gate entry, the first of equals: a one-hot mask.

    NaN, the mean over no image, is never the largest.
    """
    winner = torch.where(gate.isnan(), -math.inf, gate).argmax(0, keepdim=True)
    return torch.zeros_like(gate).scatter_(0, winner, 1)


def masked_accuracy(readout: Readout, mask: Float[Tensor, "N K"]) -> float:
    """Accuracy of the standard path with each sample's filters multiplied by its mask, without retraining."""
    return accuracy(readout.masked(mask), readout.labels)


def clusters(
    readout: Readout, gate: Float[Tensor, "C K"], mask: Literal["hard", "expected", "sampled"] = "hard", seed: int = 0
) -> tuple[float, float]:
    """PICNN's ACC2 and ACC3: only the cluster of the class that the network predicts; all but that of the true class.

    ACC3 is low where a class depends on its own filters.

    Args:
        readout: Of which the features, the head and the labels are used.
        gate: Which filters a class has.
        mask: What a cluster is.  hard: the filters whose largest entry is the class's; expected: every filter times its entry;
            sampled, as in training: each filter drawn for each image with its entry's probability, and the predicted class
            drawn from the softmax.
        seed: Of these draws.

    Returns:
        ACC2 and ACC3.
    """
    rows, predicted = (cluster(gate) if mask == "hard" else gate), readout.logits.argmax(1)
    if mask == "sampled":
        generator = torch.Generator(gate.device).manual_seed(seed)
        predicted = torch.multinomial(readout.logits.softmax(1), 1, generator=generator).squeeze(1)

    def masks(classes: Int[Tensor, " N"]) -> Float[Tensor, "N K"]:
        return torch.bernoulli(rows[classes], generator=generator) if mask == "sampled" else rows[classes]

    acc2 = masked_accuracy(readout, masks(predicted))
    return acc2, masked_accuracy(readout, 1 - masks(readout.labels))


def evaluate(readout: Readout) -> dict[str, float | None]:
    """All metrics of one readout.  Clusters are hard, so nothing is drawn.

    Returns:
        Name -> value, as metrics.json has them; None for what needs a gate where there is none.  With more than ten classes
        `mis_balanced` and its chance level are among them: there the bound of `mis` is so small that they are needed beside it.

    Raises:
        Problem: For a readout that holds NaN or infinity, or labels of no class.
    """
    C, labels = len(readout.bias), readout.labels
    check_samples(readout.features, labels, C)
    check_finite("head, gate or logits", readout.logits, *(t for t in readout.tensors().values() if t.is_floating_point()))
    told = mutual_information(readout.features, labels, C)
    by_chance = mutual_information(readout.features, shuffled(labels), C)
    values = {
        "accuracy": accuracy(readout.logits, labels),
        "mis": told.amax(0).mean().item(),
        "mis_null": by_chance.amax(0).mean().item(),
        "mis_normalised": normalised(told, labels),
        "null_normalised": normalised(by_chance, shuffled(labels)),
        "l1_density": None,
        "sharpness": None,
        "acc1": accuracy(readout.logits, readout.labels),
        "acc2": None,
        "acc3": None,
        "removed": masked_accuracy(readout, 1 - class_filters(readout)[readout.labels]),
    }
    if C > FEW:
        values["mis_balanced"] = mis_balanced(readout.features, labels, C)
        values["mis_balanced_null"] = mis_balanced_null(readout.features, labels, C)
    if readout.gate is not None:
        values["l1_density"] = density(readout.gate, projected=False)  # training has checked it
        values["sharpness"] = sharpness(readout.gate)
        values["acc2"], values["acc3"] = clusters(readout, readout.gate)
    return values


def class_means(readout: Readout) -> Float[Tensor, "C K"]:
    """The centre of each class: mean pooled activation of every filter over the images of the class; NaN if it has none."""
    C = len(readout.bias)
    member = F.one_hot(readout.labels, C).to(readout.features)  # (N, C)
    return member.T @ readout.features / member.sum(0)[:, None]


def own_filters(readout: Readout) -> Float[Tensor, "C K"]:
    """Each filter given to one class: that of its largest gate entry; without a gate, that whose images excite it most."""
    return cluster(class_means(readout) if readout.gate is None else readout.gate)


def class_filters(readout: Readout) -> Float[Tensor, "C K"]:
    """Row c masks the filters of class c: those that it owns; without a gate the K/C, rounded up, that it excites most."""
    C, K = readout.weight.shape
    if readout.gate is not None:
        return own_filters(readout)
    return most_active(readout, torch.full((C,), math.ceil(K / C), device=readout.features.device))


def owners(readout: Readout) -> Int[Tensor, " K"]:
    """The class that owns each filter."""
    return own_filters(readout).argmax(0)


def class_scores(readout: Readout) -> Float[Tensor, "N C"]:
    """How much each class's filters fire for each image: the mean over them of a_k / max a_k, in [0, 1]; 0 without filters."""
    own = own_filters(readout)
    scaled = readout.features.clamp(min=0) / readout.features.amax(0).clamp(min=1e-12)
    return scaled @ own.T / own.sum(1).clamp(min=1)


def information(readout: Readout) -> Float[Tensor, "C K"]:
    """I(a_k ; 1[y = c]) in nats, of every filter about every class."""
    return mutual_information(readout.features, readout.labels, len(readout.bias)).float()


def overlap(information: Float[Tensor, "C K"], gate: Float[Tensor, "C K"] | None) -> float:
    """Share of all the filters' information that the gate lets through, sum(G * M) / sum(M), in [0, 1].

    Without a gate, the share of each filter's best class: no gate with one class per filter can let through more.  NaN where no
    filter has any.
    """
    through = information.amax(0) if gate is None else (information * gate).sum(0)
    return (through.sum() / information.sum()).item()


def correlation(vectors: Float[Tensor, "K D"]) -> Float[Tensor, "K K"]:
    """|cos| of every pair of vectors; 0 where one of them is zero."""
    unit = F.normalize(vectors.double(), dim=1)
    return (unit @ unit.T).abs().clamp(max=1)  # rounding may exceed it


def blocks(correlation: Float[Tensor, "K K"], owners: Int[Tensor, " K"]) -> tuple[float, float]:
    """Mean |cos| over pairs of filters of the same class and over pairs of different classes, no filter with itself.

    NaN where there is no such pair.
    """
    same = owners[:, None] == owners[None, :]
    itself = torch.eye(len(owners), dtype=torch.bool, device=owners.device)
    return correlation[same & ~itself].mean().item(), correlation[~same].mean().item()


def most_active(readout: Readout, count: Int[Tensor, " C"]) -> Float[Tensor, "C K"]:
    """For each class c a mask of the count[c] filters that its images excite most; a filter may stand in several rows.

    A class without images has the first of them.
    """
    rank = class_means(readout).nan_to_num().argsort(dim=1, descending=True, stable=True).argsort(1)
    return (rank < count[:, None]).to(readout.features)


def random_filters(count: Int[Tensor, " C"], num_filters: int, seed: int) -> Float[Tensor, "C K"]:
    """For each class c a mask of count[c] filters drawn without replacement."""
    rank = torch.rand(len(count), num_filters, generator=torch.Generator().manual_seed(seed)).argsort(1).argsort(1)
    return (rank < count[:, None]).float()


def removal(readout: Readout, removed: Float[Tensor, "R K"]) -> Float[Tensor, "R C"]:
    """Accuracy on the images of each class (columns) with the filters of one mask after another (rows) zeroed.

    NaN in the column of a class without images.
    """
    C = len(readout.bias)
    member = F.one_hot(readout.labels, C).double()  # (N, C)
    rows = []
    for mask in removed:
        logits = readout.masked(1 - mask)
        right = (logits.argmax(1) == readout.labels).double()
        rows.append(right @ member / member.sum(0))
    return torch.stack(rows)


def own_and_others(accuracies: Float[Tensor, "C C"]) -> tuple[float, float]:
    """Of a removal of every class's filters in turn: mean accuracy on the class removed, and on the other classes."""
    itself = torch.eye(len(accuracies), dtype=torch.bool, device=accuracies.device)
    return accuracies[itself].nanmean().item(), accuracies[~itself].nanmean().item()


def confusion(readout: Readout, removed: Float[Tensor, " K"]) -> Float[Tensor, "C C"]:
    """Share of each true class's images (rows) given to each class (columns) with these filters zeroed.

    NaN in the row of a class without images.
    """
    C = len(readout.bias)
    logits = readout.masked(1 - removed)
    counts = torch.bincount(readout.labels * C + logits.argmax(1), minlength=C * C).view(C, C).double()
    return counts / counts.sum(1, keepdim=True)


def own_share(readout: Readout) -> float:
    """Mean over classes of the share of a class centre's activation that lies in the filters which the class owns."""
    centre = class_means(readout).clamp(min=0)  # what fires: a share of negative numbers is none
    own = owners(readout)[None, :] == torch.arange(len(centre), device=centre.device)[:, None]
    return ((centre * own).sum(1) / centre.sum(1)).nanmean().item()


def reach(maps: Float[Tensor, "N K H W"]) -> Float[Tensor, " K"]:
    """How far a filter's activation reaches: its standard deviation around the centroid, in pixels of the map along one axis.

    Each map counts by its activation; NaN for a filter that never fires.
    """
    a = F.relu(maps).double()
    apart = (variance(a.sum(3)) + variance(a.sum(2))).div(2).sqrt()  # (N, K)
    strength = a.sum((2, 3))
    return (strength * apart).sum(0) / strength.sum(0)


def location_instability(
    maps: Float[Tensor, "N K h w"],
    landmarks: Float[Tensor, "N P 2"],
    size: tuple[int, int],
    labels: Int[Tensor, " N"] | None = None,
    top: int = 100,
) -> float:
    """ICNN's: how much the distance from a filter's peak to a part varies between images, as a share of the diagonal.

    landmarks are the (row, column) of each part in pixels of an image of that size, NaN where the part is not marked.  A peak
    lies at the centre of its cell.  Over the `top` images of highest peak with the part, the deviation of the distance; its
    mean over parts, then over filters.  With labels a filter is tried on the images of the class with its highest mean peak.
    Flat maps have no peak and are left out.  NaN where no part is marked twice.
    """
    N, K, h, w = maps.shape
    if len(landmarks) != N or (labels is not None and len(labels) != N):
        raise Problem(f"{N} images need as many rows of landmarks, and of labels: these have {len(landmarks)}")
    check_finite("maps", maps)
    score, place = maps.flatten(2).max(2)  # (N, K)
    row, column = place // w, place % w
    peak = torch.stack(((row + 0.5) * size[0] / h, (column + 0.5) * size[1] / w), 2)  # (N, K, 2)
    distance = (peak[:, :, None] - landmarks[:, None]).norm(dim=3)  # (N, K, P)
    distance = distance.masked_fill((score == maps.flatten(2).amin(2))[:, :, None], math.nan)  # a flat map has no peak
    if labels is not None:
        member = F.one_hot(labels).to(score)  # (N, C)
        mean = member.T @ score / member.sum(0)[:, None].clamp(min=1)
        mean[member.sum(0) == 0] = -math.inf  # a class without images
        distance = distance.masked_fill((labels[:, None] != mean.argmax(0))[:, :, None], math.nan)
    distance = distance.gather(0, score.argsort(dim=0, descending=True, stable=True)[:, :, None].expand_as(distance))
    marked = ~distance.isnan()
    used = marked & (marked.cumsum(0) <= top)
    n = used.sum(0)
    d = torch.where(used, distance, 0)
    variation = (torch.where(used, distance - d.sum(0) / n, 0) ** 2).sum(0) / (n - 1)
    deviation = torch.where(n >= 2, variation.sqrt(), math.nan)  # (K, P)
    return (deviation.nanmean(1).nanmean() / math.hypot(*size)).item()


def hoyer(features: Float[Tensor, "N K"]) -> float:
    """Mean sparsity of the samples' features after Hoyer (2004): (sqrt K - L1 / L2) / (sqrt K - 1); 0 all equal, 1 one-hot.

    Over the samples that have any activation.
    """
    K = features.shape[1]
    a = features.double()
    ratio = a.abs().sum(1) / a.norm(dim=1)  # NaN of a silent sample
    return ((math.sqrt(K) - ratio) / (math.sqrt(K) - 1)).nanmean().item()
