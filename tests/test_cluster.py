"""Recipes as jobs of a cluster: a real Slurm of one node, and what Kubernetes would be asked for."""

import os
import re
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from conftest import BIN, ROOT
from test_pipeline import EXPERIMENTS, copied  # noqa: F401

from csglib import runs

TWO = EXPERIMENTS | {
    "experiments": {"std": {"method": "standard"}, "csg": {"method": "csg"}},
    "pages": EXPERIMENTS["pages"] | {"table1": {"experiments": ["std", "csg"]}},
}


@pytest.fixture
def book(copied) -> Path:  # noqa: F811
    """The copy with two recipes, so that two jobs ask for a GPU at once, and the profiles."""
    shutil.copytree(ROOT / "cluster", copied / "cluster")
    (copied / "book/experiments.yml").write_text(yaml.safe_dump(TWO))
    return copied


def needs(cluster: str) -> None:
    if not find_spec(f"snakemake_executor_plugin_{cluster}"):
        pytest.skip(f"Snakemake's executor for {cluster} is not here: pip install --requirement cluster/requirements.lock")


def snakemake(root: Path, *words: str, **environment: str) -> tuple[int, str]:
    """As the Makefile starts it with CLUSTER; the profile's name is among the words."""
    command = [BIN / "snakemake", "--nolock", "--rerun-triggers", "mtime", "input", "--rerun-incomplete", *words]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    ours = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": path, "TQDM_DISABLE": "1"}
    done = subprocess.run(
        command, cwd=root, env=os.environ | ours | environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return done.returncode, done.stdout


@pytest.fixture
def slurm():
    """SLURM_CONF of a Slurm that runs as long as the test."""
    if not shutil.which("slurmctld"):
        pytest.skip("slurmctld is not here: apt-get install slurm-wlm munge")
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # the path of a socket is short
    script = ROOT / "tests" / "one_node_slurm.sh"
    try:
        with (folder / "said").open("w+") as said:  # no pipe: the daemons would hold it open
            code = subprocess.run([script, "start", folder], stdout=said, stderr=said).returncode
        assert code == 0, (folder / "said").read_text()
        yield folder / "slurm.conf"
    finally:
        subprocess.run([script, "stop", folder], check=True)
        shutil.rmtree(folder)


@pytest.mark.long
def test_slurm_trains_each_recipe_in_a_job_of_its_own_that_waits_for_the_gpu(book, slurm):
    needs("slurm")
    quick = ["--slurm-init-seconds-before-status-checks", "2", "--slurm-status-command", "squeue"]
    words = ["--profile", "cluster/slurm", *quick, "build/smoke/results.json", "--config", "profile=smoke", "build=build"]
    path = f"{slurm.parent / 'bin'}{os.pathsep}{BIN}{os.pathsep}{os.environ['PATH']}"
    code, out = snakemake(book, *words, SLURM_CONF=str(slurm), PATH=path)
    assert code == 0, out[-3000:]
    trained = [runs.read(folder) for folder in sorted((book / "build/runs").iterdir())]
    assert {run.recipe.method for run in trained} == {"standard", "csg"}
    told = subprocess.run(
        ["scontrol", "show", "jobs", "--oneliner"], env=os.environ | {"SLURM_CONF": str(slurm)}, capture_output=True, text=True
    )
    jobs = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in told.stdout.splitlines()]
    assert len(jobs) == 2  # results.json was made where the command was given
    for job in jobs:
        assert (job["JobState"], job["TresPerJob"], job["NumCPUs"]) == ("COMPLETED", "gres:gpu:1", "8"), job
    first, second = sorted(jobs, key=lambda job: job["StartTime"])
    assert second["StartTime"] >= first["EndTime"]  # there is one GPU, and all else for both
