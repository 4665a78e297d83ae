"""A gate of two classes and three filters that can be moved: the smallest case in which everything happens.

The weights stand still and the gate alone is trained, by the steps of gate.py.  `view` is computed again by worked.js in the
page; the tests hold the two against each other.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from csgbook.evidence import use
from csgbook.explorers.markup import control_html
from csgbook.explorers.views import fixed
from csgbook.pages import drawings, tables
from csglib import data
from csglib.analysis import metrics
from csglib.methods.csg import ClassGate, density
from csglib.runs import Run

SCRIPT = Path(__file__).with_name("worked.js")
CLASSES = ("cat", "dog")
ACTIVATIONS = ((0.9, 0.6, 0.2), (0.2, 0.6, 0.9))  # class x filter: how much each filter fires for an image of the class
RATE, BOUND, SEEN = 1.0, 3.0, 2  # the gate's step size, g = K, and the shown decimals
STEPS = tuple(f"{i} step{'s' * (i != 1)}" for i in range(41))
SPEAKS = (-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0)
PRESSURES = (0.0, 0.01, 0.03, 0.1)


@dataclass(frozen=True)
class Control:
    id: str
    kind: str
    label: str
    levels: tuple[str, ...]
    start: int


def speaks(w: float) -> str:
    return "neither" if w == 0 else f"{CLASSES[w < 0]}, weight {abs(w):g}"


CONTROLS = (
    Control("steps", "range", "Gated steps taken", STEPS, 6),
    Control("speaks", "range", "Filter 2 speaks for", tuple(map(speaks, SPEAKS)), 6),
    Control("pressure", "range", "Pressure on the gate, λ₂", tuple(f"{p:g}" for p in PRESSURES), 2),
    Control("image", "choice", "Image shown", tuple(f"a {name}" for name in CLASSES), 1),
)
START = {c.id: c.start for c in CONTROLS}


def head(w: float) -> Float[Tensor, "2 3"]:
    return torch.tensor([[1, w, -1], [-1, -w, 1]], dtype=torch.float64)


def trained(w: float, pressure: float, steps: int) -> Float[Tensor, "2 3"]:
    """The gate after so many projected steps on one cat and one dog."""
    a, labels, W = torch.tensor(ACTIVATIONS, dtype=torch.float64), torch.arange(2), head(w)
    gate = ClassGate(2, 3).double()
    gate.project()
    for _ in range(steps):
        loss = F.cross_entropy(gate(a, labels) @ W.T, labels) + pressure * gate.penalty(BOUND)
        (gradient,) = torch.autograd.grad(loss, [gate.matrix])
        with torch.no_grad():
            gate.matrix -= RATE * gradient
        gate.project()
    return gate.matrix.detach()


def view(state: dict[str, int]) -> dict[str, tuple[str, float]]:
    """What is shown at a state of the controls: a text and the length of its bar, by the name of its place."""
    w, pressure, y = SPEAKS[state["speaks"]], PRESSURES[state["pressure"]], state["image"]
    G = trained(w, pressure, state["steps"])
    a, W = torch.tensor(ACTIVATIONS, dtype=torch.float64), head(w)
    gated = a * G  # row c: an image of class c behind its own row of the gate
    losses = [F.cross_entropy(x @ W.T, torch.arange(2)).item() for x in (a, gated)]
    shown = {
        "density": (fixed(density(G), 3), density(G)),
        "sum": (fixed(G.sum().item(), SEEN), G.sum().item() / 6),
        "loss-standard": (fixed(losses[0], 3), losses[0]),
        "loss-gated": (fixed(losses[1], 3), losses[1]),
    }
    for k in range(3):
        shown |= {f"gate-{c}-{k}": (fixed(G[c, k].item(), SEEN), G[c, k].item()) for c in range(2)}
        shown |= {f"{kind}-{k}": (fixed(v[y, k].item(), SEEN), v[y, k].item()) for kind, v in (("fires", a), ("passes", gated))}
    for path, x in (("standard", a), ("gated", gated)):
        p = (W @ x[y]).softmax(0).tolist()
        shown |= {f"{path}-{c}": (f"{fixed(100 * p[c], 1)} %", p[c]) for c in range(2)}
    return shown


def figure() -> str:
    """The worked example as HTML: a figure at its first state, which the script moves."""
    shown = view(START)

    def out(name: str, tag: str = "td", kind: str = "") -> str:
        value, length = shown[name]
        return f'<{tag} class="{kind}" data-out="{name}" style="--share:{length:.4f}">{value}</{tag}>'

    filters = "".join(f'<th scope="col">filter {k + 1}</th>' for k in range(3))
    gate = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(out(f"gate-{c}-{k}") for k in range(3))}</tr>'
        for c, name in enumerate(CLASSES)
    )
    image = "".join(
        f'<tr><th scope="row">{words}</th>{"".join(out(f"{kind}-{k}", kind=kind) for k in range(3))}</tr>'
        for kind, words in (("fires", "fires, a"), ("passes", "passes, G a"))
    )
    paths = "".join(
        f'<tr><th scope="row">{path}</th>{"".join(out(f"{path}-{c}", kind=path) for c in range(2))}</tr>'
        for path in ("standard", "gated")
    )
    numbers = "".join(
        f"<div><dt>{words}</dt>{out(name, 'dd')}</div>"
        for name, words in (
            ("density", "density of the gate"),
            ("sum", f"sum of entries (bound {BOUND:g})"),
            ("loss-standard", "cross entropy, standard"),
            ("loss-gated", "cross entropy, gated"),
        )
    )
    classes = "".join(f'<th scope="col">{name}</th>' for name in CLASSES)
    blocks = "".join(
        f"<table><caption>{caption}</caption><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>"
        for caption, head, body in (
            ("The gate", filters, gate),
            ("The image shown", filters, image),
            ("What each path predicts", classes, paths),
        )
    )
    controls = "".join(control_html("worked", c) for c in CONTROLS)
    known = {"activations": ACTIVATIONS, "speaks": SPEAKS, "pressures": PRESSURES, "rate": RATE, "bound": BOUND}
    return (
        '<figure class="worked" id="worked" aria-label="A gate of two classes and three filters">'
        f'<div class="worked-controls" hidden>{controls}<button type="button" class="worked-reset">Start again</button></div>'
        '<p class="worked-note" hidden></p>'
        f'<dl class="worked-numbers">{numbers}</dl><div class="worked-tables">'
        f"{blocks}"
        '</div><p class="worked-status" role="status"></p>'
        "<figcaption>Filter 1 speaks for cats, filter 3 for dogs; filter 2 fires for both, and you choose what it speaks for. "
        "The weights stand still and the gate learns. <noscript>The sliders need JavaScript; this is their first "
        f'position.</noscript></figcaption><script type="application/json">{json.dumps(known)}</script>'
        f"<script>{SCRIPT.read_text()}</script></figure>"
    )


def fires_and_serves(run: Run, pictures: list[str]) -> str:
    """One network twice: the classes for which a filter fires, and those for which it is used."""
    r, own = run.readout, metrics.owners(run.readout)
    sides = {"What the filters fire for": metrics.class_means(r), "What they are used for": use.evidence(r)}
    panels = "".join(
        f'<div><p class="idea-head">{title}</p>'
        f"{drawings.links(values, own, data.CLASSES, pictures, f'{title}, a network trained with CSG', 0.1)}</div>"
        for title, values in sides.items()
    )
    return (
        f'<figure class="idea"><div class="idea-panels">{panels}</div><figcaption>One CSG network, seed {run.recipe.seed}. '
        "Lines lead from filters to classes, left as strong as the mean activation on images of the class, right as what the "
        "filter adds to the logit of the class above the mean logit; both relative to the filter's strongest line, from a "
        "tenth of it on.</figcaption></figure>"
    )


PATHS = (
    "The fuller a box, the more its filter fires. Above, the head reads all of them; below, only what the open valves let "
    "through. Image, convolutions and head are the same."
)
RHYTHM = "One of our runs. See how the solid line drops in shaded epochs and recovers, and how soon the gate is sparse."


def sketch(drawing: str, caption: str) -> str:
    return f'<figure class="sketch">{drawing}<figcaption>{caption}</figcaption></figure>'


def pages(runs: dict[str, list[Run]], short: dict[str, list[Run]]) -> dict[str, str]:
    """The generated parts of the page of the method, by the name of the file that method.md includes.

    The rhythm is that of a run from `short`, whose epochs are few enough to be told apart.
    """

    def raw(markup: str) -> str:
        return f"```{{raw}} html\n{markup}\n```\n"

    three = {name: runs.get(name, []) for name in ("csg", "std", "matched")}
    mini = data.load("cifar10-mini").test
    pictures = drawings.faces(mini.images, mini.labels, len(data.CLASSES))
    film = drawings.rhythm(short["csg"][0].history) if short.get("csg") else ""
    return {
        "_worked.md": raw(figure()),
        "_paths.md": raw(sketch(drawings.paths(pictures[2]), PATHS)),
        "_rhythm.md": raw(sketch(film, RHYTHM)) if film else "No run of CSG is here yet.\n",
        "_twice.md": raw(fires_and_serves(three["csg"][0], pictures)) if three["csg"] else "\n",
        "_firing.md": tables.statistics(use.MEASURES, three).data + "\n",
    }
