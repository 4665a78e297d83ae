"""Recipes as jobs of a cluster: a real Slurm of one node, and what Kubernetes would be asked for."""

import http.server
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from conftest import BIN, ROOT
from test_pipeline import EXPERIMENTS, SMOKE, copied  # noqa: F401

from csglib import runs

TWO = EXPERIMENTS | {
    "profiles": EXPERIMENTS["profiles"] | {"smoke": EXPERIMENTS["profiles"]["smoke"] | {"recipe": SMOKE | {"epochs": 1}}},
    "experiments": {"std": {"method": "standard"}, "matched": {"method": "matched"}},
    "pages": EXPERIMENTS["pages"] | {"table1": {"experiments": ["std", "matched"]}},
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
    words = ["--profile", "cluster/slurm", *quick, "--config", "profile=smoke", "build=build"]
    path = f"{slurm.parent / 'bin'}{os.pathsep}{BIN}{os.pathsep}{os.environ['PATH']}"
    code, out = snakemake(book, *words, SLURM_CONF=str(slurm), PATH=path)
    assert code == 0, out[-3000:]
    trained = [runs.read(folder) for folder in sorted((book / "build/runs").iterdir())]
    assert {run.recipe.method for run in trained} == {"standard", "matched"}
    told = subprocess.run(
        ["scontrol", "show", "jobs", "--oneliner"], env=os.environ | {"SLURM_CONF": str(slurm)}, capture_output=True, text=True
    )
    jobs = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in told.stdout.splitlines()]
    assert len(jobs) == 2
    for job in jobs:
        assert (job["JobState"], job["TresPerJob"], job["NumCPUs"]) == ("COMPLETED", "gres:gpu:1", "8"), job
    first, second = sorted(jobs, key=lambda job: job["StartTime"])
    assert second["StartTime"] >= first["EndTime"]  # there is one GPU, and all else for both


KUBERNETES = ["--profile", "cluster/kubernetes", "--config", "profile=smoke", "build=build"]


class Api(http.server.BaseHTTPRequestHandler):
    """As much of a Kubernetes as the executor asks of one: a job is noted, and its command run as its pod would run it."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/jobs"):
            container = body["spec"]["template"]["spec"]["containers"][0]
            folder = tempfile.mkdtemp(dir=self.server.pods)  # the empty folder that a pod has
            pod = subprocess.Popen([*container["command"], *container["args"]], cwd=folder)
            self.server.jobs[body["metadata"]["name"]] = body, pod
        self.answer(body)

    def do_GET(self):
        if "/jobs/" in self.path:
            code = self.server.jobs[self.path.split("/jobs/")[1].split("/")[0]][1].poll()
            told = {"active": 1} if code is None else {"failed": 1} if code else {"succeeded": 1}
            return self.answer({"metadata": {}, "status": told})
        self.answer({"items": []})

    def do_DELETE(self):
        self.answer({})

    def answer(self, value: dict) -> None:
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def kubernetes(tmp_path):
    """An Api, and the KUBECONFIG that leads to it."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        server.jobs, server.pods = {}, tmp_path
        address = f"http://127.0.0.1:{server.server_port}"
        config = {"clusters": [{"name": "a", "cluster": {"server": address}}], "users": [{"name": "a", "user": {}}]}
        config |= {"contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}], "current-context": "a"}
        (tmp_path / "kube.yaml").write_text(yaml.safe_dump(config))
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield server, str(tmp_path / "kube.yaml")
        server.shutdown()


def test_a_dry_run_for_kubernetes_asks_for_a_gpu_for_each_recipe_and_makes_no_page_there(book):
    needs("kubernetes")
    code, out = snakemake(book, "--dry-run", *KUBERNETES, PWD=str(book))
    assert code == 0, out[-3000:]
    assert out.count("rule train:") == out.count("gpu=1, gpu_manufacturer=nvidia") == 2
    assert "rule notebook:" not in out and not (book / "build/runs").exists()


@pytest.mark.long
def test_a_job_of_kubernetes_brings_its_run_back_to_the_clone(book, kubernetes):
    needs("kubernetes")
    if not shutil.which("rsync"):
        pytest.skip("rsync is not here, with which the storage copies: apt-get install rsync")
    server, config = kubernetes
    book = book.rename(book.with_name("book"))  # Snakemake passes a storage's prefix without quotes
    (book / ".venv/bin").mkdir(parents=True)  # as on the volume
    for name, does in {"python": f'exec {BIN}/python "$@"', "csglib": f'exec {BIN}/csglib "$@"', "pip": "true"}.items():
        (book / ".venv/bin" / name).write_text(f"#!/bin/sh\n{does}\n")  # what pip would install is here
        (book / ".venv/bin" / name).chmod(0o755)
    code, out = snakemake(book, *KUBERNETES, PWD=str(book), KUBECONFIG=config)
    assert code == 0, out[-3000:]
    assert len(server.jobs) == 2
    for manifest, _ in server.jobs.values():
        pod = manifest["spec"]["template"]["spec"]
        asked = pod["containers"][0]["resources"]
        assert asked["requests"]["nvidia.com/gpu"] == asked["limits"]["nvidia.com/gpu"] == "1"
        assert asked["limits"]["cpu"] == "8000m" and asked["limits"]["memory"] == "16000M"
        assert {"name": "csglib", "mountPath": str(book)} in pod["containers"][0]["volumeMounts"]
        assert {"name": "csglib", "persistentVolumeClaim": {"claimName": "csglib"}} in pod["volumes"]
        assert pod["restartPolicy"] == "Never" and pod["tolerations"][0]["key"] == "nvidia.com/gpu"
    trained = [runs.read(folder) for folder in sorted((book / "build/runs").iterdir())]
    assert {run.recipe.method for run in trained} == {"standard", "matched"}


@pytest.mark.parametrize(
    "words, said",
    [
        (["CLUSTER=nowhere"], 'no cluster "nowhere": use slurm or kubernetes'),
        (["CLUSTER=slurm"], "profile quick trains nothing"),
    ],
)
def test_a_cluster_or_profile_that_cannot_train_is_refused_in_a_sentence(words, said):
    done = subprocess.run(["make", "-o", ".venv/cluster", "recipes", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and f"csglib: {said}" in done.stderr
