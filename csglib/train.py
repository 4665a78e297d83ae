"""Recipe in, run out: the training loop, its precision, its checkpoints.

Images stay uint8 on the device and are augmented there.  On one CPU, with equal versions and as many threads, the same recipe
gives the same weights bit for bit, interrupted or not: all randomness of an epoch comes from (seed, epoch).
"""

import dataclasses
import json
import math
import os
import sys
import time
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from tqdm.auto import tqdm

from csglib import Problem, data, files, nets, runs
from csglib.checkpoint import Checkpoint
from csglib.data import Dataset, Images
from csglib.gate import ClassGate, density
from csglib.methods import Gate, method
from csglib.metrics import accuracy, class_means, cluster, evaluate
from csglib.runs import Readout, Recipe, Run

DIVERGED = 1e6  # of the mean training loss, where chance is ln C.  A first test loss of 1e5 is none: its statistics are young


def train(recipe: Recipe, out: Path | str, device: str | None = None, every: int = 1) -> Run:
    """Train the recipe and write its run folder `out`.  Interrupted and called again, it goes on after its last checkpoint.

    There is a checkpoint after each `every` epochs and after the last.  One process alone may train into a folder.  Raises
    Problem where recipe, data or folder are not what they should be, or a loss leaves the finite numbers.
    """
    out, device = Path(out), pick_device(device)
    if every < 1:
        raise Problem(f"a checkpoint every {every} epochs cannot be: use 1, 2, 3, ...")
    recipe, reason = settle_precision(recipe, device)
    m = method(recipe)
    dataset = load(recipe)
    torch.manual_seed(recipe.seed)
    net = nets.build(recipe.net, len(dataset.classes), recipe.weights)
    nets.freeze(net, recipe.thaw)
    gate = m.gate(recipe, net)
    if recipe.batch_size > len(dataset.train):
        raise Problem(f"batch_size {recipe.batch_size} exceeds the {len(dataset.train)} training images: choose a smaller one")
    with files.locked(runs.reserve(out, recipe)):
        folder = runs.reserve(out, recipe)  # again, now that no other process can change it
        if (folder / "provenance.json").exists():  # stopped just before it got its name
            runs.publish(out)
            return runs.read(out)
        return go_on(recipe, reason, m, out, folder, dataset, net, gate, device, every)


def go_on(recipe, reason, m, out: Path, folder: Path, dataset: Dataset, net, gate, device: torch.device, every: int) -> Run:
    """From the last checkpoint, or the start, to the finished run."""
    dataset = dataset.to(device)
    net.to(device, memory_format=torch.channels_last)
    optimisers = [weights_optimiser(net, recipe)]
    if gate is not None:
        gate.to(device)
    if m.optimiser is not None:
        optimisers.append(m.optimiser(recipe, gate))
    state = Checkpoint(folder / "checkpoint.safetensors", net, gate, optimisers)
    history, gates, dirty = state.load()

    code = runs.provenance(device)  # taken at the start: the files may change while this runs
    if dirty or any(row.get("commit", code["commit"]) != code["commit"] for row in history):
        code["dirty"] = True  # no one commit makes this run
    steps = len(dataset.train) // recipe.batch_size
    hidden = bool(os.environ.get("TQDM_DISABLE"))  # tqdm itself reads it in a terminal, but not in a notebook
    print(f"{recipe.name}: {device}, {recipe.precision} ({reason})", file=sys.stderr)
    with tqdm(total=recipe.epochs * steps, initial=len(history) * steps, unit="step", mininterval=1, disable=hidden) as bar:
        for epoch in range(len(history), recipe.epochs):
            path = m.path(recipe, epoch)
            if path == "skipped":
                history.append({"epoch": epoch, "path": path, "seconds": 0.0})
                bar.update(steps)
                continue
            row = train_epoch(recipe, m, epoch, net, gate, optimisers, dataset.train, bar)
            row |= test_row(net, gate, dataset.test, recipe.precision) | {"commit": code["commit"]}
            history.append(row)
            if path in ("gated", "joint"):
                gates.append(gate.matrix.detach().clone())
            if bad := [name for name, v in row.items() if isinstance(v, float) and not math.isfinite(v)] or (
                ["train_loss"] if row["train_loss"] > DIVERGED else []
            ):
                told = [{k: str(v) if k in bad else v for k, v in r.items()} for r in history]  # NaN is no JSON
                files.write(folder / "report.json", json.dumps({"stopped_by": bad, "history": told}, indent=2) + "\n")
                raise Problem(
                    f"{bad[0]} of epoch {epoch} is {row[bad[0]]:g}: lower --lr or --gate-lr, with a new --out "
                    f"({folder} keeps the epochs before and report.json)"
                )
            if gates:  # before the first projection the gate is not in its feasible set
                row["density"] = density(gates[-1], projected=isinstance(gate, ClassGate) and recipe.gate_projection == "max")
            if (epoch + 1) % every == 0 or epoch + 1 == recipe.epochs:
                state.save(history, gates, bool(code["dirty"]))
    return finish(recipe, code | {"precision_reason": reason}, out, dataset, net, gate, gates, history)


def load(recipe: Recipe) -> Dataset:
    """The recipe's data; with a holdout, the last training images in place of the test images, which stay unseen."""
    dataset, n = data.load(recipe.dataset), recipe.holdout
    if not n:
        return dataset
    a = dataset.train
    while n < len(a) and a.groups is not None and a.groups[-n] == a.groups[-n - 1]:
        n += 1  # take the photograph whole
    if n >= len(a):
        raise Problem(f"holdout {recipe.holdout} leaves none of the {len(a)} training images: choose a smaller one")
    part = [Images(a.images[s], a.labels[s]) for s in (slice(-n), slice(-n, None))]
    return dataclasses.replace(dataset, train=part[0], test=part[1])


def train_epoch(recipe, m, epoch, net, gate, optimisers, images: Images, bar) -> dict:
    """One pass; returns its row of the history.  Sums stay on the device, read once an epoch on a GPU."""
    net.train()
    path = m.path(recipe, epoch)
    device = images.images.device
    generator = torch.Generator().manual_seed(1_000_003 * recipe.seed + epoch)
    torch.manual_seed(1_000_003 * recipe.seed + epoch)  # for methods that draw
    steps = len(images) // recipe.batch_size
    loss_sum = torch.zeros((), device=device)
    correct = torch.zeros((), device=device, dtype=torch.long)
    weights, *gates = optimisers
    started = time.perf_counter()
    for step, (x, y) in enumerate(data.batches(images, recipe.batch_size, generator)):
        for group in weights.param_groups:
            group["lr"] = learning_rate(recipe, (epoch + step / steps) / recipe.epochs)
        with autocast(device, recipe.precision):
            loss, logits = m.loss(recipe, epoch, net, gate, data.to_float(x), y)
        loss.backward()
        weights.step()
        weights.zero_grad()
        if path != "standard":  # the gate's optimiser and projection stay out of standard epochs
            for optimiser in gates:
                optimiser.step()
            if m.after_step is not None:
                m.after_step(recipe, gate)
        for optimiser in gates:
            optimiser.zero_grad()
        loss_sum += loss.detach()
        correct += (logits.argmax(1) == y).sum()
        if step % (20 if device.type == "cpu" else 100) == 0:  # a GPU has to stop for it
            shown = {"epoch": f"{epoch + 1}/{recipe.epochs} {path}", "loss": f"{loss.item():.3f}"}
            shown["accuracy"] = f"{correct.item() / ((step + 1) * recipe.batch_size):.3f}"
            if gate is not None and gate.matrix.detach().amax() == 1:  # the first projection has been made
                shown["density"] = f"{gate.matrix.detach().mean().item():.3f}"
            bar.set_postfix(shown, refresh=False)
        bar.update()
    return {
        "epoch": epoch,
        "path": path,
        "lr": learning_rate(recipe, epoch / recipe.epochs),
        "train_loss": loss_sum.item() / steps,
        "train_accuracy": correct.item() / (steps * recipe.batch_size),
        "seconds": round(time.perf_counter() - started, 3),
    }


def test_row(net, gate, images: Images, precision: str) -> dict:
    """Loss and accuracy on the test images, of both paths: for the curves alone, nothing is chosen by them."""
    readout = read_out(net, gate, images, precision)
    y = readout.labels
    row = {"test_loss": F.cross_entropy(readout.logits, y).item(), "test_accuracy": accuracy(readout.logits, y)}
    if gate is not None:
        gated = (readout.features * readout.gate[y]) @ readout.weight.T + readout.bias
        row |= {"test_loss_gated": F.cross_entropy(gated, y).item(), "test_accuracy_gated": accuracy(gated, y)}
    return row


@torch.no_grad()
def read_out(net: nets.Split, gate: Gate | None, images: Images, precision: str = "float32", gates=()) -> Readout:
    """The network's last layers on all images, in eval mode, ungated."""
    net.eval()
    device = images.images.device
    features = []
    for i in range(0, len(images), 500):
        with autocast(device, precision):
            features.append(net.pooled(data.to_float(images.images[i : i + 500])).float())
    a = torch.cat(features)
    W, b = net.head.weight, net.head.bias
    return Readout(
        features=a,
        labels=images.labels,
        weight=W.detach(),
        bias=b.detach(),
        gate=None if gate is None else gate.matrix.detach(),
        gates=torch.stack(list(gates)) if len(gates) else None,
    )


def finish(recipe, code: dict, out: Path, dataset: Dataset, net, gate, gates, history) -> Run:
    """Round the weights to float16, read the rounded network out, and write the run: what is published is what was measured.

    Of a network that started from ImageNet's weights those are left out that did not change.
    """
    start = nets.build(recipe.net, len(dataset.classes), "imagenet").state_dict() if recipe.weights == "imagenet" else {}
    weights = {}
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name in start and torch.equal(tensor.cpu(), start[name]):
                continue
            if tensor.is_floating_point():
                tensor.copy_(tensor.half())
            stored = tensor.half() if tensor.is_floating_point() else tensor
            weights[name] = stored.cpu().contiguous()
    readout = read_out(net, gate, dataset.test, gates=gates)
    if not readout.logits.isfinite().all():
        raise Problem("the weights leave the range of float16, in which runs are stored: lower --lr, with a new --out")
    packed = runs.pack(Readout(**{name: t.cpu() for name, t in readout.tensors().items()}))
    seconds = sum(row["seconds"] for row in history)
    trained = sum(row["path"] != "skipped" for row in history)
    images = len(dataset.train) // recipe.batch_size * recipe.batch_size * trained
    provenance = {
        "key": recipe.key,
        "seed": recipe.seed,
        "data_digest": dataset.digest,
        "device": str(readout.features.device),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "train_seconds": round(seconds, 1),
        "images_per_second": round(images / seconds, 1),
    }
    metrics = evaluate(runs.unpack(packed))
    runs.finish(out, history, weights, packed, metrics, provenance | code)
    return runs.read(out)


def weights_optimiser(net: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """SGD with Nesterov's momentum over what learns of the network; the gate is not among it, nor in its weight decay."""
    learning = [p for p in net.parameters() if p.requires_grad]
    return torch.optim.SGD(learning, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True, fused=True)


def learning_rate(recipe: Recipe, progress: float) -> float:
    """The weights' learning rate after a share `progress` in [0, 1) of the training, a pure function so that runs resume."""
    if recipe.lr_schedule == "steps":
        return recipe.lr * (1 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01)
    if progress < 0.3:  # the one-cycle policy of Smith and Topin with cosine ramps, as in torch's OneCycleLR
        return recipe.lr * (0.04 + 0.96 * (1 - math.cos(math.pi * progress / 0.3)) / 2)
    return recipe.lr * (1 + math.cos(math.pi * (progress - 0.3) / 0.7)) / 2


def autocast(device: torch.device, precision: str):
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def pick_device(name: str | None) -> torch.device:
    count = torch.cuda.device_count()
    known = ["cpu"] + ["cuda"] * (count > 0) + [f"cuda:{i}" for i in range(count)]
    if name is not None and name not in known:
        raise Problem(f"no device {name!r} here: choose one of {', '.join(known)}, or leave --device out")
    return torch.device(name or ("cuda" if count else "cpu"))


def settle_precision(recipe: Recipe, device: torch.device) -> tuple[Recipe, str]:
    """The recipe with its precision named, and the reason, for print and provenance."""
    if device.type == "cuda":
        native, why = torch.cuda.is_bf16_supported(including_emulation=False), f"{torch.cuda.get_device_name(device)}"
    else:
        native, why = cpu_has_bfloat16(), "this processor"
    verdict = f"{why} {'computes' if native else 'does not compute'} bfloat16 natively"
    if recipe.precision == "auto":
        return dataclasses.replace(recipe, precision="bfloat16" if native else "float32"), verdict
    return recipe, f"asked for; {verdict}"


def cpu_has_bfloat16() -> bool:
    """AVX-512 with bfloat16 or AMX: there bfloat16 doubles the images per second (measured 1,700 against 935 on 2 cores)."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch offers no public test
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)


def network(run: Run) -> nets.Split:
    """A run's trained network."""
    net = nets.build(run.recipe.net, len(run.readout.bias), run.recipe.weights)
    method(run.recipe).gate(run.recipe, net)  # a method may change the network
    start = net.state_dict() if run.recipe.weights == "imagenet" else {}  # what did not change is not stored
    try:
        net.load_state_dict(start | run.weights)
    except RuntimeError as error:
        told = files.short(str(error))
        raise Problem(f"{run.path / 'model.safetensors'} is not of {run.recipe.net} ({told}): {runs.AGAIN}") from None
    return net.to(memory_format=torch.channels_last)


def read_images(run: Run) -> Readout:
    """A run's readout made anew from its weights and the test images; equal to the stored one up to its rounding."""
    dataset = load(run.recipe)
    if run.recipe.dataset.startswith("folder:") and dataset.digest != run.provenance["data_digest"]:
        raise Problem(
            f"{run.path} was trained on other pictures than {run.recipe.dataset} has now: restore them, or train again"
        )
    readout = read_out(network(run), None, dataset.test)
    return dataclasses.replace(readout, gate=run.readout.gate, gates=run.readout.gates)


def sample(run: Run) -> UInt8[Tensor, "N 3 H W"]:
    """Test images to look at: of CIFAR-10 the embedded sample's, of a folder its first thousand."""
    own = run.recipe.dataset.startswith("folder:")
    return (load(run.recipe) if own else data.load("cifar10-mini")).test.images[:1000]


@torch.no_grad()
def sample_maps(run: Run) -> Float[Tensor, "N K h w"]:
    """A network's last maps on those images, before ICNN's mask."""
    images = data.to_float(sample(run))
    net = network(run).eval()
    return torch.cat([net.maps(batch) for batch in images.split(500)])


def fitted_matrix(run: Run, n: int = 2000) -> Float[Tensor, "C K"]:
    """A class matrix for a network trained without one: each filter to the class that excites it most, in training images.

    Of CIFAR-10 these are the training images of the embedded sample, so that no download is needed.
    """
    images = data.load("cifar10-mini").train if run.recipe.dataset == "cifar10" else load(run.recipe).train
    return cluster(class_means(read_out(network(run), None, Images(images.images[:n], images.labels[:n]))))
