"""Files are written whole whoever else writes them, and the library can be imported where there is no Unix."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from csglib import files, runs
from csglib.recipe import Recipe

ON_WINDOWS = """
import os, sys
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None  # importing it fails
import csglib
from pathlib import Path
root = Path(csglib.__file__).parent
for path in root.rglob("*.py"):
    __import__(".".join(("csglib", *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__"))
import torch
print(csglib.methods.csg.ClassGate(2, 3)(torch.ones(1, 3), torch.tensor([0])).tolist())
try:
    csglib.files.lock(Path("."))
except csglib.Problem as problem:
    print(problem)
"""


@pytest.mark.slow
def test_without_unix_modules_everything_is_imported_and_training_is_refused_in_one_sentence():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", ON_WINDOWS], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    gated, problem = done.stdout.splitlines()
    assert gated == "[[0.5, 0.5, 0.5]]"
    assert problem == ". cannot be locked on this system: train under Linux, macOS or Windows' WSL"


def test_two_writers_of_one_file_leave_it_whole(monkeypatch, tmp_path):
    """The second writes all of its file while the first has written half: as on two machines that lock nothing."""
    path, original = tmp_path / "x", os.fsync

    def fsync(fd):
        monkeypatch.setattr(files.os, "fsync", original)
        files.write(path, "second")
        assert path.read_text() == "second"
        original(fd)

    monkeypatch.setattr(files.os, "fsync", fsync)
    files.write(path, "the first, which is longer")
    assert path.read_text() == "the first, which is longer"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_a_write_that_is_stopped_leaves_the_old_file_and_nothing_else(stop, monkeypatch, tmp_path):
    files.write(tmp_path / "x", "old")

    def fsync(_):
        raise stop(5, "Input/output error")

    monkeypatch.setattr(files.os, "fsync", fsync)
    with pytest.raises((KeyboardInterrupt, files.Problem)):
        files.write(tmp_path / "x", "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x", "old")]


def test_what_a_killed_process_left_of_a_write_is_no_obstacle(tmp_path):
    (tmp_path / "new.part").mkdir()
    for name in ("recipe.json.new", "recipe.json.0f0f0f0f.new"):  # as it was called before, and as now
        (tmp_path / "new.part" / name).write_text("{")
    folder = runs.reserve(tmp_path / "new", Recipe(precision="float32"))
    assert (folder / "recipe.json").exists()
