"""What the files in data/measured must look like to be believed: JSON schemas, each with a seal over the other values."""

from csglib.runs.schema import COMMIT, COUNT, DIRTY, HARDWARE, METRICS, PLAIN, SHA256, VERSIONS, WHOLE, record

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
PACE = record(  # seconds per image, in a step and read out
    {"net": PLAIN, "pixels": WHOLE, "batch": WHOLE, "train": POSITIVE, "test": POSITIVE}, rest=False
)
MEASURED["grid-pace"] = sealed(
    {
        "paces": {"type": "array", "items": PACE, "minItems": 1},
        "sizes": every(record(dict.fromkeys(("train", "test", "pixels", "classes"), WHOLE), rest=False)),
        "precision": PLAIN,
        "rounds": WHOLE,
        "load": COUNT,
    }
    | {"commit": COMMIT, "dirty": DIRTY, "hardware": HARDWARE}
)
RATES = {"type": "array", "items": POSITIVE, "minItems": 1}  # images per second, a round each
MEASURED["files"] = sealed(
    dict.fromkeys(("read", "read_usual", "train", "train_float32", "train_usual"), RATES)
    | {"picture": record({"side": WHOLE} | dict.fromkeys(("bytes", "decoded", "squared"), POSITIVE), rest=False)}
    | {"epoch": record(dict.fromkeys(("peak_mb", "pixels_mb", "images_per_second"), POSITIVE), rest=False)}
    | {"mis": record(dict.fromkeys(("seconds", "peak_mb"), POSITIVE), rest=False)}
    | {"size": WHOLE, "batch": WHOLE, "net": PLAIN, "precision": PLAIN, "commit": COMMIT, "dirty": DIRTY, "hardware": HARDWARE}
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
SIMULATED = record(  # tools/few_images.py: three kinds of filters, with so many images in each of so many classes
    {"metric": {"enum": ["mis", "mis_balanced"]}, "classes": WHOLE, "images": WHOLE}
    | dict.fromkeys(("null", "shifted", "perfect", "truth"), COUNT)
    | {"bound": POSITIVE},
    rest=False,
)
MEASURED["few-images"] = sealed(
    {"rows": {"type": "array", "items": SIMULATED, "minItems": 1}, "filters": WHOLE, "shift": POSITIVE, "seconds": COUNT}
    | {"commit": COMMIT, "dirty": DIRTY, "hardware": HARDWARE}
)
