"""One large network on several GPUs or machines: each process trains on its part of every batch, started by torchrun.

    torchrun --nproc-per-node 8 --no-python csglib train --net resnet18@layer4 ... --out DIR

The batch of the recipe is the joined one, and so are its normalisation's statistics, so that the network trained is the one
that a single process trains.  Process 0 alone writes.
"""

import atexit
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel

from csglib.errors import Problem
from csglib.recipe import Recipe

MEANS = ("standard", "matched", "csg", "joint", "fixed")  # whose loss on a batch is the mean of those on its parts
talk = None  # a group for all but gradients and sums: process 0 may write or evaluate for hours, NCCL gives up after 10 minutes


def world() -> int:
    """How many processes train this recipe."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is; 0 writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def join(recipe: Recipe, device: torch.device) -> torch.device:
    """Join the processes that torchrun started, if it did; returns the device of this one."""
    global talk
    size = world() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        return device
    if size > recipe.batch_size or recipe.batch_size % size:
        raise Problem(f"{size} processes cannot share a batch of {recipe.batch_size} evenly: choose a multiple of {size}")
    if recipe.method not in MEANS or recipe.fixed_gate == "shuffled":
        raise Problem(f"{recipe.method}'s loss looks at the whole batch: train it in one process, or choose {', '.join(MEANS)}")
    if recipe.loop == "fast":
        raise Problem(f"{size} processes train with the plain loop alone: leave --loop out, or train in one process")
    local = int(os.environ.get("LOCAL_RANK", 0))
    gpu = device.type == "cuda"
    if gpu:
        if local >= torch.cuda.device_count():
            raise Problem(f"process {local} has no GPU of its own among {torch.cuda.device_count()}: lower --nproc-per-node")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    atexit.unregister(leave)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if gpu else "gloo", device_id=device if gpu else None)
    if talk is None:
        talk = dist.new_group(backend="gloo", timeout=timedelta(days=1))
    return device


def finished() -> None:
    """All processes have come to an end of their work: they may leave.  One that failed must not wait for the others."""
    if world() > 1:
        atexit.register(leave)


def leave() -> None:
    """End the group of processes, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def first(do: Callable[[], Any]) -> Any:
    """What process 0 does for all: what it returns, or the Problem that it raises, comes to every process."""
    if world() == 1:
        return do()
    box = [None]
    if rank() == 0:
        try:
            box = [do()]
        except Problem as problem:
            box = [type(problem)(str(problem))]
    dist.broadcast_object_list(box, 0, talk)
    if isinstance(box[0], Problem):
        raise box[0]
    return box[0]


def part(batch_size: int) -> slice:
    """The rows of every batch that are this process's."""
    n = batch_size // world()
    return slice(rank() * n, (rank() + 1) * n)


def share(n: int) -> slice:
    """Which of n test images this process evaluates: some of them, or all where there are too few to share."""
    return slice(rank(), None, world()) if n >= world() else slice(None)


def mean(value: float, n: int) -> float:
    """The mean over what all processes evaluated, where that of this one's n images is `value`."""
    if world() == 1:
        return value
    total = torch.tensor([value * n, n], dtype=torch.float64)
    dist.all_reduce(total, group=talk)
    return (total[0] / total[1]).item()


def normalise_jointly(net: nn.Module, device: torch.device) -> nn.Module:
    """Batch normalisation by the statistics of the joined batch."""
    if world() == 1:
        return net
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(net)
    for module in net.modules():  # torch has it for GPUs alone
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = JointBatchNorm
    return net


class JointBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the images of all processes, so that their number changes no statistic."""

    def forward(self, x: Tensor) -> Tensor:
        """With the mean and variance of all processes' rows; in eval mode as torch's."""
        if not self.training:
            return super().forward(x)
        a = x.float()
        n = x.numel() / x.shape[1] * world()
        mean = all_reduce(a.mean((0, 2, 3))) / world()
        centred = a - mean[:, None, None]
        var = all_reduce(centred.square().mean((0, 2, 3))) / world()
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (n / (n - 1)), self.momentum)
        y = centred * (var + self.eps).rsqrt()[:, None, None]
        return (y * self.weight[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def wrapped(loss: nn.Module, unused: bool) -> nn.Module:
    """The loss with its gradients averaged over the processes.  `unused`: some epoch leaves out some of what learns."""
    if world() == 1:
        return loss
    device = next(loss.parameters()).device
    places = [device] if device.type == "cuda" else None
    return DistributedDataParallel(loss, places, broadcast_buffers=False, find_unused_parameters=unused)


def summed(value: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if world() > 1:
        dist.all_reduce(value)
    return value


def same(gate: nn.Module | None) -> None:
    """Stop unless all processes have the same gate, to the bit."""
    if gate is None or world() == 1:
        return
    low, high = gate.matrix.detach().clone(), gate.matrix.detach().clone()
    dist.all_reduce(low, dist.ReduceOp.MIN)
    dist.all_reduce(high, dist.ReduceOp.MAX)
    if not torch.equal(low, high):
        raise Problem("the processes' gates have come apart: an error of this program, please report it with the recipe")
