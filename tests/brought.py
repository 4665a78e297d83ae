"""What people bring: folders of pictures and of photographs in VOC's layout, small, for the tests of how they are read."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csglib import data

BOX = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
SIZE = "<size><width>{}</width><height>{}</height></size>"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """An empty current folder, with another for downloads."""
    monkeypatch.setenv("CSGLIB_DATA", str(tmp_path / "raw"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def noise(seed: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def put(path: Path | str, seed: int = 0, picture: Image.Image | None = None, **options) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    (picture or noise(seed)).save(path, **options)
    return path


@pytest.fixture
def pets(place) -> Path:
    """Two classes in two parts, four pictures each."""
    for seed in range(16):
        put(f"pets/{('train', 'test')[seed // 8]}/{('cat', 'dog')[seed % 2]}/{seed}.png", seed)
    return place / "pets"


def photograph(name: str, things: str, seed: int = 0, ending: str = "png", **options) -> Path:
    """One of a folder `town` in VOC's layout."""
    (Path("town") / "Annotations").mkdir(parents=True, exist_ok=True)
    (Path("town") / "Annotations" / f"{name}.xml").write_text(f"<annotation>{things}</annotation>")
    return put(f"town/JPEGImages/{name}.{ending}", picture=options.pop("picture", noise(seed, (12, 8))), **options)


def lists(**parts: str) -> None:
    main = Path("town/ImageSets/Main")
    main.mkdir(parents=True, exist_ok=True)
    for name, text in parts.items():
        (main / f"{name}.txt").write_text(text)


@pytest.fixture
def town(place) -> Path:
    """A car and a van in each of four photographs of 12 x 8 pixels."""
    for i in range(4):
        photograph(f"p{i}", BOX.format("car", 1, 1, 4, 4) + BOX.format("van", 7, 2, 10, 7), seed=i)
    lists(train="p0\np1\n", val="p2\np3\n")
    return place / "town"


def loaded(name: str) -> data.Dataset:
    with warnings.catch_warnings(action="ignore"):
        return data.load(name)
