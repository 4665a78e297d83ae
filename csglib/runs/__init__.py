"""What a trained recipe leaves on disk.

A run folder holds recipe.json, history.jsonl, model.safetensors, readout.safetensors, metrics.json and provenance.json, which
is written last and carries the sha256 of the others.  It appears whole or not at all: a run in training lives beside its
place in a folder of the same name with `.part` added.  A run may be published without its weights and readout: then its
provenance says so under `left_out`, and keeps their sha256.  Where a release of the project holds them, `released` names its
file; and the readout of some images may stay, in sample.safetensors.
"""

import dataclasses
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from csglib import networks
from csglib.errors import Damaged, Missing, Occupied, Problem, Unfinished
from csglib.files import check_size, parse_json, read_json, read_tensors, read_text, short, sync, write
from csglib.methods import method
from csglib.networks.split import Split
from csglib.paths import PUBLISHED, digest
from csglib.readout import Readout
from csglib.recipe import FORMS, Recipe
from csglib.runs import schema
from csglib.runs.packing import unpack

FORMAT = 2  # of the run folder; a folder of another format is refused
FILES = ("recipe.json", "history.jsonl", "model.safetensors", "readout.safetensors", "metrics.json")
AGAIN = "restore it with git, or train the run again into a new folder"


@dataclass(frozen=True)
class Run:
    """A finished run folder, each file checked against its digest when opened."""

    path: Path
    recipe: Recipe
    metrics: dict
    provenance: dict

    @property
    def left_out(self) -> list[str]:
        """The files that it was published without."""
        return self.provenance.get("left_out", [])

    def needed(self, name: str) -> Path:
        """A file's place; refuses one that the run was published without."""
        if name in self.left_out and not (self.path / name).exists():
            fetch = "fetch them with `csglib data get runs`, or " if "released" in self.provenance else ""
            raise Problem(
                f"{self.path} was published without {' and '.join(self.left_out)}: {fetch}train it again with "
                f"`csglib train {self.recipe.flags} --out build/{self.recipe.name}`"
            )
        return self.path / name

    @cached_property
    def history(self) -> list[dict]:
        """One row per epoch, with path, learning rate, losses, accuracies and seconds, as schema.ROW has it."""
        path = self.path / "history.jsonl"
        return [parse_json(line, path, AGAIN, schema.ROW) for line in read_text(path, AGAIN).splitlines()]

    @cached_property
    def readout(self) -> Readout:
        """What analysis needs of the run; refused unless its head is that of the weights, as that of another network is not."""
        path = self.needed("readout.safetensors")
        stored = schema.check_readout(read_tensors(path, AGAIN, schema.LIMITS[path.name]), path, AGAIN)
        for name in ("weight", "bias"):
            if not torch.equal(stored[name], self.weights.get(f"head.{name}", torch.empty(0))):
                raise Damaged(f"{path} is not of the weights in {self.path / 'model.safetensors'}: {AGAIN}")
        return unpack(stored)

    @cached_property
    def sample(self) -> Readout:
        """What is drawn from: the readout, or where that was left out its part of some images, if that stayed."""
        path = self.path / schema.SAMPLE
        if (self.path / "readout.safetensors").exists() or not path.exists():
            return self.readout
        return unpack(schema.check_readout(read_tensors(path, AGAIN, schema.LIMITS[path.name]), path, AGAIN))

    @property
    def gate(self) -> Float[Tensor, "C K"] | None:
        """Classes by filters; None for methods without."""
        return self.readout.gate

    def network(self) -> Split:
        """The trained network."""
        return network(self.recipe, len(self.readout.bias), self.weights, self.needed("model.safetensors"))

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """By their names in the network, in float32.

        Raises Damaged where one is not finite, Problem where they were left out.
        """
        path = self.needed("model.safetensors")
        stored = read_tensors(path, AGAIN, schema.LIMITS[path.name])
        if bad := [name for name, t in stored.items() if not t.isfinite().all()]:
            raise Damaged(f"{path}: {bad[0]} is not finite, as are {len(bad)} of its {len(stored)} tensors: {AGAIN}")
        return {k: v.float() if v.is_floating_point() else v for k, v in stored.items()}


def network(recipe: Recipe, num_classes: int, weights: dict[str, Tensor], source: Path) -> Split:
    """The recipe's network with these weights; what started from ImageNet's weights may leave out what did not change."""
    net = networks.build(recipe.net, num_classes, recipe.weights)
    method(recipe).gate(recipe, net)  # a method may change the network
    start = net.state_dict() if recipe.weights == "imagenet" else {}
    try:
        net.load_state_dict(start | weights)
    except RuntimeError as error:
        raise Damaged(f"{source} is not of {recipe.net} ({short(str(error))}): {AGAIN}") from None
    return net.to(memory_format=torch.channels_last)


def read(path: Path | str) -> Run:
    """Open a run folder.

    Raises:
        Problem: Where a file is missing, damaged, altered, or of another format or recipe.
    """
    path = Path(path)
    if not (path / "provenance.json").is_file():
        if part(path).is_dir():
            raise Unfinished(f"{path} is still in training: run `csglib train --out {path}` with its recipe again to finish it")
        raise Unfinished(f"{path} is not a finished run (no provenance.json): train one with `csglib train --out {path}`")
    claimed = read_json(path / "provenance.json", AGAIN, {"type": "object"}, schema.LIMITS["provenance.json"])
    if claimed.get("format") != FORMAT:
        raise Problem(f"{path} has run format {claimed.get('format')!r:.40}, this csglib reads {FORMAT}: train the run again")
    provenance = read_json(path / "provenance.json", AGAIN, schema.PROVENANCE)
    left = provenance.get("left_out", [])
    for name in (*FILES, schema.SAMPLE):
        if (name in left or name == schema.SAMPLE) and not (path / name).exists():
            continue
        if name not in provenance["sha256"]:
            raise Damaged(f"{path / name} is none of the files that provenance.json names: remove it")
        check_size(path / name, schema.LIMITS[name], AGAIN)
        if digest(path / name) != provenance["sha256"][name]:
            raise Damaged(f"{path / name} was altered after the run (its sha256 differs): {AGAIN}")
    recipe = Recipe.from_dict(read_json(path / "recipe.json", AGAIN, {"type": "object"}), str(path / "recipe.json"))
    if recipe.key != provenance["key"] or recipe.seed != provenance["seed"]:
        raise Damaged(f"{path}: recipe.json is not the recipe of this provenance.json: {AGAIN}")
    return Run(path, recipe, read_json(path / "metrics.json", AGAIN, schema.METRICS), provenance)


def part(path: Path) -> Path:
    """The folder in which a run is trained until it is finished."""
    path = path.absolute()
    return path.parent / (path.name + ".part")


def diverged(out: Path) -> dict | None:
    """What is told of a training into this folder that was stopped since it diverged; None where none was."""
    path = part(out) / "report.json"
    if not path.is_file():
        return None
    return read_json(path, f"remove {path.parent}, and train again", schema.REPORT)


def reserve(out: Path, recipe: Recipe) -> Path:
    """The `.part` folder of this recipe, made or taken up again; refuses to touch anything else that is there."""
    if (out / "provenance.json").exists():
        raise Occupied(f"{out} already holds a finished run: choose another --out, or remove that folder first")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Occupied(f"{out} exists and is not a run: choose another --out")
    if out.is_symlink() or out.absolute() == Path.cwd():
        raise Occupied(f"{out} is a link or the current folder, which a run cannot replace: choose another --out")
    folder, text = part(out), dump(dataclasses.asdict(recipe))
    kept = folder / "recipe.json"
    if kept.exists():
        if read_text(kept, "remove that folder first") != text:
            raise Occupied(
                f"{folder} holds an unfinished run of another recipe: choose another --out, or remove that folder first"
            )
        return folder
    if folder.exists() and (not folder.is_dir() or any(not p.match("recipe.json*.new") for p in folder.iterdir())):
        raise Occupied(f"{folder} exists and is not an unfinished run: choose another --out, or move that folder away")
    folder.mkdir(parents=True, exist_ok=True)
    write(kept, text)
    return folder


def finish(out: Path, history: list[dict], weights: dict[str, Tensor], readout: dict, metrics: dict, provenance: dict) -> None:
    """Write what is left into the `.part` folder, provenance last, and publish it.

    Until then the checkpoint stays, so that a stop at any point costs nothing.
    """
    folder = part(out)
    write(folder / "history.jsonl", "".join(json.dumps(line) + "\n" for line in history))
    write(folder / "model.safetensors", save(weights))
    write(folder / "readout.safetensors", save(readout))
    write(folder / "metrics.json", dump(metrics))
    sums = {name: digest(folder / name) for name in FILES}
    write(folder / "provenance.json", dump(provenance | {"format": FORMAT, "sha256": sums}))
    publish(out)


def publish(out: Path) -> None:
    """Verify a `.part` folder that has its provenance, leave nothing but the run in it, and give it its name in one step."""
    folder = part(out)
    _ = read(folder).history  # each file against its schema, and each row of the history
    for path in folder.iterdir():
        if path.name not in (*FILES, "provenance.json"):
            path.unlink()
    os.rename(folder, out)
    sync(folder.parent)


def dump(value: dict) -> str:
    """JSON as run folders hold it."""
    return json.dumps(value, indent=2) + "\n"


def drifted(history: list[dict], metrics: dict, n: int) -> bool:
    """Whether the accuracy on n images is not that of the last epoch, which was measured before the rounding.

    Beyond 1 % of the images and three more: of the published runs the worst moved by 9 of 10,000, by 4 of 5,000 and by 3 of
    531, for the last epoch is measured in the precision of the training.
    """
    last = history[-1].get("test_accuracy")
    return last is None or abs(last - metrics["accuracy"]) * n > n / 100 + 3.5


def published(recipe: Recipe, folder: Path = PUBLISHED) -> Run:
    """The run of this recipe among the published ones."""
    path = folder / recipe.name
    if not path.exists():
        raise Missing(f"no run of this recipe is published: make it with `{recipe.command}`")
    run = read(path)
    if run.recipe != recipe:
        raise Damaged(f"{path} holds another recipe than its name says: remove it and run `{recipe.command}`")
    return run


def siblings(recipe: Recipe, folder: Path = PUBLISHED) -> list[Recipe]:
    """Those that differ from it in nothing but precision or loop, and have a run there."""
    others = [recipe.in_form(form) for form in FORMS if form != recipe.form]
    return [other for other in others if (folder / other.name).exists()]
