"""What people bring as pictures: each kind of file and layout is read as it should be in every source, refused, or counted."""

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from brought import BOX, SIZE, lists, loaded, noise, photograph, put
from PIL import Image

from csglib import Problem, data, runs
from csglib.data import objects, pictures
from csglib.recipe import Recipe
from csglib.runs import inference
from csglib.training import trainer

RAMP = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)


# Pixels keep their place in their range


def tiff(values: np.ndarray, bits: int, white_is_zero: bool = False, sign: int = 1) -> bytes:
    """A grey TIFF that Pillow does not write itself."""
    if bits == 12:
        a, b = values.reshape(-1, 2).T.astype(int)
        values = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], 1).astype(np.uint8)
    content, tags = values.tobytes(), [(256, 8), (257, 8), (258, bits), (259, 1), (262, int(not white_is_zero)), (273, 134)]
    tags += [(277, 1), (278, 8), (279, len(content)), (339, sign)]
    assert 8 + 2 + 12 * len(tags) + 4 == 134
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + content


def saved(kind: str):
    return lambda path, values: Image.fromarray(values).save(path, kind)


WIDE = RAMP.astype(np.uint16) * 257
KEPT = {
    "grey.png": saved("PNG"), "grey.gif": saved("GIF"), "grey.bmp": saved("BMP"), "grey.tga": saved("TGA"),
    "grey.ppm": saved("PPM"), "grey.tif": saved("TIFF"), "grey.jp2": lambda p, v: Image.fromarray(v).save(p, "JPEG2000"),
    "grey.webp": lambda p, v: Image.fromarray(v).convert("RGB").save(p, "WEBP", lossless=True),
    "grey.PNG": lambda p, v: Image.fromarray(v).convert("RGBA").save(p, "PNG"),
    "palette.png": lambda p, v: Image.fromarray(v).convert("P").save(p, "PNG"),
    "alpha.png": lambda p, v: Image.fromarray(v).convert("LA").save(p, "PNG"),
    "another.jpg": saved("PNG"),  # the content counts, not the ending
    "16 bits.png": lambda p, v: Image.fromarray(v.astype(np.uint16) * 257).save(p, "PNG"),
    "16 bits.tiff": lambda p, v: Image.fromarray(v.astype(np.uint16) * 257).save(p, "TIFF"),
    "16 bits, the high byte alone.png": lambda p, v: Image.fromarray(v.astype(np.uint16) * 256).save(p, "PNG"),
    "big-endian.tif": lambda p, v: Image.frombytes("I;16B", (8, 8), bytes(np.stack([v, 0 * v], 2))).save(p, "TIFF"),
    "16 bits.pgm": lambda p, v: p.write_bytes(b"P5 8 8 65535\n" + (v.astype(np.uint16) * 257).tobytes()),
    "12 bits.pgm": lambda p, v: p.write_bytes(b"P5 8 8 4080\n" + (v.astype(np.uint16) * 16).astype(">u2").tobytes()),
    "12 bits.tif": lambda p, v: p.write_bytes(tiff(v.astype(np.uint16) * 16, 12)),
    "white is zero.tif": lambda p, v: p.write_bytes(tiff(65535 - v.astype("<u2") * 257, 16, white_is_zero=True)),
    "16 bits.jp2": lambda p, v: Image.fromarray(v.astype(np.uint16) * 257).save(p, "JPEG2000"),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_grey_keeps_its_place_between_black_and_white_in_every_format(name, tmp_path):
    KEPT[name](tmp_path / name, RAMP)
    found = pictures.read(tmp_path / name, "mend it")
    assert found.mode == "RGB"
    assert (np.asarray(found) == RAMP[..., None]).all(), np.asarray(found)[..., 0]


UNKNOWN = {
    "float.tif": lambda p: Image.fromarray(RAMP.astype(np.float32) / 255).save(p),
    "32 bits.tif": lambda p: Image.fromarray(RAMP.astype(np.int32)).save(p),
    "signed.tif": lambda p: p.write_bytes(tiff((WIDE.astype(int) - 32768).astype("<i2"), 16, sign=2)),
    "signed 8 bits.tif": lambda p: p.write_bytes(tiff(RAMP, 8, sign=2)),
    "float.pfm": lambda p: Image.fromarray(RAMP.astype(np.float32)).save(p, "PPM"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_numbers_of_an_unknown_range_are_refused_by_name(name, tmp_path):
    UNKNOWN[name](tmp_path / name)
    with pytest.raises(Problem, match=rf"{name} holds signed, fractional or 32-bit numbers.* save it with 8 or 16 bits"):
        pictures.read(tmp_path / name, "mend it")


def test_every_source_has_this_reader(pets, town):
    grey = Image.fromarray(np.full((8, 12), 100 * 257, np.uint16))
    put(pets / "test/cat/dark.png", picture=grey)
    photograph("p2", BOX.format("car", 1, 1, 8, 8), picture=grey, ending="tif")
    (town / "JPEGImages/p2.png").unlink()
    lists(val="p2\np3\n")
    for name in ("folder:pets@16", "voc:town@16@car"):
        assert (loaded(name).test.images == 100).flatten(1).all(1).sum() == 1, name


# Which part is which


def move(root: Path, **names: str) -> None:
    for old, new in names.items():
        (root / old).rename(root / new)


@pytest.mark.parametrize(
    "train, test",
    [
        ("Train", "Val"), ("TRAIN", "TEST"), ("training", "validation"), ("Training", "Testing"), ("train", "dev"),
        ("train", "eval"), ("training_set", "test_set"), ("seg_train", "seg_test"), ("train2017", "val2017"),
        ("trainset", "valid"), ("train", "Holdout"),
    ],
)  # fmt: skip
def test_the_two_parts_are_known_whatever_they_are_called(train, test, pets, town):
    move(pets, train=train, test=test)
    move(town / "ImageSets/Main", **{"train.txt": f"{train}.txt", "val.txt": f"{test}.txt"})
    for name in ("folder:pets@16", "voc:town@16@car,van"):
        found = data.load(name)
        assert found.classes == (("cat", "dog") if "pets" in name else ("car", "van"))
        assert (len(found.train), len(found.test)) == ((8, 8) if "pets" in name else (4, 4))


@pytest.mark.parametrize(
    "names, told",
    [
        ({"train": "Training", "test": "more training"}, "has Training, more training, parts of a data set"),
        ({"train": "val", "test": "test"}, "has test, val, parts of a data set and not its classes, and none called train"),
        (
            {"train": "train", "test": "unseen"},
            "has train, unseen, parts of a data set and not its classes, and none called test",
        ),
        ({"train": "Eval", "test": "kept"}, "has Eval, kept, parts of a data set and not its classes, and none called train"),
    ],
)
def test_parts_are_never_taken_for_classes(names, told, pets):
    move(pets, **names)
    with pytest.raises(Problem, match=told):
        data.load("folder:pets@16")


def test_one_part_twice_and_a_part_alone_are_refused_with_the_remedy(pets):
    shutil.copytree(pets / "train", pets / "Training")
    with pytest.raises(Problem, match="has Training and train, which name the same part: put them together"):
        data.load("folder:pets@16")
    shutil.rmtree(pets / "Training")
    shutil.rmtree(pets / "test")
    with pytest.raises(Problem, match="none called test: .* or give one alone, as in folder:pets/train"):
        data.load("folder:pets@16")


def test_classes_may_be_called_like_parts(place):
    for i, name in enumerate(("train", "tram", "bus") * 30):
        put(f"traffic/{name}/{i}.png", i)
    assert data.load("folder:traffic@16").classes == ("bus", "train", "tram")


# What is no picture of the class


def deeper(root: Path, target: str, name: str = "one") -> None:
    (root / "train/cat" / name).mkdir()
    (root / "train/cat" / name / "again").symlink_to(target)


STRAYS = {
    "copies": (lambda f: shutil.copytree(f / "train/cat", f / "train/cat/.ipynb_checkpoints"), "4 files in .ipynb_checkpoints"),
    "of a class": (lambda f: put(f / "train/.ipynb_checkpoints/a.png", 90), "1 file in .ipynb_checkpoints"),
    "of a Mac": (lambda f: put(f / "__MACOSX/train/cat/._1.png", 90), "1 file in __MACOSX"),
    "of a Mac, a class": (lambda f: put(f / "test/__MACOSX/1.png", 90), "1 file in __MACOSX"),
    "forks": (lambda f: [(f / f"test/dog/._{i}.png").write_bytes(b"x") for i in range(3)], "3 files that are hidden"),
    "of a disk station": (lambda f: put(f / "train/cat/@eaDir/a.jpg", 90), "1 file in @eaDir"),
    "loop": (lambda f: (f / "train/cat/again").symlink_to(f), "1 link to a folder that is read already"),
    "loop of one folder": (lambda f: (f / "train/cat/again").symlink_to("."), "1 link to a folder that is read already"),
    "loop deeper": (lambda f: deeper(f, "."), "1 link to a folder that is read already"),
    "two loops": (lambda f: [deeper(f, "../two"), deeper(f, "../one", "two")], "2 links to a folder that is read already"),
    "another class": (lambda f: (f / "train/cat/more").symlink_to(f / "train/dog"), "1 link to a folder that is read already"),
    "heic": (lambda f: (f / "train/cat/a.HEIC").write_bytes(b"x"), "1 picture .heic, which are not read"),
    "text": (lambda f: (f / "train/cat/a.txt").write_text("x"), "1 file .txt"),
    "without ending": (lambda f: (f / "train/cat/a").write_text("x"), "1 file without an ending"),
    "beside the classes": (lambda f: put(f / "train/a.png", 90), "1 picture outside of the classes' folders"),
    "beside the parts": (lambda f: [put(f / f"val/cat/{i}.png", i) for i in (90, 91)], "2 files in val, beside train and test"),
}  # fmt: skip


@pytest.mark.parametrize("kind", STRAYS)
def test_what_is_no_picture_of_a_class_is_left_out_and_counted_in_one_line(kind, pets, csglib):
    deed, told = STRAYS[kind]
    before = data.load("folder:pets@16")
    deed(pets)
    with pytest.warns(UserWarning, match="folder:pets@16: left out: ") as caught:
        found = data.load("folder:pets@16")
    assert len(caught) == 1 and told in found.report and "\n" not in found.report
    assert found.digest == before.digest and found.classes == ("cat", "dog")
    assert torch.equal(found.train.images, before.train.images) and torch.equal(found.test.images, before.test.images)
    code, out, err = csglib("data", "verify", "folder:pets@16")
    assert code == 0 and out.count("\n") == 1 and told in out and "8 training and 8 test images" in out and not err


def test_links_that_lead_out_of_the_tree_are_followed_once(pets, place):
    for i in range(3):
        put(f"store/{'sub/' * (i > 0)}{i}.png", 90 + i)
    for name, target in (("a", "store/sub"), ("b", "store"), ("c", "store")):
        (pets / "train/cat" / name).symlink_to(place / target)
    found = loaded("folder:pets@16")
    assert len(found.train) == 11 and found.report == "left out: 2 links to a folder that is read already"
    (pets / "train/bird").symlink_to(place / "store")  # a class may be a link too
    put(pets / "test/bird/1.png", 97)
    assert loaded("folder:pets@16").classes == ("bird", "cat", "dog")


@pytest.mark.parametrize("ending", ["gif", "jfif", "jpe", "bmp", "avif", "JPEG", "apng", "jp2", "qoi", "tga"])
def test_what_pillow_reads_is_read(ending, pets):
    try:
        put(pets / f"train/cat/more.{ending}", 90)
    except (OSError, KeyError, ValueError) as error:
        pytest.skip(f"this Pillow cannot write it: {error}")
    found = data.load("folder:pets@16")
    assert (len(found.train), found.report) == (9, "")


@pytest.mark.parametrize("ending, several", [("gif", True), ("tif", True), ("webp", True), ("png", True), ("mpo", False)])
def test_of_several_frames_the_first_is_read_and_it_is_told(ending, several, pets, town):
    more = {"save_all": True, "append_images": [noise(91, (12, 8)), noise(92, (12, 8))]}
    put(pets / f"train/cat/more.{ending}", 90, noise(90, (12, 8)), **more)
    photograph("p1", BOX.format("car", 1, 1, 4, 4), picture=noise(90, (12, 8)), ending=ending, **more)
    if ending != "png":
        (town / "JPEGImages/p1.png").unlink()
    told = "1 picture of several frames, of which the first is read" if several else ""
    for name in ("folder:pets@16", "folder:pets@16", "voc:town@16@car"):
        found = loaded(name)
        assert ("frames" in found.report) == several and told in found.report
        assert len(found.train) == (9 if "pets" in name else 2)


def test_a_picture_in_two_classes_is_left_out_of_both(pets, town):
    shutil.copy(pets / "train/cat/0.png", pets / "train/dog/copy.png")
    put(pets / "test/dog/other-file.bmp", 2)  # the pixels of a cat in train
    things = (town / "Annotations/p0.xml").read_text().replace("</annotation>", BOX.format("van", 1, 1, 4, 4) + "</annotation>")
    (town / "Annotations/p0.xml").write_text(things)
    for name, counts, n in (("folder:pets@16", [2, 4, 4, 4], 4), ("voc:town@16@car,van", [1, 2, 2, 2], 2)):
        found = loaded(name)
        assert f"left out: {n} pictures in two classes" in found.report
        assert [*found.train.labels.bincount().tolist(), *found.test.labels.bincount().tolist()] == counts


# Objects that are left out, told or clipped


def test_objects_of_other_classes_and_lines_with_minus_one_are_counted(town):
    photograph("p0", BOX.format("Car", 1, 1, 4, 4) + BOX.format(" van\n", 7, 2, 10, 7) + BOX.format("Bus", 1, 1, 9, 3) * 2)
    photograph("p1", BOX.format("bus", 1, 1, 9, 3), seed=1)
    photograph("p4", BOX.format("car", 1, 1, 9, 3), seed=4)
    lists(train="p0 1\np1  0\np4 -1\n\n")
    found = loaded("voc:town@16@car,van")
    assert (found.train.labels.tolist(), found.test.labels.tolist()) == ([0, 1], [0, 1, 0, 1])
    assert found.report == (
        "left out: 2 objects called Bus, 1 photograph that train.txt marks with -1, 1 object called bus, 1 photograph "
        "without an object of these classes; 1 object called Car and taken for car"
    )


def test_voc_has_the_classes_that_its_name_says(town, csglib):
    with pytest.raises(Problem, match=r"no object of class bird in split train \(left out: 2 objects called car.*voc:pets@all"):
        data.load("voc:town")
    assert data.load("voc:town@16@all").classes == ("car", "van")
    with pytest.warns(UserWarning, match="left out: 4 objects called car"):
        assert data.load("voc:town@van@16").classes == ("van",)
    assert csglib("data", "verify", "voc:town@16@all")[1] == "voc:town@16@all: 4 training and 4 test images, of car, van\n"
    both, turned = data.load("voc:town@16@car,van"), data.load("voc:town@16@van,car")
    assert torch.equal(both.train.labels, 1 - turned.train.labels) and both.digest != turned.digest


@pytest.mark.parametrize("out, ok", [(0, True), (1, True), (2, True), (3, False)])
@pytest.mark.parametrize("side", range(4))
def test_a_box_may_leave_its_photograph_by_two_pixels(out, ok, side, town):
    sides = [1, 1, 12, 8]  # the whole photograph
    sides[side] += -out if side < 2 else out
    photograph("p0", BOX.format("car", *sides))
    lists(train="p0\n", val="p2\n")
    if ok:
        found = objects.read_voc("town", "train", ("car",), size=12, report=(report := pictures.Report()))
        assert found.boxes.tolist() == [[0, 2, 12, 10]] and (out > 0) == (
            "1 object with a box up to 2 pixels out" in str(report)
        )
    else:
        with pytest.raises(Problem, match=r"car of photograph p0 has a box outside of its 12 x 8 pixels.*@skip behind"):
            data.load("voc:town@16@car")


# Turned photographs, and annotations of another size


@pytest.mark.parametrize("source", ["folder", "voc"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_camera_says_in_every_source(source, orientation, pets, town):
    upright = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 3)
    back = [None, None, 0, 3, 1, 5, 2, 6, 4][orientation]  # the transposition that a camera's own undoes
    raw = upright if back is None else upright.transpose(back)
    exif = Image.Exif()
    exif[0x0112] = orientation
    put(pets / "test/cat/turned.png", picture=raw, exif=exif)
    photograph("p2", SIZE.format(8, 8) + BOX.format("car", 1, 1, 8, 8), picture=raw, exif=exif)
    name = {"folder": "folder:pets@16", "voc": "voc:town@16@car"}[source]
    expected = torch.from_numpy(np.asarray(upright.resize((16, 16), Image.Resampling.BILINEAR)).copy())
    assert (loaded(name).test.images == expected).flatten(1).all(1).sum() == 1


def test_a_photograph_of_another_size_than_its_annotation_says_is_refused_by_name(town):
    exif = Image.Exif()
    exif[0x0112] = 6
    thing = BOX.format("car", 1, 1, 4, 4)
    for size, turned, told in (
        ((24, 16), False, "photograph p0 has 12 x 8 pixels and 24 x 16 in its annotation: correct it, or take p0 out"),
        ((12, 8), True, "photograph p0 has 8 x 12 pixels, turned as its camera says, and 12 x 8 in its annotation"),
        ((8, 12), True, None), ((0, 0), False, None), ((12, 8), False, None),
    ):  # fmt: skip
        photograph("p0", SIZE.format(*size) + thing, **({"exif": exif} if turned else {}))
        if told:
            with pytest.raises(Problem, match=told):
                data.load("voc:town@16@car")
            assert "1 file that cannot be read, first: " + told in loaded("voc:town@16@car@skip").report
        else:
            assert len(loaded("voc:town@16@car").train) == 2


# Leaks and changes, in every source


def leak(source: str) -> tuple[str, int]:
    """A name, and how many test images it has from what is in training too."""
    if source == "folder":
        shutil.copy("pets/train/cat/0.png", "pets/test/cat/copy.png")
        return "folder:pets@16", 1
    if source == "folder, another file":
        put("pets/test/cat/copy.tif", 0)
        return "folder:pets@16", 1
    if source == "voc, the same name":
        lists(val="p1\np2\n")
        return "voc:town@16@car,van", 2
    (Path("town/JPEGImages/p9.png")).write_bytes(Path("town/JPEGImages/p1.png").read_bytes())
    Path("town/Annotations/p9.xml").write_text(f"<annotation>{BOX.format('car', 2, 2, 6, 6)}</annotation>")  # another box
    lists(val="p2\np9\n")
    return "voc:town@16@car,van", 1


@pytest.mark.parametrize("source", ["folder", "folder, another file", "voc, the same name", "voc, a copy with another box"])
def test_what_is_in_both_parts_is_told(source, pets, town, csglib):
    name, n = leak(source)
    told = f"{n} picture{'s' * (n > 1)} in both parts, training and test: take them out of one"
    with pytest.warns(UserWarning, match=told):
        data.load(name)
    assert told in csglib("data", "verify", name)[1]


def test_copies_of_a_picture_are_one_group_which_a_holdout_takes_whole(town, pets):
    for i in range(6):
        shutil.copy(pets / "train/cat/0.png", pets / f"train/cat/copy{i}.png")
    shutil.copy("town/JPEGImages/p0.png", "town/JPEGImages/p5.png")
    shutil.copy("town/Annotations/p0.xml", "town/Annotations/p5.xml")
    lists(train="p0\np1\np5\n")
    for name in ("folder:pets@16", "voc:town@16@car,van"):
        whole = loaded(name).train
        for n in range(1, len(whole) - 8):
            held = data.of(Recipe(dataset=name, holdout=n))
            assert not set(held.train.groups.tolist()) & set(held.test.groups.tolist()) and len(held.test) >= n


@pytest.mark.parametrize("source", ["folder", "voc"])
def test_a_run_knows_its_pictures_and_refuses_others(source, pets, town, csglib):
    name = {"folder": "folder:pets@32", "voc": "voc:town@32@car,van"}[source]
    run = trainer.train(Recipe(dataset=name, epochs=1, batch_size=4, method="standard", precision="float32"), "run", "cpu")
    assert torch.equal(inference.sample(run), data.load(name).test.images)  # and none of CIFAR-10
    assert csglib("evaluate", "run", "--images")[0] == 0
    if source == "voc":
        lists(val="p3\n")
    else:
        (pets / "test/cat/8.png").unlink()
    code, out, err = csglib("evaluate", "run", "--images")
    assert code == 2 and not out and f"trained on other pictures than {name} has now" in err
    with pytest.raises(Problem, match="trained on other pictures"):
        inference.read_images(runs.read("run"))
