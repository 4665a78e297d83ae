"""Several trainings at once in one process: each as if it were alone."""

import dataclasses
import gc
import time
import weakref

import pytest
import torch
import trainings
from test_loop import RECIPE, STEPS, small  # noqa: F401 (a fixture)
from torch import nn
from torchvision.ops import StochasticDepth

from csglib import Problem, methods, networks, runs
from csglib.errors import Diverged
from csglib.recipe import Recipe
from csglib.training import prepare, trainer
from csglib.training.loop import Loop

pytestmark = pytest.mark.usefixtures("tiny", "small")


@pytest.mark.slow
def test_trainings_side_by_side_end_with_the_bits_of_separate_ones(tmp_path):
    recipes = [
        RECIPE,
        dataclasses.replace(RECIPE, seed=1),
        Recipe(**{**dataclasses.asdict(RECIPE), "method": "picnn", "cycle": "sgs"}),
    ]
    together = trainer.side_by_side([(r, tmp_path / f"together-{i}") for i, r in enumerate(recipes)], "cpu")
    for i, recipe in enumerate(recipes):
        alone = trainer.train(recipe, tmp_path / f"alone-{i}", "cpu")
        for name in ("model.safetensors", "readout.safetensors"):
            assert (together[i].path / name).read_bytes() == (alone.path / name).read_bytes()


def test_where_one_fails_the_others_finish_and_nothing_of_it_is_published(tmp_path):
    bad = dataclasses.replace(RECIPE, lr=1e30, seed=3)
    with pytest.raises(Diverged):
        trainer.side_by_side([(bad, tmp_path / "bad"), (RECIPE, tmp_path / "good")], "cpu")
    assert runs.read(tmp_path / "good").metrics and not (tmp_path / "bad").exists()


@pytest.mark.slow
def test_seconds_are_those_of_a_training_alone_and_not_of_the_others_turns(monkeypatch, tmp_path):
    original = methods.METHODS["csg"]

    def slow(*args):
        time.sleep(0.02)
        return original.loss(*args)

    monkeypatch.setitem(methods.METHODS, "csg", dataclasses.replace(original, loss=slow))
    began = time.monotonic()
    trained = trainer.side_by_side([(dataclasses.replace(RECIPE, seed=i), tmp_path / str(i)) for i in range(4)], "cpu")
    wall = time.monotonic() - began
    for run in trained:
        assert all(row["seconds"] > 0.02 * STEPS for row in run.history) and run.provenance["side_by_side"] == 4
    assert sum(run.provenance["train_seconds"] for run in trained) <= wall + 0.2  # each is rounded to a tenth
    assert sum(row["seconds"] for run in trained for row in run.history) <= wall


@pytest.mark.slow
def test_a_failed_training_leaves_its_memory_to_the_others(monkeypatch, tmp_path):
    bad, nets_made, gone = dataclasses.replace(RECIPE, lr=1e30, seed=3), {}, []
    build, row = prepare.build, Loop.row

    def watched(recipe, num_classes):
        m, net, gate = build(recipe, num_classes)
        nets_made[recipe.seed] = weakref.ref(net)
        return m, net, gate

    def look(self, epoch):
        if self.recipe == RECIPE and epoch == 1:
            gc.collect()
            gone.append(nets_made[bad.seed]() is None)
        return row(self, epoch)

    monkeypatch.setattr(prepare, "build", watched)
    monkeypatch.setattr(Loop, "row", look)
    with pytest.raises(Diverged):
        trainer.side_by_side([(bad, tmp_path / "bad"), (RECIPE, tmp_path / "good")], "cpu")
    assert gone == [True]


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.rand(())


@pytest.mark.parametrize(
    ("layer", "draws"),
    [(nn.Dropout(0.1), True), (StochasticDepth(0.2, "row"), True), (Noisy(), True), (nn.Dropout(0), False), (nn.ReLU(), False)],
)
def test_a_network_that_draws_random_numbers_trains_alone_where_graphs_share_a_generator(layer, draws, monkeypatch, tmp_path):
    def network(num_classes: int) -> networks.Split:
        net = trainings.small(num_classes)
        net.features.append(layer)
        return net

    monkeypatch.setitem(networks.NETS, "small", network)
    monkeypatch.setattr(trainer, "settle_precision", lambda recipe, _: (recipe, "asked for"))
    monkeypatch.setattr(prepare, "check_compiler", lambda _: None)
    monkeypatch.setattr(trainer.distributed, "join", lambda *_: stop())

    def stop():
        raise Problem("this far")

    def told(n: int, **changes) -> str:
        with pytest.raises(Problem) as problem:
            recipe = dataclasses.replace(RECIPE, **changes)
            next(trainer.training(recipe, tmp_path / "out", torch.device("cuda"), 1, n))
        return str(problem.value)

    assert ("that all graphs share: train it by itself" in told(2, loop="fast")) == draws
    assert told(1, loop="fast") == told(2, loop="plain") == "this far"


def test_two_recipes_cannot_share_a_folder(tmp_path):
    with pytest.raises(Problem, match="give each its own"):
        trainer.side_by_side([(RECIPE, tmp_path / "out"), (RECIPE, tmp_path / "." / "out")], "cpu")
