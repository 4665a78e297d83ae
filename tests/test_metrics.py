import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix
from sklearn.metrics.pairwise import cosine_similarity

from csglib import Problem
from csglib.analysis import metrics
from csglib.analysis.information import entropy
from csglib.errors import NotFinite
from csglib.readout import Readout

# Two classes, three filters; the logits are (a_0 + 1/2, a_1 + a_2).  Filter 2 is tied and goes to class 0, the first.
FEATURES = [[2, 0, 0], [0, 2, 0], [0, 0, 2], [0, 1, 0], [1, 1, 1], [1, 0, 2]]
LABELS = [0, 1, 1, 0, 0, 1]
HAND = Readout(
    features=torch.tensor(FEATURES, dtype=torch.float32),
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
    assert [name for name, value in values.items() if value is None] == ["l1_density", "sharpness", "acc2", "acc3"]
    assert {k: v for k, v in values.items() if v is not None and k != "removed"}.items() <= metrics.evaluate(HAND).items()


def test_clusters_are_masked_hard_expected_or_sampled():
    gate = torch.tensor([[0.9, 0.2, 0.6], [0.1, 0.8, 0.4]])
    F, W, b, y = HAND.features, HAND.weight, HAND.bias, HAND.labels

    def twin(weights) -> tuple[float, float]:
        """ACC2 and ACC3 with weights[c][k] for filter k of class c, image by image."""
        right = [0, 0]
        for n in range(6):
            guess = int((W @ F[n] + b).argmax())
            for i, mask in enumerate(([w for w in weights[guess]], [1 - w for w in weights[int(y[n])]])):
                logits = [sum(W[c, k] * mask[k] * F[n, k] for k in range(3)) + b[c] for c in range(2)]
                right[i] += int(np.argmax(logits)) == int(y[n])
        return right[0] / 6, right[1] / 6

    assert metrics.clusters(HAND, gate) == pytest.approx(twin([[1, 0, 1], [0, 1, 0]]))
    assert metrics.clusters(HAND, gate, "expected") == pytest.approx(twin(gate.tolist()))
    sure = dataclasses.replace(HAND, weight=1000 * W, bias=1000 * b)  # nothing is left to chance
    assert metrics.clusters(sure, metrics.cluster(gate), "sampled") == metrics.clusters(sure, gate)
    assert metrics.clusters(HAND, gate, "sampled", 1) == metrics.clusters(HAND, gate, "sampled", 1)


def test_evaluation_draws_nothing():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert metrics.evaluate(HAND) == metrics.evaluate(HAND)
    assert torch.equal(before, torch.get_rng_state())


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


def test_with_more_than_ten_classes_the_balanced_score_and_its_null_stand_beside():
    labels = torch.arange(440) % 11
    features = torch.rand(440, 11, generator=torch.Generator().manual_seed(0)) + 10 * torch.eye(11)[labels]
    r = Readout(features, labels, torch.eye(11), torch.zeros(11))
    values = metrics.evaluate(r)
    assert values["mis_balanced"] == metrics.mis_balanced(features, labels, 11) == pytest.approx(math.log(2), abs=0.01)
    assert values["mis_balanced_null"] == metrics.mis_balanced_null(features, labels, 11)
    assert 0.01 < values["mis_balanced_null"] < 0.25 and values["mis_null"] < 0.06 < values["mis_balanced_null"]
    assert not {"mis_balanced", "mis_balanced_null"} & set(metrics.evaluate(HAND))


def test_the_normalised_score_is_a_share_of_the_entropy_of_one_class_in_c():
    features, labels = separated()
    readout = Readout(features, labels, torch.zeros(4, 5), torch.zeros(4))
    values = metrics.evaluate(readout)
    assert values["mis_normalised"] == pytest.approx(values["mis"] / -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))
    assert 0 < values["null_normalised"] < 0.1 < values["mis_normalised"]


# 2.11 with one class of half of the images where the entropy of one class in C is what divides
@pytest.mark.parametrize("sizes", [[60, 10, 10, 10, 10, 5, 5, 5, 5], [80, 40], [118, 2], [3, 3, 3], [50, 50, 0, 0], [20] * 3])
def test_filters_that_tell_their_classes_perfectly_have_a_normalised_score_of_one_whatever_the_sizes(sizes):
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    present = [c for c, n in enumerate(sizes) if n]
    features = 100.0 * torch.nn.functional.one_hot(labels, len(sizes)).float()[:, present] + torch.rand(
        len(labels), len(present)
    )
    readout = Readout(features, labels, torch.zeros(len(sizes), len(present)), torch.zeros(len(sizes)))
    values = metrics.evaluate(readout)
    assert values["mis_normalised"] == pytest.approx(1, abs=1e-3) and values["mis_normalised"] <= 1
    told = metrics.information(readout)  # what is cut off: the bias of the estimate
    assert all(told[c].max() <= entropy(n / len(labels)) + 1.5 / len(labels) + 1e-6 for c, n in enumerate(sizes))


def test_the_normalised_score_equals_a_loop_over_filters_and_classes():
    r = drawn(3, N=50)
    r = dataclasses.replace(r, labels=torch.tensor([0] * 30 + [1] * 15 + [2] * 5))
    told = metrics.mutual_information(r.features, r.labels, 3)
    shares = [max(told[c, k].item() / entropy(n / 50) for c, n in enumerate((30, 15, 5))) for k in range(7)]
    assert metrics.evaluate(r)["mis_normalised"] == pytest.approx(np.mean(shares))
    assert metrics.normalised(told, torch.zeros(50, dtype=torch.long)) == 0  # of one class there is nothing to say


def test_the_metrics_have_the_names_of_the_contract():
    names = {"accuracy", "mis", "mis_null", "mis_normalised", "l1_density", "acc1", "acc2", "acc3"}
    assert names <= set(metrics.evaluate(HAND))


# What belongs to whom, and what removing it does: each function against loops in float64


def drawn(seed: int, gate: bool = True, C: int = 3, K: int = 7, N: int = 40) -> Readout:
    """A readout at random; every class has images, and some activations are exactly zero."""
    g = torch.Generator().manual_seed(seed)
    a = torch.rand(N, K, generator=g).sub(0.3).clamp(min=0)
    W, b = torch.randn(C, K, generator=g), torch.randn(C, generator=g)
    return Readout(
        features=a,
        labels=torch.arange(N) % C,
        weight=W,
        bias=b,
        gate=torch.rand(C, K, generator=g) if gate else None,
    )


def loop_accuracy(r: Readout, removed: list[float], c: int) -> float:
    """Accuracy on class c with some filters zeroed, sample by sample."""
    right = total = 0
    for n, y in enumerate(r.labels.tolist()):
        if y == c:
            logits = [
                sum(r.weight[d, k].item() * r.features[n, k].item() * (1 - removed[k]) for k in range(len(removed)))
                + r.bias[d].item()
                for d in range(len(r.bias))
            ]
            right += int(np.argmax(logits)) == c
            total += 1
    return right / total


def loop_means(r: Readout) -> list[list[float]]:
    C, K = r.weight.shape
    return [[float(np.mean([r.features[n, k].item() for n in range(len(r.labels)) if r.labels[n] == c])) for k in range(K)]
            for c in range(C)]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_the_class_means_and_the_owners_equal_loops(seed):
    r = drawn(seed, gate=seed % 2 == 0)
    means = loop_means(r)
    assert metrics.class_means(r).flatten().tolist() == pytest.approx(sum(means, []), rel=1e-5)
    table = means if r.gate is None else r.gate.tolist()
    assert metrics.owners(r).tolist() == [int(np.argmax([row[k] for row in table])) for k in range(7)]


@pytest.mark.parametrize("seed", range(3))
def test_removal_equals_a_loop_over_samples(seed):
    r = drawn(seed)
    masks = metrics.cluster(r.gate)
    expected = [[loop_accuracy(r, mask, c) for c in range(3)] for mask in masks.tolist()]
    assert metrics.removal(r, masks).tolist() == [pytest.approx(row) for row in expected]


def test_removing_nothing_leaves_the_accuracy_and_removing_all_leaves_the_largest_bias():
    r = drawn(0)
    none, everything = metrics.removal(r, torch.tensor([[0.0] * 7, [1.0] * 7]))
    assert none.mean().item() == pytest.approx(metrics.accuracy(r.logits, r.labels), abs=0.02)  # classes of 14, 13, 13
    assert everything.tolist() == [float(c == r.bias.argmax()) for c in range(3)]


# What there is nothing to measure of


def with_absent() -> Readout:
    """Of five classes the second and the last have no images, as of a small folder none may test."""
    r = drawn(0, C=5)
    return dataclasses.replace(r, labels=torch.tensor([0, 2, 3])[torch.arange(40) % 3])


def test_of_a_class_without_images_nothing_is_known_and_means_are_over_the_others():
    r, absent, there = with_absent(), [1, 4], [0, 2, 3]
    bare = dataclasses.replace(r, gate=None)
    removed = metrics.removal(r, metrics.cluster(r.gate))
    for per_class in (metrics.class_means(r), removed.T, metrics.confusion(r, torch.zeros(7))):
        assert per_class[absent].isnan().all() and per_class[there].isfinite().all()
    own, others = metrics.own_and_others(removed)
    assert own == pytest.approx(np.mean([removed[c, c] for c in there]))
    assert others == pytest.approx(np.mean([removed[r, c] for r in range(5) for c in there if r != c]))
    owner, means = metrics.owners(r).tolist(), metrics.class_means(r)
    shares = [sum(means[c, k] for k in range(7) if owner[k] == c) / means[c].sum() for c in there]
    assert metrics.own_share(r) == pytest.approx(np.mean(shares), rel=1e-5)
    assert set(metrics.owners(bare).tolist()) <= set(there)
    negative = dataclasses.replace(bare, features=bare.features - 5)  # where 0 would be the largest mean
    assert set(metrics.owners(negative).tolist()) <= set(there)
    values = metrics.evaluate(r)
    assert all(math.isfinite(v) for v in values.values()) and 0 <= values["mis_normalised"] <= 1


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_constant_features_have_no_information_and_give_no_number_in_its_place(value):
    r = drawn(1)
    flat = dataclasses.replace(r, features=torch.full_like(r.features, value))
    values = metrics.evaluate(flat)
    assert values["mis"] == values["mis_null"] == values["mis_normalised"] == 0
    assert math.isnan(metrics.overlap(metrics.information(flat), flat.gate))
    assert math.isnan(metrics.hoyer(flat.features)) == (value == 0)
    maps = torch.full((8, 2, 4, 4), value)
    assert math.isnan(metrics.location_instability(maps, torch.rand(8, 1, 2), (16, 16)))


def test_a_silent_sample_or_map_is_left_out():
    a = torch.tensor([[3.0, 4.0, 0.0, 0.0], [0, 0, 0, 0]])
    assert metrics.hoyer(a) == metrics.hoyer(a[:1]) <= 1
    g = torch.Generator().manual_seed(0)
    maps, landmarks = torch.rand(9, 1, 4, 4, generator=g), torch.rand(9, 1, 2, generator=g) * 16
    silent = torch.cat((maps, torch.zeros(4, 1, 4, 4)))
    found = metrics.location_instability(silent, torch.cat((landmarks, torch.full((4, 1, 2), 99.0))), (16, 16))
    assert found == pytest.approx(metrics.location_instability(maps, landmarks, (16, 16)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["features", "weight", "bias", "gate"])
def test_a_readout_that_is_not_finite_is_refused(name, bad):
    r = drawn(2)
    t = getattr(r, name).clone()
    t.view(-1)[3 % t.numel()] = bad
    with pytest.raises(NotFinite):
        metrics.evaluate(dataclasses.replace(r, **{name: t}))


def test_of_logits_that_are_not_finite_none_is_the_largest():
    for bad in (math.nan, math.inf):
        logits = torch.tensor([[1.0, 2], [bad, 0]])
        assert math.isnan(metrics.accuracy(logits, torch.tensor([1, 0])))
    with pytest.raises(NotFinite, match="maps"):
        metrics.location_instability(torch.full((3, 1, 2, 2), math.nan), torch.rand(3, 1, 2), (8, 8))


OTHER_SHAPES = {
    "labels": torch.zeros(39, dtype=torch.long),
    "weight": torch.zeros(3, 6),
    "bias": torch.zeros(4),
    "gate": torch.zeros(7, 3),
    "features": torch.zeros(40, 8),
    "gates": torch.zeros(2, 3, 6),
}


@pytest.mark.parametrize("name", OTHER_SHAPES)
def test_a_readout_of_tensors_that_do_not_fit_is_refused(name, unchecked):
    with pytest.raises(Problem, match=r"of a readout has shape .* where the others need"):
        dataclasses.replace(drawn(0), **{name: OTHER_SHAPES[name]})


def test_labels_of_no_class_or_of_other_samples_are_refused(unchecked):
    r = drawn(0)
    for labels in (r.labels + 1, r.labels - 1):
        with pytest.raises(Problem, match="labels run from .* 3 classes have 0 to 2"):
            metrics.evaluate(dataclasses.replace(r, labels=labels))
    for few in (r.labels[:1], r.labels[:39], r.labels[:, None]):
        with pytest.raises(Problem, match="labels do not belong to logits"):
            metrics.accuracy(r.logits, few)
    for landmarks in (torch.rand(1, 2, 2), torch.rand(4, 2, 2)):
        with pytest.raises(Problem, match="as many rows of landmarks"):
            metrics.location_instability(torch.rand(3, 1, 4, 4), landmarks, (8, 8))


def test_own_and_others_part_the_diagonal_from_the_rest():
    assert metrics.own_and_others(torch.tensor([[0.0, 1.0], [0.5, 0.25]])) == (0.125, 0.75)


@pytest.mark.parametrize("seed", range(3))
def test_the_confusion_is_that_of_scikit_learn(seed):
    r = drawn(seed)
    removed = (torch.arange(7) < 2).float()
    guessed = ((r.features * (1 - removed)) @ r.weight.T + r.bias).argmax(1)
    expected = confusion_matrix(r.labels, guessed, labels=range(3), normalize="true")
    assert np.allclose(metrics.confusion(r, removed).numpy(), expected)


@pytest.mark.parametrize("seed", range(3))
def test_the_correlation_is_scikit_learns_cosine_and_its_blocks_are_means_over_pairs(seed):
    r = drawn(seed)
    matrix, own = metrics.correlation(r.features.T), metrics.owners(r)
    assert np.allclose(matrix.numpy(), abs(cosine_similarity(r.features.T.double().numpy())))
    same, different = [], []
    for i in range(7):
        for j in range(7):
            if i != j:
                (same if own[i] == own[j] else different).append(matrix[i, j].item())
    assert metrics.blocks(matrix, own) == pytest.approx((np.mean(same), np.mean(different)))


def test_a_silent_filter_correlates_with_nothing():
    assert metrics.correlation(torch.tensor([[0.0, 0.0], [1.0, 1.0]])).tolist() == [[0, 0], [0, pytest.approx(1)]]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_no_gate_with_one_class_a_filter_lets_more_information_through_than_the_bound(seed):
    g = torch.Generator().manual_seed(seed)
    information, gate = torch.rand(3, 5, generator=g), metrics.cluster(torch.rand(3, 5, generator=g))
    share = metrics.overlap(information, gate)
    assert 0 <= share <= metrics.overlap(information, None) + 1e-6 <= 1 + 2e-6
    assert share == pytest.approx(sum(information[gate[:, k].argmax(), k].item() for k in range(5)) / information.sum().item())
    assert metrics.overlap(information, torch.ones(3, 5)) == pytest.approx(1)


def test_the_most_active_filters_are_those_of_the_largest_class_means():
    r = drawn(1)
    masks = metrics.most_active(r, torch.tensor([2, 0, 7]))
    assert masks.sum(1).tolist() == [2, 0, 7]
    means = metrics.class_means(r)[0]
    assert set(masks[0].nonzero().flatten().tolist()) == set(means.topk(2).indices.tolist())


def test_random_filters_are_as_many_as_asked_and_differ_with_the_seed():
    count = torch.tensor([3, 5, 0])
    first, again, other = (metrics.random_filters(count, 64, seed) for seed in (0, 0, 1))
    assert first.sum(1).tolist() == [3, 5, 0]
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("seed", range(3))
def test_the_own_share_equals_a_loop(seed):
    r = drawn(seed)
    means, own = loop_means(r), metrics.owners(r).tolist()
    shares = [sum(m for k, m in enumerate(means[c]) if own[k] == c) / sum(means[c]) for c in range(3)]
    assert metrics.own_share(r) == pytest.approx(np.mean(shares), rel=1e-5)


def test_hoyers_sparsity_runs_from_equal_to_one_hot():
    assert metrics.hoyer(torch.ones(3, 16)) == pytest.approx(0, abs=1e-7)
    assert metrics.hoyer(3 * torch.eye(16)) == pytest.approx(1)
    a = torch.tensor([[3.0, 4.0, 0.0, 0.0]])
    assert metrics.hoyer(a) == pytest.approx((2 - 7 / 5) / (2 - 1))


# Where filters fire


def test_the_reach_of_a_filter_equals_its_slow_twin():
    maps = torch.randn(5, 3, 4, 6, generator=torch.Generator().manual_seed(0)).clamp(min=0)
    for k, found in enumerate(metrics.reach(maps).tolist()):
        total = weight = 0.0
        for x in maps[:, k].double():
            mass = x.sum().item()
            rows = [sum(x[i].tolist()) for i in range(4)]
            columns = [sum(x[:, j].tolist()) for j in range(6)]
            apart = 0.0
            for sums in (rows, columns):
                centre = sum(i * s for i, s in enumerate(sums)) / mass
                apart += sum(s * (i - centre) ** 2 for i, s in enumerate(sums)) / mass
            total, weight = total + mass * (apart / 2) ** 0.5, weight + mass
        assert found == pytest.approx(total / weight, rel=1e-6)


def test_a_filter_that_fires_in_one_pixel_reaches_nowhere_and_of_a_dead_one_nothing_is_known():
    maps = torch.zeros(4, 2, 5, 5)
    maps[:, 0, 2, 3] = 1
    found = metrics.reach(maps)
    assert found[0] == 0 and found[1].isnan()


def test_a_filter_that_tracks_a_part_has_no_instability():
    g = torch.Generator().manual_seed(0)
    places = torch.randint(0, 8, (30, 2), generator=g)
    maps = torch.rand(30, 1, 8, 8, generator=g)
    maps[torch.arange(30), 0, places[:, 0], places[:, 1]] = 9
    centre = (places + 0.5) * 4  # of the cells, in an image of 32 x 32
    landmarks = torch.stack((centre, centre + 3), 1)  # one part there, another at a constant distance
    assert metrics.location_instability(maps, landmarks, (32, 32)) == pytest.approx(0, abs=1e-6)
    scattered = torch.rand(30, 1, 2, generator=g) * 32
    assert metrics.location_instability(maps, scattered, (32, 32)) > 0.05


def twin_instability(maps, landmarks, size, top) -> float:
    N, K, h, w = maps.shape
    filters = []
    for k in range(K):
        deviations = []
        for p in range(landmarks.shape[1]):
            order = sorted(range(N), key=lambda n: -maps[n, k].max().item())
            marked = [n for n in order if not np.isnan(landmarks[n, p, 0].item())][:top]
            if len(marked) < 2:
                continue
            distances = []
            for n in marked:
                i, j = divmod(int(maps[n, k].argmax()), w)
                y, x = (i + 0.5) * size[0] / h, (j + 0.5) * size[1] / w
                distances.append(np.hypot(y - landmarks[n, p, 0].item(), x - landmarks[n, p, 1].item()))
            deviations.append(np.std(distances, ddof=1))
        filters += [np.mean(deviations)] if deviations else []
    return np.mean(filters) / np.hypot(*size)


def test_location_instability_equals_its_slow_twin_with_parts_that_are_not_marked():
    g = torch.Generator().manual_seed(1)
    maps = torch.rand(20, 3, 4, 4, generator=g)
    landmarks = torch.rand(20, 2, 2, generator=g) * 16
    landmarks[::3, 0] = float("nan")
    landmarks[2:, 1] = float("nan")
    for top in (5, 100):
        found = metrics.location_instability(maps, landmarks, (16, 24), top=top)
        assert found == pytest.approx(twin_instability(maps, landmarks, (16, 24), top), rel=1e-5)
    labels = torch.arange(20) // 15  # of some filters' classes the second part is marked nowhere
    maps[15:, 1] += 5
    own = maps[:, 1:2][labels == 1], landmarks[labels == 1]
    both = [metrics.location_instability(maps[:, k : k + 1], landmarks, (16, 24), labels) for k in range(3)]
    assert metrics.location_instability(maps, landmarks, (16, 24), labels) == pytest.approx(np.nanmean(both), rel=1e-5)
    assert both[1] == pytest.approx(twin_instability(*own, (16, 24), 100), rel=1e-5)


def test_with_labels_a_filter_is_tried_on_the_class_that_excites_it_most():
    g = torch.Generator().manual_seed(2)
    maps, landmarks = torch.rand(12, 1, 4, 4, generator=g), torch.rand(12, 1, 2, generator=g) * 16
    labels = torch.tensor([0, 3] * 6)
    maps[1::2] += 5
    alone = metrics.location_instability(maps[1::2], landmarks[1::2], (16, 16))
    assert metrics.location_instability(maps, landmarks, (16, 16), labels) == pytest.approx(alone)


def test_class_scores_are_the_mean_of_each_classs_filters_over_their_maxima(run):
    r = run.readout
    N, K = r.features.shape
    owner = r.gate.argmax(0)
    for c in range(len(r.bias)):
        filters = [k for k in range(K) if owner[k] == c]
        for n in range(0, N, 97):
            parts = [float(r.features[n, k]) / max(float(r.features[:, k].max()), 1e-12) for k in filters]
            expected = sum(parts) / len(parts) if parts else 0
            assert float(metrics.class_scores(r)[n, c]) == pytest.approx(expected, abs=1e-5)
