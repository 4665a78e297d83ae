"""What analysis needs and images are not: the network's last layers on the test images."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import get_args, get_type_hints

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
    gates: Float[Tensor, "T C K"] | None = None  # the gate after each gated epoch, oldest first; of large ones some

    def __post_init__(self):
        sizes = {
            "N": len(self.labels),
            "C": len(self.bias),
            "K": self.features.shape[-1],
            "T": 0 if self.gates is None else len(self.gates),
        }
        for name, t in self.tensors().items():
            expected = tuple(sizes[letter] for letter in SHAPES[name])
            if tuple(t.shape) != expected:
                raise Problem(f"{name} of a readout has shape {tuple(t.shape)}, where the others need {expected}: correct it")

    @cached_property
    def logits(self) -> Float[Tensor, "N C"]:
        """Of the standard path."""
        return self.features @ self.weight.T + self.bias

    def masked(self, mask: Float[Tensor, "*N K"]) -> Float[Tensor, "N C"]:
        """Logits with each filter's feature multiplied by its mask, of all images or of each."""
        return (self.features * mask) @ self.weight.T + self.bias

    def tensors(self) -> dict[str, Tensor]:
        """Its fields by name, without those that are None."""
        return {f.name: t for f in dataclasses.fields(self) if (t := getattr(self, f.name)) is not None}


def letters(kind: object) -> str:
    """The sizes of an annotated tensor, one letter each: CK for Float[Tensor, "C K"] | None."""
    return (get_args(kind) or (kind,))[0].dim_str.replace(" ", "")


SHAPES = {
    name: letters(kind) for name, kind in get_type_hints(Readout).items()
}  # N images, C classes, K filters, T gated epochs
