"""What holds for any gate and any features, beside the properties in test_gate, test_information and test_verdicts."""

import torch
from conftest import LONG
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from csglib import methods
from csglib.gate import ClassGate
from csglib.information import entropy, mutual_information
from csglib.runs import Recipe

often = settings(max_examples=500 if LONG else 40, deadline=None)

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
    optimiser = methods.gate_sgd(recipe, gate)
    for gradient in steps:
        gate.matrix.grad = torch.from_numpy(gradient.copy())
        optimiser.step()
        methods.project(recipe, gate)
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
