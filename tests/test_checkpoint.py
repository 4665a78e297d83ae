"""What a checkpoint brings back: onto the device where it belongs, from the form that it had before, with the loss's scale."""

import dataclasses
import json

import pytest
import torch
import trainings
from safetensors import safe_open
from safetensors.torch import save

from csglib import methods, networks, runs
from csglib.methods import picnn
from csglib.recipe import Recipe
from csglib.training import checkpoint, loop, prepare, trainer
from csglib.training.checkpoint import Checkpoint
from csglib.training.loop import Loop

PICNN = Recipe(dataset="tiny", net="small", method="picnn", epochs=3, batch_size=64, lr=0.05, precision="float32")
FLOAT16 = dataclasses.replace(PICNN, method="standard", precision="float16")

pytestmark = pytest.mark.usefixtures("tiny", "small")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(networks.NETS, "small", trainings.small)


@pytest.fixture
def stopped(monkeypatch, tmp_path):
    """stopped(recipe): the folder of a training that was stopped in its second epoch, after the checkpoint of the first."""

    def stop(recipe: Recipe):
        original = Loop.start
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Loop, "start", lambda self, epoch, bar: original(self, epoch, bar) if epoch == 0 else interrupt())
            trainer.train(recipe, tmp_path / "out", "cpu")
        return tmp_path / "out"

    return stop


def interrupt():
    raise KeyboardInterrupt


def bits(run: runs.Run) -> bytes:
    return (run.path / "model.safetensors").read_bytes()


def test_what_a_killed_process_was_writing_is_removed_by_the_next(stopped, tmp_path):
    folder = runs.reserve(tmp_path / "out", PICNN)
    (folder / "checkpoint.safetensors.0f0f0f0f.new").write_bytes(b"half of it")
    stopped(PICNN)
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint.safetensors", "recipe.json"]


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
@pytest.mark.parametrize("on_gpu", [True, False])
def test_the_state_of_an_optimiser_comes_back_onto_the_device_of_its_parameters(on_gpu, stopped):
    """A fused Adam on a GPU counts its steps there; its kernel would take an address on the processor for one on the GPU."""
    folder = runs.part(stopped(PICNN))
    m, net, gate = prepare.build(PICNN, 10)
    net.to("meta"), gate.to("meta")
    optimisers = [prepare.weights_optimiser(net, PICNN), picnn.theta_adam(PICNN, gate, on_gpu)]
    scaler = loop.loss_scaler(PICNN, torch.device("cpu"))
    history, _, _ = Checkpoint(folder / "checkpoint.safetensors", net, gate, optimisers, scaler, "0" * 64, {}).load()
    assert len(history) == 1
    places = {k: v.device.type for o in optimisers for kept in o.state.values() for k, v in kept.items()}
    step = "meta" if on_gpu else "cpu"
    assert places == {"momentum_buffer": "meta", "exp_avg": "meta", "exp_avg_sq": "meta", "step": step}
    assert all(len(o.state) == len(checkpoint.parameters(o)) for o in optimisers)


def test_a_momentum_comes_back_in_the_layout_of_its_parameter(stopped):
    folder = runs.part(stopped(PICNN))
    m, net, gate = prepare.build(PICNN, 10)
    net.to(memory_format=torch.channels_last)
    optimisers = prepare.optimisers_of(PICNN, m, net, gate)
    scaler = loop.loss_scaler(PICNN, torch.device("cpu"))
    Checkpoint(folder / "checkpoint.safetensors", net, gate, optimisers, scaler, "0" * 64, {}).load()
    kernel = net.features[0].weight
    assert optimisers[0].state[kernel]["momentum_buffer"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [PICNN, FLOAT16], ids=["picnn", "float16"])
def test_a_checkpoint_of_the_form_before_is_read(recipe, stopped, tmp_path):
    """It had no scale, which each epoch set back."""
    out = stopped(recipe)
    path = runs.part(out) / "checkpoint.safetensors"
    with safe_open(path, "pt") as f:
        told, tensors = dict(f.metadata()), {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    assert (json.loads(told.pop("scaler")) != {}) == (recipe is FLOAT16)
    del told["sha256"]
    path.write_bytes(save(tensors, told | {"sha256": checkpoint.seal(tensors, told)}))
    assert bits(trainer.train(recipe, out, "cpu")) == bits(trainer.train(recipe, tmp_path / "whole", "cpu"))


@pytest.mark.slow
def test_the_scale_of_half_precision_and_its_growth_survive_a_stop(stopped, monkeypatch, tmp_path):
    """Three steps overflow in the first epoch; then the scale grows again after seven that do not, in the second."""
    original, seen = methods.METHODS["standard"], []

    def loss(*args):
        seen.append(1)
        value, logits = original.loss(*args)
        return (value + 1e37 * (value - value.detach()) if len(seen) <= 3 else value), logits  # of its gradient alone

    scaler = loop.loss_scaler

    def eager(*args):
        made = scaler(*args)
        made.set_growth_interval(7)
        return made

    monkeypatch.setitem(methods.METHODS, "standard", dataclasses.replace(original, loss=loss))
    monkeypatch.setattr(trainer, "loss_scaler", eager)
    out, scales, row = stopped(FLOAT16), [], Loop.row
    monkeypatch.setattr(Loop, "row", lambda self, epoch: scales.append(self.scaler.get_scale()) or row(self, epoch))
    resumed = trainer.train(FLOAT16, out, "cpu")
    seen.clear()
    whole = trainer.train(FLOAT16, tmp_path / "whole", "cpu")
    assert bits(resumed) == bits(whole)
    assert [r["skipped_steps"] for r in resumed.history] == [r["skipped_steps"] for r in whole.history] == [3, 0, 0]
    low, grown = loop.SCALE / 8, loop.SCALE / 4
    assert scales == [grown, grown] + [low, grown, grown]  # resumed, then uninterrupted
