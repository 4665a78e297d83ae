"""What the files of a run, and of what tools measured, must look like to be believed: sizes, JSON schemas, shapes."""

from pathlib import Path

import torch
from torch import Tensor

from csglib import Problem
from csglib.files import KIB, MIB

LIMITS = {  # bytes, so that none takes 2 GB when it is opened; a ResNet-20 on CIFAR-10 has 0.5 MiB of weights, 1.3 of readout
    "recipe.json": 64 * KIB,
    "history.jsonl": MIB,
    "model.safetensors": 480 * MIB,
    "readout.safetensors": 256 * MIB,
    "metrics.json": 64 * KIB,
    "provenance.json": 64 * KIB,
}

# These strings reach pages and shells: nothing that opens a tag, a code span, a link or a command.
PLAIN = {"type": ["string", "null"], "pattern": r"^[\w .,:;()@/+-]*\Z", "maxLength": 200}
COMMIT = {"type": ["string", "null"], "pattern": r"^([0-9a-f]{40}|[0-9a-f]{64})\Z"}
SHA256 = {"type": "string", "pattern": r"^[0-9a-f]{64}\Z"}
COUNT = {"type": "number", "minimum": 0}
SHARE = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
WHOLE = {"type": "integer", "minimum": 1}
DIRTY = {"type": ["boolean", "null"]}


def record(properties: dict, optional: tuple[str, ...] = (), rest: dict | bool = True) -> dict:
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
        "sha256": record(dict.fromkeys([name for name in LIMITS if name != "provenance.json"], SHA256)),
    },
    optional=("side_by_side",),
    rest=PLAIN,
)
METRICS = record(
    {name: SHARE for name in ("accuracy", "l1_density", "sharpness", "acc1", "acc2", "acc3", "null_normalised")}
    | dict.fromkeys(("mis", "mis_null", "mis_normalised"), COUNT),  # of old runs the last may exceed 1
    optional=("sharpness", "null_normalised"),
    rest={"type": ["number", "null"]},
)
ROW = record(
    {
        "epoch": {"type": "integer", "minimum": 0},
        "path": {"enum": ["standard", "gated", "joint", "skipped"]},
        "seconds": COUNT,
        "commit": COMMIT,
    },
    optional=("commit",),
    rest={"type": ["number", "null"]},
)

# What tools measured, by the name of its file in data/measured; each has a seal over its other values (measured.py).

PART = {"type": "number", "minimum": 0, "maximum": 1}
RECIPE = {"type": "object", "additionalProperties": {"type": ["string", "number"]}}
STAMP = {"model": SHA256, "commit": COMMIT, "dirty": DIRTY, "hardware": HARDWARE}  # of which weights, by which code, on what


def every(schema: dict) -> dict:
    return {"type": "object", "additionalProperties": schema}


def sealed(properties: dict | None = None, optional: tuple[str, ...] = (), rest: dict | bool = False) -> dict:
    return record({"seal": SHA256} | (properties or {}), optional, rest)


def only(*shares: str, **others: dict) -> dict:
    """Shares of these names, the others, and nothing else."""
    return record(dict.fromkeys(shares, PART) | others, rest=False)


SPLITS = {"type": "array", "items": PART, "minItems": 1}
ERRORS = every(SPLITS) | {"propertyNames": {"pattern": r"^[0-9]{1,6}\Z"}}  # by the size of the training set
ATTACK = only("turned", used={"type": "integer", "minimum": 0}, errors=ERRORS)
ATTACKS = only(**dict.fromkeys(("fgsm", "bim", "mim", "pgd", "match"), ATTACK))
CAM = only("iou", "ap30", "box_accuracy", "max_box_accuracy")
MEMBERS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 6, "maxItems": 6}  # filters of each animal
FILTERS = only("iou", "ap30", "zero_thresholds", filters=MEMBERS)
CROPS = {
    "dataset": PLAIN,
    "objects": WHOLE,
    "against": {"enum": ["masks", "boxes"]},
    "chance": only("middle_iou", "whole_iou", "box_accuracy"),
    "cam": CAM,
}
TIGHT = CROPS | {"activation": FILTERS, "firing": FILTERS, "gradient": only("iou", "ap20", objects=WHOLE)}
TRIAL = record({"recipe": RECIPE, "commit": COMMIT} | {n: METRICS["properties"][n] for n in ("accuracy", "mis", "l1_density")})
MEASURED = {
    "detection": sealed(rest=only("accuracy", **STAMP, images=WHOLE, attacks=ATTACKS)),
    "localisation": sealed(rest=only(**STAMP, crops=only(tight=only(**TIGHT), wide=only(**CROPS)))),
    "verified": sealed(rest=SHA256),
    "animals-trials": sealed({"trials": {"type": "array", "items": TRIAL}}),
    "step-cost": sealed(
        {"milliseconds": record({"standard": COUNT}, rest=COUNT), "ratio": every(COUNT)}
        | {"quartiles": every({"type": "array", "items": COUNT, "minItems": 2, "maxItems": 2})}
        | {"rounds": WHOLE, "steps": WHOLE, "batch_size": WHOLE, "precision": PLAIN}
        | {"hardware": HARDWARE, "commit": COMMIT, "dirty": DIRTY},
        optional=("dirty",),
    ),
    "third-party-resnet20": sealed(
        {"source": PLAIN, "sha256": SHA256, "data_digest": SHA256, "metrics": METRICS}
        | {"commit": COMMIT, "dirty": DIRTY, "versions": VERSIONS, "hardware": HARDWARE}
    ),
}

POSITIVE = {"type": "number", "exclusiveMinimum": 0}
PAIR = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
SPEED = record(
    {"name": PLAIN, "unit": PLAIN, "against": PLAIN, "value": {"type": ["number", "null"]}, "detail": {"type": "object"}}
    | {"spread": {"type": ["array", "null"], "items": {"type": "number"}, "minItems": 2, "maxItems": 2}}
    | {"hardware": {"anyOf": [HARDWARE, {"type": "null"}]}},
    rest=False,
)
LARGE = record(  # a step of a large network
    {"net": PLAIN, "thaw": PLAIN, "pixels": WHOLE, "batch": WHOLE, "operations": WHOLE}
    | {"images_per_second": POSITIVE, "images_quartiles": PAIR, "csg_ratio": POSITIVE, "csg_quartiles": PAIR},
    rest=False,
)
MEASURED["scaling"] = sealed(
    {
        "steps": {"type": "array", "items": LARGE},
        "decoded_per_core": POSITIVE,
        "precision": PLAIN,
        "rounds": WHOLE,
        "load": COUNT,
    }
    | {"commit": COMMIT, "dirty": DIRTY, "hardware": HARDWARE}
)
MEASURED["speed"] = sealed({"rows": {"type": "array", "items": SPEED}})
SIDE = {"type": "array", "items": {"type": "number", "minimum": -1000, "maximum": 1000}}
SIDES = {"type": "array", "items": SIDE, "minItems": 2, "maxItems": 2}
FIRST = record(  # a claim, as it was judged first
    {"id": PLAIN, "verdict": {"enum": ["reproduced", "contradicted", "inconclusive", "not run here"]}, "values": SIDES}
    | dict.fromkeys(("paired", "comparable", "held"), {"type": "boolean"})
    | {"runs": {"type": "array", "items": PLAIN}},
    rest=False,
)
MEASURED["first-verdicts"] = sealed(
    {"until": COMMIT, "claims": {"type": "array", "items": FIRST}} | {"commit": COMMIT, "dirty": DIRTY}
)
ROWS = only("ungated", "label", "predicted", "wrong", "followed", "by_logit", "by_probability", "without_image")
PASSED = record(  # an epoch
    {"epoch": {"type": "integer", "minimum": 0}, "path": {"enum": ["standard", "gated"]}}
    | dict.fromkeys(("train_accuracy", "test_accuracy", "test_accuracy_gated"), PART),
    optional=("test_accuracy_gated",),
    rest=False,
)
TAUGHT = record(
    {"method": {"enum": ["csg", "standard"]}, "dataset": PLAIN, "net": PLAIN, "precision": PLAIN},
    rest=RECIPE["additionalProperties"],
)
RELABELLED = record(  # a training of tools/label_leak.py
    {"labels": {"enum": ["random", "true"]}, "recipe": TAUGHT, "seed": {"type": "integer"}, "rows": ROWS, "images": WHOLE}
    | {"data_digest": SHA256, "model": SHA256, "mis": COUNT, "mis_null": COUNT}
    | {"history": {"type": "array", "items": PASSED, "minItems": 1}},
    rest=False,
)
MEASURED["label-leak"] = sealed(
    {"classes": WHOLE, "trainings": {"type": "array", "items": RELABELLED, "minItems": 1}, "seconds": COUNT}
    | {"commit": COMMIT, "dirty": DIRTY, "hardware": HARDWARE}
)

READOUT = {  # as stored: number format and shape; N images, C classes, K filters, T gated epochs
    "features": (torch.uint16, "NK"),  # or float32, without the two that follow
    "low": (torch.float32, "K"),
    "span": (torch.float32, "K"),
    "labels": (torch.int16, "N"),
    "weight": (torch.float32, "CK"),
    "bias": (torch.float32, "C"),
    "gate": (torch.float32, "CK"),
    "gates": (torch.float32, "TCK"),
}


def check_readout(stored: dict[str, Tensor], source: Path, remedy: str) -> dict[str, Tensor]:
    """The tensors of a readout, if they are all there, of one set of sizes, finite, and the labels are classes."""
    sizes: dict[str, int] = {}
    expected, optional = dict(READOUT), ["gate", "gates"]
    if "features" in stored and stored["features"].dtype == torch.float32 and not {"low", "span"} & set(stored):
        expected |= {"features": (torch.float32, "NK")}
        optional += ["low", "span"]
    for name, (dtype, letters) in expected.items():
        if name not in stored:
            if name in optional:
                continue
            raise Problem(f"{source} has no {name}: {remedy}")
        t = stored[name]
        if t.dtype != dtype or t.ndim != len(letters) or t.numel() == 0:
            raise Problem(f"{source}: {name} should be {dtype} of shape {letters}, not {t.dtype} {tuple(t.shape)}: {remedy}")
        for letter, n in zip(letters, t.shape, strict=True):
            if sizes.setdefault(letter, n) != n:
                raise Problem(f"{source}: {name} has {letter} = {n} where other tensors have {sizes[letter]}: {remedy}")
        if t.is_floating_point() and not t.isfinite().all():
            raise Problem(f"{source}: {name} holds what is no number: {remedy}")
    if extra := sorted(set(stored) - set(READOUT)):
        raise Problem(f"{source} has an unknown tensor {extra[0]!r}: {remedy}")
    if not 0 <= int(stored["labels"].min()) <= int(stored["labels"].max()) < sizes["C"]:
        raise Problem(f"{source} has labels outside of its {sizes['C']} classes: {remedy}")
    return stored
