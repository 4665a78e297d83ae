import dataclasses
import json
import math
from contextlib import contextmanager

import pytest
import torch
import trainings
from safetensors.torch import load_file

from csglib import Problem, data, methods, precision, runs
from csglib.analysis import metrics
from csglib.errors import Damaged, Diverged
from csglib.methods.csg import density
from csglib.recipe import Recipe
from csglib.runs import inference
from csglib.training import loop, trainer

# Three epochs on the tiny set: gated, gated, standard.
RECIPE = Recipe(dataset="tiny", net="resnet8", epochs=3, cycle="g", batch_size=64, lr=0.05, precision="float32")
STEPS = 320 // 64

pytestmark = pytest.mark.usefixtures("tiny")


def bits(run: runs.Run) -> tuple[bytes, bytes]:
    return (run.path / "model.safetensors").read_bytes(), (run.path / "readout.safetensors").read_bytes()


@pytest.fixture(scope="module")
def tiny_run(tiny, tmp_path_factory):
    """tiny_run(**changes): the uninterrupted run of RECIPE with these changes, trained once."""
    kept = {}

    def get(**changes) -> runs.Run:
        recipe = dataclasses.replace(RECIPE, **changes)
        if recipe not in kept:
            kept[recipe] = trainer.train(recipe, tmp_path_factory.mktemp("tiny") / "run", "cpu")
        return kept[recipe]

    return get


@pytest.fixture
def sabotage(monkeypatch):
    """sabotage(step, deed): at that step, counted over all epochs, deed(loss) takes the place of the method's loss."""

    def install(step: int, deed, method: str = "csg") -> None:
        original, seen = methods.METHODS[method], []

        def loss(*args):
            value, logits = original.loss(*args)
            seen.append(value)
            return (deed(value) if len(seen) == step + 1 else value), logits

        monkeypatch.setitem(methods.METHODS, method, dataclasses.replace(original, loss=loss))

    return install


def interrupt(*_):
    raise KeyboardInterrupt


# Determinism


@pytest.mark.slow
def test_the_same_recipe_gives_the_same_bits_whatever_went_before(tiny_run, tmp_path):
    first = tiny_run()
    torch.manual_seed(12345)
    again = trainer.train(RECIPE, tmp_path / "again", "cpu")
    assert bits(again) == bits(first)
    assert again.metrics == first.metrics


@pytest.mark.slow
def test_another_seed_gives_another_network(tiny_run):
    assert bits(tiny_run(epochs=2, seed=1))[0] != bits(tiny_run(epochs=2))[0]


@pytest.fixture(scope="module")
def small():
    """A network so small that a processor that emulates bfloat16 trains it in a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(trainer.networks.NETS, "small", trainings.small)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("net, precision", [("resnet8", "float32"), ("small", "bfloat16")])
def test_an_interrupted_run_ends_with_the_bits_of_an_uninterrupted_one(
    net, precision, small, tiny_run, sabotage, monkeypatch, tmp_path
):
    recipe, out = dataclasses.replace(RECIPE, net=net, precision=precision), tmp_path / "out"
    sabotage(STEPS + 2, interrupt)  # in the second epoch, a gated one: the gate's momentum matters
    with pytest.raises(KeyboardInterrupt):
        trainer.train(recipe, out, "cpu")
    assert sorted(p.name for p in (tmp_path / "out.part").iterdir()) == ["checkpoint.safetensors", "recipe.json"]
    assert not out.exists()

    monkeypatch.undo()
    resumed = trainer.train(recipe, out, "cpu")
    assert bits(resumed) == bits(tiny_run(net=net, precision=precision))
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert sorted(p.name for p in out.iterdir()) == sorted([*runs.FILES, "provenance.json"])
    assert [row["epoch"] for row in resumed.history] == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["picnn", "icnn"])  # draws and Adam's moments; a moving average
def test_so_do_methods_with_a_state_of_their_own(method, tiny_run, sabotage, monkeypatch, tmp_path):
    recipe = Recipe(dataset="tiny", method=method, epochs=2, batch_size=64, lr=0.05, precision="float32")
    whole = trainer.train(recipe, tmp_path / "whole", "cpu")
    sabotage(STEPS + 2, interrupt, method)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(recipe, tmp_path / "out", "cpu")
    monkeypatch.undo()
    resumed = trainer.train(recipe, tmp_path / "out", "cpu")
    assert bits(resumed) == bits(whole)
    assert torch.equal(resumed.readout.gate, whole.readout.gate)
    net = resumed.network()  # with the method's part
    assert net.state_dict().keys() == resumed.weights.keys()
    features = inference.read_images(resumed).features
    assert torch.allclose(features, resumed.readout.features, atol=1e-4 * features.max())


@pytest.mark.slow
def test_a_holdout_is_the_end_of_the_training_images_and_the_test_images_stay_unseen(tiny, tmp_path):
    recipe = Recipe(dataset="tiny", method="standard", epochs=1, batch_size=64, precision="float32", holdout=60)
    dataset = data.of(recipe)
    assert torch.equal(torch.cat((dataset.train.images, dataset.test.images)), tiny.train.images)
    found = trainer.train(recipe, tmp_path / "out", "cpu")
    assert torch.equal(found.readout.labels, tiny.train.labels[-60:])
    assert torch.equal(inference.read_images(found).labels, tiny.train.labels[-60:])
    with pytest.raises(Problem, match="holdout 320 leaves none of the 320"):
        data.of(dataclasses.replace(recipe, holdout=320))


@pytest.mark.slow
def test_the_fitted_matrix_gives_each_filter_to_the_class_whose_training_images_excite_it_most(tiny_run, tiny):
    found = tiny_run()
    G = inference.fitted_matrix(found)
    net = found.network().eval()
    with torch.no_grad():
        a = net.pooled(data.to_float(tiny.train.images))
    means = torch.stack([a[tiny.train.labels == c].mean(0) for c in range(10)])
    assert torch.equal(G.argmax(0), means.argmax(0)) and (G.sum(0) == 1).all()


@pytest.mark.slow
def test_a_run_stopped_before_its_first_checkpoint_starts_anew(tiny_run, sabotage, monkeypatch, tmp_path):
    recipe = dataclasses.replace(RECIPE, epochs=2)
    sabotage(2, interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(recipe, tmp_path / "out", "cpu")
    monkeypatch.undo()
    assert bits(trainer.train(recipe, tmp_path / "out", "cpu")) == bits(tiny_run(epochs=2))


@pytest.mark.slow
def test_a_stop_just_before_a_run_gets_its_name_costs_no_epoch(tiny_run, sabotage, monkeypatch, tmp_path):
    out = tmp_path / "out"
    monkeypatch.setattr(runs.os, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(RECIPE, out, "cpu")
    monkeypatch.undo()
    sabotage(0, interrupt)  # the first step, if there were one
    assert bits(trainer.train(RECIPE, out, "cpu")) == bits(tiny_run())
    assert sorted(p.name for p in out.iterdir()) == sorted([*runs.FILES, "provenance.json"])


# What a run holds


@pytest.mark.slow
def test_the_history_tells_each_epochs_path_and_ends_on_a_standard_one(tiny_run, run):
    assert [row["path"] for row in tiny_run().history] == ["gated", "gated", "standard"]
    assert [row["path"] for row in run.history] == ["gated", "standard"]
    assert all(math.isfinite(row["train_loss"]) and math.isfinite(row["test_loss"]) for row in run.history)


def test_even_one_standard_epoch_learns_something(run):
    assert run.history[1]["train_accuracy"] > 0.13  # chance is 0.1 with a deviation of 0.007


def test_the_gate_lies_in_its_constraint_set_and_its_history_ends_with_it(tiny_run):
    readout = tiny_run().readout
    assert readout.gates.shape == (2, 10, 64)
    assert torch.equal(readout.gates[-1], readout.gate)
    for gate in readout.gates:
        assert (gate.amax(0) == 1).all() and gate.min() >= 0
        assert 0.1 <= density(gate) <= 1
    assert tiny_run().metrics["l1_density"] == density(readout.gate)


@pytest.mark.slow
def test_standard_training_leaves_no_gate(tmp_path):
    recipe = Recipe(dataset="tiny", method="standard", epochs=1, batch_size=64, precision="float32")
    found = trainer.train(recipe, tmp_path / "std", "cpu")
    assert found.readout.gate is None and found.readout.gates is None
    assert found.metrics["l1_density"] is None


def test_the_metrics_on_disk_follow_exactly_from_the_readout_on_disk(run):
    assert metrics.evaluate(runs.read(run.path).readout) == run.metrics


@pytest.mark.slow
def test_weights_and_images_give_the_stored_readout_again(run):
    fresh, stored = inference.read_images(run), run.readout
    span = fresh.features.amax(0) - fresh.features.amin(0)
    assert ((fresh.features - stored.features).abs() <= span / 65535 + 1e-5).all()
    assert torch.allclose(fresh.logits, stored.logits, atol=1e-3 * fresh.logits.abs().max())
    assert torch.equal(fresh.labels, stored.labels)
    assert torch.equal(fresh.weight, stored.weight)
    assert torch.equal(fresh.gate, stored.gate)


def test_evaluation_takes_the_ungated_path(tiny_run, tiny):
    """The stored accuracy is that of the plain network, called as a user would call it."""
    found = tiny_run()
    net = trainer.networks.build(RECIPE.net, 10)
    net.load_state_dict(found.weights)
    with torch.no_grad():
        logits = net.eval()(tiny.test.images.float() / 255)
    assert metrics.accuracy(logits, tiny.test.labels) == pytest.approx(found.metrics["accuracy"], abs=0.011)


# Failures


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(sabotage, tmp_path):
    sabotage(STEPS + 1, lambda loss: loss * math.nan)
    with pytest.raises(Diverged, match="loss of epoch 1 is nan"):
        trainer.train(RECIPE, tmp_path / "out", "cpu")
    assert not (tmp_path / "out").exists()
    tensors = load_file(tmp_path / "out.part" / "checkpoint.safetensors")
    assert all(t.isfinite().all() for t in tensors.values())
    report = json.loads((tmp_path / "out.part" / "report.json").read_text())
    assert report["stopped_by"][0] == "train_loss"
    assert [row["train_loss"] == "nan" for row in report["history"]] == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [0, 2])
def test_weights_that_break_in_an_epochs_last_step_stop_the_run_too(epoch, sabotage, tmp_path):
    """The loss of that step was computed before it, so the mean training loss is still finite."""

    def poison(loss):
        loss.register_hook(lambda gradient: gradient * math.nan)
        return loss

    sabotage((epoch + 1) * STEPS - 1, poison)
    with pytest.raises(Diverged, match=f"epoch {epoch} "):
        trainer.train(RECIPE, tmp_path / "out", "cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"dataset": "mnist"}, "unknown dataset 'mnist'"),
        ({"net": "vgg"}, "unknown net 'vgg'"),
        ({"method": "picnnn"}, "unknown method 'picnnn'"),
        ({"gate_density": 0.05}, "gate_density 0.05"),
        ({"batch_size": 321}, "batch_size 321 exceeds the 320"),
        ({"method": "standard"}, "does not read cycle"),
    ],
)
def test_a_recipe_that_cannot_be_trained_writes_nothing(changes, said, tmp_path):
    with pytest.raises(Problem, match=said):
        trainer.train(dataclasses.replace(RECIPE, **changes), tmp_path / "out", "cpu")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_device_is_refused():
    with pytest.raises(Problem, match="choose one of cpu"):
        precision.pick_device("abacus")


# Precision


@pytest.mark.parametrize("native, expected", [(True, "bfloat16"), (False, "float32")])
def test_automatic_precision_takes_what_the_processor_computes_natively(native, expected, monkeypatch):
    monkeypatch.setattr("csglib.precision.cpu_has_bfloat16", lambda: native)
    recipe, reason = precision.settle_precision(Recipe(), torch.device("cpu"))
    assert recipe == Recipe(precision=expected)
    assert "this processor" in reason and not reason.startswith("asked for")


def test_a_named_precision_is_kept_and_said_to_be_asked_for():
    recipe, reason = precision.settle_precision(Recipe(precision="float32"), torch.device("cpu"))
    assert recipe.precision == "float32" and reason.startswith("asked for")


def test_of_several_gpus_the_one_that_trains_is_asked_for_its_precision(monkeypatch):
    """The first knows bfloat16, the second does not."""
    current = [0]

    @contextmanager
    def device(asked):
        current.append(asked.index)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: current[-1] == 0)
    settled = [precision.settle_precision(Recipe(), torch.device("cuda", i)) for i in range(2)]
    assert [recipe.precision for recipe, _ in settled] == ["bfloat16", "float16"]
    assert settled[1][1].startswith("GPU 1 does not compute")


# The learning rate


def test_one_cycle_has_the_shape_of_torchs_scheduler():
    steps, recipe = 20_000, Recipe(lr=0.2)
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.2, steps, pct_start=0.3, cycle_momentum=False)
    for step in range(steps - 1):
        if step % 100 == 0:
            assert loop.learning_rate(recipe, step / steps) == pytest.approx(scheduler.get_last_lr()[0], abs=2e-4)
        optimiser.step()
        scheduler.step()


def test_one_cycle_starts_low_peaks_at_30_percent_and_ends_at_zero():
    recipe = Recipe(lr=0.5)
    assert loop.learning_rate(recipe, 0.0) == pytest.approx(0.5 / 25)
    assert loop.learning_rate(recipe, 0.3) == pytest.approx(0.5)
    assert loop.learning_rate(recipe, 1.0) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("progress, share", [(0.0, 1), (0.499, 1), (0.5, 0.1), (0.749, 0.1), (0.75, 0.01), (0.999, 0.01)])
def test_steps_fall_at_one_half_and_three_quarters(progress, share):
    assert loop.learning_rate(Recipe(lr=0.1, lr_schedule="steps"), progress) == pytest.approx(0.1 * share)


def test_a_damaged_checkpoint_is_refused(tmp_path, monkeypatch):
    out = tmp_path / "run"
    folder = runs.reserve(out, Recipe(dataset="cifar10-mini", epochs=3, precision="float32"))
    (folder / "checkpoint.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(Damaged):
        trainer.train(Recipe(dataset="cifar10-mini", epochs=3, precision="float32"), out)
    assert not out.exists()


# Controls


@pytest.mark.slow
def test_the_matched_baseline_starts_as_csg_does_and_skips_its_gated_epochs(tiny_run):
    fields = {"epochs": 5, "cycle": "sg"}
    csg, matched = tiny_run(**fields), tiny_run(method="matched", **fields)
    assert [row["path"] for row in matched.history] == ["standard", "skipped"] * 2 + ["standard"]
    assert matched.history[0]["train_loss"] == csg.history[0]["train_loss"]  # the same images in the same order
    assert [row["lr"] for row in matched.history[::2]] == [row["lr"] for row in csg.history[::2]]
    assert matched.readout.gate is None


@pytest.mark.slow
def test_joint_training_moves_the_gate_in_every_epoch(tiny_run):
    run = tiny_run(method="joint", cycle=Recipe.cycle, epochs=2)
    assert [row["path"] for row in run.history] == ["joint"] * 2
    assert run.readout.gates.shape == (2, 10, 64)
    assert (run.readout.gate.amax(0) == 1).all() and run.readout.gate.min() < 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random", "shuffled"])
def test_a_fixed_gate_stays_as_it_was(tiny_run, kind):
    run = tiny_run(method="fixed", fixed_gate=kind)
    assert run.metrics["l1_density"] == pytest.approx(0.1)
    assert torch.equal(run.readout.gate, run.readout.gates[0])


@pytest.mark.slow
def test_a_gate_without_projection_may_leave_the_feasible_set_and_its_run_says_so(tiny_run):
    run = tiny_run(gate_projection="clip", gate_penalty=0.5)
    assert run.readout.gate.amax(0).min() < 1
    assert run.metrics["l1_density"] == pytest.approx(run.readout.gate.mean().item())
