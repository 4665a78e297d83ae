"""A network in the page: two trained ResNets that the reader's browser runs, on test images or on one of the reader's own.

resnet.js computes what PyTorch does, network.js moves what it computes; `page` is the same in Python, for a kernel, and the
first position of the page, for a browser without JavaScript.  The weights travel as they lie in the run: kernels in float16.
"""

import base64
import hashlib
import html
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from csgbook.embed import bundle, heat_map, sprite
from csgbook.explorers.explore import STYLE
from csgbook.explorers.views import fixed
from csglib import Problem
from csglib.analysis import metrics
from csglib.data.images import Images, to_float
from csglib.networks.resnet import BasicBlock
from csglib.networks.split import Split
from csglib.runs import Run

BUDGET = 1_500_000  # bytes of both networks' weights in the page
ACROSS = 10  # images in a row of the sprite
FOLDER = Path(__file__).parent
SCRIPTS = ("network.js", "resnet.js")  # the first line of the first is known to tools/ext/content_policy.py
CLASS = "csg-explorer csg-net tex2jax_ignore mathjax_ignore"


def packed(net: Split) -> dict:
    """What resnet.js reads: kernels as float16 where that keeps them, batch normalisation as a scale and a shift in float32."""
    layers, blocks = [], bytearray()

    def add(t: Tensor) -> bool:
        halves = torch.equal(t.half().float(), t)
        blocks.extend(t.detach().contiguous().numpy().astype("<f2" if halves else "<f4").tobytes())
        return halves

    def add_layer(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> None:
        scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
        shift = bn.bias.double() - scale * bn.running_mean.double()
        shape = {"inputs": conv.in_channels, "outputs": conv.out_channels, "stride": conv.stride[0]}
        layers.append(shape | {"halves": add(conv.weight)})
        for vector in (scale, shift):
            blocks.extend(vector.detach().numpy().astype("<f4").tobytes())

    first, bn, _, *rest = net.features
    add_layer(first, bn)
    for block in rest:
        add_layer(block.conv1, block.bn1)
        add_layer(block.conv2, block.bn2)
    halves = add(net.head.weight)
    blocks.extend(net.head.bias.detach().numpy().astype("<f4").tobytes())
    return {
        "classes": net.num_classes,
        "mean": net.mean.flatten().tolist(),
        "std": net.std.flatten().tolist(),
        "layers": layers,
        "headHalves": halves,
        "base64": base64.b64encode(bytes(blocks)).decode(),
    }


@dataclass(frozen=True)
class Member:
    """One of the networks side by side."""

    name: str  # as the page calls it, STD
    run: Run
    scale: Float[Tensor, " K"]  # the largest entry of each filter's map on the sample, shown in full colour

    @cached_property
    def net(self) -> Split:
        return checked(self.run.network(), self.name).eval()

    @cached_property
    def owner(self) -> list[int]:
        """The class of each filter: of its gate, or without one the class that excites it most."""
        return metrics.owners(self.run.readout).tolist()

    @torch.no_grad()
    def maps(self, pixels: UInt8[Tensor, "3 32 32"]) -> Float[Tensor, "K h w"]:
        return self.net.maps(to_float(pixels[None]))[0]

    @torch.no_grad()
    def logits(self, maps: Float[Tensor, "K h w"], off: frozenset[int]) -> Float[Tensor, " C"]:
        kept = torch.ones(len(maps))
        kept[list(off)] = 0
        return self.net.head(maps.mean((1, 2)) * kept)


def checked(net: Split, name: str) -> Split:
    blocks = list(net.features)[3:] if isinstance(net.features, nn.Sequential) else []
    if not blocks or not all(isinstance(b, BasicBlock) for b in blocks) or not isinstance(net.mask, nn.Identity):
        raise Problem(f"the page runs CIFAR's ResNets without a mask, and {name} is something else: choose resnet20 or resnet8")
    return net


@dataclass(frozen=True)
class State:
    """What the reader has chosen."""

    pixels: UInt8[Tensor, "3 32 32"]
    label: int | None  # the image's class; none of an image of one's own
    off: dict[str, frozenset[int]]  # filters switched off, by the name of the network


@dataclass(frozen=True)
class NetworkInPage:
    """Shown by a notebook as widgets where a kernel runs, and as HTML that computes by itself elsewhere."""

    members: tuple[Member, ...]
    classes: tuple[str, ...]
    images: Images  # those to choose from, class after class

    title = "A network in the page"
    caption = (
        "Left the standard network, right the one with class-specific filters, both on the same image. The bars are the "
        "predicted probabilities; the thin mark in each is where it was with all filters on. Below, the map of every filter, "
        "the filters sorted by class: the darker, the stronger; a filter that is off is crossed out."
    )

    def start(self) -> State:
        return State(self.images.images[0], int(self.images.labels[0]), {m.name: frozenset() for m in self.members})

    def view(self, state: State) -> list[dict]:
        """Of each network the probabilities, those with all filters on, and the maps in [0, 1]."""
        shown = []
        for m in self.members:
            maps = m.maps(state.pixels)
            values = (maps / m.scale.clamp(min=1e-12)[:, None, None]).clamp(0, 1).sqrt()
            shown.append(
                {
                    "name": m.name,
                    "owner": m.owner,
                    "share": m.logits(maps, state.off[m.name]).double().softmax(0).tolist(),
                    "first": m.logits(maps, frozenset()).double().softmax(0).tolist(),
                    "off": state.off[m.name],
                    "maps": heat_map(tiled(values.numpy())),
                }
            )
        return shown

    def page(self, state: State) -> str:
        """The part below the controls, the elements whose content network.js replaces."""
        networks = "".join(column(v, self.classes, state.label) for v in self.view(state))
        told = "Your own image" if state.label is None else f"A test image of class {self.classes[state.label]}"
        return (
            f'<div class="net-input"><div class="net-image" role="img" aria-label="{html.escape(told)}" '
            f'style="background-image:url({sprite(state.pixels[None], 1, None)})"></div><p>{html.escape(told)}</p></div>'
            f'<div class="net-pair">{networks}</div>'
        )

    def spec(self) -> dict:
        return {
            "classes": list(self.classes),
            "labels": self.images.labels.tolist(),
            "across": ACROSS,
            "sum": int(self.images.images.sum()),  # some browsers change the pixels that a page reads, and it should say so
            "networks": [
                {"name": m.name, "owner": m.owner, "scale": [float(f"{v:.4g}") for v in m.scale.tolist()]} | packed(m.net)
                for m in self.members
            ],
        }

    def to_html(self) -> str:
        spec = self.spec()
        if (size := sum(len(n["base64"]) for n in spec["networks"])) > BUDGET:
            raise Problem(f"the networks take {size} bytes in the page, more than {BUDGET}: show a smaller one, or fewer")
        payload = json.dumps(spec).replace("<", "\\u003c")
        uid = "net-" + hashlib.sha256(payload.encode()).hexdigest()[:10]
        script = "\n".join((FOLDER / name).read_text() for name in SCRIPTS)
        return (
            f'<figure class="{CLASS}" id="{uid}" aria-label="{self.title}" '
            f'style="--sprite:url({sprite(self.images.images, ACROSS, None)})"><style>{style()}</style>'
            f'{controls(uid, self.classes, self.images)}<p class="csg-note net-note" role="alert" hidden></p>'
            f'<div class="csg-view">{self.page(self.start())}</div><p class="net-time"></p>'
            f'<p class="csg-status" role="status"></p><figcaption>{html.escape(self.caption)} <noscript>Choosing an image and '
            f"switching filters off need JavaScript; this is the first image, with all filters on.</noscript></figcaption>"
            f'<script type="application/json">{payload}</script>'
            f"<script>{script}\ncsgNetwork(document.getElementById({json.dumps(uid)}));</script></figure>"
        )

    def widget(self):
        """The same as ipywidgets 7.7 (Colab) or 8, computed by PyTorch."""
        from csgbook.explorers.network_widget import made

        return made(self)

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        return bundle(f"NetworkInPage({', '.join(m.name for m in self.members)})", self)


def style() -> str:
    return STYLE.read_text() + (FOLDER / "network.css").read_text()


def tiled(maps: Float[np.ndarray, "K h w"], across: int = 8) -> Float[np.ndarray, "H W"]:
    """All maps in one picture, `across` in a row."""
    K, h, w = maps.shape
    whole = np.zeros((-(-K // across) * h, across * w))
    for k, one in enumerate(maps):
        y, x = divmod(k, across)
        whole[y * h : (y + 1) * h, x * w : (x + 1) * w] = one
    return whole


def column(v: dict, classes: tuple[str, ...], label: int | None) -> str:
    """One network: what it says, its ten bars, its filters class by class."""
    e, top = html.escape, int(np.argmax(v["share"]))
    bars = "".join(
        f"<tr{' data-true' * (c == label)}{' data-top' * (c == top)}{' data-moved' * moved(v, c)}>"
        f'<th scope="row">{e(name)}</th>'
        f'<td class="net-bar" style="--share:{v["share"][c]:.4f};--first:{v["first"][c]:.4f}"></td>'
        f"<td>{percent(v['share'][c])}</td></tr>"
        for c, name in enumerate(classes)
    )
    rows = "".join(
        f'<div class="net-row"><span>{e(name)}</span><div>'
        + "".join(tile(v, k, e(name)) for k, c in enumerate(v["owner"]) if c == i)
        + "</div></div>"
        for i, name in enumerate(classes)
    )
    return (
        f'<section aria-label="{e(v["name"])}" data-network="{e(v["name"])}" style="--maps:url({v["maps"]})">'
        f'<p class="net-name"><b>{e(v["name"])}</b> <span>{e(classes[top])}, {percent(v["share"][top])}</span></p>'
        f'<table class="net-bars"><caption>Predicted probabilities of {e(v["name"])}</caption><tbody>{bars}</tbody></table>'
        f'<div class="net-wall" role="group" aria-label="Filters of {e(v["name"])}, by class">{rows}</div></section>'
    )


def tile(v: dict, k: int, name: str) -> str:
    y, x = divmod(k, 8)
    off = k in v["off"]
    return (
        f'<button type="button" class="net-tile" data-filter="{k}" aria-pressed="{str(not off).lower()}" disabled '
        f'style="background-position:{100 * x / 7:.3f}% {100 * y / 7:.3f}%" title="Filter {k}" '
        f'aria-label="Filter {k}, of class {name}"></button>'
    )


def moved(v: dict, c: int) -> bool:
    return abs(v["share"][c] - v["first"][c]) >= 0.005


def percent(share: float) -> str:
    return f"{fixed(100 * share, 1)} %"


def controls(uid: str, classes: tuple[str, ...], images: Images) -> str:
    """The images to choose from, a file, the classes to switch off; hidden until the script runs."""
    buttons = "".join(
        f'<button type="button" role="radio" aria-checked="{str(not j).lower()}" tabindex="{-bool(j)}" data-image="{j}" '
        f'style="background-position:{100 * (j % ACROSS) / (ACROSS - 1):.3f}% '
        f'{100 * (j // ACROSS) / max(-(-len(images) // ACROSS) - 1, 1):.3f}%" '
        f'aria-label="Image {j}, {html.escape(classes[int(c)])}"></button>'
        for j, c in enumerate(images.labels)
    )
    boxes = "".join(
        f'<label><input type="checkbox" data-class="{c}"> {html.escape(name)}</label>' for c, name in enumerate(classes)
    )
    rows = -(-len(images) // ACROSS)
    return (
        '<div class="csg-controls net-controls" hidden><div class="net-choose">'
        f'<p id="{uid}-images" class="net-label">Image</p>'
        f'<div class="net-images" role="radiogroup" aria-labelledby="{uid}-images" style="--rows:{rows}">{buttons}</div></div>'
        f'<div class="net-side"><div class="net-own"><label for="{uid}-file">Or your own: drop it here, or choose a file. '
        f'It stays on your device.</label><input type="file" id="{uid}-file" accept="image/*"></div>'
        f"<fieldset><legend>Switch off the filters of</legend>{boxes}</fieldset>"
        f'<button type="button" class="net-reset">Switch all filters on</button></div></div>'
    )


def explorer(runs: dict[str, Run], classes: tuple[str, ...], sample: Images, each: int = 4) -> NetworkInPage:
    """Networks side by side, a name each, and the first images of each class of the sample to choose from.

    Maps are shown on the scale of each filter's largest entry over the whole sample.
    """
    members = []
    for name, run in runs.items():
        net, largest = checked(run.network(), name).eval(), []
        with torch.no_grad():
            for batch in sample.images.split(250):
                largest.append(net.maps(to_float(batch)).amax((0, 2, 3)))
        members.append(Member(name, run, torch.stack(largest).amax(0)))
    first = torch.cat([torch.nonzero(sample.labels == c)[:each, 0] for c in range(len(classes))])
    order = first.view(len(classes), -1).T.flatten()  # one column per class
    return NetworkInPage(tuple(members), classes, Images(sample.images[order], sample.labels[order]))
