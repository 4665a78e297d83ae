"""An image of the reader's own as 32 x 32 pixels, by the rules that network.js follows."""

import io

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from csglib import Problem

SIDE = 32
MOST = 64_000_000  # pixels that are decoded
HUGE = "The image has more than 64 million pixels, too many: scale it down first."


def prepared(content: bytes) -> tuple[UInt8[Tensor, "3 32 32"], str]:
    """The middle of the picture in the network's size, and what was done to it in words.

    Raises Problem where it does not decode or is huge.
    """
    try:
        picture = Image.open(io.BytesIO(content))
        if picture.width * picture.height > MOST:
            raise Problem(HUGE)
        picture = ImageOps.exif_transpose(picture).convert("RGBA")
    except Image.DecompressionBombError:
        raise Problem(HUGE) from None
    except (OSError, ValueError, SyntaxError):
        raise Problem("This file is no image that can be read here: choose a JPEG, PNG or WebP file.") from None
    w, h = picture.size
    side, told = min(w, h), []
    if w != h:
        told.append(f"The image is {w} x {h} pixels: the square in its middle is taken.")
    if side < SIDE:
        told.append("It is smaller than 32 x 32 pixels, so it is enlarged.")
    x, y = (w - side) // 2, (h - side) // 2
    s = SIDE * min(max(side // SIDE, 1), 32)
    picture = picture.resize((s, s), Image.Resampling.BOX, (x, y, x + side, y + side))
    values = np.asarray(picture, np.float64)
    if values[..., 3].min() < 255:
        told.append("Its transparent parts are shown on white.")
    alpha = values[..., 3:] / 255
    rgb = values[..., :3] * alpha + 255 * (1 - alpha)
    if np.abs(rgb - rgb.mean(2, keepdims=True)).max() < 1:
        told.append("It is grey, and the networks have learned from colour photographs.")
    cell = s // SIDE
    mean = rgb.reshape(SIDE, cell, SIDE, cell, 3).mean((1, 3))
    return torch.from_numpy(np.floor(mean + 0.5).astype(np.uint8)).permute(2, 0, 1).contiguous(), " ".join(told)
