"""Networks of torchvision fitted to pictures of 32 pixels, in any width: `resnet18-32@layer4`, `resnet18-32x0.25@layer4`.

Made for 224 pixels, they shrink a picture four times before their first stage.  Fitted the usual way, the first convolution is
3x3 with stride 1, and there is no pooling behind it; all else is torchvision's, its first weights too.  VGG has such a first
convolution, and a vision transformer is made for its size: of these nothing changes.  Channels are multiplied by the width, 1
if it is left out, through torchvision's own argument where there is one.  A gate of a vision transformer sits on the tokens of
the patches, put in their positions: maps of K channels, 4 x 4; the class token is left out, and the head is linear on the mean.
"""

import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torchvision import models
from torchvision.models import convnext, efficientnet, regnet, resnet, vgg

from csglib.errors import Problem, check_name
from csglib.networks.cut import gated
from csglib.networks.split import Split

SIZE = 32  # pixels
NAMED = re.compile(r"(?P<family>[a-z0-9_]+)-(?P<size>[0-9]+)(x(?P<width>[0-9]*\.?[0-9]+))?(@(?P<layer>.+))?")


@dataclass(frozen=True)
class Family:
    make: Callable[[float], nn.Module]  # torchvision's network of a width, 1 as torchvision has it
    stages: tuple[str, ...]  # layers after which a gate can sit, the first to the last
    stem: str = ""  # the first convolution, if it has to be fitted
    pool: str = ""  # the pooling behind it, which goes


def whole(channels: float, of: int = 1) -> int:
    """The nearest multiple, at least one of them."""
    return max(of, of * round(channels / of))


class NarrowResNet(resnet.ResNet):
    """A ResNet of basic blocks whose stages are all of another width: torchvision's own argument is for bottlenecks alone."""

    def __init__(self, layers: list[int], width: float):
        self.width = width
        super().__init__(resnet.BasicBlock, layers)
        self.fc = nn.Linear(self.inplanes, self.fc.out_features)

    def _make_layer(self, block, planes: int, *more, **options) -> nn.Sequential:
        if planes == self.inplanes == 64:  # the first stage, which the stem feeds
            self.inplanes = whole(planes * self.width)
            self.conv1, self.bn1 = nn.Conv2d(3, self.inplanes, 7, 2, 3, bias=False), nn.BatchNorm2d(self.inplanes)
        return super()._make_layer(block, whole(planes * self.width), *more, **options)


def resnet18(width: float) -> nn.Module:
    return models.resnet18() if width == 1 else NarrowResNet([2, 2, 2, 2], width)


def vgg11_bn(width: float) -> nn.Module:
    """Its convolutions: the classifier behind them, 120 million weights, gives way to a linear head in any case."""
    channels = [c if c == "M" else whole(c * width) for c in vgg.cfgs["A"]]
    network = nn.Sequential(OrderedDict(features=vgg.make_layers(channels, batch_norm=True)))
    for m in network.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(m.bias)
    return network


def densenet29(width: float) -> nn.Module:
    """DenseNet-BC with three layers per block, growth rate 32 and 64 first channels as DenseNet-121."""
    return models.DenseNet(whole(32 * width), (3, 3, 3, 3), whole(64 * width))


def shufflenet_v2(width: float) -> nn.Module:
    return models.ShuffleNetV2([4, 8, 4], [24, *(whole(c * width, 2) for c in (116, 232, 464)), 1024])


def efficientnet_b0(width: float) -> nn.Module:
    rows = (  # expansion, kernel, stride, channels in and out, layers, as in the paper and in torchvision
        (1, 3, 1, 32, 16, 1),
        (6, 3, 2, 16, 24, 2),
        (6, 5, 2, 24, 40, 2),
        (6, 3, 2, 40, 80, 3),
        (6, 5, 1, 80, 112, 3),
        (6, 5, 2, 112, 192, 4),
        (6, 3, 1, 192, 320, 1),
    )
    return models.EfficientNet([efficientnet.MBConvConfig(*row, width_mult=width) for row in rows], dropout=0.2)


def regnet_y(width: float) -> nn.Module:
    """RegNetY-400MF's rule for the widths, scaled."""
    first, slope = whole(48 * width, 8), 27.89 * width
    rule = regnet.BlockParams.from_init_params(depth=16, w_0=first, w_a=slope, w_m=2.09, group_width=8, se_ratio=0.25)
    return models.RegNet(rule, stem_width=whole(32 * width, 8))


def convnext6(width: float) -> nn.Module:
    """ConvNeXt-Tiny with 1, 1, 3 and 1 blocks in its stages, a third of each.

    Its layer scales start at 1: from ConvNeXt's 1e-6, meant for long training, blocks would do nothing for most of a short one.
    """
    sizes = [whole(c * width) for c in (96, 192, 384, 768)]
    stages = zip(sizes, [*sizes[1:], None], (1, 1, 3, 1), strict=True)
    return models.ConvNeXt([convnext.CNBlockConfig(*stage) for stage in stages], 0.1, layer_scale=1.0)


def vit_tiny(width: float) -> nn.Module:
    """ViT-Tiny, twelve layers of 192 channels with three heads, on patches of 8 pixels: a quarter as many as of 4."""
    K = whole(192 * width, 3)
    return models.VisionTransformer(SIZE, 8, num_layers=12, num_heads=3, hidden_dim=K, mlp_dim=4 * K)


FAMILIES = {
    "resnet18": Family(resnet18, ("layer1", "layer2", "layer3", "layer4"), "conv1", "maxpool"),
    "vgg11_bn": Family(vgg11_bn, ("features.6", "features.13", "features.20", "features.27")),  # each before its pooling
    "densenet29": Family(
        densenet29,
        ("features.denseblock1", "features.denseblock2", "features.denseblock3", "relu"),
        "features.conv0",
        "features.pool0",
    ),
    "mobilenet_v2": Family(
        lambda width: models.MobileNetV2(width_mult=width),
        ("features.3", "features.6", "features.13", "features"),
        "features.0.0",
    ),
    "shufflenet_v2": Family(shufflenet_v2, ("stage2", "stage3", "stage4", "conv5"), "conv1.0", "maxpool"),
    "efficientnet_b0": Family(efficientnet_b0, ("features.2", "features.3", "features.5", "features"), "features.0.0"),
    "regnet_y": Family(
        regnet_y, ("trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output"), "stem.0"
    ),
    "convnext6": Family(convnext6, ("features.1", "features.3", "features.5", "features"), "features.0.0"),
    "vit_tiny": Family(
        vit_tiny,
        (*(f"encoder.layers.encoder_layer_{i}" for i in (2, 5, 8)), "encoder"),
    ),
}


def fitted(name: str, num_classes: int) -> Split:
    """The network of a name such as `resnet18-32x0.25@layer4`, with random weights and a new head.

    Raises Problem for a name without such a network, size, width or layer, and a layer without spatial extent.
    """
    found = NAMED.fullmatch(name)
    if not found:
        raise Problem(f"{name!r} names no fitted network: give NETWORK-32@LAYER or NETWORK-32xWIDTH@LAYER, {example()}")
    family, layer, width = found["family"], found["layer"], float(found["width"] or 1)
    check_name("network that is fitted", family, FAMILIES)
    stages = ", ".join(FAMILIES[family].stages)
    if found["size"] != str(SIZE):
        raise Problem(f"{name!r} asks for {found['size']} pixels, and networks are fitted to 32: give {family}-32")
    if not layer:
        raise Problem(f"{name!r} does not say where the gate sits: give {name}@LAYER, such as {stages}")
    if not 0.05 <= width <= 4:
        raise Problem(f"{name!r} is {width:g} times as wide as {family}: give a width from 0.05 to 4, {example()}")
    net = gated(fit(FAMILIES[family], width), layer, num_classes)
    with torch.no_grad():
        height, across = net.eval().maps(torch.zeros(1, 3, SIZE, SIZE)).shape[2:]
    if height * across == 1:
        raise Problem(
            f"layer {layer!r} of {family} has no spatial extent, one position of 32 pixels: put the gate earlier, at {stages}"
        )
    return net.train()


def fit(family: Family, width: float) -> nn.Module:
    """The network with its first convolution and pooling as pictures of 32 pixels need them."""
    network = family.make(width)
    network.image_size = SIZE  # at which `gated` tries it
    if family.stem:
        conv = network.get_submodule(family.stem)
        if conv.kernel_size == (3, 3):
            conv.stride = (1, 1)
        else:
            new = nn.Conv2d(3, conv.out_channels, 3, padding=1, bias=conv.bias is not None)
            nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")  # a normalisation follows
            if new.bias is not None:
                nn.init.zeros_(new.bias)
            network.set_submodule(family.stem, new)
    if family.pool:
        network.set_submodule(family.pool, nn.Identity())
    return network


def example() -> str:
    return f"such as resnet18-32x0.25@layer4, of {', '.join(FAMILIES)}"
