"""Any network of torchvision, cut after a layer, under every method."""

import copy
import warnings

import pytest
import torch
import torchvision.models as tv
from torch import nn
from torchvision.models.convnext import CNBlockConfig

import csglib
from csglib import Problem, methods, nets, train
from csglib.data import to_float
from csglib.runs import Recipe

# A network, the layer before its pooling, and whether its own head is linear on that layer's spatial mean.
FAMILIES = {
    "resnet": (lambda: tv.resnet18(), "layer4", True),
    "vgg": (lambda: tv.vgg11_bn(num_classes=5, init_weights=False), "features", False),
    "densenet": (lambda: tv.DenseNet(8, (2, 2, 2, 2), 16), "relu", True),
    "mobilenet": (lambda: tv.mobilenet_v2(), "features", True),
    "efficientnet": (lambda: tv.efficientnet_b0(), "features", True),
    "regnet": (lambda: tv.regnet_y_400mf(), "trunk_output", True),
    "convnext": (
        lambda: tv.ConvNeXt([CNBlockConfig(24, 48, 1), CNBlockConfig(48, 96, 1), CNBlockConfig(96, None, 1)]),
        "features",
        False,
    ),
    "shufflenet": (lambda: tv.shufflenet_v2_x0_5(), "conv5", True),
    "googlenet": (lambda: tv.googlenet(init_weights=False), "inception5b", True),
    "vit": (lambda: tv.VisionTransformer(32, 8, 2, 2, 64, 128), "encoder", False),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's about fresh weights
        make, layer, linear = FAMILIES[request.param]
        network = make()
        return network, layer, linear, csglib.gated(network, layer, num_classes=10)


def test_every_method_trains_every_family(family, mini):
    """Three steps on the embedded sample: head and gate move, what comes out is finite, evaluation draws nothing."""
    network, _, _, cut = family
    x, y = to_float(mini.train.images[:8]), mini.train.labels[:8]
    if not isinstance(network, tv.VisionTransformer):
        x = nn.functional.interpolate(x, size=64)  # so that the last maps have places
    for name in ("standard", "csg", "joint", "picnn", "icnn", "fixed"):
        decay = {"theta_decay": 0.0} if name == "picnn" else {}  # only the loss shall move anything
        recipe = Recipe(method=name, lr=0.01, weight_decay=0.0, **decay)
        m = methods.method(recipe)
        torch.manual_seed(0)
        net = copy.deepcopy(cut).train()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a layer of few filters
            gate = m.gate(recipe, net)
        optimisers = train.optimisers_of(recipe, m, net, gate)
        before = None if gate is None else gate.matrix.detach().clone()
        head, pulled = net.head.weight.detach().clone(), False
        for epoch in (0, 1, 1):  # for the alternating methods one standard step and two gated ones
            loss, logits = m.loss(recipe, epoch, net, gate, x, y)
            loss.backward()
            learned = [p for p in gate.parameters() if p.requires_grad] if gate is not None and m.optimiser else []
            pulled |= any(p.grad is not None and p.grad.abs().max() > 0 for p in learned)
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad()
            if m.after_step and epoch:
                m.after_step(recipe, gate)
            assert loss.isfinite() and logits.shape == (8, 10)
        assert not torch.equal(net.head.weight, head)
        if name in ("csg", "joint", "picnn", "icnn"):
            assert not torch.equal(gate.matrix, before)
        assert pulled == (name in ("csg", "joint", "picnn"))
        net.eval()
        with torch.no_grad():
            assert torch.equal(net(x), net(x))
            assert net.maps(x).shape[1] == net.num_filters


def test_the_networks_own_head_is_kept_where_it_is_linear_and_refused_where_it_is_not(family):
    network, layer, linear, _ = family
    if not linear:
        with pytest.raises(Problem, match="not linear on the spatial mean.*give num_classes"):
            csglib.gated(network, layer)
        return
    net = csglib.gated(network, layer, mean=(0, 0, 0), std=(1, 1, 1)).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(net(images), network.eval()(images), rtol=1e-3, atol=1e-4)


def test_the_network_that_was_given_stays_as_it_is():
    network = tv.resnet18().train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    net = csglib.gated(network, "layer4", 10)
    net(torch.rand(2, 3, 64, 64)).sum().backward()
    assert network.training and all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_batch_normalisation_and_dropout_follow_train_and_eval():
    net = csglib.gated(tv.mobilenet_v2(), "features", 10)
    images = torch.rand(4, 3, 64, 64)
    mean = "features.0.features.0.1.running_mean"
    before = net.state_dict()[mean].clone()
    net.eval()(images)
    assert torch.equal(before, net.state_dict()[mean])
    net.train()(images)
    assert not torch.equal(before, net.state_dict()[mean])


def test_a_layer_that_the_network_lacks_is_refused_with_those_it_has():
    with pytest.raises(Problem, match="no layer 'layer5': it has .*layer4.1.*fc"):
        csglib.gated(tv.resnet18(), "layer5")


def test_a_layer_that_gives_no_maps_is_refused():
    with pytest.raises(Problem, match=r"'flatten' gives \(1, 512\), not maps"):
        csglib.gated(tv.resnet18(), "flatten", 10)


def test_a_layer_in_the_middle_needs_a_new_head():
    with pytest.raises(Problem, match="'layer2'.*give num_classes"):
        csglib.gated(tv.resnet18(), "layer2")
    assert csglib.gated(tv.resnet18(), "layer2", 10).num_filters == 128


def test_icnn_refuses_maps_without_extent():
    recipe = Recipe(method="icnn")
    net = csglib.gated(tv.resnet18(), "layer4", 10)
    mask = methods.method(recipe).gate(recipe, net)
    with pytest.raises(Problem, match="1 x 1: choose an earlier layer"):
        methods.method(recipe).loss(recipe, 0, net, mask, torch.rand(2, 3, 32, 32), torch.tensor([0, 1]))


def test_the_patches_of_a_vision_transformer_are_its_places():
    network = tv.VisionTransformer(32, 8, 1, 2, 64, 128).eval()
    net = csglib.gated(network, "encoder", 10).eval()
    assert net.maps(torch.rand(2, 3, 32, 32)).shape == (2, 64, 4, 4)


def test_a_recipe_names_a_network_of_torchvision_and_its_layer(tiny, tmp_path):
    recipe = Recipe(
        dataset="tiny", net="shufflenet_v2_x0_5@stage4", method="csg", cycle="g", epochs=2, batch_size=64, precision="float32"
    )
    found = train.train(recipe, tmp_path / "out", "cpu")
    assert found.readout.features.shape == (100, 192)
    assert torch.allclose(train.read_images(found).features, found.readout.features, atol=1e-3)


@pytest.mark.parametrize(
    "name, words", [("resnet19@layer4", "unknown network of torchvision 'resnet19'"), ("resnet18@l", "no layer 'l'")]
)
def test_an_unknown_network_or_layer_in_a_recipe_is_refused(name, words):
    with pytest.raises(Problem, match=words):
        nets.build(name, 10)


# Weights learned on ImageNet, and frozen layers


def test_only_thawed_layers_and_the_head_learn_and_frozen_ones_keep_their_statistics():
    net = nets.build("resnet18@layer4", 6)
    prefix = "0.layer4"
    nets.freeze(net, prefix)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    optimiser = train.weights_optimiser(net, Recipe())
    net.train()
    nn.functional.cross_entropy(net(torch.rand(4, 3, 64, 64)), torch.arange(4)).backward()
    optimiser.step()
    moved = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert moved and all(k.startswith(("features." + prefix, "head")) for k in moved)
    assert {"head.weight", f"features.{prefix}.0.conv1.weight", f"features.{prefix}.0.bn1.running_mean"} <= moved


def test_csg_and_standard_training_move_the_same_layers(tiny, tmp_path):
    """The released code counts the gate as a layer and so trains one layer more without it."""
    moved = {}
    for method in ("standard", "csg"):
        recipe = Recipe(
            dataset="tiny", net="shufflenet_v2_x0_5@conv5", method=method, thaw="0.stage4.3,0.conv5",
            epochs=3, batch_size=160, lr=0.01, precision="float32",
        )  # fmt: skip
        found = train.train(recipe, tmp_path / method, "cpu")
        torch.manual_seed(0)
        start = nets.build(recipe.net, 10).state_dict()
        moved[method] = {k for k, v in found.weights.items() if not torch.equal(v, start[k].half().to(v))}
    assert moved["standard"] == moved["csg"]
    assert all(k.startswith(("features.0.stage4.3", "features.0.conv5", "head")) for k in moved["csg"])
    assert "features.0.stage4.3.branch2.0.weight" in moved["csg"]


def test_a_layer_to_thaw_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(Problem, match="begins with 'layer9': the network has .*0.layer4"):
        nets.freeze(nets.build("resnet18@layer4", 6), "0.layer4,layer9")


def test_weights_that_do_not_exist_are_refused():
    with pytest.raises(Problem, match="no ImageNet weights for resnet20: choose efficientnet_lite0"):
        nets.build("resnet20", 6, "imagenet")
