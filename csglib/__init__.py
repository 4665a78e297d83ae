"""Interpretable CNNs with class-specific filters: gate, methods, training, metrics.

The way through the library is the way through the book:

    recipe -> train -> run -> readout -> metrics, figures -> claims
"""

from collections.abc import Iterable

__version__ = "0.1.0"
__all__ = ["Problem", "check_name", "gated"]


class Problem(Exception):
    """A mistake of the input, said in one sentence that names the remedy; the command line prints it and exits with 2."""


def check_name(kind: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise Problem(f"unknown {kind} {name!r}: choose one of {', '.join(known)}")


def check_finite(what: str, *tensors) -> None:
    """Refuse NaN and infinity: what is computed from them looks like a number."""
    if not all(t.isfinite().all() for t in tensors):
        raise Problem(f"{what} hold NaN or infinity, of which nothing can be measured: look for their origin first")


from csglib.cut import gated  # noqa: E402  (it needs Problem)
