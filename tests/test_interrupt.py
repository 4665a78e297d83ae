"""Stops, full disks, lost rights and second processes: nothing is lost, nothing is published half."""

import dataclasses
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import trainings
from conftest import LONG, ROOT
from safetensors.torch import load_file

from csglib import Problem, data, files, networks, runs
from csglib.errors import Busy, Damaged, Diverged
from csglib.recipe import Recipe
from csglib.runs import provenance
from csglib.training import loop, outcome, trainer

RECIPE = Recipe(dataset="tiny", net="small", epochs=3, cycle="g", batch_size=64, lr=0.05, precision="float32")
SCRIPT = ROOT / "tests" / "trainings.py"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}


@pytest.fixture(scope="module", autouse=True)
def small(tiny):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(networks.NETS, "small", trainings.small)
        yield


def kill_trainings(folder: Path, kills: int, seed: int) -> dict:
    command = [sys.executable, SCRIPT, folder, str(kills), str(seed)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_trainings_killed_at_random_moments_end_with_the_bits_of_an_uninterrupted_one(tmp_path):
    assert kill_trainings(tmp_path / "killed", 5, 0)["kills"] == 5


@pytest.mark.long
def test_so_do_fifty(tmp_path):
    assert kill_trainings(tmp_path / "killed", 50, 1)["kills"] == 50


@pytest.mark.long
def test_no_boundary_of_a_save_is_a_bad_moment_to_be_killed_at(tmp_path):
    """ckpt-chaos kills at each file event of a training, tears each file, and compares what a resumed one ends with."""
    pytest.importorskip("ckpt_chaos", reason="ckpt-chaos is not here: pip install ckpt-chaos")
    words = ["--result-file", "{out}/run/model.safetensors", "--step-regex", r"resumed from epoch (\d+)"]
    words += ["--modes", "before,torn,unsynced", "--max-points", "1000", "--work", str(tmp_path / "work")]
    command = [sys.executable, "-m", "ckpt_chaos", "run", *words, "--", sys.executable, str(SCRIPT), "{out}/run"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    print(done.stdout)


@pytest.fixture
def stop_at(monkeypatch):
    """stop_at(epoch, deed): the deed is done when that epoch has been trained, before its checkpoint is saved."""

    def install(epoch: int, deed) -> None:
        original = outcome.test_row

        def test_row(*args):
            row, install.seen = original(*args), install.seen + 1
            if install.seen == epoch + 1:
                deed()
            return row

        install.seen = 0
        monkeypatch.setattr(outcome, "test_row", test_row)

    return install


def interrupt():
    raise KeyboardInterrupt


def bits(run: runs.Run) -> tuple[bytes, bytes]:
    return (run.path / "model.safetensors").read_bytes(), (run.path / "readout.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory) -> runs.Run:
    return trainer.train(RECIPE, tmp_path_factory.mktemp("whole") / "run", "cpu")


@pytest.mark.slow
def test_no_system_call_of_a_save_is_a_bad_moment_to_stop_at(whole, monkeypatch, tmp_path):
    """The same within one process: a stop at the nth flush or change of a name, and then a second start."""

    def stop_at_call(n: int) -> list:
        seen = []
        for module, name in ((files.os, "fsync"), (files.os, "replace"), (runs.os, "rename"), (Path, "unlink")):
            original = getattr(module, name)

            def count(*args, original=original, **kwargs):
                seen.append(1)
                return original(*args, **kwargs) if len(seen) != n else interrupt()

            monkeypatch.setattr(module, name, count)
        return seen

    calls = stop_at_call(0)
    trainer.train(RECIPE, tmp_path / "counted", "cpu")
    monkeypatch.undo()
    assert len(calls) > 25
    for n in range(1, len(calls) + 1, 1 if LONG else 4):
        out = tmp_path / f"out-{n}"
        stop_at_call(n)
        with pytest.raises(KeyboardInterrupt):
            trainer.train(RECIPE, out, "cpu")
        monkeypatch.undo()
        if not out.exists():  # else the name was given, and only the flush of it stopped
            trainer.train(RECIPE, out, "cpu")
        assert bits(runs.read(out)) == bits(whole)
        assert sorted(p.name for p in out.iterdir()) == sorted([*runs.FILES, "provenance.json"])
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.slow
def test_checkpoints_come_at_the_chosen_interval(whole, stop_at, monkeypatch, tmp_path):
    saved = []
    original = trainer.Checkpoint.save
    monkeypatch.setattr(
        trainer.Checkpoint, "save", lambda self, history, *a: (saved.append(len(history)), original(self, history, *a))
    )
    assert bits(trainer.train(RECIPE, tmp_path / "out", "cpu", every=2)) == bits(whole)
    assert saved == [2, 3]
    with pytest.raises(Problem, match="every 0 epochs"):
        trainer.train(RECIPE, tmp_path / "other", "cpu", every=0)
    assert not (tmp_path / "other.part").exists()


def test_a_full_disk_stops_with_one_sentence_and_the_earlier_checkpoint_goes_on(whole, stop_at, monkeypatch, tmp_path):
    """The kernel's limit on the size of a file stands in for the disk's end: the write fails half-way."""
    monkeypatch.setenv("TQDM_DISABLE", "1")  # its bar may go to a file, which the limit would stop too
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    stop_at(1, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1])))
    try:
        with pytest.raises(Problem, match="checkpoint.safetensors could not be written .*free some space.*unharmed"):
            trainer.train(RECIPE, tmp_path / "out", "cpu")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(p.name for p in (tmp_path / "out.part").iterdir()) == ["checkpoint.safetensors", "recipe.json"]
    monkeypatch.undo()
    assert bits(trainer.train(RECIPE, tmp_path / "out", "cpu")) == bits(whole)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up its rights and take them back")
def test_a_lost_permission_stops_with_one_sentence_and_the_earlier_checkpoint_goes_on(whole, stop_at, monkeypatch):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        out = Path(folder) / "out"
        stop_at(1, lambda: os.seteuid(65534))
        try:
            with pytest.raises(Problem, match="could not be written .*make the folder writable"):
                trainer.train(RECIPE, out, "cpu")
        finally:
            os.seteuid(0)
        assert sorted(p.name for p in runs.part(out).iterdir()) == ["checkpoint.safetensors", "recipe.json"]
        monkeypatch.undo()
        assert bits(trainer.train(RECIPE, out, "cpu")) == bits(whole)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up its rights and take them back")
def test_a_folder_without_the_right_to_write_is_refused_with_one_sentence(csglib):
    importlib.import_module("csglib.training.pace")  # what the command imports may be unreadable without these rights
    csglib("train", "--epochs", "0")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        os.seteuid(65534)
        try:
            words = f"train --dataset tiny --method standard --epochs 1 --batch-size 64 --device cpu --out {folder}/run"
            code, _, err = csglib(*words.split())
        finally:
            os.seteuid(0)
        assert code == 2 and err.count("\n") == 1 and "can be written" in err
        assert list(Path(folder).iterdir()) == []


def test_a_stop_between_the_last_file_and_the_name_is_published_as_it_is(whole, monkeypatch, tmp_path):
    """Also when the checkpoint is gone already."""
    monkeypatch.setattr(runs.os, "rename", lambda *_: interrupt())
    with pytest.raises(KeyboardInterrupt):
        trainer.train(RECIPE, tmp_path / "out", "cpu")
    monkeypatch.undo()
    assert sorted(p.name for p in (tmp_path / "out.part").iterdir()) == sorted([*runs.FILES, "provenance.json"])
    monkeypatch.setattr(loop.Loop, "start", lambda *_: interrupt())
    assert bits(trainer.train(RECIPE, tmp_path / "out", "cpu")) == bits(whole)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("place", [0.02, 0.3, 0.6, 0.95])
def test_one_flipped_bit_in_a_checkpoint_is_refused(place, stop_at, tmp_path):
    stop_at(1, interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(RECIPE, tmp_path / "out", "cpu")
    path = tmp_path / "out.part" / "checkpoint.safetensors"
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(Damaged):
        trainer.train(RECIPE, tmp_path / "out", "cpu")


@pytest.mark.slow
def test_a_second_process_is_kept_out_until_the_first_ends_however_it_ends(whole, tmp_path):
    out = tmp_path / "out"
    folder = runs.reserve(out, RECIPE)
    code = "import pathlib, sys; from csglib.files import lock; lock(pathlib.Path(sys.argv[1])); print(1, flush=True); input()"
    command = [sys.executable, "-c", code, folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT, cwd=ROOT) as other:
        other.stdout.readline()
        with pytest.raises(Busy, match="out.part"):
            trainer.train(RECIPE, out, "cpu")
        other.kill()
    assert sorted(p.name for p in folder.iterdir()) == ["recipe.json"]
    assert bits(trainer.train(RECIPE, out, "cpu")) == bits(whole)


def test_a_folder_that_was_finished_while_one_waited_for_it_is_not_taken(tmp_path):
    (tmp_path / "new.part").mkdir()
    original = os.open

    def slow(*args, **kwargs):
        fd = original(*args, **kwargs)
        (tmp_path / "new.part").rename(tmp_path / "new")
        return fd

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.os, "open", slow)
        with pytest.raises(Busy):
            files.lock(tmp_path / "new.part")


def test_a_run_of_two_commits_is_not_called_clean(stop_at, monkeypatch, tmp_path):
    made_by = {"commit": "a" * 40, "dirty": False, "versions": {}, "hardware": {"processor": None, "threads": 1, "gpu": None}}
    monkeypatch.setattr(provenance, "here", lambda _: dict(made_by))
    stop_at(1, interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(RECIPE, tmp_path / "out", "cpu")
    monkeypatch.undo()
    monkeypatch.setattr(provenance, "here", lambda _: made_by | {"commit": "b" * 40})
    assert trainer.train(RECIPE, tmp_path / "out", "cpu").provenance["dirty"] is True
    monkeypatch.setattr(provenance, "here", lambda _: dict(made_by))
    assert trainer.train(dataclasses.replace(RECIPE, seed=1), tmp_path / "other", "cpu").provenance["dirty"] is False


def test_a_run_of_two_versions_of_a_library_is_not_called_clean(stop_at, monkeypatch, tmp_path):
    here = provenance.here(torch.device("cpu")) | {"dirty": False}
    monkeypatch.setattr(provenance, "here", lambda _: dict(here))
    stop_at(1, interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(RECIPE, tmp_path / "out", "cpu")
    monkeypatch.undo()
    monkeypatch.setattr(provenance, "here", lambda _: here | {"versions": here["versions"] | {"torch": "0.1"}})
    assert trainer.train(RECIPE, tmp_path / "out", "cpu").provenance["dirty"] is True


def test_a_run_is_not_resumed_on_other_images(stop_at, monkeypatch, tmp_path):
    stop_at(1, interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(RECIPE, tmp_path / "out", "cpu")
    monkeypatch.undo()
    other = dataclasses.replace(data.load("tiny"), digest="f" * 64)
    monkeypatch.setitem(data.DATASETS, "tiny", lambda: other)
    with pytest.raises(Problem, match="was trained on other images than are there now: restore them"):
        trainer.train(RECIPE, tmp_path / "out", "cpu")
    assert sorted(p.name for p in (tmp_path / "out.part").iterdir()) == ["checkpoint.safetensors", "recipe.json"]


def test_a_training_loss_out_of_all_bounds_stops_a_run_as_nan_does(stop_at, monkeypatch, tmp_path):
    original = loop.Loop.row
    monkeypatch.setattr(loop.Loop, "row", lambda *a: original(*a) | ({"train_loss": 2e6} if a[1] == 1 else {}))
    with pytest.raises(Diverged, match=r"train_loss of epoch 1 is 2e\+06"):
        trainer.train(RECIPE, tmp_path / "out", "cpu")
    assert load_file(tmp_path / "out.part" / "checkpoint.safetensors")
    report = json.loads((tmp_path / "out.part" / "report.json").read_text())
    assert report["stopped_by"] == ["train_loss"] and len(report["history"]) == 2
