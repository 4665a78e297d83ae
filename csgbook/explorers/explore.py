"""The sliders: live with a kernel, self-contained accessible HTML without one, from one object.

An `Explorer` holds data, controls, and the name of a view: the function of views.py, and of explore.js, that turns a state of
the controls into what is shown.  A notebook's front end takes from its bundle the widgets, or else the HTML.
"""

import gzip
import hashlib
import html
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from csgbook.embed import bundle, sprite
from csgbook.explorers.markup import control_html, packed, render
from csgbook.explorers.views import THRESHOLDS, VIEWS, gated_data
from csglib.analysis import metrics
from csglib.data.images import Images
from csglib.errors import Problem
from csglib.runs import Run
from csglib.runs.inference import read_out

BUDGET = 400_000  # bytes that an explorer may add to its page, gzipped
SCRIPT = Path(__file__).with_name("explore.js")
STYLE = Path(__file__).with_name("explore.css")
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
        controls = "".join(control_html(uid, control) for control in self.controls)
        text = (
            f'<figure class="{CLASS}" id="{uid}" aria-label="{html.escape(self.title)}"{self.sprite()}>'
            f"<style>{STYLE.read_text()}</style>"
            f'<div class="csg-controls" hidden>{controls}</div><p class="csg-note" hidden></p>'
            f'<div class="csg-view">{render(self.view(self.start()))}</div><p class="csg-status" role="status"></p>'
            f"<figcaption>{html.escape(self.caption)} <noscript>The sliders need JavaScript; this is their first position."
            f'</noscript></figcaption><script type="application/json">{payload}</script>'
            f"<script>{SCRIPT.read_text()}\ncsgExplore(document.getElementById({json.dumps(uid)}));</script></figure>"
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


def sparsity(gates: dict[str, tuple[Run, torch.Tensor]], classes: tuple[str, ...], n: int = 2000) -> Explorer:
    """Drag a threshold over a matrix of classes and filters, from dense to one class a filter.

    `gates` maps a name to a run and a matrix (C x K, each filter's maximum 1).  Class c keeps the filters whose entry is at
    least the threshold, and its logit is computed from these alone.
    """
    controls = (
        Control("gate", "choice", "Network and matrix", tuple(gates)),
        Control("threshold", "range", "Threshold", THRESHOLDS, 25),
    )
    caption = (
        "Entries below the threshold are cut, and each class keeps the filters that are left. Numbers are of "
        f"{counted(gates, n)}; recomputed at every step."
    )
    return Explorer("Sparsity", caption, "sparsity", controls, gated_data(gates, classes, n))


def counted(gates: dict[str, tuple[Run, torch.Tensor]], n: int) -> str:
    N = min(len(run.readout.labels) for run, _ in gates.values())
    return f"{min(n, N):,} test images, the information of all {N:,}"


def trained_density(runs: dict[str, Run], classes: tuple[str, ...], n: int = 1000) -> Explorer:
    """The same views over runs that were trained with different bounds on the gate's density; a name is a bound."""
    gates = {bound: (run, run.readout.gate) for bound, run in runs.items()}
    controls = (
        Control("gate", "range", "Trained with the bound g/(CK)", tuple(gates)),
        Control("threshold", "range", "Threshold", THRESHOLDS, 25),
    )
    caption = f"Each bound is a network of its own. Numbers are of {counted(gates, n)}."
    return Explorer("Trained density", caption, "sparsity", controls, gated_data(gates, classes, n))


def remove_classes(runs: dict[str, Run], classes: tuple[str, ...], n: int = 2000) -> Explorer:
    """Tick classes whose filters are switched off; a network without a gate owns filters by mean activation."""
    if len(classes) > 31:
        raise Problem(f"31 boxes can be ticked, not {len(classes)}: leave this explorer out")  # bits of a number in JavaScript
    gates = {name: (run, metrics.own_filters(run.readout)) for name, run in runs.items()}
    n = min(n, *(len(run.readout.labels) for run in runs.values()))
    controls = (
        Control("gate", "choice", "Network", tuple(gates)),
        Control("removed", "checks", "Switch off the filters of", classes),
    )
    caption = (
        f"Rows are the true classes of {n:,} test images, columns the classes that they are given to, in per cent. A "
        "filter belongs to the class of its gate; without a gate, to the class that excites it most."
    )
    return Explorer("Remove classes", caption, "removal", controls, gated_data(gates, classes, n))


def training_film(run: Run, classes: tuple[str, ...]) -> Explorer:
    """Scrub through the epochs of one run."""
    gates, history = run.readout.gates, run.history
    if gates is None:
        raise Problem(f"{run.path} has no gates to show: choose a run of method csg")
    seen = np.cumsum([row["path"] in ("gated", "joint") for row in history]) - 1
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
    gate = normalised_means(run) if r.gate is None else r.gate
    data = gated_data({"": (run, gate)}, classes, n) | {
        "means": metrics.class_means(r).nan_to_num().numpy().astype(np.float32),
        "best": np.array([[place[int(i)] for i in row] for row in best], dtype=np.uint16),
        "of": images.labels[shown].tolist(),
        "sprite": sprite(images.images[shown]),
        "across": 32,
    }
    caption = (
        f"Bins of the histogram run from no activation to the filter's largest over {n:,} test images; the pictures are "
        f"those of the {len(images):,} embedded test images that excite the filter most."
    )
    levels = tuple(f"{k} ({classes[int(gate[:, k].argmax())]})" for k in range(K))
    return Explorer("One filter", caption, "filter", (Control("filter", "range", "Filter", levels),), data)


def normalised_means(run: Run) -> torch.Tensor:
    """Mean activation by class, each filter divided by its largest: a matrix like a gate for a network that has none."""
    means = metrics.class_means(run.readout).nan_to_num()
    return means / means.amax(0).clamp(min=1e-12)
