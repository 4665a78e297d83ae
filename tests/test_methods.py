import dataclasses
import math
import warnings

import pytest
import torch
from torch import nn
from tqdm import tqdm

from csglib import Problem, data, methods, networks
from csglib.errors import Unknown
from csglib.methods import csg
from csglib.methods.csg import ClassGate
from csglib.methods.icnn import filter_loss
from csglib.methods.picnn import SampledGate, draw
from csglib.recipe import Recipe
from csglib.training import prepare
from csglib.training.loop import Loop


def paths(method: str = "csg", **fields) -> str:
    """The first letter of each epoch's path."""
    recipe = Recipe(method=method, **fields)
    return "".join(methods.method(recipe).path(recipe, epoch)[0] for epoch in range(recipe.epochs))


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"epochs": 9, "cycle": "ssg"}, "ssgssgsss"),  # the ninth would be gated: the last epoch is standard
        ({"epochs": 8, "cycle": "ssg"}, "ssgssgss"),
        ({"epochs": 7, "cycle": "sgs"}, "sgssgss"),
        ({"epochs": 5, "cycle": "sg"}, "sgsgs"),
        ({"epochs": 7, "cycle": "sgg"}, "sggsggs"),
        ({"epochs": 8, "warmup": 3, "cycle": "gs"}, "sssgsgss"),
        ({"epochs": 4, "cycle": "g"}, "gggs"),
        ({"epochs": 3, "warmup": 10, "cycle": "g"}, "sss"),
        ({"epochs": 1, "cycle": "g"}, "s"),
    ],
)
def test_csg_alternates_as_the_cycle_says_and_ends_on_a_standard_epoch(fields, expected):
    assert paths(**fields) == expected


def test_the_released_schedule_can_be_written():
    """Epoch >= 10 and epoch % 3 == 2, of 151 epochs: spec/csg.md 1.5 counts 47 gated ones."""
    gated = [e for e, p in enumerate(paths(epochs=151, warmup=9, cycle="ssg")) if p == "g"]
    assert gated == [e for e in range(10, 150) if e % 3 == 2]
    assert len(gated) == 47


@pytest.mark.parametrize("fields", [{"epochs": 1, "cycle": "g"}, {"epochs": 9, "warmup": 8}, {"epochs": 9, "cycle": "s"}])
def test_csg_without_a_gated_epoch_is_refused(fields):
    recipe = Recipe(**fields)
    with pytest.raises(Problem, match="no epoch would train the gate"):
        methods.method(recipe).gate(recipe, networks.build("resnet20", 10))


def test_standard_training_is_standard_in_every_epoch():
    assert paths("standard", epochs=7) == "s" * 7


def small_net(K: int = 4, C: int = 3) -> networks.Split:
    torch.manual_seed(0)
    return networks.Split(nn.Sequential(nn.Conv2d(3, K, 1), nn.ReLU()), nn.Linear(K, C)).double()


def twin_loss(net: networks.Split, G, images, labels, bound: float, weight: float) -> float:
    """CE of the gated path, gating the maps before pooling, plus the hinge; loops in float64."""
    conv, head = net.features[0], net.head
    total = 0.0
    N, _, H, W = images.shape
    for n in range(N):
        pooled = []
        for k in range(head.in_features):
            area = 0.0
            for i in range(H):
                for j in range(W):
                    x = [(images[n, c, i, j] - net.mean[0, c, 0, 0]) / net.std[0, c, 0, 0] for c in range(3)]
                    a = sum(conv.weight[k, c, 0, 0] * x[c] for c in range(3)) + conv.bias[k]
                    area += G[labels[n]][k] * max(a.item(), 0)
            pooled.append(area / (H * W))
        logits = [
            sum(head.weight[c, k].item() * pooled[k] for k in range(head.in_features)) + head.bias[c].item()
            for c in range(head.out_features)
        ]
        total += math.log(sum(math.exp(z) for z in logits)) - logits[labels[n]]
    return total / N + weight * max(0.0, sum(map(sum, G)) - bound)


@pytest.mark.parametrize("fraction", [0.4, 0.9])  # above and below the gate's density
def test_the_loss_of_the_gated_path_equals_its_slow_twin(fraction):
    net = small_net()
    gate = ClassGate(3, 4).double()
    gate.matrix.data = torch.rand(3, 4, dtype=torch.float64)
    images, labels = torch.rand(5, 3, 2, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 1])
    recipe = Recipe(gate_density=fraction, gate_penalty=0.3)
    loss, logits = methods.method(recipe).loss(recipe, 1, net, gate, images, labels)
    expected = twin_loss(net, gate.matrix.tolist(), images, labels.tolist(), fraction * 12, 0.3)
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    assert logits.shape == (5, 3)


@pytest.mark.parametrize("name", ["standard", "csg"])
def test_the_loss_of_the_standard_path_is_that_of_a_gate_of_ones_without_penalty(name):
    net, gate = small_net(), ClassGate(3, 4).double()
    images, labels = torch.rand(5, 3, 2, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 1])
    recipe = Recipe(method=name)
    loss, _ = methods.method(recipe).loss(recipe, 0, net, gate, images, labels)
    assert loss.item() == pytest.approx(twin_loss(net, [[1.0] * 4] * 3, images, labels.tolist(), 12, 1), rel=1e-10)
    loss.backward()
    assert gate.matrix.grad is None


def test_standard_training_has_no_gate_and_csg_starts_it_everywhere_equal():
    net = networks.build("resnet20", 10)
    assert methods.method(Recipe(method="standard")).gate(Recipe(method="standard"), net) is None
    recipe = Recipe(gate_start=0.75)
    gate = methods.method(recipe).gate(recipe, net)
    assert gate.matrix.shape == (10, 64) and (gate.matrix == 0.75).all()


@pytest.mark.parametrize(
    "option",
    [
        {"gate_lr": 0.2},
        {"gate_penalty": 0.0},
        {"gate_density": 0.5},
        {"gate_start": 1.0},
        {"gate_momentum": 0.5},
        {"cycle": "sg"},
        {"warmup": 1},
        {"gate_projection": "clip"},
        {"fixed_gate": "shuffled"},
    ],
)
def test_standard_training_refuses_the_options_of_the_gate(option):
    (name,) = option
    with pytest.raises(Problem, match=f"standard does not read {name}"):
        methods.method(Recipe(method="standard", **option))
    methods.method(Recipe(method="fixed" if name == "fixed_gate" else "csg", **option))


def test_the_matched_baseline_trains_the_standard_epochs_of_csg_and_no_other():
    fields = {"epochs": 11, "cycle": "sgg", "warmup": 2}
    recipe = Recipe(method="matched", **fields)
    trained = [methods.method(recipe).path(recipe, e) for e in range(11)]
    csg = Recipe(**fields)
    assert [p == "standard" for p in trained] == [methods.method(csg).path(csg, e) == "standard" for e in range(11)]
    assert set(trained) == {"standard", "skipped"}


@pytest.mark.parametrize("fraction", [0.4, 0.9])
def test_the_joint_loss_is_the_sum_of_both_paths_and_the_hinge(fraction):
    net = small_net()
    gate = ClassGate(3, 4).double()
    gate.matrix.data = torch.rand(3, 4, dtype=torch.float64)
    images, labels = torch.rand(5, 3, 2, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 1])
    recipe = Recipe(method="joint", gate_density=fraction, gate_penalty=0.3)
    loss, logits = methods.method(recipe).loss(recipe, 0, net, gate, images, labels)
    expected = twin_loss(net, [[1.0] * 4] * 3, images, labels.tolist(), 12, 1)
    expected += twin_loss(net, gate.matrix.tolist(), images, labels.tolist(), fraction * 12, 0.3)
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    assert torch.allclose(logits, net(images))  # accuracy is that of the standard path


@pytest.mark.parametrize("kind, rows", [("random", [0, 1, 2, 1, 1]), ("shuffled", [1, 0, 1, 2, 1])])
def test_the_fixed_gate_takes_the_row_of_each_image_or_of_the_image_before_it(kind, rows):
    net = small_net()
    recipe = Recipe(method="fixed", fixed_gate=kind)
    gate = methods.method(recipe).gate(recipe, net).double()
    images, labels = torch.rand(5, 3, 2, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 1])
    loss, _ = methods.method(recipe).loss(recipe, 1, net, gate, images, labels)
    a = net.pooled(images) * gate.matrix.detach()[torch.tensor(rows)]
    assert loss.item() == pytest.approx(nn.functional.cross_entropy(net.head(a), labels).item(), rel=1e-12)
    loss.backward()
    assert gate.matrix.grad is None


def test_the_fixed_gate_gives_each_class_its_share_of_the_filters():
    recipe = Recipe(method="fixed")
    G = methods.method(recipe).gate(recipe, networks.build("resnet20", 10)).matrix
    assert G.sum(0).tolist() == [1.0] * 64 and set(G.sum(1).tolist()) == {6.0, 7.0}


def test_without_the_projection_entries_are_clipped_and_no_filter_is_lifted_to_one():
    gate = ClassGate(2, 3)
    gate.matrix.data = torch.tensor([[0.2, -0.1, 1.5], [0.1, -0.2, 0.3]])
    csg.after_step(Recipe(gate_projection="clip"), gate)
    assert gate.matrix.tolist() == [pytest.approx([0.2, 0.0, 1.0]), pytest.approx([0.1, 0.0, 0.3])]
    csg.after_step(Recipe(), gate)
    assert (gate.matrix.amax(0) == 1).all()


def test_an_unknown_method_is_refused_with_the_choice():
    with pytest.raises(Unknown, match="'picnnn'"):
        methods.method(Recipe(method="picnnn"))


@pytest.mark.parametrize("fraction", [0.05, 0.0999])
def test_a_density_below_1_over_c_is_refused_before_training(fraction):
    recipe = Recipe(gate_density=fraction)
    with pytest.raises(Problem, match=r"0\.1"):
        methods.method(recipe).gate(recipe, networks.build("resnet20", 10))


def test_the_weights_optimiser_holds_the_network_and_nothing_of_the_gate():
    net = networks.build("resnet20", 10)
    held = [p for group in prepare.weights_optimiser(net, Recipe()).param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in net.parameters()}


def one_epoch(path: str) -> tuple[dict, dict]:
    """State of network and gate before and after one epoch of the path."""
    net = small_net().float()
    recipe = Recipe(batch_size=8, gate_density=0.4)
    m, gate = methods.method(recipe), ClassGate(3, 4)
    images = data.Images(torch.randint(0, 256, (32, 3, 4, 4), dtype=torch.uint8), torch.arange(32) % 3)
    optimisers = [prepare.weights_optimiser(net, recipe), torch.optim.SGD(gate.parameters(), 0.1, 0.9)]
    gate.matrix.grad = torch.full((3, 4), 100.0) if path == "standard" else None  # whatever was left there
    before = {**net.state_dict(), "gate": gate.matrix.detach()}
    before = {name: t.clone() for name, t in before.items()}
    Loop(recipe, m, net, gate, optimisers, images).start(0 if path == "standard" else 1, tqdm(disable=True))
    return before, {**net.state_dict(), "gate": gate.matrix.detach()}


def test_a_standard_epoch_leaves_the_gate_alone():
    before, after = one_epoch("standard")
    assert torch.equal(before["gate"], after["gate"])
    assert not torch.equal(before["head.weight"], after["head.weight"])


def test_a_gated_epoch_moves_gate_and_weights_and_ends_in_the_constraint_set():
    before, after = one_epoch("gated")
    assert not torch.equal(before["gate"], after["gate"])
    assert not torch.equal(before["features.0.weight"], after["features.0.weight"])
    assert (after["gate"].amax(0) == 1).all() and after["gate"].min() >= 0


def test_every_option_of_a_method_is_a_field_of_the_recipe():
    fields = {f.name for f in dataclasses.fields(Recipe)}
    assert all(set(m.options) <= fields for m in methods.METHODS.values())


# PICNN


def picnn(monkeypatch, z: list[int], m: torch.Tensor, **fields):
    """A small network, its matrix, images and labels, with the draws of one step laid down."""
    net = small_net()
    recipe = Recipe(method="picnn", **fields)
    with pytest.warns(UserWarning, match="few for 3 classes"):
        gate = methods.method(recipe).gate(recipe, net)
    monkeypatch.setattr("csglib.methods.picnn.draw", lambda s: torch.tensor(z))
    monkeypatch.setattr(torch, "bernoulli", lambda q: m.to(q))
    images, labels = torch.rand(5, 3, 2, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 1])
    return net, gate, images, labels, methods.method(recipe), recipe


def test_the_loss_of_picnn_equals_its_slow_twin(monkeypatch):
    z, m = [0, 2, 2, 1, 0], (torch.rand(5, 4) < 0.5).double()
    net, gate, images, labels, method, recipe = picnn(monkeypatch, z, m, picnn_weight=1.5)
    loss, logits = method.loss(recipe, 0, net, gate, images, labels)
    expected = twin_loss(net, [[1.0] * 4] * 3, images, labels.tolist(), 12, 1)
    right = [n for n in range(5) if z[n] == labels[n]]
    for n in right:  # twin_loss gates by rows of classes; here every image has its own
        rows = [m[n].tolist()] * 3
        expected += 1.5 / len(right) * twin_loss(net, rows, images[n : n + 1], labels[n : n + 1].tolist(), 12, 1)
    assert loss.item() == pytest.approx(expected, rel=1e-7)
    assert torch.allclose(logits, net(images))


def test_where_no_drawn_class_is_right_the_interpretation_loss_is_zero(monkeypatch):
    net, gate, images, labels, method, recipe = picnn(monkeypatch, [2, 2, 0, 0, 0], torch.ones(5, 4))
    loss, logits = method.loss(recipe, 0, net, gate, images, labels)
    assert loss.item() == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-12)
    loss.backward()
    assert gate.theta.grad is None or (gate.theta.grad == 0).all()


def test_the_gradient_of_picnn_is_the_derivative_of_a_linear_head(monkeypatch):
    """dL/dm_k = a_k sum_c W_ck (p_c - y_c); from there to row z of P, through the softmax to theta, and to the scores."""
    z, m = [0, 2, 2, 1, 0], (torch.rand(5, 4) < 0.5).double()
    net, gate, images, labels, _, _ = picnn(monkeypatch, z, m)
    a = net.pooled(images).detach()
    logits = net.head(a).detach().requires_grad_(True)
    masked, drawn = gate(a, logits)
    nn.functional.cross_entropy(net.head(masked), labels, reduction="sum").backward()

    P, W = gate.matrix.detach().double(), net.head.weight.detach()
    on_P, on_logits = torch.zeros(3, 4).double(), torch.zeros(5, 3).double()
    for n in range(5):
        p = net.head(a[n] * m[n]).softmax(0)
        error = [p[c].item() - (c == labels[n].item()) for c in range(3)]
        on_m = [a[n, k].item() * sum(W[c, k].item() * error[c] for c in range(3)) for k in range(4)]
        s = logits[n].detach().softmax(0)
        on_s = [sum(P[c, k].item() * on_m[k] for k in range(4)) for c in range(3)]
        for c in range(3):
            on_logits[n, c] = s[c] * (on_s[c] - sum(s[d].item() * on_s[d] for d in range(3)))
        for k in range(4):
            on_P[z[n], k] += on_m[k]
    on_theta = P * (on_P - (P * on_P).sum(0))
    assert torch.allclose(gate.theta.grad.double(), on_theta, rtol=1e-4, atol=1e-7)
    assert torch.allclose(logits.grad, on_logits, rtol=1e-4, atol=1e-7)
    assert drawn.tolist() == z


def test_drawn_masks_are_exactly_zero_or_one_and_as_often_one_as_the_matrix_says():
    gate = SampledGate(10, 64)
    gate.theta.data = 3 * torch.randn(10, 64, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(gate.matrix.sum(0), torch.ones(64))
    torch.manual_seed(0)
    logits = torch.full((4000, 10), -30.0)
    logits[:, 7] = 30
    m, z = gate(torch.ones(4000, 64), logits)
    assert (z == 7).all() and set(m.unique().tolist()) == {0.0, 1.0}
    assert torch.allclose(m.mean(0), gate.matrix[7], atol=0.04)  # five standard deviations


def test_under_autocast_masks_are_still_exact_and_their_probability_is_off_by_a_rounding():
    gate = SampledGate(10, 64)
    gate.theta.data = 3 * torch.randn(10, 64, generator=torch.Generator().manual_seed(1))
    logits = torch.full((4000, 10), -30.0)
    logits[:, 7] = 30
    with torch.autocast("cpu", torch.bfloat16):
        m, _ = gate(torch.ones(4000, 64), logits)
    assert set(m.unique().tolist()) == {0.0, 1.0}
    assert torch.allclose(m.float().mean(0), gate.matrix[7], atol=0.04)


def test_a_network_that_diverges_gives_a_loss_that_is_not_a_number_for_the_loop_to_stop_at():
    masked, _ = SampledGate(3, 20)(torch.full((4, 20), math.nan), torch.full((4, 3), math.nan))
    assert masked.isnan().all()


def test_the_classes_drawn_are_torchs_multinomial_to_the_bit():
    """Which itself reads a number on the host in older versions of torch, where no graph could be captured."""
    s = (3 * torch.randn(500, 10)).softmax(1)
    torch.manual_seed(5)
    expected = torch.multinomial(s, 1).squeeze(1), torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(draw(s), expected[0]) and torch.equal(torch.rand(1), expected[1])


def test_the_class_is_drawn_from_the_networks_own_softmax():
    torch.manual_seed(0)
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(4000, 3)
    _, z = SampledGate(3, 20)(torch.ones(4000, 20), logits)
    assert torch.allclose(torch.bincount(z) / 4000, torch.tensor([0.5, 0.3, 0.2]), atol=0.04)


def test_the_random_correspondence_is_one_hot_and_stays():
    recipe = Recipe(method="picnn", correspondence="random")
    net = networks.build("resnet20", 10)
    gate = methods.method(recipe).gate(recipe, net)
    assert set(gate.matrix.unique().tolist()) == {0.0, 1.0} and (gate.matrix.sum(0) == 1).all()
    loss, _ = methods.method(recipe).loss(recipe, 0, net, gate, torch.rand(4, 3, 32, 32), torch.arange(4))
    loss.backward()
    optimiser = methods.method(recipe).optimiser(recipe, gate)
    before = gate.matrix.clone()
    optimiser.step()
    assert torch.equal(gate.matrix, before)


def test_few_filters_for_many_classes_warn_with_the_probability_of_an_empty_cluster():
    recipe = Recipe(method="picnn")
    with pytest.warns(UserWarning, match=r"64 filters are few for 100 classes.* 53%.* at least 500"):
        methods.method(recipe).gate(recipe, networks.build("resnet20", 100))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        methods.method(recipe).gate(recipe, networks.build("resnet20", 10))


# ICNN


def test_the_loss_of_icnn_adds_the_filter_loss_with_a_weight_that_falls_with_the_epoch():
    net = small_net().float()
    recipe = Recipe(method="icnn", template_weight=0.5)
    m, mask = methods.method(recipe), methods.method(recipe).gate(recipe, net)
    images, labels = torch.rand(5, 3, 4, 4), torch.tensor([0, 1, 2, 1, 1])
    m.loss(recipe, 0, net, mask, images, labels)  # gives the filters their classes
    x = net.maps(images).detach()
    extra = filter_loss(x, labels, mask).item()
    for epoch in (0, 3):
        state = {k: v.clone() for k, v in mask.state_dict().items()}
        loss, logits = m.loss(recipe, epoch, net, mask, images, labels)
        mask.load_state_dict(state)
        plain = nn.functional.cross_entropy(net(images), labels).item()
        assert loss.item() == pytest.approx(plain + 0.5 / (epoch + 1) * extra, rel=1e-5)
        assert torch.allclose(logits, net(images), atol=1e-6)
