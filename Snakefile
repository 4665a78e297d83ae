# From recipes to the book:  train -> notebook -> book.
#
#     snakemake --cores 2 --nolock --config profile=quick build=build
#
# profile  smoke | quick | short | paper, see book/experiments.yml
# build    where everything generated goes; the runs of short and paper go to data/runs, beside the published ones
#
# Executed notebooks lie in a folder of their profile, so that a change of profile is a change of input.
# Every run that exists and every measured file is opened, and so compared with its digests, before anything is made of it;
# `verify` recomputes each run once and marks it in build/verified under its name and a digest of its provenance, of what was
# measured and of the code.
# The lock is our own: Snakemake's outlives a process that is killed, ours ends with it.  Killed, the same command goes on.

import hashlib
import sys
from pathlib import Path

from csglib import Problem, data, experiments, files, measured, runs

sys.path.insert(0, "tools")
from execute import parameters

PROFILE = config.get("profile", "quick")
BUILD = str(config.get("build", "build"))
DONE = f"{BUILD}/{PROFILE}"
RUNS = f"{BUILD}/runs" if PROFILE == "smoke" else "data/runs"

try:
    PAGES = list(experiments.book()["pages"])
    TRAIN = experiments.profile(PROFILE).train
    RECIPES = {r.name: r for page in PAGES for group in experiments.recipes(page, PROFILE).values() for r in group}
    for page in PAGES:
        parameters(page, PROFILE, RUNS)  # an unknown parameter stops here, before anything runs
    for kind in measured.TOOLS:
        measured.read(kind)
    THERE = [name for name, recipe in RECIPES.items() if Path(RUNS, name).exists() and runs.published(recipe, Path(RUNS))]
    if workflow.is_main_process:
        Path(BUILD).mkdir(parents=True, exist_ok=True)
        LOCK = files.lock(Path(BUILD))  # until this process ends
except Problem as problem:
    sys.exit(f"csglib: {problem}")
except OSError as error:
    sys.exit(f"csglib: {error}: check that the path can be read and written, and give the same command again")

CODE = [
    f"csglib/{name}.py"
    for name in ("cut", "gate", "information", "measured", "metrics", "nets", "runs", "sweep", "templates", "train", "verify")
]
MEASURED = [str(p) for p in Path("data/measured").glob("*.json")]


def mark(name):
    """Where it is noted that this code has verified this run and what was measured of it."""
    seen = "".join(data.digest(Path(p)) for p in [f"{RUNS}/{name}/provenance.json", *sorted(MEASURED), *CODE])
    return f"{BUILD}/verified/{name}-{hashlib.sha256(seen.encode()).hexdigest()[:12]}"


VERIFIED = {name: mark(name) for name in THERE if PROFILE != "smoke"}  # smoke trains anew with the code as it is
UNVERIFIED = {name: place for name, place in VERIFIED.items() if not Path(place).exists()}


def runs_of(page):
    """The folders of the runs that a page reads: those of its recipes that are published, or can be trained here."""
    asked = [r for group in experiments.recipes(page, PROFILE).values() for r in group]
    return [f"{RUNS}/{r.name}" for r in asked if wanted(r)]


def wanted(recipe):
    return recipe.name in THERE or (TRAIN and data.present(recipe.dataset))


LIBRARY = [str(p) for p in Path("csglib").glob("*.*")]
TRAINING = [
    f"csglib/{name}.py"
    for name in ("gate", "nets", "data", "runs", "methods", "templates", "loop", "distributed", "information", "sweep", "metrics")
    + ("train", "checkpoint")
]

for recipe in RECIPES.values():
    if not wanted(recipe):
        why = "its photographs are not here" if TRAIN else "not published yet"
        print(f"{why}, left out of the book: {recipe.command}", file=sys.stderr)


rule book:
    input:
        expand(f"{DONE}/{{page}}.ipynb", page=PAGES),
        f"{DONE}/results.json",
        "_config.yml",
        "pyproject.toml",  # the address behind the buttons
        "tools/assemble.py",
        LIBRARY,
        VERIFIED.values(),
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
        LIBRARY,
        lambda wildcards: runs_of(wildcards.page),
    output:
        f"{DONE}/{{page}}.ipynb",
    wildcard_constraints:
        page="[A-Za-z0-9-]+",
    threads: lambda wildcards: 1 if experiments.recipes(wildcards.page, PROFILE) else 64  # the live page trains: all there are
    params:
        words=[PROFILE, RUNS],
    shell:
        "python tools/execute.py {wildcards.page:q} {params.words:q} {output:q}"


rule results:
    input:
        MEASURED,
        "book/experiments.yml",
        LIBRARY,
        [folder for page in PAGES for folder in runs_of(page)],
    output:
        f"{DONE}/results.json",
    params:
        words=["--profile", PROFILE, "--runs-folder", RUNS],
    shell:
        "csglib results {params.words:q} --out {output:q}"


if UNVERIFIED:

    rule verify:
        output:
            UNVERIFIED.values(),
        params:
            folders=[f"{RUNS}/{name}" for name in UNVERIFIED],
        priority: 1  # what is false stops the book before time is spent on it
        shell:
            "csglib verify {params.folders:q} && touch {output:q}"


if TRAIN:

    rule train:
        input:
            TRAINING if PROFILE == "smoke" else [],  # a test trains with the code as it is; a published run stays
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
