"""The filter atlas: every filter of several networks on a wall, a card and an address (`#csg/27`) for each.

A filter belongs to the class of its gate, or without one to the class that excites it most.  It is flagged where it tells most
about another class, and where one of the images that excite it most shows another class.  atlas.js turns the cards in a page.
"""

import base64
import dataclasses
import hashlib
import html
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from csgbook import embed
from csgbook.embed import bundle, sprite
from csgbook.explorers.explore import STYLE
from csgbook.explorers.markup import render
from csgbook.explorers.views import fixed
from csglib import Problem
from csglib.analysis import metrics
from csglib.data.images import Images, to_float
from csglib.runs import Run

TOP, BINS, ACROSS = 6, 24, 32  # images of a card, bins of its histogram, images in a row of the sprite
QUALITY = 60  # of the sprite, WebP's 0 to 100
FOLDER = Path(__file__).parent
CLASS = "csg-explorer csg-atlas tex2jax_ignore mathjax_ignore"


@dataclass(frozen=True)
class Filter:
    """One filter, as the JSON file has it; lists of ten go by class."""

    filter: int  # its number k
    of: str  # the class that it belongs to
    tells: str  # the class about which its activation carries the most information
    gate: list[float] | None
    information: list[float]  # nats, over all test images
    activation: list[float]  # mean over the test images of a class
    weight: list[float]  # of the linear head
    images: list[int]  # the most exciting test images of the embedded sample, strongest first
    shows: list[str]  # their classes
    excites: list[float]  # their activation: the spatial mean of the map

    @property
    def disagrees(self) -> bool:
        return self.of != self.tells

    @property
    def foreign(self) -> int:
        """How many of its images show another class than its own."""
        return sum(name != self.of for name in self.shows)


@dataclass(frozen=True)
class Wall:
    """All filters of one network."""

    name: str  # as the page calls it, CSG
    run: Run
    filters: tuple[Filter, ...]
    maps: UInt8[Tensor, "K T h w"]  # of its images, each map divided by its largest entry
    histogram: UInt8[Tensor, "K C B"]  # square root of the share of a class's test images, 255 is all of them

    @property
    def key(self) -> str:
        return self.name.lower()

    def record(self) -> dict:
        recipe = self.run.recipe
        about = {"name": self.name, "run": recipe.name, "key": recipe.key, "seed": recipe.seed}
        return about | {"accuracy": self.run.metrics["accuracy"], "filters": [dataclasses.asdict(f) for f in self.filters]}


@torch.no_grad()
def wall(name: str, run: Run, classes: tuple[str, ...], sample: Images) -> Wall:
    """The filters of a run, with their images out of the sample."""
    r, net = run.readout, run.network().eval()
    maps = torch.cat([net.mask(net.maps(to_float(batch))) for batch in sample.images.split(250)])
    pooled = maps.mean((2, 3))  # (N, K)
    best = pooled.argsort(dim=0, descending=True, stable=True)[:TOP].T  # (K, T)
    information, means, owner = metrics.information(r), metrics.class_means(r).nan_to_num(), metrics.owners(r)
    K = len(owner)
    chosen = maps[best, torch.arange(K)[:, None]].clamp(min=0)  # (K, T, h, w)
    chosen = chosen / chosen.amax((2, 3), keepdim=True).clamp(min=1e-12)
    filters = tuple(
        Filter(
            k,
            classes[int(owner[k])],
            classes[int(information[:, k].argmax())],
            None if r.gate is None else rounded(r.gate[:, k]),
            rounded(information[:, k]),
            rounded(means[:, k]),
            rounded(r.weight[:, k]),
            best[k].tolist(),
            [classes[int(c)] for c in sample.labels[best[k]]],
            rounded(pooled[best[k], k]),
        )
        for k in range(K)
    )
    return Wall(name, run, filters, (255 * chosen).round().byte(), histogram(r.features, r.labels, len(classes)))


def rounded(values: Tensor) -> list[float]:
    return [round(v, 4) for v in values.tolist()]


def histogram(features: Float[Tensor, "N K"], labels: Tensor, C: int) -> UInt8[Tensor, "K C B"]:
    """Per filter and class the distribution of its activation, from none to its largest."""
    bins = (features.clamp(min=0) / features.amax(0).clamp(min=1e-12) * BINS).long().clamp(max=BINS - 1)
    counts = torch.zeros(features.shape[1], C, BINS)
    for c in range(C):
        own = bins[labels == c]  # (n, K)
        counts[:, c] = torch.nn.functional.one_hot(own, BINS).sum(0) / max(len(own), 1)
    return (255 * counts.sqrt()).round().byte()


@dataclass(frozen=True)
class Atlas:
    """Shown by a notebook as widgets where a kernel runs, and as HTML that turns its cards itself elsewhere."""

    walls: tuple[Wall, ...]
    classes: tuple[str, ...]
    sample: Images

    title = "The filter atlas"
    caption = (
        "Each tile is a filter, in the row of the class that it belongs to, and shows the test image that excites it most. An "
        "orange corner: its activation tells most about another class. An orange dot: another class is among its six "
        "most exciting images. The card shows those six, bright where the filter fires and dark elsewhere; in the histogram "
        "each row is a class, from no activation on the left to the filter's largest on the right."
    )

    def __post_init__(self):
        if not self.walls:
            raise Problem("the atlas has no network to show: give it runs, or leave it out")

    @property
    def shown(self) -> list[int]:
        """The images that any filter needs, by their number in the sample."""
        return sorted({i for w in self.walls for f in w.filters for i in f.images})

    def record(self) -> dict:
        """What the download holds."""
        return {"classes": list(self.classes), "networks": [w.record() for w in self.walls]}

    def to_json(self) -> str:
        return json.dumps(self.record())

    def find(self, key: str, k: int) -> tuple[Wall, Filter]:
        """The filter of an address; raises Problem where there is none."""
        found = {w.key: w for w in self.walls}
        if key not in found:
            raise Problem(f"There is no network {key} here: they are {', '.join(found)}.")
        if not 0 <= k < len(found[key].filters):
            raise Problem(f"{found[key].name} has no filter {k}: they are 0 to {len(found[key].filters) - 1}.")
        return found[key], found[key].filters[k]

    def card(self, key: str, k: int) -> str:
        w, f = self.find(key, k)
        images = "".join(self.picture(w, f, t) for t in range(TOP))
        run = f'<a href="runs.html#run-{w.run.recipe.name}">{w.run.recipe.name}</a>'
        shares = {"title": "Histogram of the activation by class", "rows": self.classes, "values": w.histogram[k].numpy() / 255}
        view = {"numbers": numbers(f), "matrix": shares, "table": table(f, self.classes)}
        return (
            f'<div class="atlas-card"><p class="atlas-title"><b>{html.escape(w.name)}, filter {k}</b> '
            f"<span>{html.escape(f.of)}</span></p>"
            f'<p class="atlas-flags">{html.escape(flags(f))}</p><div class="atlas-images">{images}</div>'
            f"{render(view)}"
            f'<p class="atlas-run">Seed {w.run.recipe.seed}, run {run}</p></div>'
        )

    def picture(self, w: Wall, f: Filter, t: int) -> str:
        j = self.shown.index(f.images[t])
        dark = embed.shade(w.maps[f.filter, t])
        return (
            f'<figure><div class="atlas-image" role="img" aria-label="test image {f.images[t]} of class '
            f'{html.escape(f.shows[t])}" style="{self.place(j)}"><div class="atlas-light" '
            f'style="background-image:url({dark})"></div></div>'
            f"<figcaption>{html.escape(f.shows[t])}</figcaption></figure>"
        )

    def place(self, j: int) -> str:
        down = max(-(-len(self.shown) // ACROSS) - 1, 1)
        return f"background-position:{100 * (j % ACROSS) / (ACROSS - 1):.3f}% {100 * (j // ACROSS) / down:.3f}%"

    def sprite(self) -> str:
        """The style that carries the pictures, once for all tiles and cards."""
        n = len(self.shown)
        address = sprite(self.sample.images[self.shown], ACROSS, QUALITY)
        return f"--sprite:url({address});--across:{ACROSS};--down:{-(-n // ACROSS)}"

    def page(self, key: str, k: int) -> str:
        """Walls and card, the elements that atlas.js moves."""
        return f'<div class="atlas-walls">{"".join(map(self.wall_html, self.walls))}</div>{self.card(key, k)}'

    def wall_html(self, w: Wall) -> str:
        rows = "".join(
            f'<div class="atlas-row"><span>{html.escape(name)}</span><div>'
            + "".join(self.tile(w, f) for f in w.filters if f.of == name)
            + "</div></div>"
            for name in self.classes
        )
        name, odd = html.escape(w.name), sum(f.disagrees or f.foreign > 0 for f in w.filters)
        return (
            f'<section aria-label="Filters of {name}" data-network="{w.key}"><p class="atlas-name"><b>{name}</b> '
            f"<span>{len(w.filters)} filters, {odd} of them flagged</span></p>{rows}</section>"
        )

    def tile(self, w: Wall, f: Filter) -> str:
        place = f"{w.key}/{f.filter}"
        marks = " data-disagrees" * f.disagrees + " data-foreign" * (f.foreign > 0)
        told = html.escape(f"{w.name} filter {f.filter}, {f.of}" + ", flagged" * (f.disagrees or f.foreign > 0))
        style = self.place(self.shown.index(f.images[0]))
        named = f'title="{told}" aria-label="{told}"'
        return f'<a id="{place}" href="#{place}" class="atlas-tile"{marks} {named} style="{style}"></a>'

    def to_html(self) -> str:
        spec = self.record() | {
            "shown": self.shown,
            "maps": [packed(w.maps) for w in self.walls],
            "histogram": [packed(w.histogram) for w in self.walls],
        }
        payload = json.dumps(spec).replace("<", "\\u003c")
        uid = "atlas-" + hashlib.sha256(payload.encode()).hexdigest()[:10]
        boxes = "".join(
            f'<label><input type="radio" name="{uid}" value="{w.key}"{" checked" * (not i)}> {html.escape(w.name)}</label>'
            for i, w in enumerate(self.walls)
        )
        first = self.walls[0]
        return (
            f'<figure class="{CLASS}" id="{uid}" aria-label="{self.title}" style="{self.sprite()}"><style>{style()}</style>'
            f'<div class="csg-controls atlas-controls" hidden><fieldset><legend>Network</legend>{boxes}</fieldset>'
            '<label class="atlas-check"><input type="checkbox" class="atlas-odd"> Only the flagged filters</label>'
            '<label class="atlas-check"><input type="checkbox" class="atlas-lit" checked> Dim where it does not fire</label>'
            '<span><button type="button" data-step="-1">Previous</button> <button type="button" data-step="1">Next</button> '
            '<button type="button" class="atlas-json">Download as JSON</button></span></div>'
            f'<p class="csg-note" role="alert" hidden></p><div class="csg-view">{self.page(first.key, 0)}</div>'
            f'<p class="csg-status" role="status"></p><figcaption>{html.escape(self.caption)} <noscript>The cards of the other '
            "filters need JavaScript.</noscript></figcaption>"
            f'<script type="application/json">{payload}</script><script>{(FOLDER / "atlas.js").read_text()}\n'
            f"csgAtlas(document.getElementById({json.dumps(uid)}));</script></figure>"
        )

    def widget(self):
        """The same as ipywidgets 7.7 (Colab) or 8."""
        import ipywidgets as w

        key = w.Dropdown(options=[(wall.name, wall.key) for wall in self.walls], description="Network")
        number = w.BoundedIntText(value=0, min=0, max=len(self.walls[0].filters) - 1, description="Filter")
        view = w.HTML()

        def show(_=None) -> None:
            count = len(next(wall for wall in self.walls if wall.key == key.value).filters)
            number.max = count - 1
            one = Atlas(tuple(wall for wall in self.walls if wall.key == key.value), self.classes, self.sample)
            page = one.page(key.value, number.value)
            view.value = f'<style>{style()}</style><figure class="{CLASS}" style="{one.sprite()}">{page}</figure>'

        for box in (key, number):
            box.observe(show, names="value")
        show()
        return w.VBox([key, number, view])

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        return bundle(f"Atlas({', '.join(w.name for w in self.walls)})", self)


def style() -> str:
    return STYLE.read_text() + (FOLDER / "atlas.css").read_text()


def packed(values: UInt8[Tensor, "..."]) -> dict:
    return {"shape": list(values.shape), "base64": base64.b64encode(values.numpy().tobytes()).decode()}


def flags(f: Filter) -> str:
    """What is odd about it, in a sentence."""
    told = []
    if f.disagrees:
        told.append(f"It belongs to {f.of}, but its activation tells most about {f.tells}.")
    if f.foreign:
        told.append(f"Of its {TOP} most exciting images {f.foreign} show another class.")
    return " ".join(told)


def numbers(f: Filter) -> list[list[str]]:
    return [
        ["Class of the gate" if f.gate else "Class that excites it most", f.of],
        ["Most information on", f.tells],
        ["That information, nats", fixed(max(f.information), 4)],
    ]


def table(f: Filter, classes: tuple[str, ...]) -> dict:
    """One row per class; the share that colours a cell is that of the column's largest absolute value."""
    columns = {
        "Gate": (f.gate, 2),
        "Information": (f.information, 4),
        "Mean activation": (f.activation, 3),
        "Weight": (f.weight, 3),
    }

    def cell(values: list[float] | None, digits: int, c: int) -> list:
        if values is None:
            return ["–", 0.0]
        return [fixed(values[c], digits), max(values[c], 0.0) / max(*(abs(v) for v in values), 1e-12)]

    rows = [[name, *(cell(values, digits, c) for values, digits in columns.values())] for c, name in enumerate(classes)]
    return {"head": ["Class", *columns], "rows": rows}


def made(runs: dict[str, Run], classes: tuple[str, ...], sample: Images) -> Atlas:
    """An atlas of the runs, a name each."""
    return Atlas(tuple(wall(name, run, classes, sample) for name, run in runs.items()), classes, sample)
