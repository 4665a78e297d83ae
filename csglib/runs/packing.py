"""How weights and readouts are stored: in 16 bits where nothing is lost by it."""

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor

from csglib.readout import Readout

GATES = 2**22  # entries of all gates in a readout, 16 MiB: of 10 classes and 64 filters 6,553 gates, of ImageNet's ResNet-18 8


def rounded(tensor: Tensor) -> Tensor:
    """A weight as it is stored: in float16 where each of its rows keeps its value, else in float32.

    A row is what makes one filter: its norm may change by 2^-10 of itself.  So a filter stays in float32 whose weights are so
    small that float16 has few digits for them, or so large that it has none; and vectors, biases and statistics do as they
    are few: a variance may well exceed 65,504, where float16 ends.
    """
    if not tensor.is_floating_point():
        return tensor
    full, half = tensor.float(), tensor.half()
    if tensor.ndim < 2:
        return full
    rows = full.double().flatten(1)
    kept = (half.double().flatten(1) - rows).norm(dim=1) <= rows.norm(dim=1) / 1024
    return half if kept.all() else full


def pack(readout: Readout) -> dict[str, Tensor]:
    """The readout as it is stored: features in 16 bits, as a_k = low_k + span_k (q / 65535)^2, the rest in float32;
    labels as int16, which holds 32,767 classes.

    The k-nearest-neighbour estimator compares neighbours that half precision would make equal: float16 moves the MIS of
    a ResNet-20 (0.1233) by 2e-4 to 5e-3, depending on how ties are broken; this square-root scale by 3e-5.  Where it too would
    make more than half of a filter's values equal, since one lies far off, all features stay in float32.  Of gates that
    are too large to keep one for each gated epoch the first, the last and some between them stay (`kept_gates`).
    """
    if readout.gates is not None:
        T, C, K = readout.gates.shape
        readout = dataclasses.replace(readout, gates=readout.gates[kept_gates(T, C * K)])
    low, high = readout.features.amin(0), readout.features.amax(0)
    span = high - low
    q = ((readout.features - low) / torch.where(span > 0, span, 1)).sqrt().mul(65535).round()
    if span.isfinite().all() and (2 * distinct(q) >= distinct(readout.features).clamp(max=65536)).all():
        stored = readout.tensors() | {"features": q.to(torch.uint16), "low": low, "span": span}
    else:
        stored = readout.tensors()
    return {name: t.contiguous() for name, t in (stored | {"labels": readout.labels.to(torch.int16)}).items()}


def kept_gates(T: int, entries: int) -> list[int]:
    """Which of T gates with so many entries each are stored, at equal distances: all of them up to GATES entries."""
    n = max(2, GATES // entries)
    return list(range(T)) if n >= T else torch.linspace(0, T - 1, n).round().int().tolist()


def distinct(values: Float[Tensor, "N K"]) -> Int[Tensor, " K"]:
    """How many different values each filter has."""
    return 1 + (values.sort(dim=0).values.diff(dim=0) != 0).sum(0)


def unpack(stored: dict[str, Tensor]) -> Readout:
    """The readout of stored tensors, in float32."""
    stored = stored | {"labels": stored["labels"].long()}
    if "low" not in stored:
        return Readout(**stored)
    low, span, packed = stored.pop("low"), stored.pop("span"), stored.pop("features")
    features = torch.empty(packed.shape)
    for i in range(0, len(packed), 4096):  # in float64, which takes four times the room, never all at once
        q = packed[i : i + 4096].to(torch.float64) / 65535
        features[i : i + 4096] = low + span * q * q
    return Readout(features=features, **stored)
