"""What only a GPU can show, tried on one: `csglib doctor --gpu` and tests/test_gpu.py call the same checks.

Each check trains small networks on the embedded sample and compares them, in a process of its own, since a capture that fails
leaves its process damaged:

    python -m csglib.training.gpu captured
"""

import dataclasses
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from tqdm import tqdm

from csglib import data, precision, runs
from csglib.errors import Problem
from csglib.methods import METHODS
from csglib.recipe import Recipe
from csglib.runs import inference
from csglib.training import loop, prepare, trainer
from csglib.training.loop import CAPTURED, Loop, loop_of

# Ten steps per epoch: some as they are, then a capture and its replays; the third epoch is replays alone
RECIPE = Recipe(dataset="cifar10-mini", epochs=3, cycle="sg", holdout=1500, batch_size=50, lr=0.002, precision="float32")
# Two trainings' distance, as a share of the way that they went.  Rounding, as 1e-6 of each first weight, parts them by 0.02
# (CSG), 0.04 (PICNN), 0.13 (ICNN's matrix); one batch or one learning rate in all replays by 0.34 and more: on a processor
CLOSE = 0.2
SECONDS = 600  # for one check: a slow machine compiles for minutes


@dataclass(frozen=True)
class Trained:
    """What an epoch after epoch leaves: the weights and the gate, the rows of the history, and how the steps were made."""

    state: dict[str, Tensor]
    rows: list[dict]
    loop: Loop


def other(method: str, **changes) -> Recipe:
    """RECIPE for another method, which need not read its cycle."""
    cycle = RECIPE.cycle if "cycle" in METHODS[method].options else Recipe.cycle
    if method == "picnn":
        changes["picnn_weight"] = 0.1  # its draws part two trainings soon
    return dataclasses.replace(RECIPE, method=method, cycle=cycle, **changes)


def run(recipe: Recipe, device: torch.device, epochs: Iterable[int] = range(3), after=lambda: None) -> Trained:
    """Train these epochs without a folder; `after` is called when one has ended."""
    images = data.of(recipe).train.to(device)
    m, net, gate = prepare.build(recipe, 10)
    net.to(device, memory_format=torch.channels_last)
    if gate is not None:
        gate.to(device)
    steps = loop_of(recipe, m, net, gate, prepare.optimisers_of(recipe, m, net, gate), images)
    rows = []
    for epoch in epochs:
        if m.path(recipe, epoch) != "skipped":
            steps.start(epoch, tqdm(disable=True))
            rows.append(steps.row(epoch))
            after()
    return Trained({k: v.float().cpu() for k, v in {**net.state_dict(), **matrix(gate)}.items()}, rows, steps)


def matrix(gate) -> dict[str, Tensor]:
    return {} if gate is None else {"matrix": gate.matrix.detach()}


def apart(ours: dict[str, Tensor], theirs: dict[str, Tensor], recipe: Recipe) -> float:
    """How far two trainings end from each other, as a share of the way that one went; the larger one of weights and gate."""
    _, net, gate = prepare.build(recipe, 10)
    learned = {name: p.detach() for name, p in net.named_parameters()}
    start, shares = learned | matrix(gate), []
    for names in (list(learned), list(matrix(gate))):
        difference, way = (
            torch.cat([(a[k] - b[k]).double().flatten() for k in names]).norm().item() if names else 0.0
            for a, b in ((ours, theirs), (theirs, start))
        )
        shares.append(difference / way if way else difference)
    return max(shares)


def expect(truth: bool, otherwise: str) -> None:
    if not truth:
        raise Problem(otherwise)


def silent(replay: Callable[[], None]) -> Callable[[], None]:
    """A replay in which torch raises where the host would wait."""

    def call() -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            replay()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return call


# The checks: each returns what it found, in a few words, or raises Problem


def captured(device: torch.device) -> str:
    """Of every method: steps are captured, their replays wait for nothing, and they train as the plain loop does."""
    original, shares = loop.captured, {}
    for method in METHODS:
        with mock.patch.object(loop, "captured", lambda *a, **k: silent(original(*a, **k))):
            fast = run(other(method, loop="fast"), device)
        plain = run(other(method), device)
        expect(fast.loop.reason == CAPTURED, f"{method} is {fast.loop.reason}")
        shares[method] = apart(fast.state, plain.state, plain.loop.recipe)
        expect(shares[method] < CLOSE, f"{method} ends {shares[method]:.1%} of its way from where the plain loop ends")
    return f"{len(shares)} methods, at most {max(shares.values()):.1%} of their way from the plain loop"


def resumed(device: torch.device) -> str:
    """PICNN, stopped after an epoch and taken up again, ends where it would have ended; in both loops."""
    shares = []
    for kind in ("plain", "fast"):
        recipe = other("picnn", loop=kind)
        with tempfile.TemporaryDirectory() as folder:
            whole = trainer.train(recipe, Path(folder) / "whole", device.type)
            start = Loop.start

            def stop(self, epoch, bar, start=start):
                if epoch == 1:
                    raise KeyboardInterrupt
                start(self, epoch, bar)

            try:
                with mock.patch.object(Loop, "start", stop):
                    trainer.train(recipe, Path(folder) / "stopped", device.type)
            except KeyboardInterrupt:
                pass
            again = trainer.train(recipe, Path(folder) / "stopped", device.type)
            shares.append(apart(published(again), published(whole), recipe))
        expect(shares[-1] < CLOSE, f"in the {kind} loop it ends {shares[-1]:.1%} of its way from an uninterrupted one")
    return f"at most {max(shares):.1%} of its way from an uninterrupted one"


def published(run: runs.Run) -> dict[str, Tensor]:
    return run.weights | ({} if run.readout.gate is None else {"matrix": run.readout.gate})


def memory(device: torch.device) -> str:
    """No epoch keeps memory for itself."""
    told = []
    for method in ("csg", "icnn"):
        held: list[int] = []
        recipe = other(method, loop="fast", epochs=11)
        fast = run(recipe, device, range(11), lambda held=held: held.append(torch.cuda.memory_reserved()))
        paths = {row["path"] for row in fast.rows}
        expect(len(fast.loop.graphs) == len(paths), f"{method} keeps {len(fast.loop.graphs)} graphs for {len(paths)} paths")
        expect(held[10] == held[2], f"{method} holds {held[2] >> 20} MiB after epoch 2 and {held[10] >> 20} after epoch 10")
        told.append(f"{method} {held[10] >> 20} MiB")
    return ", ".join(told)


def side_by_side(device: torch.device) -> str:
    """Two seeds trained at once end where each ends alone."""
    recipes = [other("csg", loop="fast", seed=seed) for seed in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        together = trainer.side_by_side([(r, Path(folder) / f"{r.seed}-of-two") for r in recipes], device.type)
        alone = [trainer.train(r, Path(folder) / f"{r.seed}-alone", device.type) for r in recipes]
        shares = [apart(published(a), published(b), r) for a, b, r in zip(together, alone, recipes, strict=True)]
        reasons = {run.provenance["loop_reason"] for run in together}
    expect(reasons == {CAPTURED}, f"their steps are {reasons}")
    expect(max(shares) < CLOSE, f"they end {max(shares):.1%} of their way from where they end alone")
    return f"at most {max(shares):.1%} of their way from where they end alone"


def float16(device: torch.device) -> str:
    """Scaled losses train as float32 does, and from a scale that is far too large the first steps are skipped, no more."""
    half, full = run(other("csg", loop="fast", precision="float16"), device), run(other("csg"), device)
    losses = [row["train_loss"] for trained in (half, full) for row in trained.rows]
    share = max(abs(a / b - 1) for a, b in zip(losses[:3], losses[3:], strict=True))
    expect(share < 0.02, f"the losses of three epochs, {losses[:3]}, differ by {share:.1%} from float32's, {losses[3:]}")
    with mock.patch.object(loop, "SCALE", 2.0**24):
        large = run(other("csg", loop="fast", precision="float16"), device)
    skipped = [row["skipped_steps"] for row in large.rows]
    finite = all(t.isfinite().all() for t in large.state.values())
    expect(finite and skipped[0] > 0 and skipped[2] == 0, f"from a scale of 2^24 it skips {skipped} steps, finite: {finite}")
    return f"losses differ by {share:.1%} from float32's; from a scale of 2^24 it skips {skipped} steps"


def float32(device: torch.device) -> str:
    """A readout of this GPU is that of the processor to float32's precision, not to TF32's."""
    recipe = other("standard")
    _, net, _ = prepare.build(recipe, 10)
    images = data.of(recipe).test
    images = data.Images(images.images[:200], images.labels[:200])
    here = inference.read_out(net, None, images).features
    there = inference.read_out(net.to(device), None, images.to(device)).features.cpu()
    error = ((here - there).abs().max() / here.abs().max()).item()
    expect(error < 1e-4, f"features differ from the processor's by {error:.1e} of the largest: TF32, or worse")
    return f"features differ from the processor's by {error:.1e} of the largest"


def two_processes(device: torch.device) -> str:
    """Two processes with a GPU each train the network of one."""
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        return "left out, since it needs two GPUs"
    recipe = other("csg")
    with tempfile.TemporaryDirectory() as folder:
        two = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command = [sys.executable, "-m", *two, "-m", __spec__.name]
        finish(subprocess.Popen([*command, "train", folder + "/two", device.type], **PIPES))
        two, one = runs.read(Path(folder) / "two"), trainer.train(recipe, Path(folder) / "one", device.type)
        share = apart(published(two), published(one), recipe)
    expect(share < CLOSE, f"they end {share:.1%} of the way from where one ends")
    return f"{share:.1%} of the way from where one ends"


CHECKS = (captured, resumed, memory, side_by_side, float16, float32, two_processes)
NAMES = tuple(check.__name__ for check in CHECKS)
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def check(name: str) -> str:
    """Run one check in a process of its own; what it found, or Problem."""
    environment = os.environ | {"TQDM_DISABLE": "1"}
    return finish(subprocess.Popen([sys.executable, "-m", __spec__.name, name], env=environment, **PIPES)).splitlines()[-1]


def finish(process: subprocess.Popen) -> str:
    """What a process printed.  Raises Problem with its last line where it fails, or takes too long."""
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise Problem(f"it takes more than {SECONDS} seconds") from None
    if process.returncode:
        raise Problem((err.strip().splitlines() or [f"its process ended with {process.returncode}"])[-1])
    return out


if __name__ == "__main__":
    word, *rest = sys.argv[1:]
    if word == "train":
        trainer.train(other("csg"), Path(rest[0]), rest[1])
    else:
        try:
            print(dict(zip(NAMES, CHECKS, strict=True))[word](precision.pick_device(*(rest or [None]))))
        except Problem as problem:
            sys.exit(str(problem))
