"""Measure where the networks fine-tuned on animals look: data/measured/localisation.json.

    python tools/localisation.py

Objects of the list `val` are scored, by their masks where all have one and by their boxes otherwise; thresholds, and the class
that a filter belongs to, are fitted on objects of `train`.  Crops are `tight` as the paper's, the object's box from side to
side, and `wide`, with twice the side at twice the resolution: the object as large as before, the photograph around it.  A run
that has been measured with the same weights is left alone, so the tool goes on where it was stopped.
"""

import torch
import torch.nn.functional as F

from csglib import data, experiments, localize, measured, nets, objects
from csglib.objects import Objects
from csglib.runs import Run
from csglib.train import network

CROPS = {"tight": (1.0, 128), "wide": (2.0, 256)}  # sides of the box, pixels
FITTED = 600  # training objects: the first, of photographs in random order
GRADIENT = 25  # objects of each class for GradMap, which takes a backward pass for each filter and image


@torch.no_grad()
def maps_of(net: nets.Split, found: Objects) -> torch.Tensor:
    return torch.cat([net.maps(data.to_float(batch)).contiguous() for batch in found.images.split(50)])


def masks_of(found: Objects) -> torch.Tensor:
    shown = found.masks.flatten(1).any(1).all()
    return found.masks if shown else localize.box_masks(found.boxes, found.images.shape[2:])


def chance(found: Objects) -> dict[str, float]:
    """What needs no network: the middle 30 % of every crop, and all of it."""
    masks, size = masks_of(found), found.images.shape[2]
    half = size * 0.3**0.5 / 2
    middle = localize.box_masks(
        torch.tensor([[size / 2 - half, size / 2 - half, size / 2 + half, size / 2 + half]]), (size, size)
    )
    hits = localize.max_box_accuracy(torch.ones(len(found), 2, 2), found.boxes * 2 / size, thresholds=1)
    return {
        "middle_iou": localize.iou(middle.expand_as(masks), masks).mean().item(),
        "whole_iou": masks.float().mean((1, 2)).mean().item(),
        "whole_box_accuracy": hits[0].item(),
    }


def measure(run: Run) -> dict:
    net = network(run).eval()
    root = data.folder() / run.recipe.dataset.removeprefix("voc:")
    crops = {}
    for name, (context, size) in CROPS.items():
        train, val = objects.load(root, size, context)
        train = train.take(list(range(FITTED)))
        train_maps, maps = maps_of(net, train), maps_of(net, val)
        heat, train_heat = (
            localize.enlarge(localize.cam(m, net.head.weight.detach(), o.labels), (size, size))
            for m, o in ((maps, val), (train_maps, train))
        )
        masks = masks_of(val)
        crops[name] = {"cam": localize.cam_scores(train_heat, train.boxes, heat, val.boxes, masks), "chance": chance(val)}
        if name == "tight":
            fitted = train_maps, train.labels, masks_of(train)
            crops[name]["activation"] = localize.activation_scores(*fitted, maps, val.labels, masks, len(objects.ANIMALS))
            member = F.one_hot(train.labels, len(objects.ANIMALS)).float()
            means = member.T @ train_maps.mean((2, 3)) / member.sum(0)[:, None]
            some = torch.cat([(val.labels == c).nonzero()[:GRADIENT, 0] for c in range(len(objects.ANIMALS))])
            images = data.to_float(val.images[some]).contiguous()
            crops[name]["gradient"] = localize.gradient_scores(net, means, images, val.labels[some], masks[some])
            crops[name]["gradient"]["objects"] = len(some)
        print(run.recipe.name, name, crops[name], flush=True)
    shown = val.masks.flatten(1).any(1).all()
    return {"objects": len(val), "against": "masks" if shown else "boxes", "crops": crops}


if __name__ == "__main__":
    for group in experiments.published("localisation", "short").values():
        for run in group:
            if measured.of("localisation", run) is None:
                measured.keep("localisation", run, measure(run))
