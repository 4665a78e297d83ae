"""A training that takes a second, for tests that kill it; a process of its own, without the checks of types.

python tests/trainings.py OUT [fast]           train once, or go on; with the fast loop
python tests/trainings.py OUT KILLS SEED       kill it at KILLS random moments, finish it each time, compare; print JSON
"""

import dataclasses
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from csglib import data, networks, runs
from csglib.recipe import Recipe
from csglib.training import trainer

FILES = sorted([*runs.FILES, "provenance.json"])
RECIPE = Recipe(dataset="tiny", net="small", epochs=4, cycle="g", batch_size=64, lr=0.05, precision="float32")


def small(num_classes: int) -> networks.Split:
    features = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU())
    return networks.Split(features, nn.Linear(16, num_classes))


def tiny() -> data.Dataset:
    mini = data.load("cifar10-mini")
    train_, test = (data.Images(p.images[:n], p.labels[:n]) for p, n in ((mini.train, 256), (mini.test, 100)))
    return data.Dataset("tiny", mini.classes, train_, test, "0" * 64)


def prepare() -> None:
    torch.set_num_threads(1)  # so that a fork has no threads to miss
    dataset = tiny()
    data.DATASETS["tiny"] = lambda: dataset
    networks.NETS["small"] = small


def once(out: Path, loop: str = "plain") -> None:
    checkpoint = runs.part(out) / "checkpoint.safetensors"
    if checkpoint.exists():
        with safe_open(checkpoint, "pt") as f:
            print("resumed from epoch", len(json.loads(f.metadata()["history"])), flush=True)
    if not (out / "provenance.json").exists():
        trainer.train(dataclasses.replace(RECIPE, loop=loop), out, "cpu")


def fork(out: Path) -> int:
    if pid := os.fork():
        return pid
    os.environ["TQDM_DISABLE"] = "1"
    code = 1
    try:
        once(out)
        code = 0
    finally:
        os._exit(code)


def bits(out: Path) -> list[bytes]:
    return [(out / name).read_bytes() for name in ("model.safetensors", "readout.safetensors", "metrics.json")]


def whole_or_absent(out: Path) -> None:
    """A stop leaves nothing under the run's own name, or a whole run and nothing else."""
    if out.exists():
        assert sorted(p.name for p in out.iterdir()) == FILES, sorted(out.iterdir())
        _ = runs.read(out).readout


def kill_often(folder: Path, kills: int, seed: int) -> dict:
    rng, done, finished = random.Random(seed), 0, 0
    folder.mkdir(parents=True)
    started = time.monotonic()
    assert os.waitpid(fork(folder / "whole"), 0)[1] == 0
    seconds, expected = time.monotonic() - started, bits(folder / "whole")
    while done < kills:
        out = folder / f"killed-{finished}"
        while not out.exists():
            pid = fork(out)
            time.sleep(rng.uniform(0, 0.7 * seconds))
            os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
            assert status in (0, signal.SIGKILL), status
            done += status == signal.SIGKILL and done < kills
            whole_or_absent(out)
            if done == kills:
                assert os.waitpid(fork(out), 0)[1] == 0
        assert bits(out) == expected
        finished += 1
    left = sorted(p.name for p in folder.iterdir())
    assert left == sorted(["whole", *(f"killed-{i}" for i in range(finished))]), left
    return {"kills": done, "finished": finished, "seconds_uninterrupted": round(seconds, 2)}


if __name__ == "__main__":
    prepare()
    if len(sys.argv) <= 3:
        once(Path(sys.argv[1]), *sys.argv[2:])
    else:
        print(json.dumps(kill_often(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
