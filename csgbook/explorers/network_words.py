"""The sentences and tables around the network in the page, with the numbers of its runs."""

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown

from csgbook.explorers.network import Member, NetworkInPage
from csgbook.pages.tables import markdown
from csglib.analysis import metrics
from csglib.data.images import to_float
from csglib.runs import Run

MAPS = 32  # side of the first layer's maps


def answer(runs: dict[str, Run]) -> Markdown:
    """What is left of a class without its filters, on all test images of the runs; one network per name."""
    left = {n: metrics.own_and_others(metrics.removal(r.readout, metrics.own_filters(r.readout))) for n, r in runs.items()}
    specific = set(left) == {"STD", "CSG"} and left["CSG"][0] < 0.02 and left["STD"][0] > 0.1
    head = "With class-specific filters it does, in a standard network only in part. " if specific else ""
    told = [
        f"{name} still recognises {100 * mine:.1f} % of that class's test images, and {100 * others:.1f} % of the others"
        for name, (mine, others) in left.items()
    ]
    if not told:
        return Markdown("No run is here yet.")
    seeds = ", ".join(sorted({str(r.recipe.seed) for r in runs.values()}))
    return Markdown(f"{head}Without the filters of a class {'; '.join(told)} (seed {seeds}).")


def weight(shown: NetworkInPage) -> Markdown:
    """What the page carries and what a pass computes."""
    networks = shown.spec()["networks"]
    parameters = sum(p.numel() for p in shown.members[0].net.parameters())
    size, products = MAPS, 0
    for layer in networks[0]["layers"]:
        size //= layer["stride"]
        products += 9 * layer["inputs"] * layer["outputs"] * size**2
    return Markdown(
        f"Each network has {parameters:,} parameters and takes {products / 1e6:.0f} million multiply-adds per image. "
        f"The page carries both in {sum(len(n['base64']) for n in networks) / 1e6:.2f} MB."
    )


@torch.no_grad()
def without_their_class(shown: NetworkInPage) -> Markdown:
    """Of the images of the page, those that each network gets right with all filters, and without those of their class."""
    rows = []
    labels = shown.images.labels
    for m in shown.members:
        features, head = m.net.pooled(to_float(shown.images.images)), m.net.head
        own = torch.tensor(m.owner) == labels[:, None]  # (N, K)
        right = head(features).argmax(1) == labels
        still = right & (head(features * ~own).argmax(1) == labels)
        counts = [f"{right.sum()} of {len(labels)}", f"{still.sum()} of {right.sum()}"]
        rows.append([m.name, *counts])
    return markdown(pd.DataFrame(rows, columns=["network", "right with all filters", "still right without those of the class"]))


@torch.no_grad()
def strongest(member: Member, shown: NetworkInPage, image: int, top: int = 3) -> Markdown:
    """The filters that speak most for the image's class, and the class's probability without each."""
    pixels, label = shown.images.images[image], int(shown.images.labels[image])
    maps = member.maps(pixels)
    support = (maps.mean((1, 2)) * member.net.head.weight[label]).numpy()
    before = float(member.logits(maps, frozenset()).softmax(0)[label])
    rows = [
        {
            "filter": k,
            "of class": shown.classes[member.owner[k]],
            "mean of its map": f"{maps[k].mean():.3f}",
            "weight": f"{float(member.net.head.weight[label, k]):.3f}",
            "product": f"{support[k]:.2f}",
            f"{shown.classes[label]} without it": f"{100 * float(member.logits(maps, frozenset({k})).softmax(0)[label]):.1f} %",
        }
        for k in np.argsort(-support)[:top].tolist()
    ]
    table = markdown(pd.DataFrame(rows).astype(str))
    return Markdown(f"With all filters {member.name} gives {shown.classes[label]} {100 * before:.1f} %.\n\n{table.data}")
