"""What training one large network on 1, 8 or 64 GPUs would take: hours and price, from parts that are counted or measured.

`rows` gives the table.  Its docstring lists every assumption; `Machines` holds those that are numbers.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
import torch
from IPython.display import Markdown
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from csgbook import experiments, measured
from csgbook.pages.tables import markdown, percent
from csglib import networks
from csglib.errors import Problem
from csglib.methods import method
from csglib.recipe import Recipe


class Task(NamedTuple):
    """A recipe and what it cannot say itself while its images are not here."""

    title: str
    recipe: Recipe  # its batch_size is that of one GPU
    images: int  # training images
    classes: int
    pixels: int  # sides of an image
    resident: bool  # whether the images lie decoded on every GPU, as csglib.data keeps them, or are decoded as they are needed


@dataclass(frozen=True)
class Machines:
    """Assumptions about the GPUs; the first four are of an H200 SXM as it is commonly described, not looked up at its maker."""

    gpu: str = "H200"
    peak: float = 989e12  # operations per second in bfloat16 with dense matrices; a multiply-add is two
    inside: float = 450e9  # bytes per second and direction between the GPUs of a node: NVLink's 900 GB/s both ways
    node: int = 8  # GPUs in a node
    between: float = 50e9  # bytes per second and direction of a GPU to other nodes: one port of 400 Gbit/s each, our assumption
    reached: tuple[float, float] = (0.4, 0.8)  # share of these bandwidths that an all-reduce gets, our assumption
    launch: tuple[float, float] = (2e-6, 10e-6)  # seconds from one kernel to the next, in a graph and without, our assumption
    used: tuple[float, float] = (0.05, 0.25)  # share of the peak that a step gets, our assumption: see `rows`


def tasks() -> list[Task]:
    """The two that the paper trained and this book could not: ImageNet with ResNet-18, VOC's animals with ResNet-152.

    The recipes are those of the profile paper.  ImageNet's is not known from the paper: 90 epochs of 256 images are
    torchvision's reference for ResNets.  VOC's 5,344 animals of VOC 2010 less 1,700 for validation are the counts of the
    paper's code.
    """
    imagenet = experiments.recipes("table1", "paper")["imagenet-csg"][0]
    voc = experiments.recipes("localisation", "paper")["animals-csg"][0]
    return [
        Task("ImageNet, ResNet-18, 224 px", imagenet, 1_281_167, 1000, 224, False),
        Task("VOC 2010 animals, ResNet-152, 128 px", voc, 5_344 - 1_700, 6, 128, True),
    ]


def dearest_epoch(recipe: Recipe) -> int:
    """The first epoch that trains the gated path, or the first of all: gated steps also send the gate's gradient."""
    m = method(recipe)
    return max(range(recipe.epochs), key=lambda epoch: (m.path(recipe, epoch) in ("gated", "joint"), -epoch))


class Kernels(TorchDispatchMode):
    """Counts what is computed, views left out: a GPU starts at least so many kernels."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@functools.cache  # it builds a ResNet-152
def counted(task: Task) -> dict[str, int]:
    """Operations a training image costs, forward and backward, kernels of a step, and the bytes of gradient that it exchanges.

    Matrix products and convolutions are counted, a multiply-add as two; all else of a step moves memory and hardly computes.
    Gradients are float32, as DistributedDataParallel sends them.  Frozen layers are neither sent nor differentiated.
    """
    net = networks.build(task.recipe.net, task.classes)  # weights do not change the count, so none are downloaded
    networks.freeze(net, task.recipe.thaw)
    m = method(task.recipe)
    gate = m.gate(task.recipe, net)
    net, gate = net.to("meta").train(), gate.to("meta") if gate is not None else None
    x, y = torch.empty(2, 3, task.pixels, task.pixels, device="meta"), torch.zeros(2, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter, Kernels() as kernels:
        m.loss(task.recipe, dearest_epoch(task.recipe), net, gate, x, y)[0].backward()
    learning = [p for part in (net, gate) if part is not None for p in part.parameters() if p.requires_grad]
    return {
        "operations": counter.get_total_flops() // len(x),
        "kernels": kernels.count,
        "gradient_bytes": 4 * sum(p.numel() for p in learning),
        "gate_bytes": 4 * gate.matrix.numel() if gate is not None else 0,
    }


def on_a_processor() -> dict:
    """data/measured/scaling.json; no steps and no decoding where it is missing."""
    return measured.read("scaling") or {"steps": [], "decoded_per_core": None}


def gate_ratio(task: Task) -> float:
    """Time of a mean step of the recipe against standard training: its gated epochs cost what was measured of the network."""
    known = [row for row in on_a_processor()["steps"] if row["net"] == task.recipe.net]
    nearest = min(known, key=lambda row: abs(row["pixels"] - task.pixels), default={"csg_ratio": 1.0})
    epochs = range(task.recipe.epochs)
    gated = sum(method(task.recipe).path(task.recipe, epoch) == "gated" for epoch in epochs) / len(epochs)
    return 1 + gated * max(0.0, nearest["csg_ratio"] - 1)  # a gate saves nothing: less is noise


def speed(task: Task, operations: int, machines: Machines) -> tuple[float, float, str]:
    """Lowest and highest images per second of one GPU in standard training, and where they come from.

    A committed measurement is an entry of data/measured/speed.json with the unit images/s and the name gpu_NET_PIXELS, such
    as gpu_resnet18@layer4_224; without one they follow from counted operations and an assumed share of the peak.
    """
    name = f"gpu_{task.recipe.net}_{task.pixels}"
    for row in measured.read("speed").get("rows", []):
        if row["name"] == name and row["unit"] == "images/s" and row["value"]:
            return row["value"], row["value"], f"measured: {row['hardware']['gpu']}"
    low, high = (share * machines.peak / operations for share in machines.used)
    return low, high, f"assumed: {percent(machines.used[0])} to {percent(machines.used[1])} of the {machines.gpu}'s peak"


def exchange(size: int, gpus: int, machines: Machines) -> float:
    """Seconds of an all-reduce of `size` bytes at full bandwidth: rings inside the nodes, then between them."""
    inner = min(gpus, machines.node)
    nodes = gpus // inner
    if inner * nodes != gpus:
        raise Problem(f"{gpus} GPUs do not fill nodes of {machines.node}: use a multiple")
    inside = 2 * (inner - 1) / inner * size / machines.inside
    return inside + 2 * (nodes - 1) / nodes * size / inner / machines.between


def rows(
    gpus: tuple[int, ...] = (1, 8, 64),
    price: float | None = None,
    machines: Machines | None = None,
    asked: Sequence[Task] | None = None,
) -> list[dict]:
    """One row per task, of those asked for or all, and number of GPUs; two numbers in a value are its lowest and highest.

    `price` is of a GPU-hour in any currency; without it there are no costs.

    Counted: operations, kernels and bytes of gradient (`counted`).  Measured on a processor (data/measured/scaling.json): what
    a gated step costs against a standard one, taken to be the same on a GPU, and the images that one core decodes.  The gate's
    measured share lies within the noise of that machine, and counts as none where it came out negative.  Measured on a GPU:
    images per second, where data/measured/speed.json has the network.

    Assumed:
    - Without that measurement a step reaches 5 to 25 % of the peak.  ResNet-50 reaches 23 % on a V100 and 19 % on an A100 by
      the tables of NVIDIA's DeepLearningExamples (1,200 and 2,470 images/s; 24.3 billion operations per image by our count,
      peaks of 125 and 312 trillion per second); an H200 has less memory bandwidth for its peak than either.  The range is wide
      since networks differ: on the processor, busy with other work, these differ twofold in operations per second.
    - A step takes at least 2 to 10 microseconds per kernel, which bounds small batches of deep networks.
    - Each GPU keeps the recipe's batch, so the batch of a step grows with the GPUs.  That it learns as well is not claimed;
      with few steps per epoch it will not.
    - Gradients are exchanged in float32, at 40 to 80 % of the bandwidths in `Machines`.  The shorter time hides the exchange
      behind the step and the longer one adds all of it.
    - GPUs never wait for images.  `cores` says how many processor cores must decode for that, at the higher speed.
    - Starting, the tests after each epoch and failures cost nothing.
    """
    machines = machines or Machines()
    if price is not None and not 0 <= price < math.inf:
        raise Problem(f"a GPU-hour cannot cost {price:g}: give a number, or leave it out")
    decoded = on_a_processor()["decoded_per_core"]
    table = []
    for task in tasks() if asked is None else asked:
        cost, share = counted(task), gate_ratio(task)
        slow, fast, basis = speed(task, cost["operations"], machines)
        for n in gpus:
            batch = task.recipe.batch_size * n
            most = task.images // task.recipe.batch_size
            if not 1 <= n <= most:
                raise Problem(f"{n} GPUs cannot share the {task.images} images of {task.title}: use 1 to {most}")
            steps = task.images // batch
            send = exchange(cost["gradient_bytes"], n, machines)
            sends = send / machines.reached[1], send / machines.reached[0]
            compute = [
                max(share * task.recipe.batch_size / v, cost["kernels"] * launch)
                for v, launch in zip((fast, slow), machines.launch, strict=True)
            ]
            step = max(compute[0], sends[0]), compute[1] + sends[1]
            hours = [task.recipe.epochs * steps * seconds / 3600 for seconds in step]
            table.append(
                {
                    "task": task.title,
                    "gpus": n,
                    "basis": basis,
                    "batch": batch,
                    "steps": steps,
                    "images_per_second": (batch / step[1], batch / step[0]),
                    "exchange_ms": tuple(1000 * s for s in sends),
                    "hours": tuple(hours),
                    "gpu_hours": tuple(n * h for h in hours),
                    "price": None if price is None else tuple(price * n * h for h in hours),
                    "cores": None if task.resident or decoded is None else math.ceil(batch / step[0] / decoded),
                }
            )
    return table


def span(values: tuple[float, float] | None) -> str:
    """The lowest and the highest value, in words."""
    if values is None:
        return "–"
    return " to ".join(dict.fromkeys(f"{float(f'{v:.3g}'):,.0f}" if v >= 100 else f"{v:.2g}" for v in values))


def time(hours: tuple[float, float]) -> str:
    """The shortest and the longest time, in a unit in which they can be read."""
    unit, size = next((u, s) for u, s in (("h", 1), ("min", 60), ("s", 3600)) if hours[1] * s >= 2 or u == "s")
    return f"{span(tuple(h * size for h in hours))} {unit}"


def table(price: float | None = None) -> Markdown:
    """The rows as the page shows them, costs where there is a price, and where the speeds come from."""
    told = rows(price=price)
    shown = [
        {
            "Training": row["task"],
            "GPUs": row["gpus"],
            "Batch": f"{row['batch']:,}",
            "Images/s": span(row["images_per_second"]),
            "Time": time(row["hours"]),
            "GPU-hours": span(row["gpu_hours"]),
            **({} if price is None else {"Price": span(row["price"])}),
            "Cores that decode": "–" if row["cores"] is None else f"{row['cores']:,}",
        }
        for row in told
    ]
    tasks_by_basis: dict[str, dict[str, None]] = {}
    for row in told:
        tasks_by_basis.setdefault(row["basis"], {})[row["task"]] = None
    speeds = "; ".join(f"{basis} ({'; '.join(titles)})" for basis, titles in tasks_by_basis.items())
    return Markdown(f"{markdown(pd.DataFrame(shown)).data}\n\nThe speed of a GPU is {speeds}.")
