import shutil

import numpy as np
import pytest
import torch
from conftest import SHARED
from PIL import Image

from csglib import Problem, data, objects, train
from csglib.objects import ANIMALS
from csglib.runs import Recipe

XML = "<annotation>{}</annotation>"
OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


@pytest.fixture
def voc(tmp_path):
    """Two photographs: a bird and a cat in one, a bird in the other; a split with both and one with the second."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    boxes = {"a": [("bird", 11, 6, 30, 15), ("cat", 1, 1, 40, 40), ("person", 2, 2, 9, 9)], "b": [("bird", 5, 5, 14, 24)]}
    for name, found in boxes.items():
        pixels = np.zeros((40, 60, 3), np.uint8)
        for _, left, top, right, bottom in found[:1]:
            pixels[top - 1 : bottom, left - 1 : right] = 255
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg", quality=100, subsampling=0)
        (root / "Annotations" / f"{name}.xml").write_text(XML.format("".join(OBJECT.format(*box) for box in found)))
    (root / "ImageSets/Main/train.txt").write_text("a\nb\n")
    (root / "ImageSets/Main/val.txt").write_text("b\n")
    return tmp_path


def test_objects_are_cut_out_square_with_the_box_in_the_pixels_of_the_cut(voc):
    found = objects.read_voc(voc, "train", classes=("bird", "cat"), size=20)
    assert found.images.shape == (3, 3, 20, 20) and found.labels.tolist() == [0, 1, 0]
    assert found.photographs == ("a", "a", "b")
    assert found.boxes.tolist() == [[0, 5, 20, 15], [0, 0, 20, 20], [5, 0, 15, 20]]
    first = found.images[0].float().mean(0) / 255
    assert first[6:14].mean() > 0.95 and first[:4].mean() < 0.05  # the box is white, its surroundings are black


def test_context_widens_the_cut_and_pads_with_black_outside_of_the_photograph(voc):
    found = objects.read_voc(voc, "train", classes=("bird", "cat"), size=40, context=2.0)
    assert found.boxes[0].tolist() == [10, 15, 30, 25]
    assert (found.images[1][:, :9] == 0).all()  # the cat's box is 40 high in 40 pixels: above it there is nothing


def test_other_classes_are_left_out_and_a_class_without_objects_is_named(voc):
    assert objects.read_voc(voc, "val", classes=("bird",)).labels.tolist() == [0]
    with pytest.raises(Problem, match="no object of class cat in split val"):
        objects.read_voc(voc, "val", classes=("bird", "cat"))


DAMAGES = {
    "xml missing": (lambda f: (f / "Annotations/a.xml").unlink(), r"a\.xml is missing"),
    "xml broken": (lambda f: (f / "Annotations/a.xml").write_text("<annotation><object>"), r"a\.xml cannot be read"),
    "no number": (
        lambda f: (f / "Annotations/a.xml").write_text(XML.format(OBJECT.format("bird", "x", 1, 2, 3))),
        r"a\.xml cannot be read",
    ),
    "no box": (
        lambda f: (f / "Annotations/a.xml").write_text(XML.format("<object><name>bird</name></object>")),
        r"a\.xml cannot be read",
    ),
    "box outside": (
        lambda f: (f / "Annotations/a.xml").write_text(XML.format(OBJECT.format("bird", 50, 1, 61, 9))),
        r"bird of photograph a has a box outside of its 60 x 40 pixels",
    ),
    "box inverted": (
        lambda f: (f / "Annotations/a.xml").write_text(XML.format(OBJECT.format("bird", 9, 1, 4, 9))),
        "box outside",
    ),
    "image missing": (lambda f: (f / "JPEGImages/a.jpg").unlink(), r"a\.jpg does not decode"),
    "image cut off": (
        lambda f: (f / "JPEGImages/a.jpg").write_bytes((f / "JPEGImages/a.jpg").read_bytes()[:200]),
        r"a\.jpg does not decode",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_wrong_with_a_photograph_is_named_and_skipped_only_when_asked_to(damage, voc):
    deed, words = DAMAGES[damage]
    deed(voc / "VOCdevkit" / "VOC2012")
    with pytest.raises(Problem, match=words):
        objects.read_voc(voc, "train", classes=("bird",))
    with pytest.warns(UserWarning, match=words):
        assert objects.read_voc(voc, "train", classes=("bird",), skip=True).photographs == ("b",)


def test_a_folder_of_another_layout_and_an_unknown_split_are_refused(voc, tmp_path_factory):
    with pytest.raises(Problem, match="should hold one folder with JPEGImages.* has none"):
        objects.read_voc(tmp_path_factory.mktemp("empty"), "train")
    with pytest.raises(Problem, match="no split 'test': ImageSets/Main has train, val"):
        objects.read_voc(voc, "test")
    shutil.copytree(voc / "VOCdevkit" / "VOC2012", voc / "VOCdevkit" / "VOC2007")
    with pytest.raises(Problem, match="has VOC2007, VOC2012: name it"):
        objects.read_voc(voc, "train")
    assert len(objects.read_voc(voc / "VOCdevkit" / "VOC2007", "train", classes=("bird",))) == 2


def test_a_list_cannot_name_a_file_elsewhere(voc):
    (voc / "VOCdevkit/VOC2012/ImageSets/Main/train.txt").write_text("../../../secret\n")
    with pytest.raises(Problem, match="names '../../../secret'"):
        objects.read_voc(voc, "train")


@pytest.mark.parametrize("name, counts", [("voc_animals", 587), ("det_animals", 2652)])
def test_the_animals_are_read_whole_and_split_by_photograph(name, counts):
    root = SHARED / "data" / name
    if not root.is_dir():
        pytest.skip(f"the animals are not here: {root}")
    train, val = (objects.read_voc(root, split, size=16) for split in ("train", "val"))
    assert len(train) + len(val) == counts
    assert not set(train.photographs) & set(val.photographs)
    for part in (train, val):
        assert set(part.labels.tolist()) == set(range(len(ANIMALS)))
        longer = torch.maximum(part.boxes[:, 2] - part.boxes[:, 0], part.boxes[:, 3] - part.boxes[:, 1])
        assert torch.allclose(longer, torch.tensor(16.0), atol=0.01)


def test_a_voc_folder_is_a_data_set_whose_holdout_takes_photographs_whole(tmp_path, monkeypatch):
    root = SHARED / "data" / "voc_animals"
    if not root.is_dir():
        pytest.skip(f"the animals are not here: {root}")
    (tmp_path / "animals").symlink_to(root)
    monkeypatch.setenv("CSGLIB_DATA", str(tmp_path))
    whole = data.load("voc:animals")
    assert whole.classes == ANIMALS and whole.train.images.shape[1:] == (3, 128, 128)
    for n in (30, 31, 32, 33):
        part = train.load(Recipe(dataset="voc:animals", holdout=n))
        left = len(part.train)
        assert n <= len(part.test) <= n + 10 and left + len(part.test) == len(whole.train)
        assert whole.train.groups[left - 1] != whole.train.groups[left]
    assert len(set(part.test.labels.tolist())) > 3  # the photographs are shuffled
    assert Recipe(dataset="voc:animals", precision="float32").name.startswith("voc-animals-resnet20")
    with pytest.raises(Problem, match="should hold one folder with JPEGImages"):
        data.load("voc:nowhere")
