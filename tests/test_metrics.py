import dataclasses
import math

import pytest
import torch

from csglib import metrics
from csglib.runs import Readout

# Two classes, three filters; the logits are (a_0 + 1/2, a_1 + a_2).  Filter 2 is tied and goes to class 0, the first.
FEATURES = [[2, 0, 0], [0, 2, 0], [0, 0, 2], [0, 1, 0], [1, 1, 1], [1, 0, 2]]
LABELS = [0, 1, 1, 0, 0, 1]
HAND = Readout(
    features=torch.tensor(FEATURES, dtype=torch.float32),
    logits=torch.tensor([[a + 0.5, b + c] for a, b, c in FEATURES]),
    labels=torch.tensor(LABELS),
    weight=torch.tensor([[1.0, 0, 0], [0, 1, 1]]),
    bias=torch.tensor([0.5, 0]),
    gate=torch.tensor([[1, 0.25, 1], [0.5, 1, 1]]),
)


def test_accuracy_is_the_share_of_largest_logits_that_are_right():
    assert metrics.accuracy(torch.tensor([[1.0, 2], [2, 1], [0, 3], [5, 4]]), torch.tensor([1, 1, 1, 0])) == 0.75


def test_a_filter_belongs_to_the_class_of_its_largest_entry_the_first_of_equals():
    assert metrics.cluster(HAND.gate).tolist() == [[1, 0, 1], [0, 1, 0]]


def test_the_metrics_of_a_readout_made_by_hand():
    values = metrics.evaluate(HAND)
    assert values["accuracy"] == values["acc1"] == pytest.approx(4 / 6)  # samples 0, 1, 2, 5
    assert values["acc2"] == pytest.approx(2 / 6)  # 0, 1: the others lose filter 2, or were wrong
    assert values["acc3"] == pytest.approx(3 / 6)  # 0 by the bias, 2 and 5 by filter 2
    assert values["l1_density"] == pytest.approx(4.75 / 6)


def test_without_a_gate_the_gates_metrics_are_none():
    values = metrics.evaluate(dataclasses.replace(HAND, gate=None))
    assert [name for name, value in values.items() if value is None] == ["l1_density", "acc2", "acc3"]
    assert {k: v for k, v in values.items() if v is not None}.items() <= metrics.evaluate(HAND).items()


def test_masking_all_filters_leaves_the_bias():
    assert metrics.masked_accuracy(HAND, torch.zeros(6, 3)) == 0.5  # everything is class 0
    assert metrics.masked_accuracy(HAND, torch.ones(6, 3)) == metrics.accuracy(HAND.logits, HAND.labels)


def separated(n: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Four classes; filter k fires for class k alone, and a fifth for none."""
    torch.manual_seed(0)
    labels = torch.arange(n) % 4
    return torch.rand(n, 5) + 10 * torch.nn.functional.one_hot(labels, 5), labels


def test_the_score_is_the_mean_over_filters_of_the_best_class():
    features, labels = separated()
    assert metrics.mis(features[:, :4], labels, 4) == pytest.approx(0.5623, abs=0.01)  # H(1/4) each
    assert metrics.mis(features, labels, 4) == pytest.approx(4 / 5 * 0.5623, abs=0.02)


def test_the_null_is_small_where_the_score_is_large_and_depends_on_its_seed_alone():
    features, labels = separated(1000)
    null = metrics.mis_null(features, labels, 4)
    assert 0 <= null < 0.03 < metrics.mis(features, labels, 4)
    assert null == metrics.mis_null(features, labels, 4) != metrics.mis_null(features, labels, 4, seed=1)


def test_noise_scores_about_its_null():
    torch.manual_seed(1)
    features, labels = torch.randn(1000, 30), torch.randint(0, 10, (1000,))
    assert metrics.mis(features, labels, 10) == pytest.approx(metrics.mis_null(features, labels, 10), abs=0.006)


def test_the_normalised_score_is_a_share_of_the_entropy_of_one_class_in_c():
    features, labels = separated()
    logits = torch.zeros(400, 4)
    readout = Readout(features, logits, labels, torch.zeros(4, 5), torch.zeros(4))
    values = metrics.evaluate(readout)
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert values["mis_normalised"] == pytest.approx(values["mis"] / entropy)


def test_the_metrics_have_the_names_of_the_contract():
    names = {"accuracy", "mis", "mis_null", "mis_normalised", "l1_density", "acc1", "acc2", "acc3"}
    assert names <= set(metrics.evaluate(HAND))
