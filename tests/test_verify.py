"""A false number does not pass: edited by hand, with its digest; a readout or a history of another run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from csgbook import experiments, measured
from csgbook.pages import origin
from csglib import data, paths, runs
from csglib.analysis.metrics import evaluate
from csglib.data.objects import ANIMALS
from csglib.errors import Damaged
from csglib.paths import PUBLISHED
from csglib.recipe import Recipe
from csglib.runs import packing
from csglib.runs.verify import images_of, verify
from csglib.training import trainer


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> runs.Run:
    """A run of another seed."""
    recipe = Recipe(dataset="cifar10-mini", net="resnet8", epochs=2, cycle="gs", seed=1, precision="float32")
    return trainer.train(recipe, tmp_path_factory.mktemp("other") / "run", "cpu")


@pytest.fixture
def copied(run, tmp_path) -> Path:
    return Path(shutil.copytree(run.path, tmp_path / "copied"))


def sign(folder: Path, **changes) -> None:
    """Digests anew, as one who plants a number would."""
    path = folder / "provenance.json"
    sums = {name: paths.digest(folder / name) for name in runs.FILES}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": sums} | changes))


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.slow
def test_a_run_as_it_was_trained_is_verified(run, csglib):
    told = "verified: digests, finite weights, history, metrics; readout recomputed on 1,000 of 1,000 test images"
    assert verify(runs.read(run.path)) == told
    code, out, _ = csglib("verify", run.path)
    assert code == 0 and out == f"{run.path}: {told}\n"


@pytest.mark.parametrize(
    "name, value", [("accuracy", 0.93), ("mis", 0.2), ("mis_null", 0.0), ("l1_density", 0.1), ("acc3", 0.5)]
)
def test_an_edited_number_is_refused_with_its_file_even_if_its_digest_was_made_anew(name, value, copied, csglib):
    edit(copied / "metrics.json", **{name: value})
    code, _, err = csglib("verify", copied)
    assert code == 2 and "metrics.json was altered" in err
    sign(copied)
    code, out, err = csglib("verify", copied)
    assert code == 2 and out == "" and f"metrics.json says {name} {value}, its readout gives" in err


@pytest.mark.parametrize("value", [None, "0.9", 1.5, -0.1, True, [0.9]])
def test_a_number_of_another_kind_is_refused_when_the_run_is_opened(value, copied):
    edit(copied / "metrics.json", accuracy=value)
    sign(copied)
    with pytest.raises(Damaged, match=r"metrics\.json"):
        verify(runs.read(copied))


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", str(2**63)])
def test_what_is_not_finite_is_no_number_of_a_run(text, copied):
    path = copied / "metrics.json"
    path.write_text(path.read_text().replace('"mis": ', f'"mis": {text}, "x": '))
    sign(copied)
    with pytest.raises(Damaged, match=rf"metrics\.json cannot be read \({text} is no number"):
        runs.read(copied)


@pytest.mark.slow
def test_a_readout_of_another_run_is_refused_wherever_it_is_opened(copied, other):
    shutil.copy(other.path / "readout.safetensors", copied)
    shutil.copy(other.path / "metrics.json", copied)
    sign(copied)
    with pytest.raises(Damaged, match=r"readout\.safetensors .*model\.safetensors"):
        _ = runs.read(copied).readout


@pytest.mark.slow
def test_features_of_another_run_under_the_right_head_are_refused(copied, other):
    mine, theirs = (load_file(folder / "readout.safetensors") for folder in (copied, other.path))
    changed = theirs | {name: mine[name] for name in ("weight", "bias", "gate", "gates")}
    save_file(changed, copied / "readout.safetensors")
    made_up = evaluate(packing.unpack(changed))
    edit(copied / "metrics.json", **made_up)
    sign(copied)
    with pytest.raises(Damaged, match=r"readout\.safetensors is not what the weights"):
        verify(runs.read(copied))


def test_labels_that_flatter_are_refused(copied):
    stored = load_file(copied / "readout.safetensors")
    stored["labels"] = packing.unpack(stored).logits.argmax(1).to(torch.int16)
    save_file(stored, copied / "readout.safetensors")
    edit(copied / "metrics.json", **evaluate(packing.unpack(stored)))
    sign(copied)
    assert runs.read(copied).metrics["accuracy"] == 1
    with pytest.raises(Damaged, match=r"readout\.safetensors .*labels"):
        verify(runs.read(copied))


def test_a_run_under_another_recipe_is_refused(copied, other):
    shutil.copy(other.path / "recipe.json", copied)
    sign(copied, key=other.recipe.key)
    with pytest.raises(Damaged, match="recipe.json"):
        runs.read(copied)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda rows: rows[:-1], "does not tell the 2 epochs"),
        (lambda rows: rows[::-1], "does not tell the 2 epochs"),
        (lambda rows: [row | {"path": "standard"} for row in rows], "epoch 0 on another path"),
        (lambda rows: [rows[0] | {"commit": "f" * 40}, rows[1]], "another commit"),
    ],
)
def test_a_history_of_another_training_is_refused(change, said, copied):
    rows = [json.loads(line) for line in (copied / "history.jsonl").read_text().splitlines()]
    (copied / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in change(rows)))
    sign(copied, dirty=False)
    with pytest.raises(Damaged, match=rf"history\.jsonl .*{said}"):
        verify(runs.read(copied))


def test_a_recipe_of_endless_epochs_is_refused_before_they_are_counted(copied):
    edit(copied / "recipe.json", epochs=10**15)
    recipe = Recipe.from_dict(json.loads((copied / "recipe.json").read_text()), "")
    sign(copied, key=recipe.key)
    with pytest.raises(Damaged, match=r"history\.jsonl does not tell the 1000000000000000 epochs"):
        verify(runs.read(copied))


def test_a_run_of_changed_code_says_so_on_its_pages(copied):

    edit(copied / "provenance.json", dirty=True)
    assert "(dirty)" in origin.run_entry(runs.read(copied))
    edit(copied / "provenance.json", dirty=False)
    assert "(dirty)" not in origin.run_entry(runs.read(copied))


def test_the_embedded_samples_images_stand_where_they_are_compared(cifar10):
    images, place = images_of(published("table1", "csg"))
    assert len(place) == 1000
    assert torch.equal(cifar10.test.images[place], images.images)
    assert torch.equal(cifar10.test.labels[place], images.labels)


def test_images_set_apart_are_compared_where_the_whole_data_set_is_here(cifar10, monkeypatch, tmp_path):
    chosen = published("icnn", "template-0")
    monkeypatch.setattr(data, "load", lambda *_: cifar10)
    images, place = images_of(chosen)
    assert len(place) == 1000 and torch.equal(images.images, cifar10.train.images[-5000:][place])
    assert torch.equal(chosen.readout.labels[place], images.labels)
    monkeypatch.undo()
    monkeypatch.setenv("CSGLIB_DATA", str(tmp_path))
    assert "readout not recomputed, since its images cannot be read here (" in verify(chosen)


def published(page: str, experiment: str) -> runs.Run:
    return experiments.published(page, "short", PUBLISHED)[experiment][0]


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["csg", "picnn", "icnn"])
def test_a_published_run_is_verified_on_the_sample(experiment):
    told = verify(published("table1" if experiment == "csg" else experiment, experiment))
    assert told.endswith("readout recomputed on 1,000 of 10,000 test images")


def test_of_a_run_without_its_photographs_it_is_said_that_they_are_not_here():
    chosen = published("localisation", "animals-csg")
    told = verify(chosen)
    assert "readout not recomputed, since its images cannot be read here (" in told and measured.check(chosen)
    assert "mis_normalised as MIS / H(1/C), which is 0.1196 by each class's own entropy" in told  # classes of other sizes


@pytest.mark.parametrize("folder", sorted(p.parent for p in PUBLISHED.glob("*/provenance.json")), ids=lambda p: p.name)
def test_every_published_run_has_finite_weights_and_the_accuracy_of_its_last_epoch(folder):
    found = runs.read(folder)
    images = found.provenance["test_images"] if found.left_out else len(found.readout.labels)
    assert (found.left_out or found.weights) and not runs.drifted(found.history, found.metrics, images)


@pytest.mark.slow
def test_an_accuracy_that_is_not_the_last_epochs_is_refused(copied):
    rows = [json.loads(line) for line in (copied / "history.jsonl").read_text().splitlines()]
    for last in ({"test_accuracy": rows[-1]["test_accuracy"] + 0.02}, {"test_accuracy": None}):
        (copied / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows[:-1], rows[-1] | last]))
        sign(copied)
        with pytest.raises(Damaged, match=r"metrics\.json says accuracy .*, the last epoch in history\.jsonl"):
            verify(runs.read(copied))


# Pictures of one's own


def picture_run(kind: str, folder: Path) -> runs.Run:
    if kind == "folder":
        dataset = "folder:zoo@32"
        for c, name in enumerate(("dark", "grey", "light")):
            (folder / "zoo" / name).mkdir(parents=True)
            for i in range(20):
                noise = np.random.default_rng([c, i]).integers(0, 60, (32, 32, 3)) + 90 * c
                Image.fromarray(noise.astype(np.uint8)).save(folder / "zoo" / name / f"{i}.png")
    else:
        dataset = "voc:zoo"
        write_voc(folder / "zoo")
    recipe = Recipe(dataset=dataset, epochs=2, cycle="gs", batch_size=8, lr=0.01, precision="float32")
    return trainer.train(recipe, folder / "run", "cpu")


def write_voc(root: Path) -> None:
    """Two animals a photograph, in the layout of PASCAL VOC."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6)):
        names = [f"{split}{i}" for i in range(count)]
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for i, name in enumerate(names):
            Image.fromarray(rng.integers(0, 255, (96, 160, 3), dtype=np.uint8)).save(root / "JPEGImages" / f"{name}.jpg")
            boxes = ((ANIMALS[i % 6], 5, 70), (ANIMALS[(i + 3) % 6], 85, 150))
            objects = "".join(
                f"<object><name>{animal}</name><bndbox><xmin>{left}</xmin><ymin>10</ymin><xmax>{right}</xmax><ymax>80</ymax>"
                "</bndbox></object>"
                for animal, left, right in boxes
            )
            size = "<size><width>160</width><height>96</height><depth>3</depth></size>"
            (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")


@pytest.fixture(params=["folder", "voc"])
def pictures(request, tmp_path, monkeypatch) -> runs.Run:
    monkeypatch.setenv("CSGLIB_DATA", str(tmp_path))
    return picture_run(request.param, tmp_path)


@pytest.mark.slow
def test_a_run_on_ones_own_pictures_is_recomputed_where_they_are_here_and_told_where_not(pictures, tmp_path):
    N = len(pictures.readout.labels)
    told = "verified: digests, finite weights, history, metrics; readout "
    assert verify(pictures) == f"{told}recomputed on {N} of {N} test images"

    features = load_file(pictures.path / "readout.safetensors")
    planted = features | {"features": features["features"].flip(0).contiguous()}
    save_file(planted, pictures.path / "readout.safetensors")
    edit(pictures.path / "metrics.json", **evaluate(packing.unpack(planted)))
    sign(pictures.path)
    with pytest.raises(Damaged, match=r"readout\.safetensors .* give on "):
        verify(runs.read(pictures.path))
    save_file(features, pictures.path / "readout.safetensors")
    edit(pictures.path / "metrics.json", **pictures.metrics)
    sign(pictures.path)

    changed = min((tmp_path / "zoo").rglob("*.[pj][np]g"))
    Image.fromarray(np.full((40, 160, 3), 7, np.uint8)).save(changed)
    if pictures.recipe.dataset.startswith("folder"):
        assert verify(runs.read(pictures.path)).startswith(f"{told}not recomputed, since folder:zoo@32 has other images now")
    shutil.rmtree(tmp_path / "zoo")
    assert verify(runs.read(pictures.path)).startswith(f"{told}not recomputed, since its images cannot be read here (")
