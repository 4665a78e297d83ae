"""Networks by the recipe's names for them: `resnet20` for CIFAR, and any network of torchvision, cut after a layer.

`resnet18@layer4` is torchvision's; `resnet18-32@layer4` the same fitted to pictures of 32 pixels, and
`resnet18-32x0.25@layer4` a quarter as wide.
"""

import hashlib
import os
import re
from pathlib import Path

import torch

from csglib import files
from csglib.errors import Problem, check_name
from csglib.networks.cut import gated
from csglib.networks.lite import efficientnet_lite0, efficientnet_lite0_imagenet
from csglib.networks.resnet import resnet8, resnet20
from csglib.networks.split import Split, check_fits, freeze

__all__ = ["Split", "build", "check_fits", "freeze", "gated"]

NETS = {"resnet20": resnet20, "resnet8": resnet8, "efficientnet_lite0": efficientnet_lite0}
FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch's own switch
IMAGENET = {"efficientnet_lite0": efficientnet_lite0_imagenet}


def build(name: str, num_classes: int, weights: str = "fresh") -> Split:
    """A network by the recipe's name for it, with random weights or, but for its head, those learned on ImageNet.

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
    if "-" in name.partition("@")[0]:  # no network of torchvision has one
        from csglib.networks.fitted import fitted

        if weights != "fresh":
            raise Problem(f"there are no ImageNet weights for {name}, which is fitted to small pictures: choose weights fresh")
        return fitted(name, num_classes)
    import torchvision.models

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
