import pytest
import torch

from csglib import Problem, data, networks
from csglib.analysis import metrics
from csglib.networks import resnet, split
from csglib.runs import inference


def test_resnet20_has_the_published_number_of_parameters():
    assert sum(p.numel() for p in networks.build("resnet20", 10).parameters()) == 269_722
    assert sum(p.numel() for p in networks.build("resnet8", 10).parameters()) == 75_290


def test_maps_pooled_features_and_logits_have_the_declared_shapes():
    net, x = networks.build("resnet20", 7).eval(), torch.rand(2, 3, 32, 32)
    assert net.maps(x).shape == (2, 64, 8, 8)
    assert net.pooled(x).shape == (2, 64)
    assert net(x).shape == (2, 7)
    assert (net.num_filters, net.num_classes) == (64, 7)


def test_the_logits_are_the_linear_head_on_the_spatial_mean_of_the_maps():
    net, x = networks.build("resnet20", 10).eval(), torch.rand(2, 3, 32, 32)
    maps = net.maps(x)
    mean = sum(maps[:, :, i, j] for i in range(8) for j in range(8)) / 64
    assert torch.allclose(net(x), mean @ net.head.weight.T + net.head.bias, atol=1e-5)


def test_the_features_end_in_a_relu():
    assert networks.build("resnet20", 10).eval().maps(torch.rand(2, 3, 32, 32)).min() == 0


def test_the_shortcut_has_no_parameters_subsamples_and_pads_zeros():
    block = resnet.BasicBlock(2, 6, stride=2).eval()
    torch.nn.init.zeros_(block.conv2.weight)  # leaves the shortcut alone
    x = torch.rand(1, 2, 4, 4)
    y = block(x)
    assert {name.split(".")[0] for name, _ in block.named_parameters()} == {"conv1", "bn1", "conv2", "bn2"}
    assert torch.equal(y[:, 2:4], x[:, :, ::2, ::2])
    assert (y[:, [0, 1, 4, 5]] == 0).all()


def test_the_gradient_of_a_shortcut_keeps_channels_last():
    """That of a strided slice does not, and every operation behind it is then slow."""
    block = resnet.BasicBlock(16, 32, stride=2).to(memory_format=torch.channels_last)
    layouts = []
    x = torch.rand(2, 16, 8, 8).to(memory_format=torch.channels_last).requires_grad_() * 1
    x.register_hook(lambda grad: layouts.append(grad.is_contiguous(memory_format=torch.channels_last)))
    block(x).sum().backward()
    assert layouts == [True]


def test_normalisation_is_the_networks_first_step():
    net = networks.build("resnet20", 10).eval()
    x = torch.rand(2, 3, 32, 32)
    normal = torch.stack(
        [(x[:, c] - m) / s for c, (m, s) in enumerate(zip(split.CIFAR10_MEAN, split.CIFAR10_STD, strict=True))], 1
    )
    assert torch.allclose(net.maps(x), net.features(normal), atol=1e-5)


def test_the_normalisation_is_that_of_the_training_images(cifar10):
    value = torch.arange(256, dtype=torch.float64) / 255
    for c in range(3):
        share = cifar10.train.images[:, c].flatten().bincount(minlength=256).double() / (50_000 * 32 * 32)
        mean = (share * value).sum().item()
        std = (share * (value - mean) ** 2).sum().sqrt().item()
        assert split.CIFAR10_MEAN[c] == pytest.approx(mean, abs=1e-4)
        assert split.CIFAR10_STD[c] == pytest.approx(std, abs=1e-4)


def test_the_same_seed_gives_the_same_first_weights():
    nets_of = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        nets_of.append(networks.build("resnet20", 10).state_dict())
    first, again, other = nets_of
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["features.0.weight"], other["features.0.weight"])


def test_an_unknown_net_is_refused_with_the_choice():
    with pytest.raises(Problem, match="'resnet21'.*resnet20"):
        networks.build("resnet21", 10)


@pytest.mark.parametrize(
    "name, said",
    [
        ("resnet18", "'resnet18'.*resnet20, .*or a network of torchvision cut after a layer: resnet18@LAYER"),
        ("vit_b_16", "vit_b_16@LAYER"),
        ("resnet56", "NAME@LAYER, such as resnet18@layer4"),
        ("", "NAME@LAYER, such as resnet18@layer4"),
    ],
)
def test_a_network_of_torchvision_without_its_layer_is_refused_with_the_way_to_name_one(name, said):
    for weights in ("fresh", "imagenet"):
        with pytest.raises(Problem, match=said):
            networks.build(name, 10, weights)


@pytest.fixture(scope="module")
def third_party(third_party_file) -> networks.Split:
    return resnet.resnet20_of_akamaster(third_party_file).to(memory_format=torch.channels_last).eval()


def our_name(theirs: str) -> str:
    first, *rest = theirs.removeprefix("module.").split(".")
    if first.startswith("layer"):
        return ".".join(["features", str(3 * int(first[-1]) + int(rest[0])), *rest[1:]])
    return ".".join([{"conv1": "features.0", "bn1": "features.1", "linear": "head"}[first], *rest])


def test_each_third_party_tensor_stands_at_its_place(third_party, third_party_file):
    theirs = torch.load(third_party_file, map_location="cpu", weights_only=True)["state_dict"]
    ours = third_party.state_dict()
    for name, tensor in theirs.items():
        assert torch.equal(ours.pop(our_name(name)), tensor), name
    assert ours.pop("mean").flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert ours.pop("std").flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])
    assert all(name.endswith("num_batches_tracked") for name in ours)


@pytest.fixture(scope="module")
def third_party_metrics(third_party, cifar10) -> dict:
    return metrics.evaluate(inference.read_out(third_party, None, cifar10.test))


@pytest.mark.slow
def test_the_third_party_network_scores_what_its_source_says(third_party_metrics):
    assert third_party_metrics["accuracy"] == 0.9173


def test_the_third_party_network_has_its_known_mutual_information_score(third_party_metrics):
    assert third_party_metrics["mis"] == pytest.approx(0.1233, abs=2e-4)
    assert 0 < third_party_metrics["mis_null"] < 0.006


def test_a_readout_holds_what_a_plain_forward_pass_gives(third_party, mini):
    some = data.Images(mini.test.images[::20], mini.test.labels[::20])
    readout = inference.read_out(third_party, None, some)
    with torch.no_grad():
        assert torch.allclose(readout.logits, third_party(some.images.float() / 255), atol=1e-4)
        assert torch.allclose(readout.features, third_party.pooled(some.images.float() / 255), atol=1e-5)
    assert torch.equal(readout.labels, some.labels)


@pytest.mark.slow
@pytest.mark.parametrize("size, largest", [(32, 200), (64, 50), (128, 12), (512, 8)])
def test_a_batch_of_the_readout_has_as_many_pixels_whatever_the_pictures_size(size, largest):
    taken = []
    net = networks.build("resnet8", 10)
    net.features.register_forward_hook(lambda _module, given, _out: taken.append(len(given[0])))
    n = largest + 1
    inference.read_out(net, None, data.Images(torch.zeros(n, 3, size, size, dtype=torch.uint8), torch.zeros(n).long()))
    assert taken == [largest, 1]
