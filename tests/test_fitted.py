"""Networks of torchvision fitted to 32 pixels: each under every method, each equal to torchvision's own but for the stem."""

import warnings

import pytest
import torch
import torchvision.models as tv
from torch import nn
from torchvision.models.convnext import CNBlockConfig

from csglib import Problem, methods, networks
from csglib.data.images import to_float
from csglib.networks import fitted, split
from csglib.recipe import Recipe
from csglib.training import prepare

NAMES = {  # as the book's grid has them, and the filters that a gate finds
    "resnet18-32x0.25@layer4": 128,
    "vgg11_bn-32x0.5@features.27": 256,
    "densenet29-32x0.25@relu": 47,
    "mobilenet_v2-32x0.25@features": 1280,
    "shufflenet_v2-32x0.25@conv5": 1024,
    "efficientnet_b0-32x0.25@features": 320,
    "regnet_y-32x0.5@trunk_output": 216,
    "convnext6-32x0.25@features": 192,
    "vit_tiny-32x0.5@encoder": 96,
}
OWN = {  # torchvision's own network of the same arguments
    "resnet18": lambda: tv.resnet18(),
    "densenet29": lambda: tv.DenseNet(32, (3, 3, 3, 3), 64),
    "mobilenet_v2": lambda: tv.mobilenet_v2(),
    "shufflenet_v2": lambda: tv.shufflenet_v2_x1_0(),
    "efficientnet_b0": lambda: tv.efficientnet_b0(),
    "regnet_y": lambda: tv.regnet_y_400mf(),
    "convnext6": lambda: tv.ConvNeXt([CNBlockConfig(*s) for s in ((96, 192, 1), (192, 384, 1), (384, 768, 3), (768, None, 1))]),
    "vit_tiny": lambda: tv.VisionTransformer(32, 8, 12, 3, 192, 768),
}


def built(name: str, seed: int = 0) -> split.Split:
    torch.manual_seed(seed)
    return networks.build(name, 10)


@pytest.mark.slow
@pytest.mark.parametrize("name, filters", NAMES.items())
def test_a_fitted_network_gives_maps_with_places_and_the_known_number_of_filters(name, filters):
    net = built(name).eval()
    maps = net.maps(torch.rand(2, 3, 32, 32))
    assert maps.shape[:2] == (2, filters) and net.num_filters == filters and min(maps.shape[2:]) >= 2
    assert torch.allclose(net(torch.zeros(1, 3, 32, 32)), net.head(net.maps(torch.zeros(1, 3, 32, 32)).mean((2, 3))), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_method_trains_a_step_of_every_fitted_network(name, mini):
    x, y = to_float(mini.train.images[:4]), mini.train.labels[:4]
    for method in methods.METHODS:
        recipe = Recipe(net=name, method=method, lr=0.01)
        m, net, gate = prepare.build(recipe, 10) if name[0] != "d" else quiet(recipe)
        epoch = 0 if method == "matched" else 1  # of the alternating methods a gated one
        before = net.head.weight.detach().clone()
        optimisers = prepare.optimisers_of(recipe, m, net.train(), gate)
        loss, logits = m.loss(recipe, epoch, net, gate, x, y)
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
        if m.after_step:
            m.after_step(recipe, gate)
        assert loss.isfinite() and logits.shape == (4, 10) and not torch.equal(net.head.weight, before), method
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.features.parameters()), method
        assert gate is None or gate.matrix.shape == (10, net.num_filters)


def quiet(recipe: Recipe):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 47 filters are few for PICNN, and it says so
        return prepare.build(recipe, 10)


@pytest.mark.parametrize("family", OWN)
def test_at_width_1_and_without_fitting_the_network_is_torchvisions(family):
    own, ours = OWN[family]().eval(), fitted.FAMILIES[family].make(1.0).eval()
    ours.load_state_dict(own.state_dict())
    size = 32 if family == "vit_tiny" else 64
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        if family == "vit_tiny":
            nn.init.normal_(own.heads.head.weight)  # zero at the start, as all logits are then
            ours.load_state_dict(own.state_dict())
        assert own(images).abs().max() > 0
        assert torch.equal(own(images), ours(images))


def test_the_convolutions_of_vgg_are_torchvisions_where_nothing_has_to_be_fitted():
    own, images = tv.vgg.make_layers(tv.vgg.cfgs["A"], batch_norm=True).eval(), torch.rand(2, 3, 32, 32)
    net = built("vgg11_bn-32@features.27").eval()
    net.features[0].load_state_dict({f"features.{name}": t for name, t in own.state_dict().items()}, strict=False)
    normal = (images - net.mean) / net.std
    with torch.no_grad():
        assert torch.allclose(net.maps(images), own[:28](normal), atol=1e-5)


def test_the_places_of_a_vision_transformer_are_its_patches():
    """With attention and neighbours apart, a token tells of its own patch: the one that is changed."""
    net = built("vit_tiny-32x0.5@encoder.layers.encoder_layer_0").eval()
    block = net.features[0].encoder.layers.encoder_layer_0.self_attention
    nn.init.zeros_(block.out_proj.weight)  # nothing passes from one token to another
    images = torch.rand(1, 3, 32, 32)
    changed = images.clone()
    changed[:, :, 8:16, 24:] = 0  # row 1, column 3 of 4 x 4 patches
    with torch.no_grad():
        moved = (net.maps(images) - net.maps(changed)).abs().amax(1)[0]
    assert moved.shape == (4, 4) and moved.nonzero().tolist() == [[1, 3]]


@pytest.mark.parametrize("name", NAMES)
def test_the_stem_has_stride_1_and_no_pooling_follows(name):
    family = fitted.FAMILIES[name.partition("-")[0]]
    network = fitted.fit(family, 0.25)
    stem = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    if not name.startswith("vit"):
        assert stem.kernel_size == (3, 3) and stem.stride == (1, 1) and stem.padding == (1, 1)
    assert not family.pool or isinstance(network.get_submodule(family.pool), nn.Identity)


@pytest.mark.slow
@pytest.mark.parametrize("family", fitted.FAMILIES)
def test_a_gate_can_sit_after_each_stage_and_maps_shrink(family):
    stages = fitted.FAMILIES[family].stages
    sides = [built(f"{family}-32x0.25@{layer}").eval().maps(torch.zeros(1, 3, 32, 32)).shape[2] for layer in stages]
    assert len(stages) == 4 and sides == sorted(sides, reverse=True) and sides[-1] >= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18-32x0.25@layer4", "efficientnet_b0-32x0.25@features", "convnext6-32x0.25@features"])
def test_fresh_weights_follow_from_the_seed(name):
    first, again, other = (built(name, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(
    "name, said",
    [
        ("resnet19-32@layer4", "unknown network that is fitted 'resnet19': choose one of resnet18, vgg11_bn"),
        ("resnet18-64@layer4", "asks for 64 pixels, and networks are fitted to 32: give resnet18-32"),
        ("resnet18-32", "does not say where the gate sits: give resnet18-32@LAYER, such as layer1, layer2, layer3, layer4"),
        ("resnet18-32x9@layer4", "9 times as wide as resnet18: give a width from 0.05 to 4"),
        ("resnet18-32x0@layer4", "0 times as wide"),
        ("resnet18-32y2@layer4", "names no fitted network: give NETWORK-32@LAYER or NETWORK-32xWIDTH@LAYER"),
        ("resnet18-32x0.25@layer5", "no layer 'layer5': it has"),
        ("resnet18-32x0.25@fc", "not maps"),
        ("vgg11_bn-32x0.25@features", "layer 'features' of vgg11_bn has no spatial extent.*features.27"),
        ("resnet18-32x0.25@avgpool", "no spatial extent"),
    ],
)
def test_a_name_without_a_network_is_refused_in_one_sentence(name, said):
    with pytest.raises(Problem, match=said):
        networks.build(name, 10)


def test_there_are_no_imagenet_weights_for_a_fitted_network():
    with pytest.raises(Problem, match="fitted to small pictures: choose weights fresh"):
        networks.build("resnet18-32@layer4", 10, "imagenet")


@pytest.mark.parametrize("name, side", [("vgg11_bn-32x0.25@features.27", 8), ("vit_tiny-32x0.5@encoder", 40)])
def test_pictures_that_a_fitted_network_does_not_take_are_refused_before_training(name, side):
    images = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    with pytest.raises(Problem, match=f"does not take pictures of {side} x {side} pixels"):
        split.check_fits(built(name), name, images)
