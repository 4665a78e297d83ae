"""How the grid of *Does it hold elsewhere?* is trained: schedules, learning rates, what is missing and what it costs."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import pandas as pd
from IPython.display import Markdown

from csgbook import experiments, measured
from csgbook.evidence import grid
from csgbook.evidence.grid import Cell
from csgbook.pages.elsewhere import LACKING
from csgbook.pages.tables import markdown
from csglib import methods
from csglib.recipe import Recipe
from csglib.runs import Run

# Learning rates and schedules


def schedules(cells: Sequence[Cell]) -> Markdown:
    """For each data set how long a training is, how much of it CSG's gate sees, and how well standard training then does."""
    rows = []
    for data in dict.fromkeys(c.data for c in cells):
        group = [c for c in cells if c.data == data]
        recipe, classes = group[0].recipe, group[0].classes
        csg = dataclasses.replace(recipe, method="csg")
        gated = sum(methods.method(csg).path(csg, e) == "gated" for e in range(csg.epochs))
        reached = [run.metrics["accuracy"] for c in group for run in c.runs.get("std", [])]
        rows.append(
            {
                "Data": f"`{recipe.dataset}`" if data == recipe.dataset else f"{grid.called(data)}, `{recipe.dataset}`",
                "Epochs": str(recipe.epochs),
                "of them gated": str(gated),
                "Images per step": str(recipe.batch_size),
                "1 / classes": f"{1 / classes:.2f}" if classes else "",
                "STD accuracy": f"{min(reached):.2f} to {max(reached):.2f}" if reached else LACKING,
            }
        )
    return markdown(pd.DataFrame(rows))


def rates(profile: str, runs: dict[str, list[Run]], cells: Sequence[Cell]) -> Markdown:
    """What each learning rate gave on held-out images, which is taken, and whether the grid has it."""
    trials = grid.rates(profile, runs)
    if not trials:
        return Markdown("No learning rate has been tried here yet.")
    used = {c.network: c.recipe.lr for c in cells}
    every = sorted({lr for found in trials.values() for lr in found})
    rows = []
    for network, found in trials.items():
        row = {"Network": grid.called(network)}
        row |= {f"{lr:g}": f"{found[lr].metrics['accuracy']:.3f}" if lr in found else "" for lr in every}
        best = grid.taken(found)
        rows.append(
            row | {"Taken": f"{best:g}" if used.get(network) == best else f"{best:g}, and the grid has {used.get(network)}"}
        )
    shown = next(iter(next(iter(trials.values())).values())).recipe
    text = (
        f"Accuracy of standard training after {shown.epochs} epoch{'s' * (shown.epochs > 1)} on {shown.holdout:,} training "
        "images that were held out, seed 0."
    )
    return Markdown(f"{pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)}\n\n{text}")


# What is missing, and what it costs


def seconds(recipes: Sequence[Recipe]) -> tuple[float, int]:
    """How long their training takes by the measured steps, and how many have no measured step."""
    known = measured.read("grid-pace")
    paces = {(p["net"], p["pixels"]): p for p in known.get("paces", [])}
    total, unknown = 0.0, 0
    for r in recipes:
        of = grid.size(r.dataset)
        pace = of and paces.get((r.net, of["pixels"]))
        if not pace:
            unknown += 1
            continue
        m = methods.method(r)
        epochs = sum(m.path(r, e) != "skipped" for e in range(r.epochs))
        train, test = (of["train"] - r.holdout, r.holdout) if r.holdout else (of["train"], of["test"])
        total += epochs * (train * pace["train"] + test * pace["test"])
    return total, unknown


def hours(s: float) -> str:
    return f"{s / 60:.0f} minutes" if s < 5400 else f"{s / 3600:.0f} hours" if s < 96 * 3600 else f"{s / 86400:,.0f} days"


def missing(lacking: Sequence[Recipe], profile: str) -> Markdown:
    """How many runs the page lacks, the command that trains them, and what that costs by measured steps."""
    if not lacking:
        return Markdown("All runs of this page are there.")
    of = profile if profile in ("short", "paper") else "short"
    told = ", ".join(f"{n} on `{name}`" for name, n in Counter(r.dataset for r in lacking).items())
    return Markdown(
        f"{len(lacking)} runs are not run here, so their cells are empty: {told}. {cost(lacking)} A stop anywhere costs at "
        "most an epoch: the same command goes on, and names what it leaves out since its pictures are not there.\n\n"
        f"```sh\ncsgbook missing --profile {of} --page elsewhere\n```"
    )


def cost(recipes: Sequence[Recipe]) -> str:
    """One sentence on the predicted time of these trainings here."""
    known = measured.read("grid-pace")
    if not known:
        return "What they would take has not been measured yet: `python tools/grid_pace.py` does it."
    total, unknown = seconds(recipes)
    if unknown == len(recipes):
        return "What they would take is not known: of none of them the step was measured."
    more = f"; of {unknown} the step was not measured" if unknown else ""
    hardware = known["hardware"]
    return (
        f"By measured steps {len(recipes) - unknown} trainings take about {hours(total)} on {hardware['processor']}, "
        f"{hardware['threads']} threads, in {known['precision']}{more}."
    )


def of_profile(name: str) -> Markdown:
    """How many trainings the grid has in a profile, and what they would cost here."""
    groups = experiments.recipes("elsewhere", name)
    recipes = list(dict.fromkeys(r for group in groups.values() for r in group))
    return Markdown(f"Profile *{name}*: {len(recipes)} trainings. {cost(recipes)}")
