"""What the files of a run, and of what tools measured, must look like to be believed: sizes, JSON schemas, shapes."""

from pathlib import Path

import torch
from torch import Tensor

from csglib.errors import Damaged
from csglib.files import KIB, MIB
from csglib.methods import PATHS
from csglib.readout import SHAPES

LIMITS = {  # bytes, so that none takes 2 GB when it is opened; a ResNet-20 on CIFAR-10 has 0.5 MiB of weights, 1.3 of readout
    "recipe.json": 64 * KIB,
    "history.jsonl": MIB,
    "model.safetensors": 480 * MIB,
    "readout.safetensors": 256 * MIB,
    "sample.safetensors": 16 * MIB,
    "metrics.json": 64 * KIB,
    "provenance.json": 64 * KIB,
}
HEAVY = ("model.safetensors", "readout.safetensors")  # what a run may be published without
SAMPLE = "sample.safetensors"  # the readout of some images, which then may stay

# These strings reach pages and shells: nothing that opens a tag, a code span, a link or a command.
PLAIN = {"type": ["string", "null"], "pattern": r"^[\w .,:;()@/+-]*\Z", "maxLength": 200}
COMMIT = {"type": ["string", "null"], "pattern": r"^([0-9a-f]{40}|[0-9a-f]{64})\Z"}
SHA256 = {"type": "string", "pattern": r"^[0-9a-f]{64}\Z"}
COUNT = {"type": "number", "minimum": 0}
SHARE = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
WHOLE = {"type": "integer", "minimum": 1}
DIRTY = {"type": ["boolean", "null"]}


def record(properties: dict, optional: tuple[str, ...] = (), rest: dict | bool = True) -> dict:
    """The schema of an object with these properties; `rest` is what others may be."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": rest}


HARDWARE = record({"processor": PLAIN, "threads": WHOLE, "gpu": PLAIN}, rest=PLAIN)
VERSIONS = {"type": "object", "additionalProperties": PLAIN}
PROVENANCE = record(
    {
        "key": {"type": "string", "pattern": r"^[0-9a-f]{12}\Z"},
        "seed": {"type": "integer"},
        "data_digest": SHA256,
        "device": PLAIN,
        "finished": PLAIN,
        "train_seconds": COUNT,
        "images_per_second": COUNT,
        "commit": COMMIT,
        "dirty": DIRTY,
        "versions": VERSIONS,
        "hardware": HARDWARE,
        "precision_reason": PLAIN,
        "side_by_side": WHOLE,
        "format": {"type": "integer"},
        "left_out": {"type": "array", "items": {"enum": list(HEAVY)}, "minItems": 1, "uniqueItems": True},
        "test_images": WHOLE,  # where the readout that would tell is left out
        "released": record({"file": {"type": "string", "pattern": r"^[\w.-]+\.zip\Z"}, "bytes": WHOLE, "sha256": SHA256}),
        "sha256": record(dict.fromkeys([name for name in LIMITS if name != "provenance.json"], SHA256), optional=(SAMPLE,)),
    },
    optional=("side_by_side", "left_out", "test_images", "released"),
    rest=PLAIN,
)
BALANCED = ("mis_balanced", "mis_balanced_null")  # with more than ten classes
METRICS = record(
    {name: SHARE for name in ("accuracy", "l1_density", "sharpness", "acc1", "acc2", "acc3", "removed", "null_normalised")}
    | dict.fromkeys(("mis", "mis_null", "mis_normalised"), COUNT)  # of old runs the last may exceed 1
    | dict.fromkeys(BALANCED, COUNT),
    optional=("sharpness", "null_normalised", "removed", *BALANCED),
    rest={"type": ["number", "null"]},
)
ROW = record(
    {
        "epoch": {"type": "integer", "minimum": 0},
        "path": {"enum": [*PATHS]},
        "seconds": COUNT,
        "commit": COMMIT,
    },
    optional=("commit",),
    rest={"type": ["number", "null"]},
)
REPORT = record(  # of a training that diverged; what is not finite stands there in words
    {"stopped_by": {"type": "array", "items": PLAIN, "minItems": 1}}
    | {
        "history": {
            "type": "array",
            "minItems": 1,
            "items": record({"epoch": COUNT}, rest={"type": ["number", "null", "string"]}),
        }
    }
)

STORED = {"features": torch.uint16, "labels": torch.int16}  # all else is float32; so may features be, without low and span
READOUT = {name: (STORED.get(name, torch.float32), shape) for name, shape in SHAPES.items()}
READOUT |= dict.fromkeys(("low", "span"), (torch.float32, SHAPES["features"][1:]))  # of features in 16 bits, a filter each


def check_readout(stored: dict[str, Tensor], source: Path, remedy: str) -> dict[str, Tensor]:
    """The tensors of a readout, if they are all there, of one set of sizes, finite, and the labels are classes."""
    sizes: dict[str, int] = {}
    expected, optional = dict(READOUT), ["gate", "gates"]
    if "features" in stored and stored["features"].dtype == torch.float32 and not {"low", "span"} & set(stored):
        expected |= {"features": (torch.float32, SHAPES["features"])}
        optional += ["low", "span"]
    for name, (dtype, letters) in expected.items():
        if name not in stored:
            if name in optional:
                continue
            raise Damaged(f"{source} has no {name}: {remedy}")
        t = stored[name]
        if t.dtype != dtype or t.ndim != len(letters) or t.numel() == 0:
            raise Damaged(f"{source}: {name} should be {dtype} of shape {letters}, not {t.dtype} {tuple(t.shape)}: {remedy}")
        for letter, n in zip(letters, t.shape, strict=True):
            if sizes.setdefault(letter, n) != n:
                raise Damaged(f"{source}: {name} has {letter} = {n} where other tensors have {sizes[letter]}: {remedy}")
        if t.is_floating_point() and not t.isfinite().all():
            raise Damaged(f"{source}: {name} holds what is no number: {remedy}")
    if extra := sorted(set(stored) - set(READOUT)):
        raise Damaged(f"{source} has an unknown tensor {extra[0]!r}: {remedy}")
    if not 0 <= int(stored["labels"].min()) <= int(stored["labels"].max()) < sizes["C"]:
        raise Damaged(f"{source} has labels outside of its {sizes['C']} classes: {remedy}")
    return stored
