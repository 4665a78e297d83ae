"""Where a network looks: heat maps of classes and of filters, and how well they agree with boxes or masks of the object.

Definitions after CSG's released code (CAM, ActivMap, GradMap) and Choe et al., CVPR 2020 (MaxBoxAcc).  A heat map with NaN or
infinity is refused.  One that is constant points nowhere: it has no score, NaN, is left out of means, and a warning counts it.
"""

import math
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from csglib.errors import Problem, check_finite
from csglib.networks.split import differentiable


def check_alike(*tensors: Tensor, dims: int = 1) -> None:
    """Refuse what is not of the same images: torch would repeat a single one for all others."""
    shapes = {tuple(t.shape[:dims]) for t in tensors}
    if len(shapes) > 1:
        raise Problem(
            f"what belongs together has different sizes, {' and '.join(map(str, sorted(shapes)))}: give one per image"
        )


def check_classes(labels: Int[Tensor, " N"], num_classes: int) -> None:
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        low, high = int(labels.min()), int(labels.max())
        raise Problem(f"classes run from {low} to {high}, where there are {num_classes}: number them from 0")


def flat(heat: Float[Tensor, "N H W"]) -> Bool[Tensor, " N"]:
    """Which heat maps are constant."""
    check_finite("heat maps", heat)
    found = heat.amax((1, 2)) == heat.amin((1, 2))
    if n := int(found.sum()):
        warnings.warn(f"{n} of {len(heat)} heat maps are constant and point nowhere: they are left out", stacklevel=3)
    return found


def cam(maps: Float[Tensor, "N K h w"], weight: Float[Tensor, "C K"], classes: Int[Tensor, " N"]) -> Float[Tensor, "N h w"]:
    """Class activation map: the filters' maps, weighted by the head's row of each image's class."""
    check_alike(maps, classes)
    check_classes(classes, len(weight))
    return torch.einsum("nkhw,nk->nhw", maps, weight[classes])


def enlarge(heat: Float[Tensor, "N h w"], size: tuple[int, int]) -> Float[Tensor, "N H W"]:
    """To H x W positions, bilinear."""
    return F.interpolate(heat[:, None], size, mode="bilinear")[:, 0]


def hottest(heat: Float[Tensor, "N H W"], share: float) -> Bool[Tensor, "N H W"]:
    """Each image's hottest share of pixels, exactly that many; of equals the first."""
    check_finite("heat maps", heat)
    count = max(1, round(share * heat[0].numel()))
    flat = heat.flatten(1)
    chosen = flat.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, chosen, True).view_as(heat)


def filter_thresholds(maps: Float[Tensor, "N K h w"], share: float = 0.3, firing: bool = False) -> Float[Tensor, " K"]:
    """ActivMap's T_k: the value that a share of filter k's activations reach, over all positions of (training) images.

    It is 0 for a filter that fires at fewer positions.  Then T_k marks every pixel of every image: report how many there are.
    With `firing` the share is of the positions where the filter fires; a filter that never does marks nothing.
    """
    check_finite("maps", maps)
    values = maps.transpose(0, 1).flatten(1).sort(dim=1, descending=True).values
    places = (values > 0).sum(1) if firing else torch.full_like(values[:, 0], values.shape[1], dtype=torch.long)
    count = (share * places).long().clamp(min=1)
    T = values.gather(1, count[:, None] - 1)[:, 0]
    return torch.where(places > 0, T, math.inf)


def activation_masks(
    maps: Float[Tensor, "N h w"], threshold: Float[Tensor, ""], size: tuple[int, int]
) -> Bool[Tensor, "N H W"]:
    """Where one filter's enlarged map reaches its threshold: everywhere if that is 0, since no activation is less."""
    check_finite("maps", maps)
    if threshold <= 0:
        return torch.ones(len(maps), *size, dtype=torch.bool, device=maps.device)
    return enlarge(maps, size) >= threshold


def gradmap(net: nn.Module, images: Float[Tensor, "N 3 H W"], filters: Int[Tensor, " R"]) -> Float[Tensor, "R N H W"]:
    """How strongly each pixel moves the mean activation of a filter: the gradient's norm over colours, smoothed.

    Divided by its root mean square over the image, then blurred with a Gaussian of 30 pixels' deviation and 61 pixels' width;
    the released code takes what exceeds 1.  Of a filter that no pixel moves the map is 0.  The network is in eval mode here.
    """
    from torchvision.transforms.functional import gaussian_blur

    rows = []
    with differentiable(net):
        x = images.detach().clone().requires_grad_(True)
        a = net.pooled(x)  # (N, K)
        for i, k in enumerate(filters.tolist()):
            (gradient,) = torch.autograd.grad(a[:, k].sum(), x, retain_graph=i + 1 < len(filters))
            check_finite(f"gradients of filter {k}", gradient)
            heat = gradient.norm(dim=1)
            rms = heat.square().mean((1, 2), keepdim=True).sqrt().clamp(min=1e-12)
            rows.append(gaussian_blur(heat / rms, [61, 61], [30.0, 30.0]))
    return torch.stack(rows)


def box_masks(boxes: Float[Tensor, "N 4"], size: tuple[int, int]) -> Bool[Tensor, "N H W"]:
    """The pixels whose centres lie in the box (left, top, right, bottom)."""
    check_finite("boxes", boxes)
    y, x = (torch.arange(n, device=boxes.device) + 0.5 for n in size)
    left, top, right, bottom = boxes.T[:, :, None]
    return ((y > top) & (y < bottom))[:, :, None] & ((x > left) & (x < right))[:, None, :]


def iou(a: Bool[Tensor, "N H W"], b: Bool[Tensor, "N H W"]) -> Float[Tensor, " N"]:
    """Intersection over union of each pair of masks; 0 of two empty ones."""
    check_alike(a, b, dims=3)
    first, second = a.flatten(1).float(), b.flatten(1).float()  # counts below 2^24 are exact, and float sums ten times faster
    both = torch.linalg.vecdot(first, second)
    return both / (first.sum(1) + second.sum(1) - both).clamp(min=1)


def max_box_accuracy(
    heat: Float[Tensor, "N H W"], boxes: Float[Tensor, "N 4"], thresholds: int = 100, overlap: float = 0.5
) -> Float[Tensor, " T"]:
    """At each threshold from 0 to 1, the share of images whose largest hot region's box meets the object's.

    Each heat map is first scaled to [0, 1].  Its maximum over thresholds is MaxBoxAcc; choose the threshold on other images.
    Of images whose heat map is not constant; NaN if there is none.
    """
    from scipy.ndimage import find_objects, label

    check_alike(heat, boxes)
    check_finite("boxes", boxes)
    told = ~flat(heat)
    heat, boxes = heat[told], boxes[told]
    low, high = heat.amin((1, 2), keepdim=True), heat.amax((1, 2), keepdim=True)
    scaled = ((heat - low) / (high - low)).cpu().numpy()
    hits = torch.zeros(thresholds)
    for picture, (left, top, right, bottom) in zip(scaled, boxes.tolist(), strict=True):
        for t in range(thresholds):
            regions, count = label(picture >= t / thresholds)
            if not count:
                continue
            largest = np.bincount(regions.ravel())[1:].argmax()
            rows, columns = find_objects(regions)[largest]
            height = max(0.0, min(bottom, rows.stop) - max(top, rows.start))
            both = height * max(0.0, min(right, columns.stop) - max(left, columns.start))
            area = (rows.stop - rows.start) * (columns.stop - columns.start)
            hits[t] += both >= overlap * (area + (right - left) * (bottom - top) - both)
    return hits / len(heat)  # 0 / 0 is NaN


# Scores of one network on one set of objects; thresholds and classes of filters are fitted on the training objects.


def cam_scores(
    train: Float[Tensor, "M H W"],
    train_boxes: Float[Tensor, "M 4"],
    test: Float[Tensor, "N H W"],
    boxes: Float[Tensor, "N 4"],
    masks: Bool[Tensor, "N H W"],
) -> dict[str, float]:
    """Of enlarged class activation maps: mean IoU of the hottest 30 % with the masks, AP30, and the accuracy of their boxes.

    `box_accuracy` has the threshold that was best on the training objects, `max_box_accuracy` the best of all on these.
    """
    told = ~flat(test)
    overlap = iou(hottest(test, 0.3), masks)[told]
    curve, fitted = max_box_accuracy(test, boxes), max_box_accuracy(train, train_boxes)
    return {
        "iou": overlap.mean().item(),
        "ap30": (overlap > 0.3).double().mean().item(),
        "box_accuracy": curve[fitted.argmax()].item() if fitted.isfinite().all() else math.nan,
        "max_box_accuracy": curve.max().item(),
    }


def activation_scores(
    train: Float[Tensor, "M K h w"],
    train_labels: Int[Tensor, " M"],
    train_masks: Bool[Tensor, "M H W"],
    test: Float[Tensor, "N K h w"],
    labels: Int[Tensor, " N"],
    masks: Bool[Tensor, "N H W"],
    num_classes: int,
    firing: bool = False,
) -> dict[str, float | list[int]]:
    """ActivMap: a filter belongs to the class in whose images it most often exceeds an IoU of 0.3; its IoU in these images.

    Of classes where it does equally often, that with the largest mean IoU.  Means over filters; `filters` counts those of each
    class, `zero_thresholds` is the share of filters whose threshold is 0 and which therefore mark whole images.  A filter that
    has one value everywhere, and not 0, has no scores.
    """
    check_alike(train, train_labels, train_masks)
    check_alike(test, labels, masks)
    for given in (train_labels, labels):
        check_classes(given, num_classes)
    constant = (train.amin((0, 2, 3)) == train.amax((0, 2, 3))) & (train[0, :, 0, 0] != 0)
    T = filter_thresholds(train, firing=firing)
    size = masks.shape[1:]
    counts, overlaps, hits = [0] * num_classes, [], []
    for k in range(train.shape[1]):
        overlap = iou(activation_masks(train[:, k], T[k], size), train_masks)
        of = [overlap[train_labels == c] for c in range(num_classes)]
        scores = [((o > 0.3).double().mean().item(), o.mean().item()) if len(o) else (-1.0, 0.0) for o in of]
        own = scores.index(max(scores))
        here = labels == own
        overlap = iou(activation_masks(test[here, k], T[k], size), masks[here])
        counts[own] += 1
        if constant[k]:
            continue
        overlaps.append(overlap.mean().item())
        hits.append((overlap > 0.3).double().mean().item())
    return {
        "iou": torch.tensor(overlaps).nanmean().item(),
        "ap30": torch.tensor(hits).nanmean().item(),
        "zero_thresholds": (T <= 0).double().mean().item(),
        "filters": counts,
    }


def gradient_scores(
    net: nn.Module,
    means: Float[Tensor, "C K"],
    images: Float[Tensor, "N 3 H W"],
    labels: Int[Tensor, " N"],
    masks: Bool[Tensor, "N H W"],
    filters: int = 30,
    batch: int = 50,
) -> dict[str, float]:
    """GradMap: for each image the mean IoU over the filters that its class excites most (means of the training objects)."""
    check_alike(images, labels, masks)
    check_classes(labels, len(means))
    check_finite("means", means[labels.unique()])
    found = torch.zeros(len(labels))
    for c in labels.unique().tolist():
        best = means[c].topk(min(filters, means.shape[1])).indices
        for place in (labels == c).nonzero()[:, 0].split(batch):
            heat = gradmap(net, images[place], best)
            found[place.cpu()] = torch.stack([iou(h > 1, masks[place]) for h in heat]).mean(0).cpu()
    return {"iou": found.mean().item(), "ap20": (found >= 0.2).double().mean().item()}
