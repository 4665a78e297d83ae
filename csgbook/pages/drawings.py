"""Drawings of the first page and of the method as SVG: sharp at every size, in the page's own colours by day and by night.

Colours come from classes of book.css; every mark also differs in shape, place or words.
"""

import base64
import html
import io

import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from csgbook.evidence import use
from csglib.analysis import metrics
from csglib.readout import Readout

Number = int | float
WIDE = 400  # of a panel; two stand side by side where there is room, so that letters keep their size on a telephone


def picture(image: UInt8[Tensor, "3 H W"]) -> str:
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def svg(width: Number, height: Number, title: str, body: str, kind: str = "") -> str:
    named = f'role="img" aria-label="{html.escape(title)}"'
    return f'<svg class="drawn {kind}" viewBox="0 0 {width:g} {height:g}" {named}>{body}</svg>'


def text(x: Number, y: Number, words: str, kind: str = "", anchor: str = "middle", turn: Number = 0) -> str:
    turned = f' transform="rotate({turn:g} {x:g} {y:g})"' if turn else ""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}"{turned}>{html.escape(words)}</text>'


def links(
    strength: Float[Tensor, "C K"],
    own: Int[Tensor, " K"],
    names: tuple[str, ...],
    faces: list[str],
    title: str,
    least: Number = 0.05,
) -> str:
    """Filters above, sorted by the class that owns them, classes below; a line for each use, as strong as the use.

    `strength` is scaled filter by filter, so that each filter's strongest line is drawn full.
    """
    C, K = strength.shape
    share = strength / strength.amax(0).clamp(min=1e-12)
    order = own.argsort(stable=True).tolist()
    step, cell = (WIDE - 16) / K, (WIDE - 8) / C
    side = min(cell - 6, 32)
    at = {k: 8 + step * (i + 0.5) for i, k in enumerate(order)}
    to = [4 + cell * (c + 0.5) for c in range(C)]
    drawn = sorted((share[c, k].item(), c, k) for c in range(C) for k in range(K) if share[c, k] > least)  # strong ones on top
    lines = "".join(
        f'<path d="M{at[k]:.1f} 34C{at[k]:.1f} 110 {to[c]:.1f} 120 {to[c]:.1f} 196" class="class-{c % 10}" '
        f'stroke-width="{0.5 + 1.6 * s:.2f}" opacity="{0.1 + 0.8 * s:.2f}"/>'
        for s, c, k in drawn
    )
    filters = "".join(
        f'<rect x="{at[k] - step * 0.4:.1f}" y="22" width="{step * 0.8:.1f}" height="12" rx="1.5" class="class-{own[k] % 10}"/>'
        for k in order
    )
    frame, square = f'width="{side + 4:g}" height="{side + 4:g}" rx="4"', f'width="{side:g}" height="{side:g}"'
    classes = "".join(
        f'<rect x="{to[c] - side / 2 - 2:.1f}" y="194" {frame} class="class-{c % 10}"/>'
        f'<image href="{face}" x="{to[c] - side / 2:.1f}" y="196" {square} preserveAspectRatio="none"/>'
        + text(to[c] + 3, 242, name, "small", "end", -40)
        for c, (name, face) in enumerate(zip(names, faces, strict=True))
    )
    body = text(8, 14, f"{K} filters of the last stage", "small", "start") + f'<g fill="none">{lines}</g>{filters}{classes}'
    return svg(WIDE, 292, title, body, "drawn-links")


def of_network(readout: Readout, names: tuple[str, ...], faces: list[str], who: str) -> str:
    """How a network uses its filters: `links` of the evidence."""
    title = f"{who}: lines from {len(readout.weight.T)} filters to the {len(names)} classes whose predictions they support"
    return links(use.evidence(readout), metrics.owners(readout), names, faces, title)


MARKS = {  # shape and colour of a kind of verdict
    "yes": '<circle cx="{x:.1f}" cy="{y:g}" r="4.5" class="mark yes"/>',
    "no": '<path d="M{x:.1f} {y:g}m-4.5 -4.5l9 9m0 -9l-9 9" class="mark no"/>',
    "open": '<circle cx="{x:.1f}" cy="{y:g}" r="4.5" class="mark open"/>',
    "paper": '<path d="M{x:.1f} {y:g}m0 -5.5l4 5.5l-4 5.5l-4 -5.5z" class="mark paper"/>',
}


def mark(kind: str, x: Number, y: Number = 10) -> str:
    return MARKS[kind].format(x=x, y=y)


def interval(low: Number, high: Number, ours: Number, kind: str, paper: Number | None = None, zero: Number = 0) -> str:
    """One row of a forest plot on its own scale: our mean and interval, the paper's value, a line at zero in the middle."""
    reach = max(abs(v - zero) for v in (low, high, ours, *([] if paper is None else [paper]))) or 1

    def x(value: Number) -> float:
        return 100 + 90 * (value - zero) / reach

    line = '<line x1="100" x2="100" y1="0" y2="20" class="zero"/>'
    band = f'<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="10" y2="10" class="band {kind}"/>'
    theirs = "" if paper is None else mark("paper", x(paper))
    return f'<svg class="drawn row" viewBox="0 0 200 20" aria-hidden="true">{line}{band}{theirs}{mark(kind, x(ours))}</svg>'


SEEDS = {  # one shape a network
    "std": '<rect x="{x:.1f}" y="{y:.1f}" width="7" height="7" class="seed std" transform="translate(-3.5 -3.5)"/>',
    "matched": '<path d="M{x:.1f} {y:.1f}m0 -4.6l4.6 8.2l-9.2 0z" class="seed matched"/>',
    "csg": '<circle cx="{x:.1f}" cy="{y:.1f}" r="4" class="seed csg"/>',
}


def seeds(values: dict[str, list[float]], names: dict[str, str], told: dict[str, str], title: str) -> str:
    """One dot per seed, one row per network, its mean at the right: what a finding rests on."""
    every = [v for group in values.values() for v in group]
    low, high = min(every), max(every)
    room = (high - low) or 1

    def x(value: Number) -> float:
        return 96 + 150 * (value - low) / room

    rows = ""
    for i, (name, group) in enumerate(values.items()):
        y = 14 + 24 * i
        rows += f'<line x1="92" x2="250" y1="{y}" y2="{y}" class="rail"/>' + text(84, y + 4, names[name], "", "end")
        rows += "".join(SEEDS[name].format(x=x(v), y=y) for v in group) + text(300, y + 4, told[name], "strong", "end")
    return svg(304, 24 * len(values) + 4, title, rows, "drawn-seeds")


def rhythm(history: list[dict]) -> str:
    """The epochs of one run: which path each trains, test accuracy of both paths after it, density of the gate."""
    n = len(history)
    step = (WIDE - 50) / n

    def x(i: Number) -> float:
        return 38 + step * i

    gated = [i for i, row in enumerate(history) if row["path"] == "gated"]
    shade = "".join(f'<rect x="{x(i):.1f}" y="8" width="{step:.1f}" height="212" class="gated-epoch"/>' for i in gated)
    letters = "".join(
        text(x(i + 0.5), 18, "G" if row["path"] == "gated" else "S", "small strong" if row["path"] == "gated" else "small")
        for i, row in enumerate(history)
    )

    def panel(top: Number, height: Number, ticks: tuple[Number, ...], lines: dict[str, str]) -> str:
        def y(value: Number) -> float:
            return top + height * (1 - value / ticks[-1])

        marks = "".join(
            f'<line x1="36" x2="{WIDE - 10}" y1="{y(t):.1f}" y2="{y(t):.1f}" class="rail"/>'
            + text(32, y(t) + 4, f"{t:g}", "small", "end")
            for t in ticks
        )
        for field, kind in lines.items():
            points = " ".join(
                f"{x(i + 0.5):.1f},{y(row[field]):.1f}" for i, row in enumerate(history) if row.get(field) is not None
            )
            marks += f'<polyline points="{points}" class="line {kind}"/>'
        return marks

    top = 1.0 if max((row.get("density") or 0) for row in history) > 0.2 else 0.2  # trained well it is near 1/C at once
    body = (
        shade
        + letters
        + panel(46, 94, (0, 0.5, 1), {"test_accuracy": "std", "test_accuracy_gated": "csg"})
        + text(44, 36, "test accuracy: standard path (solid), gated path (dashed)", "small", "start")
        + panel(168, 48, (0, top / 2, top), {"density": "csg solid"})
        + text(44, 163, "density of the gate", "small", "start")
        + text(38, 236, f"epoch 1 to {n}; shaded, G: trains the gated path", "small", "start")
    )
    title = f"{n} epochs, of which {len(gated)} train the gated path; accuracy of both paths and the gate's density after each"
    return svg(WIDE, 244, title, body, "drawn-rhythm")


def faces(images: UInt8[Tensor, "N 3 H W"], labels: Int[Tensor, " N"], classes: int) -> list[str]:
    """For each class the first of its pictures."""
    return [picture(images[int(torch.nonzero(labels == c)[0])]) for c in range(classes)]


def paths(face: str) -> str:
    """The two ways from a bird to a prediction: through all filters, or through those that the gate leaves to birds."""
    kinds = {2: "bird", 3: "cat", 8: "ship", 9: "truck"}  # a sketch of four classes with two filters each, in their colours
    fires, head, tip = (0.9, 0.65, 0.35, 0.5, 0.2, 0.3, 0.45, 0.15), 280, "m-5 -3.5l5 3.5l-5 3.5"

    def column(x: Number, y: Number, only: int | None = None) -> str:
        return "".join(
            f'<rect x="{x}" y="{y + 13 * i}" width="18" height="11" rx="2" class="cell class-{c}" '
            f'fill-opacity="{fires[i] if only in (None, c) else 0:g}"/>'
            for i, c in enumerate(c for c in kinds for _ in range(2))
        )

    def bars(y: Number, lengths: tuple[Number, ...]) -> str:
        return "".join(
            f'<rect x="336" y="{y + 13 * i}" width="{28 * v:g}" height="10" rx="2" class="class-{c}"/>'
            + text(340 + 28 * v, y + 9 + 13 * i, kinds[c], "small", "start")
            for i, (c, v) in enumerate(zip(kinds, lengths, strict=True))
        )

    valves = "".join(
        f'<circle cx="219" cy="{191.5 + 13 * i}" r="4.5" class="valve {"open" if i < 2 else "shut"}"/>' for i in range(8)
    )
    bends = ("M178 128C200 112 200 88 240 88", "M178 150C190 170 192 225 210 225", "M28 182L28 268Q28 276 36 276L209 276")
    bent = "".join(f'<path d="{bend}{tip}"/>' for bend in bends)
    straight = ((52, 138, 68, 138), (136, 138, 152, 138), (268, 88, head - 3, 88), (268, 238, head - 3, 238))
    straight += ((head + 37, 88, head + 52, 88), (head + 37, 238, head + 52, 238), (228, 238, 242, 238))
    arrows = "".join(f'<path d="M{x0} {y0}L{x1} {y1}{tip}"/>' for x0, y0, x1, y1 in straight)
    words = (
        text(28, 174, "a bird", "small"),
        text(102, 135, "convolu-", "small"),
        text(102, 149, "tions", "small"),
        text(165, 78, "K filters", "small"),
        text(40, 268, "its label opens a row of the", "small", "start"),
        text(40, 296, "gate, in training only", "small", "start"),
        text(head + 18, 163, "the same head W, b", "small", turn=-90),
        text(392, 22, "standard path: every filter counts", "strong", "end"),
        text(392, 318, "gated path: only the filters of the class", "strong", "end"),
    )
    body = (
        f'<image href="{face}" x="6" y="116" width="44" height="44"/>'
        '<rect x="70" y="114" width="64" height="48" rx="5" class="box"/>'
        f'<rect x="{head}" y="52" width="36" height="222" rx="5" class="box"/>'
        f"{column(156, 86)}{column(246, 36)}{column(246, 186, 2)}{valves}"
        f"{bars(63, (0.9, 0.6, 0.35, 0.2))}{bars(213, (1, 0.1, 0.06, 0.03))}"
        f'<g class="arrow">{arrows}{bent}</g>'
    )
    title = "Two paths of one network: the standard path uses all filters, the gated path only those of the image's class"
    return svg(WIDE, 326, title, body + "".join(words), "drawn-paths")
