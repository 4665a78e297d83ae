"""The pixels of pictures in files: of one, by each of the ways to bring it to a size; of all, kept in one file."""

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm.auto import tqdm

from csglib.data.pictures import Report, read
from csglib.data.sums import beside
from csglib.errors import Problem
from csglib.files import short, write

HOW = "shorter side to size, middle square, bilinear; 2"  # changes with what is done to a picture
REMEDY = "restore it, or take it out of the folder"

# One picture


def square(path: Path, size: int) -> tuple[UInt8[np.ndarray, "3 S S"], int]:
    """The middle square, its shorter side brought to that size; and how many frames the file has."""
    picture = read(path, REMEDY, near=size)
    fitted = ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
    return planes(fitted), picture.info["frames"]


def centre(path: Path, size: int) -> UInt8[np.ndarray, "3 S S"]:
    """ImageNet's usual evaluation: the shorter side to 256 / 224 of the size, and of that the middle."""
    wide = round(size * 256 / 224)
    picture = read(path, REMEDY, near=wide)
    scale = wide / min(picture.size)
    whole = picture.resize([max(wide, round(side * scale)) for side in picture.size], Image.Resampling.BILINEAR)
    left, top = ((side - size) // 2 for side in whole.size)
    return planes(whole.crop((left, top, left + size, top + size)))


def resized(path: Path, size: int, seed: int) -> UInt8[np.ndarray, "3 S S"]:
    """ImageNet's usual crop for training, by torchvision: 8 to 100 % of the area, sides 3:4 to 4:3, brought to the size."""
    from torchvision.transforms.v2 import RandomResizedCrop  # takes a second to import

    picture = read(path, REMEDY)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return planes(RandomResizedCrop(size)(picture))


def planes(picture: Image.Image) -> UInt8[np.ndarray, "3 H W"]:
    return np.asarray(picture).transpose(2, 0, 1).copy()


# All of them


def kept(
    root: Path, paths: Sequence[Path], size: int, listing: str, report: Report
) -> tuple[UInt8[Tensor, "N 3 S S"], set[int]]:
    """The pictures' pixels, read from the file that an earlier call left, or made and left there; and which cannot be read."""
    where = beside(root, f"-{size}.safetensors")
    told = {"listing": listing, "how": f"{HOW}, {size}"}
    if (found := read_cache(where, told, len(paths), size)) is None:
        images, aside = found = decoded(root, paths, size, report)
        try:
            where.parent.mkdir(parents=True, exist_ok=True)
            alone = where.with_name(f"{where.stem}-{os.getpid()}.safetensors")  # of two processes each writes its own
            told |= {"aside": (text := json.dumps(aside)), "sum": sum_of(images, text)}
            write(alone, save({"images": images}, told))
            os.replace(alone, where)
        except (OSError, Problem) as error:
            remedy = "set CSGLIB_DATA to a folder that can be written"
            warnings.warn(f"{root} will be decoded each time anew, since {short(str(error))}: {remedy}", stacklevel=3)
    images, aside = found
    for words in aside["broken"].values():
        report.fails(Problem(words))
    report.noted["pictures of several frames, of which the first is read"] += aside["frames"]
    return images, {int(i) for i in aside["broken"]}


def decoded(root: Path, paths: Sequence[Path], size: int, report: Report) -> tuple[UInt8[Tensor, "N 3 S S"], dict]:
    """The pixels, what is wrong with those that are left out, and how many have several frames."""
    images, broken, frames = torch.zeros((len(paths), 3, size, size), dtype=torch.uint8), {}, 0

    def attempt(path: Path) -> tuple[np.ndarray, int] | Problem:
        try:
            return square(path, size)
        except Problem as problem:
            return problem

    hidden = bool(os.environ.get("TQDM_DISABLE"))
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")  # of metadata that nobody reads, and of pixels, which are bounded
        for i, made in enumerate(tqdm(pool.map(attempt, paths), f"{root}", len(paths), delay=1, disable=hidden)):
            if isinstance(made, Problem):
                broken[str(i)] = str(made)
                if not report.skip:  # do not read the rest first
                    pool.shutdown(cancel_futures=True)
                    report.fails(made)
            else:
                images[i] = torch.from_numpy(made[0])
                frames += made[1] > 1
    return images, {"broken": broken, "frames": frames}


def sum_of(images: UInt8[Tensor, "N 3 S S"], aside: str) -> str:
    seen = hashlib.sha256(images.numpy())
    seen.update(aside.encode())
    return seen.hexdigest()


def read_cache(path: Path, told: dict[str, str], n: int, size: int) -> tuple[UInt8[Tensor, "N 3 S S"], dict] | None:
    """None where the file is absent, damaged, or of other pictures: it is made again."""
    try:
        with safe_open(path, "pt") as f:
            stored = f.metadata() or {}
            if any(stored.get(word) != value for word, value in told.items()):
                return None
            images = f.get_tensor("images")
    except (OSError, SafetensorError):
        return None
    fits = images.dtype == torch.uint8 and tuple(images.shape) == (n, 3, size, size)
    aside = stored.get("aside", "")
    return (images, json.loads(aside)) if fits and sum_of(images, aside) == stored.get("sum") else None
