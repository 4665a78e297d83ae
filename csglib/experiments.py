"""book/experiments.yml: which recipes each page needs, per profile, and the runs of them that exist."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from csglib import Problem, check_name, runs
from csglib.data import ROOT
from csglib.runs import Recipe, Run

FILE = ROOT / "book" / "experiments.yml"


@dataclass(frozen=True)
class Profile:
    name: str
    train: bool  # whether missing runs are trained, or left out of the pages
    seeds: tuple[int, ...]
    recipe: dict  # the fields that all its recipes share
    kinds: dict[str, dict]  # those that experiments of a kind have beside, and their own seeds
    leave_out: tuple[str, ...]  # experiments that it does without


def book() -> dict:
    if not FILE.is_file():
        raise Problem(f"{FILE} is missing: work in a clone of the repository, or restore it with git")
    return yaml.safe_load(FILE.read_text())


def profile(name: str) -> Profile:
    profiles = book()["profiles"]
    check_name("profile", name, profiles)
    values = profiles[name]
    base = profiles[values["like"]] if "like" in values else values
    return Profile(
        name, values["train"], tuple(base["seeds"]), base["recipe"], base.get("kinds", {}), tuple(base.get("leave_out", ()))
    )


def recipes(page: str, profile_name: str) -> dict[str, list[Recipe]]:
    """The page's experiments, each with one recipe a seed."""
    table, p = book(), profile(profile_name)
    check_name("page", page, table["pages"])
    groups = {}
    for name in (table["pages"][page] or {}).get("experiments", []):
        if name in p.leave_out:
            groups[name] = []
            continue
        own = dict(table["experiments"][name])
        kind = dict(p.kinds.get(own.pop("kind", None), {}))
        seeds = kind.pop("seeds", p.seeds)
        groups[name] = [Recipe.from_dict(p.recipe | kind | own | {"seed": seed}, str(FILE)) for seed in seeds]
    return groups


def parameters(page: str, profile_name: str) -> dict:
    """The values that papermill sets in the page's notebook, beside `profile` and `runs_folder`."""
    return ((book()["pages"][page] or {}).get("parameters") or {}).get(profile_name, {})


def published(page: str, profile_name: str, folder: Path | str | None = None) -> dict[str, list[Run]]:
    """The runs of the page's recipes that exist under the folder (data/runs if None); those that do not are left out."""
    where = Path(folder or runs.PUBLISHED)
    return {
        name: [runs.published(recipe, where) for recipe in group if (where / recipe.name).exists()]
        for name, group in recipes(page, profile_name).items()
    }


def missing(page: str, profile_name: str, folder: Path | str | None = None) -> list[Recipe]:
    """The page's recipes without a run there."""
    where = Path(folder or runs.PUBLISHED)
    asked = dict.fromkeys(r for group in recipes(page, profile_name).values() for r in group)
    return [r for r in asked if not (where / r.name).exists()]
