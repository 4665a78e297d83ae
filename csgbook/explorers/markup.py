"""The HTML of an explorer: its controls and its view.  explore.js replaces the content of the same elements.

Classes are called what their owners call them, so names are escaped here, never trusted.
"""

import base64
import html
import json
from collections.abc import Iterable

import numpy as np

from csgbook.embed import heat_map
from csgbook.explorers.views import fixed

ROWS = 40  # of a matrix that are named: of more rows every second, third, ... is, and each takes less room


def packed(value):
    """Arrays as base64, all else as it is."""
    if not isinstance(value, np.ndarray):
        return value
    kind = {"uint8": "Uint8Array", "uint16": "Uint16Array", "float32": "Float32Array"}[value.dtype.name]
    return {
        "array": kind,
        "shape": value.shape,
        "base64": base64.b64encode(value.astype(value.dtype.newbyteorder("<")).tobytes()).decode(),
    }


def control_html(uid: str, c) -> str:
    """One control of an explorer, for a page without a kernel."""
    label, name = html.escape(c.label), f"{uid}-{c.id}"
    levels = [html.escape(level) for level in c.levels]
    if c.kind == "checks":
        boxes = "".join(
            f'<label><input type="checkbox" data-control="{c.id}" data-bit="{i}"{" checked" * (c.start >> i & 1)}>'
            f" {level}</label>"
            for i, level in enumerate(levels)
        )
        return f"<fieldset><legend>{label}</legend>{boxes}</fieldset>"
    if c.kind == "choice":
        options = "".join(
            f'<option value="{i}"{" selected" if i == c.start else ""}>{v}</option>' for i, v in enumerate(levels)
        )
        return f'<div><label for="{name}">{label}</label><select id="{name}" data-control="{c.id}">{options}</select></div>'
    known = html.escape(json.dumps(c.levels))
    return (
        f'<div><label for="{name}">{label}</label><input type="range" id="{name}" data-control="{c.id}" min="0" '
        f'max="{len(levels) - 1}" step="1" value="{c.start}" data-levels="{known}" aria-valuetext="{levels[c.start]}">'
        f'<output for="{name}">{levels[c.start]}</output></div>'
    )


def render(view: dict) -> str:
    """The view as HTML, the same elements that explore.js makes."""
    e = html.escape
    parts = [
        '<dl class="csg-numbers">' + "".join(f"<div><dt>{e(k)}</dt><dd>{e(v)}</dd></div>" for k, v in view["numbers"]) + "</dl>"
    ]
    if told := view.get("told"):
        parts.append(f'<p class="csg-told">{e(told)}</p>')
    if lines := view.get("lines"):
        parts.append(f'<p class="csg-title">{e(lines["title"])}</p>' + chart(lines))
    if matrices := view.get("matrices", [view["matrix"]] if "matrix" in view else []):
        parts.append(f'<div class="csg-matrices">{"".join(matrix_html(m) for m in matrices)}</div>')
    if table := view.get("table"):
        head = "".join(f'<th scope="col">{e(name)}</th>' for name in table["head"])
        rows = "".join(
            f'<tr><th scope="row">{e(row[0])}</th>'
            + "".join(f'<td style="--share:{fixed(share, 3)}">{e(text)}</td>' for text, share in row[1:])
            + "</tr>"
            for row in table["rows"]
        )
        wide = " csg-wide" if len(table["head"]) > 6 else ""
        parts.append(
            f'<div class="csg-scroll{" csg-long" * (len(table["rows"]) > ROWS)}" tabindex="0" role="group" '
            f'aria-label="Table, scrolls">'
            f'<table class="csg-table{wide}">'
            f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        )
    if view.get("images"):
        thumbs = "".join(
            f"<figure>{thumb(view, j, e(name))}<figcaption>{e(name)}</figcaption></figure>" for j, name in view["images"]
        )
        parts.append(f'<div class="csg-images">{thumbs}</div>')
    return "".join(parts)


def thumb(view: dict, j: int, name: str) -> str:
    y, x = divmod(j, view["across"])
    style = f"background-position:-{64 * x}px -{64 * y}px"
    return f'<div class="csg-thumb" role="img" aria-label="test image of class {name}" style="{style}"></div>'


def matrix_html(m: dict) -> str:
    step = -(-len(m["rows"]) // ROWS)
    labels = "".join(f"<span>{html.escape(row)}</span>" for row in m["rows"][::step])
    title, (R, K) = html.escape(m["title"]), m["values"].shape
    return (
        f'<div class="csg-panel"><p class="csg-title">{title}</p><div class="csg-matrix"><div aria-hidden="true">{labels}</div>'
        f'<div><img src="{heat_map(m["values"])}" alt="{title}: {R} rows, {K} columns"></div></div></div>'
    )


def chart(lines: dict) -> str:
    """A line chart from 0 to 1 as SVG; the second line is dashed.  It may have bands, a mark at one place, and named places."""
    series = list(lines["series"].items())
    last = max(lines["length"] - 1, 1)
    marks = "".join(
        f'<line x1="30" x2="410" y1="{height(v)}" y2="{height(v)}" class="csg-grid"/>'
        f'<text x="2" y="{154 - 140 * v:g}">{v:g}</text>'
        for v in (0, 0.5, 1)
    )
    for place, name in lines.get("ticks", ()):
        marks += f'<text x="{along(place, last)}" y="164" text-anchor="middle">{html.escape(name)}</text>'
    drawn, legend = "", ""
    style = lines.get("styles", (0, 1))  # 0 blue, 1 orange and dashed
    for i, (low, high) in zip(style, lines.get("bands", ()), strict=False):
        drawn += f'<polygon points="{points(low, last)} {" ".join(reversed(points(high, last).split()))}" class="csg-band{i}"/>'
    for i, (name, values) in enumerate(series):
        drawn += f'<polyline points="{points(values, last)}" class="csg-line{style[i]}"/>'
        legend += f'<line x1="{40 + 190 * i}" x2="{70 + 190 * i}" y1="178" y2="178" class="csg-line{style[i]}"/>'
        legend += f'<text x="{78 + 190 * i}" y="182" class="csg-name">{html.escape(name)}</text>'
    if "at" in lines:
        x = along(lines["at"], last)
        drawn += f'<line x1="{x}" x2="{x}" y1="10" y2="150" class="csg-at"/>'
    title = html.escape(lines["title"])
    return f'<svg class="csg-chart" viewBox="0 0 420 188" role="img" aria-label="{title}">{marks}{drawn}{legend}</svg>'


def along(place: int, last: int) -> str:
    return f"{30 + 380 * place / last:.1f}"


def height(value: float | int) -> str:
    return f"{150 - 140 * value:.1f}"


def points(values: Iterable[float], last: int) -> str:
    return " ".join(f"{along(x, last)},{height(float(y))}" for x, y in enumerate(values))
