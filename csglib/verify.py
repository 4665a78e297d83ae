"""Does a run say of itself what its files give?  Digests tell of accidents; this recomputes, so that a number made up,
with its digest, is found too."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from csglib import Problem, data, measured, metrics, train
from csglib.data import ROOT, Images
from csglib.runs import AGAIN, Recipe, Run

TOLERANCE = 0.02  # of the features' largest span; measured 1.5e-5 on the processors that trained, TF32 takes 1e-3


def verify(run: Run) -> None:
    """Refuse a run whose history is not its training, whose metrics, or what a tool measured of it, are not its readout's, or
    whose readout is not its weights'.

    The last is tried on those of its images that the repository holds: of CIFAR-10's 10,000 test images 1,000.
    """
    check_history(run)
    check_metrics(run)
    check_measured(run)
    if known := images_of(run.recipe):
        check_readout(run, *known)


def check_history(run: Run) -> None:
    path = run.path / "history.jsonl"
    if len(run.history) != run.recipe.epochs or any(row["epoch"] != i for i, row in enumerate(run.history)):
        raise Problem(f"{path} does not tell the {run.recipe.epochs} epochs of the recipe, one by one: {AGAIN}")
    m = train.method(run.recipe)
    for row in run.history:
        if row["path"] != m.path(run.recipe, row["epoch"]):
            raise Problem(f"{path} has epoch {row['epoch']} on another path than the recipe's: {AGAIN}")
        if "commit" in row and row["commit"] != run.provenance["commit"] and run.provenance["dirty"] is False:
            raise Problem(f"{path} has epochs of another commit than provenance.json, which calls the run clean: {AGAIN}")


def check_metrics(run: Run) -> None:
    """What this csglib computes is what is published; of accuracies one image may differ with the order of a sum."""
    again = metrics.evaluate(run.readout)
    for name, told in run.metrics.items():
        ours = again.get(name)
        count = name.startswith("acc")
        slack = 1.5 / len(run.readout.labels) if count else 1e-6
        if (told is None) != (ours is None) or (told is not None and abs(told - ours) > slack):
            raise Problem(f"{run.path / 'metrics.json'} says {name} {told}, its readout gives {ours}: {AGAIN}")


def check_measured(run: Run) -> None:
    """What tools measured of the run, as far as its readout knows: how many images are right, how many there are of what.

    A share of counted things is a whole number of them, which a number made up is not; one that is made up with care can be.
    """
    N, K = run.readout.features.shape
    right = run.readout.logits.argmax(1) == run.readout.labels
    for kind in measured.OF_RUNS:
        entry, tool = measured.of(kind, run), measured.TOOLS[kind]
        for what, share, of, expected in shares(kind, entry, right, K) if entry else ():
            count = share * of
            if of < 1 or abs(count - (round(count) if expected is None else expected)) > (1.5 if what == "accuracy" else 1e-3):
                raise Problem(
                    f"{measured.FOLDER / kind}.json says {what} {share} of {run.recipe.name}, which is no number of its {of} "
                    f"that the run could give: restore it with git, or remove it and run `python {tool}`"
                )


def shares(kind: str, entry: dict, right: Bool[Tensor, " N"], K: int) -> Iterator[tuple[str, float, int, int | None]]:
    """Name, share, of how many things, and of how many of them it must be the share where that is known."""
    if kind == "detection":
        n = entry["images"]
        hits = int(right[:n].sum())
        yield "accuracy", entry["accuracy"], n if n <= len(right) else 0, hits
        for name, attack in entry["attacks"].items():
            yield f"turned by {name}", attack["turned"], round(entry["accuracy"] * n), attack["used"]
            for size, errors in attack["errors"].items():
                for error in errors:  # half of the training samples are images, all others test twice
                    yield f"error under {name}", error, 2 * (attack["used"] - int(size) // 2), None
    else:
        for crop, scores in entry["crops"].items():
            n = scores["objects"]
            for name in ("ap30", "box_accuracy", "max_box_accuracy"):
                yield f"{crop} cam {name}", scores["cam"][name], n, None
            yield f"{crop} chance box_accuracy", scores["chance"]["box_accuracy"], n, None
            for name in {"activation", "firing"} & set(scores):
                yield f"{name} zero_thresholds", scores[name]["zero_thresholds"], K, None
                yield f"{name} filters", sum(scores[name]["filters"]) / K, K, K
            if "gradient" in scores:
                yield "gradient ap20", scores["gradient"]["ap20"], scores["gradient"]["objects"], None


def images_of(recipe: Recipe) -> tuple[Images, Int[Tensor, " n"]] | None:
    """Images of the repository that the run was read out on, and where they stand in its readout; None if there are none."""
    if recipe.dataset == "cifar10-mini":
        images = train.load(recipe).test
        return images, torch.arange(len(images))
    if recipe.dataset != "cifar10" or recipe.holdout:  # the sample's training images are the first ones, a holdout the last
        return None
    place = np.fromfile(ROOT / "data" / "cifar10-mini" / "test.index", "<u2").astype(np.int64)
    return data.load("cifar10-mini").test, torch.from_numpy(place)


def check_readout(run: Run, images: Images, place: Int[Tensor, " n"]) -> None:
    path, stored = run.path / "readout.safetensors", run.readout
    if int(place.max()) >= len(stored.labels) or not torch.equal(stored.labels[place], images.labels):
        raise Problem(f"{path} has other labels than the images of {run.recipe.dataset}: {AGAIN}")
    fresh = train.read_out(train.network(run), None, images).features
    span = (stored.features.amax(0) - stored.features.amin(0)).max()
    if fresh.shape[1] != stored.features.shape[1] or (fresh - stored.features[place]).abs().max() > TOLERANCE * span:
        raise Problem(f"{path} is not what the weights in model.safetensors give on the embedded sample: {AGAIN}")
