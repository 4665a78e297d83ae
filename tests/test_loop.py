"""The fast loop, many trainings at once, and several processes for one: each against the plain loop of one process."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trainings
from tqdm import tqdm

from csglib import Problem, loop, nets, runs, train
from csglib.loop import Loop
from csglib.runs import Recipe

RECIPE = Recipe(dataset="tiny", net="small", epochs=2, cycle="gs", batch_size=64, lr=0.05, precision="float32")
STEPS = 320 // 64

pytestmark = pytest.mark.usefixtures("tiny", "small")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(nets.NETS, "small", trainings.small)


def other(method: str, **changes) -> Recipe:
    """RECIPE for another method, which does not read its cycle."""
    cycle = RECIPE.cycle if method == "csg" else Recipe().cycle
    return dataclasses.replace(RECIPE, method=method, cycle=cycle, **changes)


def one_epoch(recipe: Recipe, epoch: int, capture=None) -> tuple[dict, dict, Loop]:
    """Weights, gate and row after one epoch from the recipe's start; with `capture` from buffers, as on a GPU."""
    images = train.load(recipe).train
    m, net, gate = train.build(recipe, 10)
    optimisers = train.optimisers_of(recipe, m, net, gate)
    steps = Loop(recipe, m, net, gate, optimisers, images)
    if capture:
        steps.prepare_graphs(capture)
    steps.start(epoch, tqdm(disable=True))
    row = steps.row(epoch)
    return net.state_dict() | ({"gate": gate.matrix.detach()} if gate is not None else {}), row, steps


def run_script(out: Path, *words: str, processes: int = 1) -> None:
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    command = [sys.executable, *many, trainings.__file__, str(out), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def assert_close(ours: dict, theirs: dict, atol: float = 1e-4) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(
            ours[name], theirs[name], rtol=1e-3, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(("method", "epoch"), [("csg", 0), ("csg", 1), ("icnn", 0), ("picnn", 0)])
def test_steps_from_buffers_on_the_device_are_the_plain_loops(method, epoch):
    """What a CUDA graph replays, here called as it is: the batches, their augmentation, the learning rate of each step."""
    recipe = other(method)
    replayed = []

    def capture(step):
        def replay():
            replayed.append(1)
            step()

        return replay

    ours, row, _ = one_epoch(recipe, epoch, capture)
    theirs, expected, _ = one_epoch(recipe, epoch)
    assert len(replayed) == STEPS - loop.EAGER_STEPS
    assert_close(ours, theirs)
    assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
    assert row["train_accuracy"] == expected["train_accuracy"]


def test_a_path_is_captured_once_and_replayed_in_later_epochs():
    captures = []
    _, _, steps = one_epoch(RECIPE, 0, lambda step: captures.append(1) or step)
    steps.start(1, bar := tqdm(disable=True))
    steps.row(1)
    steps.start(0, bar)
    assert len(captures) == 2  # gated, standard


def test_a_step_that_cannot_be_captured_is_run_as_it_is_and_says_why(capsys):
    def capture(step):
        raise RuntimeError("operation not permitted when stream is capturing: <x>\nand more")

    ours, _, steps = one_epoch(RECIPE, 0, capture)
    assert_close(ours, one_epoch(RECIPE, 0)[0])
    assert "cannot be captured (operation not permitted when stream is capturing:  x )" in steps.reason
    assert steps.reason in capsys.readouterr().err


def test_the_compiled_loop_trains_the_same_network_and_repeats_its_bits(tmp_path):
    """In processes of their own: torch cannot compile functions whose shapes the tests check."""
    for words in (["first", "fast"], ["second", "fast"], ["plain"]):
        run_script(tmp_path / words[0], *words[1:])
    first, second, plain = (runs.read(tmp_path / name) for name in ("first", "second", "plain"))
    assert (first.path / "model.safetensors").read_bytes() == (second.path / "model.safetensors").read_bytes()
    assert_close(first.weights, plain.weights, atol=2e-3)  # stored in float16
    assert first.provenance["loop_reason"] == "compiled" and plain.provenance["loop_reason"] == "operation by operation"
    assert first.recipe.key != plain.recipe.key and json.loads((first.path / "recipe.json").read_text())["loop"] == "fast"


def test_the_fast_loop_without_a_compiler_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(Problem, match="needs a C\\+\\+ compiler, and there is none: install g\\+\\+"):
        train.train(dataclasses.replace(RECIPE, loop="fast"), tmp_path / "out", "cpu")
    assert not list(tmp_path.iterdir())


def test_half_precision_scales_its_loss_and_skips_a_step_that_overflows(monkeypatch):
    recipe = other("standard", precision="float16")
    ours, row, steps = one_epoch(recipe, 0)
    assert_close(ours, one_epoch(dataclasses.replace(recipe, precision="float32"), 0)[0], atol=2e-2)
    assert steps.scaler.get_scale() == loop.SCALE["scale"]

    before = {k: v.clone() for k, v in steps.net.named_parameters()}
    original = steps.m.loss
    object.__setattr__(steps.m, "loss", lambda *a: (original(*a)[0] * 1e37, original(*a)[1]))  # its gradients are infinite
    try:
        steps.start(1, tqdm(disable=True))
    finally:
        object.__setattr__(steps.m, "loss", original)
    assert all(torch.equal(v, before[k]) for k, v in steps.net.named_parameters())
    assert steps.scaler.get_scale() == loop.SCALE["scale"] / 2**STEPS


# Many at once


def test_trainings_side_by_side_end_with_the_bits_of_separate_ones(tmp_path):
    recipes = [
        RECIPE,
        dataclasses.replace(RECIPE, seed=1),
        Recipe(**{**dataclasses.asdict(RECIPE), "method": "picnn", "cycle": "sgs"}),
    ]
    together = train.side_by_side([(r, tmp_path / f"together-{i}") for i, r in enumerate(recipes)], "cpu")
    for i, recipe in enumerate(recipes):
        alone = train.train(recipe, tmp_path / f"alone-{i}", "cpu")
        for name in ("model.safetensors", "readout.safetensors"):
            assert (together[i].path / name).read_bytes() == (alone.path / name).read_bytes()


def test_where_one_fails_the_others_finish_and_nothing_of_it_is_published(tmp_path):
    bad = dataclasses.replace(RECIPE, lr=1e30, seed=3)
    with pytest.raises(Problem, match="lower --lr"):
        train.side_by_side([(bad, tmp_path / "bad"), (RECIPE, tmp_path / "good")], "cpu")
    assert runs.read(tmp_path / "good").metrics and not (tmp_path / "bad").exists()


def test_two_recipes_cannot_share_a_folder(tmp_path):
    with pytest.raises(Problem, match="give each its own"):
        train.side_by_side([(RECIPE, tmp_path / "out"), (RECIPE, tmp_path / "." / "out")], "cpu")


# Several processes for one training


def test_two_processes_train_the_network_of_one_with_the_joined_batch(tmp_path):
    run_script(tmp_path / "two", processes=2)
    run_script(tmp_path / "one")
    one, two = (runs.read(tmp_path / name) for name in ("one", "two"))
    assert_close(two.weights, one.weights, atol=2e-3)  # stored in float16
    torch.testing.assert_close(two.readout.gate, one.readout.gate, rtol=1e-3, atol=1e-3)
    assert [r["path"] for r in two.history] == [r["path"] for r in one.history]
    for ours, theirs in zip(two.history, one.history, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 3}, "2 processes cannot share a batch of 3 evenly: choose a multiple of 2"),
        ({"method": "icnn"}, "icnn's loss looks at the whole batch: train it in one process"),
        ({"method": "fixed", "fixed_gate": "shuffled"}, "looks at the whole batch"),
    ],
)
def test_a_batch_that_processes_cannot_share_is_refused_before_they_meet(changes, said, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    recipe = other(**({"method": "csg"} | changes))
    with pytest.raises(Problem, match=said):
        train.train(recipe, tmp_path / "out", "cpu")
    assert not list(tmp_path.iterdir())
