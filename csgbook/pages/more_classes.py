"""Table 1 beyond ten classes: Tiny ImageNet, and ImageNet, of which the page says what training would take."""

from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import Markdown

from csgbook import experiments
from csgbook.pages import gpu_costs, tables
from csglib.recipe import Recipe
from csglib.runs import Run

TINY, IMAGENET = ({f"{kind}-std": "STD", f"{kind}-csg": "CSG"} for kind in ("tiny", "imagenet"))
SCORES = {"mis_balanced": "Balanced MIS, nats", "mis_balanced_null": "Balanced MIS, shuffled labels"}  # beside METRICS


def numbers(runs: dict[str, list[Run]], names: dict[str, str]) -> str:
    """A table of those that have runs, one column each; empty where none has."""
    there = {name: runs[name] for name in names if runs.get(name)}
    if not there:
        return ""
    rows = {"Measure": [*tables.METRICS.values(), *SCORES.values(), "runs"]}
    for name, group in there.items():
        values = [tables.spread([run.metrics.get(metric) for run in group]) for metric in (*tables.METRICS, *SCORES)]
        rows[names[name]] = [*values, str(len(group))]
    return tables.markdown(pd.DataFrame(rows)).data


def tiny(profile: str, folder: Path | str | None = None) -> Markdown:
    """The numbers on Tiny ImageNet, or how to get them."""
    recipes, runs = (f("table1", profile, folder) for f in (experiments.recipes, experiments.published))
    if table := numbers(runs, TINY):
        return Markdown("\n\n".join(filter(None, (table, gap(runs)))))
    commands = "\n".join(recipe.command for name in TINY for recipe in recipes[name])
    return Markdown(f"Not run here.\n\n```sh\n{commands}\n```" if commands else "Not part of this profile.")


def gap(runs: dict[str, list[Run]]) -> str:
    """What CSG changes on Tiny ImageNet, over the seeds that both have; empty without any."""
    std, csg = ({run.recipe.seed: run.metrics for run in runs.get(name, [])} for name in TINY)
    seeds = sorted(std.keys() & csg.keys())
    if not seeds:
        return ""
    words = {"accuracy": "accuracy", "mis": "MIS", "mis_balanced": "balanced MIS"}
    changes = ", ".join(
        f"{word} by {np.mean([csg[s][m] - std[s][m] for s in seeds]):+.4f}".replace("-", "−") for m, word in words.items()
    )
    sure = "one seed, which decides nothing" if len(seeds) == 1 else f"the mean over {len(seeds)} seeds"
    return f"With its gate CSG changes {changes}: {sure}."


def imagenet(folder: Path | str | None = None) -> Markdown:
    """A table of the networks that are trained; for those that are not, the commands, with time on one GPU and on eight."""
    recipes, runs = (f("table1", "paper", folder) for f in (experiments.recipes, experiments.published))
    absent = [r for name in IMAGENET for r in recipes[name] if r.name not in {run.recipe.name for run in runs[name]}]
    return Markdown("\n\n".join(filter(None, (numbers(runs, IMAGENET), not_run(absent) if absent else ""))))


def not_run(recipes: list[Recipe]) -> str:
    """What training these would take, by the sheet of costs, and how to do it."""
    task = next(t for t in gpu_costs.tasks() if t.recipe.dataset == recipes[0].dataset)
    one, eight = gpu_costs.rows((1, 8), asked=[task])
    commands = "\n".join(recipe.command for recipe in recipes)
    gpu = gpu_costs.Machines().gpu
    cores, all_cores = (decoders(row["cores"]) for row in (one, eight))
    return (
        f"**Not run here.** One training of {recipes[0].epochs} epochs is predicted to take {gpu_costs.time(one['hours'])} on "
        f"one {gpu}{cores}, and {gpu_costs.time(eight['hours'])} on eight{all_cores} "
        "({doc}`what that assumes <how-fast>`). ImageNet's terms let nobody pass its pictures on: fetch them from "
        "image-net.org, unpack them into `data/raw/imagenet/train` "
        f"and `data/raw/imagenet/val`, and then:\n\n```sh\n{commands}\n```\n\n"
        "Interrupted, each goes on after its last epoch; the next `make book` shows the numbers here."
    )


def decoders(cores: int | None) -> str:
    return f", with {cores:,} processor cores to decode its pictures" if cores else ""
