import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from csglib import Problem, networks
from csglib.analysis import localize
from csglib.errors import NotFinite


def heat(n: int = 3, h: int = 4, w: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, h, w, generator=torch.Generator().manual_seed(seed))


def test_the_class_activation_map_averages_to_the_logit_without_its_bias():
    maps, W = torch.rand(4, 6, 3, 3), torch.randn(5, 6)
    classes = torch.tensor([0, 4, 2, 2])
    found = localize.cam(maps, W, classes)
    logits = maps.mean((2, 3)) @ W.T
    assert torch.allclose(found.mean((1, 2)), logits[torch.arange(4), classes], atol=1e-5)
    assert found[1, 2, 0].item() == pytest.approx(sum(W[4, k].item() * maps[1, k, 2, 0].item() for k in range(6)), abs=1e-5)


@given(st.integers(1, 99))
def test_the_hottest_pixels_are_exactly_their_share_and_none_outside_is_hotter(percent):
    x = heat()
    chosen = localize.hottest(x, percent / 100)
    assert (chosen.sum((1, 2)) == max(1, round(percent / 100 * 20))).all()
    for n in range(3):
        if not chosen[n].all():
            assert x[n][chosen[n]].min() >= x[n][~chosen[n]].max()


def test_the_threshold_of_a_filter_is_reached_by_its_share_of_places():
    maps = torch.rand(10, 3, 4, 5)
    maps[:, 1] = 0
    maps[0, 1, 0, 0] = 7  # fires in one place of 200
    t = localize.filter_thresholds(maps, 0.3)
    for k in (0, 2):
        assert (maps[:, k] >= t[k]).sum() == 60
    assert t[1] == 0
    assert localize.activation_masks(maps[:, 1], t[1], (8, 10)).all()  # the trap: it marks everything
    t = localize.filter_thresholds(maps, 0.3, firing=True)
    assert t[1] == 7 and (maps[:, 0] >= t[0]).sum() == 60
    assert not localize.activation_masks(maps[:, 1] * 0, localize.filter_thresholds(maps * 0, firing=True)[1], (8, 10)).any()


def test_the_box_of_a_mask_is_its_pixels():
    boxes = torch.tensor([[0.0, 0, 4, 3], [1.4, 0.6, 2.6, 2.4], [2, 1, 2, 1]])
    masks = localize.box_masks(boxes, (3, 4))
    assert masks[0].all() and masks[2].sum() == 0
    assert masks[1].nonzero().tolist() == [[1, 1], [1, 2]]


@settings(max_examples=50, deadline=None)
@given(*[hnp.arrays(bool, (2, 3, 4))] * 2)
def test_the_intersection_over_union_equals_its_slow_twin(a, b):
    found = localize.iou(torch.from_numpy(a), torch.from_numpy(b)).tolist()
    for n in range(2):
        first, second = set(map(tuple, np.argwhere(a[n]))), set(map(tuple, np.argwhere(b[n])))
        assert found[n] == pytest.approx(len(first & second) / max(len(first | second), 1))


def test_the_gradient_map_shows_the_pixels_that_a_filter_reads():
    net = networks.Split(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()), nn.Linear(2, 2)).double()
    seen = torch.zeros(2, 1, 64, 64, dtype=torch.float64)
    seen[0, :, :, :32], seen[1, :, :, 32:] = 1, 1  # filter 0 reads the left half, filter 1 the right one
    net.mask = Halves(seen)
    net.features[0].bias.data.fill_(10)
    maps = localize.gradmap(net, torch.rand(2, 3, 64, 64, dtype=torch.float64), torch.tensor([0, 1]))
    assert maps.shape == (2, 2, 64, 64)
    assert (maps[0, :, :, 10] > maps[0, :, :, 53]).all() and (maps[1, :, :, 53] > maps[1, :, :, 10]).all()


class Halves(nn.Module):
    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def forward(self, x):
        return x * self.seen[:, 0]


def twin_gradient_map(net, image: torch.Tensor, k: int) -> np.ndarray:
    """By finite differences and a Gaussian written out, reflecting at the border."""
    C, H, W = image.shape
    g = np.zeros((H, W))
    for i in range(H):
        for j in range(W):
            total = 0.0
            for c in range(C):
                up, down = image.clone(), image.clone()
                up[c, i, j] += 1e-5
                down[c, i, j] -= 1e-5
                total += ((net.pooled(up[None])[0, k] - net.pooled(down[None])[0, k]).item() / 2e-5) ** 2
            g[i, j] = math.sqrt(total)
    g /= math.sqrt((g**2).mean())
    kernel = np.array([math.exp(-0.5 * (d / 30) ** 2) for d in range(-30, 31)])
    kernel /= kernel.sum()
    for axis in (0, 1):
        padded = np.pad(g, [(30, 30) if a == axis else (0, 0) for a in (0, 1)], mode="reflect")
        g = sum(kernel[d] * np.take(padded, range(d, d + g.shape[axis]), axis) for d in range(61))
    return g


@pytest.mark.slow
def test_the_gradient_map_equals_its_slow_twin():
    torch.manual_seed(0)
    net = networks.Split(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Tanh()), nn.Linear(2, 2)).double()
    image = torch.rand(3, 32, 32, dtype=torch.float64)
    found = localize.gradmap(net, image[None], torch.tensor([1]))[0, 0].detach().numpy()
    assert np.allclose(found, twin_gradient_map(net, image, 1), rtol=1e-4)


# Boxes


def test_a_heat_map_that_is_the_box_finds_it_at_every_threshold_above_zero():
    boxes = torch.tensor([[2.0, 1, 6, 5], [0, 0, 8, 3]])
    hits = localize.max_box_accuracy(localize.box_masks(boxes, (8, 8)).float(), boxes, thresholds=10)
    assert hits[0] == 0.0 and (hits[1:] == 1).all()  # at 0 all pixels count, and the whole image is neither box


def test_of_several_regions_the_largest_counts():
    x = torch.zeros(1, 8, 8)
    x[0, :2, :2], x[0, 3:8, 3:8] = 1, 0.9
    box = torch.tensor([[3.0, 3, 8, 8]])
    hits = localize.max_box_accuracy(x, box, thresholds=20)
    assert hits[10] == 1 and hits[19] == 0  # above 0.9 the small region is left


# What points nowhere


@pytest.mark.parametrize("value", [0.0, 3.0, -1e30])
def test_a_constant_heat_map_has_no_score_and_is_left_out_with_a_word(value):
    boxes = torch.tensor([[2.0, 2, 6, 6]] * 3)
    masks = localize.box_masks(boxes, (8, 8))
    found = masks.float()
    found[1] = value
    with pytest.warns(UserWarning, match="1 of 3 heat maps are constant"):
        some = localize.cam_scores(masks.float(), boxes, found, boxes, masks)
    rest = [0, 2]
    assert some == localize.cam_scores(masks.float(), boxes, found[rest], boxes[rest], masks[rest])
    with pytest.warns(UserWarning, match="3 of 3"):
        none = localize.cam_scores(masks.float(), boxes, torch.full_like(found, value), boxes, masks)
    assert all(math.isnan(v) for v in none.values())
    with pytest.warns(UserWarning, match="3 of 3"):
        unfitted = localize.cam_scores(torch.full_like(found, value), boxes, masks.float(), boxes, masks)
    assert math.isnan(unfitted["box_accuracy"]) and unfitted["max_box_accuracy"] == 1


@pytest.mark.parametrize("value", [5.0, 1e-20, -3.0])
def test_a_filter_that_is_the_same_everywhere_has_no_score(value):
    maps, labels, masks = corner_maps()
    maps[:, 2] = value
    with_it = localize.activation_scores(maps, labels, masks, maps, labels, masks, 2)
    without = localize.activation_scores(maps[:, :2], labels, masks, maps[:, :2], labels, masks, 2)
    assert (with_it["iou"], with_it["ap30"]) == (without["iou"], without["ap30"]) and sum(with_it["filters"]) == 3
    alone = localize.activation_scores(maps[:, 2:], labels, masks, maps[:, 2:], labels, masks, 2)
    assert math.isnan(alone["iou"]) and math.isnan(alone["ap30"])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_heat_maps_boxes_and_gradients_that_are_not_finite_are_refused(bad):
    maps, labels, masks = corner_maps()
    heat, boxes = torch.rand(12, 16, 16), torch.tensor([[2.0, 2, 6, 6]] * 12)
    net, images = small_net(), torch.rand(12, 3, 16, 16)
    heat[3, 2, 2], maps[3, 0, 1, 1] = bad, bad
    broken = small_net()
    broken.features[0].weight.data[2] = bad
    means = torch.full((4, 6), bad)
    good = torch.rand(12, 16, 16)
    for call in (
        lambda: localize.hottest(heat, 0.3),
        lambda: localize.max_box_accuracy(heat, boxes),
        lambda: localize.max_box_accuracy(good, boxes + bad),
        lambda: localize.cam_scores(heat, boxes, good, boxes, masks),
        lambda: localize.cam_scores(good, boxes, heat, boxes, masks),
        lambda: localize.box_masks(boxes * bad, (4, 4)),
        lambda: localize.filter_thresholds(maps),
        lambda: localize.activation_masks(maps[:, 0], torch.tensor(0.5), (8, 8)),
        lambda: localize.activation_scores(maps, labels, masks, maps, labels, masks, 2),
        lambda: localize.gradmap(broken, torch.rand(2, 3, 70, 70), torch.tensor([2])),
        lambda: localize.gradient_scores(net, means, images, labels, masks),
    ):
        with pytest.raises(NotFinite):
            call()


def test_what_is_not_of_the_same_images_is_refused(unchecked):
    maps, labels, masks = corner_maps()
    heat, boxes = torch.rand(12, 16, 16), torch.tensor([[2.0, 2, 6, 6]] * 12)
    one = slice(0, 1)
    for call in (
        lambda: localize.cam(maps, torch.rand(2, 3), labels[one]),
        lambda: localize.iou(masks, masks[one]),
        lambda: localize.iou(masks, masks[:, :8]),
        lambda: localize.max_box_accuracy(heat, boxes[one]),
        lambda: localize.cam_scores(heat, boxes, heat, boxes, masks[one]),
        lambda: localize.activation_scores(maps, labels, masks[one], maps, labels, masks, 2),
        lambda: localize.activation_scores(maps, labels, masks, maps, labels[one], masks, 2),
        lambda: localize.gradient_scores(small_net(), torch.rand(4, 6), torch.rand(12, 3, 20, 24), labels, masks[one]),
    ):
        with pytest.raises(Problem, match="different sizes"):
            call()
    for classes in (labels - 1, labels + 1):
        for call in (
            lambda c=classes: localize.cam(maps, torch.rand(2, 3), c),
            lambda c=classes: localize.activation_scores(maps, c, masks, maps, labels, masks, 2),
            lambda c=classes: localize.activation_scores(maps, labels, masks, maps, c, masks, 2),
            lambda c=classes: localize.gradient_scores(small_net(), torch.rand(2, 6), torch.rand(12, 3, 16, 16), c, masks),
        ):
            with pytest.raises(Problem, match="classes run from .* where there are 2"):
                call()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("training", [True, False])
def test_gradient_maps_are_those_of_eval_mode_whatever_the_caller_has_set(mode, training):
    net, k = small_net(), torch.tensor([1, 4])
    net.features.insert(1, nn.BatchNorm2d(8))
    images = torch.rand(2, 3, 70, 70)
    expected = localize.gradmap(net.eval(), images, k)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    net.train(training)
    with mode():
        found = localize.gradmap(net, images.clone(), k)
    assert torch.equal(found, expected)
    assert all(m.training == training for m in net.modules())
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


# Scores


def corner_maps() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Objects of two classes; filter 0 fires on those of class 0, where they are, filter 1 nowhere, filter 2 everywhere."""
    labels = torch.tensor([0, 1] * 6)
    maps = torch.zeros(12, 3, 4, 4)
    maps[labels == 0, 0, :2, :2] = 1 + torch.rand(6, 2, 2)
    maps[:, 2] = 1 + torch.rand(12, 4, 4)
    masks = torch.zeros(12, 16, 16, dtype=torch.bool)
    masks[labels == 0, :8, :8] = True
    masks[labels == 1, 8:, :4] = True
    return maps, labels, masks


def test_filters_are_scored_on_the_class_that_they_find_and_zero_thresholds_are_told():
    maps, labels, masks = corner_maps()
    scores = localize.activation_scores(maps, labels, masks, maps, labels, masks, 2)
    T = localize.filter_thresholds(maps)
    assert T[0] == 0 and T[1] == 0 and T[2] > 0  # 4 of 16 places in half of the images are fewer than 30 %
    assert scores["zero_thresholds"] == pytest.approx(2 / 3)
    assert sum(scores["filters"]) == 3
    whole = masks[labels == 0].double().mean().item()  # a mask of the whole image has the box's share as its IoU
    assert scores["iou"] < 0.5 and whole == 0.25
    fires = maps.clone()
    fires[labels == 1, 0, :2, :2] = 0.2
    sharp = localize.activation_scores(fires[:, :1], labels, masks, fires[:, :1], labels, masks, 2)
    assert sharp["filters"] == [1, 0] and sharp["zero_thresholds"] == 1.0


def test_a_filter_that_fires_where_its_class_is_scores_well():
    labels = torch.tensor([0, 1] * 10)
    maps = 0.01 * torch.rand(20, 1, 8, 8) + 0.001
    maps[labels == 0, 0, :6, :6] = 1 + torch.rand(10, 6, 6)
    masks = torch.zeros(20, 32, 32, dtype=torch.bool)
    masks[:, :24, :24] = True
    scores = localize.activation_scores(maps, labels, masks, maps, labels, masks, 2)
    assert scores["filters"] == [1, 0] and scores["iou"] > 0.8 and scores["ap30"] == 1 and scores["zero_thresholds"] == 0
    maps[labels == 1] = 0
    maps[labels == 0] *= torch.tensor([1.0, 0]).repeat(5)[:, None, None, None]  # it fires in 5 of 20 images, 28 % of the places
    paper, firing = (localize.activation_scores(maps, labels, masks, maps, labels, masks, 2, firing=f) for f in (False, True))
    assert paper["zero_thresholds"] == 1 and paper["iou"] == pytest.approx(masks[0].float().mean().item())
    assert firing["zero_thresholds"] == 0 and firing["filters"] == [1, 0] and 0.1 < firing["iou"] < 0.5


def test_the_threshold_of_the_boxes_is_chosen_on_the_training_objects():
    boxes = torch.tensor([[2.0, 2, 6, 6]] * 4)
    exact = localize.box_masks(boxes, (8, 8)).float()
    wide = localize.box_masks(torch.tensor([[1.0, 1, 8, 8]] * 4), (8, 8)).float()
    heat = 0.3 * wide + 0.7 * exact  # at thresholds up to 0.3 too wide
    scores = localize.cam_scores(heat, boxes, heat, boxes, exact > 0)
    assert scores["box_accuracy"] == scores["max_box_accuracy"] == 1
    other = 0.7 * wide + 0.3 * exact
    shifted = localize.cam_scores(heat, boxes, other, boxes, exact > 0)
    assert shifted["box_accuracy"] == 0 and shifted["max_box_accuracy"] == 1


def test_gradient_maps_are_scored_for_the_filters_that_a_class_excites_most():
    net = networks.Split(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()), nn.Linear(2, 2))
    seen = torch.zeros(2, 1, 64, 64)
    seen[0, :, :, :32], seen[1, :, :, 32:] = 1, 1
    net.mask = Halves(seen)
    net.features[0].bias.data.fill_(10)
    images, labels = torch.rand(4, 3, 64, 64), torch.tensor([0, 1, 0, 1])
    masks = torch.zeros(4, 64, 64, dtype=torch.bool)
    masks[labels == 0, :, :32], masks[labels == 1, :, 32:] = True, True
    right = localize.gradient_scores(net, torch.eye(2), images, labels, masks, filters=1)
    wrong = localize.gradient_scores(net, torch.eye(2).flip(0), images, labels, masks, filters=1)
    assert right["iou"] > 0.6 and right["ap20"] == 1 and wrong["iou"] < 0.3  # the blur reaches over the middle


# Oracles


def small_net() -> networks.Split:
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU())
    return networks.Split(features, nn.Linear(6, 4)).eval()


def test_the_class_activation_map_equals_those_of_torchcam_and_captum():
    from captum import attr as captum
    from torchcam import methods

    net, images = small_net(), torch.rand(3, 3, 20, 24)
    classes = torch.tensor([2, 0, 3])
    with torch.no_grad():
        ours = localize.cam(net.maps(images), net.head.weight, classes)
    with methods.CAM(net, target_layer="features", fc_layer="head", enable_hooks=True) as theirs:
        net(images)
        (found,) = theirs(classes.tolist(), normalized=False)
    assert torch.allclose(ours, found, atol=1e-6)
    h, w = ours.shape[1:]
    gradcam = captum.LayerGradCam(net, net.features).attribute(images, target=classes)  # the gradient's mean is W / (h w)
    assert torch.allclose(ours, h * w * gradcam[:, 0], atol=1e-5)


def test_the_gradient_map_is_captums_saliency_scaled_and_blurred():
    from captum import attr as captum
    from torchvision.transforms.functional import gaussian_blur

    net, images = small_net(), torch.rand(2, 3, 40, 48)
    ours = localize.gradmap(net, images, torch.tensor([5, 1]))
    for row, k in zip(ours, (5, 1), strict=True):
        gradient = captum.Saliency(net.pooled).attribute(images.clone().requires_grad_(), target=k, abs=False)
        heat = gradient.norm(dim=1)
        assert heat.max() > 0
        heat = heat / heat.square().mean((1, 2), keepdim=True).sqrt()
        assert torch.allclose(row, gaussian_blur(heat, [61, 61], [30.0, 30.0]), atol=1e-5)
