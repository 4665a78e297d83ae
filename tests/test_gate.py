from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from csglib import Problem
from csglib.methods.csg import ClassGate, density, density_bound, project, sharpness

ROUGH = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.floats(-2, 2, width=32),
    st.sampled_from([0.0, -0.0, 1e-45, 1e-40, -1e-40, 1.1754944e-38, 1.0]),
)
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=6)
MATRICES = hnp.arrays("float32", SHAPES, elements=ROUGH).map(torch.from_numpy)
few = settings(max_examples=60, deadline=None)


@few
@given(MATRICES)
def test_projection_lands_in_the_constraint_set(matrix):
    g = project(matrix)
    assert ((g >= 0) & (g <= 1)).all()  # NaN would fail both
    assert (g.amax(0) == 1).all()


@pytest.mark.slow
@few
@given(MATRICES)
def test_projection_is_idempotent(matrix):
    assert torch.equal(project(project(matrix)), project(matrix))


@few
@given(hnp.arrays("float32", (5, 3), elements=st.floats(-1, 2, width=32)).map(torch.from_numpy))
def test_a_live_filter_is_divided_by_its_maximum_and_clipped(matrix):
    matrix[0] = 1.5  # alive
    g = project(matrix)
    for k in range(3):
        top = max(matrix[:, k].tolist())
        for c in range(5):
            assert g[c, k].item() == pytest.approx(min(max(matrix[c, k].item() / top, 0), 1), abs=1e-6)


@pytest.mark.parametrize(
    "column, expected",
    [
        ([-3.0, -1.0, -2.0], [0, 1, 0]),  # division by the maximum would give ones
        ([-1.0, 0.0, -2.0], [0, 1, 0]),  # and here 0/0
        ([0.0, 0.0, 0.0], [1, 0, 0]),
        ([-1.0, -1.0, -5.0], [1, 0, 0]),
        ([-1.0, 1e-45, 1e-42], [0, 0, 1]),  # subnormal
        ([-3e38, -2e38, -3e38], [0, 1, 0]),
    ],
)
def test_a_dead_filter_becomes_one_hot_at_its_first_largest_entry(column, expected):
    assert project(torch.tensor(column)[:, None])[:, 0].tolist() == expected


@few
@given(st.lists(st.floats(-4, 0), min_size=1, max_size=4))
def test_a_dead_filter_goes_to_the_nearest_point_of_the_constraint_set(column):
    x = torch.tensor(column, dtype=torch.float64)
    distance = (project(x[:, None])[:, 0] - x).norm()
    grid = torch.tensor([p for p in product((0, 0.25, 0.5, 0.75, 1), repeat=len(x)) if max(p) == 1], dtype=torch.float64)
    assert distance <= (grid - x).norm(dim=1).min() + 1e-12


def test_nan_stays_nan_and_in_its_filter():
    g = project(torch.tensor([[torch.nan, 0.5], [0.2, 0.25]]))
    assert g[0, 0].isnan()
    assert g[:, 1].tolist() == [1, 0.5]


def test_the_module_projects_its_own_matrix():
    gate = ClassGate(2, 1)
    gate.matrix.data = torch.tensor([[0.5], [-0.5]])
    gate.project()
    assert gate.matrix.tolist() == [[1], [0]]
    assert gate.matrix.requires_grad


@pytest.mark.parametrize("start", [0.0, -0.5, 1.5, float("nan")])
def test_a_start_value_outside_0_to_1_is_refused(start):
    with pytest.raises(Problem, match="0.5"):
        ClassGate(10, 64, start)


def test_gating_the_maps_and_then_pooling_equals_gating_the_pooled_features():
    torch.manual_seed(0)
    gate = ClassGate(4, 5).double()
    torch.nn.init.uniform_(gate.matrix)
    maps, labels = torch.rand(6, 5, 3, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 1, 1])
    assert torch.allclose(gate(maps, labels).mean((2, 3)), gate(maps.mean((2, 3)), labels), atol=1e-15)


def test_each_image_is_multiplied_by_the_row_of_its_class():
    gate = ClassGate(2, 3)
    gate.matrix.data = torch.tensor([[1.0, 0, 0.5], [0, 1, 0.25]])
    out = gate(torch.tensor([[2.0, 3, 4], [2, 3, 4]]), torch.tensor([1, 0]))
    assert out.tolist() == [[0, 3, 1], [2, 0, 2]]


def test_the_gradient_of_the_gate_is_that_of_the_formula():
    """dCE/dG[c, k] = (1/B) sum_{i: y_i = c} a_k(i) sum_j (p_j(i) - 1[j = c]) W_jk, spec/csg.md 1.4."""
    torch.manual_seed(1)
    B, C, K = 7, 3, 4
    gate = ClassGate(C, K).double()
    torch.nn.init.uniform_(gate.matrix)
    a = torch.rand(B, K, dtype=torch.float64)
    W = torch.randn(C, K, dtype=torch.float64)
    b = torch.randn(C, dtype=torch.float64)
    y = torch.tensor([0, 0, 1, 1, 1, 0, 1])  # no image of class 2
    torch.nn.functional.cross_entropy(gate(a, y) @ W.T + b, y).backward()

    G = gate.matrix.detach()
    expected = torch.zeros(C, K, dtype=torch.float64)
    for i in range(B):
        c = y[i].item()
        logits = torch.stack([sum(W[j, k] * G[c, k] * a[i, k] for k in range(K)) + b[j] for j in range(C)])
        p = logits.exp() / logits.exp().sum()
        for k in range(K):
            expected[c, k] += a[i, k] * sum((p[j] - int(j == c)) * W[j, k] for j in range(C)) / B
    assert torch.allclose(gate.matrix.grad, expected, atol=1e-14)
    assert (gate.matrix.grad[2] == 0).all()


def penalty_of(matrix: list[list[float]], bound: float) -> tuple[float, list[list[float]]]:
    gate = ClassGate(len(matrix), len(matrix[0]))
    gate.matrix.data = torch.tensor(matrix)
    loss = 0.005 * gate.penalty(bound)
    loss.backward()
    return loss.item(), gate.matrix.grad.tolist()


@pytest.mark.parametrize("bound", [2.25, 3.0])
def test_the_hinge_is_flat_up_to_its_bound(bound):
    assert penalty_of([[1.0, 0.25], [0.0, 1.0]], bound) == (0, [[0, 0], [0, 0]])


def test_above_the_bound_every_positive_entry_is_pulled_with_lambda2():
    value, slope = penalty_of([[1.0, 0.25], [0.0, 1.0]], 2.0)
    assert value == pytest.approx(0.005 * 0.25)
    assert torch.tensor(slope).allclose(torch.tensor([[0.005, 0.005], [0, 0.005]]))


@few
@given(MATRICES)
def test_a_projected_gate_has_a_density_between_1_over_c_and_1(matrix):
    assert 1 / len(matrix) <= density(project(matrix)) <= 1


@pytest.mark.parametrize("classes", [1, 3, 6, 7, 10, 1000])
def test_a_one_hot_gate_has_density_1_over_c_exactly(classes):
    gate = torch.zeros(classes, 49)
    gate[classes - 1] = 1
    assert density(gate) == 1 / classes
    assert density(torch.ones(classes, 49)) == 1


@pytest.mark.parametrize("entry", [0.99, 0.0, float("nan")])
def test_a_density_below_1_over_c_is_an_error_of_the_program(entry):
    with pytest.raises(ArithmeticError, match="feasible"):
        density(torch.tensor([[1.0, 0.0], [0.0, entry]]))


def test_the_bound_of_one_class_a_filter_is_the_number_of_filters():
    assert density_bound(0.1, 10, 64) == 64
    assert density_bound(1.0, 10, 64) == 640


@pytest.mark.parametrize("fraction", [0.0999, 0.0, -0.1, 1.01, float("nan")])
def test_a_bound_outside_1_over_c_to_1_is_refused_with_the_range(fraction):
    with pytest.raises(Problem, match=r"from 0\.1 .* to 1"):
        density_bound(fraction, 10, 64)


def test_sharpness_is_one_for_a_one_hot_matrix_and_one_in_c_for_a_uniform_one():
    assert sharpness(torch.eye(4)[:, [0, 1, 1, 3]]) == 1
    assert sharpness(torch.full((4, 6), 0.3)) == pytest.approx(0.25)
    assert sharpness(torch.tensor([[1.0, 0.6], [0.5, 0.2], [0.5, 0.2]])) == pytest.approx((0.5 + 0.6) / 2)
