"""The fast loop against the plain one: compiled, recorded and replayed, in each precision."""

import dataclasses
import io
import json
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import pytest
import torch
import trainings
from recorded import recorded
from tqdm import tqdm

from csglib import Problem, data, methods, networks, precision, runs
from csglib.recipe import Recipe
from csglib.training import loop, prepare, trainer
from csglib.training.loop import Loop, Replayed

RECIPE = Recipe(dataset="tiny", net="small", epochs=2, cycle="gs", batch_size=64, lr=0.05, precision="float32")
STEPS = 320 // 64
CYCLE = dict.fromkeys(("csg", "fixed", "matched"), {"cycle": "sg"})  # of the methods that read one
SHARP = {"icnn": {"template_weight": 1e-2}, "picnn": {"theta_lr": 0.1}}  # so that what is particular to them shows

pytestmark = pytest.mark.usefixtures("tiny", "small")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(networks.NETS, "small", trainings.small)


def other(method: str, **changes) -> Recipe:
    """RECIPE for another method, which does not read its cycle."""
    cycle = RECIPE.cycle if method == "csg" else Recipe().cycle
    return dataclasses.replace(RECIPE, method=method, cycle=cycle, **changes)


def trained(recipe: Recipe, epochs=(0,), capture=None) -> tuple[dict, list[dict], Loop]:
    """Weights, gate and rows after these epochs from the recipe's start; with `capture` from buffers, as on a GPU."""
    images = data.of(recipe).train
    m, net, gate = prepare.build(recipe, 10)
    optimisers = prepare.optimisers_of(recipe, m, net, gate)
    if capture and m.optimiser is not None:  # that of a GPU, whose steps are counted in a tensor
        optimisers[1:] = [m.optimiser(recipe, gate, True)]
    rows = []
    with replaying(capture) if capture else nullcontext():
        steps = (Replayed if capture else Loop)(recipe, m, net, gate, optimisers, images)
        for epoch in epochs:
            steps.start(epoch, tqdm(disable=True))
            rows.append(steps.row(epoch))
    return net.state_dict() | ({"gate": gate.matrix.detach()} if gate is not None else {}), rows, steps


@contextmanager
def replaying(capture):
    """On a processor `capture` takes the place of a CUDA graph: it makes of a step what replays it."""
    pool = mock.patch.object(torch.cuda, "graph_pool_handle", tuple)
    with pool, mock.patch.object(loop, "captured", lambda step, pool: capture(step)):
        yield


def assert_close(ours: dict, theirs: dict, atol: float = 1e-4) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(
            ours[name], theirs[name], rtol=1e-3, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


CASES = [(name, "float32") for name in methods.METHODS] + [("standard", "float16"), ("csg", "bfloat16")]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "precision"), CASES)
def test_recorded_steps_are_the_plain_loops(method, precision):
    """A step that is recorded once in each path and then replayed, as by a CUDA graph: nothing of it may stay behind in Python,
    neither the batch nor the learning rate nor the weight of an epoch."""
    recipe = dataclasses.replace(other(method, precision=precision, epochs=4), **CYCLE.get(method, {}), **SHARP.get(method, {}))
    captures = []
    epochs = [e for e in range(4) if methods.method(recipe).path(recipe, e) != "skipped"]
    ours, rows, steps = trained(recipe, epochs, lambda step: captures.append(1) or recorded(step))
    theirs, expected, _ = trained(recipe, epochs)
    assert len(captures) == len(steps.graphs) == len({row["path"] for row in rows})  # each path once, whatever the epoch
    assert_close(ours, theirs, atol=1e-4 if precision == "float32" else 3e-2)
    for row, other_row in zip(rows, expected, strict=True):
        assert row["train_loss"] == pytest.approx(other_row["train_loss"], rel=1e-4 if precision == "float32" else 3e-2)


@pytest.mark.parametrize("method", methods.METHODS)
def test_the_host_waits_for_nothing_in_a_step(method):
    """On a GPU a step that reads a number from a tensor cannot be captured, and run as it is would stop at it each time."""
    recipe = dataclasses.replace(other(method, epochs=3), **CYCLE.get(method, {}))
    epoch = next(e for e in (1, 0) if methods.method(recipe).path(recipe, e) != "skipped")  # the gated one, where there is one
    _, _, steps = trained(recipe, [epoch], lambda step: step)
    steps.at.zero_()
    with torch.autograd.profiler.profile() as profile:
        steps.step(steps.epoch if steps.m.by_epoch else epoch, *steps.batch())

    def within(event) -> set[str]:
        return {event.name} | (within(event.cpu_parent) if event.cpu_parent else set())

    waits = {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::masked_select"}
    on_processors_alone = {"aten::_fused_sgd_", "aten::_fused_adam_", "aten::one_hot", "aten::_assert_async"}
    found = [within(e) for e in profile.function_events if e.name in waits]
    assert len(profile.function_events) > 50
    assert [names for names in found if not names & on_processors_alone] == []


def test_a_path_is_captured_once_and_replayed_in_later_epochs():
    captures = []
    trained(RECIPE, [0, 1, 0, 1], lambda step: captures.append(1) or step)
    assert len(captures) == 2  # gated, standard


@pytest.mark.parametrize(("error", "remedy"), [(RuntimeError, "csglib doctor --gpu"), (torch.OutOfMemoryError, "--batch-size")])
def test_a_failed_capture_stops_all_that_train_in_its_process(error, remedy, monkeypatch, tmp_path):
    """CUDA is in any state then.  What ends the capture fails too; the first cause is told."""

    def capture(step):
        try:
            raise error("operation not permitted when stream is capturing: <x>\nand more")
        finally:
            raise RuntimeError("the capture was invalidated")

    work = [(dataclasses.replace(RECIPE, seed=seed), tmp_path / str(seed)) for seed in (1, 2)]
    with replaying(capture), monkeypatch.context() as patch:
        patch.setattr(loop, "replays", lambda recipe, device: recipe.seed == 1)
        with pytest.raises(loop.CaptureFailed, match="captured \\(operation.* x \\): .*") as told:
            trainer.side_by_side(work, "cpu")
    assert remedy in str(told.value) and "\n" not in str(told.value)
    assert not (tmp_path / "2").exists()  # though nothing failed in it
    assert [run.recipe.seed for run in trainer.side_by_side(work, "cpu")] == [1, 2]


def test_the_bar_of_a_gpu_moves_when_the_epoch_has_ended():
    """There the steps have only been asked for when `start` returns."""
    bar = tqdm(total=10 * STEPS, file=io.StringIO(), disable=False)
    _, _, steps = trained(RECIPE, [0], lambda step: step)
    with replaying(lambda step: step):
        steps.start(1, bar)
    assert bar.n == 0


@pytest.mark.slow
def test_the_compiled_loop_trains_the_same_network_and_repeats_its_bits(tmp_path):
    """In a process of their own: torch cannot compile functions whose shapes the tests check."""
    code = """
import pathlib, sys, trainings
trainings.prepare()
for words in (["first", "fast"], ["second", "fast"], ["plain"]):
    trainings.once(pathlib.Path(sys.argv[1]) / words[0], *words[1:])
"""
    where = Path(trainings.__file__).parent
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=where, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second, plain = (runs.read(tmp_path / name) for name in ("first", "second", "plain"))
    assert (first.path / "model.safetensors").read_bytes() == (second.path / "model.safetensors").read_bytes()
    assert_close(first.weights, plain.weights, atol=2e-3)  # stored in float16
    assert first.provenance["loop_reason"] == "compiled" and plain.provenance["loop_reason"] == "operation by operation"
    assert first.recipe.key != plain.recipe.key and json.loads((first.path / "recipe.json").read_text())["loop"] == "fast"


def test_a_gpu_that_triton_does_not_know_and_one_without_a_c_compiler_are_refused(monkeypatch, tmp_path):
    gpu = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla P100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 0) if device == gpu else (8, 0))
    with pytest.raises(Problem, match="capability 7.0, and Tesla P100 has 6.0: leave --loop out"):
        prepare.check_compiler(gpu)
    prepare.check_compiler(torch.device("cuda", 0))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(Problem, match="needs a C compiler, and there is none: install gcc"):
        prepare.check_compiler(torch.device("cuda", 0))


def test_the_fast_loop_without_a_compiler_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(Problem, match="needs a C\\+\\+ compiler, and there is none: install g\\+\\+"):
        trainer.train(dataclasses.replace(RECIPE, loop="fast"), tmp_path / "out", "cpu")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def overflow(monkeypatch):
    """overflow(n): the gradients of the first n steps of standard training are infinite."""
    original, seen = methods.METHODS["standard"], []

    def install(n: int) -> None:
        def loss(*args):
            seen.append(1)
            value, logits = original.loss(*args)
            return (value * 1e37 if len(seen) <= n else value), logits

        monkeypatch.setitem(methods.METHODS, "standard", dataclasses.replace(original, loss=loss))

    return install


def test_half_precision_scales_its_loss_and_skips_and_counts_the_steps_that_overflow(overflow):
    recipe = other("standard", precision="float16")
    ours, rows, steps = trained(recipe)
    assert_close(ours, trained(dataclasses.replace(recipe, precision="float32"))[0], atol=2e-2)
    assert steps.scaler.get_scale() == loop.SCALE and rows[0]["skipped_steps"] == 0

    overflow(STEPS)
    ours, rows, steps = trained(recipe)
    start = prepare.build(recipe, 10)[1].named_parameters()
    assert all(torch.equal(p, ours[name]) for name, p in start)
    assert steps.scaler.get_scale() == loop.SCALE / 2**STEPS and rows[0]["skipped_steps"] == STEPS
    assert "skipped_steps" not in trained(other("standard"))[1][0]


def test_the_scale_of_half_precision_is_kept_from_epoch_to_epoch(overflow):
    """One that each epoch sets back overflows again in each, and never grows."""
    overflow(3)
    _, rows, steps = trained(other("standard", precision="float16"), [0, 1])
    assert [row["skipped_steps"] for row in rows] == [3, 0]
    assert steps.scaler.get_scale() == loop.SCALE / 2**3


def test_a_first_step_that_overflows_leaves_no_momentum(overflow):
    """SGD makes its momentum of what lies in memory, which that step then does not overwrite; NaN lies there here."""
    overflow(1)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        ours, rows, _ = trained(other("standard", precision="float16"))
    finally:
        torch.use_deterministic_algorithms(False)
    assert rows[0]["skipped_steps"] == 1
    assert all(t.isfinite().all() for t in ours.values() if t.is_floating_point())


def test_float32_is_float32_on_a_gpu_too(monkeypatch):
    """The switch of TF32 can be read without a GPU: off in all of a step, forward and backward, and where a readout is made."""
    conv, matmul, seen = torch.backends.cudnn.conv, torch.backends.cuda.matmul, []
    assert conv.fp32_precision == "tf32"  # as torch has it
    monkeypatch.setattr(loop.torch, "autocast", lambda *_: nullcontext())

    def run(precision: str) -> list[str]:
        recipe, original = other("standard", precision=precision), methods.METHODS["standard"]

        def loss(*args):
            value, logits = original.loss(*args)
            seen.append(conv.fp32_precision)
            value.register_hook(lambda _: seen.append(conv.fp32_precision))
            return value, logits

        with monkeypatch.context() as patch:
            patch.setitem(methods.METHODS, "standard", dataclasses.replace(original, loss=loss))
            m, net, gate = prepare.build(recipe, 10)
            steps = Loop(recipe, m, net, gate, prepare.optimisers_of(recipe, m, net, gate), data.of(recipe).train)
            steps.device = torch.device("cuda")
            seen.clear()
            steps.start(0, tqdm(disable=True))
        return seen

    assert run("float32") == ["ieee"] * 2 * STEPS
    assert run("bfloat16") == ["tf32"] * 2 * STEPS
    with pytest.raises(ZeroDivisionError), precision.autocast(torch.device("cuda"), "float32"):  # as train.read_out calls it
        assert conv.fp32_precision == "ieee"
        _ = 1 / 0
    assert conv.fp32_precision == "tf32"
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    try:
        with pytest.raises(Problem, match="TF32 is on here"), precision.autocast(torch.device("cuda"), "float32"):
            pass
    finally:
        matmul.fp32_precision = before


COMPILED = """
import functools, torch, trainings
from tqdm import tqdm
from csglib import Problem, data
from csglib.recipe import Recipe
from csglib.training import loop, prepare

trainings.prepare()
compiled, kept = [], []

def backend(graph, inputs):
    compiled.append(1)
    if len(kept) == 10:
        raise RuntimeError("no compiler\\nfor this")
    return graph

torch.compile = functools.partial(torch.compile, backend=backend)
recipe = Recipe(dataset="tiny", net="small", method="standard", batch_size=64, precision="float32", loop="fast")
images = data.of(recipe).train
for width in range(11):
    m, net, gate = prepare.build(recipe, 10)
    net.features[0], net.features[1] = torch.nn.Conv2d(3, 8 + width, 3, stride=2), torch.nn.BatchNorm2d(8 + width)
    net.head = torch.nn.Linear(8 + width, 10)
    steps = loop.Loop(recipe, m, net, gate, prepare.optimisers_of(recipe, m, net, gate), images)
    try:
        for epoch in range(2):
            steps.start(epoch, tqdm(disable=True))
    except Problem as problem:
        print(problem)
    kept.append(net)
print(len(compiled))
"""


@pytest.mark.slow
def test_the_ninth_network_of_a_process_is_compiled_too_and_a_failure_is_told_in_one_sentence():
    """torch by itself runs it uncompiled and says nothing.  A process of its own: see below."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, cwd=Path(trainings.__file__).parent)
    assert done.returncode == 0, done.stderr
    problem, count = done.stdout.splitlines()
    assert count == "11"  # each once, though it trains two epochs
    assert problem.endswith("raised: RuntimeError: no compiler for this): leave --loop out")
