"""README and pages: every command and block of code is run, or stands here with the reason why not; links lead somewhere.

Long trainings are run in smoke form: the recipe is made as it stands and checked, then trained on few images for three epochs.
"""

import dataclasses
import doctest
import hashlib
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema
import nbformat
import pytest
import yaml
from conftest import BIN, ROOT

from csglib import methods, networks, training
from csglib.data import folders
from csglib.training import trainer

BOOK = ROOT / "book"
SOURCES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "data/README.md")]
SOURCES += sorted(p for pattern in ("*.md", "*.ipynb") for p in BOOK.glob(pattern))
NOT_RUN = {  # of commands in sh blocks, by their beginnings
    "make ": "minutes to hours, and tests/test_book.py and test_pipeline.py run what make calls; its target must exist",
    "source .venv/bin/activate": "the tests run in that environment already",
    "csglib data get": "needs a network; tests/test_data.py and test_objects.py download from a stand-in",
    "csglib train --dataset cifar10-mini --method decay": "the page adds that method; tests/test_contributing.py follows it",
    "csglib evaluate build/decay": "the same",
    "csglib train --dataset imagenet": "needs ImageNet; tests/test_streamed.py trains on pictures in its layout",
    "python -m pytest": "this suite; its files must exist",
    "git clone": "needs an address",
    "torchrun": "eight GPUs; tests/test_distributed.py has two processes train one small network",
    "cd ": "with it",
    "pip ": "needs a network",
}
SHOWN = (
    "text",
    "yaml",
    "json",
    "bibtex",
    "diff",
    "py",  # of a notebook: a solution, which the smoke profile runs; else it needs a package that is not here, and says which
)  # blocks that are not run; differences are applied by tests/test_contributing.py


def text(source: Path) -> str:
    if source.suffix == ".md":
        return source.read_text()
    return "\n\n".join(c.source for c in nbformat.read(source, 4).cells if c.cell_type == "markdown")


def blocks(source: Path) -> list[tuple[str, str]]:
    """Language and content of the fenced blocks but for directives, in their order."""
    found = re.findall(r"^( *)```([^\n`]*)\n(.*?)^\1```$", text(source), re.S | re.M)
    return [(language, content) for _, language, content in found if not language.startswith("{")]


def commands(source: Path) -> list[str]:
    """The lines of its sh blocks, and those of CONTRIBUTING that are set in, without comments."""
    lines = "\n".join(content for language, content in blocks(source) if language == "sh").replace("\\\n", " ").splitlines()
    if source.name == "CONTRIBUTING.md":
        lines += re.findall(r"^ {4}(make \w+)", text(source), re.M)
    return [" ".join(shlex.split(line, comments=True)) for line in lines if shlex.split(line, comments=True)]


def with_blocks(*languages: str) -> list[Path]:
    return [s for s in SOURCES if any(language in languages for language, _ in blocks(s))]


def name(source: Path) -> str:
    return str(source.relative_to(ROOT))


@pytest.fixture
def smoke(tiny, tmp_path, monkeypatch):
    """An empty current folder with some pictures in it, and trainings in their smoke form."""
    monkeypatch.setenv("CSGLIB_DATA", str(tmp_path / "raw"))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    shutil.move(tmp_path / "raw" / folders.sample(), tmp_path / "my-pictures")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(networks, "NETS", dict(networks.NETS))
    real = trainer.train

    def short(recipe, out, device=None, every=1, tell=None, on_epoch=None, reading=None):
        methods.method(recipe)  # refuses options that the method does not read
        small = {"dataset": "tiny", "epochs": 3, "batch_size": 64, "precision": "float32", "weights": "fresh", "thaw": ""}
        small |= {"net": "resnet8"} if "@" not in recipe.net else {}
        small |= {"gate_density": max(recipe.gate_density, 0.1)}  # of ten classes
        return real(dataclasses.replace(recipe, **small), out, "cpu", every, on_epoch=on_epoch)

    for module in (trainer, training):
        monkeypatch.setattr(module, "train", short)
    return tmp_path


@pytest.mark.parametrize("source", SOURCES, ids=name)
def test_every_block_is_of_a_kind_that_is_run_or_said_not_to_be(source):
    assert {language for language, _ in blocks(source)} <= {"sh", "python", "pycon", *SHOWN}


@pytest.mark.slow
@pytest.mark.parametrize("source", with_blocks("sh") + [ROOT / "CONTRIBUTING.md"], ids=name)
def test_commands_run(source, smoke, csglib):
    for command in commands(source):
        if begins := [words for words in NOT_RUN if command.startswith(words)]:
            if begins == ["make "]:
                assert re.search(rf"^([a-z]+ )*{command.split()[1]}( [a-z]+)*:", (ROOT / "Makefile").read_text(), re.M), command
            if begins == ["python -m pytest"]:
                assert all((ROOT / file).is_file() for file in command.split()[3:]), command
            continue
        program, *words = shlex.split(command)
        if program == "snakemake":
            done = subprocess.run([BIN / "snakemake", *words], cwd=ROOT, capture_output=True, text=True)
            assert "--dry-run" in words and done.returncode == 0, done.stderr
            continue
        assert program in ("csglib", "csgbook"), f"{name(source)} says {command!r}: run it here, or say in NOT_RUN why not"
        code, out, err = csglib(*words)
        assert code == 0 and out, f"{command}: {err}"


@pytest.mark.slow
@pytest.mark.parametrize("source", with_blocks("python"), ids=name)
def test_python_blocks_run(source, smoke):
    space = {"__name__": "block"}
    for language, content in blocks(source):
        if language == "python":
            exec(compile(content, name(source), "exec"), space)


@pytest.mark.slow
@pytest.mark.parametrize("source", with_blocks("pycon"), ids=name)
def test_examples_give_what_they_say(source, tmp_path, monkeypatch):
    monkeypatch.setenv("CSGLIB_DATA", str(tmp_path / "raw"))
    monkeypatch.chdir(tmp_path)
    examples = "\n".join(content for language, content in blocks(source) if language == "pycon")
    told = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    runner.run(doctest.DocTestParser().get_doctest(examples, {}, name(source), str(source), 0), out=told.append)
    assert runner.failures == 0 and runner.tries > 3, "".join(told)


def test_every_page_of_the_reference_has_an_example_and_every_file_in_it():
    pages = sorted(BOOK.glob("api-*.md"))
    assert len(pages) == 4 and {name(p) for p in pages} <= {name(s) for s in with_blocks("pycon")}
    documented = re.findall(r"^\.\. auto\w+:: (?:csglib|csgbook)\.([\w.]+)\.", "\n".join(map(text, pages)), re.M)
    known = {
        "methods.csg",
        "methods",
        "networks",
        "data",
        "data.folders",
        "runs",
        "training",
        "analysis.metrics",
        "evidence.verdicts",
    }
    assert known <= set(documented)


# Links


@pytest.mark.parametrize("source", SOURCES, ids=name)
def test_links_lead_to_files_and_pages_and_addresses_are_well_formed(source):
    prose = re.sub(r"^ *```.*?^ *```$", "", text(source), flags=re.S | re.M)
    for target in re.findall(r"\]\(<?([^)>\s]+)>?\)", prose):
        url = urlsplit(target)
        if url.scheme:
            assert url.scheme == "https" and re.fullmatch(r"[\w-]+(\.[\w-]+)+", url.netloc), target
        elif url.path:
            assert (source.parent / url.path).exists(), target
    for target in re.findall(r"\{doc\}`(?:[^`<]*<)?([^`>]+)>?`", prose):
        assert (BOOK / f"{target}.md").exists() or (BOOK / f"{target}.ipynb").exists(), target
    for address in re.findall(r"https?://[^\s)>`\"']+", prose):
        assert re.fullmatch(r"https://[\w-]+(\.[\w-]+)+(/[^\s]*)?", address), address


def test_addresses_in_the_bibliography_are_well_formed():
    for address in re.findall(r"https?://[^\s}]+", (BOOK / "references.bib").read_text()):
        assert re.fullmatch(r"https://[\w-]+(\.[\w-]+)+/\S+", address), address


# How to cite, and forms


def test_the_citation_file_follows_its_schema():
    """Schema 1.2.0 of the Citation File Format, CC BY 4.0, from the package check-jsonschema 0.39.0, byte for byte."""
    path = ROOT / "tests" / "citation-1.2.0.schema.json"
    sha256 = "17bc7993c67b95eec988dadca78b65cb29cd489d1fceba71040a141dfb9791df"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    check = jsonschema.Draft7Validator(json.loads(path.read_text()))
    cited = yaml.load((ROOT / "CITATION.cff").read_text(), yaml.BaseLoader)  # dates and versions as text
    assert [e.message for e in check.iter_errors(cited)] == []
    assert list(check.iter_errors(cited | {"version": ["0.1.0"]}))


def test_the_page_on_citing_agrees_with_the_citation_file():
    cited, page = yaml.safe_load((ROOT / "CITATION.cff").read_text()), text(BOOK / "cite.md")
    for value in (cited["title"], f"{{{cited['version']}}}", f"{{{cited['date-released'][:4]}}}", cited["authors"][0]["name"]):
        assert value in page


@pytest.mark.parametrize("form", ["bug", "number", "idea"])
def test_a_form_for_issues_has_what_github_asks_for(form):
    """Name, description and body; of each element a known type, a unique id and a label."""
    found = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{form}.yml").read_text())
    assert {"name", "description", "body"} <= set(found) <= {"name", "description", "body", "labels", "title", "assignees"}
    assert len({element["id"] for element in found["body"]}) == len(found["body"])
    for element in found["body"]:
        assert element["type"] in ("textarea", "input", "checkboxes", "dropdown") and element["attributes"]["label"]
        assert set(element) <= {"type", "id", "attributes", "validations"}
        assert all(option["label"] for option in element["attributes"].get("options", []))
