"""What an installation promises: one lock for pip, conda and Binder; one version; no address of an index."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import yaml
from packaging.markers import Marker

import csglib
from csglib.paths import ROOT
from csglib.runs import release

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
PINNED = dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)(?:\[[a-z,]+\])?==([^ ;\\]+)", LOCK, re.M))


def test_the_lock_pins_every_dependency_with_hashes_and_names_no_address():
    extras = PROJECT["optional-dependencies"]  # that of clusters has a lock of its own
    wanted = PROJECT["dependencies"] + [d for name, extra in extras.items() for d in extra if name != "cluster"]
    wanted = [d for d in wanted if not d.startswith("csglib[")]  # an extra that holds another
    assert {re.match(r"[\w.-]+", d).group().lower() for d in wanted} <= set(PINNED)
    assert "://" not in LOCK and "--index" not in LOCK
    entries = re.split(r"\n(?=[a-z0-9])", LOCK.strip())
    assert len(entries) > 100
    assert [e.split()[0] for e in entries if "--hash=sha256:" not in e] == []


def test_the_pair_of_torch_and_torchvision_is_the_one_that_colab_has():
    assert (PINNED["torch"], PINNED["torchvision"], PINNED["jupyter-book"]) == ("2.11.0", "0.26.0", "1.0.4.post1")


def test_the_library_leaves_upper_versions_open():
    assert PROJECT["requires-python"] == ">=3.11"
    assert [d for d in PROJECT["dependencies"] if "==" in d or "<" in d] == []


def test_conda_and_binder_install_the_lock():
    packages = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert packages[-1] == {"pip": ["-r requirements.lock"]}
    assert "--no-deps --editable ." in (ROOT / "postBuild").read_text()


def test_environment_yml_pins_nothing_beside_the_lock_and_takes_its_python():
    """What conda itself installs is Python and tools; a package of the lock there would be pinned twice."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    *own, _ = environment["dependencies"]
    names = {re.match(r"[a-z0-9-]+", d).group() for d in own}
    assert names == {"python", "pip", "make", "git"} and not names & set(PINNED)
    (python,) = [d.partition("=")[2] for d in own if d.startswith("python")]
    for flow in (ROOT / ".github" / "workflows").glob("*.yml"):
        assert set(re.findall(r'python-version: "(.+)"', flow.read_text())) <= {python}, flow.name
    assert f"--python-version {python}" in (ROOT / "Makefile").read_text()  # of `make lock`


@pytest.mark.slow
def test_the_environment_made_from_the_lock_has_its_versions():
    """`make` has made this environment from the lock, as conda and Binder do: nothing in it differs, nothing is missing."""
    if not (ROOT / ".venv" / "ready").exists() or Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        pytest.skip("this is not the environment that `make` makes")
    wrong = {}
    for name, pinned, marker in re.findall(r"^([a-z0-9][a-z0-9._-]*)(?:\[[a-z,]+\])?==([^ ;\\]+)(?: ; ([^\\]+))?", LOCK, re.M):
        if not marker or Marker(marker.strip()).evaluate():
            try:
                found = version(name)
            except PackageNotFoundError:
                found = None
            if found != pinned:
                wrong[name] = (pinned, found)
    assert wrong == {}


@pytest.fixture(scope="session")
def installed(tmp_path_factory) -> Path:
    """A fresh environment into which `pip install .` has put csglib, and which lends everything else from this one."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("csglib", "csgbook", "data"):
        ignored = shutil.ignore_patterns("__pycache__", *(("runs", "raw") if name == "data" else ()))
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignored)
    (folder / "source" / "book").mkdir()
    for name in ("book/experiments.yml", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    pip, offline = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"], ["--no-index", "--no-deps"]
    build = [*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", folder / "wheel", folder / "source"]
    subprocess.run(build, check=True)
    venv.create(folder / "venv")
    (wheel,) = (folder / "wheel").iterdir()
    subprocess.run([*pip, "--python", folder / "venv" / "bin" / "python", "install", *offline, wheel], check=True)
    lent = next(p for p in map(Path, sys.path) if p.name == "site-packages" and (p / "torch").exists())
    site = next((folder / "venv").glob("lib/python*/site-packages"))
    (site / "lent.pth").write_text(f"{lent}\n")
    return folder


def call(installed: Path, *words: str) -> subprocess.CompletedProcess:
    """A command of that environment in an empty folder, with no file of the repository and a cache of its own."""
    (installed / "empty").mkdir(exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CSGLIB_DATA")}
    environment |= {"XDG_CACHE_HOME": str(installed / "cache"), "TQDM_DISABLE": "1"}
    bin = installed / "venv" / "bin"
    return subprocess.run(
        [bin / words[0], *words[1:]], cwd=installed / "empty", env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_wheel_gives_the_command_and_the_doctor_finds_nothing_to_do(installed):
    done = call(installed, "csglib", "doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"installed in {installed / 'venv'}" in done.stdout and "2000 training and 1000 test images" in done.stdout
    assert f"downloads go to {installed / 'cache' / 'csglib'}" in done.stdout
    assert "csglib data get runs" in done.stdout


@pytest.mark.slow
def test_the_wheel_is_typed_and_carries_what_pages_read_but_the_runs(installed):
    code = "import csglib; from csglib.runs import release; print(csglib.__file__, release.repository(), sep='\\n')"
    file, address = call(installed, "python", "-c", code).stdout.splitlines()
    where = Path(file).parent
    assert where.is_relative_to(installed / "venv") and (where / "py.typed").exists()
    carried = {p.relative_to(where / "root").as_posix() for p in (where / "root").rglob("*") if p.is_file()}
    assert {
        "book/experiments.yml",
        "data/cifar10-mini/train.webp",
        "data/measured/detection.json",
        "data/measured/step-cost.json",
    } <= carried
    assert not any(name.startswith("data/runs") for name in carried)
    assert address == release.repository()


@pytest.mark.slow
def test_the_wheel_trains_on_the_sample_and_fetches_the_published_runs(installed, run):
    flags = "--dataset cifar10-mini --net resnet8 --method standard --epochs 1 --batch-size 500 --device cpu --out run"
    done = call(installed, "csglib", "train", *flags.split())
    assert done.returncode == 0, done.stderr
    provenance = json.loads((installed / "empty" / "run" / "provenance.json").read_text())
    assert provenance["commit"] is None  # no repository made it
    root = installed / "NAME" / "data" / "runs"
    root.mkdir(parents=True)
    shutil.copytree(run.path, root / "one")
    subprocess.run(["tar", "--create", "--gzip", "--file", installed / "HEAD.tar.gz", "-C", installed, "NAME"], check=True)
    code = f"from csglib.runs import release; print(release.get_runs(url='{(installed / 'HEAD.tar.gz').as_uri()}'))"
    assert call(installed, "python", "-c", code).stdout == "(1, 0)\n"
    assert "one" in call(installed, "csglib", "runs").stdout


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == csglib.__version__ == citation["version"]
    assert f"## {csglib.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
def test_training_and_metrics_need_no_notebook_tools():
    """A GPU machine may have torch and little else."""
    code = """
import sys
for name in ("IPython", "ipywidgets", "matplotlib", "pandas", "tabulate", "papermill", "snakemake", "tyro", "sklearn", "scipy",
             "numba", "yaml", "fastjsonschema"):
    sys.modules[name] = None
import csglib, torch
from csglib import doctor
from csglib.analysis import attacks, localize, metrics
from csglib.runs import release, verify
from csglib.training import gpu, pace, trainer
net = csglib.gated(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()), "1", num_classes=2)
assert net(torch.rand(2, 3, 8, 8)).shape == (2, 2)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_workflows_may_only_read_and_pin_what_they_use_by_a_release():
    workflows = {p.name: yaml.safe_load(p.read_text()) for p in (ROOT / ".github" / "workflows").glob("*.yml")}
    assert {"audit.yml", "tests.yml"} <= set(workflows)
    for name, workflow in workflows.items():
        assert workflow["permissions"] == {"contents": "read"}, name
        for step in (step for job in workflow["jobs"].values() for step in job["steps"]):
            assert re.fullmatch(r"[\w./-]+@v\d+\.\d+\.\d+", step.get("uses", "a@v1.0.0")), (name, step)
            if "checkout" in step.get("uses", ""):
                assert step["with"]["persist-credentials"] is False, name
    audited = [
        step["run"] for step in workflows["audit.yml"]["jobs"]["pip-audit"]["steps"] if "pip-audit -" in step.get("run", "")
    ]
    assert [command.split()[-1] for command in audited] == ["requirements.lock", "tests/requirements.lock"]
    assert "github.event_name == 'schedule' && '1'" in (ROOT / ".github/workflows/tests.yml").read_text()  # the long form
