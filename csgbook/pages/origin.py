"""Where a page's numbers come from: the strip at its end, a run's entry on the page of runs, and what is missing."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from IPython.display import Markdown

from csgbook import experiments, measured
from csgbook.evidence.schedules import Runs
from csgbook.evidence.verdicts import schedule
from csgbook.pages.tables import METRICS, commit, spread
from csglib.recipe import Recipe
from csglib.runs import Run, siblings

RECORDS = ("recipe.json", "history.jsonl", "metrics.json", "provenance.json")  # the files of a run that a reader may open


def trained(run: Run) -> Markdown:
    """One sentence on how long the training took, where, and in which precision for what reason."""
    p = run.provenance
    return Markdown(
        f"Trained in {p['train_seconds']:.0f} seconds on {machine(run)}, in {run.recipe.precision}: {p['precision_reason']}."
    )


def machine(run: Run) -> str:
    hardware = run.provenance["hardware"]
    return hardware["gpu"] or f"{hardware['processor']}, {hardware['threads']} thread{'s' * (hardware['threads'] > 1)}"


def versions(run: Run) -> str:
    known = run.provenance["versions"]
    return ", ".join(f"{name} {known[name]}" for name in ("python", "torch", "torchvision", "numpy") if known.get(name))


def link(run: Run, words: str) -> str:
    """To the run's entry on the page of runs, where its recipe, commit and files stand."""
    return f"[{words}](#run-{run.recipe.name})"


def strip(runs: dict[str, list[Run]], published: bool = True) -> Markdown:
    """The strip at the end of a page: recipe, seeds, schedule, commit, hardware, versions and time, and how to run it again.

    Each seed is a link to the run's entry on the page of runs, which has those that are published.
    """
    rows, commands = [], []
    for name, group in runs.items():
        if group:
            rows.append(
                {
                    "Experiment": name,
                    "Seeds": ", ".join(link(run, str(run.recipe.seed)) if published else str(run.recipe.seed) for run in group),
                    "Recipe": recipe_words(group[0].recipe),
                    "Commit": joined(lambda run: commit(run.provenance), group),
                    "Made with": f"{joined(machine, group)}; {joined(versions, group)}",
                    "Minutes per run": minutes(group),
                }
            )
            commands += [run.recipe.command for run in group]
    if not rows:
        return Markdown("No run behind this page yet.")
    again = "\n".join(dict.fromkeys(commands))
    table = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
    told = forms([run for group in runs.values() for run in group])
    return Markdown(f"{table}\n\n{told}\n\n:::{{dropdown}} Run it again\n```sh\n{again}\n```\n:::\n")


def minutes(group: list[Run]) -> str:
    """By machine, in the order in which `joined` names them: what a GPU and a CPU take has no mean."""
    return " / ".join(spread(values, 0 if min(values) >= 1 else 1) for values in minutes_by_machine(group).values())


def minutes_by_machine(group: Sequence[Run]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for run in group:
        found.setdefault(machine(run), []).append(run.provenance["train_seconds"] / 60)
    return found


def shown(by_schedule: Sequence[Runs], drawn: Runs) -> str:
    """Of a page with several schedules: which of them its figures show."""
    if len(by_schedule) == 1:
        return ""
    told = [schedule(next(run.recipe for group in runs.values() for run in group)) for runs in (drawn, *by_schedule)]
    others = " and ".join(words for words in told[1:] if words != told[0])
    return (
        f"\n\nFigures and tables show the networks after {told[0]}; the claims further down are also judged after {others}.\n"
    )


def forms(group: list[Run]) -> str:
    """In which precision and by which loop the runs were computed, and which others lie beside them and are not read."""
    used = dict.fromkeys(run.recipe.form for run in group)
    told = f"Computed in {', and in '.join(f'{precision} by the {loop} loop' for precision, loop in used)}."
    beside = dict.fromkeys(other for run in group for other in siblings(run.recipe, run.path.parent))
    if left := [other.name for other in beside if other.form not in used]:
        told += f" Left out, since they were computed otherwise: {', '.join(f'`{name}`' for name in left)}."
    return told


def recipe_words(recipe: Recipe) -> str:
    """The schedule, and what else differs from the defaults, without the seed."""
    told = {"seed", "epochs", "dataset", "lr_schedule"}
    rest = [f"`{name} {str(value).replace(',', ', ')}`" for name, value in recipe.changed().items() if name not in told]
    return ", ".join([schedule(recipe), *rest])


def joined(say: Callable[[Run], str], group: list[Run]) -> str:
    return " / ".join(dict.fromkeys(say(run) for run in group))


def missing(recipes: list[Recipe]) -> Markdown:
    """The commands that train what a page lacks."""
    if not recipes:
        return Markdown("All runs of this page are there.")
    commands = "\n".join(recipe.command for recipe in recipes)
    told = f":::{{dropdown}} Not run yet, so not in the numbers above: {len(recipes)}\n```sh\n{commands}\n```\n:::\n"
    if left := [r.name for recipe in recipes for r in siblings(recipe)]:
        told += f"\n\nThere, but computed otherwise than the runs above: {', '.join(f'`{name}`' for name in left)}."
    return Markdown(told)


def published_of(profile: str, folder: Path | str | None = None) -> str:
    """One sentence on how many runs of a profile there are, with a link to each."""
    pages = experiments.book()["pages"]
    asked = {r.name for page in pages for group in experiments.recipes(page, profile, folder).values() for r in group}
    links = [link(run, f"{run.recipe.method}, seed {run.recipe.seed}") for run in runs_of(profile, folder)]
    epochs = experiments.profile(profile).recipe["epochs"]
    number = f"{len(links)} of {len(asked)}" if links else "none"
    return (
        f"Of the runs of the profile `{profile}`, which trains for {epochs} epochs and is meant for a GPU, {number} "
        f"{'is' if len(links) < 2 else 'are'} published{': ' * bool(links)}{'; '.join(links)}."
    )


def times_of(profile: str, folder: Path | str | None = None) -> str:
    """One sentence on what the published runs of a profile's length took on each machine; nothing where there are none."""
    epochs = experiments.profile(profile).recipe["epochs"]
    by_machine = minutes_by_machine([run for run in runs_of(profile, folder) if run.recipe.epochs == epochs])
    took = [
        f"{min(each):.0f}{f' to {max(each):.0f}' * (len(each) > 1)} minutes on {name} ({len(each)} run{'s' * (len(each) > 1)})"
        for name, each in by_machine.items()
    ]
    told = f"The published runs of {epochs} epochs, some of which shared their machine with others, took {' and '.join(took)}."
    return told * bool(took)


def runs_of(profile: str, folder: Path | str | None = None) -> list[Run]:
    """The published runs of a profile, each once, in the order of pages."""
    pages = experiments.book()["pages"]
    there = [r for page in pages for group in experiments.published(page, profile, folder).values() for r in group]
    return list({run.recipe.name: run for run in there}.values())


def run_entry(run: Run) -> str:
    """A run's entry on the page of runs: everything that decides it and everything that came out, with its files."""
    p, name = run.provenance, run.recipe.name
    facts = {
        "Recipe": ", ".join(f"`{k} {v}`" for k, v in run.recipe.changed().items()) or "all defaults",
        "Key": f"`{p['key']}`",
        "Schedule": f"{schedule(run.recipe)}, seed {run.recipe.seed}",
        "Commit": commit(p, 40),
        "Hardware": machine(run),
        "Versions": versions(run),
        "Data": f"`{run.recipe.dataset}`, digest `{p['data_digest'][:16]}`",
        "Time": f"{p['train_seconds'] / 60:.1f} minutes, {p['images_per_second']:.0f} images/s, finished {p['finished']}",
        "Result": ", ".join(f"{title} {run.metrics[m]:.4f}" for m, title in METRICS.items() if run.metrics[m] is not None),
        "Files": ", ".join(f"{{download}}`{f} <runs/{name}/{f}>`" for f in RECORDS),
    }
    table = pd.DataFrame({"Record": list(facts), name: list(facts.values())}).to_markdown(index=False, disable_numparse=True)
    return f"(run-{name})=\n## {name}\n\n{table}\n\n```sh\n{run.recipe.command}\n```\n"


def unmeasured(kind: str) -> Markdown:
    return Markdown(f"Not measured for these runs yet: `python {measured.TOOLS[kind]}` does it.")


def stamped(table: Markdown, kind: str, runs: dict[str, list[Run]]) -> Markdown:
    """The table with a sentence on the code that measured it."""
    commits = dict.fromkeys(commit(entry) for entries in measured.found(kind, runs).values() for entry in entries)
    told = f"\n\nMeasured by `{measured.TOOLS[kind]}` at commit {' / '.join(commits)}." if commits else ""
    return Markdown(table.data + told)
