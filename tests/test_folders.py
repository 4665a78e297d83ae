"""Image folders: what is listed and read, how it is split, kept and refused, and the way from command to readout."""

import json
import shlex
import shutil
import warnings
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from matplotlib.text import Text
from mdit_py_plugins.dollarmath import dollarmath_plugin
from PIL import Image
from torchvision.datasets import ImageFolder

from csgbook.embed import in_markdown
from csgbook.explorers import explore, views
from csgbook.pages import figures, origin, tables
from csglib import Problem, data, memory, runs
from csglib.data import decoded as decoding
from csglib.data import folders, pictures, streamed
from csglib.recipe import Recipe
from csglib.runs import inference
from csglib.training import trainer

COLOURS = {"blue": (20, 20, 220), "green": (20, 220, 20), "red": (220, 20, 20)}


def picture(path: Path, colour=(0, 0, 0), seed: int = 0, size=(24, 16), **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-20, 20, (size[1], size[0], 3))
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(path, **options)


@pytest.fixture
def zoo(place) -> Path:
    """Sixty pictures of three colours, one folder each."""
    for n, (name, colour) in enumerate(COLOURS.items()):
        for i in range(20):
            picture(place / "zoo" / name / f"{i}.png", colour, 100 * n + i)
    return place / "zoo"


@pytest.fixture
def decoded(monkeypatch) -> list:
    """The paths of the pictures that are decoded from now on."""
    seen, real = [], decoding.square
    monkeypatch.setattr(decoding, "square", lambda path, size: seen.append(path) or real(path, size))
    return seen


def test_a_folder_is_a_data_set_of_its_subfolders(zoo):
    found = data.load("folder:zoo")
    assert found.classes == ("blue", "green", "red") and len(found.train) + len(found.test) == 60
    for part in (found.train, found.test):
        assert part.images.shape[1:] == (3, 128, 128) and part.images.dtype == torch.uint8
        strongest = part.images.float().mean((2, 3)).argmax(1)  # red 0, green 1, blue 2
        assert torch.equal(2 - strongest, part.labels)


def test_the_pictures_are_those_that_image_folder_lists(zoo):
    for hidden in (".ipynb_checkpoints/0.png", "red/._0.png", ".DS_Store", "red/notes.txt"):
        (zoo / hidden).parent.mkdir(exist_ok=True)
        (zoo / hidden).write_bytes(b"no picture")
    picture(zoo / "red" / "deeper" / "one.JPG", seed=7, format="JPEG")
    classes, found = folders.listing(zoo)
    shutil.rmtree(zoo / ".ipynb_checkpoints")
    theirs = [(path, label) for path, label in ImageFolder(zoo).samples if "/._" not in path]
    assert sorted((str(p.path), p.label) for p in found) == sorted(theirs) and len(theirs) == 61
    assert list(classes) == ImageFolder(zoo).classes


def test_a_picture_is_cut_to_the_middle_square_and_turned_as_its_camera_says(place):
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :10], pixels[:, 10:20], pixels[:, 20:30], pixels[:, 30:] = 10, 50, 100, 250
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(place / "plain.png")
    Image.fromarray(pixels).save(place / "turned.png", exif=exif)
    plain, turned = (decoding.square(place / f"{name}.png", 20)[0] for name in ("plain", "turned"))
    assert (plain[:, :, :10] == 50).all() and (plain[:, :, 10:] == 100).all()
    assert (turned[:, :, :10] == 100).all() and (turned[:, :, 10:] == 50).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_kind_of_picture_becomes_colours(mode, place):
    Image.new(mode, (30, 40)).save("x.tif")
    assert decoding.square(Path("x.tif"), 32)[0].shape == (3, 32, 32)


# The split


def sides(name: str) -> dict[str, bool]:
    return {p.sha256: p.tests for p in folders.listing(pictures.asked(name).root)[1]}


def test_a_picture_stays_on_its_side_whatever_else_is_there(zoo):
    before = sides("folder:zoo")
    for i in range(15):
        picture(zoo / "green" / f"more-{i}.png", seed=1000 + i)
    (zoo / "red" / "3.png").rename(zoo / "red" / "renamed.png")
    (zoo / "blue" / "4.png").unlink()
    after = sides("folder:zoo")
    assert len(set(before) & set(after)) == 59
    assert all(after[sha256] == tests for sha256, tests in before.items() if sha256 in after)
    assert {int(sha256, 16) % 5 == 0 for sha256, tests in after.items() if tests} == {True}


def test_copies_of_a_picture_are_on_one_side(zoo):
    for path in list((zoo / "red").iterdir()):
        shutil.copy(path, zoo / "red" / f"copy-{path.name}")
    found = folders.listing(zoo)[1]
    assert len(found) == 80
    assert not {p.sha256 for p in found if p.tests} & {p.sha256 for p in found if not p.tests}


def test_about_a_fifth_tests(place):
    for i in range(500):
        (place / "many" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (place / "many" / "ab"[i % 2] / f"{i}.png").write_bytes(b"%d" % i)
    assert 70 < sum(p.tests for p in folders.listing(place / "many")[1]) < 130


@pytest.mark.parametrize("word", folders.TESTS)
def test_folders_train_and_test_are_the_two_parts(word, zoo, place):
    for name in COLOURS:
        for i, path in enumerate(sorted((zoo / name).iterdir())):
            new = place / "pair" / (word if i < 4 else "train") / name / path.name
            new.parent.mkdir(parents=True, exist_ok=True)
            path.rename(new)
    found = data.load("folder:pair@32")
    assert (len(found.train), len(found.test)) == (48, 12)
    assert found.classes == ("blue", "green", "red") and found.test.labels.bincount().tolist() == [4, 4, 4]


def test_a_picture_in_both_parts_is_told(place):
    for part in ("train", "val"):
        for name in COLOURS:
            picture(place / "pair" / part / name / "0.png", COLOURS[name])
    with pytest.warns(UserWarning, match="folder:pair: 3 pictures in both parts, training and test"):
        data.load("folder:pair")


def test_the_order_is_no_order_of_names_so_a_holdout_has_every_class(zoo):
    held = data.of(Recipe(dataset="folder:zoo@32", holdout=15))
    assert set(held.test.labels.tolist()) == {0, 1, 2} and len(held.test) == 15


# The file that keeps the pixels


def test_the_pictures_are_decoded_once(zoo, decoded, place):
    first = data.load("folder:zoo")
    assert len(decoded) == 60
    again = data.load(f"folder:{zoo}")
    assert len(decoded) == 60 and torch.equal(first.train.images, again.train.images) and first.digest == again.digest
    assert [p.suffix for p in (place.parent / "raw" / "folders").iterdir()] == [".safetensors"]


def test_a_change_of_a_picture_makes_the_file_anew_under_another_digest(zoo, decoded, place):
    first = data.load("folder:zoo@32")
    picture(zoo / "red" / "3.png", (90, 90, 90), 5)
    second = data.load("folder:zoo@32")
    assert first.digest != second.digest and len(decoded) == 120
    (zoo / "red" / "3.png").rename(zoo / "red" / "33.png")  # a name is part of the data too
    assert data.load("folder:zoo@32").digest not in (first.digest, second.digest)
    assert len(list((place.parent / "raw" / "folders").iterdir())) == 1


def test_the_digest_is_the_same_elsewhere_and_does_not_depend_on_the_size(zoo, place):
    shutil.copytree(zoo, place.parent / "raw" / "copy")
    assert data.load("folder:copy@16").digest == data.load("folder:zoo@32").digest


@pytest.mark.parametrize("damage", ["truncate", "flip", "other", "header"])
def test_a_damaged_file_is_made_again(damage, zoo, decoded, place):
    first = data.load("folder:zoo@32")
    (kept,) = (place.parent / "raw" / "folders").iterdir()
    content = bytearray(kept.read_bytes())
    if damage == "truncate":
        content = content[:-5]
    elif damage == "flip":
        content[-5] ^= 1
    elif damage == "other":
        content = b"{}"
    else:
        content[:8] = b"\xff" * 8
    kept.write_bytes(content)
    assert torch.equal(data.load("folder:zoo@32").train.images, first.train.images)
    assert len(decoded) == 120 and decoding.read_cache(kept, {}, 60, 32) is not None


# What is refused


@pytest.fixture
def refused(csglib, place):
    def check(words: str, *parts: str) -> None:
        code, out, err = csglib(*words.split())
        assert code == 2 and out == "" and err.startswith("csglib: ") and err.count("\n") == 1, err
        assert all(part in err for part in parts), err

    return check


@pytest.mark.parametrize(
    "name, parts",
    [
        ("folder:nowhere", ["no folder nowhere here", "raw/nowhere", "a subfolder of pictures for each class"]),
        ("folder:", ["names no folder", "folder:my-pictures"]),
        ("folder:zoo@8", ["8 x 8", "16 to 512"]),
        ("folder:zoo@99999", ["99999", "16 to 512"]),
        ("folder:~/zoo", ["no folder", "/zoo here"]),
        ("folder:../zoo", ["out of range", "no path upwards"]),
        ("folder:zoo/red", ["zoo/red has 0 subfolders", "each class into a folder"]),
        ("folder:zoo$(id)", ["out of range"]),
    ],
)
def test_a_name_that_is_no_image_folder_is_refused_with_the_remedy(name, parts, refused, zoo):
    refused(f"train --dataset {name} --out new --precision float32", *parts)
    assert not Path("new").exists() and not Path("new.part").exists()


def test_a_broken_picture_is_named_and_nothing_is_kept(refused, zoo, place):
    (zoo / "green" / "7.png").write_bytes((zoo / "green" / "7.png").read_bytes()[:200])
    refused("data verify folder:zoo", "zoo/green/7.png does not decode", "take it out of the folder")
    assert not list((place.parent / "raw").rglob("*"))


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(refused, zoo, monkeypatch):
    Image.new("1", (9000, 9000)).save(zoo / "red" / "huge.png")
    refused("data verify folder:zoo", "huge.png has 9000 x 9000 pixels")
    (zoo / "red" / "huge.png").unlink()
    monkeypatch.setattr(pictures, "FILE", 300)
    refused("data verify folder:zoo", "at most 0.000286102 are expected", "take it out")


def test_more_pictures_than_memory_is_meant_for_stay_in_their_files_unless_memory_is_asked_for(refused, zoo, monkeypatch):
    monkeypatch.setattr(streamed, "RESIDENT", 1 << 20)
    assert isinstance(data.load("folder:zoo").train, streamed.Streamed)
    assert isinstance(data.load("folder:zoo", reading=streamed.Reading("resident")).train, data.Images)
    monkeypatch.setattr(memory, "total", lambda: 1 << 20)
    with pytest.raises(Problem, match="takes 3 MiB in 128 x 128 pixels, and this machine has 1: leave --read out"):
        data.load("folder:zoo", reading=streamed.Reading("resident"))
    refused("train --dataset folder:zoo@skip --epochs 1", "@skip would have to know before", "leave @skip out")


def test_a_class_without_a_picture_in_a_part_is_named(refused, zoo):
    for p in folders.listing(zoo)[1]:
        if p.tests and p.label == 1:
            p.path.unlink()
    refused("data verify folder:zoo", "no test picture of class 'green'", "folders train and test")


def test_parts_with_other_classes_are_refused(refused, place):
    for part, names in (("train", ("a", "b")), ("test", ("a", "b", "c"))):
        for name in names:
            picture(place / "pair" / part / name / "0.png")
    refused("data verify folder:pair", "class 'c' in one of train and test alone")


@pytest.mark.parametrize("name", ["x" * 81, "new\nline", "\x1b[31mred", " ", "a\u202eb"])
def test_a_class_of_more_than_one_line_of_80_characters_is_refused(name, zoo, refused):
    (zoo / "red").rename(zoo / name)
    refused("data verify folder:zoo", "there is a class", "rename it")


def test_a_class_may_have_letters_of_any_language(zoo):
    (zoo / "red").rename(zoo / "rötlich (dunkel), 2")
    assert "rötlich (dunkel), 2" in data.load("folder:zoo@16").classes


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 1 << 12), flips=st.lists(st.tuples(st.integers(0, 1 << 12), st.integers(1, 255)), max_size=6))
def test_a_damaged_picture_is_read_or_refused_with_its_name(cut, flips, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fuzzed.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(path, seed=3, size=(40, 30), exif=exif)
    content = bytearray(path.read_bytes())
    for at, bits in flips:
        content[at % len(content)] ^= bits
    path.write_bytes(content[: max(20, cut)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert decoding.square(path, 16)[0].shape == (3, 16, 16)
        except Problem as problem:
            assert "fuzzed.jpg" in str(problem)


# From command to readout


@pytest.mark.slow
def test_a_folder_goes_through_train_and_evaluate(zoo, csglib, place):
    words = (
        "--dataset folder:zoo@32 --method csg --epochs 3 --cycle g --batch-size 16 --lr 0.05 --gate-density 0.4 --device cpu"
    )
    code, _, err = csglib("train", *words.split(), "--precision", "float32", "--out", "run")
    assert code == 0, err
    run = runs.read("run")
    assert run.recipe.dataset == "folder:zoo@32" and run.provenance["data_digest"] == data.load("folder:zoo@32").digest
    assert run.readout.gate.shape == (3, 64)
    code, out, _ = csglib("evaluate", "run", "--json", "--images")
    assert code == 0 and json.loads(out)["accuracy"] == pytest.approx(run.metrics["accuracy"], abs=0.02)
    picture(zoo / "red" / "3.png", (90, 90, 90), 5)
    code, _, err = csglib("evaluate", "run", "--images")
    assert code == 2 and "trained on other pictures than folder:zoo@32 has now" in err


def test_verify_names_the_classes(zoo, csglib):
    code, out, _ = csglib("data", "verify", "folder:zoo")
    assert code == 0 and "test images, of blue, green, red\n" in out
    assert data.present("folder:zoo@64") and not data.present("folder:zoo/none")


@pytest.mark.slow
def test_the_sample_is_written_once_and_read_as_it_was(place, mini, monkeypatch):
    found = data.load(f"folder:{folders.sample()}@32")
    assert found.classes == mini.classes[:5] and (len(found.train), len(found.test)) == (1000, 500)
    for part, original in ((found.train, mini.train), (found.test, mini.test)):
        first = original.labels < 5
        ours = {x.numpy().tobytes(): int(y) for x, y in zip(part.images, part.labels, strict=True)}
        theirs = zip(original.images[first], original.labels[first], strict=True)
        assert ours == {x.numpy().tobytes(): int(y) for x, y in theirs}
    monkeypatch.setattr(folders.Image, "fromarray", lambda _: pytest.fail("it is there"))
    assert folders.sample() == "sample-pictures"
    assert [p.name for p in sorted((place.parent / "raw").iterdir())] == ["folders", "sample-pictures"]


ODD = ("cat's & <b>", "$x$ costs $y$", "_a|b`*c*")  # each would be markup, a formula or a hidden label somewhere


class Texts(HTMLParser):
    """The texts of a page, without its scripts', and its tags."""

    def __init__(self, text: str):
        super().__init__()
        self.texts, self.tags = [], []
        self.feed(text)

    def handle_data(self, data: str) -> None:
        self.texts += [data.strip("\n")] * (self.cdata_elem is None)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.texts += [value for name, value in attrs if name == "aria-label"]


@pytest.mark.slow
def test_figures_tables_and_explorers_show_names_of_classes_as_they_are(zoo):
    for old, new in zip(COLOURS, ODD, strict=True):
        (zoo / old).rename(zoo / new)
    recipe = Recipe(dataset="folder:zoo@32", epochs=3, cycle="g", batch_size=16, gate_density=0.4, lr=0.05, precision="float32")
    run, classes = trainer.train(recipe, "run", "cpu"), data.load("folder:zoo@32").classes
    one, group = {"CSG": run}, {"CSG": [run]}
    assert set(classes) == set(ODD)
    images = data.load("folder:zoo@32").test
    named = [
        figures.gate(run, classes), figures.gate_film(run.readout.gates, classes=classes),
        figures.gate_and_information(one, classes), figures.centres(one, classes), figures.clusters(one, classes),
        figures.owned(group, classes), figures.confusions(one, torch.tensor([0, 2]), classes),
        figures.removals({"CSG": torch.rand(3, 3)}, classes), figures.exciting(run, images, classes),
    ]  # fmt: skip
    for figure in named:
        figure.canvas.draw()
        drawn = [text._preprocess_math(text.get_text()) for text in figure.findobj(Text)]
        assert set(ODD) <= {text.strip() for text, formula in drawn if not formula}
    others = [
        figures.curves(run), figures.compare(group), figures.correlations(one),
        figures.places(one, classes, filters=2, shown=2),
    ]  # fmt: skip
    assert all(figure.axes for figure in others)
    for made in (
        explore.cut({"CSG": [run]}, classes, "Cut", (0, 0)),
        explore.remove_classes(one, classes),
        explore.training_film(run, classes),
        explore.one_filter(run, classes, images),
    ):
        page = Texts(made.to_html())
        shown = " ".join(page.texts)
        assert all(name in shown for name in ODD) and "b" not in page.tags and "10,000" not in shown
        assert page.tags.count("script") == 2 and 'class="csg-explorer tex2jax_ignore mathjax_ignore"' in made.to_html()
    boxes = [box.description for box in explore.remove_classes(one, classes).widget().children if hasattr(box, "indent")]
    assert boxes == [name.replace("$", "\uff04") for name in classes]
    for table in (tables.removal(group, draws=2), tables.overlap(group, draws=2), tables.correlation(group)):
        assert "CSG" in table.data
    assert "folder:zoo@32" in origin.strip(group).data
    assert "folder:zoo@32" in origin.run_entry(run)
    assert inference.sample(run).shape[1:] == (3, 32, 32)


def test_an_explorer_of_more_classes_than_its_numbers_hold_is_refused():
    with pytest.raises(Problem, match="not for 257: leave"):
        views.gated_data({}, tuple(map(str, range(257))), 10)


@pytest.mark.parametrize(
    "name", [*ODD, "<img src=x onerror=alert(1)>", "`id`", "[a](b)", "![a](b)", "{{x}}", "a\\|b", "~~a~~", "# a"]
)
def test_a_name_in_markdown_is_a_text(name):
    table = tables.grid({"CSG": {in_markdown(name): "1"}}, "Network").data
    page = MarkdownIt("commonmark").enable("table").enable("strikethrough").use(dollarmath_plugin).render(table)
    found = Texts(page)
    assert "".join(found.texts) == f"Network{name}CSG1"
    assert set(found.tags) <= {"table", "thead", "tbody", "tr", "th", "td", "span"}
    assert "$x$" not in page


def test_a_data_sets_name_reaches_a_shell_as_one_word(zoo):
    for name in ("voc:my pets@cat,dog house", "folder:~/a b@64@skip"):
        assert name in shlex.split(Recipe(dataset=name, precision="float32").command)
