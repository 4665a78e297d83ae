"""How pictures, names and whole figures are put into a page."""

import base64
import io
import re

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

BLUE = (0, 114, 178)


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


def heat_map(values: np.ndarray) -> str:
    """One pixel per entry, blue where it is 1 and clear where it is 0, so that it fits a light and a dark page."""
    pixels = np.empty((*values.shape, 4), np.uint8)
    pixels[..., :3] = BLUE
    pixels[..., 3] = np.round(255 * np.clip(values, 0, 1))
    file = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def shade(values: UInt8[Tensor, "h w"]) -> str:
    """A black sheet to lay over a picture, clear where a value is 255 and three quarters dark where it is 0."""
    pixels = np.zeros((*values.shape, 4), np.uint8)
    pixels[..., 3] = np.floor(0.75 * (255 - values.numpy().astype(float)) + 0.5)
    file = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def raw(markup: str) -> str:
    """HTML in a page of Markdown."""
    return f"```{{raw}} html\n{markup}\n```\n"
