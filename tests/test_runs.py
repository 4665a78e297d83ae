import dataclasses
import functools
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_origin

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load_file, save_file
from torch import nn

from csglib import Problem, data, networks, paths, runs
from csglib.analysis import metrics
from csglib.errors import Damaged, Diverged, Missing, Occupied, Unfinished
from csglib.readout import Readout
from csglib.recipe import KINDS, Recipe, checked
from csglib.runs import inference, packing, provenance, schema
from csglib.runs.verify import verify
from csglib.training import outcome, trainer

PLAIN = Recipe(precision="float32")


# Recipes and their keys


DEFAULTS = Recipe(
    dataset="cifar10",
    net="resnet20",
    method="csg",
    epochs=30,
    seed=0,
    batch_size=128,
    lr=0.2,
    lr_schedule="onecycle",
    momentum=0.9,
    weight_decay=5e-4,
    cycle="sgs",
    warmup=0,
    gate_start=0.5,
    gate_lr=0.1,
    gate_momentum=0.9,
    gate_penalty=5e-3,
    gate_density=0.1,
    precision="float32",
)


def test_no_default_ever_changes():
    """A key does not count defaults: with another default, old keys would silently name other networks."""
    assert DEFAULTS == PLAIN


@pytest.mark.parametrize(
    "recipe, key",
    [
        (DEFAULTS, "005417945b61"),
        (Recipe(method="standard", epochs=10, seed=3, precision="bfloat16"), "b80a1202bfb5"),
        (Recipe(dataset="cifar10-mini", lr=0.1, precision="float32"), "d69a30bbb00e"),
    ],
)
def test_a_key_never_changes(recipe, key):
    assert recipe.key == key
    assert recipe.name.endswith(f"-{recipe.method}-{recipe.epochs}e-s{recipe.seed}-{key[:6]}")


OTHER = {
    "dataset": "cifar10-mini",
    "net": "resnet56",
    "method": "standard",
    "lr_schedule": "steps",
    "cycle": "ssg",
    "gate_projection": "clip",
    "fixed_gate": "shuffled",
    "correspondence": "random",
    "crop": "resized",
    "weights": "imagenet",
    "thaw": "conv1",
    "precision": "bfloat16",
    "loop": "fast",
}


def test_every_field_counts_in_the_key():
    keys = {PLAIN.key}
    for field in dataclasses.fields(Recipe):
        value = getattr(PLAIN, field.name)
        other = OTHER.get(field.name) or type(value)(value / 2 if isinstance(value, float) else value + 1)
        keys.add(dataclasses.replace(PLAIN, **{field.name: other}).key)
    assert len(keys) == 1 + len(dataclasses.fields(Recipe))


@pytest.mark.parametrize(
    ("name", "value"), [("momentum", 0.99), ("gate_start", 1.0), ("seed", 2**40 - 1), ("weight_decay", 0.0)]
)
def test_the_ends_of_an_interval_belong_to_it_where_its_bracket_says_so(name, value):
    assert getattr(Recipe(**{name: value}), name) == value


@pytest.mark.slow
def test_equal_recipes_share_a_key_even_if_one_was_written_with_whole_numbers():
    """In a fresh process, since the types that these tests check would refuse the recipe before its key is made."""
    code = """
from csglib.recipe import KINDS, Recipe, checked
whole, real = Recipe(lr=1, precision="float32"), Recipe(lr=1.0, precision="float32")
print(whole == real, whole.key == real.key)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


def test_automatic_precision_has_no_key():
    with pytest.raises(Problem, match="bfloat16 or float32"):
        _ = Recipe().key


@pytest.mark.parametrize(
    "recipe",
    [
        PLAIN,
        Recipe(dataset="cifar10-mini", weight_decay=1e-5, gate_density=0.35, cycle="ssg", warmup=2, precision="bfloat16"),
        Recipe(method="standard", lr=1e-3, lr_schedule="steps", seed=7, precision="float32"),
    ],
)
def test_the_command_of_a_recipe_trains_that_recipe(recipe, csglib, monkeypatch):
    asked = []

    def note(recipe, out, device, every, tell, reading):
        asked.extend([recipe, out])
        raise Problem("noted")

    monkeypatch.setattr(trainer, "train", note)
    program, *words = shlex.split(recipe.command)
    assert program == "csglib"
    csglib(*words)
    assert asked == [recipe, Path("data/runs") / recipe.name]


@pytest.mark.parametrize(
    "field, value",
    [
        ("dataset", "a/../b"),
        ("net", "/etc"),
        ("epochs", 0),
        ("seed", -1),
        ("seed", 2**40),
        ("batch_size", 1),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("lr_schedule", "cosine"),
        ("momentum", 1.0),
        ("weight_decay", -1e-4),
        ("cycle", ""),
        ("cycle", "sxg"),
        ("warmup", -1),
        ("gate_start", 0.0),
        ("gate_lr", -0.1),
        ("gate_momentum", 1.0),
        ("gate_penalty", -1.0),
        ("gate_density", -0.1),
        ("gate_density", 1.5),
        ("holdout", -1),
        ("weights", "old"),
        ("precision", "float8"),
        ("loop", "faster"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_field(field, value):
    """Of choices the types that these tests check would refuse the recipe itself before its own check does."""
    refused = functools.partial(pytest.raises, Problem, match=f"^{field} .* is out of range: ")
    with refused():
        checked(field, KINDS[field], value)
    if get_origin(KINDS[field]) is not Literal:
        with refused():
            Recipe(**{field: value})


def test_a_recipe_survives_json():
    recipe = Recipe(lr=0.1, seed=5, precision="bfloat16")
    assert Recipe.from_dict(json.loads(json.dumps(dataclasses.asdict(recipe))), "text") == recipe


def test_whole_numbers_are_read_as_floats_where_a_float_belongs():
    recipe = Recipe.from_dict({"lr": 1, "precision": "float32"}, "text")
    assert type(recipe.lr) is float
    assert recipe.key == Recipe(lr=1.0, precision="float32").key


@pytest.mark.parametrize(
    "values, said",
    [
        ({"epoch": 3}, "unknown recipe field 'epoch'.*epochs"),
        ({"epochs": "3"}, "epochs should be of type int"),
        ({"epochs": 3.0}, "epochs should be of type int"),
        ({"epochs": True}, "epochs should be of type int"),
        ({"lr": "high"}, "lr should be of type float"),
        ({"lr": None}, "lr should be of type float"),
        ({"net": 20}, "net should be of type str"),
    ],
)
def test_a_wrong_field_is_refused_with_its_source(values, said):
    with pytest.raises(Problem, match=f"some/file.*{said}"):
        Recipe.from_dict(values, "some/file")


@pytest.mark.parametrize("classes, bound", [(2, 0.5), (3, 1 / 3), (6, 1 / 6), (9, 1 / 9), (10, 0.1), (100, 0.1)])
def test_the_default_density_is_one_class_a_filter_where_there_are_fewer_than_ten(classes, bound):
    assert PLAIN.density(classes) == bound
    assert dataclasses.replace(PLAIN, gate_density=0.05).density(classes) == 0.05  # asked for, and then refused by the gate


@pytest.mark.slow
@pytest.mark.parametrize("method", ["csg", "joint"])
def test_few_classes_train_with_the_defaults_and_are_told_their_density_once(method, tiny, tmp_path, monkeypatch, capsys):
    few = [data.Images(p.images[p.labels < 3], p.labels[p.labels < 3]) for p in (tiny.train, tiny.test)]
    three = data.Dataset("three", ("a", "b", "c"), *few, "1" * 64)
    monkeypatch.setitem(data.DATASETS, "three", lambda: three)
    recipe = Recipe(dataset="three", method=method, epochs=2, cycle="g", batch_size=32, precision="float32")
    if method == "joint":
        recipe = dataclasses.replace(recipe, cycle="sgs")
    found = trainer.train(recipe, tmp_path / "run", "cpu")
    assert capsys.readouterr().err.count("gate_density 0.3333, the least of 3 classes") == 1
    assert "gate_density" not in recipe.changed() and 1 / 3 <= found.metrics["l1_density"] <= 1
    with pytest.raises(Problem, match=r"gate_density 0.2 lies outside \[1/C, 1\]: with 3 classes"):
        trainer.train(dataclasses.replace(recipe, gate_density=0.2), tmp_path / "other", "cpu")


# The stored readout


def readout_of(features: torch.Tensor) -> Readout:
    N, K = features.shape
    return Readout(features, torch.arange(N) % 3, torch.randn(3, K), torch.randn(3), torch.rand(3, K))


FEATURES = hnp.arrays("float32", (7, 3), elements=st.one_of(st.just(0.0), st.floats(-4, 64, width=32)))


@settings(max_examples=60, deadline=None)
@given(FEATURES.map(torch.from_numpy))
def test_stored_features_err_by_at_most_a_65535th_of_their_range(features):
    readout = readout_of(features)
    back = packing.unpack(packing.pack(readout))
    span = features.double().amax(0) - features.double().amin(0)
    rounding = 1e-6 * features.abs().amax(0)
    assert ((back.features.double() - features).abs() <= span / 65535 + rounding).all()
    for name in ("labels", "weight", "bias", "gate"):
        assert torch.equal(getattr(back, name), getattr(readout, name))
    assert back.gates is None


@settings(max_examples=60, deadline=None)
@given(FEATURES.map(torch.from_numpy))
def test_where_a_filters_minimum_is_zero_its_zeros_stay_exact(features):
    features = features.clamp(min=0)
    features[0] = 0
    back = packing.unpack(packing.pack(readout_of(features))).features
    assert (back[features == 0] == 0).all()
    assert (back >= 0).all()


def test_small_values_are_stored_finer_than_large_ones():
    """Near the minimum the step of the square-root scale is that of the range over 65535 squared."""
    features = torch.tensor([[0.0], [1e-6], [1e-4], [1.0]])
    error = (packing.unpack(packing.pack(readout_of(features))).features - features).abs().flatten()
    assert error[1] < 2e-8 and error[2] < 2e-7


def test_a_constant_filter_is_stored_exactly():
    features = torch.full((5, 2), 0.3)
    assert torch.equal(packing.unpack(packing.pack(readout_of(features))).features, features)


def test_storing_keeps_the_order_of_a_filters_values():
    features = torch.rand(500, 2)
    back = packing.unpack(packing.pack(readout_of(features))).features
    order = features.argsort(0)
    assert (back.gather(0, order).diff(dim=0) >= 0).all()


@pytest.mark.parametrize("far", [-1e2, -1e4, -1e6, -1e8, 1e8, 1e30, 3e38])
def test_one_value_far_off_costs_the_others_no_digit_that_counts(far):
    """Of -1e6 the 16 bits would leave the others one value: MIS 0.0007 in place of 0.138, accuracy 0.25 in place of 0.70."""
    g, y = torch.Generator().manual_seed(0), torch.arange(2000) % 4
    features = torch.rand(2000, 8, generator=g) + 0.5 * torch.nn.functional.one_hot(y, 8)
    features[0] = far
    features[1] = -far if far == 3e38 else features[1]  # whose difference is infinite
    readout = Readout(features, y, torch.eye(4, 8) / 8, torch.zeros(4))
    stored = packing.pack(readout)
    back = packing.unpack(schema.check_readout(stored, Path("readout.safetensors"), "restore it"))
    before, after = metrics.evaluate(readout), metrics.evaluate(back)
    assert after["mis"] == pytest.approx(before["mis"], rel=0.02) and after["accuracy"] == pytest.approx(
        before["accuracy"], abs=1e-3
    )
    assert (stored["features"].dtype == torch.float32) == torch.equal(back.features, features)


def test_features_of_usual_sizes_are_stored_in_16_bits(run):
    assert load_file(run.path / "readout.safetensors")["features"].dtype == torch.uint16


# The stored weights

KEPT = {
    "kernels of usual size": (torch.randn(8, 4, 3, 3) / 6, torch.float16),
    "a matrix with zeros": (torch.eye(5), torch.float16),
    "a row of zeros": (torch.cat((torch.randn(3, 9), torch.zeros(1, 9))), torch.float16),
    "variances above 65,504": (torch.tensor([1.0, 7e4, 5e8]), torch.float32),
    "tiny variances": (torch.tensor([1.0, 3e-9]), torch.float32),
    "a kernel above 65,504": (torch.randn(4, 3, 3, 3) * torch.tensor([1, 1, 1e6, 1]).view(4, 1, 1, 1), torch.float32),
    "a filter that decay has shrunk": (torch.randn(4, 3, 3, 3) * torch.tensor([1, 1, 1e-7, 1]).view(4, 1, 1, 1), torch.float32),
    "the scales of a layer": (torch.full((6, 1, 1), 1e-6), torch.float32),
    "a number": (torch.tensor(0.1), torch.float32),
    "a count": (torch.tensor(70_000), torch.int64),
}


@pytest.mark.parametrize("what", KEPT)
def test_what_float16_cannot_hold_is_stored_as_it_is(what):
    tensor, dtype = KEPT[what]
    stored = packing.rounded(tensor)
    assert stored.dtype == dtype
    if dtype != torch.float16:
        assert torch.equal(stored, tensor)


@settings(max_examples=100, deadline=None)
@given(hnp.arrays("float32", (3, 4), elements=st.floats(-(2.0**99), 2.0**99, width=32)), st.integers(-60, 60))
def test_no_stored_row_leaves_its_bound_and_none_becomes_infinite(values, power):
    tensor = torch.from_numpy(values).double().mul(2.0**power).float()
    if tensor.isfinite().all():
        stored = packing.rounded(tensor).double()
        assert ((stored - tensor.double()).norm(dim=1) <= tensor.double().norm(dim=1) / 1024).all()  # NaN would fail


def loud(num_classes: int) -> networks.Split:
    """A network whose batch normalisation sees variances of 1e7 and more, as a high learning rate makes them."""
    net = networks.Split(nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU()), nn.Linear(16, num_classes))
    net.features[0].weight.data.mul_(1e4)
    return net


def silent(num_classes: int) -> networks.Split:
    """The same with weights of 1e-7, of which float16 keeps one digit or none, before a normalisation of their scale."""
    net = networks.Split(
        nn.Sequential(nn.Conv2d(3, 16, 3, 2, bias=False), nn.BatchNorm2d(16, 1e-20, 0.9), nn.ReLU()), nn.Linear(16, num_classes)
    )
    net.features[0].weight.data.mul_(1e-7)
    return net


ODD = Recipe(dataset="tiny", method="standard", epochs=12, batch_size=64, thaw="1", precision="float32")  # the kernels stay


@pytest.mark.slow
@pytest.mark.parametrize("make", [loud, silent])
def test_what_is_published_is_the_network_of_the_last_epoch(make, tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(networks.NETS, "odd", make)
    found = trainer.train(dataclasses.replace(ODD, net="odd"), tmp_path / "run", "cpu")
    assert found.metrics["accuracy"] == found.history[-1]["test_accuracy"] > 0.15
    assert found.weights["features.1.running_var"].max() > 65_504 or make is silent
    assert all(t.isfinite().all() for t in found.weights.values())
    assert torch.allclose(inference.read_images(found).features, found.readout.features, atol=1e-3)
    assert verify(runs.read(found.path)).startswith("verified: digests, finite weights")

    monkeypatch.setattr("csglib.runs.packing.rounded", lambda t: t.half() if t.is_floating_point() else t)  # as it was
    with pytest.raises(Problem, match="stored has accuracy 0.*, in the last epoch it had 0.*: choose --precision float32"):
        trainer.train(dataclasses.replace(ODD, net="odd"), tmp_path / "other", "cpu")
    assert not (tmp_path / "other").exists()
    monkeypatch.undo()
    monkeypatch.setitem(networks.NETS, "odd", make)
    again = trainer.train(dataclasses.replace(ODD, net="odd"), tmp_path / "other", "cpu")  # the training is not lost
    assert again.metrics == found.metrics


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["features.0.weight", "features.1.running_var", "head.bias"])
def test_weights_that_are_not_finite_are_neither_published_nor_read(name, bad, tiny, copied, tmp_path):
    net = loud(10)
    net.state_dict()[name].view(-1)[1] = bad
    with pytest.raises(Diverged, match=name):
        outcome.finish(ODD, {}, tmp_path / "out", tiny, net, None, [], [])
    assert not (tmp_path / "out").exists()

    stored = load_file(copied / "model.safetensors")
    there = next(k for k in stored if k.endswith(name.split(".", 2)[-1]))
    stored[there].view(-1)[1] = bad
    save_file(stored, copied / "model.safetensors")
    rewrite_provenance(copied, sha256={f: paths.digest(copied / f) for f in runs.FILES})
    for use in (lambda r: r.weights, lambda r: r.readout, runs.Run.network, verify):
        with pytest.raises(Damaged, match=f"model.safetensors: {there} "):
            use(runs.read(copied))


def test_a_published_accuracy_is_that_of_the_last_epoch_within_one_percent_and_three_images():
    for n, before, after, moved in (
        (10, 1.0, 0.7, False),
        (10, 1.0, 0.6, True),
        (21, 1.0, 1 / 21, True),
        (531, 0.8249, 0.8305, False),
        (10_000, 0.90, 0.8897, False),
        (10_000, 0.90, 0.8896, True),
        (10_000, 0.89, 0.901, True),
    ):
        assert runs.drifted([{"test_accuracy": 0.1}, {"test_accuracy": before}], {"accuracy": after}, n) == moved, (n, after)


# Run folders


@pytest.fixture
def copied(run, tmp_path) -> Path:
    return Path(shutil.copytree(run.path, tmp_path / "copied"))


def test_a_run_folder_has_the_files_of_the_contract_and_no_others(run):
    assert sorted(p.name for p in run.path.iterdir()) == sorted([*runs.FILES, "provenance.json"])


def test_a_copied_run_reads_as_the_run_itself(run, copied):
    again = runs.read(copied)
    assert (again.recipe, again.metrics, again.provenance) == (run.recipe, run.metrics, run.provenance)
    assert again.history == run.history
    assert torch.equal(again.readout.features, run.readout.features)


def test_provenance_names_what_made_the_run(run):
    p = run.provenance
    assert p["key"] == run.recipe.key and p["seed"] == 0
    assert set(p["versions"]) >= {"python", "torch", "numpy", "csglib"}
    assert {"commit", "dirty", "hardware", "data_digest", "train_seconds", "precision_reason"} <= set(p)
    assert set(p["sha256"]) == set(runs.FILES)


@pytest.mark.parametrize("name", runs.FILES)
def test_a_run_with_a_missing_file_is_refused_with_its_name_and_the_remedy(name, copied):
    (copied / name).unlink()
    with pytest.raises(Missing, match=name):
        runs.read(copied)


@pytest.mark.parametrize("name", runs.FILES)
def test_a_run_with_an_altered_file_is_refused_with_its_name_and_the_remedy(name, copied):
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(Damaged, match=name):
        runs.read(copied)


def rewrite_provenance(folder: Path, **changes) -> None:
    path = folder / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_run_of_another_format_is_refused(copied):
    rewrite_provenance(copied, format=99)
    with pytest.raises(Problem, match="format 99.*reads 2"):
        runs.read(copied)


def test_code_that_differs_from_its_commit_is_dirty_and_code_outside_of_a_clone_has_no_commit(tmp_path, monkeypatch):
    def git(*words: str) -> None:
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)

    def told(written: Path | None = None) -> tuple:
        here = provenance.here(torch.device("cpu"), written)
        return here["commit"] and len(here["commit"]), here["dirty"]

    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert told() == (None, None)
    (tmp_path / "code.py").write_text("a = 1")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "a")
    assert told() == (40, False)
    (tmp_path / "code.py").write_text("a = 2")
    assert told() == (40, True) and told(tmp_path / "code.py") == (40, False) and told(tmp_path / "other.py") == (40, True)
    monkeypatch.setattr(provenance, "ROOT", tmp_path / "installed")
    (tmp_path / "installed").mkdir()
    assert told() == (None, None)


@pytest.mark.parametrize("name", ["AMD <b>Epyc</b> `x`", "Graphics™ [7]", "x" * 500, "A\nB"])
def test_a_machine_of_any_name_makes_a_provenance_that_is_accepted(name, monkeypatch):
    monkeypatch.setattr(provenance, "processor", lambda: name)
    told = provenance.here(torch.device("cpu"))["hardware"]
    jsonschema.validate(told, schema.HARDWARE)
    assert told["processor"] and len(told["processor"]) <= 100


def test_a_recipe_that_is_not_of_this_provenance_is_refused(copied):
    rewrite_provenance(copied, key="0" * 12)
    with pytest.raises(Damaged, match="recipe.json"):
        runs.read(copied)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\udcff"])
def test_an_unreadable_provenance_is_refused_with_its_name(text, copied):
    (copied / "provenance.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(Damaged, match="provenance.json"):
        runs.read(copied)


@pytest.mark.parametrize("sums", [None, [], "abc"])
def test_digests_of_a_wrong_type_are_refused(sums, copied):
    rewrite_provenance(copied, sha256=sums)
    with pytest.raises(Problem, match="copied"):
        runs.read(copied)


def test_a_folder_without_provenance_is_not_a_finished_run(copied, tmp_path):
    (copied / "provenance.json").unlink()
    with pytest.raises(Unfinished, match="csglib train"):
        runs.read(copied)
    with pytest.raises(Unfinished):
        runs.read(tmp_path / "nothing")


def test_a_run_in_training_says_how_to_finish_it(tmp_path):
    runs.reserve(tmp_path / "new", PLAIN)
    with pytest.raises(Unfinished, match="csglib train"):
        runs.read(tmp_path / "new")


@pytest.mark.parametrize("place", [".", "/"])
def test_a_place_without_a_name_is_not_a_finished_run(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Unfinished):
        runs.read(place)


# Claiming an output folder


def refused(out: Path, recipe: Recipe, said: str, snapshot, around: Path) -> None:
    before = snapshot(around)
    with pytest.raises(Problem, match=said):
        runs.reserve(out, recipe)
    assert snapshot(around) == before


def test_a_finished_run_is_never_overwritten(copied, run, snapshot, tmp_path):
    refused(copied, run.recipe, "finished run.*another --out", snapshot, tmp_path)
    refused(copied, PLAIN, "finished run.*another --out", snapshot, tmp_path)


def test_a_folder_with_other_files_is_never_used(snapshot, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("precious")
    refused(tmp_path / "thesis", PLAIN, "not a run.*another --out", snapshot, tmp_path)


def test_a_file_in_the_place_of_the_folder_is_kept(snapshot, tmp_path):
    (tmp_path / "notes").write_text("precious")
    refused(tmp_path / "notes", PLAIN, "not a run.*another --out", snapshot, tmp_path)


def test_the_current_folder_and_links_cannot_become_a_run(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    monkeypatch.chdir(tmp_path / "empty")
    for out in (Path("."), tmp_path / "empty", tmp_path / "link"):
        with pytest.raises(Occupied):
            runs.reserve(out, PLAIN)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "link"]


def test_another_recipes_unfinished_run_is_kept(snapshot, tmp_path):
    runs.reserve(tmp_path / "new", PLAIN)
    refused(tmp_path / "new", dataclasses.replace(PLAIN, seed=1), "another recipe.*another --out", snapshot, tmp_path)


def test_other_files_in_the_place_of_the_unfinished_run_are_kept(snapshot, tmp_path):
    """What lies in NAME.part is deleted when the run is finished, so it must be a run's."""
    (tmp_path / "new.part").mkdir()
    (tmp_path / "new.part" / "download.bin").write_text("precious")
    refused(tmp_path / "new", PLAIN, "another --out", snapshot, tmp_path)


def test_the_same_recipe_takes_its_unfinished_run_up_again(tmp_path):
    folder = runs.reserve(tmp_path / "deep" / "new", PLAIN)
    (folder / "checkpoint.safetensors").write_text("state")
    assert runs.reserve(tmp_path / "deep" / "new", PLAIN) == folder
    assert (folder / "checkpoint.safetensors").read_text() == "state"
    assert not (tmp_path / "deep" / "new").exists()


# Published runs


def test_a_published_run_is_found_by_its_recipe(run, tmp_path):
    shutil.copytree(run.path, tmp_path / run.recipe.name)
    assert runs.published(run.recipe, tmp_path).metrics == run.metrics


def test_a_recipe_without_a_published_run_says_how_to_make_it(tmp_path):
    with pytest.raises(Missing, match=re.escape(PLAIN.command)):
        runs.published(PLAIN, tmp_path)


def test_a_published_folder_with_another_recipe_is_refused(run, tmp_path):
    shutil.copytree(run.path, tmp_path / PLAIN.name)
    with pytest.raises(Damaged):
        runs.published(PLAIN, tmp_path)
