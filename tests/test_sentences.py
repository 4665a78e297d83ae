"""Sentences that name the remedy, options of a data set's name, names of any kind, and parameters of notebooks."""

import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from brought import BOX, lists, loaded, photograph, put

from csgbook import experiments
from csglib import Problem, data
from csglib.data import folders, objects
from csglib.recipe import KINDS, Recipe, checked

# Sentences and options


def test_what_cannot_be_read_stops_with_its_name_or_is_left_out_and_counted(pets, town, csglib):
    (pets / "train/cat/broken.png").write_bytes(b"\x89PNG nothing")
    (pets / "test/dog/gone.png").symlink_to("/nowhere/x.png")
    (town / "JPEGImages/p1.png").unlink()
    with pytest.raises(
        Problem, match=r"gone.png is a link to /nowhere/x.png, which is not there: restore it, .*; @skip behind"
    ):
        data.load("folder:pets@16")
    (pets / "test/dog/gone.png").unlink()
    with pytest.raises(Problem, match=r"broken.png does not decode .*take it out of the folder; @skip behind"):
        data.load("folder:pets@16")
    with pytest.raises(Problem, match=r"p1.jpg is missing: correct it, or take p1 out of its list; @skip behind"):
        data.load("voc:town@16@car")
    (pets / "test/dog/gone.png").symlink_to("/nowhere/x.png")
    for _ in range(2):  # decoded, and from the file that keeps the pixels
        found = loaded("folder:pets@16@skip")
        assert (len(found.train), len(found.test)) == (8, 8)
        assert found.report.startswith("left out: 2 files that cannot be read, first: pets/test/dog/gone.png is a link to")
    with pytest.raises(Problem, match="gone.png is a link"):
        data.load("folder:pets@16")
    code, out, _ = csglib("data", "verify", "voc:town@16@car,van@skip")
    assert code == 0 and "2 training and 4 test images, of car, van; left out: 1 file that cannot be read, first: " in out


def test_a_class_of_a_format_that_is_not_read_says_so(place):
    for i in range(20):
        put(f"zoo/cat/{i}.png", i)
        Path("zoo/dog").mkdir(exist_ok=True)
        Path(f"zoo/dog/{i}.heic").write_bytes(b"x")
    with pytest.raises(Problem, match=r"no training picture of class 'dog' \(left out: 20 pictures .heic, .*convert them"):
        data.load("folder:zoo@16")


def test_a_class_of_gifs_alone_is_a_class(place):
    for i in range(30):
        put(f"zoo/cat/{i}.png", i)
        put(f"zoo/dog/{i}.gif", 100 + i)
    found = data.load("folder:zoo@16")
    assert found.classes == ("cat", "dog") and len(found.train) + len(found.test) == 60 and not found.report


@pytest.mark.parametrize(
    "name", ["my van", "van 1", "a 1 2", "Café", unicodedata.normalize("NFD", "é 0"), "x.y", "a (1)", "a'b"]
)
def test_a_photograph_may_be_called_anything_that_is_a_file(name, town):
    photograph(name, BOX.format("car", 1, 1, 4, 4), seed=7)
    lists(train=f"p0\n{unicodedata.normalize('NFC', name)}\n")
    found = objects.read_voc("town", "train", ("car",), size=16)
    assert len(found) == 2 and unicodedata.normalize("NFC", found.photographs[1]) == unicodedata.normalize("NFC", name)


def test_a_list_may_come_from_windows_and_name_files(town):
    (town / "ImageSets/Main/train.txt").write_bytes("\ufeffp0\r\np1.PNG\r\n\r\n".encode())
    assert objects.read_voc("town", "train", ("car", "van"), size=16).photographs == ("p0", "p0", "p1", "p1")


@pytest.mark.parametrize("name", ["../p0", "a/b", "..", ".hidden", "a\\b", "x" * 300])
def test_a_list_cannot_name_what_is_elsewhere(name, town):
    lists(train=f"p0\n{name}\n")
    with pytest.raises(Problem, match="train.txt names .*, which is no file of JPEGImages: correct the list"):
        data.load("voc:town@16@car")


def test_a_path_without_folder_is_told_its_name(pets, csglib):
    for command in (("train", "--dataset", "pets", "--out", "new"), ("data", "verify", "pets"), ("data", "get", "pets")):
        code, out, err = csglib(*command)
        assert code == 2 and not out and "unknown dataset 'pets'" in err and "folder:pets" in err and err.count("\n") == 1
    code, _, err = csglib("train", "--dataset", str(pets), "--out", "new")
    assert code == 2 and "pictures of your own are called folder:PATH" in err


@pytest.mark.parametrize("name", ["folder:pets@16@skp", "folder:pets@16.0", "folder:pets@skip@x"])
def test_an_option_that_is_none_is_refused_with_those_that_are(name, pets):
    with pytest.raises(Problem, match="there is no folder pets@.*; behind a PATH may stand a size such as @64, and @skip"):
        data.load(name)


def test_a_class_is_one_in_both_forms_that_unicode_has_for_an_accent(pets):
    (pets / "train/cat").rename(pets / "train" / unicodedata.normalize("NFD", "ü"))
    (pets / "test/cat").rename(pets / "test" / unicodedata.normalize("NFC", "ü"))
    found = data.load("folder:pets@16")
    assert found.classes == ("dog", "\u00fc") and found.test.labels.bincount().tolist() == [4, 4]
    (pets / "train/dog").rename(pets / "train" / unicodedata.normalize("NFC", "ü"))
    with pytest.raises(Problem, match="two folders whose names differ in the form of an accent alone: put them together"):
        data.load("folder:pets@16")


def test_a_tilde_is_the_own_folder(pets, town, place, monkeypatch):
    monkeypatch.setenv("HOME", str(place))
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    recipe = Recipe(dataset="folder:~/pets@16", precision="float32")
    assert len(data.load(recipe.dataset).train) == 8 and len(data.load("voc:~/town@16@car").train) == 2
    assert data.present("folder:~/pets") and not data.present("folder:~/none")
    assert "'folder:~/pets@16'" in recipe.command  # the shell leaves it as it is


def test_a_data_folder_that_cannot_be_written_blocks_no_reading(pets, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CSGLIB_DATA", str(tmp_path / "file" / "raw"))
    with pytest.warns(
        UserWarning, match="pets will be decoded each time anew.* set CSGLIB_DATA to a folder that can be written"
    ):
        assert len(data.load("folder:pets@16").train) == 8
    with pytest.raises(Problem, match="file/raw cannot be made .*: set CSGLIB_DATA"):
        folders.sample()


# Notebook parameters

PAGES = """
import json, sys
from csglib import Problem, data, paths
from csglib.data import folders
from csglib.recipe import Recipe

told = []
for fields in (
    {"epochs": 2.5}, {"epochs": "2"}, {"lr": "0.1"}, {"seed": None}, {"net": 5}, {"epochs": True}, {"seed": 1e400}
):
    try:
        told.append(repr(Recipe(**fields)))
    except Problem as problem:
        told.append(str(problem))
for word in ("train-a-gate", "gate-your-own"):
    page = json.loads((paths.ROOT / "book" / f"{word}.ipynb").read_text())
    cells = ["".join(c["source"]) for c in page["cells"] if c["cell_type"] == "code"]
    known = {"Recipe": Recipe, "folders": folders, "data": data, "pictures": ""}
    known |= {"epochs": 2.0, "seed": 3.0, "size": 32.0, "gate_density": 1, "net": "resnet18@layer2"}
    for cell in cells:
        if "folders.named" in cell:
            exec(cell, known)
        if "recipe = Recipe(" in cell:
            begin = cell.index("recipe = Recipe(")
            exec(cell[begin : cell.index("\\n)", begin) + 2], known)
    told.append(repr(known["recipe"]))
print(json.dumps(told))
"""


@pytest.mark.slow
def test_a_notebooks_parameters_of_another_type_are_taken_or_refused_in_one_sentence(place):
    """What papermill's `-p epochs 2.0 -p size 32.0` puts into the pages, in a process whose calls no test checks for types."""
    done = subprocess.run([sys.executable, "-c", PAGES], cwd=place, env=os.environ, capture_output=True, text=True)
    *refused, first, second = json.loads(done.stdout.splitlines()[-1])
    words = ["epochs 2.5", "epochs '2'", "lr '0.1'", "seed None", "net 5", "epochs True", "seed inf"]
    kinds = ["a whole number such as 3"] * 2 + ["a number such as 0.5", "a whole number such as 3", "text"] + ["a whole"] * 2
    for sentence, word, kind in zip(refused, words, kinds, strict=True):
        assert sentence.startswith(f"{word} is of another type: give {kind}")
    assert "epochs=2," in first and "seed=3," in first and "gate_density=1.0" in first
    assert "epochs=2," in second and "dataset='folder:sample-pictures@32'" in second


@pytest.mark.slow
def test_a_size_of_another_type_is_taken_or_refused_in_one_sentence(pets):
    assert [folders.named("pets", size) for size in (32, 32.0, "32", "32.0", np.int64(32))] == ["folder:pets@32"] * 5
    assert folders.named("folder:pets", 16) == "folder:pets@16" and folders.named(2024, 16) == "folder:2024@16"
    assert folders.named(None, 16) == folders.named("", 16) == "folder:sample-pictures@16"
    for size in (32.5, "big", None, True, [32], -3):
        with pytest.raises(Problem, match="size .* is no whole number of pixels: use one such as 32"):
            folders.named("pets", size)
    assert checked("epochs", KINDS["epochs"], 2.0) == 2 and type(checked("epochs", KINDS["epochs"], np.float64(2))) is int
    assert type(checked("lr", KINDS["lr"], 1)) is float


def test_a_runs_folder_that_is_not_there_is_refused(tmp_path, csgbook):
    for folder in (tmp_path / "none", str(tmp_path / "none")):
        with pytest.raises(Problem, match="runs_folder '.*none' is no folder: name one that holds runs, or leave it out"):
            experiments.published("table1", "smoke", folder)
    code, out, err = csgbook("results", "--runs-folder", tmp_path / "none", "--out", tmp_path / "results.json")
    assert code == 2 and not out and "is no folder" in err and not (tmp_path / "results.json").exists()
    assert set(experiments.published("table1", "smoke", tmp_path)) == set(experiments.recipes("table1", "smoke"))
