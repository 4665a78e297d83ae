"""Recipe in, run out: prepare.py has what is there before the first step, loop.py the steps, outcome.py what comes of them.

Images stay uint8 on the device and are augmented there.  On one CPU, with equal versions and as many threads, the same recipe
gives the same weights bit for bit, interrupted or not: all randomness of an epoch comes from (seed, epoch).
"""

import os
import sys
import warnings
from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm

from csglib import data, files, memory, networks, runs
from csglib.data.images import Dataset
from csglib.data.streamed import AUTO, Reading
from csglib.errors import Problem
from csglib.methods import Gate, Method
from csglib.methods.csg import ClassGate, density
from csglib.precision import emulated, emulation, exact, pick_device, settle_precision
from csglib.recipe import Recipe
from csglib.runs import Run, provenance
from csglib.training import distributed, outcome, prepare
from csglib.training.checkpoint import Checkpoint
from csglib.training.loop import CaptureFailed, loop_of, loss_scaler

Tell = Callable[[Recipe, Dataset, torch.device], None]  # what is said when all is ready, before the first step
OnEpoch = Callable[[dict], None]  # is given each epoch's row of the history, once a checkpoint holds it


def train(
    recipe: Recipe,
    out: Path | str,
    device: str | None = None,
    every: int = 1,
    tell: Tell | None = None,
    on_epoch: OnEpoch | None = None,
    reading: Reading = AUTO,
) -> Run:
    """Train the recipe and write its run folder.  Interrupted and called again, it goes on after its last checkpoint.

    Args:
        recipe: What decides the trained network.
        out: The run's folder, which must not exist yet.  One process alone may train into it; those that torchrun starts
            count as one.
        device: cpu or cuda; None takes cuda where there is one.
        every: Epochs from one checkpoint to the next; there is one after the last in any case.
        tell: Called once with recipe, data and device when all is ready.
        on_epoch: Called with each epoch's row of the history, for a logger of one's own.
        reading: Whether pictures in files are held in memory or read as they are needed, and by how many processes.

    Returns:
        The finished run, as it lies on the disk.

    Raises:
        Problem: Where recipe, data or folder are not what they should be, or a loss becomes NaN or infinite.
    """
    return side_by_side([(recipe, Path(out))], device, every, tell, on_epoch, reading)[0]


def side_by_side(
    work: list[tuple[Recipe, Path]],
    device: str | None = None,
    every: int = 1,
    tell: Tell | None = None,
    on_epoch: OnEpoch | None = None,
    reading: Reading = AUTO,
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
    going = {
        i: training(recipe, out, device, every, len(work), tell, on_epoch, reading) for i, (recipe, out) in enumerate(work)
    }
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
                done[i] = type(problem)(str(problem))  # without the frames of the training, which hold its network and graphs
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
    recipe: Recipe,
    out: Path,
    device: torch.device,
    every: int,
    at_once: int,
    tell: Tell | None = None,
    on_epoch: OnEpoch | None = None,
    reading: Reading = AUTO,
) -> Generator[None, None, Run]:
    """One training of so many at once, which pauses after it has asked for an epoch's steps."""
    memory.keep()
    recipe, reason = settle_precision(recipe, device)
    with exact(device, "float32"):
        pass  # what the readout will ask for is refused now, not after the last epoch
    if recipe.loop == "fast":
        prepare.check_compiler(device)
    dataset = data.of(recipe, reading)
    m, net, gate = prepare.build(recipe, len(dataset.classes))
    networks.check_fits(net, recipe.net, dataset.train.first(1))
    if recipe.batch_size > len(dataset.train):
        raise Problem(f"batch_size {recipe.batch_size} exceeds the {len(dataset.train)} training images: choose a smaller one")
    graphs_at_once = at_once > 1 and device.type == "cuda" and recipe.loop == "fast"
    if graphs_at_once and (m.draws or prepare.draws(net, dataset.train)):
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
            net = distributed.normalise_jointly(net, device).to(device, memory_format=torch.channels_last)
            if gate is not None:
                gate.to(device)
            told = {"precision_reason": reason, "side_by_side": at_once}
            yield from go_on(Training(recipe, m, net, gate, dataset.to(device), device, out, told, every, on_epoch))
    return runs.read(out)


@dataclass(frozen=True)
class Training:
    """What one training has when its steps begin."""

    recipe: Recipe
    method: Method
    net: networks.Split
    gate: Gate | None
    dataset: Dataset
    device: torch.device
    out: Path
    told: dict  # for provenance: the reason of the precision, how many train side by side
    every: int = 1  # epochs from one checkpoint to the next
    on_epoch: OnEpoch | None = None

    @property
    def folder(self) -> Path:
        """Where it is trained until it is finished."""
        return runs.part(self.out)

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return len(self.dataset.train) // self.recipe.batch_size


def go_on(t: Training) -> Generator[None, None, None]:
    """From the last checkpoint, or the start, to the finished run; pauses after it has asked for an epoch's steps."""
    recipe, net, gate = t.recipe, t.net, t.gate
    optimisers, scaler = prepare.optimisers_of(recipe, t.method, net, gate), loss_scaler(recipe, t.device)
    code = provenance.here(t.device)  # taken at the start: the files may change while this runs
    path = t.folder / "checkpoint.safetensors"
    state = Checkpoint(path, net, gate, optimisers, scaler, t.dataset.digest, code["versions"])
    history, gates, dirty = state.load()
    if len(history) != distributed.first(lambda: len(history)):
        raise Problem(f"the processes do not see the same {path}: put --out into a folder that they share")
    if dirty or any(row.get("commit", code["commit"]) != code["commit"] for row in history):
        code["dirty"] = True  # no one commit makes this run
    loop = loop_of(recipe, t.method, net, gate, optimisers, t.dataset.train, scaler)
    announce(t)
    with progress(t, len(history)) as bar:
        for epoch in range(len(history), recipe.epochs):
            if t.method.path(recipe, epoch) == "skipped":
                history.append({"epoch": epoch, "path": "skipped", "seconds": 0.0})
                bar.update(t.steps)
                continue
            loop.start(epoch, bar)
            yield
            row = loop.row(epoch)
            bar.update((epoch + 1) * t.steps - bar.n)  # of steps that a GPU was only asked for
            row |= outcome.test_row(net, gate, t.dataset.test, recipe.precision) | {"commit": code["commit"]}
            history.append(row)
            if row["path"] in ("gated", "joint"):
                gates.append(gate.matrix.detach().clone())
            outcome.stop_if_diverged(t.folder, history)
            if gates:  # before the first projection the gate is not in its feasible set
                row["density"] = density(gates[-1], projected=isinstance(gate, ClassGate) and recipe.gate_projection == "max")
            if (epoch + 1) % t.every == 0 or epoch + 1 == recipe.epochs:
                distributed.first(lambda: state.save(history, gates, bool(code["dirty"])))
            if t.on_epoch is not None and distributed.rank() == 0:
                t.on_epoch(dict(row))
    code |= t.told | {"loop_reason": loop.reason}
    distributed.first(lambda: outcome.finish(recipe, code, t.out, t.dataset, net, gate, gates, history))


def announce(t: Training) -> None:
    """Say on which device and in which precision it trains, and what that costs where the device emulates it."""
    recipe, device, images = t.recipe, t.device, t.dataset
    print(f"{recipe.name}: {device}, {recipe.precision} ({t.told['precision_reason']})", file=sys.stderr)
    room = 3 * images.train.size**2 * (len(images.train) + len(images.test)) / files.MIB
    print(f"{recipe.name}: {room:,.0f} MiB of pixels, {images.train.where}", file=sys.stderr)
    if distributed.rank() == 0 and emulated(recipe.precision, device):
        times = emulation(t.net, t.dataset.train.first(16), recipe.precision)
        slow = f"{recipe.precision} is emulated here: 16 images take {times:.1f} times as long as in float32, by measurement"
        print(f"{slow}; --precision float32, with another --out, avoids that", file=sys.stderr)
    C, K = t.net.num_classes, t.net.head.in_features
    if C > K and t.gate is not None:
        warnings.warn(f"{recipe.name}: of {C} classes at least {C - K} own no filter, since there are {K}", stacklevel=2)
    if "gate_density" in t.method.options and (bound := recipe.density(C)) != recipe.gate_density:
        print(f"{recipe.name}: gate_density {bound:.4g}, the least of {C} classes", file=sys.stderr)


def progress(t: Training, done: int) -> tqdm:
    """A bar of all steps, of which so many epochs are done."""
    hidden = bool(os.environ.get("TQDM_DISABLE")) or distributed.rank() > 0  # tqdm reads it in a terminal, not in a notebook
    total = t.recipe.epochs * t.steps
    return tqdm(total=total, initial=done * t.steps, unit="step", mininterval=1, disable=hidden)
