"""Measure what csglib.scaling takes from a processor, into data/measured/scaling.json, or print its table with a price.

    python tools/scaling.py measure [ROUNDS]
    python tools/scaling.py table [PRICE OF A GPU-HOUR]

Every round times a step of standard training and one of CSG's gated epochs in turn, so that what else the machine does falls
on both.
"""

import io
import os
import statistics
import sys
import time

import numpy as np
import torch
import tyro
from PIL import Image
from tyro.conf import Positional

from csgbook import measured
from csgbook.pages import gpu_costs
from csglib import Problem, data
from csglib.data.images import Images
from csglib.precision import settle_precision
from csglib.recipe import Recipe
from csglib.runs import provenance
from csglib.training import prepare
from csglib.training.loop import loop_of

BATCH = {18: 16, 152: 4}  # images per step here, so that a step takes a few seconds and a few GB
PICTURE = (500, 375)  # pixels of the photograph whose decoding is timed, as most of ImageNet's and VOC's are


def stepper(task: gpu_costs.Task, name: str, batch: int, precision: str):
    """step() makes one training step of the task's network by the method, as training does."""
    fields = task.recipe.changed() | {"method": name, "weights": "fresh", "batch_size": batch, "precision": precision}
    recipe = Recipe(**{k: v for k, v in fields.items() if name == "csg" or not k.startswith("gate_")})
    m, net, gate = prepare.build(recipe, task.classes)
    net.to(memory_format=torch.channels_last).train()
    x = torch.randint(0, 256, (batch, 3, task.pixels, task.pixels), dtype=torch.uint8)
    y = torch.randint(0, task.classes, (batch,))
    loop = loop_of(recipe, m, net, gate, prepare.optimisers_of(recipe, m, net, gate), Images(x, y))
    epoch = gpu_costs.dearest_epoch(recipe)
    return lambda: loop.step(epoch, x, y)


def seconds(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure_steps(task: gpu_costs.Task, rounds: int, precision: str) -> dict:
    batch = BATCH[152 if "152" in task.recipe.net else 18]
    steps = {name: stepper(task, name, batch, precision) for name in ("standard", "csg")}
    times = [{name: seconds(step) for name, step in steps.items()} for _ in range(rounds + 1)][1:]  # the first warms up
    fastest = {name: min(t[name] for t in times) for name in steps}  # what else the machine does can only add
    speeds = [batch / t["standard"] for t in times]
    ratios = [t["csg"] / t["standard"] for t in times]
    return {
        "net": task.recipe.net,
        "thaw": task.recipe.thaw,
        "pixels": task.pixels,
        "batch": batch,
        "operations": gpu_costs.counted(task)["operations"],
        "images_per_second": round(batch / fastest["standard"], 3),
        "images_quartiles": [round(q, 3) for q in statistics.quantiles(speeds, n=4)[::2]],
        "csg_ratio": round(fastest["csg"] / fastest["standard"], 4),
        "csg_quartiles": [round(q, 4) for q in statistics.quantiles(ratios, n=4)[::2]],
    }


def measure_decoding(rounds: int) -> float:
    """Images per second that one core decodes from JPEG, crops and scales to 224 pixels: a picture made of the sample's."""
    images = data.load("cifar10-mini").train.images[:48].permute(0, 2, 3, 1).numpy()
    mosaic = np.concatenate([np.concatenate(list(images[i : i + 8]), axis=1) for i in range(0, 48, 8)])
    file = io.BytesIO()
    Image.fromarray(mosaic).resize(PICTURE, Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)

    def decode() -> None:
        picture = Image.open(io.BytesIO(file.getvalue())).convert("RGB")
        np.asarray(picture.crop((60, 0, 435, 375)).resize((224, 224), Image.Resampling.BILINEAR))

    return round(1 / statistics.median(seconds(decode) for _ in range(20 * rounds)), 1)


def measure(rounds: Positional[int] = 7) -> None:
    """Time the steps and write the file.

    Args:
        rounds: Steps of each network and method.
    """
    if rounds < 2:
        raise Problem(f"{rounds} rounds have no spread: use 2 or more")
    torch.manual_seed(0)
    device = torch.device("cpu")
    precision = settle_precision(Recipe(), device)[0].precision
    here = provenance.here(device)
    found = []
    for task in gpu_costs.tasks():
        for pixels in dict.fromkeys((224, task.pixels)):
            found.append(measure_steps(task._replace(pixels=pixels), rounds, precision))
            print(found[-1], file=sys.stderr)
    kept = {name: here[name] for name in ("commit", "dirty", "hardware")}
    kept["load"] = os.getloadavg()[2]  # processes that were busy in the last 15 minutes
    told = {"steps": found, "decoded_per_core": measure_decoding(rounds), "precision": precision, "rounds": rounds} | kept
    measured.write("scaling", told)


def table(price: Positional[float | None] = None) -> None:
    """Print the sheet.

    Args:
        price: Of a GPU-hour, in any currency.
    """
    print(gpu_costs.table(price).data)


if __name__ == "__main__":
    try:
        tyro.extras.subcommand_cli_from_dict({"measure": measure, "table": table}, description=__doc__)
    except Problem as problem:
        print(f"csglib: {problem}", file=sys.stderr)
        sys.exit(2)
