import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from csglib import Problem, methods, networks
from csglib.methods import icnn as t
from csglib.recipe import Recipe


def maps(N=6, K=3, n=4, seed=0) -> torch.Tensor:
    """As after a ReLU: about half of them zero."""
    g = torch.Generator().manual_seed(seed)
    return (4 * torch.randn(N, K, n, n, generator=g, dtype=torch.float64)).clamp(min=0)


# The paper's templates and the exact information


def test_templates_are_those_of_the_paper():
    n, tau = 5, 0.5 / 25
    T = t.templates(n)
    assert T.shape == (26, 5, 5)
    for mu in range(25):
        for i in range(n):
            for j in range(n):
                distance = abs(i - mu // n) + abs(j - mu % n)
                assert T[mu, i, j].item() == pytest.approx(tau * max(1 - 4 * distance / n, -1))
    assert (T[25] == -tau).all()


def twin_information(x: torch.Tensor) -> float:
    """MI(X; T) of one filter's maps (N, n, n), from the definition, in loops."""
    T = t.templates(x.shape[1])
    trace = [[sum((x[i] * T[j]).flatten().tolist()) for j in range(len(T))] for i in range(len(x))]
    Z = [sum(math.exp(trace[i][j]) for i in range(len(x))) for j in range(len(T))]
    p = [[math.exp(trace[i][j]) / Z[j] for j in range(len(T))] for i in range(len(x))]
    px = [sum(row) / len(T) for row in p]
    return sum(p[i][j] / len(T) * math.log(p[i][j] / px[i]) for i in range(len(x)) for j in range(len(T)))


def test_information_equals_its_slow_twin():
    x = maps()
    assert t.information(x).tolist() == pytest.approx([twin_information(x[:, k]) for k in range(3)], rel=1e-9)


def test_information_is_zero_for_equal_maps_and_larger_where_each_map_has_its_own_place():
    assert t.information(torch.ones(8, 1, 4, 4)).item() == pytest.approx(0, abs=1e-12)
    spread = torch.zeros(16, 1, 4, 4)
    spread.view(16, 16)[torch.arange(16), torch.arange(16)] = 500
    assert t.information(spread).item() > 1


def test_the_exact_gradient_is_that_of_autograd_and_of_finite_differences():
    x = maps()
    x.requires_grad_(True)
    (-t.information(x).sum()).backward()
    exact = t.gradient(x.detach())
    assert torch.allclose(exact, x.grad, rtol=1e-9, atol=1e-14)
    h = 1e-5
    for place in [(0, 0, 1, 2), (3, 1, 0, 0), (5, 2, 3, 3)]:
        up, down = x.detach().clone(), x.detach().clone()
        up[place] += h
        down[place] -= h
        slope = -(t.information(up) - t.information(down))[place[1]] / (2 * h)
        assert exact[place].item() == pytest.approx(slope.item(), rel=1e-4, abs=1e-11)


# The masks of the released code


def twin_mask(x: torch.Tensor, w: float) -> list[list[float]]:
    """The mask of one map: places from -1 to 1, the centre the rounded centroid counted from 1."""
    H, W = x.shape
    total = max(x.sum().item(), 1e-9)
    row = max(round(sum((i + 1) * x[i, j].item() for i in range(H) for j in range(W)) / total), 1) - 1
    col = max(round(sum((j + 1) * x[i, j].item() for i in range(H) for j in range(W)) / total), 1) - 1
    ys, xs = np.linspace(-1, 1, H), np.linspace(-1, 1, W)
    return [[max(1 - w * (abs(ys[i] - ys[row]) + abs(xs[j] - xs[col])), -1) for j in range(W)] for i in range(H)]


@settings(max_examples=40, deadline=None)
@given(hnp.arrays("float32", (2, 3, 4, 5), elements=st.one_of(st.just(0.0), st.floats(0.125, 8, width=32))))
def test_masks_equal_their_slow_twin(x):
    x = torch.from_numpy(x)
    mask = t.TemplateMask(2, 3)
    mask.steepness.copy_(torch.tensor([1.5, 2.0, 3.0]))
    M = mask.masks(x)
    for n in range(2):
        for k in range(3):
            grid, centre = t.centroid(x.sum(3))
            _, other = t.centroid(x.sum(2))
            if any(abs(c[n, k] % 1 - 0.5) < 1e-3 for c in (centre, other)):
                continue  # exactly between two places the rounding may go either way
            assert torch.allclose(M[n, k], torch.tensor(twin_mask(x[n, k], mask.steepness[k].item())).float(), atol=1e-5)


def test_the_masked_map_keeps_its_centre_and_loses_what_is_far_away():
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 4], x[0, 0, 0, 0], x[0, 0, 8, 8] = 10, 1, 1
    y = t.TemplateMask(2, 1)(x)
    assert y[0, 0, 4, 4] == 10 and y[0, 0, 0, 0] == 0 and y[0, 0, 8, 8] == 0


def test_the_mask_multiplies_the_gradient_and_holds_its_centre_constant():
    x = maps().float().requires_grad_(True)
    mask = t.TemplateMask(4, 3)
    mask(x).sum().backward()
    assert torch.equal(x.grad, mask.masks(x.detach()).clamp(min=0) * (x > 0))


def test_negative_activations_do_not_come_back_as_positive_ones():
    assert (t.TemplateMask(2, 3)(-maps().float() - 1) == 0).all()


# The filter loss


def twin_gradient(x: torch.Tensor, labels: list[int], owner: list[int], M: torch.Tensor, C: int) -> torch.Tensor:
    """The gradient that the released code adds, over N, without its factor; image by image and filter by filter."""
    a = 0.5
    N, K, H, W = x.shape
    area = H * W

    def mean(n, k, mask=None):
        return sum(x[n, k, i, j].item() * (1 if mask is None else mask[i, j].item()) for i in range(H) for j in range(W)) / area

    out = torch.zeros_like(x)
    for k in range(K):
        log_pos = a * math.log(sum(math.exp(mean(n, k, M[N - 1 - n, K - 1 - k]) / a) for n in range(N)) / N)
        log_neg = a * math.log(sum(math.exp(-mean(n, k) / a) for n in range(N)) / N)
        for own in (True, False):
            chosen = [n for n in range(N) if (labels[n] == owner[k]) == own]
            fit = {n: mean(n, k, M[n, k]) if own else -mean(n, k) for n in chosen}
            log_z = log_pos if own else log_neg
            s = {n: math.exp(fit[n] / a) * (fit[n] - log_z + a) for n in chosen}
            for n in chosen:
                share = s[n] / (sum(s.values()) / len(chosen))
                out[n, k] += -M[n, k] * share * 0.5 * C if own else share * 0.5 / (1 - 1 / C)
    return out / N


def test_the_filter_loss_has_the_gradient_of_the_released_code():
    labels, owner, C = [0, 1, 2, 1, 0, 2], [0, 2, 1], 3
    x = maps().requires_grad_(True)
    mask = t.TemplateMask(C, 3)
    mask.peaks[owner, [0, 1, 2]] = 1
    t.filter_loss(x, torch.tensor(labels), mask).backward()
    M = mask.masks(x.detach()).double()
    expected = twin_gradient(x.detach(), labels, owner, M, C)
    assert torch.allclose(x.grad, expected * (x > 0), rtol=2e-4, atol=1e-7)


def test_negatives_are_the_images_of_all_other_classes():
    x = torch.rand(6, 1, 4, 4, requires_grad=True)
    mask = t.TemplateMask(3, 1)
    mask.peaks[1, 0] = 1
    labels = torch.tensor([0, 1, 2, 1, 0, 2])
    t.filter_loss(x, labels, mask).backward()
    uniform = x.grad.flatten(1).std(1) < 1e-9  # of a negative image the same force everywhere
    assert uniform.tolist() == [True, False, True, False, True, True]


def test_before_the_first_batch_no_filter_has_a_class_and_the_loss_is_zero():
    assert t.filter_loss(maps(), torch.zeros(6, dtype=torch.long), t.TemplateMask(3, 3)).item() == 0


@pytest.mark.parametrize("labels", [[0] * 6, [2] * 6])
def test_a_batch_without_positives_or_without_negatives_gives_a_finite_loss(labels):
    mask = t.TemplateMask(3, 3)
    mask.peaks[0] = 1
    x = maps().float().requires_grad_(True)
    t.filter_loss(x, torch.tensor(labels), mask).backward()
    assert x.grad.isfinite().all()


def test_huge_activations_give_a_finite_loss():
    """Where exp overflows, the weights are taken as 0, and that filter is left out of the step."""
    mask = t.TemplateMask(3, 3)
    mask.peaks[0] = 1
    x = (1e4 * maps()).float().requires_grad_(True)
    loss = t.filter_loss(x, torch.arange(6) % 3, mask)
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all()


def test_autocast_moves_neither_masks_nor_classes():
    x, labels = maps(8, 3, 8).float().bfloat16(), torch.arange(8) % 3
    inside, outside = t.TemplateMask(3, 3), t.TemplateMask(3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        inside.update(x, labels)
        M = inside.masks(x)
    outside.update(x, labels)
    assert torch.equal(inside.peaks, outside.peaks) and torch.equal(M, outside.masks(x))


# Classes and steepness


def test_the_classes_of_the_filters_follow_the_mean_peaks_with_a_decay_of_nine_tenths():
    mask = t.TemplateMask(3, 2)
    x = torch.zeros(4, 2, 2, 2)
    x[:, 0, 0, 0] = torch.tensor([4.0, 2, 1, 0])
    x[:, 1, 1, 1] = torch.tensor([0.0, 0, 1, 8])
    mask.update(x, torch.tensor([0, 0, 1, 1]))
    assert mask.peaks.tolist() == [[3.0, pytest.approx(0.1)], [0.5, 4.5], [pytest.approx(0.1), pytest.approx(0.1)]]
    assert mask.matrix.argmax(0).tolist() == [0, 1]
    mask.update(x, torch.tensor([2, 2, 2, 2]))
    assert mask.peaks[:, 0].tolist() == pytest.approx([3.0, 0.5, 0.9 * 0.1 + 0.1 * 1.75])  # absent classes stay


def test_a_filter_that_fires_in_one_point_gets_steeper_masks_and_a_spread_one_flatter_ones():
    mask = t.TemplateMask(2, 2)
    x = torch.zeros(4, 2, 8, 8)
    x[:, 0, 3, 3] = 1
    x[:, 1] = 1
    for _ in range(200):
        mask.update(x, torch.tensor([0, 0, 1, 1]))
    assert mask.steepness.tolist() == pytest.approx([3.0, 1.5], abs=1e-3)


def test_evaluation_moves_neither_classes_nor_steepness():
    recipe = Recipe(method="icnn")
    net = networks.build("resnet20", 10)
    mask = methods.method(recipe).gate(recipe, net)
    images = torch.rand(8, 3, 32, 32)
    methods.method(recipe).loss(recipe, 0, net, mask, images, torch.arange(8))
    before = {name: b.clone() for name, b in mask.named_buffers()}
    assert before["peaks"].amax() > 0
    net.eval()
    with torch.no_grad():
        first, again = net(images), net(images)
    assert torch.equal(first, again)
    assert all(torch.equal(before[name], b) for name, b in mask.named_buffers())


def test_the_mask_acts_in_evaluation_too():
    recipe = Recipe(method="icnn")
    net = networks.build("resnet20", 10).eval()
    images = torch.rand(2, 3, 32, 32)
    plain = net.pooled(images)
    mask = methods.method(recipe).gate(recipe, net)
    assert not torch.equal(net.pooled(images), plain)
    assert torch.equal(net.pooled(images), mask(net.maps(images)).mean((2, 3)))


def test_maps_of_one_pixel_are_refused():
    with pytest.raises(Problem, match="choose an earlier layer"):
        t.TemplateMask(2, 3)(torch.rand(2, 3, 1, 1))
