"""What every download shares: it goes on where it broke, is checked before it is unpacked, and nothing half-made gets a name.

Until it is whole it lies in a folder NAME.part beside the place where it will be.  Neither torchvision's helpers nor pooch's
ask a server for the rest of a file: both begin it anew.
"""

import errno
import os
import re
import shutil
import tarfile
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from csglib.errors import Damaged, Problem
from csglib.files import MIB, lock, short
from csglib.paths import digest

ALGORITHMS = {32: "md5", 40: "sha1", 64: "sha256"}  # by the length of a digest
MOST = 4096 * MIB  # of a file whose size is not known beforehand
PAUSE = 2.0  # seconds after which a connection that broke is made again
SPACE = "free some space, or set CSGLIB_DATA to a folder on another disk, and give the same command again"


@dataclass(frozen=True)
class Archive:
    """A file to download."""

    url: str
    digest: str = ""  # md5, sha1 or sha256, by its length; where none is known, a broken download is not kept
    size: int = 0  # bytes; 0 where it is not known
    room: int = 0  # bytes that what is taken out of it needs, about


@contextmanager
def fetched(archive: Archive, what: str, part: Path, remedy: str) -> Iterator[Path]:
    """The file, whole and checked, in a folder of its own, into which it may be unpacked; the folder goes at the end.

    A file that is not whole yet, or for which there was no room, stays there, and the next call asks for the rest.

    Args:
        archive: Where it is, and what it must be.
        what: How a person calls it.
        part: The folder, on the disk where the data will lie; one process at a time may be in it.
        remedy: What else can be done, behind "try again, or".

    Raises:
        Problem: Where the address cannot be read, sends another file, or the disk is full.
    """
    path = part / (PurePosixPath(urlsplit(archive.url).path).name or "archive")
    part.mkdir(parents=True, exist_ok=True)
    lying, kept = lock(part), bool(archive.digest)
    try:
        tidy(part, path if kept else None)  # what a call that was killed has left
        try:
            receive(archive, what, path, remedy)
            if archive.digest and digest(path, ALGORITHMS[len(archive.digest)]) != archive.digest:
                kept = False
                differs = f"(its {ALGORITHMS[len(archive.digest)]} differs)"
                raise Damaged(f"what came from {archive.url} is not the official release {differs}: try again, or {remedy}")
            yield path
            kept = False
        except OSError as error:
            if not full(error):
                raise
            stays = f", and {path} is kept" if kept and size_of(path) else ""
            raise Problem(f"the disk with {part.parent} is full while {what} is written{stays}: {SPACE}") from None
        except Problem as problem:
            kept = kept and isinstance(problem, Broken)
            raise
    finally:
        with suppress(OSError):
            tidy(part, path if kept else None)
            part.rmdir()  # fails where something is kept
        os.close(lying)


class Broken(Problem):
    """More may come of the file, and what came is worth keeping."""


def tidy(part: Path, kept: Path | None) -> None:
    """Remove all but the file that is kept."""
    for path in part.iterdir():
        if path != kept or not size_of(path):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def receive(archive: Archive, what: str, path: Path, remedy: str) -> None:
    """The whole file, over as many connections as it takes while each brings something."""
    while True:
        had = size_of(path)
        if (lacks := archive.size - had + archive.room) > (free := shutil.disk_usage(path.parent).free):
            told = f"{what} needs {lacks / 1e9:.2f} GB in {path.parent.parent}, and {free / 1e9:.2f} GB are free"
            raise Broken(f"{told}: {SPACE}")
        try:
            return receive_rest(archive, what, path, remedy)
        except (OSError, HTTPException) as error:
            if isinstance(error, OSError) and full(error):
                raise
            if size_of(path) > had:
                time.sleep(PAUSE)
                continue
            came = ""
            if archive.digest and had:
                of = f" of {archive.size / MIB:,.1f}" if archive.size else ""
                came = f"; {had / MIB:,.1f}{of} MiB are kept in {path.parent}, and the same command goes on from there"
            reason = short(str(error) or type(error).__name__)
            raise Broken(f"could not download {what} from {archive.url} ({reason}){came}: try again, or {remedy}") from None


def receive_rest(archive: Archive, what: str, path: Path, remedy: str) -> None:
    """What is missing of the file, by one request.  A server that knows no ranges sends all of it again."""
    had = size_of(path)
    if had and had == archive.size:
        return
    headers = {"User-Agent": "csglib"} | ({"Range": f"bytes={had}-"} if had else {})
    try:
        source = urllib.request.urlopen(urllib.request.Request(archive.url, headers=headers), timeout=60)
    except HTTPError as error:
        if error.code == 416 and had:  # there is nothing behind it: the digest tells whether it is whole
            return
        raise
    with source:
        start = 0
        if source.status == 206:
            found = re.match(r"bytes (\d+)-", source.headers.get("Content-Range") or "")
            if not found or int(found[1]) > had:
                path.unlink()
                raise OSError("it sends another part of the file than it was asked for")
            start = int(found[1])
        length = int(source.headers.get("Content-Length") or 0)
        total = start + length if length else archive.size
        if archive.size and total != archive.size:
            told = f"{archive.url} sends another file than {what}, of {total:,} bytes in place of {archive.size:,}"
            raise Broken(f"{told}: try again later, or {remedy}")
        bar = tqdm(desc=what, total=total or None, initial=start, unit="B", unit_scale=True, unit_divisor=1024)
        with bar, path.open("r+b" if start else "wb") as sink:
            sink.seek(start)
            sink.truncate()
            while block := source.read(MIB):
                if sink.tell() + len(block) > (total or MOST):
                    raise Damaged(f"{archive.url} sends more than {what} can have: try again later, or {remedy}")
                sink.write(block)
                bar.update(len(block))
            if sink.tell() < total:
                raise OSError(f"it ended after {sink.tell():,} of {total:,} bytes")


def unpack(path: Path, into: Path, wanted: Collection[PurePosixPath] = ()) -> None:
    """The files of a tar or zip archive, or those alone that are named; none lands outside of the folder.

    Raises Problem where it is no archive, or a file's name leads elsewhere.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for member in tqdm(archive.infolist(), f"unpacking {path.name}", delay=1):
                    if not wanted or PurePosixPath(member.filename) in wanted:
                        archive.extract(member, into)  # drops what leads upwards from its name
        else:
            with tarfile.open(path) as archive:
                for member in archive:
                    if not wanted or PurePosixPath(member.name) in wanted:
                        archive.extract(member, into, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise Damaged(f"{path.name} cannot be unpacked ({short(str(error), 300)}): try again") from None
