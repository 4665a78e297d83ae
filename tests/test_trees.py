"""Trees of pictures and of photographs drawn at random: nothing changes count, pixels, class or part without a word."""

import re
import shutil
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from brought import BOX, SIZE
from conftest import LONG
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from csglib import Problem, data, paths

drawn = settings(
    max_examples=300 if LONG else 20,
    deadline=None,
    derandomize=not LONG,
    suppress_health_check=list(HealthCheck),
    database=None,
)
KINDS = ["png", "PNG", "gif", "bmp", "tif", "webp", "ppm", "grey", "16 bits", "turned", "palette", "copy"]
STRAYS = [".hidden.png", "._a.jpg", "note.txt", "b.heic", "noending", "Thumbs.db"]
FOLDERS = [".ipynb_checkpoints", "__MACOSX", ".git", "@eaDir"]
NAMES = ["cat", "Dog", "cat's", "a&b", "ö", "$x$", "1", "two words", "<b>", "_x", "train ticket"]
PARTS = st.sampled_from([("train", "test"), ("Train", "Val"), ("TRAINING", "Dev"), ("train_set", "evaluation")])


def colour(i: int, grey: bool) -> tuple[int, int, int]:
    """Another one for each i below 256."""
    return (i, i, i) if grey else (i, 255 - i, (i * 7 + 3) % 256)


def write(folder: Path, i: int, kind: str) -> tuple[int, int, int]:
    """A picture of one colour, which any resizing keeps."""
    shown = colour(i, kind in ("grey", "16 bits"))
    picture, options, ending = Image.new("RGB", (6, 9), shown), {}, kind
    if kind == "grey":
        picture, ending = picture.convert("L"), "png"
    elif kind == "16 bits":
        picture, ending = Image.fromarray(np.full((9, 6), i * 257, np.uint16)), "tiff"
    elif kind == "turned":
        options["exif"], ending = Image.Exif(), "png"
        options["exif"][0x0112] = 6
    elif kind == "palette":
        picture, ending = picture.quantize(2), "png"
    elif kind in ("webp", "copy"):
        options, ending = {"lossless": True} if kind == "webp" else {}, "webp" if kind == "webp" else "png"
    folder.mkdir(parents=True, exist_ok=True)
    picture.save(folder / f"{i}.{ending}", **options)
    if kind == "copy":
        shutil.copy(folder / f"{i}.png", folder / f"{i} copy.png")
    return shown


def seen(dataset: data.Dataset) -> tuple[Counter, Counter]:
    """Class and colour of every image of each part; each image has one."""
    found = []
    for part in (dataset.train, dataset.test):
        assert (part.images == part.images[:, :, :1, :1]).all()
        triples = part.images[:, :, 0, 0].tolist()
        found.append(Counter((dataset.classes[int(y)], tuple(c)) for y, c in zip(part.labels, triples, strict=True)))
    return tuple(found)


@pytest.mark.slow
@drawn
@given(more=st.data(), classes=st.lists(st.sampled_from(NAMES), min_size=2, max_size=3, unique=True), parts=st.none() | PARTS)
def test_a_tree_of_pictures(more, classes, parts, place):
    shutil.rmtree("tree", ignore_errors=True)
    draw, expected, left, shared, i = more.draw, (Counter(), Counter()), 0, 0, 0
    for side, part in enumerate(parts or [""]):
        for name in classes:
            folder = Path("tree", part, name)
            for kind in draw(st.lists(st.sampled_from(KINDS), min_size=1 if parts else 12, max_size=4 if parts else 20)):
                deeper = folder / "deeper" if draw(st.booleans()) else folder
                shown = write(deeper, i, kind)
                for path in deeper.glob(f"{i}[. ]*"):
                    tests = side if parts else int(paths.digest(path), 16) % 5 == 0
                    expected[tests][name, shown] += 1
                i += 1
            for stray in draw(st.sets(st.sampled_from(STRAYS), max_size=3)):
                (folder / stray).write_bytes(b"x")
                left += 1
            for stray in draw(st.sets(st.sampled_from(FOLDERS), max_size=2)):
                write(folder / stray, 200, "png")
                left += 1
            if draw(st.booleans()):
                (folder / "loop").symlink_to(draw(st.sampled_from([".", "..", "../..", f"../{classes[0]}"])))
                left += 1
        if draw(st.booleans()):
            write(Path("tree", part), 201, "png")  # beside the classes
            left += 1
    if draw(st.booleans()):
        at = Path("tree", parts[0] if parts else "", draw(st.sampled_from(classes)), "shared.bmp")
        Image.new("RGB", (5, 5), (255, 255, 255)).save(at)
        shutil.copy(at, at.parent.parent / next(c for c in classes if c != at.parent.name) / "shared too.bmp")
        shared = 2
    with warnings.catch_warnings(action="ignore"):
        try:
            found = data.load("folder:tree@16")
        except Problem as problem:  # no picture of some class is on one side
            assert not parts and "picture of class" in str(problem)
            assert any({c for c, _ in side} != set(classes) for side in expected)
            return
    assert found.classes == tuple(sorted(classes)) and seen(found) == expected
    assert counted(found.report) == left + shared


def counted(report: str) -> int:
    """How much the line tells of, all in all."""
    return sum(int(n) for n in re.findall(r"(?<![\w.])(\d+) (?:file|picture|link|object|photograph)s? ", report + " "))


@st.composite
def scenes(draw):
    """A photograph: name, format, whether it is turned, what its list says of it, and up to two objects at its edges."""
    return {
        "name": draw(st.sampled_from(["a", "b 1", "c.d", "é", "under_score", "x-1"])),
        "ending": draw(st.sampled_from(["png", "bmp", "tif", "JPG"])),
        "orientation": draw(st.sampled_from([0, 0, 3, 6, 8])),
        "flag": draw(st.sampled_from(["", "", " 1", "  0", " -1"])),
        "size": draw(st.sampled_from(["right", "absent", "zero", "right", "wrong"])),
        "fault": draw(st.sampled_from(["", "", "", "", "photograph", "annotation", "box"])),
        "things": draw(st.lists(st.tuples(st.sampled_from(["car", "Car", " van ", "bus"]), st.integers(-1, 1)), max_size=2)),
    }


def save(path: Path, upright: Image.Image, orientation: int) -> None:
    """As a camera of this orientation does; .JPG is a PNG, whose content counts."""
    exif, back = Image.Exif(), {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    if orientation and path.suffix != ".bmp":  # which has no such field
        exif[0x0112], upright = orientation, upright.transpose(back[orientation])
    upright.save(path, "PNG" if path.suffix == ".JPG" else None, exif=exif)


@pytest.mark.slow
@drawn
@given(trains=st.lists(scenes(), max_size=4), tests=st.lists(scenes(), max_size=3))
def test_a_tree_of_photographs_in_vocs_layout(trains, tests, place):
    shutil.rmtree("voc", ignore_errors=True)
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        Path("voc", name).mkdir(parents=True)
    sure = {"ending": "png", "orientation": 0, "flag": "", "size": "right", "fault": "", "things": [("car", 0), ("van", 0)]}
    expected, told, broken, i = (Counter(), Counter()), 0, 0, 0
    for side, scenes_ in enumerate(([{"name": "sure"} | sure, *trains], [{"name": "sure"} | sure, *tests])):
        lines = []
        for n, scene in enumerate(scenes_):
            name = f"{scene['name']} {side}{n}"
            lines.append(name + scene["flag"])
            pixels, things, objects = np.zeros((12, 20, 3), np.uint8), "", []
            for x, (called, out) in zip((0, 10), scene["things"], strict=False):  # at the left edge and at the right edge
                pixels[1:11, x : x + 10] = colour(i, grey=False)
                box = [x + 1 + (out if x == 0 else 0), 2, x + 10 + (out if x else 0), 11]
                if scene["fault"] == "box":
                    box = [x + 1, 2, x + 24, 11]
                things += BOX.format(called, *box)
                outside = box[0] < 1 or box[2] > 20
                objects.append((called.strip().lower(), colour(i, grey=False), called == "Car", outside))
                i += 1
            size = {"right": (20, 12), "absent": None, "zero": (0, 0), "wrong": (40, 24)}[scene["size"]]
            text = f"<annotation>{SIZE.format(*size) if size else ''}{things}</annotation>"
            Path("voc/Annotations", f"{name}.xml").write_text(text[: -9 if scene["fault"] == "annotation" else None])
            if scene["fault"] != "photograph":
                save(Path("voc/JPEGImages", f"{name}.{scene['ending']}"), Image.fromarray(pixels), scene["orientation"])
            wanted = [o for o in objects if o[0] != "bus"]
            fault = scene["fault"] == "annotation" or (wanted and (scene["fault"] or scene["size"] == "wrong"))
            if scene["flag"] == " -1":
                told += 1
            elif fault:
                broken += 1
            else:
                expected[side].update((c, shown) for c, shown, _, _ in wanted)
                told += len(objects) - len(wanted) + (not wanted)
                told += sum(other for *_, other, _ in wanted) + sum(outside for *_, outside in wanted)
        Path("voc/ImageSets/Main", ("train.txt", "val.txt")[side]).write_text("\n".join(lines) + "\n")
    with warnings.catch_warnings(action="ignore"):
        found = data.load("voc:voc@car,van@20@skip")
        try:
            assert data.load("voc:voc@car,van@20").digest == found.digest and not broken
        except Problem as problem:
            assert broken and "@skip" in str(problem)
    middles = []
    for part in (found.train, found.test):
        shown = [tuple(image[:, 10, 10].tolist()) for image in part.images]
        middles.append(Counter(zip([found.classes[int(y)] for y in part.labels], shown, strict=True)))
    assert middles == list(expected)
    report, *first = found.report.split(", first: ")
    assert counted(report) + counted("; ".join("".join(first).split("; ")[1:])) == told + broken
