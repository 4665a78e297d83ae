"""Recipe in, run out: what is trained, in which precision, its checkpoints and what is published.  The steps: loop.py.

Images stay uint8 on the device and are augmented there.  On one CPU, with equal versions and as many threads, the same recipe
gives the same weights bit for bit, interrupted or not: all randomness of an epoch comes from (seed, epoch).
"""

import copy
import dataclasses
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from tqdm.auto import tqdm

from csglib import Problem, data, distributed, files, nets, provenance, runs
from csglib.checkpoint import Checkpoint
from csglib.data import Dataset, Images
from csglib.gate import ClassGate, density
from csglib.loop import CaptureFailed, Loop, autocast, exact, keep_memory, loss_scaler
from csglib.methods import Gate, Method, method
from csglib.metrics import accuracy, class_means, cluster, evaluate
from csglib.runs import Readout, Recipe, Run

DIVERGED = 1e6  # of the mean training loss, where chance is ln C.  A first test loss of 1e5 is none: its statistics are young


Tell = Callable[[Recipe, Dataset, torch.device], None]  # what is said when all is ready, before the first step


def train(recipe: Recipe, out: Path | str, device: str | None = None, every: int = 1, tell: Tell | None = None) -> Run:
    """Train the recipe and write its run folder `out`.  Interrupted and called again, it goes on after its last checkpoint.

    There is a checkpoint after each `every` epochs and after the last.  One process alone may train into a folder; those
    that torchrun starts count as one.  Raises Problem where recipe, data or folder are not what they should be, or a loss
    leaves the finite numbers.
    """
    return side_by_side([(recipe, Path(out))], device, every, tell)[0]


def side_by_side(
    work: list[tuple[Recipe, Path]], device: str | None = None, every: int = 1, tell: Tell | None = None
) -> list[Run]:
    """Train several recipes at once on one GPU, which a small network cannot fill: each has its stream and its graphs.

    While the host reads one training's sums, the steps of the others run.  On a processor they take turns by the epoch.
    Where one fails the others go on; then this raises what was said of the first.  A failed capture alone stops them all,
    since it leaves CUDA in any state; the same command goes on from their checkpoints.
    """
    device = pick_device(device)
    if every < 1:
        raise Problem(f"a checkpoint every {every} epochs cannot be: use 1, 2, 3, ...")
    if len({out.absolute() for _, out in work}) < len(work):
        raise Problem("two recipes cannot have one folder: give each its own")
    going = {i: training(recipe, out, device, every, len(work), tell) for i, (recipe, out) in enumerate(work)}
    done: dict[int, Run | Problem] = {}
    while going:
        for i, steps in list(going.items()):
            try:
                next(steps)
            except StopIteration as end:
                done[i] = end.value
            except CaptureFailed:
                raise
            except Problem as problem:
                done[i] = Problem(str(problem))  # without the frames of the training, which hold its network and graphs
            except torch.OutOfMemoryError:
                remedy = f"train fewer than {len(work)} at once" if len(work) > 1 else "choose a smaller --batch-size"
                done[i] = Problem(f"the memory of {torch.cuda.get_device_name(device)} is too small: {remedy}")
            if i in done:
                del going[i]
    for i in sorted(done):
        if isinstance(done[i], Problem):
            raise done[i]
    distributed.finished()
    return [done[i] for i in sorted(done)]


def training(
    recipe: Recipe, out: Path, device: torch.device, every: int, at_once: int, tell: Tell | None = None
) -> Generator[None, None, Run]:
    """One training of so many at once, which pauses after it has asked for an epoch's steps."""
    keep_memory()
    recipe, reason = settle_precision(recipe, device)
    with exact(device, "float32"):
        pass  # what the readout will ask for is refused now, not after the last epoch
    if recipe.loop == "fast":
        check_compiler(device)
    dataset = load(recipe)
    m, net, gate = build(recipe, len(dataset.classes))
    nets.check_fits(net, recipe.net, dataset.train.images)
    if recipe.batch_size > len(dataset.train):
        raise Problem(f"batch_size {recipe.batch_size} exceeds the {len(dataset.train)} training images: choose a smaller one")
    graphs_at_once = at_once > 1 and device.type == "cuda" and recipe.loop == "fast"
    if graphs_at_once and (m.draws or draws(net, dataset.train)):
        raise Problem(f"{recipe.name} draws random numbers from a generator that all graphs share: train it by itself")
    device = distributed.join(recipe, device)
    with ExitStack() as held:

        def reserve() -> bool:
            """Whether the run is finished already; if not, its folder is kept from other processes."""
            held.enter_context(files.locked(runs.reserve(out, recipe)))
            folder = runs.reserve(out, recipe)  # again, now that no other process can change it
            if (folder / "provenance.json").exists():  # stopped just before it got its name
                runs.publish(out)
                return True
            for left in folder.glob("*.new"):  # by a process that was killed while it wrote
                left.unlink()
            return False

        if not distributed.first(reserve):  # process 0 writes; the others read the checkpoint and learn
            if tell is not None and distributed.rank() == 0:
                tell(recipe, dataset, device)
            told = {"precision_reason": reason, "side_by_side": at_once}
            yield from go_on(recipe, told, m, out, runs.part(out), dataset, net, gate, device, every)
    return runs.read(out)


def check_compiler(device: torch.device) -> None:
    """What torch.compile needs beside torch: for a processor a C++ compiler, for a GPU Triton, which asks for a C compiler."""
    if device.type == "cuda" and (found := torch.cuda.get_device_capability(device)) < (7, 0):
        name = torch.cuda.get_device_name(device)
        raise Problem(f"loop fast needs a GPU of capability 7.0, and {name} has {found[0]}.{found[1]}: leave --loop out")
    variable, language, known = ("CC", "C", ("gcc", "clang")) if device.type == "cuda" else ("CXX", "C++", ("g++", "clang++"))
    if not (os.environ.get(variable) or any(map(shutil.which, known))):
        raise Problem(f"loop fast needs a {language} compiler, and there is none: install {known[0]}, or leave --loop out")


@torch.no_grad()
def draws(net: nets.Split, images: Images) -> bool:
    """Whether the network draws random numbers in training, as dropout does: found by trying a copy, on two images."""
    before = torch.get_rng_state()
    copy.deepcopy(net).train()(data.to_float(images.images[:2]))
    return not torch.equal(torch.get_rng_state(), before)


def build(recipe: Recipe, num_classes: int) -> tuple[Method, nets.Split, Gate | None]:
    """The recipe's method, and its network and gate as they start."""
    m = method(recipe)
    torch.manual_seed(recipe.seed)
    net = nets.build(recipe.net, num_classes, recipe.weights)
    nets.freeze(net, recipe.thaw)
    return m, net, m.gate(recipe, net)


def go_on(recipe, told: dict, m, out: Path, folder: Path, dataset: Dataset, net, gate, device: torch.device, every: int):
    """From the last checkpoint, or the start, to the finished run."""
    dataset = dataset.to(device)
    net = distributed.normalise_jointly(net, device)
    net.to(device, memory_format=torch.channels_last)
    if gate is not None:
        gate.to(device)
    optimisers = optimisers_of(recipe, m, net, gate)
    scaler = loss_scaler(recipe, device)
    code = provenance.here(device)  # taken at the start: the files may change while this runs
    state = Checkpoint(folder / "checkpoint.safetensors", net, gate, optimisers, scaler, dataset.digest, code["versions"])
    history, gates, dirty = state.load()
    if len(history) != distributed.first(lambda: len(history)):
        raise Problem(f"the processes do not see the same {state.path}: put --out into a folder that they share")
    loop = Loop(recipe, m, net, gate, optimisers, dataset.train, scaler)
    leads = distributed.rank() == 0
    if dirty or any(row.get("commit", code["commit"]) != code["commit"] for row in history):
        code["dirty"] = True  # no one commit makes this run
    steps = len(dataset.train) // recipe.batch_size
    hidden = bool(os.environ.get("TQDM_DISABLE")) or not leads  # tqdm itself reads it in a terminal, but not in a notebook
    print(f"{recipe.name}: {device}, {recipe.precision} ({told['precision_reason']})", file=sys.stderr)
    if leads and emulated(recipe.precision, device):
        times = emulation(net, dataset.train.images[:16], recipe.precision)
        slow = f"{recipe.precision} is emulated here: 16 images take {times:.1f} times as long as in float32, by measurement"
        print(f"{slow}; --precision float32, with another --out, avoids that", file=sys.stderr)
    if "gate_density" in m.options and (bound := recipe.density(net.num_classes)) != recipe.gate_density:
        print(f"{recipe.name}: gate_density {bound:.4g}, the least of {net.num_classes} classes", file=sys.stderr)
    with tqdm(total=recipe.epochs * steps, initial=len(history) * steps, unit="step", mininterval=1, disable=hidden) as bar:
        for epoch in range(len(history), recipe.epochs):
            path = m.path(recipe, epoch)
            if path == "skipped":
                history.append({"epoch": epoch, "path": path, "seconds": 0.0})
                bar.update(steps)
                continue
            loop.start(epoch, bar)
            yield
            row = loop.row(epoch)
            bar.update((epoch + 1) * steps - bar.n)  # of steps that a GPU was only asked for
            row |= test_row(net, gate, dataset.test, recipe.precision) | {"commit": code["commit"]}
            history.append(row)
            if path in ("gated", "joint"):
                gates.append(gate.matrix.detach().clone())
            if bad := [name for name, v in row.items() if isinstance(v, float) and not math.isfinite(v)] or (
                ["train_loss"] if row["train_loss"] > DIVERGED else []
            ):
                rows = [{k: str(v) if k in bad else v for k, v in r.items()} for r in history]  # NaN is no JSON
                if leads:
                    files.write(folder / "report.json", json.dumps({"stopped_by": bad, "history": rows}, indent=2) + "\n")
                raise Problem(
                    f"{bad[0]} of epoch {epoch} is {row[bad[0]]:g}: lower --lr or --gate-lr, with a new --out "
                    f"({folder} keeps the epochs before and report.json)"
                )
            if gates:  # before the first projection the gate is not in its feasible set
                row["density"] = density(gates[-1], projected=isinstance(gate, ClassGate) and recipe.gate_projection == "max")
            if (epoch + 1) % every == 0 or epoch + 1 == recipe.epochs:
                distributed.first(lambda: state.save(history, gates, bool(code["dirty"])))
    code |= told | {"loop_reason": loop.reason}
    distributed.first(lambda: finish(recipe, code, out, dataset, net, gate, gates, history))


def load(recipe: Recipe) -> Dataset:
    """The recipe's data; with a holdout, the last training images in place of the test images, which stay unseen."""
    dataset, n = data.load(recipe.dataset), recipe.holdout
    if not n:
        return dataset
    a = dataset.train
    while n < len(a) and a.groups is not None and a.groups[-n] == a.groups[-n - 1]:
        n += 1  # take the photograph, or the copies of a picture, whole
    if n >= len(a):
        raise Problem(f"holdout {recipe.holdout} leaves none of the {len(a)} training images: choose a smaller one")
    return dataclasses.replace(dataset, train=a.take(slice(-n)), test=a.take(slice(-n, None)))


def test_row(net, gate, images: Images, precision: str) -> dict:
    """Loss and accuracy on the test images, of both paths: for the curves alone, nothing is chosen by them."""
    part = distributed.share(len(images))
    readout = read_out(net, gate, Images(images.images[part], images.labels[part]), precision)
    y = readout.labels
    row = {"test_loss": F.cross_entropy(readout.logits, y).item(), "test_accuracy": accuracy(readout.logits, y)}
    if gate is not None:
        gated = (readout.features * readout.gate[y]) @ readout.weight.T + readout.bias
        row |= {"test_loss_gated": F.cross_entropy(gated, y).item(), "test_accuracy_gated": accuracy(gated, y)}
    return {name: distributed.mean(value, len(y)) for name, value in row.items()}


@torch.no_grad()
def read_out(net: nets.Split, gate: Gate | None, images: Images, precision: str = "float32", gates=()) -> Readout:
    """The network's last layers on all images, in eval mode, ungated."""
    net.eval()
    device = images.images.device
    features = []
    for batch in images.images.split(1000 if device.type == "cuda" else 200):  # what fills a GPU, what a CPU's caches hold
        with autocast(device, precision):
            features.append(net.pooled(data.to_float(batch)).float())
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


def finish(recipe, code: dict, out: Path, dataset: Dataset, net, gate, gates, history) -> None:
    """Round the weights as they are stored, read the rounded network out, and write the run: what is published was measured.

    Of a network that started from ImageNet's weights those are left out that did not change.  Raises Problem, and publishes
    nothing, where a weight is not finite or the accuracy is not that of the last epoch.
    """
    start = nets.build(recipe.net, len(dataset.classes), "imagenet").state_dict() if recipe.weights == "imagenet" else {}
    again = f"lower --lr, with a new --out ({runs.part(out)} keeps the training)"
    weights = {}
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name in start and torch.equal(tensor.cpu(), start[name]):
                continue
            if not tensor.isfinite().all():
                raise Problem(f"{name} of the trained network is not finite, the training has diverged: {again}")
            weights[name] = runs.rounded(tensor.cpu()).contiguous()
            tensor.copy_(weights[name])
    readout = read_out(net, gate, dataset.test, gates=gates)
    if not readout.logits.isfinite().all():
        raise Problem(f"the trained network's logits are not finite, the training has diverged: {again}")
    packed = runs.pack(Readout(**{name: t.cpu() for name, t in readout.tensors().items()}))
    metrics = evaluate(runs.unpack(packed))
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


def optimisers_of(recipe: Recipe, m: Method, net: nets.Split, gate: Gate | None) -> list[torch.optim.Optimizer]:
    """That of the weights, and that of the gate where a step moves it; made for the device on which they are."""
    on_gpu = net.head.weight.is_cuda
    return [weights_optimiser(net, recipe)] + ([m.optimiser(recipe, gate, on_gpu)] if m.optimiser is not None else [])


def weights_optimiser(net: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """SGD with Nesterov's momentum over what learns of the network; the gate is not among it, nor in its weight decay."""
    learning = [p for p in net.parameters() if p.requires_grad]
    return torch.optim.SGD(learning, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True, fused=True)


def pick_device(name: str | None) -> torch.device:
    count = torch.cuda.device_count()
    known = ["cpu"] + ["cuda"] * (count > 0) + [f"cuda:{i}" for i in range(count)]
    if name is not None and name not in known:
        raise Problem(f"no device {name!r} here: choose one of {', '.join(known)}, or leave --device out")
    return torch.device(name or ("cuda" if count else "cpu"))


def settle_precision(recipe: Recipe, device: torch.device) -> tuple[Recipe, str]:
    """The recipe with its precision named, and the reason, for print and provenance."""
    precision, verdict = native(device)
    if recipe.precision == "auto":
        return dataclasses.replace(recipe, precision=precision), verdict
    return recipe, f"asked for; {verdict}"


def native(device: torch.device) -> tuple[str, str]:
    """The precision in which this device trains fastest, and why: bfloat16 where it computes that itself."""
    if device.type == "cuda":
        with torch.cuda.device(device):  # of several GPUs this one is asked
            found = torch.cuda.is_bf16_supported(including_emulation=False)
        why, other = provenance.plain(torch.cuda.get_device_name(device)), "float16"  # as on a T4
    else:
        found, why, other = cpu_has_bfloat16(), "this processor", "float32"
    return "bfloat16" if found else other, f"{why} {'computes' if found else 'does not compute'} bfloat16 natively"


def emulated(precision: str, device: torch.device) -> bool:
    """Whether this device computes it by other means, and so more slowly than float32."""
    half = {"cpu": ("bfloat16", "float16"), "cuda": ("bfloat16",)}[device.type]
    return precision in half and precision != native(device)[0]


def emulation(net: nets.Split, images: UInt8[Tensor, "N 3 H W"], precision: str) -> float:
    """How many times as long as in float32 the network takes with these images, forward and backward; measured on a copy."""
    net, x, taken = copy.deepcopy(net), data.to_float(images), {}
    for name in ("float32", precision):
        for _ in range(2):  # the first warms up
            began = time.perf_counter()
            with autocast(images.device, name):
                net(x).float().sum().backward()
            taken[name] = time.perf_counter() - began
    return taken[precision] / taken["float32"]


def cpu_has_bfloat16() -> bool:
    """AVX-512 with bfloat16 or AMX, where oneDNN may use it: there bfloat16 doubles the images per second (measured 1,700
    against 935 on 2 cores); elsewhere it is emulated, 12 times slower than float32 (37 against 470).
    """
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch offers no public test
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()  # oneDNN computes with no more than this, whatever is there
    allowed = limit in ("", "ALL", "DEFAULT") or any(word in limit for word in ("BF16", "FP16", "AMX", "AVX10"))
    return allowed and any(getattr(torch.cpu, probe, bool)() for probe in probes)


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
    if dataset.digest != run.provenance["data_digest"]:
        raise Problem(
            f"{run.path} was trained on other pictures than {run.recipe.dataset} has now: restore them, or train again"
        )
    readout = read_out(network(run), None, dataset.test)
    return dataclasses.replace(readout, gate=run.readout.gate, gates=run.readout.gates)


def at_hand(recipe: Recipe) -> Dataset:
    """The recipe's data, or what the repository holds of them, so that no download is needed."""
    return data.load(data.EMBEDDED[recipe.dataset]) if recipe.dataset in data.EMBEDDED else load(recipe)


def sample(run: Run) -> UInt8[Tensor, "N 3 H W"]:
    """Test images to look at."""
    return at_hand(run.recipe).test.images[:1000]


@torch.no_grad()
def sample_maps(run: Run) -> Float[Tensor, "N K h w"]:
    """A network's last maps on those images, before ICNN's mask."""
    images = data.to_float(sample(run))
    net = network(run).eval()
    return torch.cat([net.maps(batch) for batch in images.split(500)])


def fitted_matrix(run: Run, n: int = 2000) -> Float[Tensor, "C K"]:
    """A class matrix for a network trained without one: each filter to the class that excites it most, in training images."""
    images = at_hand(run.recipe).train.take(slice(n))
    return cluster(class_means(read_out(network(run), None, images)))
