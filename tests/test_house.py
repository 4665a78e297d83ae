"""The arrows between the packages: recipe -> data, networks, methods -> runs -> training -> csgbook, and never back."""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import sources  # noqa: E402

FILES = sorted(p for package in sources.PACKAGES for p in (ROOT / package).rglob("*.py"))
# Each may import what stands before it, and files of its own folder
ORDER = ["errors", "paths", "files", "memory", "recipe", "readout", "precision"]
ORDER += ["data", "networks", "methods", "analysis", "runs", "training"]
ORDER_OF_THE_BOOK = ["claims", "experiments", "measured", "evidence", "embed", "pages", "explorers", "cli"]


def place(path: Path) -> str:
    return path.relative_to(ROOT).parts[1].removesuffix(".py")


def imports(path: Path, top: bool) -> set[Path]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top else ast.walk(tree)
    names = {name for node in nodes for name in sources.named(node)}
    places = [ROOT.joinpath(*name.split(".")) for name in names if name.split(".")[0] in sources.PACKAGES]
    return {p for q in places for p in (q.with_suffix(".py"), q / "__init__.py") if p.is_file()} - {path}


@pytest.mark.parametrize("path", sorted((ROOT / "csglib").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_library_does_not_know_the_book_and_its_folders_follow_each_other(path):
    found = imports(path, top=False)
    assert not [p for p in found if p.is_relative_to(ROOT / "csgbook")]
    if place(path) in ORDER:
        known = ORDER[: ORDER.index(place(path)) + 1]
        assert {place(p) for p in found} - {"__init__"} <= set(known)


@pytest.mark.parametrize("path", sorted((ROOT / "csgbook").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_folders_of_the_book_follow_each_other(path):
    found = {place(p) for p in imports(path, top=False) if p.is_relative_to(ROOT / "csgbook")} - {"__init__"}
    if place(path) != "__init__":
        assert found <= set(ORDER_OF_THE_BOOK[: ORDER_OF_THE_BOOK.index(place(path)) + 1])


@pytest.mark.slow
def test_no_module_imports_itself_by_way_of_others():
    above = {path: {folder / "__init__.py" for folder in path.parents} for path in FILES}  # imported before it in any case
    graph = {path: imports(path, top=True) - above[path] for path in FILES}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(str(p.relative_to(ROOT)) for p in error.args[1]))


def test_a_page_depends_on_what_it_imports_and_on_nothing_else():
    """A change in the table of speed executes no notebook anew."""
    table1 = sources.sources(ROOT / "book" / "table1.ipynb")
    assert {"csgbook/pages/tables.py", "csgbook/evidence/rules.py", "csglib/analysis/metrics.py"} <= set(table1)
    assert not {"csgbook/pages/benchmarks.py", "csgbook/explorers/worked.py", "csglib/training/loop.py"} & set(table1)
    assert "csgbook/explorers/explore.js" in sources.sources(ROOT / "book" / "explore.ipynb")
