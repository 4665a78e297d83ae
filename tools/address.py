"""Write the repository's address from pyproject.toml into the set-up cell of every notebook, where Colab needs it.

    python tools/address.py

As long as pyproject.toml says OWNER/NAME the cells ask the reader for the address.
"""

import re
from pathlib import Path

from csglib.paths import ROOT
from csglib.runs.release import repository

LINE = re.compile(r'(repository = \\")[^"\\]*(\\"  # @param)')  # as JSON writes it


def stamp(path: Path, address: str) -> None:
    text = path.read_text()
    new, count = LINE.subn(rf"\g<1>{address}\g<2>", text)
    if count != 1:
        raise SystemExit(f"{path} has {count} lines `repository = ...  # @param`: its set-up cell should have one")
    if new != text:
        path.write_text(new)


if __name__ == "__main__":
    for path in sorted((ROOT / "book").glob("*.ipynb")):
        stamp(path, repository())
