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


def apply(page: str, root: Path) -> None:
    words = ["git", "apply", "-"]  # outside of a repository it changes the files below the current folder
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(root.parent)}
    done = subprocess.run(words, cwd=root, input=changes(page), text=True, capture_output=True, env=environment)
    assert done.returncode == 0, f"book/{page}.md no longer fits the code: {done.stderr}"


BEGIN = """
import contextlib, sys
import pytest

files = ["tests/test_methods.py", "tests/test_experiments.py"]
asked = "loss_of_decay or every_option or what-matters or changes_one_thing or is_used"
assert pytest.main(["-p", "no:cacheprovider", *files, "-k", asked]) == 0

def command(package, words):
    sys.argv = [package, *words.split()]
    __import__(package + ".cli").cli.main()
"""
METHOD = """
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

print(*[r.flags for r in experiments.missing("what-matters", "short")], sep="\\n")
command("csgbook", "results --profile short --runs-folder data --out results.json")
few = dict(dataset="cifar10-mini", net="resnet8", holdout=1500, batch_size=250)
quick = few | dict(epochs=2, cycle="gs", precision="float32")
some = train(Recipe(**quick), "some", "cpu")
none = train(Recipe(**quick, gate_momentum=0.0), "none", "cpu")
of = {"alternating": [some], "no-momentum": [none]}
print([c["ours"] for c in verdicts.of_page("what-matters", of) if c["id"] == "momentum-mis"][0])
"""


@pytest.fixture(scope="module")
def followed(tmp_path_factory) -> tuple[Path, list[str]]:
    """A copy that both pages have changed, and what it prints when both are put to use, in one process."""
    root = tmp_path_factory.mktemp("followed") / "copy"
    for name in COPIED:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    for page in ("add-a-method", "add-an-experiment"):
        apply(page, root)
    environment = os.environ | {"PYTHONPATH": str(root), "TQDM_DISABLE": "1"}
    command = [sys.executable, "-c", BEGIN + METHOD + EXPERIMENT]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return root, done.stdout.splitlines()


def test_a_method_is_added_by_a_file_of_its_own_and_changes_in_three(followed):
    assert touched("add-a-method") == {
        "csglib/methods/decay.py",
        "csglib/methods/__init__.py",
        "csglib/recipe.py",
        "tests/test_methods.py",
    }
    root, told = followed
    (keys,) = [line for line in told if line.startswith("keys ")]
    assert keys.split()[1:] == [Recipe(method=m, precision="float32").key for m in ("csg", "picnn")]
    found = json.loads((root / "run/metrics.json").read_text())
    assert found["l1_density"] <= 1 and (root / "run/recipe.json").read_text().count('"decay_weight": 0.05')
    assert "decay-weight" in (root / "help.txt").read_text()


def test_an_experiment_is_added_by_changing_two_files(followed):
    assert touched("add-an-experiment") == {"book/experiments.yml", "csgbook/claims.py"}
    root, told = followed
    short = [line for line in told if "gate-momentum 0.0" in line]
    assert len(short) == 3 and all("--epochs 10" in line for line in short)
    judged = {c["id"]: c for c in json.loads((root / "results.json").read_text())}
    assert judged["momentum-mis"]["verdict"] == "not run here"
    difference = [json.loads((root / name / "metrics.json").read_text())["mis"] for name in ("some", "none")]
    assert float(told[-1]) == pytest.approx(difference[0] - difference[1])
