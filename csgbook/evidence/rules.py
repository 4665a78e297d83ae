"""The rules for verdicts: from the numbers of several seeds to an interval, a word and the p-value that belongs to it.

One interval decides, Student's of 95 %, and it is the one that is printed, so that no verdict disagrees with it.  It is that
of a mean; of the mean difference of pairs, where both sides started alike; or Welch's of the difference of two means.

- ordering: decided where the interval excludes zero.  The direction first; the paper's difference, if there is one, apart.
- ordering with a tolerance ("equal or at most so much lower"): decided where the interval excludes a difference of minus the
  tolerance.  Wholly within the tolerance on both sides of zero it says equal: two one-sided tests.
- number: reproduced where the interval lies wholly within the tolerance around the paper's value, contradicted where it lies
  wholly outside.  On another schedule than the paper's neither, unless the sentence states the value for any.
- fewer than three seeds of a side decide nothing, and neither does a statistic that could not have come out otherwise.

Everything takes arrays with the seeds last, so that simulate.py judges thousands of experiments by the same lines.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import special  # not stats, which takes half a second of every page to import and asks it too

from csgbook.claims import Claim

LEVEL = 0.05  # of every test, two-sided
SEEDS = 3  # of each side: Student's interval of two is five times as wide
SAME = 1e-12  # numbers that differ by less differ in their last digits
WORDS = {  # direction: of a paper's claim, of a question of this book, in results.json
    1: ("reproduced", "yes", "as claimed"),
    0: ("inconclusive", "open", "open"),
    -1: ("contradicted", "no", "opposite"),
}

Real = Float[np.ndarray, "..."] | float


class Estimate(NamedTuple):
    """A mean, or a difference of means, with its standard error and Student's degrees of freedom."""

    mean: Real
    error: Real
    freedom: Real

    def interval(self) -> tuple[Real, Real]:
        half = special.stdtrit(self.freedom, 1 - LEVEL / 2) * self.error
        return self.mean - half, self.mean + half

    def above(self, x: float) -> Real:
        """One-sided p-value for that it lies above x."""
        return self.tail(x, -1)

    def below(self, x: float) -> Real:
        return self.tail(x, 1)

    def tail(self, x: float, side: int) -> Real:
        with np.errstate(divide="ignore", invalid="ignore"):  # without any spread all or nothing, at x itself neither
            return np.nan_to_num(special.stdtr(self.freedom, side * (self.mean - x) / self.error), nan=0.5)


def of_mean(values: Float[np.ndarray, "*rows n"]) -> Estimate:
    n = values.shape[-1]
    error = np.where(np.ptp(values, -1) < SAME, 0.0, values.std(-1, ddof=1) / np.sqrt(n))
    return Estimate(values.mean(-1), error, np.full_like(error, n - 1))


def of_difference(a: Float[np.ndarray, "*rows n"], b: Float[np.ndarray, "*rows n"], paired: bool) -> Estimate:
    """Of as many seeds on both sides: with 3 against 5 and more spread among the 3, Welch's interval errs in 6.5 % of cases."""
    if paired:
        return of_mean(a - b)
    first, second = of_mean(a), of_mean(b)
    parts = np.stack([first.error**2, second.error**2])
    error = np.sqrt(parts.sum(0))
    squares = np.where(error > 0, (parts**2).sum(0), 1)
    freedom = np.where(error > 0, error**4 * (a.shape[-1] - 1) / squares, 2 * a.shape[-1] - 2)
    return Estimate(first.mean - second.mean, error, freedom)


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95 % interval of the mean over seeds; None for fewer than two."""
    if len(values) < 2:
        return None
    low, high = of_mean(np.array(values, float)).interval()
    return float(low), float(high)


def direction(e: Estimate, null: float = 0.0) -> Int[np.ndarray, "..."]:
    """1 where the interval lies above the null, -1 below, 0 where it holds it."""
    low, high = e.interval()
    return np.where(low > null, 1, np.where(high < null, -1, 0))


def closeness(e: Estimate, value: float, tolerance: float) -> Int[np.ndarray, "..."]:
    """1 where the interval lies wholly within the tolerance around the value, -1 wholly outside, 0 otherwise."""
    low, high = e.interval()
    inside = (low > value - tolerance) & (high < value + tolerance)
    outside = (low > value + tolerance) | (high < value - tolerance)
    return np.where(inside, 1, np.where(outside, -1, 0))


@dataclass(frozen=True)
class Ruling:
    verdict: str
    direction: str | None = None  # of an ordering: as claimed | opposite | open
    size: str | None = None  # of a number of the paper: reproduced | compatible, in the interval | excluded | open
    tests: dict[str, float] = field(default_factory=dict)  # what was tested -> p, below LEVEL where that is decided


def rule(
    claim: Claim, ours: Float[np.ndarray, " n"], other: Float[np.ndarray, " m"], paired: bool, comparable: bool, held: bool
) -> Ruling:
    """The verdict on a claim.

    Paired: value i of both sides started alike.  Comparable: on the schedule presumed to be the paper's.  Held: the method
    itself holds the statistic at this value.
    """
    n = min(len(ours), len(other)) if claim.over else len(ours)
    if n == 0:
        return Ruling("not run here")
    if claim.over is None and (claim.paper is None or claim.source is None):
        return Ruling("no number")
    if n < SEEDS:
        return Ruling(f"inconclusive: {'one seed' if n == 1 else 'two seeds'}")
    e = of_difference(ours[:n], other[:n], paired) if claim.over else of_mean(ours)
    if held or (claim.over and e.error == 0 and abs(e.mean) < SAME):
        return Ruling("not measurable")
    ruling = ordering(claim, e) if claim.over else number(claim, e, comparable)
    return ruling if e.error > 0 else replace(ruling, tests={})  # alike in every seed: an interval of no width has no p-value


def ordering(claim: Claim, e: Estimate) -> Ruling:
    """The verdict on a difference: its direction, within the tolerance, and its size where the paper has one."""
    δ = claim.tolerance or 0.0
    way = int(direction(e, -δ))
    verdict, name = WORDS[way][claim.question], WORDS[way][2]
    tests, size = {"direction": two_sided(e.above(-δ), e.below(-δ))}, None
    if δ and way == 1:
        equal = closeness(e, 0.0, δ) == 1
        verdict += ": higher" if direction(e) == 1 else f": equal within {δ:g}" if equal else f": not lower by more than {δ:g}"
    if claim.paper is not None:
        tests["size"] = two_sided(e.above(claim.paper), e.below(claim.paper))
        size = "compatible" if direction(e, claim.paper) == 0 else "excluded"
        if way == 1 or (way == 0 and size == "excluded"):
            verdict = f"direction {'reproduced' if way else 'open'}, size {'compatible' if size == 'compatible' else 'not'}"
    return Ruling(verdict, name, size, tests)


def number(claim: Claim, e: Estimate, comparable: bool) -> Ruling:
    """The verdict on a value: whether its interval lies within the tolerance around the paper's, outside, or across."""
    v, δ = claim.paper, claim.tolerance or 0.0
    if not comparable and not claim.stated:
        return Ruling("inconclusive: another schedule")
    inside = max(e.above(v - δ), e.below(v + δ))
    outside = min(e.above(v + δ), e.below(v - δ))
    near = int(closeness(e, v, δ))
    if near == 0 and direction(e, v) == 0:
        verdict, size = "compatible", "compatible"
    else:
        verdict, size = WORDS[near][0], {1: "reproduced", 0: "open", -1: "excluded"}[near]
    return Ruling(verdict, None, size, {"number": two_sided(inside, outside)})


def two_sided(p: Real, q: Real) -> float:
    """Of the two ways in which a test can decide, each at half the level."""
    return float(min(1.0, 2 * min(p, q)))


def holm(ps: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Which of n tests stay decided where all of them together shall err in no more than 5 % of cases: Holm's step-down."""
    order = np.argsort(ps)
    steps = ps[order] < LEVEL / np.arange(len(ps), 0, -1)
    kept = np.zeros(len(ps), bool)
    kept[order[: len(ps) if steps.all() else int(steps.argmin())]] = True
    return kept
