"""What holds for any gate and any features, beside the properties in test_gate, test_information and test_rules."""

import math
import warnings

import numpy as np
import pytest
import torch
from conftest import LONG
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from csglib import Problem
from csglib.analysis import localize, metrics
from csglib.analysis.information import entropy, mutual_information
from csglib.methods import csg
from csglib.methods.csg import ClassGate
from csglib.readout import Readout
from csglib.recipe import Recipe

fixture = [HealthCheck.function_scoped_fixture]  # `unchecked` holds for all examples alike
often = settings(max_examples=500 if LONG else 40, deadline=None, suppress_health_check=fixture)

# The gate

FINITE = st.floats(-(2.0**99), 2.0**99, width=32)
GATES = hnp.arrays("float32", (4, 3), elements=FINITE)


@often
@given(GATES, st.lists(GATES, max_size=4))
def test_whatever_gradients_come_a_projected_gate_stays_in_its_set_and_projecting_again_changes_nothing(start, steps):
    recipe = Recipe(gate_lr=0.5, precision="float32")
    gate = ClassGate(4, 3)
    gate.matrix.data = torch.from_numpy(start.copy())
    gate.project()
    optimiser = csg.gate_sgd(recipe, gate)
    for gradient in steps:
        gate.matrix.grad = torch.from_numpy(gradient.copy())
        optimiser.step()
        csg.after_step(recipe, gate)
        G = gate.matrix.detach().clone()
        assert ((G >= 0) & (G <= 1)).all() and (G.amax(0) == 1).all()  # NaN would fail
        gate.project()
        assert torch.equal(gate.matrix, G)


@often
@given(hnp.arrays("float32", (4, 5), elements=FINITE), st.permutations(range(5)), st.sampled_from([0.25, 2.0, 2.0**20]))
def test_projection_knows_no_order_of_filters_and_no_scale_of_a_live_one(matrix, order, scale):
    a, b = ClassGate(4, 5), ClassGate(4, 5)
    x = torch.from_numpy(matrix.copy()).clamp(min=-1e20, max=1e20)
    alive = x.amax(0) > 1e-20
    a.matrix.data, b.matrix.data = x.clone(), (torch.where(alive, scale, 1) * x)[:, order]
    a.project(), b.project()
    assert torch.equal(a.matrix[:, order], b.matrix)


# Mutual information


VALUES = st.integers(-8, 8).map(lambda n: n / 4)


@st.composite
def samples(draw):
    """N x 2 features on a coarse grid, so that sums and multiples are exact, and labels of three classes."""
    N = draw(st.integers(4, 30))
    x = draw(st.lists(st.tuples(VALUES, VALUES), min_size=N, max_size=N))
    return torch.tensor(x, dtype=torch.float64), torch.tensor(draw(st.lists(st.integers(0, 2), min_size=N, max_size=N)))


@often
@given(samples(), st.integers(-40, 40), st.sampled_from([-4.0, -1.0, 0.125, 2.0]))
def test_information_is_that_of_any_shifted_scaled_or_mirrored_filter(sample, shift, scale):
    """Maps under which distances keep their order.  Under a general monotone map they do not, nor does the estimate."""
    x, y = sample
    assert torch.allclose(mutual_information(scale * x + shift, y, 3), mutual_information(x, y, 3), atol=1e-12)


@often
@given(st.lists(st.integers(0, 4), min_size=2, max_size=6), st.lists(st.booleans(), min_size=2, max_size=6))
def test_of_values_that_repeat_often_enough_any_monotone_map_keeps_the_information(values, inside):
    """Each value stands at least k + 1 times in its label, so that no distance counts."""
    n = min(len(values), len(inside))
    x = torch.tensor(values[:n], dtype=torch.float64).repeat(4)[:, None]
    y = torch.tensor(inside[:n]).long().repeat(4)
    assert torch.allclose(mutual_information(x.exp() ** 3 - 7, y, 2), mutual_information(x, y, 2), atol=1e-12)


@often
@given(samples(), st.permutations(range(3)))
def test_information_follows_filters_and_classes_to_their_new_places_and_keeps_its_bounds(sample, order):
    x, y = sample
    M = mutual_information(x, y, 3)
    assert torch.equal(mutual_information(x.flip(1), y, 3), M.flip(1))
    renamed = torch.tensor(order)[y]  # class c is now order[c]
    assert torch.allclose(mutual_information(x, renamed, 3)[torch.tensor(order)], M, atol=1e-12)
    top = torch.tensor([entropy((y == c).double().mean().item()) for c in range(3)])[:, None]
    assert (M >= 0).all() and (top + 1.5 / len(y) >= M).all()


# Whatever tensors are given: a number in its range, NaN where there is nothing to measure, or a refusal

ANY = st.one_of(st.floats(width=32), st.sampled_from([0.0, 0.0, 1.0, -1.0, math.nan, math.inf, 1e38]))
SIZES = st.integers(1, 6)


def tensors(*shape: int, elements=ANY) -> st.SearchStrategy:
    """Of these sizes: any numbers, or one number everywhere."""
    arrays = hnp.arrays("float32", shape, elements=elements)
    return st.one_of(arrays, elements.map(lambda v: np.full(shape, v, "float32"))).map(torch.from_numpy)


@st.composite
def readouts(draw):
    """Of any sizes; sometimes one of its tensors has another size, and labels may be of no class."""
    N, C, K = draw(st.integers(1, 12)), draw(SIZES), draw(SIZES)
    odd = draw(st.sampled_from([None] * 8 + ["features", "labels", "weight", "bias", "gate"]))
    shapes = {"features": (N, K), "labels": (N,), "weight": (C, K), "bias": (C,), "gate": (C, K)}
    if odd:
        shapes[odd] = tuple(n + draw(st.integers(0, 1)) for n in shapes[odd])
    y = draw(
        hnp.arrays("int64", shapes.pop("labels"), elements=st.integers(0, C - 1) if draw(st.booleans()) else st.integers(-1, C))
    )
    finite = draw(st.booleans())
    elements = st.floats(-100, 100, width=32) if finite else ANY
    parts = {name: draw(tensors(*shape, elements=elements)) for name, shape in shapes.items()}
    parts["gate"] = parts["gate"].clamp(0, 1)
    return parts | {"labels": torch.from_numpy(y)}


@pytest.mark.slow
@often
@given(readouts())
def test_a_readout_is_refused_or_has_all_its_metrics_in_their_ranges(unchecked, parts):
    whole = all(t.isfinite().all() for t in parts.values())
    shapes = {tuple(parts["weight"].shape), tuple(parts["gate"].shape)}
    C, K = parts["weight"].shape
    fits = len(shapes) == 1 and parts["features"].shape == (len(parts["labels"]), K) and parts["bias"].shape == (C,)
    whole = whole and (not fits or bool((parts["features"] @ parts["weight"].T + parts["bias"]).isfinite().all()))
    labelled = fits and bool((parts["labels"] >= 0).all() and (parts["labels"] < C).all())
    try:
        readout = Readout(**parts)
        values = metrics.evaluate(readout)
    except Problem:
        assert not (whole and labelled)
        return
    assert whole and labelled
    shares = {name: v for name, v in values.items() if not name.startswith("mis") or "normalised" in name}
    assert all(0 <= v <= 1 for v in shares.values()), values  # NaN is not
    assert all(values[name] >= 0 and math.isfinite(values[name]) for name in ("mis", "mis_null"))
    present = readout.labels.unique().tolist()
    removed = metrics.removal(readout, metrics.cluster(readout.gate))
    for per_class in (metrics.class_means(readout), removed.T, metrics.confusion(readout, torch.zeros(K))):
        for c in range(C):
            assert per_class[c].isfinite().all() if c in present else per_class[c].isnan().all()
    for share in (*metrics.own_and_others(removed), metrics.own_share(readout), metrics.hoyer(readout.features)):
        assert math.isnan(share) or -1e-6 <= share <= 1 + 1e-6 or K == 1
    assert ((metrics.correlation(readout.features.T) <= 1) & (metrics.correlation(readout.features.T) >= 0)).all()


@often
@given(st.data(), st.integers(1, 4), st.integers(2, 5), st.integers(2, 5), st.booleans())
def test_heat_maps_are_refused_or_score_between_nothing_and_one_and_flat_ones_do_not_count(data, n, h, w, finite):
    elements = st.one_of(st.floats(-100, 100, width=32), st.just(0.0)) if finite else ANY
    heat = data.draw(tensors(n, h, w, elements=elements))
    boxes = torch.tensor([[0.0, 0, w, h], [1, 1, 2, 2]])[torch.arange(n) % 2]
    masks = localize.box_masks(boxes, (h, w))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            scores = localize.cam_scores(heat, boxes, heat, boxes, masks)
        except Problem:
            assert not heat.isfinite().all()
            return
        assert heat.isfinite().all()
        told = [i for i in range(n) if heat[i].unique().numel() > 1]
        if told:
            assert all(0 <= v <= 1 for v in scores.values())
            assert scores == localize.cam_scores(heat[told], boxes[told], heat[told], boxes[told], masks[told])
        else:
            assert all(math.isnan(v) for v in scores.values())


@often
@given(st.data(), st.integers(1, 4), SIZES, st.integers(1, 4), st.booleans())
def test_mutual_information_of_any_tensors_is_refused_or_within_its_bounds(data, n, K, C, whole):
    N = 4 * n
    x = data.draw(tensors(N, K, elements=FINITE if whole else ANY))
    y = torch.tensor(data.draw(st.lists(st.integers(0, C), min_size=N, max_size=N)))  # C is of no class
    try:
        M = mutual_information(x, y, C)
    except Problem:
        assert not x.isfinite().all() or y.max() == C
        return
    assert x.isfinite().all() and y.max() < C and M.shape == (C, K)
    top = torch.tensor([entropy((y == c).double().mean().item()) for c in range(C)])[:, None]
    assert ((M >= 0) & (top + 1.5 / N >= M)).all()
    assert (M[:, x.amax(0) == x.amin(0)] == 0).all()
    assert 0 <= metrics.normalised(M, y) <= 1
