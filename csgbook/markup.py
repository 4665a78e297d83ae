"""The HTML of an explorer: its controls and its view.  explore.js replaces the content of the same elements.

Classes are called what their owners call them, so names are escaped here, never trusted.
"""

import base64
import html
import io
import json
import re

import numpy as np
import torch
from PIL import Image

from csgbook.views import fixed

BLUE = (0, 114, 178)


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


def bundle(text: str, figure) -> dict:
    """What Jupyter shows of a figure: its HTML, and with ipywidgets its widget."""
    shown = {"text/plain": text, "text/html": figure.to_html()}
    try:
        box = figure.widget()
    except ImportError:
        return shown
    return shown | {
        "application/vnd.jupyter.widget-view+json": {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
    }


def sprite(images: torch.Tensor, across: int = 32, quality: int | None = 70) -> str:
    """All images side by side in one WebP, as a data address; lossless where the quality is None."""
    n, _, h, w = images.shape
    canvas = np.zeros((-(-n // across) * h, across * w, 3), np.uint8)
    for j, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        y, x = divmod(j, across)
        canvas[y * h : (y + 1) * h, x * w : (x + 1) * w] = image
    file = io.BytesIO()
    options = {"lossless": True} if quality is None else {"quality": quality}
    Image.fromarray(canvas).save(file, "WEBP", **options)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def in_markdown(name: str) -> str:
    """As it is, in a table's cell too: no mark, no tag, and no formula, for which MathJax wants two dollars in one text."""
    return re.sub(r"[^\w\s.,()-]|_", lambda c: f"&#{ord(c[0])};", name).replace("&#36;", "<span>&#36;</span>")


def control_html(uid: str, c) -> str:
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
    if m := view.get("matrix"):
        labels = "".join(f"<span>{e(row)}</span>" for row in m["rows"])
        title, (R, K) = e(m["title"]), m["values"].shape
        parts.append(
            f'<p class="csg-title">{title}</p><div class="csg-matrix"><div aria-hidden="true">{labels}</div>'
            f'<div><img src="{heat_map(m["values"])}" alt="{title}: {R} rows, {K} columns"></div></div>'
        )
    if lines := view.get("lines"):
        parts.append(f'<p class="csg-title">{e(lines["title"])}</p>' + chart(lines))
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
            f'<div class="csg-scroll" tabindex="0" role="group" aria-label="Table, scrolls sideways">'
            f'<table class="csg-table{wide}">'
            f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        )
    if view.get("images"):
        thumbs = "".join(
            f"<figure>{thumb(view, j, e(name))}<figcaption>{e(name)}</figcaption></figure>" for j, name in view["images"]
        )
        parts.append(f'<div class="csg-images">{thumbs}</div>')
    return "".join(parts)


def heat_map(values: np.ndarray) -> str:
    """One pixel an entry, blue where it is 1 and clear where it is 0, so that it fits a light and a dark page."""
    pixels = np.empty((*values.shape, 4), np.uint8)
    pixels[..., :3] = BLUE
    pixels[..., 3] = np.round(255 * np.clip(values, 0, 1))
    file = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def thumb(view: dict, j: int, name: str) -> str:
    y, x = divmod(j, view["across"])
    style = f"background-position:-{64 * x}px -{64 * y}px"
    return f'<div class="csg-thumb" role="img" aria-label="test image of class {name}" style="{style}"></div>'


def chart(lines: dict) -> str:
    """A line chart from 0 to 1 as SVG; the second line is dashed."""
    last = max(lines["length"] - 1, 1)
    marks = "".join(
        f'<line x1="30" x2="410" y1="{150 - 140 * v:g}" y2="{150 - 140 * v:g}" class="csg-grid"/>'
        f'<text x="2" y="{154 - 140 * v:g}">{v:g}</text>'
        for v in (0, 0.5, 1)
    )
    drawn, legend = "", ""
    for i, (name, values) in enumerate(lines["series"].items()):
        points = " ".join(f"{30 + 380 * x / last:.1f},{150 - 140 * y:.1f}" for x, y in enumerate(values))
        drawn += f'<polyline points="{points}" class="csg-line{i}"/>'
        legend += f'<line x1="{40 + 190 * i}" x2="{70 + 190 * i}" y1="170" y2="170" class="csg-line{i}"/>'
        legend += f'<text x="{78 + 190 * i}" y="174">{html.escape(name)}</text>'
    title = html.escape(lines["title"])
    return f'<svg class="csg-chart" viewBox="0 0 420 180" role="img" aria-label="{title}">{marks}{drawn}{legend}</svg>'
