"""Any network of torchvision, cut after a layer, under every method."""

import copy
import io
import os
import pickle
import warnings
from pathlib import Path

import pytest
import torch
import torchvision.models as tv
from torch import nn
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.resnet import BasicBlock
from torchvision.models.vgg import make_layers

import csglib
from csglib import Problem, methods, networks
from csglib.data import DATASETS
from csglib.data.images import Dataset, Images, to_float
from csglib.recipe import Recipe
from csglib.runs import inference
from csglib.training import prepare, trainer

# A network, the layer before its pooling, and whether its own head is linear on that layer's spatial mean.
FAMILIES = {
    "resnet": (lambda: tv.ResNet(BasicBlock, [1, 1, 1, 1]), "layer4", True),
    "vgg": (lambda: tv.VGG(make_layers([32, "M", 64, "M", 128, "M", 128, "M"], True), 5, False), "features", False),
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


@pytest.mark.slow
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
        optimisers = prepare.optimisers_of(recipe, m, net, gate)
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_layer_that_gives_no_maps_is_refused():
    with pytest.raises(Problem, match=r"'flatten' gives \(1, 512\), not maps"):
        csglib.gated(tv.resnet18(), "flatten", 10)


@pytest.mark.slow
def test_a_layer_in_the_middle_needs_a_new_head():
    with pytest.raises(Problem, match="'layer2'.*give num_classes"):
        csglib.gated(tv.resnet18(), "layer2")
    assert csglib.gated(tv.resnet18(), "layer2", 10).num_filters == 128


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_recipe_names_a_network_of_torchvision_and_its_layer(tiny, tmp_path):
    recipe = Recipe(
        dataset="tiny", net="shufflenet_v2_x0_5@stage4", method="csg", cycle="g", epochs=2, batch_size=64, precision="float32"
    )
    found = trainer.train(recipe, tmp_path / "out", "cpu")
    assert found.readout.features.shape == (100, 192)
    assert torch.allclose(inference.read_images(found).features, found.readout.features, atol=1e-3)


@pytest.mark.parametrize(
    "name, words", [("resnet19@layer4", "unknown network of torchvision 'resnet19'"), ("resnet18@l", "no layer 'l'")]
)
def test_an_unknown_network_or_layer_in_a_recipe_is_refused(name, words):
    with pytest.raises(Problem, match=words):
        networks.build(name, 10)


# Which output is meant, and where its channels are


class Tokens(nn.Module):
    """Patches of 32 pixels behind `extra` tokens of classes and registers; each token is its patch's mean, the extra ones 9."""

    def __init__(self, extra: int):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 32, 32)
        self.extra = nn.Parameter(torch.full((1, extra, 16), 9.0))
        self.block = nn.Identity()

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.block(torch.cat((self.extra.expand(x.shape[0], -1, -1), x), 1))


@pytest.mark.parametrize("extra", [0, 1, 2, 5, 15])
def test_the_tokens_of_classes_and_registers_are_left_out_however_many_there_are(extra):
    network = Tokens(extra).eval()
    images = torch.rand(2, 3, 224, 224)
    net = csglib.gated(network, "block", 5, (0, 0, 0), (1, 1, 1))
    assert torch.allclose(net.maps(images), network.patches(images), atol=1e-6)


@pytest.fixture(scope="module")
def swin() -> nn.Module:
    return tv.SwinTransformer([4, 4], 24, [1, 1], [2, 2], [7, 7], num_classes=5).eval()


@pytest.mark.parametrize("layer, linear", [("features", False), ("features.1", False), ("norm", True), ("permute", True)])
def test_channels_that_come_last_are_known_and_turned_round(layer, linear, swin):
    images, K = torch.rand(2, 3, 224, 160), 24 if layer == "features.1" else 48
    x = {"features": lambda x: swin.features(x), "features.1": lambda x: swin.features[:2](x)}.get(
        layer, lambda x: swin.norm(swin.features(x))
    )(images)
    net = csglib.gated(swin, layer, 5, (0, 0, 0), (1, 1, 1)).eval()
    assert net.num_filters == K and torch.allclose(net.maps(images), x.permute(0, 3, 1, 2), atol=1e-5)
    if linear:
        assert torch.allclose(csglib.gated(swin, layer, mean=(0, 0, 0), std=(1, 1, 1)).eval()(images), swin(images), atol=1e-4)


class Odd(nn.Module):
    """A layer `last` whose output is one of several that are no maps."""

    def __init__(self, form: str):
        super().__init__()
        self.conv, self.last, self.form = nn.Conv2d(3, 6, 3, 8), nn.Identity(), form

    def forward(self, x):
        y = self.conv(x)
        return self.last(
            {
                "first": lambda: y.permute(1, 0, 2, 3),
                "windows": lambda: y.reshape(y.shape[0] * 4, 6, -1, 14),
                "attention": lambda: y.flatten(2).transpose(1, 2)[:, None] @ y.flatten(2)[:, None],
                "sequence": lambda: y.flatten(2),
                "pair": lambda: (y, y),
                "deep": lambda: y[:, :, None],
            }[self.form]()
        )


@pytest.mark.parametrize("form", ["first", "windows", "attention", "sequence", "pair", "deep"])
def test_an_output_that_is_no_maps_is_refused_with_what_was_found(form):
    with pytest.raises(Problem, match=r"layer 'last' gives .*: choose"):
        csglib.gated(Odd(form), "last", 5)


@pytest.mark.slow
def test_of_a_module_that_is_called_twice_the_last_call_is_taken_and_named():
    network, images = tv.resnet18().eval(), torch.rand(2, 3, 64, 64)
    with pytest.warns(UserWarning, match="layer4.1.relu is called 2 times: .* the last call, layer4.1.relu_1"):
        net = csglib.gated(network, "layer4.1.relu", 10).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        block = csglib.gated(network, "layer4.1", 10).eval()
        named = csglib.gated(network, "layer4.1.relu_1", 10).eval()
        csglib.gated(network, "relu", 10)
    assert torch.equal(net.maps(images), block.maps(images)) and torch.equal(named.maps(images), block.maps(images))


class Ending(nn.Module):
    """Ends in a 1x1 convolution or a linear layer, with bias or without; where it pools by 8, it takes 32 pixels alone."""

    def __init__(self, end: str):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 4, padding=1), nn.ReLU())
        self.head = nn.Conv2d(8, 5, 1, bias="no bias" not in end) if "conv" in end else nn.Linear(8, 5, bias=False)
        self.end = end

    def forward(self, x):
        x = self.features(x)
        x = nn.functional.avg_pool2d(x, 8) if "pooled" in self.end else x
        if "conv" in self.end:
            x = self.head(x)
            return (x.relu() if "relu" in self.end else x).mean((2, 3))
        return self.head(x.flatten(1) if "pooled" in self.end else x.mean((2, 3)))


@pytest.mark.parametrize("end", ["conv", "conv, no bias", "conv, pooled", "linear", "linear, pooled", "conv, relu"])
def test_a_networks_own_head_may_be_a_convolution_without_bias_and_for_one_size(end):
    network, images = Ending(end).eval(), torch.rand(4, 3, 32, 32)
    if "relu" in end:
        with pytest.raises(Problem, match="not linear on the spatial mean"):
            csglib.gated(network, "features")
        return
    net = csglib.gated(network, "features", mean=(0, 0, 0), std=(1, 1, 1)).eval()
    assert isinstance(net.head, nn.Linear) and torch.allclose(net(images), network(images), atol=1e-5)
    labels = torch.zeros(4, dtype=torch.long)
    assert inference.read_out(net, None, Images((255 * images).byte(), labels)).bias.shape == (5,)


# What is given in a network's place


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else x


def with_channels(n: int) -> nn.Module:
    network = tv.resnet18()
    network.conv1 = nn.Conv2d(n, 64, 7, 2, 3, bias=False)
    return network


WRONG = {
    "a state dict": (lambda: tv.resnet18().state_dict(), "a dictionary of weights: build the network"),
    "a path": (lambda: "resnet18.pth", "a path: build the network"),
    "a path object": (lambda: Path("resnet18.pth"), "a path: build the network"),
    "a function": (lambda: tv.resnet18, "of type function: give a torch.nn.Module"),
    "a class": (lambda: nn.Linear, "of type type: give"),
    "nothing": (lambda: None, "of type NoneType: give"),
    "DataParallel": (lambda: nn.DataParallel(tv.resnet18()), "network.module"),
    "a compiled module": (lambda: torch.compile(tv.resnet18()), "network._orig_mod"),
    "a scripted module": (lambda: torch.jit.script(Ending("linear")), "the Python module that it was made from"),
    "a traced module": (
        lambda: torch.jit.trace(Ending("linear"), torch.rand(1, 3, 32, 32)),
        "the Python module that it was made from",
    ),
    "half precision": (lambda: tv.resnet18().half(), r"torch.float16: give network.float\(\)"),
    "bfloat16": (lambda: tv.resnet18().bfloat16(), r"torch.bfloat16: give network.float\(\)"),
    "double precision": (lambda: tv.resnet18().double(), r"torch.float64: give network.float\(\)"),
    "one channel": (lambda: with_channels(1), "first convolution takes 1 channel; put one of 3"),
    "six channels": (lambda: with_channels(6), "first convolution takes 6 channels; put one of 3"),
    "control flow": (Branching, "cannot be traced by torch.fx .*give the part of it that computes the maps"),
    "what is cut": (lambda: csglib.gated(tv.resnet18(), "layer4"), "cut already"),
    "no weights": (nn.Identity, "with weights, and this one has none yet"),
    "lazy weights": (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), "with weights, and this one has none yet"),
    "the meta device": (lambda: tv.resnet18().to("meta"), "with weights, and this one has none yet"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("num_classes", [None, 5])
def test_what_is_no_network_for_a_gate_is_refused_with_the_remedy(what, num_classes, unchecked):
    make, said = WRONG[what]
    with pytest.raises(Problem, match=said):
        csglib.gated(make(), "layer4", num_classes)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 0, -3])
def test_fewer_than_two_classes_are_refused(count):
    with pytest.raises(Problem, match=f"num_classes is {count}: give 2 or more"):
        csglib.gated(tv.resnet18(), "layer4", count)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, size", [("vit_b_32@encoder", 32), ("inception_v3@Mixed_7c", 32), ("alexnet@features", 16), ("vgg11@features", 16)]
)
def test_pictures_of_a_size_that_the_network_does_not_take_are_refused_before_training(name, size, tmp_path, monkeypatch):
    images = Images(torch.zeros(8, 3, size, size, dtype=torch.uint8), torch.arange(8) % 2)
    few = Dataset("few", ("a", "b"), images, images, "1" * 64)
    monkeypatch.setitem(DATASETS, "few", lambda: few)
    recipe = Recipe(dataset="few", net=name, method="standard", epochs=1, batch_size=4, precision="float32")
    with pytest.raises(Problem, match=rf"{name} does not take pictures of {size} x {size} pixels .*choose another size"):
        trainer.train(recipe, tmp_path / "out", "cpu")
    assert list(tmp_path.iterdir()) == []


# Weights learned on ImageNet, and frozen layers


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Torch's cache, with what is called as torchvision's weights of SqueezeNet are; nothing is downloaded."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("a download"))
    return tmp_path / "checkpoints" / tv.SqueezeNet1_1_Weights.DEFAULT.url.rsplit("/", 1)[1]


def saved(value) -> bytes:
    torch.save(value, file := io.BytesIO())
    return file.getvalue()


DAMAGED = {
    "nothing": b"",
    "text": b"<html>not found</html>",
    "half a file": saved({"a": torch.ones(99)})[:200],
    "other tensors": saved({"a": torch.ones(99)}),
    "another network": saved(Ending("linear").state_dict()),
    "a pickle with code": pickle.dumps(os.getcwd),
}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_file_in_torchs_cache_is_refused_with_its_path(what, named, cache, monkeypatch):
    """Whether its name holds a digest, as torchvision's do, or, as some weights are called, none."""
    if not named:
        cache = cache.with_name("plain.pth")
        monkeypatch.setattr(type(tv.SqueezeNet1_1_Weights.DEFAULT), "url", "https://example.org/plain.pth", raising=False)
    cache.parent.mkdir()
    cache.write_bytes(DAMAGED[what])
    with pytest.raises(Problem, match=rf"{cache}.* downloaded anew") as told:
        networks.build("squeezenet1_1@features", 6, "imagenet")
    assert "weights_only" not in str(told.value)


@pytest.mark.slow
def test_only_thawed_layers_and_the_head_learn_and_frozen_ones_keep_their_statistics():
    net = networks.build("resnet18@layer4", 6)
    prefix = "0.layer4"
    networks.freeze(net, prefix)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    optimiser = prepare.weights_optimiser(net, Recipe())
    net.train()
    nn.functional.cross_entropy(net(torch.rand(4, 3, 64, 64)), torch.arange(4)).backward()
    optimiser.step()
    moved = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert moved and all(k.startswith(("features." + prefix, "head")) for k in moved)
    assert {"head.weight", f"features.{prefix}.0.conv1.weight", f"features.{prefix}.0.bn1.running_mean"} <= moved


@pytest.mark.slow
def test_csg_and_standard_training_move_the_same_layers(tiny, tmp_path):
    """The released code counts the gate as a layer and so trains one layer more without it."""
    moved = {}
    for method in ("standard", "csg"):
        recipe = Recipe(
            dataset="tiny", net="shufflenet_v2_x0_5@conv5", method=method, thaw="0.stage4.3,0.conv5",
            epochs=3, batch_size=160, lr=0.01, precision="float32",
        )  # fmt: skip
        found = trainer.train(recipe, tmp_path / method, "cpu")
        torch.manual_seed(0)
        start = networks.build(recipe.net, 10).state_dict()
        moved[method] = {k for k, v in found.weights.items() if not torch.equal(v, start[k].half().to(v))}
    assert moved["standard"] == moved["csg"]
    assert all(k.startswith(("features.0.stage4.3", "features.0.conv5", "head")) for k in moved["csg"])
    assert "features.0.stage4.3.branch2.0.weight" in moved["csg"]


@pytest.mark.slow
def test_a_layer_to_thaw_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(Problem, match="begins with 'layer9': the network has .*0.layer4"):
        networks.freeze(networks.build("resnet18@layer4", 6), "0.layer4,layer9")


def test_weights_that_do_not_exist_are_refused():
    with pytest.raises(Problem, match="no ImageNet weights for resnet20: choose efficientnet_lite0"):
        networks.build("resnet20", 6, "imagenet")
