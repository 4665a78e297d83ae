import dataclasses
import math

import pytest
import torch
from torch import nn
from tqdm import tqdm

from csglib import Problem, data, methods, nets, train
from csglib.gate import ClassGate
from csglib.runs import Recipe


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
        methods.method(recipe).gate(recipe, nets.build("resnet20", 10))


def test_standard_training_is_standard_in_every_epoch():
    assert paths("standard", epochs=7) == "s" * 7


def small_net(K: int = 4, C: int = 3) -> nets.Split:
    torch.manual_seed(0)
    return nets.Split(nn.Sequential(nn.Conv2d(3, K, 1), nn.ReLU()), nn.Linear(K, C)).double()


def twin_loss(net: nets.Split, G, images, labels, bound: float, weight: float) -> float:
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
    loss, logits = methods.method(recipe).loss(recipe, "gated", net, gate, images, labels)
    expected = twin_loss(net, gate.matrix.tolist(), images, labels.tolist(), fraction * 12, 0.3)
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    assert logits.shape == (5, 3)


@pytest.mark.parametrize("name", ["standard", "csg"])
def test_the_loss_of_the_standard_path_is_that_of_a_gate_of_ones_without_penalty(name):
    net, gate = small_net(), ClassGate(3, 4).double()
    images, labels = torch.rand(5, 3, 2, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 1])
    recipe = Recipe(method=name)
    loss, _ = methods.method(recipe).loss(recipe, "standard", net, gate, images, labels)
    assert loss.item() == pytest.approx(twin_loss(net, [[1.0] * 4] * 3, images, labels.tolist(), 12, 1), rel=1e-10)
    loss.backward()
    assert gate.matrix.grad is None


def test_standard_training_has_no_gate_and_csg_starts_it_everywhere_equal():
    net = nets.build("resnet20", 10)
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
    loss, logits = methods.method(recipe).loss(recipe, "joint", net, gate, images, labels)
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
    loss, _ = methods.method(recipe).loss(recipe, "gated", net, gate, images, labels)
    a = net.pooled(images) * gate.matrix.detach()[torch.tensor(rows)]
    assert loss.item() == pytest.approx(nn.functional.cross_entropy(net.head(a), labels).item(), rel=1e-12)
    loss.backward()
    assert gate.matrix.grad is None


def test_the_fixed_gate_gives_each_class_its_share_of_the_filters():
    recipe = Recipe(method="fixed")
    G = methods.method(recipe).gate(recipe, nets.build("resnet20", 10)).matrix
    assert G.sum(0).tolist() == [1.0] * 64 and set(G.sum(1).tolist()) == {6.0, 7.0}


def test_without_the_projection_entries_are_clipped_and_no_filter_is_lifted_to_one():
    gate = ClassGate(2, 3)
    gate.matrix.data = torch.tensor([[0.2, -0.1, 1.5], [0.1, -0.2, 0.3]])
    methods.project(Recipe(gate_projection="clip"), gate)
    assert gate.matrix.tolist() == [pytest.approx([0.2, 0.0, 1.0]), pytest.approx([0.1, 0.0, 0.3])]
    methods.project(Recipe(), gate)
    assert (gate.matrix.amax(0) == 1).all()


def test_an_unknown_method_is_refused_with_the_choice():
    with pytest.raises(Problem, match="'picnnn'.*standard, matched, csg, joint, fixed"):
        methods.method(Recipe(method="picnnn"))


@pytest.mark.parametrize("fraction", [0.05, 0.0999])
def test_a_density_below_1_over_c_is_refused_before_training(fraction):
    recipe = Recipe(gate_density=fraction)
    with pytest.raises(Problem, match=r"0\.1"):
        methods.method(recipe).gate(recipe, nets.build("resnet20", 10))


def test_the_weights_optimiser_holds_the_network_and_nothing_of_the_gate():
    net = nets.build("resnet20", 10)
    held = [p for group in train.weights_optimiser(net, Recipe()).param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in net.parameters()}


def one_epoch(path: str) -> tuple[dict, dict]:
    """State of network and gate before and after one epoch of the path."""
    net = small_net().float()
    recipe = Recipe(batch_size=8, gate_density=0.4)
    m, gate = methods.method(recipe), ClassGate(3, 4)
    images = data.Images(torch.randint(0, 256, (32, 3, 4, 4), dtype=torch.uint8), torch.arange(32) % 3)
    optimisers = [train.weights_optimiser(net, recipe), torch.optim.SGD(gate.parameters(), 0.1, 0.9)]
    gate.matrix.grad = torch.full((3, 4), 100.0) if path == "standard" else None  # whatever was left there
    before = {**net.state_dict(), "gate": gate.matrix.detach()}
    before = {name: t.clone() for name, t in before.items()}
    train.train_epoch(recipe, m, 0, path, net, gate, optimisers, images, tqdm(disable=True))
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
