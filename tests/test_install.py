"""What an installation promises: one lock for pip, conda and Binder; one version; no address of an index."""

import re
import subprocess
import sys
import tomllib

import yaml

import csglib
from csglib.data import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
PINNED = dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)(?:\[[a-z,]+\])?==([^ ;\\]+)", LOCK, re.M))


def test_the_lock_pins_every_dependency_with_hashes_and_names_no_address():
    wanted = PROJECT["dependencies"] + [d for extra in PROJECT["optional-dependencies"].values() for d in extra]
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


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == csglib.__version__ == citation["version"]
    assert f"## {csglib.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_training_and_metrics_need_no_notebook_tools():
    """A GPU machine may have torch and little else."""
    code = """
import sys
for name in ("IPython", "ipywidgets", "matplotlib", "pandas", "tabulate", "papermill", "snakemake", "tyro", "sklearn",
             "jsonschema"):
    sys.modules[name] = None
import csglib.train, csglib.metrics, csglib.claims, csglib.experiments
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
