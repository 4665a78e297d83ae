"""The pipeline in a copy of its own: killed it goes on, a planted number stops it, hostile names reach no shell and no page."""

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import BIN, ROOT
from papermill.translators import PythonTranslator
from safetensors import safe_open

from csgbook import claims
from csglib import files, paths, runs
from csglib.paths import PUBLISHED
from csglib.recipe import Recipe
from csglib.training import trainer

sys.path.insert(0, str(ROOT / "tools" / "ext"))
import content_policy  # noqa: E402

pytestmark = pytest.mark.slow

SMOKE = {"dataset": "cifar10-mini", "net": "resnet18@layer1", "epochs": 2, "batch_size": 1000, "precision": "float32"}
EXPERIMENTS = {
    "profiles": {
        "smoke": {"train": True, "seeds": [0], "recipe": SMOKE},
        "quick": {"train": False, "seeds": [0], "recipe": {"epochs": 30, "precision": "bfloat16"}},
    },
    "experiments": {"std": {"method": "standard"}},
    "pages": {page: {} for page in dict.fromkeys(c.page for c in claims.CLAIMS)} | {"table1": {"experiments": ["std"]}},
}
STD = Recipe(method="standard", precision="bfloat16")
USE = (
    "from csgbook import experiments\n"
    "print(experiments.published('table1', profile, runs_folder)['std'][0].metrics['accuracy'])"
)


def notebook(page: str) -> nbformat.NotebookNode:
    parameters = nbformat.v4.new_code_cell('profile = "smoke"\nruns_folder = ""', metadata={"tags": ["parameters"]})
    cells = [nbformat.v4.new_markdown_cell(f"# The page {page}"), parameters]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return nbformat.v4.new_notebook(metadata=kernel, cells=cells + [nbformat.v4.new_code_cell(USE)] * (page == "table1"))


@pytest.fixture
def copied(tmp_path) -> Path:
    """Code, Snakefile and sample; a book with one experiment, and a page of a few lines for each that has claims."""
    root = tmp_path / "book copy"  # with a space, which the shell must not see
    for name in ("csglib", "csgbook", "tools", "data/cifar10-mini", "data/measured", "book/_static"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "_config.yml", "pyproject.toml", "book/references.bib"):
        shutil.copy(ROOT / name, root / name)
    (root / "book/experiments.yml").write_text(yaml.safe_dump(EXPERIMENTS))
    (root / "book/index.md").write_text("# A book\n")
    chapters = [{"file": page} for page in EXPERIMENTS["pages"]]
    (root / "book/_toc.yml").write_text(yaml.safe_dump({"format": "jb-book", "root": "index", "chapters": chapters}))
    for page in EXPERIMENTS["pages"]:
        nbformat.write(notebook(page), root / "book" / f"{page}.ipynb")
    return root


def start(root: Path, *words: str) -> subprocess.Popen:
    """As the Makefile starts it."""
    command = [BIN / "snakemake", "--cores", "2", "--nolock", "--rerun-triggers", "mtime", "input", "--rerun-incomplete"]
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(root), "TQDM_DISABLE": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, *words], cwd=root, env=environment, start_new_session=True, **pipes)


def finish(root: Path, *words: str) -> tuple[int, str]:
    with start(root, *words) as process:
        out, _ = process.communicate()
    return process.returncode, out


def tree(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def published_whole(build: Path, pages: list[str]) -> None:
    """What carries its final name is whole: runs, executed pages, results and the book."""
    for folder in build.glob("runs/*[!t]"):
        if folder.suffix != ".part":
            assert {p.name for p in folder.iterdir()} - {".snakemake_timestamp"} == {*runs.FILES, "provenance.json"}
            _ = runs.read(folder).readout
    for path in build.glob("smoke/*.ipynb"):
        if not path.name.endswith(".part.ipynb"):
            assert all(c.execution_count for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"), path
    for path in build.rglob("results.json"):
        assert len(json.loads(path.read_text())) == len(claims.CLAIMS)
    if (build / "html" / "index.html").exists():
        assert {p.name for p in (build / "html").glob("*.html")} >= {f"{page}.html" for page in pages}


def kill_pipeline(root: Path, kills: int, longest: float, seed: int, targets: list[str]) -> None:
    rng, killed = random.Random(seed), 0
    words = ["--config", "profile=smoke", "build=build"]
    while killed < kills:
        with start(root, *targets, *words) as process:
            time.sleep(rng.uniform(1, longest))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                killed += 1
            process.communicate()
            published_whole(root / "build", list(EXPERIMENTS["pages"]))
            if process.returncode == 0:  # finished before the kill: from the start again
                shutil.rmtree(root / "build")
    code, out = finish(root, *targets, *words)
    assert code == 0, out[-3000:]
    published_whole(root / "build", list(EXPERIMENTS["pages"]))


def whole_pipeline(root: Path, targets: list[str]) -> None:
    code, out = finish(root, *[t.replace("build", "whole", 1) for t in targets], "--config", "profile=smoke", "build=whole")
    assert code == 0, out[-3000:]


def same_as_uninterrupted(root: Path) -> None:
    assert tree(root / "build") == tree(root / "whole")
    for path in (root / "whole").rglob("*"):
        if path.name in ("model.safetensors", "readout.safetensors", "metrics.json", "results.json"):
            assert path.read_bytes() == (root / "build" / path.relative_to(root / "whole")).read_bytes(), path


def test_a_pipeline_killed_while_it_trains_goes_on_from_the_checkpoint_and_ends_as_an_uninterrupted_one(copied, tmp_path):
    targets, build = ["build/smoke/results.json"], copied / "build"
    with start(copied, *targets, "--config", "profile=smoke", "build=build") as process:
        while not (saved := list(build.glob("runs/*.part/checkpoint.safetensors"))) and process.poll() is None:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    published_whole(build, [])
    with safe_open(saved[0], "pt") as f:
        history = json.loads(f.metadata()["history"])
    code, out = finish(copied, *targets, "--config", "profile=smoke", "build=build")
    assert code == 0, out[-3000:]
    ended = runs.read(saved[0].parent.with_suffix(""))
    assert len(history) == 1 and ended.history[0] == history[0]  # with its seconds
    whole = trainer.train(Recipe(**SMOKE, method="standard"), tmp_path / "whole", "cpu")
    for name in ("model.safetensors", "readout.safetensors", "metrics.json"):
        assert (ended.path / name).read_bytes() == (whole.path / name).read_bytes(), name
    left = {path for path in tree(build) if not path.startswith("runs/")}
    assert left == {"smoke/results.json"} and [p.name for p in (build / "runs").iterdir()] == [ended.recipe.name]
    published_whole(build, [])


@pytest.mark.long
@pytest.mark.parametrize("turn", range(4))
def test_so_does_one_killed_twenty_times_to_the_whole_book(turn, copied):
    """Five times in each turn, so that a turn can be repeated alone."""
    kill_pipeline(copied, 5, 45, turn, ["book"])
    whole_pipeline(copied, ["book"])
    same_as_uninterrupted(copied)


def execute(copied: Path, out: str) -> str:
    """The last line of what tools/execute.py says, which has no traceback."""
    command = [sys.executable, "tools/execute.py", "table1", '{"profile": "quick"}', out]
    done = subprocess.run(command, cwd=copied, env=os.environ | {"PYTHONPATH": str(copied)}, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def test_bad_input_found_by_a_page_is_told_in_one_sentence_with_its_name(copied):
    page = notebook("table1")
    page.cells[-1].source = "from csglib.errors import Missing\nraise Missing('no such run: train it')"
    nbformat.write(page, copied / "book/table1.ipynb")
    assert execute(copied, "build/quick/table1.ipynb") == "csglib: table1: no such run: train it"
    assert not (copied / "build/quick/table1.ipynb").exists()


@pytest.fixture
def quick(copied) -> Path:
    """A published run in the copy; returns its folder."""
    return Path(shutil.copytree(PUBLISHED / STD.name, copied / "data/runs" / STD.name))


def sign_anew(folder: Path) -> None:
    told = json.loads((folder / "provenance.json").read_text())
    told["sha256"] = {name: paths.digest(folder / name) for name in runs.FILES}
    (folder / "provenance.json").write_text(json.dumps(told))


def plant(folder: Path, sign: bool) -> None:
    path = folder / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"accuracy": 0.9999}))
    if sign:
        sign_anew(folder)


def test_a_number_edited_with_its_digest_stops_it_too_and_no_book_is_built_without_that_check(quick, copied):
    _, out = finish(copied, "--dry-run", "book", "--config", "profile=quick")
    assert "rule verify:" not in out and "rule book:" in out  # it was verified when it was published
    plant(quick, sign=True)
    code, out = finish(copied, "--cores", "1", "book", "--config", "profile=quick")
    assert "rule verify:" in out and re.search(r"^book +1$", out, re.M)  # which comes first, whatever the book needs beside
    assert code != 0 and f"csglib: data/runs/{STD.name}/metrics.json says accuracy 0.9999, its readout gives 0.9" in out
    assert sorted(p.name for p in (copied / "build").rglob("*") if p.is_file()) == []


@pytest.fixture
def made(copied) -> Path:
    """The copy with what `make book` needs; its .venv is this environment, ready, and none is ever made."""
    (copied / "tests").mkdir()
    for name in ("Makefile", "requirements.lock", "tests/requirements.lock"):
        shutil.copy(ROOT / name, copied / name)
    (copied / ".venv").mkdir()
    for path in Path(sys.prefix).iterdir():
        if path.name != "ready":
            (copied / ".venv" / path.name).symlink_to(path)
    (copied / ".venv/ready").touch()
    return copied


def make_book(root: Path) -> str:
    """What `make book` says when it fails, before anything runs."""
    command = ["make", "book", "CORES=1", "PYTHON=false"]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode != 0, done.stdout[-3000:]
    assert not (root / "build").exists()
    return done.stdout


def put_readout_of_another_run(folder: Path) -> None:
    shutil.copy(PUBLISHED / dataclasses.replace(STD, seed=1).name / "readout.safetensors", folder)


def edit_measured(copied: Path) -> None:
    path = copied / "data/measured/detection.json"
    path.write_text(path.read_text().replace('"turned": 1.0', '"turned": 0.5', 1))


def test_make_book_refuses_a_metric_edited_by_hand_and_names_its_file(quick, made):
    plant(quick, sign=False)
    assert f"csglib: data/runs/{STD.name}/metrics.json was altered after the run" in make_book(made)


def test_make_book_refuses_a_readout_of_another_run_and_names_its_file(quick, made):
    put_readout_of_another_run(quick)
    assert f"csglib: data/runs/{STD.name}/readout.safetensors was altered after the run" in make_book(made)
    sign_anew(quick)
    said = f"csglib: data/runs/{STD.name}/readout.safetensors is not of the weights in data/runs/{STD.name}/model.safetensors"
    assert said in make_book(made)


def test_make_book_refuses_a_measured_number_edited_by_hand_and_names_its_file(quick, made):
    edit_measured(made)
    assert "data/measured/detection.json was altered after its tool wrote it" in make_book(made)


def test_a_second_pipeline_in_the_same_build_is_kept_out(copied):
    (copied / "build").mkdir()
    with files.locked(copied / "build"):
        code, out = finish(copied, "--config", "profile=quick")
    assert code != 0 and "csglib: another process is at work in build: wait" in out


def test_a_build_that_cannot_be_written_stops_the_pipeline_with_one_sentence(copied):
    (copied / "build").write_text("in the way")
    code, out = finish(copied, "--config", "profile=quick")
    assert code != 0 and "csglib: [Errno 17] File exists: 'build': check that" in out and "Traceback" not in out
    assert execute(copied, "build/table1.ipynb").startswith("csglib: [Errno 17] File exists: 'build': check")


HOSTILE = [
    "x; touch owned",
    "$(touch owned)",
    "`touch owned`",
    "a\ntouch owned",
    "<script>alert(1)</script>",
    "a' b",
    "../up",
    "/root",
]


@pytest.mark.parametrize("field", ["dataset", "net", "method", "thaw"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_recipe_takes_no_name_that_a_shell_a_page_or_a_path_could_stumble_over(name, field):
    with pytest.raises(runs.Problem, match=f"^{field} .* is out of range: use letters"):
        Recipe(**{field: name, "precision": "float32"})


def test_words_of_a_recipe_are_quoted_for_the_shell():
    assert "--thaw 'layer1, layer2' --" in Recipe(thaw="layer1, layer2", precision="float32").command


@pytest.mark.parametrize("text", [*HOSTILE, '"; import os  #', '\\"; x = 1  #', '"""'])
def test_a_parameter_reaches_a_notebook_as_a_value_and_never_as_code(text):
    names = {}
    exec(PythonTranslator.codify({"x": text}), names)
    assert names["x"] == text


def test_a_hostile_net_in_the_experiments_file_stops_the_pipeline(copied):
    table = EXPERIMENTS | {"experiments": {"std": {"method": "standard", "net": "x; touch owned #"}}}
    (copied / "book/experiments.yml").write_text(yaml.safe_dump(table))
    code, out = finish(copied, "--config", "profile=smoke")
    assert code != 0 and "csglib: net 'x; touch owned #' is out of range" in out
    assert not (copied / "owned").exists() and not (copied / "build").exists()


def test_class_names_are_escaped_in_an_explorer(run):
    from csgbook.explorers import markup

    name = "<img src=x onerror=alert(1)>"
    view = {"numbers": [(name, name)], "table": {"head": [name], "rows": [[name, (name, 0.5)]]}}
    assert "<img" not in markup.render(view) and markup.render(view).count("&lt;img") == 5


@pytest.mark.parametrize("name", ["<!--<script>", "</script><img src=x onerror=alert(1)>", "<b>"])
def test_class_names_stay_values_in_an_explorers_data(name, run):
    from csgbook.explorers import explore

    text = explore.cut({name: [run]}, (name,) * 10, "Cut", (0, 0)).to_html()
    assert name not in text and text.count("<script") == 2 == text.count("</script>")
    (payload,) = re.findall(r'<script type="application/json">(.*?)</script>', text)
    assert json.loads(payload)["data"]["classes"] == [name] * 10


# The policy of a page

PAGE = '<html><head><meta charset="utf-8" /></head><body>{}</body></html>'


@pytest.mark.parametrize(
    "part, said",
    [
        ("<script>alert(1)</script>", "script that is not known: 'alert"),
        ("<script >fetch('//evil.example')</script >", "script that is not known"),
        ('<img src="x" onerror="alert(1)">', "handler that is not known: 'alert"),
        ("<b onclick=alert(1)>", "handler that is not known"),
        ('<script src="a.js">alert(1)</script>', "script that is not known"),
    ],
)
def test_a_script_that_nobody_knows_stops_the_build(part, said):
    with pytest.raises(content_policy.ExtensionError, match=said):
        content_policy.policy(PAGE.format(part), "a.html")


def test_the_policy_names_the_digests_of_the_scripts_and_no_host():
    told = content_policy.policy(PAGE.format("<script>let toggleHintShow = 'x';</script>"), "a.html")
    assert content_policy.digest("let toggleHintShow = 'x';") in told
    assert "http" not in told and "script-src 'self' 'sha256-" in told and "unsafe-inline'; img" in told
    assert "'unsafe-inline'" not in told.split("style-src")[0]
