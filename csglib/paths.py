"""Where things lie: the repository, or what a wheel carries of it, downloads and published runs; and digests of files."""

import hashlib
import os
from pathlib import Path

HERE = Path(__file__).resolve().parent
CLONE = not (HERE / "root").exists()  # else a wheel, whose csglib/root carries what it needs of the repository
ROOT = HERE.parent if CLONE else HERE / "root"


def folder() -> Path:
    """Where downloads lie: the environment variable CSGLIB_DATA, or data/raw in the repository, or a cache without one."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "csglib"
    return Path(os.environ.get("CSGLIB_DATA") or (ROOT / "data" / "raw" if CLONE else cache))


def digest(path: Path, algorithm: str = "sha256") -> str:
    """sha256 of a file, as 64 hex digits."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, algorithm).hexdigest()


PUBLISHED = ROOT / "data" / "runs" if CLONE else folder() / "runs"
