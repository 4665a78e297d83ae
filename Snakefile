# From recipes to the book:  train -> notebook -> book.
#
#     snakemake --cores 2 --config profile=quick build=build
#
# profile  smoke | quick | short | paper, see book/experiments.yml
# build    where everything generated goes; the runs of short and paper go to data/runs, beside the published ones
#
# Executed notebooks lie in a folder of their profile, so that a change of profile is a change of input.

import sys
from pathlib import Path

from csglib import Problem, data, experiments, runs

sys.path.insert(0, "tools")
from execute import parameters

PROFILE = config.get("profile", "quick")
BUILD = config.get("build", "build")
DONE = f"{BUILD}/{PROFILE}"
RUNS = f"{BUILD}/runs" if PROFILE == "smoke" else "data/runs"

try:
    PAGES = list(experiments.book()["pages"])
    TRAIN = experiments.profile(PROFILE).train
    RECIPES = {r.name: r for page in PAGES for group in experiments.recipes(page, PROFILE).values() for r in group}
    for page in PAGES:
        parameters(page, PROFILE, RUNS)  # an unknown parameter stops here, before anything runs
except Problem as problem:
    sys.exit(f"csglib: {problem}")


def runs_of(page):
    """The folders of the runs that a page reads: those of its recipes that are published, or can be trained here."""
    asked = [r for group in experiments.recipes(page, PROFILE).values() for r in group]
    return [f"{RUNS}/{r.name}" for r in asked if wanted(r)]


def wanted(recipe):
    return Path(RUNS, recipe.name).exists() or (TRAIN and data.present(recipe.dataset))


MEASURED = [str(p) for p in (*Path("data").glob("*.json"), *Path("data/measured").glob("*.json"))]
LIBRARY = [str(p) for p in Path("csglib").glob("*.*")]
TRAINING = [f"csglib/{name}.py" for name in ("gate", "nets", "data", "runs", "methods", "templates", "information", "metrics", "train")]

for recipe in RECIPES.values():
    if not wanted(recipe):
        why = "its photographs are not here" if TRAIN else "not published yet"
        print(f"{why}, left out of the book: {recipe.command}", file=sys.stderr)


rule book:
    input:
        expand(f"{DONE}/{{page}}.ipynb", page=PAGES),
        f"{DONE}/results.json",
        "_config.yml",
        "tools/assemble.py",
        LIBRARY,
        [folder for page in PAGES for folder in runs_of(page)],
        [str(p) for p in Path("book").rglob("*") if p.is_file() and p.suffix != ".ipynb"],
        [str(p) for p in Path("tools/ext").glob("*.py")],
    output:
        f"{BUILD}/html/index.html",
        f"{BUILD}/results.json",
    shell:
        f"python tools/assemble.py {BUILD} {PROFILE} {RUNS}"


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
    threads: lambda wildcards: 1 if experiments.recipes(wildcards.page, PROFILE) else 64  # the live page trains: all there are
    shell:
        f"python tools/execute.py {{wildcards.page}} {PROFILE} {RUNS} {{output}}"


rule results:
    input:
        MEASURED,
        "book/experiments.yml",
        LIBRARY,
        [folder for page in PAGES for folder in runs_of(page)],
    output:
        f"{DONE}/results.json",
    shell:
        f"csglib results --profile {PROFILE} --runs-folder {RUNS} --out {{output}}"


if TRAIN:

    rule train:
        input:
            TRAINING if PROFILE == "smoke" else [],  # a test trains with the code as it is; a published run stays
        output:
            directory(f"{RUNS}/{{name}}"),
        wildcard_constraints:
            name="|".join(RECIPES),
        threads: 64
        resources:
            gpu=1,
        params:
            flags=lambda wildcards: RECIPES[wildcards.name].flags,
        shell:
            "csglib train {params.flags} --out {output}"
