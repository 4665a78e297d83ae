"""Which files of csglib and csgbook a program reads: what it imports, and what those import in turn."""

import ast
import functools
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("csglib", "csgbook")


def sources(program: Path) -> list[str]:
    """The files that a notebook or a Python file needs, from the repository on, with scripts, styles and templates."""
    found, ahead = set(), set(imported(program))
    while ahead:
        path = ahead.pop()
        if path not in found:
            found.add(path)
            ahead |= imported(path)
    beside = {path.parent / name for path in found for name in re.findall(r"\w+\.(?:js|css|html)", path.read_text())}
    return sorted(str(p.relative_to(ROOT)) for p in found | {p for p in beside if p.is_file()})


@functools.cache
def imported(program: Path) -> frozenset[Path]:
    names = {name for code in cells(program) for node in ast.walk(ast.parse(code)) for name in named(node)}
    packages = {".".join(name.split(".")[:i]) for name in names for i in range(1, name.count(".") + 2)}
    places = [ROOT.joinpath(*name.split(".")) for name in packages if name.split(".")[0] in PACKAGES]
    return frozenset(p for place in places for p in (place.with_suffix(".py"), place / "__init__.py") if p.is_file())


def cells(program: Path) -> list[str]:
    if program.suffix != ".ipynb":
        return [program.read_text()]
    source = [c["source"] for c in json.loads(program.read_text())["cells"] if c["cell_type"] == "code"]
    return [re.sub(r"^\s*[%!].*$", "", "".join(text), flags=re.M) for text in source]


def named(node: ast.AST) -> list[str]:
    """The modules that an import names, and what it takes out of them, which may be modules too."""
    if isinstance(node, ast.Import):
        return [a.name for a in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
    return []
