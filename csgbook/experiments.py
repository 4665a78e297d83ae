"""book/experiments.yml: which recipes each page needs, per profile, and the runs of them that exist.

A grid is many experiments in few lines: each of its data sets with each of its networks under each of its methods is a cell, an
experiment of the name DATA/NETWORK/METHOD.

Precision and loop are how a run is computed, not what.  Where a profile says `precision: auto`, a run serves in any form, but
all runs of a page share one: that of most of its runs, or what is native here where it has none.
"""

import copy
import functools
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from csgbook import claims
from csglib import data, runs
from csglib.data.released import TINY
from csglib.errors import Problem, check_name
from csglib.files import MIB, check_size, parse_json, short
from csglib.paths import ROOT
from csglib.paths import folder as folder_of_data
from csglib.precision import emulated, pick_device, settle_precision
from csglib.recipe import FORMS, Recipe
from csglib.runs import Run, schema

FILE = ROOT / "book" / "experiments.yml"
REMEDY = "work in a clone of the repository, or restore it with git"


@dataclass(frozen=True)
class Profile:
    name: str
    train: bool  # whether missing runs are trained, or left out of the pages
    seeds: tuple[int, ...]
    recipe: dict  # the fields that all its recipes share
    kinds: dict[str, dict]  # those that experiments of a kind have beside, and their own seeds
    leave_out: tuple[str, ...]  # experiments that it does without
    grids: dict[str, dict]  # data, networks, methods: name -> fields


WORD = {"type": "string", "pattern": r"^[A-Za-z0-9._-]+\Z"}
FIELDS = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
SEEDS = {"type": "array", "items": {"type": "integer"}}
KIND = {"type": "object", "properties": {"seeds": SEEDS}, "additionalProperties": FIELDS["additionalProperties"]}
NAMES = {"type": "array", "items": WORD, "minItems": 1}
PART = {
    "type": "object",
    "properties": {"networks": NAMES, "data": NAMES},
    "additionalProperties": FIELDS["additionalProperties"],
}
SIDE = {"type": "object", "propertyNames": WORD, "minProperties": 1}
GRID = schema.record(
    {name: SIDE | {"additionalProperties": KIND} for name in ("data", "networks")}
    | {"methods": SIDE | {"additionalProperties": PART}},
    rest=False,
)
PROFILE = schema.record(
    {
        "train": {"type": "boolean"},
        "seeds": SEEDS,
        "recipe": FIELDS,
        "like": WORD,
        "kinds": {"type": "object", "additionalProperties": KIND},
        "leave_out": {"type": "array", "items": WORD},
        "grids": {"type": "object", "additionalProperties": GRID},
    },
    optional=("seeds", "recipe", "like", "kinds", "leave_out", "grids"),
    rest=False,
)
PAGE = {
    "type": ["object", "null"],
    "properties": {
        "experiments": {"type": "array", "items": WORD},
        "grids": NAMES,
        "parameters": {"type": "object", "additionalProperties": FIELDS},
    },
    "additionalProperties": False,
}
NAMED = {"type": "object", "propertyNames": WORD}
SCHEMA = schema.record(
    {
        "profiles": NAMED | {"additionalProperties": PROFILE},
        "experiments": NAMED | {"additionalProperties": FIELDS},
        "pages": NAMED | {"additionalProperties": PAGE},
    },
    rest=False,
)


def book() -> dict:
    check_size(FILE, MIB, REMEDY)
    return copy.deepcopy(parsed(FILE.read_bytes(), FILE))


@functools.lru_cache(2)  # the pipeline asks a hundred times, and YAML takes 30 ms
def parsed(content: bytes, path: Path) -> dict:
    try:
        text = json.dumps(yaml.safe_load(content))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise Problem(f"{path} cannot be read ({short(str(error))}): correct it, or restore it with git") from None
    return parse_json(text, path, REMEDY, SCHEMA)


def profile(name: str) -> Profile:
    profiles = book()["profiles"]
    check_name("profile", name, profiles)
    values = profiles[name]
    check_name("profile", values.get("like", name), profiles)
    base = profiles[values.get("like", name)]
    if not {"seeds", "recipe"} <= set(base):
        raise Problem(f"{FILE}: profile {name} has no seeds or no recipe: name them, or a profile that it is like")
    left, grids = tuple(base.get("leave_out", ())), base.get("grids", {})
    return Profile(name, values["train"], tuple(base["seeds"]), base["recipe"], base.get("kinds", {}), left, grids)


def recipes(page: str, profile_name: str, folder: Path | str | None = None) -> dict[str, list[Recipe]]:
    """The page's experiments, each with one recipe per seed, in the form in which most of them have a run in the folder.

    Raises Problem where the two sides of one of the page's claims would be computed in different forms.
    """
    table, p = book(), profile(profile_name)
    check_name("page", page, table["pages"])
    groups = {}
    for name in (table["pages"][page] or {}).get("experiments", []):
        if name in p.leave_out:
            groups[name] = []
            continue
        check_name("experiment", name, table["experiments"])
        own = dict(table["experiments"][name])
        kind = dict(p.kinds.get(own.pop("kind", None), {}))
        seeds = kind.pop("seeds", p.seeds)
        groups[name] = [Recipe.from_dict(p.recipe | kind | own | {"seed": seed}, str(FILE)) for seed in seeds]
    for name in (table["pages"][page] or {}).get("grids", []):
        groups |= cells(p, name)
    settle_form(groups, Path(folder or runs.PUBLISHED))
    check_forms(page, profile_name, groups)
    return groups


def cells(p: Profile, grid: str) -> dict[str, list[Recipe]]:
    """The recipes of each cell of a grid, DATA/NETWORK/METHOD; none where the profile has no such grid.

    A method may name the networks and data sets to which it is confined; a data set or a network may have seeds of its own.
    """
    found = {}
    sides = p.grids.get(grid, {"data": {}, "networks": {}, "methods": {}})
    for data_set, network, method in itertools.product(sides["data"], sides["networks"], sides["methods"]):
        fields = dict(sides["methods"][method])
        allowed = {"networks": fields.pop("networks", [network]), "data": fields.pop("data", [data_set])}
        for side, names in allowed.items():
            for name in names:
                check_name(f"{side} of grid {grid}", name, sides[side])
        if network not in allowed["networks"] or data_set not in allowed["data"]:
            continue
        whole = {"seeds": p.seeds} | p.recipe | sides["networks"][network] | sides["data"][data_set] | fields
        seeds = whole.pop("seeds")
        found[f"{data_set}/{network}/{method}"] = [Recipe.from_dict(whole | {"seed": seed}, str(FILE)) for seed in seeds]
    return found


def settle_form(groups: dict[str, list[Recipe]], folder: Path) -> None:
    """Give all recipes with precision auto one form."""
    open_ = [r for group in groups.values() for r in group if r.precision == "auto"]
    if not open_:
        return
    count = {form: sum((folder / r.in_form(form).name).exists() for r in open_) for form in FORMS}
    form = max(FORMS, key=count.get)  # the first of equals, so that no machine chooses otherwise
    if not count[form]:
        form = native_form(open_[0])
    for name, group in groups.items():
        groups[name] = [r.in_form(form) if r.precision == "auto" else r for r in group]


def native_form(recipe: Recipe) -> tuple[str, str]:
    """How this machine trains it, where no other run prescribes it."""
    return settle_precision(recipe, pick_device(None))[0].form


def check_forms(page: str, profile_name: str, groups: dict[str, list[Recipe]]) -> None:
    for claim in claims.CLAIMS:
        if claim.page == page and claim.over:
            sides = [groups.get(name, []) for name in (claim.of, claim.over)]
            if len({r.form for side in sides for r in side}) > 1:
                told = " and ".join(f"{g[0].method} in {g[0].precision}, loop {g[0].loop}" for g in sides)
                remedy = "give both sides one precision and loop"
                raise Problem(f"{FILE}: profile {profile_name} compares {told} for the claim {claim.id}: {remedy}")


def obstacle(recipe: Recipe, folder: Path | str | None = None) -> str | None:
    """Why it cannot be trained here; None if it can."""
    if stopped := diverged(recipe, folder):
        return f"it diverged ({stopped})"
    if not data.present(recipe.dataset):
        return "its photographs are not here"
    if recipe.dataset.startswith("tiny-imagenet") and not (folder_of_data() / TINY.folder).is_dir():
        return f"there is no {TINY.folder} in {folder_of_data()}"
    if emulated(recipe.precision, pick_device(None)):
        return (
            f"the runs beside it are in {recipe.precision}, which this machine emulates, slowly (`precision: float32` in "
            f"{FILE.name} trains all of them in float32)"
        )
    return None


def diverged(recipe: Recipe, folder: Path | str | None = None) -> str | None:
    """What a training of it that was stopped since it diverged left under the folder, in words; None where there is none."""
    if report := runs.diverged(Path(folder or runs.PUBLISHED) / recipe.name):
        return f"{report['stopped_by'][0]} of epoch {report['history'][-1]['epoch']}"
    return None


def enlarged(recipe: Recipe, profile_name: str) -> Recipe:
    """The recipe's method, gate, seed and precision with the data and the schedule of a profile that trains on CIFAR-10."""
    kept = {name: getattr(recipe, name) for name in ("method", "gate_density", "seed", "precision")}
    return Recipe.from_dict(profile(profile_name).recipe | kept, str(FILE))


def parameters(page: str, profile_name: str) -> dict:
    """The values that papermill sets in the page's notebook, beside `profile` and `runs_folder`."""
    return ((book()["pages"][page] or {}).get("parameters") or {}).get(profile_name, {})


def published(page: str, profile_name: str, folder: Path | str | None = None) -> dict[str, list[Run]]:
    """The runs of the page's recipes that exist under the folder (data/runs if None); those that do not are left out."""
    where = Path(str(folder or runs.PUBLISHED)).expanduser()
    if folder and where != runs.PUBLISHED and not where.is_dir():
        raise Problem(f"runs_folder {str(folder)!r} is no folder: name one that holds runs, or leave it out")
    return {
        name: [runs.published(recipe, where) for recipe in group if (where / recipe.name).exists()]
        for name, group in recipes(page, profile_name, where).items()
    }


def missing(page: str, profile_name: str, folder: Path | str | None = None) -> list[Recipe]:
    """The page's recipes without a run there."""
    where = Path(folder or runs.PUBLISHED)
    asked = dict.fromkeys(r for group in recipes(page, profile_name, where).values() for r in group)
    return [r for r in asked if not (where / r.name).exists()]
