"""The ResNets that He et al. (2016) built for CIFAR."""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from csglib import files
from csglib.errors import Problem
from csglib.networks.split import IMAGENET_MEAN, IMAGENET_STD, Split


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut of option A (He et al. 2016): subsample, pad new channels with zeros."""

    def __init__(self, in_planes: int, planes: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride, self.pad = stride, (planes - in_planes) // 2

    def forward(self, x: Float[Tensor, "N in H W"]) -> Float[Tensor, "N out h w"]:
        """Two convolutions and the shortcut."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)  # in place: the same bits, and 4 MB less to write
        y = self.bn2(self.conv2(y))
        if self.pad:
            x = F.avg_pool2d(x, 1, self.stride)  # x[:, :, ::stride, ::stride], with a gradient that stays channels_last
            x = F.pad(x, (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(y.add_(x), inplace=True)


def resnet20(num_classes: int) -> Split:
    """The CIFAR ResNet-20 of He et al. (2016): widths 16, 32, 64, three blocks each; 269,722 parameters for 10 classes."""
    return cifar_resnet(num_classes, 3)


def resnet8(num_classes: int) -> Split:
    """The same with one block each, twice as fast on a processor: for tests and first tries; 75,290 parameters."""
    return cifar_resnet(num_classes, 1)


def cifar_resnet(num_classes: int, blocks: int) -> Split:
    """A CIFAR ResNet of 3 stages of so many blocks, 16, 32 and 64 filters wide, cut before its mean and head."""
    layers = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    in_planes = 16
    for planes, stride in ((16, 1), (32, 2), (64, 2)):
        for i in range(blocks):
            layers.append(BasicBlock(in_planes, planes, stride if i == 0 else 1))
            in_planes = planes
    net = Split(nn.Sequential(*layers), nn.Linear(64, num_classes))
    for m in net.modules():
        if isinstance(m, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(m.weight)
    nn.init.zeros_(net.head.bias)
    return net


def resnet20_of_akamaster(path: Path | str) -> Split:
    """The ResNet-20 trained by Y. Idelbayev (github.com/akamaster/pytorch_resnet_cifar10), 91.73 % on CIFAR-10's test images.

    An outside check of network, data and evaluation.  Its tensors stand in the order of ours under other names, and its
    images are normalised with ImageNet's mean and standard deviation.
    """
    net = resnet20(10)
    ours = [k for k in net.state_dict() if k not in ("mean", "std") and not k.endswith("num_batches_tracked")]
    remedy = "give that repository's resnet20-12fca82f.th"
    files.check_size(Path(path), 16 * files.MIB, remedy)
    try:
        theirs = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
        values = [v for k, v in theirs.items() if not k.endswith("num_batches_tracked")]
        net.load_state_dict(dict(zip(ours, values, strict=True)), strict=False)
    except Exception as error:  # a damaged pickle fails in any way; with weights_only none of them runs its code
        raise Problem(f"{path} holds no weights of that network ({files.short(str(error))}): {remedy}") from None
    net.mean.copy_(torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
    net.std.copy_(torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
    return net
