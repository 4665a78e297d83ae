"""What every download shares: a progress bar, and a folder that appears whole or not at all."""

import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tqdm.auto import tqdm


@contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """A folder in which a download is unpacked and checked, on the disk where it will lie; what is not moved out of it goes."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as tmp:
        yield Path(tmp)


@contextmanager
def stream(url: str, what: str) -> Iterator[BinaryIO]:
    """The bytes behind an address, with a bar that says how many came.  Raises OSError where it cannot be read."""
    with urllib.request.urlopen(url, timeout=60) as source:
        size = int(source.headers.get("Content-Length") or 0) or None
        with tqdm.wrapattr(source, "read", total=size, desc=what) as told:
            yield told
