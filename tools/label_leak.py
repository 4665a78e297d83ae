"""Train CSG and standard networks on random and on true labels, and see what the gated path makes of them:
data/measured/label-leak.json.

    python tools/label_leak.py [SEEDS]

The images are the embedded sample's.  Random labels are the sample's own, shuffled among its training images and among its test
images, anew for each seed: every class keeps its number of images, and no label says anything of its image.
"""

import dataclasses
import hashlib
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from csgbook import measured
from csgbook.evidence import leak
from csglib import data
from csglib.analysis import metrics
from csglib.data.images import Dataset
from csglib.recipe import Recipe
from csglib.runs import Run, provenance
from csglib.training import trainer

LABELS = ("random", "true")
METHODS = ("csg", "standard")
NET, EPOCHS, PRECISION = "resnet8", 30, "float32"  # a minute a training on one core, native everywhere


def relabelled(seed: int) -> Dataset:
    """The sample with its labels shuffled, within the training and within the test images."""
    sample = data.load("cifar10-mini")
    parts = [sample.train, sample.test]
    train_, test = (
        dataclasses.replace(part, labels=metrics.shuffled(part.labels, 2 * seed + i)) for i, part in enumerate(parts)
    )
    digest = hashlib.sha256(sample.digest.encode() + train_.labels.numpy().tobytes() + test.labels.numpy().tobytes())
    return dataclasses.replace(sample, name=f"cifar10-mini-random-{seed}", train=train_, test=test, digest=digest.hexdigest())


def recipe(labels: str, method: str, seed: int) -> Recipe:
    dataset = f"cifar10-mini-random-{seed}" if labels == "random" else "cifar10-mini"
    return Recipe(dataset=dataset, net=NET, method=method, epochs=EPOCHS, seed=seed, precision=PRECISION)


def entry(labels: str, run: Run) -> dict:
    """What is kept of one training; a standard network is masked by the classes whose images excite its filters most."""
    r = run.readout
    matrix = metrics.own_filters(r) if r.gate is None else r.gate
    kept = ("epoch", "path", "train_accuracy", "test_accuracy", "test_accuracy_gated")
    return {
        "labels": labels,
        "recipe": run.recipe.changed() | {"method": run.recipe.method},
        "seed": run.recipe.seed,
        "data_digest": run.provenance["data_digest"],
        "model": measured.weights(run),
        "images": len(r.labels),
        "rows": dataclasses.asdict(leak.measure(r, matrix)),
        "mis": run.metrics["mis"],
        "mis_null": run.metrics["mis_null"],
        "history": [{name: row[name] for name in kept if name in row} for row in run.history],
    }


if __name__ == "__main__":
    began, found = time.perf_counter(), []
    here = provenance.here(torch.device("cpu"))  # taken at the start: the files may change while this runs
    seeds = range(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
    for seed in seeds:
        data.DATASETS[f"cifar10-mini-random-{seed}"] = partial(relabelled, seed)
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            for labels in LABELS:
                for method in METHODS:
                    r = recipe(labels, method, seed)
                    found.append(entry(labels, trainer.train(r, Path(folder) / r.name, "cpu", every=EPOCHS)))
                    print(r.name, found[-1]["rows"], flush=True)
    made = {name: here[name] for name in ("commit", "dirty", "hardware")} | {"seconds": round(time.perf_counter() - began)}
    measured.write("label-leak", {"classes": len(data.CLASSES), "trainings": found} | made)
