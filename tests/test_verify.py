"""A false number does not pass: edited by hand, with its digest; a readout or a history of another run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from csglib import Problem, data, experiments, runs, train
from csglib.runs import PUBLISHED, Recipe
from csglib.verify import images_of, verify


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> runs.Run:
    """A run of another seed."""
    recipe = Recipe(dataset="cifar10-mini", epochs=2, cycle="gs", seed=1, precision="float32")
    return train.train(recipe, tmp_path_factory.mktemp("other") / "run", "cpu")


@pytest.fixture
def copied(run, tmp_path) -> Path:
    return Path(shutil.copytree(run.path, tmp_path / "copied"))


def sign(folder: Path, **changes) -> None:
    """Digests anew, as one who plants a number would."""
    path = folder / "provenance.json"
    sums = {name: data.digest(folder / name) for name in runs.FILES}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": sums} | changes))


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_run_as_it_was_trained_is_verified(run, csglib):
    verify(runs.read(run.path))
    code, out, _ = csglib("verify", run.path)
    assert code == 0 and out == f"{run.path}: verified\n"


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
    with pytest.raises(Problem, match=r"metrics\.json"):
        verify(runs.read(copied))


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", str(2**63)])
def test_what_is_not_finite_is_no_number_of_a_run(text, copied):
    path = copied / "metrics.json"
    path.write_text(path.read_text().replace('"mis": ', f'"mis": {text}, "x": '))
    sign(copied)
    with pytest.raises(Problem, match=rf"metrics\.json cannot be read \({text} is no number"):
        runs.read(copied)


def test_a_readout_of_another_run_is_refused_wherever_it_is_opened(copied, other):
    shutil.copy(other.path / "readout.safetensors", copied)
    shutil.copy(other.path / "metrics.json", copied)
    sign(copied)
    with pytest.raises(Problem, match=r"readout\.safetensors is not of the weights in .*model\.safetensors"):
        _ = runs.read(copied).readout


def test_features_of_another_run_under_the_right_head_are_refused(copied, other):
    mine, theirs = (load_file(folder / "readout.safetensors") for folder in (copied, other.path))
    changed = theirs | {name: mine[name] for name in ("weight", "bias", "gate", "gates")}
    save_file(changed, copied / "readout.safetensors")
    made_up = train.evaluate(runs.unpack(changed))
    edit(copied / "metrics.json", **made_up)
    sign(copied)
    with pytest.raises(Problem, match=r"readout\.safetensors is not what the weights"):
        verify(runs.read(copied))


def test_labels_that_flatter_are_refused(copied):
    stored = load_file(copied / "readout.safetensors")
    stored["labels"] = runs.unpack(stored).logits.argmax(1).to(torch.int16)
    save_file(stored, copied / "readout.safetensors")
    edit(copied / "metrics.json", **train.evaluate(runs.unpack(stored)))
    sign(copied)
    assert runs.read(copied).metrics["accuracy"] == 1
    with pytest.raises(Problem, match=r"readout\.safetensors has other labels"):
        verify(runs.read(copied))


def test_a_run_under_another_recipe_is_refused(copied, other):
    shutil.copy(other.path / "recipe.json", copied)
    sign(copied, key=other.recipe.key)
    with pytest.raises(Problem, match="recipe.json is not the recipe"):
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
    with pytest.raises(Problem, match=rf"history\.jsonl .*{said}"):
        verify(runs.read(copied))


def test_a_recipe_of_endless_epochs_is_refused_before_they_are_counted(copied):
    edit(copied / "recipe.json", epochs=10**15)
    recipe = Recipe.from_dict(json.loads((copied / "recipe.json").read_text()), "")
    sign(copied, key=recipe.key)
    with pytest.raises(Problem, match=r"history\.jsonl does not tell the 1000000000000000 epochs"):
        verify(runs.read(copied))


def test_a_run_of_changed_code_says_so_on_its_pages(copied):
    from csglib import tables

    edit(copied / "provenance.json", dirty=True)
    assert "(dirty)" in tables.run_entry(runs.read(copied))
    edit(copied / "provenance.json", dirty=False)
    assert "(dirty)" not in tables.run_entry(runs.read(copied))


def test_the_embedded_samples_images_stand_where_they_are_compared(cifar10):
    images, place = images_of(Recipe(precision="float32"))
    assert len(place) == 1000
    assert torch.equal(cifar10.test.images[place], images.images)
    assert torch.equal(cifar10.test.labels[place], images.labels)
    for fields in ({"holdout": 5000}, {"dataset": "voc:animals"}):
        assert images_of(Recipe(precision="float32", **fields)) is None


@pytest.mark.parametrize("experiment", ["csg", "picnn", "icnn"])
def test_a_published_run_is_verified_on_the_sample(experiment):
    page = "table1" if experiment == "csg" else experiment
    verify(experiments.published(page, "short", PUBLISHED)[experiment][0])
