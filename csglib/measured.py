"""What a readout cannot tell of a run because it takes images: measured once by a tool, kept in data/measured/KIND.json.

Each entry stands under the run's name and carries the sha256 of the weights that were measured, the commit and the hardware.
"""

import json

import torch

from csglib import Problem, runs
from csglib.data import ROOT
from csglib.runs import Run

FOLDER = ROOT / "data" / "measured"
TOOLS = {"detection": "tools/detection.py", "localisation": "tools/localisation.py"}


def read(kind: str) -> dict[str, dict]:
    path = FOLDER / f"{kind}.json"
    return runs.read_json(path, f"restore it with git, or remove it and run `python {TOOLS[kind]}`") if path.exists() else {}


def of(kind: str, run: Run) -> dict | None:
    """What was measured of this run, None if nothing; refuses what was measured of other weights under its name."""
    entry = read(kind).get(run.recipe.name)
    if entry is not None and entry.get("model") != weights(run):
        raise Problem(
            f"data/measured/{kind}.json has {run.recipe.name} with other weights than its folder: run `python {TOOLS[kind]}`"
        )
    return entry


def keep(kind: str, run: Run, found: dict) -> None:
    """Put what was found into the file, in place of an older entry of the run."""
    here = runs.provenance(torch.device("cpu"))
    stamp = {"model": weights(run)} | {name: here[name] for name in ("commit", "dirty", "hardware")}
    FOLDER.mkdir(parents=True, exist_ok=True)
    everything = read(kind) | {run.recipe.name: stamp | found}
    runs.write(FOLDER / f"{kind}.json", json.dumps(dict(sorted(everything.items())), indent=1) + "\n")


def weights(run: Run) -> str:
    return run.provenance["sha256"]["model.safetensors"]
