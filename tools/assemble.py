"""Put sources and executed notebooks together and build the book with Jupyter Book.

python tools/assemble.py BUILD PROFILE RUNS    reads BUILD/PROFILE/*.ipynb and results.json, the runs in RUNS; writes BUILD/html
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat

from csgbook import experiments
from csgbook.evidence import answers, schedules, simulate, verdicts
from csgbook.explorers import worked
from csgbook.pages import benchmarks, first_page, gpu_costs, origin, scoreboard
from csglib import Problem, runs
from csglib.paths import ROOT

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
PHOTOGRAPHS = re.compile(
    r"\b(figures\.(places|exciting)|attacked\.pictures|located\.(looks|on_the_sample))\("
)  # never inverted by night


def clean(nb: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without what papermill leaves behind: paths of this machine, times, and the id that it draws for its own cell."""
    nb.metadata.pop("papermill", None)
    needs_state = False
    for cell in nb.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        tags = cell.metadata.get("tags", [])
        if "injected-parameters" in tags:
            cell.id = "injected-parameters"
            cell.metadata["tags"] = [*tags, "remove-cell"]
        for out in cell.get("outputs", []):
            data = out.get("data", {})
            if "text/html" in data:
                data.pop(WIDGET_VIEW, None)  # the static rendering stays
            needs_state |= WIDGET_VIEW in data
        if PHOTOGRAPHS.search(cell.source):
            cell.metadata.setdefault("mystnb", {}).setdefault("image", {})["classes"] = "photographs"
        if not any("image/png" in out.get("data", {}) for out in cell.get("outputs", [])):
            cell.metadata.get("mystnb", {}).pop("figure", None)  # a picture that could not be drawn has no caption
    if not needs_state:
        nb.metadata.pop("widgets", None)  # else the widgets' code is loaded for nothing
    return nb


def write_results(sources: Path, results: list[dict]) -> None:
    """One section per page for the results."""
    contradicted = [c for c in results if c["verdict"] == "contradicted"]
    (sources / "_contradicted.md").write_text(verdicts.markdown(contradicted) if contradicted else "No claim so far.\n")
    moved = scoreboard.by_schedule(results)
    (sources / "_by_schedule.md").write_text(verdicts.markdown(moved) if moved else "No verdict so far.\n")
    sections = []
    for page in dict.fromkeys(c["page"] for c in results):
        judged = [c for c in results if c["page"] == page]
        title = nbformat.read(sources / f"{page}.ipynb", as_version=4).cells[0].source.splitlines()[0].removeprefix("# ")
        told = f":::{{div}} told\n{answers.sentences(judged)}\n\nMore: {{doc}}`{page}`.\n:::"
        groups = [c for c in judged if not c["question"]], [c for c in judged if c["question"]]
        parts = [
            f"::::{{div}} of-{name}\n**{head}**\n\n{verdicts.markdown(group)}\n::::"
            for (name, head), group in zip(scoreboard.GROUPS.items(), groups, strict=True)
            if group
        ]
        sections.append("\n\n".join([f"## {title}", told, *parts]))
    (sources / "_results.md").write_text("\n\n".join([scoreboard.choice(), *sections]))


def write_rules(sources: Path, results: list[dict]) -> None:
    """How often the rules for verdicts err, what they see, and what they changed."""
    (sources / "_rules_false.md").write_text(simulate.false_table())
    (sources / "_rules_power.md").write_text(simulate.power_table())
    (sources / "_rules_pairing.md").write_text(simulate.pairing(results))
    (sources / "_rules_together.md").write_text(simulate.together(results))
    (sources / "_changed.md").write_text(simulate.changed())


def write_front(sources: Path, results: list[dict], profile: str, runs_folder: str) -> None:
    """The generated parts of the first page and of the method."""
    asked = {page: set(first_page.NAMES) & set(experiments.recipes(page, profile)) for page in experiments.book()["pages"]}
    page = max(asked, key=lambda page: (len(asked[page]), -len(experiments.recipes(page, profile))))  # these and few others
    every = schedules.found(page, profile, runs_folder)
    found = schedules.leading(every)
    longer = experiments.published(page, "paper") if "paper" in experiments.book()["profiles"] else {}
    for name, text in (first_page.pages(results, found, longer) | worked.pages(found, every[-1])).items():
        (sources / name).write_text(text)


def write_runs(sources: Path, profile: str, runs_folder: str) -> None:
    """An entry for each run that a page reads, and copies of the files that it links to."""
    found = {}
    for page in experiments.book()["pages"]:
        found |= {run.recipe.name: run for run in schedules.beside(page, profile, runs_folder)}
    for name, run in found.items():
        (sources / "runs" / name).mkdir(parents=True)
        for file in origin.RECORDS:
            shutil.copy(run.path / file, sources / "runs" / name / file)
    (sources / "_runs.md").write_text("\n".join(origin.run_entry(found[name]) for name in sorted(found)))


def write_longest(sources: Path, runs_folder: str) -> None:
    if "paper" in experiments.book()["profiles"]:
        (sources / "_longest.md").write_text(origin.published_of("paper", runs_folder) + "\n")


def write_speed(sources: Path, runs_folder: str) -> None:
    """What was measured of speed, what the longest runs took, and what is predicted from it."""
    took = origin.times_of("paper", runs_folder) if "paper" in experiments.book()["profiles"] else ""
    (sources / "_speed.md").write_text(f"{benchmarks.table().data}\n\n{benchmarks.sentence().data} {took}\n")
    (sources / "_files.md").write_text(f"{benchmarks.from_files().data}\n")
    (sources / "_scaling.md").write_text(f"{gpu_costs.table().data}\n")


def assemble(build: Path, profile: str, runs_folder: str) -> int:
    done, sources, work = build / profile, build / "book_src", build / "jupyter-book"
    for folder in (sources, work):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "book", sources, ignore=shutil.ignore_patterns("*.ipynb", "*.yml~", ".ipynb_checkpoints"))
    for page in experiments.book()["pages"]:
        nbformat.write(clean(nbformat.read(done / f"{page}.ipynb", as_version=4)), sources / f"{page}.ipynb")
    write_results(sources, json.loads((done / "results.json").read_text()))
    if (sources / "verdicts.md").exists():
        write_rules(sources, json.loads((done / "results.json").read_text()))
    write_front(sources, json.loads((done / "results.json").read_text()), profile, runs_folder)
    write_runs(sources, profile, runs_folder)
    write_longest(sources, runs_folder)
    if (sources / "how-fast.md").exists():
        write_speed(sources, runs_folder)

    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(sources)]
    command += ["--config", str(ROOT / "_config.yml"), "--path-output", str(work), "--all", "-W", "-n", "--keep-going"]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    (build / "jupyter-book.log").write_text(built.stdout + built.stderr)
    if built.returncode:
        print(*(built.stdout + built.stderr).splitlines()[-60:], sep="\n", file=sys.stderr)
        return built.returncode
    old = build / "html.old"  # the new book takes its place whole: a stop leaves the old one, none, or the new one
    shutil.rmtree(old, ignore_errors=True)
    if (build / "html").exists():
        (build / "html").rename(old)
    (work / "_build" / "html").rename(build / "html")
    shutil.rmtree(old, ignore_errors=True)
    runs.write(build / "results.json", (done / "results.json").read_text())
    print(f"The book is built: open {build / 'html' / 'index.html'}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(assemble(Path(sys.argv[1]).resolve(), *sys.argv[2:]))
    except Problem as problem:
        sys.exit(f"csglib: {problem}")
    except OSError as error:
        sys.exit(f"csglib: {error}: check that the disk has room and the path can be written, and give the same command again")
