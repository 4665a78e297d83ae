"""One epoch of training, as fast as the device permits.

The plain loop runs operation by operation.  The fast one has torch compile the network, and on a GPU captures a whole step,
from the choice of the batch to the gate's projection, as one CUDA graph for each path: an epoch is then a row of replays,
in which the host waits for nothing.  Both compute the same steps; compiled sums round in another order.
"""

import ctypes
import math
import sys
import time
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from csglib import data, distributed
from csglib.data import Images
from csglib.methods import Gate, Method
from csglib.nets import Split
from csglib.provenance import plain
from csglib.runs import Recipe

EAGER_STEPS = 3  # of a path before its capture: they make the optimisers' buffers and compile what has to be compiled
SCALE = {"scale": 2.0**12, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 0}


class Loop:
    """The training steps of one recipe on one device, and what they need to be fast: compiled maps, a stream, graphs."""

    def __init__(self, recipe: Recipe, m: Method, net: Split, gate: Gate | None, optimisers: list, images: Images):
        self.recipe, self.m, self.net, self.gate, self.optimisers, self.images = recipe, m, net, gate, optimisers, images
        self.device = device = images.images.device
        self.steps = len(images) // recipe.batch_size
        self.reason = "operation by operation"
        self.compiled = None
        self.loss = distributed.wrapped(Loss(recipe, m, net, gate))
        # float16 alone needs scaling; it starts anew in each epoch, so that a checkpoint need not hold it
        self.scaler = torch.amp.GradScaler(device.type, init_scale=SCALE["scale"], enabled=recipe.precision == "float16")
        self.loss_sum = torch.zeros((), device=device)
        self.correct = torch.zeros((), device=device, dtype=torch.long)
        if recipe.loop == "fast":
            self.compiled = torch.compile(net.maps)
            self.reason = "compiled"
        self.graphs, self.stream = None, None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)  # several trainings overlap, each on its own
            self.stream.wait_stream(torch.cuda.current_stream(device))
            if recipe.loop == "fast" and distributed.world() == 1:
                self.prepare_graphs()

    def prepare_graphs(self, capture=None) -> None:
        """The buffers from which a captured step takes its batch and its learning rate; a counter on the device moves on."""
        N, device = len(self.images), self.device
        self.graphs, self.capture = {}, capture or captured
        self.order = torch.zeros(N, dtype=torch.long, device=device)
        self.shift = torch.zeros(2, N, dtype=torch.long, device=device)
        self.flip = torch.zeros(N, dtype=torch.bool, device=device)
        self.lrs = torch.zeros(self.steps, device=device)
        self.at = torch.zeros((), dtype=torch.long, device=device)
        self.rows = torch.arange(self.recipe.batch_size, device=device)
        for group in self.optimisers[0].param_groups:
            group["lr"] = torch.zeros((), device=device)
        self.reason = "compiled, steps captured as CUDA graphs"

    def start(self, epoch: int, bar) -> None:
        """Run one epoch; on a GPU, where nothing waits, ask for all its steps and return.  `row` then waits for their sums."""
        recipe, path = self.recipe, self.m.path(self.recipe, epoch)
        self.net.train()
        generator = torch.Generator().manual_seed(1_000_003 * recipe.seed + epoch)
        torch.manual_seed(1_000_003 * recipe.seed + epoch)  # for methods that draw
        self.loss_sum.zero_(), self.correct.zero_()
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(SCALE)
        self.began = time.perf_counter()
        if self.stream:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))  # it has evaluated the last epoch
        with torch.cuda.stream(self.stream) if self.stream else nullcontext(), compiled(self.net, self.compiled):
            if self.graphs is None:
                self.run(epoch, path, generator, bar)
            else:
                self.replay(epoch, path, generator, bar)

    def run(self, epoch: int, path: str, generator: torch.Generator, bar) -> None:
        recipe, B = self.recipe, self.recipe.batch_size
        for step, (x, y) in enumerate(data.batches(self.images, B, generator, distributed.part(B))):
            for group in self.optimisers[0].param_groups:
                group["lr"] = learning_rate(recipe, (epoch + step / self.steps) / recipe.epochs)
            self.step(epoch, path, x, y)
            if self.device.type == "cpu" and step % 20 == 0 and distributed.world() == 1:  # a GPU would have to stop for it
                shown = {"epoch": f"{epoch + 1}/{recipe.epochs} {path}", "loss": f"{self.loss_sum / (step + 1):.3f}"}
                shown["accuracy"] = f"{self.correct / ((step + 1) * B):.3f}"
                if self.gate is not None and self.gate.matrix.detach().amax() == 1:  # the first projection has been made
                    shown["density"] = f"{self.gate.matrix.detach().mean().item():.3f}"
                bar.set_postfix(shown, refresh=False)
            bar.update()

    def replay(self, epoch: int, path: str, generator: torch.Generator, bar) -> None:
        """The same steps from buffers on the device: some as they are, then a capture, then replays."""
        recipe, key = self.recipe, (path, epoch if self.m.by_epoch else None)
        for buffer, drawn in zip((self.order, self.shift, self.flip), data.draw(self.images, generator), strict=True):
            buffer.copy_(drawn)
        rates = [learning_rate(recipe, (epoch + s / self.steps) / recipe.epochs) for s in range(self.steps)]
        self.lrs.copy_(torch.tensor(rates))
        self.at.zero_()

        def step() -> None:
            self.step(epoch, path, *self.batch())

        done = 0
        if key not in self.graphs:
            for _ in range(min(EAGER_STEPS, self.steps)):
                step()
                done += 1
            try:
                self.graphs[key] = self.capture(step)
            except torch.OutOfMemoryError:
                raise  # with graphs or without, this is too much
            except RuntimeError as error:
                first_line = str(error).partition("\n")[0]
                self.reason = f"compiled; a step cannot be captured ({plain(first_line)})"
                print(f"{recipe.name}: {self.reason}, so it is run operation by operation", file=sys.stderr)
                self.graphs[key] = step
                for optimiser in self.optimisers:
                    optimiser.zero_grad()
        for _ in range(self.steps - done):
            self.graphs[key]()
        bar.update(self.steps)

    def batch(self) -> tuple[Tensor, Tensor]:
        """The next batch, chosen and augmented on the device; the learning rate moves with it."""
        i = self.at * self.recipe.batch_size + self.rows
        for group in self.optimisers[0].param_groups:
            group["lr"].copy_(self.lrs[self.at])
        self.at += 1
        index = self.order[i]
        images = self.images.images[index]
        return data.augment(images, self.shift[0, i], self.shift[1, i], self.flip[i], images.shape[2] // 8), (
            self.images.labels[index]
        )

    def step(self, epoch: int, path: str, x: Tensor, y: Tensor) -> None:
        weights, *gates = self.optimisers
        with autocast(self.device, self.recipe.precision):
            loss, logits = self.loss(epoch, data.to_float(x), y)
        self.scaler.scale(loss).backward()
        self.scaler.step(weights)
        weights.zero_grad()
        if path != "standard":  # the gate's optimiser and projection stay out of standard epochs
            for optimiser in gates:
                self.scaler.step(optimiser)
            if self.m.after_step is not None:
                self.m.after_step(self.recipe, self.gate)
        for optimiser in gates:
            optimiser.zero_grad()
        self.scaler.update()
        self.loss_sum += loss.detach()
        self.correct += (logits.argmax(1) == y).sum()

    def row(self, epoch: int) -> dict:
        """Wait for the epoch that was started, and tell of it what the history keeps."""
        with torch.cuda.stream(self.stream) if self.stream else nullcontext():
            loss_sum, correct = distributed.summed(self.loss_sum).item(), distributed.summed(self.correct).item()
            distributed.same(self.gate)
        return {
            "epoch": epoch,
            "path": self.m.path(self.recipe, epoch),
            "lr": learning_rate(self.recipe, epoch / self.recipe.epochs),
            "train_loss": loss_sum / distributed.world() / self.steps,
            "train_accuracy": correct / (self.steps * self.recipe.batch_size),
            "seconds": round(time.perf_counter() - self.began, 3),
        }


class Loss(nn.Module):
    """A method's loss as a module of the network and its gate, so that DistributedDataParallel can wrap it."""

    def __init__(self, recipe: Recipe, m: Method, net: Split, gate: Gate | None):
        super().__init__()
        self.recipe, self.m, self.net, self.gate = recipe, m, net, gate

    def forward(self, epoch: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return self.m.loss(self.recipe, epoch, self.net, self.gate, images, labels)


@contextmanager
def compiled(net: Split, maps):
    """Within this block the network's maps are the compiled ones, if there are any.

    Outside, in evaluation, they are not: another shape and another mode would each be compiled anew, for longer than they take.
    """
    if maps is not None:
        net.maps = maps
    try:
        yield
    finally:
        net.__dict__.pop("maps", None)


def captured(step):
    """A step as a CUDA graph; what it returns replays it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        step()
    return graph.replay


def learning_rate(recipe: Recipe, progress: float) -> float:
    """The weights' learning rate after a share `progress` in [0, 1) of the training, a pure function so that runs resume."""
    if recipe.lr_schedule == "steps":
        return recipe.lr * (1 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01)
    if progress < 0.3:  # the one-cycle policy of Smith and Topin with cosine ramps, as in torch's OneCycleLR
        return recipe.lr * (0.04 + 0.96 * (1 - math.cos(math.pi * progress / 0.3)) / 2)
    return recipe.lr * (1 + math.cos(math.pi * (progress - 0.3) / 0.7)) / 2


def autocast(device: torch.device, precision: str):
    half = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    return torch.autocast(device.type, half[precision]) if precision in half else nullcontext()


def keep_memory() -> None:
    """Have freed activations kept for the next step.  glibc gives blocks as large as these back to the system after each use;
    asking for them and clearing them anew took a tenth of a step (medians: 89 ms against 80 ms)."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for option, value in ((-3, 32 << 20), (-1, 2**31 - 1), (-2, 64 << 20)):  # M_MMAP_THRESHOLD, M_TRIM_.., M_TOP_PAD
            libc.mallopt(option, value)
