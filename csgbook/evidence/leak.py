"""Does the gate leak the label?  What the gated path answers under one row of the gate after another, and the book's questions.

On the gated path filter k of an image is multiplied by G[r, k].  Training takes r = y, the image's label, so that the row
itself tells the label.  Here r is the label, the class that the ungated path predicts, a wrong class, or every class in turn.

Questions and their rule are committed before the results that answer them.  What was known: with the label's row the gated
path of the published runs classifies every test image, as their histories tell.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from csgbook.evidence import rules
from csgbook.evidence.from_images import class_matrix
from csglib.methods.csg import alternate
from csglib.readout import Readout
from csglib.runs import Run


@dataclass(frozen=True)
class Rows:
    """Accuracy on the true class by the row of the gate that each image is given; each in [0, 1]."""

    ungated: float  # no row: all filters
    label: float  # the row of the true class, as in training
    predicted: float  # of the class that the ungated path predicts
    wrong: float  # of a wrong class, the mean over all wrong classes
    followed: float  # not an accuracy: how often the gated path then names that wrong class
    by_logit: float  # no label: the class whose logit is largest under its own row
    by_probability: float  # no label: the class whose probability is largest under its own row
    without_image: float  # the mean features of all images under one row after another: how often the row's class is named


def logits_under(readout: Readout, matrix: Float[Tensor, "C K"]) -> Float[Tensor, "N C C"]:
    """Logit of class c (last) of every image under every row r of the matrix: sum_k a_k G[r, k] W[c, k] + b_c."""
    return torch.stack([readout.masked(row) for row in matrix], dim=1)


def measure(readout: Readout, matrix: Float[Tensor, "C K"]) -> Rows:
    """The gated path of this network under this matrix, its own gate or another one."""
    logits, y = logits_under(readout, matrix), readout.labels
    C = logits.shape[1]
    named = logits.argmax(2)  # (N, C): the class named under each row
    classes = torch.arange(C, device=y.device)
    wrong = y[:, None] != classes
    blind = (readout.features.mean(0) * matrix) @ readout.weight.T + readout.bias  # (C, C)

    def given(rows: Int[Tensor, " N"]) -> float:
        return share(named.gather(1, rows[:, None]).squeeze(1) == y)

    def under_own_row(scores: Float[Tensor, "N C C"]) -> float:
        return share(scores.diagonal(dim1=1, dim2=2).argmax(1) == y)

    return Rows(
        ungated=share(readout.logits.argmax(1) == y),
        label=given(y),
        predicted=given(readout.logits.argmax(1)),
        wrong=share((named == y[:, None])[wrong]),
        followed=share((named == classes)[wrong]),
        by_logit=under_own_row(logits),
        by_probability=under_own_row(logits.double().log_softmax(2)),
        without_image=share(blind.argmax(1) == classes),
    )


def of(run: Run) -> Rows:
    return measure(run.readout, class_matrix(run))


def share(right: Bool[Tensor, " *n"]) -> float:
    """NaN of nothing."""
    return right.double().mean().item()


def without_meaning(matrix: Float[Tensor, "C K"], seed: int = 0) -> Float[Tensor, "C K"]:
    """The matrix with its filters shuffled: rows of the same size that say nothing of this network."""
    return matrix[:, torch.randperm(matrix.shape[1], generator=torch.Generator().manual_seed(seed))]


# Before and after gated epochs


@dataclass(frozen=True)
class Step:
    """Test accuracy of the ungated path before and after one epoch at a gated place of the schedule."""

    epoch: int  # counted from 1
    before: float
    after: float
    then: float  # after the epoch that follows


def gated_steps(run: Run) -> list[Step]:
    """Of every gated place of the recipe's cycle that follows a standard epoch; standard training has the same places.

    Epochs that were skipped have no accuracy; places without all three accuracies are left out.
    """
    seen, places = [row.get("test_accuracy") for row in run.history], range(1, run.recipe.epochs)
    seen += [None]  # after the last
    taken = [e for e in places if alternate(run.recipe, e) == "gated" and alternate(run.recipe, e - 1) == "standard"]
    return [Step(e + 1, *seen[e - 1 : e + 2]) for e in taken if None not in seen[e - 1 : e + 2]]


def gated_change(run: Run) -> float:
    """Mean change of the ungated path's test accuracy over those epochs; NaN where there is none."""
    return float(np.mean([step.after - step.before for step in gated_steps(run)])) if gated_steps(run) else math.nan


@dataclass(frozen=True)
class Best:
    """Largest test accuracy of the ungated path in three parts of a training; NaN of a part without epochs."""

    before: float  # after a standard epoch before the first gated one
    gated: float  # after a gated epoch
    standard: float  # after a standard epoch later on
    epoch: int  # the best epoch of all, counted from 1
    path: str  # what it trained


def best(run: Run) -> Best:
    """The best test accuracy before the first gated epoch, and after epochs of either kind from then on."""
    rows = [row for row in run.history if "test_accuracy" in row]
    first = next((i for i, row in enumerate(rows) if row["path"] == "gated"), len(rows))
    top = max(rows, key=lambda row: row["test_accuracy"])

    def most(part: Iterable[dict], path: str) -> float:
        return max((row["test_accuracy"] for row in part if row["path"] == path), default=math.nan)

    return Best(
        before=most(rows[:first], "standard"),
        gated=most(rows, "gated"),
        standard=most(rows[first:], "standard"),
        epoch=top["epoch"] + 1,
        path=top["path"],
    )


# Questions against chance


@dataclass(frozen=True)
class Question:
    """Does the mean over seeds of a share lie above chance, 1/C?  Answered by `settle`."""

    id: str
    sentence: str
    statistic: str  # a field of Rows
    of: str  # whose: csg, the published runs | random, networks of tools/label_leak.py trained with CSG on random labels


QUESTIONS = (
    Question(
        "blind", "Without any image, from the mean activation of each filter, the gated path names the class of its row.",
        "without_image", "csg",
    ),
    Question("wrong-row", "Given the row of a wrong class, the gated path still finds the true class.", "wrong", "csg"),
    Question(
        "random-label-row", "Trained on random labels, the gated path names the random label of held-out images from its row.",
        "label", "random",
    ),
    Question("random-ungated", "The ungated path of the same networks names it.", "ungated", "random"),
    Question(
        "random-without-label", "Without a label, by the class that scores most under its own row, it is named.",
        "by_logit", "random",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    question: Question
    values: tuple[float, ...]  # one per seed
    chance: float
    interval: tuple[float, float] | None  # Student's, 95 %
    word: str


def settle(question: Question, values: Iterable[float], chance: float) -> Answer:
    """Yes where the 95 % interval of the mean over seeds lies above chance, no where it lies below, else open.

    As for a claim, fewer than three seeds decide nothing.
    """
    values = tuple(values)
    interval = rules.interval(values)
    if not values:
        word = "not run here"
    elif len(values) < rules.SEEDS:
        word = f"open: {'one seed' if len(values) == 1 else 'two seeds'}"
    else:
        above = np.round(np.array(values) - chance, 12)  # a sum of shares may differ from chance in its last digit
        way = int(rules.direction(rules.of_mean(above)))
        word = {1: "yes", 0: "open", -1: "no"}[way]
    return Answer(question, values, chance, interval, word)
