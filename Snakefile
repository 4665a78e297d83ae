# From recipes to the book:  train -> notebook -> book.
#
#     snakemake --cores 2 --nolock --config profile=quick build=build
#
# profile  smoke | quick | short | paper, see book/experiments.yml
# build    where everything generated goes; the runs of short and paper go to data/runs, beside the published ones
#
# Executed notebooks lie in a folder of their profile, so that a change of profile is a change of input.
# Every run that exists and every measured file is opened, and so compared with its digests, before anything is made of it;
# `verify` recomputes a run that is not in the committed list of those that were, and marks it in build/verified under its name
# and a digest of its provenance and of what was measured of it.
# The lock is our own: Snakemake's outlives a process that is killed, ours ends with it.  Killed, the same command goes on.

import json
import sys
from pathlib import Path

from csgbook import experiments, measured
from csgbook.evidence import schedules
from csglib import Problem, files, runs
from csglib.precision import pick_device
from csglib.training import pace

sys.path.insert(0, "tools")
from parameters import parameters
from sources import sources

PROFILE = config.get("profile", "quick")
BUILD = str(config.get("build", "build"))
DONE = f"{BUILD}/{PROFILE}"
RUNS = f"{BUILD}/runs" if PROFILE == "smoke" else "data/runs"

try:
    PAGES = list(experiments.book()["pages"])
    TRAIN = experiments.profile(PROFILE).train
    RECIPES = {r.name: r for page in PAGES for group in experiments.recipes(page, PROFILE, RUNS).values() for r in group}
    PARAMETERS = {page: parameters(page, PROFILE, RUNS) for page in PAGES}  # an unknown one stops here, before anything runs
    for kind in measured.TOOLS:
        measured.read(kind)
    several = PAGES if Path(RUNS).is_dir() else []
    BESIDE = {page: schedules.beside(page, PROFILE, RUNS) for page in several}  # runs of other schedules than the profile's
    RECIPES |= {run.recipe.name: run.recipe for found in BESIDE.values() for run in found}
    THERE = {name: runs.published(r, Path(RUNS)) for name, r in RECIPES.items() if Path(RUNS, name).exists()}
    # Smoke trains anew with the code as it is; what was recomputed before it was published stands in a committed list
    listed = lambda run: PROFILE == "smoke" or measured.verified(run)
    marks = {n: f"{BUILD}/verified/{n}-{measured.mark(run)[:12]}" for n, run in THERE.items() if not listed(run)}
    UNVERIFIED = {name: path for name, path in marks.items() if not Path(path).exists()}
    if workflow.is_main_process:
        Path(BUILD).mkdir(parents=True, exist_ok=True)
        LOCK = files.lock(Path(BUILD))  # until this process ends
except Problem as problem:
    sys.exit(f"csglib: {problem}")
except OSError as error:
    sys.exit(f"csglib: {error}: check that the path can be read and written, and give the same command again")

MEASURED = [str(p) for p in Path("data/measured").glob("*.json") if p.stem != "verified"]


def runs_of(page):
    """The folders of the runs that a page reads: those of its recipes that are published, or can be trained here."""
    asked = [r for group in experiments.recipes(page, PROFILE, RUNS).values() for r in group]
    names = [r.name for r in asked if wanted(r)] + [run.recipe.name for run in BESIDE.get(page, [])]
    return [f"{RUNS}/{name}" for name in dict.fromkeys(names)]


def wanted(recipe):
    return recipe.name in THERE or (TRAIN and not experiments.obstacle(recipe, RUNS))


LEFT_OUT = [recipe for recipe in RECIPES.values() if not wanted(recipe)]
if TRAIN:
    for recipe in LEFT_OUT:
        print(f"{experiments.obstacle(recipe, RUNS)}, left out of the book: {recipe.command}", file=sys.stderr)
elif LEFT_OUT and workflow.is_main_process:
    print(f"{len(LEFT_OUT)} runs are not published yet and left out of the book; each page names its own", file=sys.stderr)


onstart:  # which a dry run leaves out: a few steps of each network take two minutes
    if PROFILE != "smoke" and (todo := [r for r in RECIPES.values() if wanted(r) and r.name not in THERE]):
        print(f"{len(todo)} runs to train, about {pace.words(pace.total(todo, pick_device(None)))} here", file=sys.stderr)


rule book:
    input:
        expand(f"{DONE}/{{page}}.ipynb", page=PAGES),
        f"{DONE}/results.json",
        "_config.yml",
        "pyproject.toml",  # the address behind the buttons
        "tools/assemble.py",
        sources(Path("tools/assemble.py").absolute()),
        UNVERIFIED.values(),
        [folder for page in PAGES for folder in runs_of(page)],
        [str(p) for p in Path("book").rglob("*") if p.is_file() and p.suffix != ".ipynb"],
        [str(p) for p in Path("tools/ext").glob("*.py")],
    output:
        f"{BUILD}/html/index.html",
        f"{BUILD}/results.json",
    params:
        words=[BUILD, PROFILE, RUNS],
    shell:
        "python tools/assemble.py {params.words:q}"


rule notebook:
    input:
        "book/{page}.ipynb",
        "book/experiments.yml",
        "tools/execute.py",
        MEASURED,
        lambda wildcards: sources(Path("book", f"{wildcards.page}.ipynb").absolute()),  # a change of what it uses, and no other
        lambda wildcards: runs_of(wildcards.page),
    output:
        f"{DONE}/{{page}}.ipynb",
    wildcard_constraints:
        page="[A-Za-z0-9-]+",
    # A live page trains: all there are
    threads: lambda wildcards: 1 if PROFILE == "smoke" or experiments.recipes(wildcards.page, PROFILE, RUNS) else 64
    params:
        values=lambda wildcards: json.dumps(PARAMETERS[wildcards.page]),
        flags="--solutions" if PROFILE == "smoke" else "",  # a test runs the exercises too
    shell:
        "python tools/execute.py {wildcards.page:q} {params.values:q} {output:q} {params.flags}"


rule results:
    input:
        MEASURED,
        "book/experiments.yml",
        sources(Path("csgbook/evidence/verdicts.py").absolute()),
        [folder for page in PAGES for folder in runs_of(page)],
    output:
        f"{DONE}/results.json",
    params:
        words=["--profile", PROFILE, "--runs-folder", RUNS],
    shell:
        "csgbook results {params.words:q} --out {output:q}"


if UNVERIFIED:

    rule verify:
        output:
            UNVERIFIED.values(),
        params:
            folders=[f"{RUNS}/{name}" for name in UNVERIFIED],
        priority: 1  # what is false stops the book before time is spent on it
        shell:
            "csgbook verify {params.folders:q} && touch {output:q}"


if TRAIN:

    rule train:
        input:
            sources(Path("csglib/training/trainer.py").absolute()) if PROFILE == "smoke" else [],  # a test trains with the code as it is; a published run stays
        output:
            directory(f"{RUNS}/{{name}}"),
        wildcard_constraints:
            # A finished run of the reported profiles is a source, which no restart trains anew
            name="|".join(name for name in RECIPES if PROFILE == "smoke" or name not in THERE) or "none",
        threads: 1 if PROFILE == "smoke" else 64
        resources:
            gpu=1,
        params:
            flags=lambda wildcards: RECIPES[wildcards.name].flags,  # each word quoted
        shell:
            "csglib train {params.flags} --out {output:q}"
