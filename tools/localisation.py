"""Measure where the networks fine-tuned on animals look: data/measured/localisation.json.

    python tools/localisation.py

Objects of the list `val` are scored, by their masks where all have one and by their boxes otherwise; thresholds, and the class
that a filter belongs to, are fitted on objects of `train`.  The `tight` crops are the paper's, of the set that the network was
trained on: they end where the object ends.  The `wide` ones have twice the side at twice the resolution, the object as large as
before and the photograph around it, and are of VOC, whose photographs reach further.  A run that has been measured with the
same weights is left alone, so the tool goes on where it was stopped.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torchvision.ops import box_iou

from csgbook import experiments, measured
from csglib import data, networks, paths
from csglib.analysis import localize
from csglib.data import objects
from csglib.data.objects import Objects
from csglib.runs import Run

WIDE = "voc_animals"  # under CSGLIB_DATA; voc2012 has the same photographs and more
FITTED = 600  # training objects: the first, of photographs in random order
GRADIENT = 25  # objects of each class for GradMap, which takes a backward pass for each filter and image


@torch.no_grad()
def maps_of(net: networks.Split, found: Objects) -> torch.Tensor:
    return torch.cat([net.maps(data.to_float(batch)).contiguous() for batch in found.images.split(50)])


def masks_of(found: Objects) -> torch.Tensor:
    shown = found.masks.flatten(1).any(1).all()
    return found.masks if shown else localize.box_masks(found.boxes, found.images.shape[2:])


def chance(found: Objects) -> dict[str, float]:
    """What needs no network: the middle 30 % of every crop, a square, and all of it; of their boxes the better."""
    masks, size = masks_of(found), found.images.shape[2]
    half = size * 0.3**0.5 / 2
    boxes = {
        "middle": torch.tensor([[size / 2 - half, size / 2 - half, size / 2 + half, size / 2 + half]]),
        "whole": torch.tensor([[0.0, 0, size, size]]),
    }
    middle = localize.box_masks(boxes["middle"], (size, size))
    hits = {name: (box_iou(box, found.boxes) >= 0.5).double().mean().item() for name, box in boxes.items()}
    return {
        "middle_iou": localize.iou(middle.expand_as(masks), masks).mean().item(),
        "whole_iou": masks.float().mean((1, 2)).mean().item(),
        "box_accuracy": max(hits.values()),
    }


def heat_of(net: networks.Split, maps: torch.Tensor, found: Objects) -> torch.Tensor:
    return localize.enlarge(localize.cam(maps, net.head.weight.detach(), found.labels), tuple(found.images.shape[2:]))


def measure(run: Run) -> dict:
    net = run.network().eval()
    return {
        "tight": tight(net, paths.folder() / run.recipe.dataset.removeprefix("voc:")),
        "wide": wide(net, paths.folder() / WIDE),
    }


def tight(net: networks.Split, root: Path) -> dict:
    train, val = objects.both(root)
    train = train.take(list(range(FITTED)))
    train_maps, maps = maps_of(net, train), maps_of(net, val)
    masks, C = masks_of(val), len(objects.ANIMALS)
    member = F.one_hot(train.labels, C).float()
    means = member.T @ train_maps.mean((2, 3)) / member.sum(0)[:, None]
    some = torch.cat([(val.labels == c).nonzero()[:GRADIENT, 0] for c in range(C)])
    images = data.to_float(val.images[some]).contiguous()
    filters = train_maps, train.labels, masks_of(train), maps, val.labels, masks, C
    return {
        **told(root, val),
        "cam": localize.cam_scores(heat_of(net, train_maps, train), train.boxes, heat_of(net, maps, val), val.boxes, masks),
        "activation": localize.activation_scores(*filters),
        "firing": localize.activation_scores(*filters, firing=True),
        "gradient": localize.gradient_scores(net, means, images, val.labels[some], masks[some]) | {"objects": len(some)},
    }


def wide(net: networks.Split, root: Path) -> dict:
    train, val = objects.both(root, size=256, context=2.0)
    train = train.take(list(range(min(FITTED, len(train)))))
    heats = (heat_of(net, maps_of(net, part), part) for part in (train, val))
    scores = localize.cam_scores(next(heats), train.boxes, next(heats), val.boxes, masks_of(val))
    return {**told(root, val), "cam": scores}


def told(root: Path, val: Objects) -> dict:
    shown = bool(val.masks.flatten(1).any(1).all())
    return {"dataset": root.name, "objects": len(val), "against": "masks" if shown else "boxes", "chance": chance(val)}


if __name__ == "__main__":
    for group in experiments.published("localisation", "short").values():
        for run in group:
            if measured.of("localisation", run) is None:
                measured.keep("localisation", run, {"crops": measure(run)})
