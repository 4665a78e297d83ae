import dataclasses
import functools
import http.server
import io
import shutil
import tarfile
import threading
import warnings

import numpy as np
import pytest
import torch
from conftest import SHARED
from PIL import Image

from csgbook import experiments
from csglib import Problem, data, networks, paths, runs
from csglib.analysis import localize
from csglib.data import objects
from csglib.data.objects import ANIMALS
from csglib.recipe import Recipe
from csglib.training import trainer

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
    assert found.boxes.tolist() == [[0, 5, 20, 15], [0, 0, 20, 20], [5, 0, 15, 20]]  # the longer side is the cut's
    first = found.images[0].float().mean(0) / 255
    assert first[6:14].mean() > 0.95 and first[:4].mean() < 0.05  # the box is white, its surroundings are black


def test_context_widens_the_cut_which_stays_in_the_photograph_or_is_padded_with_black(voc):
    found = objects.read_voc(voc, "train", classes=("bird", "cat"), size=40, context=2.0)
    assert found.boxes[0].tolist() == [10, 5, 30, 15]  # around the bird it would begin 10 pixels above
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
        lambda f: (f / "Annotations/a.xml").write_text(XML.format(OBJECT.format("bird", 50, 1, 63, 9))),
        r"bird of photograph a has a box outside of its 60 x 40 pixels",
    ),
    "box inverted": (
        lambda f: (f / "Annotations/a.xml").write_text(XML.format(OBJECT.format("bird", 9, 1, 4, 9))),
        "box outside",
    ),
    "image missing": (lambda f: (f / "JPEGImages/a.jpg").unlink(), r"a\.jpg is missing"),
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


def test_a_name_without_a_folder_or_of_another_layout_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("CSGLIB_DATA", str(tmp_path))
    with pytest.raises(Problem, match="there is no folder nowhere here and no .*/nowhere: name one that has JPEGImages"):
        data.load("voc:nowhere")
    (tmp_path / "other").mkdir()
    with pytest.raises(Problem, match="other should hold one folder with JPEGImages"):
        data.load("voc:other")


def test_a_list_cannot_name_a_file_elsewhere(voc):
    (voc / "VOCdevkit/VOC2012/ImageSets/Main/train.txt").write_text("../../../secret\n")
    with pytest.raises(Problem, match="names '../../../secret'"):
        objects.read_voc(voc, "train")


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    """animals("det_animals"): the data set of photographs that are not ours to pass on."""
    folder = tmp_path_factory.mktemp("animals")

    @functools.cache
    def read(name: str) -> data.Dataset:
        root = SHARED / "data" / name.partition("@")[0]  # a name may end in the size of its pictures
        if not root.is_dir():
            pytest.skip(f"the animals are not here: {root}")
        if not (link := folder / root.name).exists():
            link.symlink_to(root)
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(action="ignore"):
            patch.setenv("CSGLIB_DATA", str(folder))
            return data.load(f"voc:{name}")

    return read


@pytest.mark.slow
@pytest.mark.parametrize("name, counts", [("voc_animals", 587), ("det_animals", 2652)])
def test_the_animals_are_read_whole_and_split_by_photograph(name, counts, animals):
    found = animals(name)
    assert len(found.train) + len(found.test) == counts and "both parts" not in found.report
    assert not set(found.train.groups.tolist()) & set(found.test.groups.tolist())
    assert all(set(part.labels.tolist()) == set(range(len(ANIMALS))) for part in (found.train, found.test))


@pytest.mark.slow
def test_the_published_runs_have_the_animals_that_are_read_now(animals):
    """Pixel for pixel, in each size that runs have: the digest is of the images."""
    published = [runs.read(path) for path in sorted(runs.PUBLISHED.glob("voc-det_animals-*"))]
    digests = {(run.recipe.dataset, run.provenance["data_digest"]) for run in published}
    names = {"det_animals", "det_animals@32"}
    assert len(published) >= 27 and digests == {(f"voc:{name}", animals(name).digest) for name in names}


@pytest.mark.slow
def test_a_voc_folder_is_a_data_set_whose_holdout_takes_photographs_whole(animals, tmp_path, monkeypatch):
    whole = animals("voc_animals")
    monkeypatch.setattr(data, "load", lambda *_: whole)
    assert whole.classes == ANIMALS and whole.train.images.shape[1:] == (3, 128, 128)
    for n in (30, 31, 32, 33):
        part = data.of(Recipe(dataset="voc:animals", holdout=n))
        left = len(part.train)
        assert n <= len(part.test) <= n + 10 and left + len(part.test) == len(whole.train)
        assert whole.train.groups[left - 1] != whole.train.groups[left]
    assert len(set(part.test.labels.tolist())) > 3  # the photographs are shuffled
    assert Recipe(dataset="voc:animals", precision="float32").name.startswith("voc-animals-resnet20")


# Masks and parts, where the data have them


def instances(boxes) -> np.ndarray:
    ids = np.zeros((40, 60), np.uint8)
    for number, (left, top, right, bottom) in boxes.items():
        ids[top - 1 : bottom, left - 1 : right] = number
    return ids


def test_masks_are_matched_to_boxes_by_their_place_not_their_order(voc):
    folder = voc / "VOCdevkit" / "VOC2012" / "SegmentationObject"
    folder.mkdir()
    ids = instances({1: (2, 2, 39, 39), 2: (12, 7, 30, 15)})  # the cat's number comes first, its box second
    ids[0, :] = 255
    picture = Image.fromarray(ids)
    picture.putpalette([value // 3 for value in range(768)])  # the numbers of VOC have colours
    picture.save(folder / "a.png")
    found = objects.read_voc(voc, "train", classes=("bird", "cat"), size=40)
    assert found.photographs == ("a", "a", "b")
    bird, cat, other = found.masks
    assert not other.any() and not found.parts[0]
    assert bird[12:28, 4:].float().mean() > 0.95 and not bird[:9].any()
    assert cat.sum() == (ids == 1).sum()  # in a crop of 40 pixels a side, as large as the box
    assert torch.equal(found.take([1, 0]).masks, found.masks[[1, 0]])


@pytest.mark.parametrize("count", [1, 2])
def test_the_masks_and_parts_of_pascal_part_are_read(voc, count):
    from scipy.io import savemat

    folder = voc / "VOCdevkit" / "VOC2012" / "Annotations_Part"
    folder.mkdir()
    mask = instances({1: (11, 6, 30, 15)})
    part = np.empty((1, count), object)
    for i, name in enumerate(("head", "tail")[:count]):
        part[0, i] = {"part_name": name, "mask": instances({1: (11 + 10 * i, 6, 20 + 10 * i, 15)})}
    bird = {"class": "bird", "mask": mask, "parts": part}
    person = {"class": "person", "mask": instances({1: (41, 2, 60, 39)}), "parts": np.zeros((0, 0))}
    things = np.empty((1, 2), object)
    things[0, :] = [person, bird]
    savemat(folder / "a.mat", {"anno": {"imname": "a", "objects": things}})
    found = objects.read_voc(voc, "train", classes=("bird",), size=20)
    assert found.masks[0, 5:15].all() and found.masks[0].sum() == 200
    assert list(found.parts[0]) == ["head", "tail"][:count]
    assert found.parts[0]["head"][5:15, :10].all() and found.parts[0]["head"].sum() == 100
    assert not found.parts[1]


@pytest.mark.parametrize(
    "name, words", [("SegmentationObject/a.png", "does not decode"), ("Annotations_Part/a.mat", "cannot be read")]
)
def test_a_broken_mask_is_named(voc, name, words):
    path = voc / "VOCdevkit" / "VOC2012" / name
    path.parent.mkdir()
    path.write_bytes(b"nothing")
    with pytest.raises(Problem, match=words):
        objects.read_voc(voc, "train", classes=("bird",))


def test_a_mask_of_another_size_is_refused(voc):
    folder = voc / "VOCdevkit" / "VOC2012" / "SegmentationObject"
    folder.mkdir()
    Image.fromarray(np.ones((20, 20), np.uint8)).save(folder / "a.png")
    with pytest.raises(Problem, match=r"mask of a has \(20, 20\) pixels"):
        objects.read_voc(voc, "train", classes=("bird",))


def test_the_folder_of_voc_2011_lies_deeper(voc):
    deeper = voc / "voc2011" / "TrainVal"
    deeper.mkdir(parents=True)
    shutil.move(voc / "VOCdevkit", deeper)
    assert len(objects.read_voc(voc / "voc2011", "train", classes=("bird",))) == 2


# Download


@pytest.fixture
def archive(voc, tmp_path_factory, monkeypatch):
    """torchvision's list of archives with one of ours."""
    from torchvision.datasets import voc as listed

    shutil.copy(voc / "VOCdevkit/VOC2012/ImageSets/Main/train.txt", voc / "VOCdevkit/VOC2012/ImageSets/Main/trainval.txt")
    path = tmp_path_factory.mktemp("web") / "voc.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(voc / "VOCdevkit", "VOCdevkit")
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=path.parent)) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        entry = {"url": f"http://127.0.0.1:{server.server_port}/voc.tar", "filename": "voc.tar"}
        entry |= {"md5": paths.digest(path, "md5"), "base_dir": "VOCdevkit/VOC2012"}
        monkeypatch.setitem(listed.DATASET_YEAR_DICT, "2010", entry)
        yield path
        server.shutdown()


def test_voc_is_downloaded_checked_and_appears_whole_or_not_at_all(archive, tmp_path_factory, monkeypatch, csglib):
    root = tmp_path_factory.mktemp("data")
    monkeypatch.setenv("CSGLIB_DATA", str(root))
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-600] + b"x" * 600)
    code, _, err = csglib("data", "get", "voc2010")
    assert code == 2 and "voc.tar is not the official release (its md5 differs)" in err and not list(root.iterdir())
    archive.write_bytes(whole)
    assert csglib("data", "get", "voc2010")[:2] == (0, f"voc2010: photographs in {root / 'voc2010'}\n")
    assert [p.name for p in root.iterdir()] == ["voc2010"]
    assert len(objects.read_voc(root / "voc2010", "train", classes=("bird",))) == 2
    archive.unlink()
    assert csglib("data", "get", "voc2010")[0] == 0  # what is there is kept


def test_an_archive_of_photographs_that_would_write_outside_its_folder_is_stopped(
    archive, tmp_path_factory, monkeypatch, csglib
):
    from torchvision.datasets import voc as listed

    root = tmp_path_factory.mktemp("data")
    monkeypatch.setenv("CSGLIB_DATA", str(root / "raw"))
    with tarfile.open(archive, "a") as tar:
        member = tarfile.TarInfo("../../escaped.txt")
        member.size = 7
        tar.addfile(member, io.BytesIO(b"escaped"))
    monkeypatch.setitem(listed.DATASET_YEAR_DICT["2010"], "md5", paths.digest(archive, "md5"))
    code, _, err = csglib("data", "get", "voc2010")
    assert code == 2 and "voc.tar cannot be unpacked" in err and "outside the destination" in err
    assert not list(root.rglob("escaped.txt")) and not list((root / "raw").iterdir())


# The paper's own recipe


@pytest.mark.long
def test_the_recipe_of_resnet152_on_voc_runs_from_photographs_to_a_run_for_a_few_steps(tmp_path, monkeypatch):
    folder = tmp_path / "voc2010" / "VOCdevkit" / "VOC2010"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for animal in ANIMALS:
            name = f"{split}_{animal}"
            Image.fromarray(rng.integers(0, 255, (50, 60, 3), np.uint8)).save(folder / "JPEGImages" / f"{name}.jpg")
            (folder / "Annotations" / f"{name}.xml").write_text(XML.format(OBJECT.format(animal, 11, 6, 50, 45)))
        names = "".join(f"{split}_{animal}\n" for animal in ANIMALS)
        (folder / "ImageSets/Main" / f"{split}.txt").write_text(names)
    monkeypatch.setenv("CSGLIB_DATA", str(tmp_path))
    (recipe, *_) = experiments.recipes("localisation", "paper")["animals-csg"]
    assert (recipe.net, recipe.dataset, recipe.weights) == ("resnet152@layer4", "voc:voc2010", "imagenet")
    steps = {"epochs": 2, "cycle": "gs", "batch_size": 3, "loop": "plain"}  # two gated, two standard; none under the compiler
    short = dataclasses.replace(recipe, weights="fresh", **steps)
    torch.manual_seed(0)
    start = networks.build(recipe.net, 6).state_dict()
    found = trainer.train(short, tmp_path / "run", "cpu")
    assert found.readout.features.shape == (6, 2048) and found.readout.gate.shape == (6, 2048)
    assert [row["path"] for row in found.history] == ["gated", "standard"]
    learned = {k for k, v in found.weights.items() if v.ndim == 4 and not torch.equal(v, start[k].half().float())}
    assert learned and all(k.startswith(("features.0.layer3", "features.0.layer4")) for k in learned)
    assert set(localize.cam_scores(*looks(found), *looks(found), torch.ones(6, 32, 32) > 0)) >= {"iou", "box_accuracy"}


def looks(run) -> tuple[torch.Tensor, torch.Tensor]:
    """Enlarged class activation maps of the test objects, and boxes."""
    net = run.network().eval()
    with torch.no_grad():
        maps = net.maps(data.to_float(data.of(run.recipe).test.images))
    heat = localize.enlarge(localize.cam(maps, net.head.weight.detach(), run.readout.labels), (32, 32))
    return heat, torch.tensor([[4.0, 4, 28, 28]]).repeat(6, 1)
