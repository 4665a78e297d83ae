"""What analysis needs and images are not: the network's last layers on the test images."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float, Int
from torch import Tensor

from csglib.errors import Problem


@dataclass(frozen=True)
class Readout:
    """What analysis needs and images are not: the network's last layers on every test image, in float32, eval mode."""

    features: Float[Tensor, "N K"]  # spatial mean of each filter's map, ungated
    labels: Int[Tensor, " N"]
    weight: Float[Tensor, "C K"]  # of the linear head
    bias: Float[Tensor, " C"]
    gate: Float[Tensor, "C K"] | None = None  # none for methods without
    gates: Float[Tensor, "T C K"] | None = None  # the gate after each gated epoch, oldest first

    def __post_init__(self):
        N, C, K = len(self.labels), len(self.bias), self.features.shape[-1]
        T = 0 if self.gates is None else len(self.gates)
        expected = {"features": (N, K), "labels": (N,), "weight": (C, K), "bias": (C,), "gate": (C, K), "gates": (T, C, K)}
        for name, t in self.tensors().items():
            if tuple(t.shape) != expected[name]:
                raise Problem(
                    f"{name} of a readout has shape {tuple(t.shape)}, where the others need {expected[name]}: correct it"
                )

    @cached_property
    def logits(self) -> Float[Tensor, "N C"]:
        """Of the standard path."""
        return self.features @ self.weight.T + self.bias

    def masked(self, mask: Float[Tensor, "*N K"]) -> Float[Tensor, "N C"]:
        """Logits with each filter's feature multiplied by its mask, of all images or of each."""
        return (self.features * mask) @ self.weight.T + self.bias

    def tensors(self) -> dict[str, Tensor]:
        return {f.name: t for f in dataclasses.fields(self) if (t := getattr(self, f.name)) is not None}
