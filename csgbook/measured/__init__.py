"""What pages tell that no readout can: measured once by a tool, kept in data/measured/KIND.json.

Each file follows its schema (schemas.py) and carries a seal, the sha256 of its other values, so that a number changed by hand
is refused.  What was measured of a run stands under its name with the sha256 of the weights, the commit and the hardware;
verify.py compares it with the run's readout.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from csgbook.measured import schemas
from csglib import files
from csglib.errors import Damaged
from csglib.paths import ROOT
from csglib.runs import Run, provenance

FOLDER = ROOT / "data" / "measured"
TOOLS = {
    "detection": "tools/detection.py",
    "localisation": "tools/localisation.py",
    "label-leak": "tools/label_leak.py",
    "few-images": "tools/few_images.py",
    "files": "tools/bench_files.py",
    "first-verdicts": "tools/first_verdicts.py",
    "grid-pace": "tools/grid_pace.py",
    "animals-trials": "tools/trials.py FOLDER",
    "scaling": "tools/scaling.py measure",
    "speed": "tools/bench.py",
    "step-cost": "tools/step_cost.py",
    "third-party-resnet20": "tools/third_party.py PATH",
    "verified": "tools/verify_all.py",
}
OF_RUNS = ("detection", "localisation")  # with an entry per run


def read(kind: str) -> dict:
    """The values of a file without their seal; empty where nothing was measured."""
    path = FOLDER / f"{kind}.json"
    if not path.exists():
        return {}
    remedy = f"restore it with git, or remove it and run `python {TOOLS[kind]}`"
    values = files.read_json(path, remedy, schemas.MEASURED[kind])
    if values.pop("seal", None) != seal(values):
        raise Damaged(f"{path} was altered after its tool wrote it (its seal differs): {remedy}")
    return values


def write(kind: str, values: dict) -> None:
    path, values = FOLDER / f"{kind}.json", json.loads(json.dumps(values))  # as it will be read: every key a string
    text = json.dumps({"seal": seal(values)} | values, indent=1) + "\n"
    files.parse_json(text, path, "correct the tool", schemas.MEASURED[kind])
    FOLDER.mkdir(parents=True, exist_ok=True)
    files.write(path, text)


def seal(values: dict) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def of(kind: str, run: Run) -> dict | None:
    """What was measured of this run, None if nothing; refuses what was measured of other weights under its name."""
    entry = read(kind).get(run.recipe.name)
    if entry is not None and entry["model"] != weights(run):
        raise Damaged(
            f"data/measured/{kind}.json has {run.recipe.name} with other weights than its folder: run `python {TOOLS[kind]}`"
        )
    return entry


def keep(kind: str, run: Run, found: dict) -> None:
    """Put what was found into the file, in place of an older entry of the run."""
    here = provenance.here(torch.device("cpu"), FOLDER / f"{kind}.json")
    stamp = {"model": weights(run)} | {name: here[name] for name in ("commit", "dirty", "hardware")}
    write(kind, dict(sorted((read(kind) | {run.recipe.name: stamp | found}).items())))


def weights(run: Run) -> str:
    return run.provenance["sha256"]["model.safetensors"]


def mark(run: Run) -> str:
    """A digest of all that verification compares: the run's files, by their digests in its provenance, and its measurements."""
    entries = json.dumps({kind: of(kind, run) for kind in OF_RUNS}, sort_keys=True)
    return hashlib.sha256((run.path / "provenance.json").read_bytes() + entries.encode()).hexdigest()


def verified(run: Run) -> bool:
    """Whether it was recomputed before it was published, as it is now."""
    return read("verified").get(run.recipe.name) == mark(run)


def check(run: Run) -> bool:
    """What tools measured of the run, as far as its readout knows: how many images are right, how many there are of what.

    Whether there is anything.

    A share of counted things is a whole number of them, which a number made up is not; one that is made up with care can be.
    """
    if run.left_out:  # nothing is measured of such
        return False
    N, K = run.readout.features.shape
    right = run.readout.logits.argmax(1) == run.readout.labels
    found = False
    for kind in OF_RUNS:
        entry, tool = of(kind, run), TOOLS[kind]
        found |= bool(entry)
        for s in SHARES[kind](entry, right, K) if entry else ():
            count, slack = s.value * s.of, 1.5 if s.what == "accuracy" else 1e-3
            if s.of < 1 or abs(count - (round(count) if s.count is None else s.count)) > slack:
                raise Damaged(
                    f"{FOLDER / kind}.json says {s.what} {s.value} of {run.recipe.name}, which is no number of its {s.of} "
                    f"that the run could give: restore it with git, or remove it and run `python {tool}`"
                )
    return found


class Share(NamedTuple):
    """A share of counted things."""

    what: str
    value: float
    of: int  # things
    count: int | None = None  # of them that it must be the share of, where that is known


def of_detection(entry: dict, right: Bool[Tensor, " N"], K: int) -> Iterator[Share]:
    n = entry["images"]
    yield Share("accuracy", entry["accuracy"], n if n <= len(right) else 0, int(right[:n].sum()))
    for name, attack in entry["attacks"].items():
        yield Share(f"turned by {name}", attack["turned"], round(entry["accuracy"] * n), attack["used"])
        for size, errors in attack["errors"].items():
            tested = 2 * (attack["used"] - int(size) // 2)  # half of the training samples are images, all others test twice
            yield from (Share(f"error under {name}", error, tested) for error in errors)


def of_localisation(entry: dict, right: Bool[Tensor, " N"], K: int) -> Iterator[Share]:
    for crop, scores in entry["crops"].items():
        for name in ("ap30", "box_accuracy", "max_box_accuracy"):
            yield Share(f"{crop} cam {name}", scores["cam"][name], scores["objects"])
        yield Share(f"{crop} chance box_accuracy", scores["chance"]["box_accuracy"], scores["objects"])
        for name in {"activation", "firing"} & set(scores):
            yield Share(f"{name} zero_thresholds", scores[name]["zero_thresholds"], K)
            yield Share(f"{name} filters", sum(scores[name]["filters"]) / K, K, K)
        if "gradient" in scores:
            yield Share("gradient ap20", scores["gradient"]["ap20"], scores["gradient"]["objects"])


SHARES = {"detection": of_detection, "localisation": of_localisation}  # of each kind in OF_RUNS


def found(kind: str, runs: dict[str, list[Run]]) -> dict[str, list[dict]]:
    """What was measured of the runs; those of which nothing was are left out."""
    return {name: [entry for run in group if (entry := of(kind, run))] for name, group in runs.items()}
