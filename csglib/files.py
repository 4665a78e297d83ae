"""Files: read within bounds and checked, written whole or not at all, by one process at a time."""

import errno
import faulthandler
import functools
import json
import math
import multiprocessing
import os
import secrets
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from csglib.errors import Busy, Damaged, Missing, Problem

try:
    import fastjsonschema  # beside Jupyter's extras importing jsonschema itself takes 2 s, half of a command's start
except ImportError:  # a GPU machine may have torch and little else
    fastjsonschema = None

KIB, MIB = 1 << 10, 1 << 20


def check_size(path: Path, limit: int, remedy: str) -> None:
    """Before a file is read: that it is one, and that it fits into the memory that is meant for it."""
    if not path.is_file():
        raise Missing(f"{path} is missing: {remedy}")
    if (size := path.stat().st_size) > limit:
        raise Damaged(f"{path} has {size / MIB:,.1f} MiB, where at most {limit / MIB:g} are expected: {remedy}")


def read_json(path: Path, remedy: str, schema: dict | None = None, limit: int = 16 * MIB) -> dict:
    """A JSON object that follows the schema; with a schema, NaN, infinities and whole numbers from 2^63 are refused too."""
    return parse_json(read_text(path, remedy, limit), path, remedy, schema)


def read_text(path: Path, remedy: str, limit: int = 16 * MIB) -> str:
    """UTF-8 text of at most `limit` bytes.  Raises Missing or Damaged, with the remedy, where there is none."""
    check_size(path, limit, remedy)
    try:
        return path.read_bytes().decode()
    except (OSError, ValueError) as error:
        raise Damaged(f"{path} cannot be read ({error}): {remedy}") from None


def parse_json(text: str, source: Path, remedy: str, schema: dict | None = None) -> dict:
    """A JSON object out of a text, as `read_json` reads one; `source` is what a sentence names."""
    try:
        value = json.loads(text, parse_constant=refuse, parse_float=finite, parse_int=whole) if schema else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{source} cannot be read ({error}): {remedy}") from None
    if not isinstance(value, dict):
        raise Damaged(f"{source} should hold a JSON object: {remedy}")
    if schema and fastjsonschema is None:
        warnings.warn(f"the contents of {source} are not checked: pip install fastjsonschema", stacklevel=2)
    elif schema:
        try:
            validator(json.dumps(schema))(value)
        except fastjsonschema.JsonSchemaValueException as wrong:
            raise Damaged(f"{source} does not hold what it should ({short(wrong.message)}): {remedy}") from None
    return value


@functools.cache
def validator(schema: str) -> Callable[[Any], Any]:
    """The schema, as JSON, compiled once to a function that raises where a value does not follow it."""
    return fastjsonschema.compile(json.loads(schema))


def refuse(constant: str) -> None:
    """Raises ValueError, for json's hooks."""
    raise ValueError(f"{short(constant, 20)} is no number to be expected")


def finite(text: str) -> float:
    """1e999 is a number of JSON, but none of a computer."""
    value = float(text)
    return value if math.isfinite(value) else refuse(text)


def whole(text: str) -> int:
    """No count here comes near 2^63, and what is larger fits into no tensor or float."""
    value = int(text)
    return value if abs(value) < 2**63 else refuse(text)


def short(text: str, most: int = 120) -> str:
    """One line of a message that repeats what was read."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 3] + "..."


def read_tensors(path: Path, remedy: str, limit: int) -> dict[str, Tensor]:
    """All tensors of a safetensors file of at most `limit` bytes.  Raises Missing or Damaged, with the remedy."""
    check_size(path, limit, remedy)
    try:
        return load(path.read_bytes())
    except (SafetensorError, KeyError) as error:  # KeyError: a number format that torch does not have
        raise Damaged(f"{path} is damaged ({short(str(error))}): {remedy}") from None


def apart(parse: Callable[[Path], Any], path: Path, remedy: str, seconds: float = 4, memory: int = 2048 * MIB) -> Any:
    """parse(path) in a process of its own, for a parser that may crash on what it reads; bounded in time and, on Linux, memory.

    scipy's of MATLAB files ends with a segmentation fault on some with a few bytes changed.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        raise Problem(f"{path} cannot be read in a process of its own on this system: read it under Linux or macOS")
    import resource

    context = multiprocessing.get_context("fork")  # csglib is imported already, and no thread is needed there
    ours, theirs = context.Pipe(duplex=False)

    def work() -> None:
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if (size := Path("/proc/self/statm")).exists():
            limit = int(size.read_text().split()[0]) * resource.getpagesize() + memory
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            theirs.send((parse(path), None))
        except Exception as error:
            theirs.send((None, str(error) or type(error).__name__))

    child = context.Process(target=work, daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, which no lock is shared with
        child.start()
    theirs.close()
    try:
        value, error = ours.recv() if ours.poll(seconds) else (None, f"it takes more than {seconds:g} seconds")
    except EOFError:
        value, error = None, "its parser crashed"
    finally:
        ours.close()
        child.kill()
        child.join()
    if error:
        raise Damaged(f"{path} cannot be read ({short(error)}): {remedy}")
    return value


def write(path: Path, content: str | bytes) -> None:
    """Atomically and durably: a reader sees the old file or the new one, after a power cut too, whoever else writes it."""
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    try:
        with new.open("xb") as f:
            f.write(content.encode() if isinstance(content, str) else content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(new, path)
        sync(path.parent)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "free some space" if full else "make the folder writable"
        raise Problem(
            f"{path} could not be written ({error.strerror}): {remedy} and give the same command again; what was saved "
            "before is unharmed"
        ) from None
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)  # after a stop, or on a full disk, where its room is needed


def sync(folder: Path) -> None:
    """Put the folder's names on the disk, where a folder can be opened for it."""
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def lock(folder: Path) -> int:
    """A descriptor that keeps other processes out of the folder until it is closed or its process ends, however it ends.

    The folder itself is locked, so that no file stays behind.
    """
    try:
        import fcntl
    except ImportError:
        raise Problem(f"{folder} cannot be locked on this system: train under Linux, macOS or Windows' WSL") from None
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Busy(f"another process is at work in {folder}: wait until it has finished, or stop it") from None
    except OSError as error:  # some network file systems
        warnings.warn(f"{folder} cannot be locked ({error.strerror}): let no second process work there", stacklevel=2)
    if not folder.exists() or not os.path.samestat(os.fstat(fd), folder.stat()):
        os.close(fd)
        raise Busy(f"another process has just finished in {folder}: look at its result first")
    return fd


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder's `lock` for the block."""
    fd = lock(folder)
    try:
        yield
    finally:
        os.close(fd)
