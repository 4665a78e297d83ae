"""CSG, PICNN and ICNN in a training loop of one's own, and a gate on a network that stays whole."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as tv
import trainings
from torch import nn

import csglib
from csglib import CSG, ICNN, PICNN, ClassGate, Problem, data, networks
from csglib.networks.hooked import Hooked
from csglib.runs.packing import rounded
from csglib.training import train
from csglib.training.loop import learning_rate

RECIPE = replace(trainings.RECIPE, epochs=3, cycle="gs")


def in_ones_own_loop(method, recipe, optimiser) -> None:
    """The lines of the README, with the project's batches and learning rates."""
    images = data.of(recipe).train
    steps = len(images) // recipe.batch_size
    for epoch in range(recipe.epochs):
        method.net.train()
        generator = torch.Generator().manual_seed(1_000_003 * recipe.seed + epoch)
        torch.manual_seed(1_000_003 * recipe.seed + epoch)
        for i, (x, y) in enumerate(data.batches(images, recipe.batch_size, generator)):
            optimiser.param_groups[0]["lr"] = learning_rate(recipe, (epoch + i / steps) / recipe.epochs)
            loss, logits = method(data.to_float(x), y, epoch)
            assert logits.shape == (recipe.batch_size, 10)
            loss.backward()
            optimiser.step()
            method.step()
            optimiser.zero_grad()


def sgd(net: nn.Module, recipe) -> torch.optim.SGD:
    return torch.optim.SGD(net.parameters(), recipe.lr, recipe.momentum, 0, recipe.weight_decay, nesterov=True, fused=True)


@pytest.fixture
def small(tiny, monkeypatch):
    monkeypatch.setitem(networks.NETS, "small", trainings.small)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:16 filters are few")
@pytest.mark.parametrize(
    "method, made",
    [
        ("csg", lambda net: CSG(net, epochs=3, cycle="gs")),
        ("picnn", lambda net: PICNN(net, epochs=3)),
        ("icnn", lambda net: ICNN(net, epochs=3)),
    ],
)
def test_ones_own_loop_ends_with_the_bits_of_the_command(method, made, small, tmp_path):
    recipe = replace(RECIPE, method=method) if method == "csg" else replace(RECIPE, method=method, cycle="sgs")
    run = train(recipe, tmp_path / "run", "cpu")
    torch.manual_seed(recipe.seed)
    net = trainings.small(10)
    mine = made(net)
    net.to(memory_format=torch.channels_last)
    in_ones_own_loop(mine, recipe, sgd(net, recipe))
    for name, value in net.state_dict().items():
        assert torch.equal(rounded(value).float(), run.weights[name].float()), name
    assert torch.equal(mine.gate.matrix, run.readout.gate)


class Whole(nn.Module):
    """A network with a head of two layers, which cannot be cut."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x):
        return self.head(self.conv(x))


def test_a_hook_multiplies_each_channel_by_the_entry_of_its_class():
    torch.manual_seed(0)
    net, gate, x, y = (
        Whole().double(),
        ClassGate(4, 8).double(),
        torch.rand(5, 3, 12, 12).double(),
        torch.tensor([0, 3, 1, 1, 2]),
    )
    gate.matrix.data = torch.rand(4, 8).double()
    with gate.on(net.conv, y):
        hooked = net(x)
    net.train()
    by_hand = net.conv(x)
    for n in range(5):
        for k in range(8):
            by_hand[n, k] = by_hand[n, k] * gate.matrix[y[n], k].item()
    assert torch.allclose(hooked, net.head(by_hand), rtol=1e-12, atol=1e-12)
    assert not torch.equal(net(x), hooked)  # outside of the block the gate is gone


def test_a_hook_and_a_cut_network_train_alike():
    """The two add in another order: the mean of products against the product of the mean."""
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    whole.append(nn.Linear(8, 3))
    cut = csglib.gated(whole, "2", mean=None, std=None)
    ways = [(CSG(cut, epochs=5, cycle="g"), cut), (CSG(whole, layer="2", epochs=5, cycle="g"), whole)]
    before = list(whole.state_dict())
    for csg, net in ways:
        optimiser = torch.optim.SGD(net.parameters(), 0.1, 0.9)
        for epoch in range(5):
            generator = torch.Generator().manual_seed(epoch)
            for _ in range(6):
                x, y = torch.rand(16, 3, 9, 9, generator=generator), torch.randint(3, (16,), generator=generator)
                loss, _ = csg(x, y, epoch)
                loss.backward()
                optimiser.step()
                csg.step()
                optimiser.zero_grad()
    one, two = (csg.gate.matrix for csg, _ in ways)
    assert torch.allclose(one, two, atol=1e-4) and (one.amax(0) == 1).all() and (one < 0.99).any()
    assert torch.allclose(whole[0].weight, next(cut.features.parameters()), atol=1e-4)
    assert list(whole.state_dict()) == before


@pytest.mark.parametrize(
    "make, layer", [(tv.squeezenet1_1, "features"), (tv.mobilenet_v3_small, "features"), (tv.resnet18, "layer3")]
)
def test_any_head_and_any_layer_with_channels_can_be_gated(make, layer):
    network = make(weights=None, num_classes=5)
    csg = CSG(network, layer=layer, epochs=2, cycle="g")
    assert csg.gate.matrix.shape == (5, csg.net.num_filters)
    loss, logits = csg(torch.rand(2, 3, 64, 64), torch.tensor([0, 4]), 0)
    loss.backward()
    csg.step()
    assert logits.shape == (2, 5) and (csg.gate.matrix.amax(0) == 1).all()


def test_the_path_follows_the_cycle_and_the_gate_rests_in_standard_epochs():
    csg = CSG(csglib.gated(Whole(), "conv", 4), epochs=3, cycle="sgs")
    moved = []
    for epoch in range(3):
        before = csg.gate.matrix.clone()
        csg(torch.rand(8, 3, 12, 12), torch.arange(8) % 4, epoch)[0].backward()
        csg.step()
        moved.append((csg.path, not torch.equal(csg.gate.matrix, before)))
    assert moved == [("standard", False), ("gated", True), ("standard", False)]


@pytest.mark.parametrize("C", [3, 20])
def test_the_default_density_follows_the_classes(C):
    net = csglib.gated(Whole(), "conv", C)
    assert CSG(net, epochs=3).recipe.density(C) == max(0.1, 1 / C)


# Bad input, at the first step


def batch(n=8):
    return torch.rand(n, 3, 12, 12), torch.arange(n) % 4


@pytest.fixture
def csg():
    return CSG(csglib.gated(Whole(), "conv", 4), epochs=3)


def test_a_step_that_is_forgotten_is_told_with_the_second_batch(csg):
    csg(*batch(), 0)
    with pytest.raises(Problem, match="step.. was not called after the last batch: call it once a batch"):
        csg(*batch(), 0)
    csg.step()
    csg(*batch(), 0)


def test_a_step_that_is_taken_twice_or_too_early_is_told(csg):
    with pytest.raises(Problem, match="twice, or before a batch"):
        csg.step()
    csg(*batch(), 0)
    csg.step()
    with pytest.raises(Problem, match="twice, or before a batch"):
        csg.step()


def test_without_gradients_no_step_is_owed(csg):
    with torch.no_grad():
        csg(*batch(), 0)
        csg(*batch(), 0)


@pytest.mark.parametrize("epoch", [-1, 3, 100])
def test_an_epoch_out_of_range_is_refused(csg, epoch):
    with pytest.raises(Problem, match=f"epoch {epoch} is out of range: count from 0 to 2"):
        csg(*batch(), epoch)


@pytest.mark.parametrize(
    "images, labels, said",
    [
        (torch.rand(4, 3, 12, 12), torch.tensor([0, 1, 2, 4]), "labels go from 0 to 4, and the network has classes 0 to 3"),
        (torch.rand(4, 3, 12, 12), torch.tensor([0, 1, 2, -1]), "labels go from -1 to 2"),
        (torch.rand(4, 3, 12, 12), torch.rand(4), "as many whole numbers, not torch.float32"),
        (torch.rand(4, 3, 12, 12), torch.arange(3), r"as many whole numbers, not torch.int64 \(3,\)"),
        (torch.rand(4, 3, 12, 12) * 255, torch.arange(4), "normalises images in .0, 1. itself"),
        (torch.randn(4, 3, 12, 12), torch.arange(4), "leave Normalize out of the loader, or cut the network by gated"),
        (torch.zeros(4, 3, 12, 12, dtype=torch.uint8), torch.arange(4), "divide bytes by 255"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_at_the_first_step(csg, unchecked, images, labels, said):
    with pytest.raises(Problem, match=said):
        csg(images, labels, 0)


def test_images_that_the_loader_normalises_are_taken_where_the_network_does_not():
    csg = CSG(csglib.gated(Whole(), "conv", 4, mean=None, std=None), epochs=3)
    loss, _ = csg(torch.randn(4, 3, 12, 12), torch.arange(4), 0)
    assert loss.isfinite()


def test_a_network_that_is_not_cut_is_refused(unchecked):
    with pytest.raises(Problem, match="Whole is not cut yet: give csglib.gated"):
        CSG(Whole(), epochs=3)


@pytest.mark.parametrize("layer, said", [("conv9", "no layer 'conv9': it has conv, "), ("", "no layer ''")])
def test_a_layer_that_is_not_there_is_refused(layer, said):
    with pytest.raises(Problem, match=said):
        CSG(Whole(), layer=layer, epochs=3)


def test_a_layer_that_is_never_reached_is_refused():
    net = Whole()
    net.spare = nn.Conv2d(3, 8, 3)
    with pytest.raises(Problem, match="does not reach 'spare': name a layer that it calls"):
        Hooked(net, "spare")
    with (
        pytest.raises(Problem, match="no forward pass reached the gated layer"),
        ClassGate(4, 8).on(net.spare, torch.arange(4)),
    ):
        net(torch.rand(4, 3, 12, 12))


def test_a_layer_without_channels_is_refused():
    tokens = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 4))
    with pytest.raises(Problem, match=r"the layer gives \(1, 8, 3136\), and a gate needs channels"):
        Hooked(tokens, "1")
    with (
        pytest.raises(Problem, match="the layer gives 8 channels, and the gate has 5"),
        ClassGate(4, 5).on((net := Whole()).conv, torch.arange(4)),
    ):
        net(torch.rand(4, 3, 12, 12))


def test_two_gates_on_one_layer_are_refused_and_both_come_off():
    net, gate, (x, y) = Whole().eval(), ClassGate(4, 8), batch()
    free = net(x)
    with pytest.raises(Problem, match="has a gate on it already"), gate.on(net.conv, y), gate.on(net.conv, y):
        net(x)
    assert torch.equal(net(x), free)
    with gate.on(net.conv, y):
        assert F.mse_loss(net(x), free) > 0
