"""Several processes for one training: what they tell each other, how long they wait, how they end.  By gloo, on processors."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trainings
from test_loop import assert_close, other, small  # noqa: F401 (a fixture)

from csglib import Problem, data, runs
from csglib.recipe import Recipe
from csglib.training import distributed, prepare, trainer
from csglib.training.loop import Loop

pytestmark = pytest.mark.slow

# Process 0 takes longer over its evaluation than the processes' group waits, as over a large network's on one processor
PATIENT = """
import atexit, datetime, os, sys, time
import torch.distributed as dist
import trainings
from csglib.training import outcome
from csglib.data.images import Images

def say(words):
    os.write(1, words.encode() + bytes([10]))  # in one piece, as two processes write

atexit.register(lambda: say("left" if not dist.is_initialized() else "still there"))
init = dist.init_process_group
dist.init_process_group = lambda *a, **k: init(*a, timeout=datetime.timedelta(seconds=8), **k)
finish, read_out = outcome.finish, outcome.read_out

def slow(*args):
    time.sleep(10)
    finish(*args)

def watched(net, gate, images, *rest, **more):
    say(f"evaluates {len(images)}")
    return read_out(net, gate, images, *rest, **more)

outcome.finish, outcome.read_out = slow, watched
trainings.prepare()
trainings.once(trainings.Path(sys.argv[1]))
"""


def torchrun(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    where = Path(trainings.__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(where.parent), str(where)])}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path]:
    """What two patient processes said, and the run that they trained, alone in its folder."""
    folder = tmp_path_factory.mktemp("two")
    script = tmp_path_factory.mktemp("script") / "patient.py"
    script.write_text(PATIENT)
    done = torchrun(str(script), str(folder / "two"))
    assert done.returncode == 0, done.stderr
    return done, folder / "two"


def test_the_others_wait_for_process_0_share_its_evaluation_and_leave_in_order(two):
    done, out = two
    told = done.stdout.splitlines()
    epochs = trainings.RECIPE.epochs
    assert told.count("evaluates 50") == 2 * epochs  # half of the 100 test images, each process in each epoch
    assert told.count("evaluates 100") == 1  # for the readout
    assert told.count("left") == 2 and "still there" not in told
    assert runs.read(out).metrics


def test_where_process_0_refuses_all_stop_at_once_with_its_sentence(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("")
    done = torchrun(trainings.__file__, str(tmp_path / "out"))
    assert done.returncode != 0
    assert done.stderr.count("csglib.errors.Occupied: " + str(tmp_path / "out") + " exists and is not a run") == 2
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["out", "precious"]


@pytest.mark.parametrize(
    ("method", "fields", "unused"),
    [
        ("csg", {"cycle": "sg"}, True),
        ("csg", {"cycle": "g", "epochs": 2}, True),  # the last epoch is standard
        ("joint", {}, False),
        ("fixed", {}, False),  # its gate learns nothing
        ("standard", {}, False),
    ],
)
def test_gradients_are_looked_for_only_where_an_epoch_leaves_some_out(method, fields, unused, tiny, monkeypatch):
    asked = []
    monkeypatch.setattr(distributed, "wrapped", lambda loss, unused: asked.append(unused) or loss)
    recipe = Recipe(dataset="tiny", method=method, **({"epochs": 3} | fields), batch_size=64, precision="float32")
    m, net, gate = prepare.build(recipe, 10)
    Loop(recipe, m, net, gate, prepare.optimisers_of(recipe, m, net, gate), tiny.train)
    assert asked == [unused]


@pytest.mark.usefixtures("tiny", "small")
def test_processes_that_do_not_see_the_same_checkpoint_are_stopped(monkeypatch, tmp_path):
    """As on two machines without a common folder: process 0 has trained one epoch, this one none."""
    monkeypatch.setattr(distributed, "first", lambda do: 1 if type(value := do()) is int else value)
    with pytest.raises(Problem, match="do not see the same .*checkpoint.safetensors: put --out into a folder that they share"):
        trainer.train(other("csg"), tmp_path / "out", "cpu")


def test_a_mean_over_processes_weighs_their_images(monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 3)
    shares = [distributed.share(10)]
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(distributed.share(10))
    values = torch.arange(10.0)
    parts = [values[s] for s in shares[1:]]
    assert sorted(torch.cat(parts).tolist()) == values.tolist()
    assert distributed.share(2) == slice(None)  # too few to share: each evaluates them all

    totals = []
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda total, group: totals.append(total.clone()))
    for p in parts:
        distributed.mean(p.mean().item(), len(p))
    summed = torch.stack(totals).sum(0)
    assert (summed[0] / summed[1]).item() == pytest.approx(values.mean().item())


@pytest.mark.usefixtures("small")
def test_two_processes_train_the_network_of_one_with_the_joined_batch(two, monkeypatch, tmp_path):
    monkeypatch.setitem(data.DATASETS, "tiny", functools.cache(trainings.tiny))
    one, two = trainer.train(trainings.RECIPE, tmp_path / "one", "cpu"), runs.read(two[1])
    assert_close(two.weights, one.weights, atol=2e-3)  # stored in float16
    torch.testing.assert_close(two.readout.gate, one.readout.gate, rtol=1e-3, atol=1e-3)
    assert [r["path"] for r in two.history] == [r["path"] for r in one.history]
    for ours, theirs in zip(two.history, one.history, strict=True):
        for name in ("train_loss", "test_loss", "test_accuracy"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3), name
    assert [p.name for p in two.path.parent.iterdir()] == ["two"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 3}, "2 processes cannot share a batch of 3 evenly: choose a multiple of 2"),
        ({"method": "icnn"}, "icnn's loss looks at the whole batch: train it in one process"),
        ({"loop": "fast"}, "2 processes train with the plain loop alone: leave --loop out"),
        ({"method": "fixed", "fixed_gate": "shuffled"}, "looks at the whole batch"),
    ],
)
@pytest.mark.usefixtures("tiny", "small")
def test_a_batch_that_processes_cannot_share_is_refused_before_they_meet(changes, said, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    recipe = other(**({"method": "csg"} | changes))
    with pytest.raises(Problem, match=said):
        trainer.train(recipe, tmp_path / "out", "cpu")
    assert not list(tmp_path.iterdir())
