"""The networks of a page under several schedules: which runs there are, the longest training first."""

from collections.abc import Sequence
from pathlib import Path

from csglib import experiments
from csglib.runs import Run

Runs = dict[str, list[Run]]
PROFILES = ("paper", "short")  # whose schedules are shown beside each other, the longest first
PAGES = ("table1",)  # that show them
SHORTEST = {"std": "standard", "csg": "alternating"}  # the same after fewer epochs, on the page what-matters; no matched there
NETWORKS = ("csg", "std", "matched")


def found(page: str, profile: str, folder: Path | str | None = None) -> list[Runs]:
    """The page's runs under each schedule that has any, the longest first; at least one, which may be empty."""
    several = page in PAGES and profile != "smoke"
    every = [experiments.published(page, name, folder) for name in (PROFILES if several else (profile,))]
    return [runs for runs in every if any(runs.values())] or every[-1:]


def lengths(profile: str, folder: Path | str | None = None) -> dict[int, Runs]:
    """CSG, STD and MATCHED by the number of epochs, the fewest first; lists are empty where there are no runs."""
    found: dict[int, Runs] = {}
    for page, name, called in (
        (("table1", profile, {}),)
        if profile == "smoke"
        else (("what-matters", PROFILES[-1], SHORTEST), *(("table1", name, {}) for name in PROFILES[::-1]))
    ):
        names = {network: called.get(network, "" if called else network) for network in NETWORKS}
        recipes, runs = experiments.recipes(page, name), experiments.published(page, name, folder)
        found[recipes[names["csg"]][0].epochs] = {network: runs.get(names[network], []) for network in NETWORKS}
    return dict(sorted(found.items()))


def beside(page: str, profile: str, folder: Path | str | None = None) -> list[Run]:
    """Every run that the page reads, those of other schedules than the profile's among them."""
    several = [*found(page, profile, folder), *(lengths(profile, folder).values() if page in PAGES else [])]
    return list({run.recipe.name: run for runs in several for group in runs.values() for run in group}.values())


def named(schedules: Sequence[Runs]) -> Runs:
    """All of them in one dictionary; where there are several schedules, the name of an experiment says its epochs."""
    if len(schedules) == 1:
        return schedules[0]
    epochs = [next(run.recipe.epochs for group in runs.values() for run in group) for runs in schedules]
    return {f"{name}, {n} epochs": group for n, runs in zip(epochs, schedules, strict=True) for name, group in runs.items()}
