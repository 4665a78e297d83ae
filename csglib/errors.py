"""What is said when the input is wrong: one sentence with the remedy."""

import re
from collections.abc import Iterable


class Problem(Exception):
    """A mistake of the input, said in one sentence that names the remedy; the command line prints it and exits with 2."""


def check_name(kind: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise Problem(f"unknown {kind} {name!r}: choose one of {', '.join(known)}")


def check_finite(what: str, *tensors) -> None:
    """Refuse NaN and infinity: what is computed from them looks like a number."""
    if not all(t.isfinite().all() for t in tensors):
        raise Problem(f"{what} hold NaN or infinity, of which nothing can be measured: look for their origin first")


def printable(name: str) -> str:
    """A name that the machine gives, as runs/schema.py will have it: else a run would be refused when it is finished."""
    return re.sub(r"[^\w .,:;()@/+-]", " ", name)[:100]
