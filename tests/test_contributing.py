"""The pages "Add a method" and "Add an experiment", followed to the letter in a copy: changes apply, what they add works."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from csglib.recipe import Recipe

pytestmark = pytest.mark.slow

COPIED = ("csglib", "csgbook", "tools", "tests", "data/cifar10-mini", "book")


def changes(page: str) -> str:
    """What the page's blocks of differences change, one after the other."""
    return "".join(re.findall(r"^```diff\n(.*?)^```$", (ROOT / "book" / f"{page}.md").read_text(), re.S | re.M))


def touched(page: str) -> set[str]:
    return set(re.findall(r"^\+\+\+ b/(\S+)$", changes(page), re.M))


@pytest.fixture
def copied(tmp_path) -> Path:
    root = tmp_path / "copy"
    for name in COPIED:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    return root


def apply(page: str, root: Path) -> None:
    words = ["git", "apply", "-"]  # outside of a repository it changes the files below the current folder
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(root.parent)}
    done = subprocess.run(words, cwd=root, input=changes(page), text=True, capture_output=True, env=environment)
    assert done.returncode == 0, f"book/{page}.md no longer fits the code: {done.stderr}"


def python(root: Path, code: str) -> str:
    """Run code on the copy, in one process, since each needs seconds to import torch."""
    environment = os.environ | {"PYTHONPATH": str(root), "TQDM_DISABLE": "1"}
    done = subprocess.run([sys.executable, "-c", BEGIN + code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


BEGIN = """
import contextlib, pathlib, sys
import pytest

def tests(*words):
    assert pytest.main(["-p", "no:cacheprovider", *words]) == 0

def command(package, words):
    sys.argv = [package, *words.split()]
    __import__(package + ".cli").cli.main()
"""
METHOD = """
tests("tests/test_methods.py", "-k", "loss_of_decay or every_option")
few = "--dataset cifar10-mini --net resnet8 --holdout 1500 --batch-size 250 --epochs 2 --cycle gs --precision float32"
command("csglib", f"train {few} --method decay --decay-weight 0.05 --out run")
with contextlib.redirect_stdout(open("help.txt", "w")), contextlib.suppress(SystemExit):
    command("csglib", "train --help")
from csglib.recipe import Recipe
print("keys", *[Recipe(method=m, precision="float32").key for m in ("csg", "picnn")])
"""
EXPERIMENT = """
from csgbook import experiments
from csgbook.evidence import verdicts
from csglib.recipe import Recipe
from csglib.training import train

tests("tests/test_experiments.py", "-k", "what-matters or changes_one_thing or is_used")
print(*[r.flags for r in experiments.missing("what-matters", "short")], sep="\\n")
command("csgbook", "results --profile short --runs-folder data --out results.json")
few = dict(dataset="cifar10-mini", net="resnet8", holdout=1500, batch_size=250)
quick = few | dict(epochs=2, cycle="gs", precision="float32")
some = train(Recipe(**quick), "some", "cpu")
none = train(Recipe(**quick, gate_momentum=0), "none", "cpu")
of = {"alternating": [some], "no-momentum": [none]}
print([c["ours"] for c in verdicts.of_page("what-matters", of) if c["id"] == "momentum-mis"][0])
"""


def test_a_method_is_added_by_a_file_of_its_own_and_changes_in_three(copied):
    assert touched("add-a-method") == {
        "csglib/methods/decay.py",
        "csglib/methods/__init__.py",
        "csglib/recipe.py",
        "tests/test_methods.py",
    }
    apply("add-a-method", copied)
    (keys,) = [line for line in python(copied, METHOD).splitlines() if line.startswith("keys ")]
    assert keys.split()[1:] == [Recipe(method=m, precision="float32").key for m in ("csg", "picnn")]
    found = json.loads((copied / "run/metrics.json").read_text())
    assert found["l1_density"] <= 1 and (copied / "run/recipe.json").read_text().count('"decay_weight": 0.05')
    assert "decay-weight" in (copied / "help.txt").read_text()


def test_an_experiment_is_added_by_changing_two_files(copied):
    assert touched("add-an-experiment") == {"book/experiments.yml", "csgbook/claims.py"}
    apply("add-an-experiment", copied)
    told = python(copied, EXPERIMENT).splitlines()
    short = [line for line in told if "gate-momentum 0.0" in line]
    assert len(short) == 3 and all("--epochs 10" in line for line in short)
    judged = {c["id"]: c for c in json.loads((copied / "results.json").read_text())}
    assert judged["momentum-mis"]["verdict"] == "not run here"
    difference = [json.loads((copied / name / "metrics.json").read_text())["mis"] for name in ("some", "none")]
    assert float(told[-1]) == pytest.approx(difference[0] - difference[1])
