"""sha256 sums of many files, remembered beside the downloads: what is large is read once, not whenever a training starts.

A sum is believed while its file has the size and the time of change that it had when it was read.
"""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tqdm.auto import tqdm

from csglib import files
from csglib.errors import Problem
from csglib.files import short
from csglib.paths import digest, folder

T = TypeVar("T")
BYTES = {"errors": "surrogateescape"}  # of names that are not UTF-8
LIMIT = 512 * files.MIB  # of the file that remembers: some 100 bytes per picture


def beside(root: Path, ending: str) -> Path:
    """Where something made of this folder's pictures is kept."""
    own = hashlib.sha256(str(root.resolve()).encode(**BYTES)).hexdigest()[:12]
    return folder() / "folders" / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', root.name)[:80]}-{own}{ending}"


def remembered(root: Path) -> dict[str, list]:
    """Name beneath the root -> its size, its time of change in nanoseconds, its sum."""
    try:
        return files.read_json(beside(root, ".sums.json"), "it is made anew", limit=LIMIT)
    except Problem:
        return {}


def sums(root: Path, paths: Sequence[Path]) -> list[str]:
    """The sum of each file, read only where it is not known or the file has changed."""
    known = remembered(root)

    def now(path: Path) -> list:
        name, state = os.path.relpath(path, root), state_of(path)
        before = known.get(name, [])
        return before if before[:2] == state and len(before) == 3 else [*state, digest(path)]

    found = dict(zip(names(root, paths), mapped(now, paths, f"sums of {root}"), strict=True))
    if any(known.get(name) != row for name, row in found.items()):
        remember(root, known | found)
    return [row[2] for row in found.values()]


def verify(root: Path, paths: Sequence[Path], opens: Callable[[Path], object]) -> str:
    """Read and open every file, whatever is remembered, and remember its sum.

    Returns one sha256 over all names and sums.  Raises Problem where one does not open, or has other contents than when it was
    last read, though its size and its time of change are the same.
    """
    known = remembered(root)

    def now(path: Path) -> list | str:
        before = known.get(os.path.relpath(path, root), [])
        try:
            found = [*state_of(path), digest(path)]
            opens(path)
        except OSError as error:
            return f"{path} cannot be read ({error.strerror}): restore it, or take it out of the folder"
        except Problem as problem:
            return str(problem)
        altered = before[:2] == found[:2] and before != found
        return f"{path} has other contents than before, and the same size and time: restore it" if altered else found

    rows = mapped(now, paths, f"pictures of {root}")
    if wrong := [row for row in rows if isinstance(row, str)]:
        more = f" ({len(wrong):,} of {len(rows):,} pictures are so; this is the first)" if wrong[1:] else ""
        raise Problem(wrong[0] + more)
    found = dict(zip(names(root, paths), rows, strict=True))
    remember(root, known | found)
    return hashlib.sha256("".join(f"{row[2]} {name}\n" for name, row in sorted(found.items())).encode(**BYTES)).hexdigest()


def names(root: Path, paths: Sequence[Path]) -> list[str]:
    return [os.path.relpath(path, root) for path in paths]


def state_of(path: Path) -> list[int]:
    seen = path.stat()
    return [seen.st_size, seen.st_mtime_ns]


def mapped(each: Callable[[Path], T], paths: Sequence[Path], what: str) -> list[T]:
    hidden = bool(os.environ.get("TQDM_DISABLE"))
    with ThreadPoolExecutor() as pool:
        return list(tqdm(pool.map(each, paths), what, len(paths), delay=1, disable=hidden))


def remember(root: Path, rows: dict[str, list]) -> None:
    try:
        (where := beside(root, ".sums.json")).parent.mkdir(parents=True, exist_ok=True)
        files.write(where, json.dumps(rows))
    except (OSError, Problem) as error:
        remedy = "set CSGLIB_DATA to a folder that can be written"
        warnings.warn(f"{root} will be read each time anew, since {short(str(error))}: {remedy}", stacklevel=4)
