"""Measure how long a step of each network of the grids takes here: data/measured/grid-pace.json.

    python tools/grid_pace.py

Of each network standard training on random pixels, the fastest of some rounds, as other work on the machine only slows it; CSG
and PICNN take the same within a few per cent (data/measured/step-cost.json).  At 224 pixels a batch has 16 images, since 128
take minutes on a processor; an image costs the same.
"""

import dataclasses
import os
import sys
import warnings

import torch

from csgbook import experiments, measured
from csgbook.evidence import grid
from csglib import Problem, data
from csglib.precision import native
from csglib.runs import provenance
from csglib.training import pace

PAGE, PROFILES, ROUNDS = "elsewhere", ("short", "paper"), 3
# Images to train on and to test on, classes: of what is not here, as its release says; of VOC, CSG's paper's objects
RELEASED = {"folder:imagenet100": (126_689, 5000, 100), "voc:voc2010": (3644, 1700, 6)}


def size(dataset: str) -> pace.Size:
    if dataset in grid.RELEASED:
        return pace.Size(**grid.RELEASED[dataset])
    if (known := RELEASED.get(dataset.partition("@")[0])) is None:
        return pace.size_of(data.load(dataset))
    pixels = int(dataset.split("@")[1])
    return pace.Size(known[0], known[1], pixels, known[2])


def main() -> None:
    cpu = torch.device("cpu")
    stamp = provenance.here(cpu)
    load, precision = os.getloadavg()[0], native(cpu)[0]
    every = [r for profile in PROFILES for g in experiments.recipes(PAGE, profile).values() for r in g]
    sizes = {name: size(name) for name in dict.fromkeys(r.dataset for r in every)}
    paces: dict[tuple, dict] = {}
    for recipe in every:
        of = sizes[recipe.dataset]
        key = (recipe.net, of.pixels)
        if key in paces:
            continue
        large = of.pixels > 32
        pace.STEPS["cpu"] = 2 if large else 20 if "x0." in recipe.net or recipe.net == "resnet20" else 4
        batch = 16 if large else 128
        asked_of = dataclasses.replace(recipe, method="standard", theta_lr=1e-3, precision=precision, batch_size=batch)
        found = [pace.measure(asked_of, of, cpu) for _ in range(ROUNDS)]
        train, test = (min(getattr(p, name) for p in found) for name in ("train", "test"))
        paces[key] = {"net": recipe.net, "pixels": of.pixels, "batch": batch, "train": train, "test": test}
        print(f"{recipe.net} at {of.pixels}: {1 / train:.0f} images/s, read out {1 / test:.0f}", flush=True)
    told = {name: dataclasses.asdict(of) for name, of in sizes.items()}
    values = {"paces": list(paces.values()), "sizes": told, "precision": precision, "rounds": ROUNDS, "load": load}
    measured.write("grid-pace", values | {name: stamp[name] for name in ("commit", "dirty", "hardware")})


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    try:
        main()
    except Problem as problem:
        sys.exit(f"csglib: {problem}")
