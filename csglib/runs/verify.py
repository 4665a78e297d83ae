"""Does a run say of itself what its files give?  Digests tell of accidents; this recomputes, so that a number made up,
with its digest, is found too."""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from csglib import data, files, methods, runs
from csglib.analysis import metrics
from csglib.analysis.information import entropy
from csglib.data.images import Images
from csglib.errors import Damaged, Problem
from csglib.paths import ROOT
from csglib.runs import AGAIN, Run, inference, schema

TOLERANCE = 0.02  # of the features' largest span; measured 1.5e-5 on the processors that trained, TF32 takes 1e-3


MOST = 1000  # images whose readout is recomputed, evenly spaced: seconds for a ResNet-20, half a minute for larger networks


def verify(run: Run) -> str:
    """What was recomputed, and what was not, in one line.

    The readout is recomputed on up to 1,000 of the run's test images: of CIFAR-10 those that the repository holds, else those
    of its own data set, where that is here and as it was.

    Raises:
        Problem: For a run whose weights are not finite, whose history is not its training, whose metrics are not its
            readout's, or whose readout is not its weights'.
    """
    check_history(run)
    if any(not (run.path / name).exists() for name in run.left_out):
        return check_counts(run)
    told = ["digests", "finite weights", "history", "metrics", *check_metrics(run)]
    N, known = len(run.readout.labels), images_of(run)
    readout = f"not recomputed, {known}" if isinstance(known, str) else f"recomputed on {len(known[1]):,} of {N:,} test images"
    if not isinstance(known, str):
        check_readout(run, *known)
    check_drift(run, N)
    return f"verified: {', '.join(told)}; readout {readout}"


def check_counts(run: Run) -> str:
    """Of a run without weights and readout: whether its shares are whole numbers of its test images, and agree.

    What nobody can recompute is said: the mutual information, and that the weights gave any of it.
    """
    path, N, m = run.path / "metrics.json", run.provenance.get("test_images"), run.metrics
    if N is None:
        raise Problem(
            f"{run.path / 'provenance.json'} leaves out the readout and does not tell how many images it had: {AGAIN}"
        )
    for name in ("accuracy", "acc1", "acc2", "acc3", "removed"):
        share = m.get(name)
        if share is not None and abs(share * N - round(share * N)) > 1e-6 * N:
            raise Problem(f"{path} says {name} {share}, which is no number of its {N} test images: {AGAIN}")
    if m["acc1"] != m["accuracy"] or not m["mis_null"] <= max(m["mis"], 0.02) or not m["mis_normalised"] <= 1:
        raise Problem(
            f"{path} contradicts itself: acc1 is the accuracy, and MIS lies above its chance level and below its bound: {AGAIN}"
        )
    check_drift(run, N)
    left = " and ".join(run.left_out)
    kept = f"; {check_sample(run)}" if (run.path / schema.SAMPLE).exists() else ""
    told = f"accuracies as numbers of {N:,} test images; {left} left out, so nothing recomputed{kept}"
    return f"verified: digests, history, {told}"


def check_sample(run: Run) -> str:
    """How many images' readout stayed.  Raises Damaged where its accuracy is not that of the whole, within five deviations."""
    n, told = len(run.sample.labels), run.metrics["accuracy"]
    here = metrics.accuracy(run.sample.logits, run.sample.labels)
    if abs(here - told) > 5 * (told * (1 - told) / n) ** 0.5 + 1 / n:
        raise Damaged(f"{run.path / schema.SAMPLE} has accuracy {here:.4f} where metrics.json says {told:.4f}: {AGAIN}")
    return f"of {n:,} images the readout stayed, with accuracy {here:.4f}"


def check_drift(run: Run, N: int) -> None:
    if runs.drifted(run.history, run.metrics, N):
        raise Damaged(
            f"{run.path / 'metrics.json'} says accuracy {run.metrics['accuracy']}, the last epoch in history.jsonl "
            f"{run.history[-1].get('test_accuracy')}: {AGAIN}"
        )


def check_history(run: Run) -> None:
    """Raises Damaged where history.jsonl is not the recipe's training, epoch by epoch."""
    path = run.path / "history.jsonl"
    if len(run.history) != run.recipe.epochs or any(row["epoch"] != i for i, row in enumerate(run.history)):
        raise Damaged(f"{path} does not tell the {run.recipe.epochs} epochs of the recipe, one by one: {AGAIN}")
    m = methods.method(run.recipe)
    for row in run.history:
        if row["path"] != m.path(run.recipe, row["epoch"]):
            raise Damaged(f"{path} has epoch {row['epoch']} on another path than the recipe's: {AGAIN}")
        if "commit" in row and row["commit"] != run.provenance["commit"] and run.provenance["dirty"] is False:
            raise Damaged(f"{path} has epochs of another commit than provenance.json, which calls the run clean: {AGAIN}")


def check_metrics(run: Run) -> list[str]:
    """What this csglib computes is what is published; of accuracies one image may differ with the order of a sum.

    Runs without null_normalised were written when mis_normalised was divided by H(1/C) whatever the classes' sizes: theirs
    is compared with that, and where it makes a difference the value by each class's own entropy is told.
    """
    again, N = metrics.evaluate(run.readout), len(run.readout.labels)
    notes = []
    if "null_normalised" not in run.metrics:
        own, again["mis_normalised"] = again["mis_normalised"], again["mis"] / entropy(1 / len(run.readout.bias))
        if abs(own - again["mis_normalised"]) > 1e-6:
            notes = [f"mis_normalised as MIS / H(1/C), which is {own:.4f} by each class's own entropy"]
    for name, told in run.metrics.items():
        ours = again.get(name)
        count = name.startswith("acc")
        slack = 1.5 / N if count else 1e-6
        if (told is None) != (ours is None) or (told is not None and abs(told - ours) > slack):
            raise Damaged(f"{run.path / 'metrics.json'} says {name} {told}, its readout gives {ours}: {AGAIN}")
    return notes


def images_of(run: Run) -> tuple[Images, Int[Tensor, " n"]] | str:
    """Images that the run was read out on, and where they stand in its readout; or why there are none."""
    recipe = run.recipe
    if recipe.dataset == "cifar10" and not recipe.holdout:
        place = np.fromfile(ROOT / "data" / "cifar10-mini" / "test.index", "<u2").astype(np.int64)
        return data.load("cifar10-mini").test, torch.from_numpy(place)
    try:
        dataset = data.of(recipe)
    except Problem as missing:
        if recipe.dataset == "cifar10-mini":
            raise
        return f"since its images cannot be read here ({files.short(str(missing), 200)})"
    if dataset.digest != run.provenance["data_digest"]:
        return f"since {recipe.dataset} has other images now than those it was trained on"
    N = len(dataset.test)
    place = torch.arange(N) if N <= MOST else torch.linspace(0, N - 1, MOST).long()
    return dataset.test.take(place), place


def check_readout(run: Run, images: Images, place: Int[Tensor, " n"]) -> None:
    """Raises Damaged where a readout made anew from the weights differs by more than rounding, or has other labels."""
    path, stored = run.path / "readout.safetensors", run.readout
    if int(place.max()) >= len(stored.labels) or not torch.equal(stored.labels[place], images.labels):
        raise Damaged(f"{path} has other labels than the images of {run.recipe.dataset}: {AGAIN}")
    fresh = inference.read_out(run.network(), None, images).features
    span = (stored.features.amax(0) - stored.features.amin(0)).max()
    if fresh.shape[1] != stored.features.shape[1] or not (fresh - stored.features[place]).abs().max() <= TOLERANCE * span:
        raise Damaged(f"{path} is not what the weights in model.safetensors give on {len(place):,} of its images: {AGAIN}")
