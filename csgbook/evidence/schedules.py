"""The networks of a page under several schedules: which runs there are, the longest training first."""

from collections.abc import Callable, Sequence
from pathlib import Path

from csgbook import experiments
from csgbook.claims import CLAIMS
from csglib.runs import Run

Runs = dict[str, list[Run]]
PROFILES = ("paper", "short")  # whose schedules are shown beside each other, the longest first
SHORTEST = {"std": "standard", "csg": "alternating"}  # the same after fewer epochs, on the page what-matters; no matched there
NETWORKS = ("csg", "std", "matched")


def profiles(profile: str) -> list[str]:
    """Those whose schedules a page shows, the longest first; Problem where there is no such profile."""
    experiments.profile(profile)
    known = [name for name in PROFILES if name in experiments.book()["profiles"]]
    return known if known and profile != "smoke" else [profile]


def found(page: str, profile: str, folder: Path | str | None = None) -> list[Runs]:
    """The page's runs under each schedule that says something there, the longest first; at least one, which may be empty.

    A schedule does where it has runs of all networks that have some under the profile's own, or of both sides of one of the
    page's claims.
    """
    every = {name: experiments.published(page, name, folder) for name in profiles(profile)}
    own = experiments.book()["profiles"][profile].get("like", profile)
    sides = [{claim.of, claim.over} - {None} for claim in CLAIMS if claim.page == page]
    asked = [names for names in (shared(has_runs(every.get(own, {}))), *sides) if names]
    return [runs for runs in every.values() if any(names <= has_runs(runs) for names in asked)] or list(every.values())[-1:]


def leading(by_schedule: Sequence[Runs], fit: Callable[[Run], bool] = lambda run: True) -> Runs:
    """What a page draws: the runs of the longest schedule that has all networks of the shortest, by runs that fit."""
    fitting = [{name for name, group in runs.items() if any(map(fit, group))} for runs in by_schedule]
    return next(runs for runs, names in zip(by_schedule, fitting, strict=True) if shared(fitting[-1]) <= names)


def has_runs(runs: Runs) -> set[str]:
    return {name for name, group in runs.items() if group}


def shared(names: set[str]) -> set[str]:
    """Those on the data that all profiles share, if there are any; the others, as on Tiny ImageNet, have no longer training."""
    table = experiments.book()
    of_kind = [profile.get("kinds", {}) for profile in table["profiles"].values()]
    kinds = {name: table["experiments"].get(name, {}).get("kind") for name in names}
    return {name for name, kind in kinds.items() if not any("dataset" in fields.get(kind, {}) for fields in of_kind)} or names


def lengths(profile: str, folder: Path | str | None = None) -> dict[int, Runs]:
    """CSG, STD and MATCHED by the number of epochs, the fewest first; lists are empty where there are no runs."""
    names = profiles(profile)
    asked = [("table1", name, dict(zip(NETWORKS, NETWORKS, strict=True))) for name in names]
    asked += [("what-matters", names[-1], SHORTEST)] * (len(names) > 1)
    by_epochs: dict[int, Runs] = {}
    for page, name, called in asked:
        recipes, runs = experiments.recipes(page, name, folder), experiments.published(page, name, folder)
        for n in {recipe.epochs for experiment in called.values() for recipe in recipes.get(experiment, [])}:
            by_epochs[n] = {network: runs.get(called.get(network, ""), []) for network in NETWORKS}
    return dict(sorted(by_epochs.items()))


def beside(page: str, profile: str, folder: Path | str | None = None) -> list[Run]:
    """Every run that the page reads, those of other schedules than the profile's among them."""
    several = found(page, profile, folder)
    if page == "table1":
        several = [*several, *lengths(profile, folder).values()]
    if page == "which-one":  # which says what longer trainings of table 1 change
        several = [*several, *found("table1", profile, folder)]
    return list({run.recipe.name: run for runs in several for group in runs.values() for run in group}.values())


def named(schedules: Sequence[Runs]) -> Runs:
    """All of them in one dictionary; where there are several schedules, the name of an experiment says its epochs."""
    if len(schedules) == 1:
        return schedules[0]
    epochs = [next(run.recipe.epochs for group in runs.values() for run in group) for runs in schedules]
    return {
        f"{name}, {group[0].recipe.epochs if group else n} epochs": group  # an ablation has a schedule of its own
        for n, runs in zip(epochs, schedules, strict=True)
        for name, group in runs.items()
    }
