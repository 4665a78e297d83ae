"""What is said when the input is wrong: one sentence with the remedy; its class tells a program the reason."""

import re
from collections.abc import Iterable


class Problem(Exception):
    """A mistake of the input, said in one sentence that names the remedy; the command line prints it and exits with 2."""


class Unknown(Problem):
    """A name that stands for nothing here."""


class Missing(Problem):
    """A file, a folder or a run that is not there."""


class Damaged(Problem):
    """A file that is not as it was written: altered, cut short, or another one's."""


class Unfinished(Problem):
    """A folder that holds no finished run, or not yet."""


class Occupied(Problem):
    """A folder that holds something which would be lost."""


class Busy(Problem):
    """Another process is at work there, or was until now."""


class Diverged(Problem):
    """A training whose numbers are NaN, infinite or absurd."""


class NotFinite(Problem):
    """Numbers among which are NaN or infinity, where something is to be measured of them."""


def check_name(kind: str, name: str, known: Iterable[str]) -> None:
    """Raises Unknown where the name is none of those known."""
    if name not in known:
        raise Unknown(f"unknown {kind} {name!r}: choose one of {', '.join(known)}")


def check_finite(what: str, *tensors) -> None:
    """Raises NotFinite where they hold NaN or infinity: what is computed from them looks like a number."""
    if not all(t.isfinite().all() for t in tensors):
        raise NotFinite(f"{what} hold NaN or infinity, of which nothing can be measured: look for their origin first")


def printable(name: str) -> str:
    """A name that the machine gives, as runs/schema.py will have it: else a run would be refused when it is finished."""
    return re.sub(r"[^\w .,:;()@/+-]", " ", name)[:100]
