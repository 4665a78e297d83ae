"""One epoch of training, as fast as the device permits.

The plain loop runs operation by operation.  The fast one has torch compile the network, and on a GPU captures a whole step,
from the choice of the batch to the gate's projection, as one CUDA graph for each path: an epoch is then a row of replays,
in which the host waits for nothing.  Both compute the same steps; compiled sums round in another order.
"""

import math
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from csglib import data
from csglib.data.images import Images, Pictures
from csglib.errors import Problem, printable
from csglib.methods import Gate, Method
from csglib.methods.step import Step
from csglib.networks.split import Split
from csglib.precision import autocast, exact
from csglib.recipe import Recipe
from csglib.training import distributed

EAGER_STEPS = 3  # of a path before its capture: they make the optimisers' buffers and compile what has to be compiled
SCALE = 2.0**12  # of a float16 loss at the start; from there it follows what overflows
CAPTURED = "compiled, steps captured as CUDA graphs"


class CaptureFailed(Problem):
    """A capture failed.  CUDA's allocator and generators may be in any state then, so nothing may go on in this process."""


class Loop:
    """The training steps of one recipe on one device, one after the other from the host; compiled maps where it is fast."""

    def __init__(
        self, recipe: Recipe, m: Method, net: Split, gate: Gate | None, optimisers: list, images: Pictures, scaler=None
    ):
        self.recipe, self.m, self.net, self.gate, self.optimisers, self.images = recipe, m, net, gate, optimisers, images
        self.device = device = images.device
        self.steps = len(images) // recipe.batch_size
        self.stream = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)  # several trainings overlap, each on its own
            self.stream.wait_stream(torch.cuda.current_stream(device))
        self.clock = Clock(self.stream)
        learns = gate is not None and any(p.requires_grad for p in gate.parameters())
        unused = learns and any(m.path(recipe, epoch) == "standard" for epoch in range(recipe.epochs))
        with self.on_stream():  # DistributedDataParallel sums gradients on the stream on which it is made
            self.method = Step(recipe, m, net, gate, *optimisers[1:] or [None])
            self.loss = distributed.wrapped(self.method, unused)
        self.scaler = scaler or loss_scaler(recipe, device)
        if self.scaler.is_enabled():
            make_momentum(optimisers)
        self.loss_sum, self.one = torch.zeros((), device=device), torch.ones((), device=device)
        self.correct, self.skipped = (torch.zeros((), device=device, dtype=torch.long) for _ in range(2))
        self.compiled = torch.compile(net.maps) if recipe.loop == "fast" else None
        self.reason = "compiled" if self.compiled else "operation by operation"

    def on_stream(self):
        return torch.cuda.stream(self.stream) if self.stream else nullcontext()

    def start(self, epoch: int, bar) -> None:
        """Run one epoch; on a GPU, where nothing waits, ask for all its steps and return.  `row` then waits for their sums."""
        recipe, path = self.recipe, self.m.path(self.recipe, epoch)
        self.net.train()
        generator = torch.Generator().manual_seed(1_000_003 * recipe.seed + epoch)
        torch.manual_seed(1_000_003 * recipe.seed + epoch)  # for methods that draw
        for total in (self.loss_sum, self.correct, self.skipped):
            total.zero_()
        if self.stream:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))  # it has evaluated the last epoch
        self.clock.start()
        with self.on_stream(), exact(self.device, recipe.precision), compiled(self.net, self.compiled):
            self.run(epoch, path, generator, bar)
        self.clock.stop()

    def run(self, epoch: int, path: str, generator: torch.Generator, bar) -> None:
        """All steps of one epoch, whose random numbers come from the generator."""
        recipe, B = self.recipe, self.recipe.batch_size
        for step, (x, y) in enumerate(data.batches(self.images, B, generator, distributed.part(B))):
            for group in self.optimisers[0].param_groups:
                group["lr"] = learning_rate(recipe, (epoch + step / self.steps) / recipe.epochs)
            self.step(epoch, x, y)
            if self.device.type == "cpu" and step % 20 == 0 and distributed.world() == 1:  # a GPU would have to stop for it
                shown = {"epoch": f"{epoch + 1}/{recipe.epochs} {path}", "loss": f"{self.loss_sum / (step + 1):.3f}"}
                shown["accuracy"] = f"{self.correct / ((step + 1) * B):.3f}"
                if self.gate is not None and self.gate.matrix.detach().amax() == 1:  # the first projection has been made
                    shown["density"] = f"{self.gate.matrix.detach().mean().item():.3f}"
                bar.set_postfix(shown, refresh=False)
            bar.update()

    def step(self, epoch: int | Tensor, x: Tensor, y: Tensor) -> None:
        weights = self.optimisers[0]
        scale = self.scaler.scale(self.one)
        with autocast(self.device, self.recipe.precision):
            loss, logits = self.loss(data.to_float(x), y, epoch)
        self.scaler.scale(loss).backward()
        self.scaler.step(weights)
        weights.zero_grad()
        self.method.step(self.scaler)
        self.scaler.update()
        self.skipped += self.scaler.scale(self.one) < scale  # it falls where gradients overflowed
        self.loss_sum += loss.detach()
        self.correct += (logits.argmax(1) == y).sum()

    def row(self, epoch: int) -> dict:
        """Wait for the epoch that was started, and tell of it what the history keeps."""
        with self.on_stream():
            loss_sum, correct = distributed.summed(self.loss_sum).item(), distributed.summed(self.correct).item()
            skipped = {"skipped_steps": int(self.skipped)} if self.scaler.is_enabled() else {}
            distributed.same(self.gate)
        return {
            "epoch": epoch,
            "path": self.m.path(self.recipe, epoch),
            "lr": learning_rate(self.recipe, epoch / self.recipe.epochs),
            "train_loss": loss_sum / distributed.world() / self.steps,
            "train_accuracy": correct / (self.steps * self.recipe.batch_size),
            "seconds": round(self.clock.seconds(), 3),
        } | skipped


class Replayed(Loop):
    """The same steps from buffers on a GPU, captured once for each path: an epoch is a row of replays.

    A captured step takes its batch, its learning rate and its epoch from the buffers, and a counter on the device moves on.
    The graphs of all paths share one pool of memory, since never two of them run at once.
    """

    def __init__(
        self, recipe: Recipe, m: Method, net: Split, gate: Gate | None, optimisers: list, images: Pictures, scaler=None
    ):
        super().__init__(recipe, m, net, gate, optimisers, images, scaler)
        N, device = len(images), self.device
        self.graphs: dict[str, Callable[[], None]] = {}
        self.pool = torch.cuda.graph_pool_handle()
        self.order = torch.zeros(N, dtype=torch.long, device=device)
        self.shift = torch.zeros(2, N, dtype=torch.long, device=device)
        self.flip = torch.zeros(N, dtype=torch.bool, device=device)
        self.lrs = torch.zeros(self.steps, device=device)
        self.at = torch.zeros(1, dtype=torch.long, device=device)  # an index without dimensions would be read by the host
        self.epoch = torch.zeros((), dtype=torch.long, device=device)
        self.rows = torch.arange(recipe.batch_size, device=device)
        self.pixels = None  # of the next batch, where pictures come from files and no graph can choose them
        if not isinstance(images, Images):
            self.pixels = torch.zeros((recipe.batch_size, 3, images.size, images.size), dtype=torch.uint8, device=device)
        for group in optimisers[0].param_groups:
            group["lr"] = torch.zeros((), device=device)
        self.reason = CAPTURED

    def run(self, epoch: int, path: str, generator: torch.Generator, bar) -> None:
        """Some steps as they are, then a capture, then replays; the bar moves when the host has waited for them."""
        recipe, B = self.recipe, self.recipe.batch_size
        order, shift, flip, seeds = data.draw(self.images, generator)
        for buffer, drawn in ((self.order, order), (self.shift, shift), (self.flip, flip)):
            buffer.copy_(drawn)
        coming = self.images.read(order[: self.steps * B].split(B), seeds) if self.pixels is not None else None
        rates = [learning_rate(recipe, (epoch + s / self.steps) / recipe.epochs) for s in range(self.steps)]
        self.lrs.copy_(torch.tensor(rates))
        self.at.zero_()
        self.epoch.fill_(epoch)

        def fed() -> None:
            if coming is not None:
                self.pixels.copy_(next(coming))

        def step() -> None:
            self.step(self.epoch if self.m.by_epoch else epoch, *self.batch())

        done = 0
        if path not in self.graphs:
            for _ in range(min(EAGER_STEPS, self.steps)):
                fed()
                step()
                done += 1
            try:
                self.graphs[path] = captured(step, self.pool)
            except RuntimeError as error:
                while error.__context__ is not None:  # the end of a capture that failed fails too
                    error = error.__context__
                full = isinstance(error, torch.OutOfMemoryError)
                remedy = "choose a smaller --batch-size, train fewer at once" if full else "run `csglib doctor --gpu`"
                line = (str(error).splitlines() or [type(error).__name__])[0]
                told = f"a step of {recipe.name} cannot be captured ({printable(line)})"
                raise CaptureFailed(f"{told}: {remedy}, or leave --loop out") from None
        for _ in range(self.steps - done):
            fed()
            self.graphs[path]()

    def batch(self) -> tuple[Tensor, Tensor]:
        """The next batch, chosen and augmented on the device; the learning rate moves with it."""
        i = self.at * self.recipe.batch_size + self.rows
        for group in self.optimisers[0].param_groups:
            group["lr"].copy_(self.lrs[self.at].squeeze(0))
        self.at += 1
        index = self.order[i]
        images = self.pixels if self.pixels is not None else self.images.images[index]
        x = data.augment(images, self.shift[0, i], self.shift[1, i], self.flip[i], self.images.border)
        return x, self.images.labels[index]


def loop_of(recipe: Recipe, m: Method, net: Split, gate: Gate | None, optimisers: list, images: Pictures, scaler=None) -> Loop:
    """The loop that the recipe asks for, on the device where the images are."""
    kind = Replayed if replays(recipe, images.device) else Loop
    return kind(recipe, m, net, gate, optimisers, images, scaler)


def replays(recipe: Recipe, device: torch.device) -> bool:
    """Whether its steps are captured and replayed."""
    return recipe.loop == "fast" and device.type == "cuda"


@contextmanager
def compiled(net: Split, maps):
    """Within this block the network's maps are the compiled ones, if there are any.

    Outside, in evaluation, they are not: another shape and another mode would each be compiled anew, for longer than they take.
    """
    if maps is None:
        yield
        return
    from torch._dynamo import config, exc  # it takes a second to import

    net.maps = maps
    try:  # the ninth network of a process would silently run uncompiled
        with config.patch(cache_size_limit=sys.maxsize, accumulated_cache_size_limit=sys.maxsize):
            yield
    except exc.TorchDynamoException as error:
        told = printable(" ".join(str(error).partition("\n\n")[0].split()))
        raise Problem(f"torch cannot compile this network here ({told}): leave --loop out") from None
    finally:
        del net.__dict__["maps"]


def captured(step, pool):
    """A step as a CUDA graph; what it returns replays it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=torch.cuda.current_stream()):
        step()
    return graph.replay


class Clock:
    """How long an epoch takes, from `start` to `stop`: on a GPU by its stream's own time, elsewhere by the host's."""

    def __init__(self, stream):
        self.stream = stream
        self.began = self.ended = self.now(stream)

    @staticmethod
    def now(stream):
        return stream.record_event(torch.cuda.Event(enable_timing=True)) if stream else time.perf_counter()

    def start(self) -> None:
        self.began = self.now(self.stream)

    def stop(self) -> None:
        self.ended = self.now(self.stream)

    def seconds(self) -> float:
        """Of a GPU, once the host has waited for its results."""
        return self.began.elapsed_time(self.ended) / 1000 if self.stream else self.ended - self.began


def learning_rate(recipe: Recipe, progress: float) -> float:
    """The weights' learning rate after a share `progress` in [0, 1) of the training, a pure function so that runs resume."""
    if recipe.lr_schedule != "onecycle":
        first, second = (1 / 2, 3 / 4) if recipe.lr_schedule == "steps" else (1 / 3, 2 / 3)
        return recipe.lr * (1 if progress < first else 0.1 if progress < second else 0.01)
    if progress < 0.3:  # the one-cycle policy of Smith and Topin with cosine ramps, as in torch's OneCycleLR
        return recipe.lr * (0.04 + 0.96 * (1 - math.cos(math.pi * progress / 0.3)) / 2)
    return recipe.lr * (1 + math.cos(math.pi * (progress - 0.3) / 0.7)) / 2


def loss_scaler(recipe: Recipe, device: torch.device) -> torch.amp.GradScaler:
    """float16 alone needs scaling; what it learns is kept from epoch to epoch."""
    return torch.amp.GradScaler(device.type, init_scale=SCALE, enabled=recipe.precision == "float16")


def make_momentum(optimisers: list[torch.optim.Optimizer]) -> None:
    """Momentum from zeros, which gives the same first step.  SGD would leave what lay in memory if that step overflows."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            for p in group["params"] if group.get("momentum") else ():
                optimiser.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
