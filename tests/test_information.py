import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import digamma
from sklearn.feature_selection import mutual_info_classif

from csglib import Problem
from csglib.analysis import information
from csglib.analysis.information import balanced_information, drawn, entropy, mutual_information
from csglib.errors import NotFinite

FORMS = ["sweep", "search"]  # two pointers compiled by numba; torch alone


@pytest.fixture(autouse=True, params=FORMS)
def form(request, monkeypatch):
    """Every test of the estimator holds for both of its forms."""
    if request.param == "search":
        monkeypatch.setattr(information, "sweep", None)


def twin(values: list[float], inside: list[bool], k: int = 3) -> float:
    """The estimator of one feature and one class as its docstring says it: rational distances, two loops, no sorting."""
    N, size = len(values), Counter(inside)
    if min(size[True], size[False]) < 2:
        return 0.0
    x = [Fraction(v) for v in values]
    total = 0.0
    for i in range(N):
        near = sorted(abs(x[j] - x[i]) for j in range(N) if j != i and inside[j] == inside[i])
        d = near[min(k, len(near)) - 1]
        hit = [j for j in range(N) if (x[j] == x[i] if d == 0 else abs(x[j] - x[i]) < d)]
        same = sum(inside[j] == inside[i] for j in hit)
        total += digamma(same) - digamma(size[inside[i]]) - digamma(len(hit))
    return max(0.0, digamma(N) + total / N)


@st.composite
def samples(draw):
    """Features on a coarse grid, many of them zero, as after a ReLU; labels of three classes, any of them rare."""
    N = draw(st.integers(2, 24))
    value = st.one_of(st.just(0.0), st.integers(0, 12).map(lambda n: n / 4), st.floats(0, 3, width=16))
    return draw(st.lists(value, min_size=N, max_size=N)), draw(st.lists(st.integers(0, 2), min_size=N, max_size=N))


def ours(values: list[float], labels: list[int], classes: int = 3) -> torch.Tensor:
    return mutual_information(torch.tensor(values, dtype=torch.float64)[:, None], torch.tensor(labels), classes)


def blobs(seed: int, n: int, filters: int = 5, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Normal features in float64 (no ties), each filter shifted on one class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    shift = rng.uniform(0, 2, filters) * (y[:, None] == np.arange(filters) % classes)
    return rng.normal(size=(n, filters)) + shift, y


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(samples())
def test_the_estimate_equals_its_slow_twin_with_ties_and_zeros(sample):
    values, labels = sample
    expected = [twin(values, [y == c for y in labels]) for c in range(3)]
    assert ours(values, labels)[:, 0].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_other_numbers_of_neighbours_equal_the_twin(k):
    x, y = blobs(5, 40, filters=2)
    x = np.maximum(np.round(x, 2), 0)
    estimate = mutual_information(torch.from_numpy(x), torch.from_numpy(y), 4, k)
    expected = [[twin(list(x[:, j]), list(y == c), k) for j in range(2)] for c in range(4)]
    assert np.allclose(estimate, expected, atol=1e-12)


@pytest.mark.parametrize("seed, n", [(0, 300), (1, 1000), (2, 600)])
def test_without_ties_the_estimate_is_that_of_scikit_learn(seed, n):
    x, y = blobs(seed, n)
    estimate = mutual_information(torch.from_numpy(x), torch.from_numpy(y), 4)
    oracle = np.stack([mutual_info_classif(x, y == c, random_state=0) for c in range(4)])
    assert oracle.max() > 0.1
    assert np.abs(estimate.numpy() - oracle).max() < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.7])
def test_with_exact_zeros_the_estimate_is_near_the_mean_over_the_noise_that_scikit_learn_adds(threshold):
    rng = np.random.default_rng(1500)
    y = rng.integers(0, 2, 1500)
    x = np.maximum(rng.normal(size=(1500, 3)) + threshold + y[:, None] * np.array([0.5, 1, 2]), 0)
    estimate = mutual_information(torch.from_numpy(x), torch.from_numpy(y), 2)[1].numpy()
    noisy = np.stack([mutual_info_classif(x, y, random_state=s) for s in range(12)])
    assert (x == 0).mean() > 0.1
    assert np.abs(estimate - noisy.mean(0)).max() < 0.004


def test_an_atom_alone_contributes_its_plug_in_information():
    """A filter of zeros and ones is a two-by-two table, whose information has a closed form (psi in place of log)."""
    table = {(0, 0): 50, (0, 1): 10, (1, 0): 20, (1, 1): 40}
    values = [float(a) for (a, _), n in table.items() for _ in range(n)]
    labels = [y for (_, y), n in table.items() for _ in range(n)]
    expected = digamma(120) + sum(
        n / 120 * (digamma(n) - digamma(60) - digamma(70 if y == 0 else 50)) for (_, y), n in table.items()
    )
    assert ours(values, labels, 2)[1].item() == pytest.approx(expected, abs=1e-12)


def test_permuting_filters_or_samples_changes_nothing():
    x, y = (torch.from_numpy(t) for t in blobs(3, 200))
    x = x.clamp(min=0)
    estimate = mutual_information(x, y, 4)
    filters, order = torch.randperm(5), torch.randperm(200)
    assert torch.allclose(mutual_information(x[:, filters], y, 4), estimate[:, filters], atol=1e-12)
    assert torch.allclose(mutual_information(x[order], y[order], 4), estimate, atol=1e-12)


@pytest.mark.parametrize("power", [-20, -1, 3, 30])
def test_scaling_by_a_power_of_two_changes_no_bit(power):
    x, y = (torch.from_numpy(t) for t in blobs(4, 200))
    x = x.clamp(min=0)
    assert torch.equal(mutual_information(x * 2.0**power, y, 4), mutual_information(x, y, 4))


@settings(max_examples=60, deadline=None)
@given(samples())
def test_the_estimate_lies_between_zero_and_the_entropy_with_its_small_sample_excess(sample):
    """k_i <= m_i bounds it by psi(N) - mean psi(N_label), which exceeds H by less than 3/(2N)."""
    values, labels = sample
    N = len(labels)
    for c, estimate in enumerate(ours(values, labels)[:, 0].tolist()):
        assert 0 <= estimate <= entropy(labels.count(c) / N) + 1.5 / N


def test_a_filter_that_separates_a_class_reaches_that_bound():
    x = torch.arange(30, dtype=torch.float64)[:, None] + 1000 * (torch.arange(30) >= 20)[:, None]
    y = (torch.arange(30) >= 20).long()
    full = digamma(30) - (20 * digamma(20) + 10 * digamma(10)) / 30
    assert mutual_information(x, y, 2)[:, 0].tolist() == pytest.approx([full, full], abs=1e-12)
    assert full > entropy(1 / 3)


def test_independent_features_have_almost_no_information():
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.normal(size=(2000, 20))), torch.from_numpy(rng.integers(0, 10, 2000))
    assert mutual_information(x, y, 10).mean() < 0.01


@pytest.mark.parametrize("count", [0, 1, 39, 40])
def test_a_class_without_two_samples_inside_and_outside_has_no_information(count):
    y = torch.tensor([1] * count + [0] * (40 - count))
    x = y.double()[:, None] + torch.rand(40, 1, dtype=torch.float64)
    assert mutual_information(x, y, 2)[1, 0] == 0


def test_a_constant_filter_has_no_information():
    assert (ours([0.5] * 20, [0, 1] * 10) == 0).all()


def test_float32_features_are_compared_exactly():
    x, y = blobs(7, 60, filters=1)
    x = x.astype(np.float32)
    estimate = mutual_information(torch.from_numpy(x), torch.from_numpy(y), 4)[2, 0].item()
    assert estimate == pytest.approx(twin([float(v) for v in x[:, 0]], list(y == 2)), abs=1e-12)


def test_entropy_of_known_cases():
    assert entropy(0.5) == pytest.approx(math.log(2))
    assert entropy(0.1) == pytest.approx(0.3251, abs=5e-5)
    assert entropy(0.0) == entropy(1.0) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_features_that_are_not_finite_are_refused(bad):
    x = torch.rand(20, 3)
    x[4, 1] = bad
    with pytest.raises(NotFinite, match="features"):
        mutual_information(x, torch.arange(20) % 2, 2)


@pytest.mark.parametrize(
    "features, labels, said",
    [
        ((50, 3), torch.arange(60) % 2, "are not N x K and N"),
        ((60, 3), torch.arange(50) % 2, "are not N x K and N"),
        ((60, 3), torch.arange(60)[:, None] % 2, "are not N x K and N"),
        ((60,), torch.arange(60) % 2, "are not N x K and N"),
        ((0, 3), torch.arange(0), "are not N x K and N"),
        ((60, 0), torch.arange(60) % 2, "are not N x K and N"),
        ((60, 3), torch.arange(60) % 3, "labels run from 0 to 2, and 2 classes have 0 to 1"),
        ((60, 3), torch.arange(60) % 2 - 1, "labels run from -1 to 0"),
        ((60, 3), (torch.arange(60) % 2).float(), "whole numbers, not torch.float32"),
        ((60, 3), torch.arange(60) % 2 == 0, "whole numbers, not torch.bool"),
    ],
)
def test_what_is_no_row_and_label_for_each_sample_is_refused(features, labels, said, unchecked):
    with pytest.raises(Problem, match=said):
        mutual_information(torch.rand(*features), labels, 2)


def test_no_neighbours_cannot_be():
    with pytest.raises(Problem, match="0 neighbours"):
        mutual_information(torch.rand(9, 1), torch.arange(9) % 2, 2, k=0)


def many(classes: int = 300, each: int = 10, filters: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Many classes of few images: normal features without ties, each shifted on one class, and eighths of them after a ReLU."""
    rng = np.random.default_rng(11)
    y = rng.permutation(np.arange(classes * each) % classes)
    x = rng.normal(size=(len(y), filters)) + 2 * (y[:, None] == np.arange(filters))
    return torch.from_numpy(np.concatenate([x, np.maximum(np.round(8 * x) / 8, 0)], 1)), torch.from_numpy(y)


@pytest.mark.slow
def test_many_classes_of_few_images_are_those_of_the_search_and_of_scikit_learn(monkeypatch):
    x, y = many()
    estimate = mutual_information(x, y, 300)
    monkeypatch.setattr(information, "sweep", None)
    assert (estimate - mutual_information(x, y, 300)).abs().max() < 1e-12
    for c, f in [(0, 0), (1, 1), (17, 2), (299, 3)]:  # ten images each: below eight scikit-learn's distances are rounded
        oracle = mutual_info_classif(x[:, [f]].numpy(), y.numpy() == c, random_state=0)[0]
        assert estimate[c, f].item() == pytest.approx(oracle, abs=1e-6)
    assert estimate[:, :4].max() > 0.003


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(samples(), st.integers(0, 3))
def test_balanced_information_is_the_slow_twins_on_the_samples_drawn(sample, seed):
    values, labels = sample
    x, y = torch.tensor(values, dtype=torch.float64)[:, None], torch.tensor(labels)
    estimate = balanced_information(x, y, 4, seed=seed)[:, 0].tolist()
    for c, group in enumerate(drawn(y, 4, seed)):
        expected = twin([values[i] for i in group], [labels[i] == c for i in group])
        assert estimate[c] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("sizes", [(5, 5, 5), (9, 2, 1), (20, 3, 4), (6, 0, 6), (7, 0, 0)])
def test_of_each_class_as_many_samples_are_drawn_as_of_the_others(sizes):
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))
    N = len(labels)
    for c, group in enumerate(drawn(labels, 3, seed=1)):
        n = min(sizes[c], N - sizes[c])
        assert len(group) == len(set(group.tolist())) == 2 * n
        assert (labels[group[:n]] == c).all() and (labels[group[n:]] != c).all()


def test_with_classes_of_one_size_hardly_a_sample_is_drawn_as_another_twice():
    labels = torch.arange(600) % 60
    others = torch.cat([group[10:] for group in drawn(labels, 60, seed=0)])
    assert len(others) == 600 and torch.bincount(others).max() <= 3 and len(set(others.tolist())) > 500


@pytest.mark.slow
def test_a_filter_that_tells_a_class_perfectly_has_ln_2_however_many_classes_there_are():
    for classes, each in [(2, 50), (10, 20), (200, 5)]:
        y = torch.arange(classes * each) % classes
        x = torch.rand(len(y), 1, dtype=torch.float64) + 10 * (y == 1)[:, None]
        told = balanced_information(x, y, classes)[1, 0].item()
        assert told == pytest.approx(digamma(2 * each) - digamma(each), abs=1e-12)  # the estimator's bias: ln 2 + 1 / (4 n)
        assert math.log(2) < told < math.log(2) + 0.3 / each


def test_one_image_of_a_class_tells_nothing_of_it_two_do():
    y = torch.tensor([0, 1, 1, 2, 2, 2, 2])
    x = torch.tensor([0.0, 10.0, 11.0, 1.0, 2.0, 3.0, 4.0])[:, None]
    assert balanced_information(x, y, 4)[:, 0].tolist()[::3] == [0, 0]
    assert balanced_information(x, y, 4)[1, 0].item() == pytest.approx(digamma(4) - digamma(2))


def test_the_seed_decides_the_draw():
    x, y = (torch.from_numpy(t) for t in blobs(6, 300))
    first = balanced_information(x, y, 4, seed=3)
    assert torch.equal(first, balanced_information(x, y, 4, seed=3))
    assert not torch.equal(first, balanced_information(x, y, 4, seed=4))
    state = torch.get_rng_state()
    balanced_information(x, y, 4)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_constant_filter_has_no_balanced_information_and_bad_input_is_refused():
    x, y = torch.full((20, 1), 0.5), torch.arange(20) % 2
    assert (balanced_information(x, y, 2) == 0).all()
    with pytest.raises(Problem, match="0 neighbours"):
        balanced_information(x, y, 2, k=0)
    with pytest.raises(Problem, match="labels run from 0 to 1, and 1 classes"):
        balanced_information(x, y, 1)
