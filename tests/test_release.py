"""Where the project is published: one address, the runs from its archive, a run to take away."""

import io
import re
import shutil
import subprocess
import sys
import tarfile
import types
import zipfile

import nbformat
import pytest

from csglib import Problem, runs
from csglib.errors import Damaged
from csglib.paths import ROOT
from csglib.runs import release

sys.path.insert(0, str(ROOT / "tools"))
sys.path.insert(0, str(ROOT / "tools" / "ext"))
import address  # noqa: E402
import launch  # noqa: E402

NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))


# The address


def test_the_address_is_that_of_pyproject_and_unknown_as_long_as_it_is_the_placeholder(monkeypatch, tmp_path):
    monkeypatch.setattr(release, "ROOT", tmp_path)
    line = '[project.urls]\nRepository = "https://example.org/{}"\n'
    (tmp_path / "pyproject.toml").write_text(line.format("someone/csg"))
    assert release.repository() == "https://example.org/someone/csg"
    (tmp_path / "pyproject.toml").write_text(line.format(release.UNKNOWN))
    assert release.repository() == ""


def test_no_other_file_names_the_repository_than_pyproject_and_from_there_the_notebooks():
    """Whoever it belongs to: no other file has a github.com address of this project, or the placeholder."""
    own = release.repository() or release.UNKNOWN
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a clone: git cannot list the files")
    named = set()
    for name in tracked.stdout.splitlines():
        if (ROOT / name).is_file() and (ROOT / name).suffix not in (".safetensors", ".webp", ".woff", ".png"):
            text = (ROOT / name).read_text(errors="ignore")
            named |= {name} if own in text or release.UNKNOWN in text else set()
    allowed = {"pyproject.toml", "csglib/runs/release.py", "tools/address.py"}  # the two say what the placeholder means
    stamped = {p.relative_to(ROOT).as_posix() for p in NOTEBOOKS} if release.repository() else set()
    assert named == allowed | stamped


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_set_up_cell_has_the_address_of_pyproject(path):
    assert re.findall(r'repository = \\"(.*?)\\"  # @param', path.read_text()) == [release.repository()]


def test_the_tool_writes_the_address_into_a_notebook_and_nothing_else(tmp_path):
    copy = tmp_path / "page.ipynb"
    shutil.copy(NOTEBOOKS[0], copy)
    address.stamp(copy, "https://example.org/someone/csg")
    assert 'repository = \\"https://example.org/someone/csg\\"  # @param' in copy.read_text()
    address.stamp(copy, release.repository())
    assert copy.read_bytes() == NOTEBOOKS[0].read_bytes()
    copy.write_text("{}")
    with pytest.raises(SystemExit, match="has 0 lines"):
        address.stamp(copy, "")


def test_pages_get_buttons_for_colab_and_binder_once_there_is_an_address(monkeypatch):
    config = types.SimpleNamespace(html_theme_options={"navbar_persistent": []})
    monkeypatch.setattr(launch, "repository", lambda: "")
    launch.add(None, config)
    assert config.html_theme_options == {"navbar_persistent": []}
    monkeypatch.setattr(launch, "repository", lambda: "https://example.org/someone/csg")
    launch.add(None, config)
    assert config.html_theme_options["repository_url"] == "https://example.org/someone/csg"
    assert set(config.html_theme_options["launch_buttons"]) == {"colab_url", "binderhub_url", "notebook_interface"}


@pytest.mark.slow
def test_the_theme_makes_these_buttons_and_a_link_to_a_page_shows_its_picture(monkeypatch, tmp_path):
    from sphinx.application import Sphinx

    monkeypatch.setattr(launch, "repository", lambda: "https://github.com/someone/csg")
    extensions = ["myst_nb", "sphinx_book_theme", "sphinxext.opengraph", "launch"]
    config = {"extensions": extensions, "html_theme": "sphinx_book_theme", "nb_execution_mode": "off", "master_doc": "page"}
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Page\n\nDo gates cost accuracy?")])
    nb.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(nb, tmp_path / "page.ipynb")
    Sphinx(tmp_path, None, tmp_path / "html", tmp_path / "doctrees", "html", config, status=None).build()
    text = (tmp_path / "html" / "page.html").read_text()
    assert "https://colab.research.google.com/github/someone/csg/blob/main/book/page.ipynb" in text
    assert "https://mybinder.org/v2/gh/someone/csg/main?urlpath=lab/tree/book/page.ipynb" in text
    told = dict(re.findall(r'<meta property="(og:\w+)" content="([^"]*)"', text))
    assert told["og:title"] == "Page" and told["og:description"] == "Do gates cost accuracy?"
    assert told["og:url"] == "https://someone.github.io/csg/page.html"
    picture = told["og:image"].removeprefix("https://someone.github.io/csg/")
    assert (tmp_path / "html" / picture).read_bytes().startswith(b"\x89PNG")


# The runs


@pytest.fixture
def archive(run, tmp_path):
    """archive(names, extra): the address of a repository packed as its host does it, with copies of a run of these names."""

    def pack(names=("a", "b"), extra=(), damage=False) -> str:
        path = tmp_path / "HEAD.tar.gz"
        with tarfile.open(path, "w:gz") as tar:
            members = {"NAME-1234/README.md": b"read me", "NAME-1234/data/runs/README.md": b"runs"} | dict(extra)
            for name in names:
                for file in (*runs.FILES, "provenance.json"):
                    content = (run.path / file).read_bytes()
                    members[f"NAME-1234/data/runs/{name}/{file}"] = content + b" " * (damage and file == "metrics.json")
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return path.as_uri()

    return pack


def test_the_runs_of_the_archive_arrive_whole_and_those_that_are_there_stay(run, archive, tmp_path):
    folder = tmp_path / "runs"
    shutil.copytree(run.path, folder / "b")
    (folder / "b" / "mine.txt").write_text("")
    assert release.get_runs(folder, archive()) == (1, 1)
    assert sorted(p.name for p in folder.iterdir()) == ["a", "b"]
    assert runs.read(folder / "a").metrics == run.metrics
    assert (folder / "b" / "mine.txt").exists()
    assert release.get_runs(folder, archive()) == (0, 2)


def test_a_damaged_run_gets_no_name(archive, tmp_path):
    with pytest.raises(Damaged, match="metrics.json"):
        release.get_runs(tmp_path / "runs", archive(damage=True))
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize("name", ["NAME/data/runs/../metrics.json", "NAME/data/runs/-rf x;y/metrics.json"])
def test_a_name_that_leads_elsewhere_is_refused(name, archive, tmp_path):
    with pytest.raises(Problem, match="is no file of a run"):
        release.get_runs(tmp_path / "runs", archive(extra={name: b"{}"}))
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_file_over_its_bound_and_an_endless_archive_are_refused(archive, tmp_path, monkeypatch):
    with pytest.raises(Problem, match="recipe.json is no file of a run"):
        release.get_runs(tmp_path / "runs", archive(extra={"NAME/data/runs/c/recipe.json": b" " * (1 << 26)}))
    monkeypatch.setattr(release, "ARCHIVE", 1000)
    with pytest.raises(Problem, match="more than the repository"):
        release.get_runs(tmp_path / "runs", archive())


def test_what_is_no_archive_or_not_there_is_told_with_the_remedy(archive, tmp_path):
    with pytest.raises(Problem, match="holds no run.*clone the repository"):
        release.get_runs(tmp_path / "runs", archive(names=()))
    (tmp_path / "HEAD.tar.gz").write_text("no archive")
    with pytest.raises(Problem, match="the runs from .* cannot be unpacked .*clone the repository"):
        release.get_runs(tmp_path / "runs", (tmp_path / "HEAD.tar.gz").as_uri())
    with pytest.raises(Problem, match="could not download the runs .*clone the repository"):
        release.get_runs(tmp_path / "runs", (tmp_path / "nowhere").as_uri())
    assert list((tmp_path / "runs").iterdir()) == []


def test_without_an_address_the_command_says_so(csglib, monkeypatch):
    monkeypatch.setattr(release, "repository", lambda: "")
    code, out, err = csglib("data", "get", "runs")
    assert (code, out) == (2, "") and err.startswith("csglib: the address of the repository is not known")


# A run to take away


def test_on_colab_a_run_becomes_one_file_and_elsewhere_nothing_happens(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert release.download([run]) is None and list(tmp_path.iterdir()) == []
    offered = []
    colab = types.ModuleType("google.colab")
    colab.files = types.SimpleNamespace(download=offered.append)
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    path = release.download([run, run])
    assert offered == [str(path)] and path.name == f"{run.recipe.name}.zip"
    with zipfile.ZipFile(path) as packed:
        packed.extractall(tmp_path / "out")
    assert runs.read(tmp_path / "out" / run.recipe.name).metrics == run.metrics
    assert release.download([]) is None
