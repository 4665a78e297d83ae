"""What comes of a training: each epoch's test numbers, a divergence that stops it, and the run that is written."""

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from csglib import files, networks, runs
from csglib.analysis.metrics import accuracy, evaluate
from csglib.data.images import Dataset, Pictures
from csglib.errors import Diverged, Problem
from csglib.methods import Gate
from csglib.readout import Readout
from csglib.recipe import Recipe
from csglib.runs import packing
from csglib.runs.inference import read_out
from csglib.training import distributed

DIVERGED = 1e6  # of the mean training loss, where chance is ln C.  A first test loss of 1e5 is none: its statistics are young


def stop_if_diverged(folder: Path, history: list[dict]) -> None:
    """Raises Problem where the last epoch's numbers are not finite or its loss is absurd; report.json keeps them."""
    row = history[-1]
    bad = [name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
    if not bad and row["train_loss"] > DIVERGED:
        bad = ["train_loss"]
    if not bad:
        return
    if distributed.rank() == 0:
        rows = [{k: str(v) if k in bad else v for k, v in r.items()} for r in history]  # NaN is no JSON
        files.write(folder / "report.json", json.dumps({"stopped_by": bad, "history": rows}, indent=2) + "\n")
    raise Diverged(
        f"{bad[0]} of epoch {row['epoch']} is {row[bad[0]]:g}: lower --lr or --gate-lr, with a new --out "
        f"({folder} keeps the epochs before and report.json)"
    )


def test_row(net: networks.Split, gate: Gate | None, images: Pictures, precision: str) -> dict[str, float]:
    """Loss and accuracy on the test images, of both paths: for the curves alone, nothing is chosen by them."""
    readout = read_out(net, gate, images.take(distributed.share(len(images))), precision)
    y = readout.labels
    row = {"test_loss": F.cross_entropy(readout.logits, y).item(), "test_accuracy": accuracy(readout.logits, y)}
    if gate is not None:
        gated = readout.masked(readout.gate[y])
        row |= {"test_loss_gated": F.cross_entropy(gated, y).item(), "test_accuracy_gated": accuracy(gated, y)}
    return {name: distributed.mean(value, len(y)) for name, value in row.items()}


def finish(
    recipe: Recipe,
    code: dict,
    out: Path,
    dataset: Dataset,
    net: networks.Split,
    gate: Gate | None,
    gates: Sequence[Float[Tensor, "C K"]],
    history: list[dict],
) -> None:
    """Round the weights as they are stored, read the rounded network out, and write the run: what is published was measured.

    Of a network that started from ImageNet's weights those are left out that did not change.  Raises Problem, and publishes
    nothing, where a weight is not finite or the accuracy is not that of the last epoch.
    """
    start = networks.build(recipe.net, len(dataset.classes), "imagenet").state_dict() if recipe.weights == "imagenet" else {}
    again = f"lower --lr, with a new --out ({runs.part(out)} keeps the training)"
    weights = {}
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name in start and torch.equal(tensor.cpu(), start[name]):
                continue
            if not tensor.isfinite().all():
                raise Diverged(f"{name} of the trained network is not finite, the training has diverged: {again}")
            weights[name] = packing.rounded(tensor.cpu()).contiguous()
            tensor.copy_(weights[name])
    readout = read_out(net, gate, dataset.test, gates=gates)
    if not readout.logits.isfinite().all():
        raise Diverged(f"the trained network's logits are not finite, the training has diverged: {again}")
    packed = packing.pack(Readout(**{name: t.cpu() for name, t in readout.tensors().items()}))
    metrics = evaluate(packing.unpack(packed))
    if runs.drifted(history, metrics, len(dataset.test)):
        raise Problem(
            f"the network as it would be stored has accuracy {metrics['accuracy']:.4f}, in the last epoch it had "
            f"{history[-1]['test_accuracy']:.4f}: choose --precision float32, or {again}"
        )
    seconds = sum(row["seconds"] for row in history)
    trained = sum(row["path"] != "skipped" for row in history)
    images = len(dataset.train) // recipe.batch_size * recipe.batch_size * trained
    made = {
        "key": recipe.key,
        "seed": recipe.seed,
        "data_digest": dataset.digest,
        "device": str(readout.features.device),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "train_seconds": round(seconds, 1),
        "images_per_second": round(images / seconds, 1),
    }
    runs.finish(out, history, weights, packed, metrics, made | code)
