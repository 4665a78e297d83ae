"""Time of a training step of each method against standard training, side by side in one process: data/measured/step-cost.json.

    python tools/step_cost.py [ROUNDS]

Every round times the same number of steps of every method in turn, so that what else the machine does falls on all of them.
A method's time is the mean over the paths of its epochs; matched, which skips epochs, is left out.
"""

import statistics
import sys
import time

import torch

from csgbook import measured
from csglib import data, methods, precision, runs
from csglib.recipe import Recipe
from csglib.runs import provenance
from csglib.training import prepare
from csglib.training.loop import loop_of

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 15
STEPS = 10
torch.manual_seed(0)
sample = data.load("cifar10-mini").train
device = torch.device("cpu")
precision = precision.settle_precision(Recipe(), device)[0].precision


def stepper(name: str):
    """step(epoch) makes one training step of the method as training does."""
    recipe = Recipe(method=name, precision=precision)
    m, net, gate = prepare.build(recipe, 10)
    net.to(memory_format=torch.channels_last).train()
    x, y = sample.images[: recipe.batch_size], sample.labels[: recipe.batch_size]
    loop = loop_of(recipe, m, net, gate, prepare.optimisers_of(recipe, m, net, gate), sample)
    return recipe, m, lambda epoch: loop.step(epoch, x, y)


times: dict[str, list[float]] = {name: [] for name in methods.METHODS if name != "matched"}
steppers = {name: stepper(name) for name in times}
for r in range(ROUNDS + 1):
    for name, (recipe, m, step) in steppers.items():
        paths = [m.path(recipe, epoch) for epoch in range(recipe.epochs)]
        total = 0.0
        for path in set(paths):
            epoch = paths.index(path)
            started = time.perf_counter()
            for _ in range(STEPS):
                step(epoch)
            total += (time.perf_counter() - started) / STEPS * paths.count(path) / len(paths)
        if r:  # the first round warms up
            times[name].append(1000 * total)

ratios = {name: [a / b for a, b in zip(values, times["standard"], strict=True)] for name, values in times.items()}
made_by = provenance.here(device)
result = {
    "milliseconds": {name: round(statistics.median(values), 2) for name, values in times.items()},
    "ratio": {name: round(statistics.median(values), 4) for name, values in ratios.items()},
    "quartiles": {name: [round(q, 4) for q in statistics.quantiles(v, n=4)[::2]] for name, v in ratios.items()},
    "rounds": ROUNDS,
    "steps": STEPS,
    "batch_size": Recipe().batch_size,
    "precision": precision,
} | {name: made_by[name] for name in ("hardware", "commit", "dirty")}
measured.write("step-cost", result)
print(runs.dump(result["ratio"]))
