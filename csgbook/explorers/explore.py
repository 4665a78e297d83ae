"""The sliders: live with a kernel, self-contained accessible HTML without one, from one object.

An `Explorer` holds data, controls, and the name of a view: the function of views.py, and of explore.js, that turns a state of
the controls into what is shown.  A notebook's front end takes from its bundle the widgets, or else the HTML.
"""

import gzip
import hashlib
import html
import json
import re
from dataclasses import dataclass
from pathlib import Path
from string import Template

import numpy as np
import torch

from csgbook.embed import bundle, sprite
from csgbook.evidence.cut import LEVELS, accuracies, by_activation, by_head, kept, ranks
from csgbook.explorers.markup import control_html, packed, render
from csgbook.explorers.views import VIEWS, gated_data
from csglib.analysis import metrics
from csglib.data.images import Images
from csglib.errors import Problem
from csglib.runs import Run
from csglib.runs.inference import read_out
from csglib.runs.packing import kept_gates

BOXES = 31  # that can be ticked: bits of a number in JavaScript
BUDGET = 400_000  # bytes that an explorer may add to its page, gzipped
SCRIPT = Path(__file__).with_name("explore.js")
STYLE = Path(__file__).with_name("explore.css")
TEMPLATE = Template(Path(__file__).with_name("explore.html").read_text())
CLASS = "csg-explorer tex2jax_ignore mathjax_ignore"  # of the figure: MathJax would take a name with two dollars for a formula


@dataclass(frozen=True)
class Control:
    id: str
    kind: str  # range (a slider) | choice (a list) | checks (boxes to tick)
    label: str
    levels: tuple[str, ...]  # what a screen reader says at each place of the slider, or each entry of the list
    start: int = 0  # the first place; of checks a bit mask

    def __post_init__(self):
        if not self.levels:
            raise Problem(f"the explorer's control {self.label!r} has no levels: give it runs, or leave the explorer out")


@dataclass(frozen=True)
class Explorer:
    """Shown by a notebook as widgets where a kernel runs, and as HTML elsewhere."""

    title: str
    caption: str  # what the figure shows and how to read it
    kind: str  # a key of VIEWS, here and in explore.js
    controls: tuple[Control, ...]
    data: dict  # numpy arrays and plain values

    def view(self, state: dict[str, int]) -> dict:
        """The numbers, table, matrix and curves at a state: control id -> place."""
        return VIEWS[self.kind](self.data, state)

    def start(self) -> dict[str, int]:
        return {control.id: control.start for control in self.controls}

    @property
    def name(self) -> str:
        """In the address of a state: the title in small letters, with hyphens."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower())

    def sprite(self) -> str:
        """The style that carries the pictures, once for all of them."""
        if "sprite" not in self.data:
            return ""
        return f' style="--sprite:url({self.data["sprite"]});--across:{self.data["across"]}"'

    def to_html(self) -> str:
        shared = {name: value for name, value in self.data.items() if name != "sprite"}  # stands in the style already
        spec = {"kind": self.kind, "data": {name: packed(value) for name, value in shared.items()}}
        payload = json.dumps(spec).replace("<", "\\u003c")  # no tag, and no comment that would hide the end of the script
        uid = "csg-" + hashlib.sha256((self.title + payload).encode()).hexdigest()[:10]
        text = TEMPLATE.substitute(
            look=CLASS,
            uid=uid,
            name=self.name,
            title=html.escape(self.title),
            sprite=self.sprite(),
            style=STYLE.read_text(),
            controls="".join(control_html(uid, control) for control in self.controls),
            view=render(self.view(self.start())),
            caption=html.escape(self.caption),
            payload=payload,
            script=SCRIPT.read_text(),
        )
        if (size := len(gzip.compress(text.encode()))) > BUDGET:
            raise Problem(
                f"explorer {self.title!r} takes {size} bytes gzipped, more than {BUDGET}: give it fewer samples or runs"
            )
        return text

    def widget(self):
        """The same as ipywidgets 7.7 (Colab) or 8, recomputed in Python."""
        import ipywidgets as w

        view, parts, boxes = w.HTML(), [], {}
        for c in self.controls:
            style = {"description_width": "initial"}
            if c.kind == "checks":
                names = [name.replace("$", "\uff04") for name in c.levels]  # MathJax looks for formulas in descriptions
                if int(w.__version__.split(".")[0]) < 8:  # then they are HTML
                    names = [html.escape(name) for name in names]
                boxes[c.id] = [
                    w.Checkbox(value=bool(c.start >> i & 1), description=name, indent=False) for i, name in enumerate(names)
                ]
                parts += [w.HTML(html.escape(c.label)), *boxes[c.id]]
            else:
                make = w.SelectionSlider if c.kind == "range" else w.Dropdown
                options = [(name, i) for i, name in enumerate(c.levels)]
                boxes[c.id] = [make(options=options, value=c.start, description=c.label, style=style)]
                parts += boxes[c.id]

        def state() -> dict[str, int]:
            return {
                c.id: sum(box.value << i for i, box in enumerate(boxes[c.id])) if c.kind == "checks" else boxes[c.id][0].value
                for c in self.controls
            }

        def show(_=None) -> None:
            style = f"<style>{STYLE.read_text()}</style>"
            view.value = f'{style}<figure class="{CLASS}"{self.sprite()}>{render(self.view(state()))}</figure>'

        for box in (box for group in boxes.values() for box in group):
            box.observe(show, names="value")
        show()
        return w.VBox([*parts, view])

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        return bundle(f"Explorer({self.title!r})", self)


def images_told(run: Run) -> str:
    """On how many test images the numbers are that are drawn of a run."""
    n, N = len(run.sample.labels), run.provenance.get("test_images", 0)
    return f"{n:,} test images" if n >= N else f"{n:,} of {N:,} test images"


WAYS = ("mean activation", "head weight", "gate or matrix, where there is one")


def cut(networks: dict[str, list[Run]], classes: tuple[str, ...], title: str, start: tuple[int, int], by: int = 0) -> Explorer:
    """Cut connections between classes and filters, and see what it costs two networks side by side.

    `networks` maps a name to its runs, one per seed: accuracies are means over them, matrices those of the first.
    """
    names = tuple(networks)
    data = cut_data(networks, classes)
    controls = (
        Control("share", "range", "Connections kept", tuple(f"{level} %" for level in LEVELS), LEVELS.index(10)),
        Control("left", "choice", "Left", names, start[0]),
        Control("right", "choice", "Right", names, start[1]),
        Control("by", "choice", "Kept first: the largest", WAYS, by),
    )
    seeds = {len(runs) for runs in networks.values()}
    told = f"{min(seeds)}" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
    caption = (
        f"Accuracy on {images_told(next(iter(networks.values()))[0])}, the mean over {told} seed{'s' * (max(seeds) > 1)} per "
        "network, bands from the lowest to the highest; matrices of the first seed, filters sorted by class. Each filter's "
        "entries are divided by its largest, so with ten classes every filter serves one of them at 10 %. Nothing is trained "
        "again."
    )
    return Explorer(title, caption, "cut", controls, data)


def cut_data(networks: dict[str, list[Run]], classes: tuple[str, ...]) -> dict:
    """For every network and every way to order its connections: the order, the entries, and the accuracy at each level."""
    C, K = next(iter(networks.values()))[0].sample.weight.shape
    if C * K > 1 << 16:
        raise Problem(f"this explorer has room for 65,536 connections, not for {C:,} classes with {K:,} filters: leave it out")
    blocks: dict[str, list] = {name: [] for name in ("rank", "value", "order", "mean", "low", "high", "each")}
    for runs in networks.values():
        for way in range(len(WAYS)):
            matrices = [entries(run, way) for run in runs]
            places = [ranks(M, by_activation(run.sample)) for M, run in zip(matrices, runs, strict=True)]
            counts = kept(LEVELS, places[0].numel())
            seeds = [accuracies(run.sample, p, counts) for p, run in zip(places, runs, strict=True)]
            each = torch.stack(seeds)  # (seeds, L, C)
            size = torch.bincount(runs[0].sample.labels, minlength=len(classes)).double()
            overall = (each.nan_to_num() * size / size.sum()).sum(2)
            blocks["rank"].append(places[0].numpy().astype(np.uint16))
            blocks["value"].append((255 * matrices[0].clamp(0, 1)).round().numpy().astype(np.uint8))
            blocks["order"].append(matrices[0].argmax(0).argsort(stable=True).numpy().astype(np.uint16))
            blocks["mean"].append(overall.mean(0).numpy().astype(np.float32))
            blocks["low"].append(overall.amin(0).numpy().astype(np.float32))
            blocks["high"].append(overall.amax(0).numpy().astype(np.float32))
            blocks["each"].append(each.mean(0).nan_to_num().numpy().astype(np.float32))
    if len({block.shape for block in blocks["rank"]}) > 1:
        raise Problem("the networks have layers of different sizes: compare those of one size")
    return {name: np.stack(block) for name, block in blocks.items()} | {
        "classes": list(classes),
        "networks": list(networks),
        "ways": len(WAYS),
        "counts": counts,
        "axis": {"length": len(LEVELS), "ticks": [[LEVELS.index(x), f"{x} %"] for x in (1, 5, 10, 20, 50, 100)]},
    }


def entries(run: Run, way: int) -> torch.Tensor:
    """The matrix that orders a run's connections, by the place of its name in WAYS."""
    r = run.sample
    if way == 2 and r.gate is not None:
        return r.gate / r.gate.amax(0).clamp(min=1e-12)
    return by_head(r) if way == 1 else by_activation(r)


def remove_classes(runs: dict[str, Run], classes: tuple[str, ...], n: int = 2000) -> Explorer:
    """Tick classes whose filters are switched off, or of many classes choose one.

    A network without a gate owns filters by mean activation.
    """
    gates = {name: (run, metrics.own_filters(run.sample)) for name, run in runs.items()}
    n = min(n, *(len(run.sample.labels) for run in runs.values()))
    first, boxes = min(3, len(classes) - 1), len(classes) <= BOXES  # of CIFAR-10 the cat
    kind, start = ("checks", 1 << first) if boxes else ("choice", first)
    controls = (Control("removed", kind, "Switch off the filters of", classes, start),)
    caption = (
        f"Accuracy on {n:,} test images, per true class, and the class that its images are most often taken for instead. A "
        "filter belongs to the class of its gate; without a gate, to the class that excites it most."
    )
    data = gated_data(gates, classes, n) | {"networks": list(runs), "boxes": boxes}
    return Explorer("Remove classes", caption, "removal", controls, data)


def training_film(run: Run, classes: tuple[str, ...]) -> Explorer:
    """Scrub through the epochs of one run."""
    gates, history = run.readout.gates, run.history
    if gates is None:
        raise Problem(f"{run.path} has no gates to show: choose a run of method csg")
    trained = np.cumsum([row["path"] in ("gated", "joint") for row in history])
    seen = np.searchsorted(kept_gates(int(trained[-1]), gates[0].numel()), trained - 1, side="right") - 1
    order = gates[-1].argmax(0).argsort(stable=True)
    data = {
        "classes": list(classes),
        "gates": np.round(gates[:, :, order].numpy() * 255).astype(np.uint8),
        "seen": seen.tolist(),
        "paths": [row["path"] for row in history],
        "accuracy": [row["test_accuracy"] for row in history],
        "gated": [row["test_accuracy_gated"] for row in history],
    }
    levels = tuple(f"{row['epoch'] + 1}, {row['path']}" for row in history)
    caption = "The gate after each epoch, filters sorted by their last class, and the test accuracy of both paths so far."
    return Explorer("Training film", caption, "film", (Control("epoch", "range", "Epoch", levels, len(levels) - 1),), data)


def one_filter(run: Run, classes: tuple[str, ...], images: Images, n: int = 2000, top: int = 6) -> Explorer:
    """Pick a filter: gate, information and mean activation by class, a histogram by class, the images that excite it most."""
    r = run.readout
    C, K = r.weight.shape
    features = read_out(run.network(), None, images).features
    best = features.argsort(dim=0, descending=True, stable=True)[:top].T  # (K, top)
    shown = best.unique()
    place = {int(i): j for j, i in enumerate(shown)}
    gate = by_activation(r) if r.gate is None else r.gate
    data = gated_data({"": (run, gate)}, classes, n) | {
        "means": metrics.class_means(r).nan_to_num().numpy().astype(np.float32),
        "best": np.array([[place[int(i)] for i in row] for row in best], dtype=np.uint16),
        "of": images.labels[shown].tolist(),
        "sprite": sprite(images.images[shown]),
        "across": 32,
    }
    caption = (
        f"Bins of the histogram run from no activation to the filter's largest over {n:,} test images; the pictures are "
        f"those of the {len(images):,} embedded test images that excite the filter most. Filters are sorted by their class."
    )
    order, own = data["order"][0], gate.argmax(0).tolist()
    levels = tuple(f"{k} ({classes[own[k]]})" for k in order)
    told = data["information"][0].argmax(0)
    start = next((place for place, k in enumerate(order) if told[k] != own[k]), 0)  # where there is something to see
    return Explorer("One filter", caption, "filter", (Control("filter", "range", "Filter", levels, start),), data)
