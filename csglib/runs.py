"""Recipe and run: what decides a trained network, and what it leaves on disk.

A run folder holds recipe.json, history.jsonl, model.safetensors, readout.safetensors, metrics.json and provenance.json, which
is written last and carries the sha256 of the others.  It appears whole or not at all: a run in training lives beside its
place in a folder of the same name with `.part` added.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import save
from torch import Tensor

from csglib import Problem, formats
from csglib.data import CLONE, ROOT, digest, folder
from csglib.files import check_size, parse_json, read_json, read_tensors, read_text, sync, write

FORMAT = 2  # of the run folder; a folder of another format is refused
PUBLISHED = ROOT / "data" / "runs" if CLONE else folder() / "runs"
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
FORMS = tuple(itertools.product(("bfloat16", "float16", "float32"), ("plain", "fast")))  # precision and loop: how, not what
FILES = ("recipe.json", "history.jsonl", "model.safetensors", "readout.safetensors", "metrics.json")
AGAIN = "restore it with git, or train the run again into a new folder"
NAME = re.compile(r"(?!/)(?!.*\.\.)[A-Za-z0-9._:@,/+ ~-]*")  # what a recipe may call things: it reaches shells, pages and paths


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a trained network.  A default never changes: the key counts only what differs from it."""

    dataset: str = "cifar10"  # cifar10 | cifar10-mini | voc:PATH, VOC's objects | folder:PATH, a subfolder a class
    net: str = "resnet20"  # resnet20 | resnet8 | NAME@LAYER: a network of torchvision cut after a layer, as resnet18@layer4
    method: str = "csg"  # standard | csg | picnn | icnn | and the controls matched, joint, fixed
    epochs: int = 30  # passes over the training images, of both paths together
    seed: int = 0  # of the first weights, the order of the images, their augmentation and what a method draws
    batch_size: int = 128  # images a step; an incomplete last batch is left out
    lr: float = 0.2  # largest learning rate of the weights
    lr_schedule: str = "onecycle"  # onecycle: up for 30 %, then down to 0 | steps: a tenth from 1/2, a hundredth from 3/4
    momentum: float = 0.9  # of the weights' SGD, with Nesterov's correction
    weight_decay: float = 5e-4  # of the weights; never of the gate
    cycle: str = "sgs"  # epochs after the warm-up, repeated: s standard, g gated; the last epoch is standard
    warmup: int = 0  # standard epochs before the first cycle
    gate_start: float = 0.5  # every gate entry before the first step
    gate_lr: float = 0.1  # learning rate of the gate's SGD, constant
    gate_momentum: float = 0.9  # of the gate's SGD
    gate_penalty: float = 5e-3  # lambda2, weight of the hinge ReLU(||G||_1 - g)
    gate_density: float = 0.1  # g / (CK), where the hinge ends; at least 1/C, which 0.1 also means below ten classes
    gate_projection: str = "max"  # after a step: max, divide by each filter's maximum and clip | clip, only to [0, 1]
    fixed_gate: str = "random"  # of method fixed: random, equal shares of filters | shuffled, rows dealt to the wrong images
    picnn_weight: float = 2.0  # lambda of PICNN's interpretation loss
    theta_lr: float = 1e-3  # Adam's learning rate of PICNN's matrix, constant
    theta_decay: float = 1e-4  # its weight decay, which pulls towards the uniform matrix
    correspondence: str = "learned"  # PICNN's matrix: learned | random, one class a filter, fixed
    template_weight: float = 1e-6  # of ICNN's filter loss in the first epoch; in epoch e divided by e
    holdout: int = 0  # last training images, set apart and read out in place of the test images: for choices
    weights: str = "fresh"  # where they start: fresh | imagenet; the head is always fresh
    thaw: str = ""  # the layers that learn, by the beginnings of their names, separated by commas; empty: all
    precision: str = "auto"  # float32 | bfloat16 or float16, by autocast | auto: chosen for the device before training
    loop: str = "plain"  # plain, operation by operation | fast: compiled by torch, and captured as graphs on a GPU

    def __post_init__(self):
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, typed(f.name, f.type, getattr(self, f.name)))
        plain = "use letters, digits and . _ - + @ : , / ~ alone, and no path upwards; ln -s gives a folder another name"
        own = f"{plain}; pictures of your own are called folder:PATH"
        for name, ok, remedy in (
            ("dataset", NAME.fullmatch(self.dataset), own),
            *((name, NAME.fullmatch(getattr(self, name)), plain) for name in ("net", "method", "thaw")),
            ("epochs", self.epochs >= 1, "train for at least 1"),
            ("seed", 0 <= self.seed < 2**40, "use 0, 1, 2, ..."),
            ("batch_size", self.batch_size >= 2, "batch normalisation needs at least 2 images"),
            ("lr", 0 < self.lr < float("inf"), "use a positive number such as 0.2"),
            ("lr_schedule", self.lr_schedule in ("onecycle", "steps"), "use onecycle or steps"),
            ("momentum", 0 < self.momentum < 1, "use a number between 0 and 1 such as 0.9"),
            ("weight_decay", 0 <= self.weight_decay < float("inf"), "use 0 or a small positive number"),
            ("cycle", self.cycle and set(self.cycle) <= set("sg"), "use letters s (standard) and g (gated), such as sgs"),
            ("warmup", self.warmup >= 0, "use 0 or a number of epochs"),
            ("gate_start", 0 < self.gate_start <= 1, "use a number in (0, 1] such as 0.5"),
            ("gate_lr", 0 <= self.gate_lr < float("inf"), "use a number such as 0.1"),
            ("gate_momentum", 0 <= self.gate_momentum < 1, "use a number in [0, 1) such as 0.9"),
            ("gate_penalty", 0 <= self.gate_penalty < float("inf"), "use a number such as 0.005"),
            ("gate_density", 0 < self.gate_density <= 1, "use a number from 1/C, one class a filter, to 1, no pressure"),
            ("gate_projection", self.gate_projection in ("max", "clip"), "use max or clip"),
            ("fixed_gate", self.fixed_gate in ("random", "shuffled"), "use random or shuffled"),
            ("picnn_weight", 0 <= self.picnn_weight < float("inf"), "use a number such as 2"),
            ("theta_lr", 0 <= self.theta_lr < float("inf"), "use a number such as 0.001"),
            ("theta_decay", 0 <= self.theta_decay < float("inf"), "use 0 or a small number such as 0.0001"),
            ("correspondence", self.correspondence in ("learned", "random"), "use learned or random"),
            ("template_weight", 0 <= self.template_weight < float("inf"), "use a number such as 1e-6"),
            ("weights", self.weights in ("fresh", "imagenet"), "use fresh or imagenet"),
            ("holdout", self.holdout >= 0, "use 0, or a number of images such as 5000"),
            (
                "precision",
                self.precision in PRECISIONS,
                f"use one of {', '.join(PRECISIONS)}",
            ),
            ("loop", self.loop in ("plain", "fast"), "use plain or fast"),
        ):
            if not ok:
                raise Problem(f"{name} {getattr(self, name)!r} is out of range: {remedy}")

    def density(self, num_classes: int) -> float:
        """gate_density for so many classes: the default is one class a filter of ten, and so 1/C where there are fewer."""
        default = self.gate_density == Recipe.gate_density
        return max(self.gate_density, 1 / num_classes) if default else self.gate_density

    def changed(self) -> dict:
        """The fields that differ from their defaults."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}

    def refuse_options(self, names: Iterable[str]) -> None:
        if wrong := sorted(set(names) & set(self.changed())):
            raise Problem(f"method {self.method} does not read {', '.join(wrong)}: leave it out, or choose another method")

    @property
    def key(self) -> str:
        """Twelve hex digits of the sha256 of what differs from the defaults; equal recipes, and only they, share one."""
        if self.precision == "auto":
            raise Problem("precision auto has no key: it depends on the device; name bfloat16 or float32")
        return hashlib.sha256(json.dumps(self.changed(), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """What its folder under data/runs is called."""
        words = f"{self.dataset}-{self.net}-{self.method}-{self.epochs}e-s{self.seed}-{self.key[:6]}"
        return re.sub(r"[^A-Za-z0-9._-]+", "-", words)

    @property
    def form(self) -> tuple[str, str]:
        """How it is computed: precision and loop.  Runs that differ in nothing else answer the same question."""
        return self.precision, self.loop

    def in_form(self, form: tuple[str, str]) -> "Recipe":
        return dataclasses.replace(self, precision=form[0], loop=form[1])

    @property
    def flags(self) -> str:
        """The options of `csglib train` that name this recipe."""
        shown = ("dataset", "net", "method", "epochs", "seed")
        values = {name: getattr(self, name) for name in shown} | self.changed()
        return " ".join(f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in values.items())

    @property
    def command(self) -> str:
        """The shell command that trains it into its place among the published runs."""
        return f"csglib train {self.flags} --out data/runs/{self.name}"

    @classmethod
    def from_dict(cls, values: dict, source: str) -> "Recipe":
        types = {f.name: f.type for f in dataclasses.fields(cls)}
        for name, value in values.items():
            if name not in types:
                raise Problem(f"{source} has an unknown recipe field {name!r}: the fields are {', '.join(types)}")
            if not isinstance(value, (int, float) if types[name] is float else types[name]) or isinstance(value, bool):
                raise Problem(f"{source}: recipe field {name} should be of type {types[name].__name__}, not {value!r}")
            if types[name] is not str and abs(value) > 2**63:
                raise Problem(f"{source}: recipe field {name} is larger than any sensible number: correct it")
        return cls(**{name: types[name](value) for name, value in values.items()})


def typed(name: str, kind: type, value: object) -> object:
    """The value as one of its field's type: 1 and 1.0 are one value and get one key, whichever a notebook's parameter is."""
    if kind is str and isinstance(value, str):
        return value
    number = isinstance(value, Real) and not isinstance(value, bool)
    if kind is str or not number or (kind is int and value % 1 != 0):
        told = {str: "text", int: "a whole number such as 3", float: "a number such as 0.5"}[kind]
        raise Problem(f"{name} {value!r} is of another type: give {told}")
    return kind(value)


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

    def tensors(self) -> dict[str, Tensor]:
        return {f.name: t for f in dataclasses.fields(self) if (t := getattr(self, f.name)) is not None}


@dataclass(frozen=True)
class Run:
    """A finished run folder, each file checked against its digest when opened."""

    path: Path
    recipe: Recipe
    metrics: dict
    provenance: dict

    @cached_property
    def history(self) -> list[dict]:
        path = self.path / "history.jsonl"
        return [parse_json(line, path, AGAIN, formats.ROW) for line in read_text(path, AGAIN).splitlines()]

    @cached_property
    def readout(self) -> Readout:
        """Refused unless its head is that of the weights: a readout of another network has another."""
        path = self.path / "readout.safetensors"
        stored = formats.check_readout(read_tensors(path, AGAIN, formats.LIMITS[path.name]), path, AGAIN)
        for name in ("weight", "bias"):
            if not torch.equal(stored[name], self.weights.get(f"head.{name}", torch.empty(0))):
                raise Problem(f"{path} is not of the weights in {self.path / 'model.safetensors'}: {AGAIN}")
        return unpack(stored)

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        path = self.path / "model.safetensors"
        stored = read_tensors(path, AGAIN, formats.LIMITS[path.name])
        if bad := [name for name, t in stored.items() if not t.isfinite().all()]:
            raise Problem(f"{path}: {bad[0]} is not finite, as are {len(bad)} of its {len(stored)} tensors: {AGAIN}")
        return {k: v.float() if v.is_floating_point() else v for k, v in stored.items()}


def read(path: Path | str) -> Run:
    """Open a run folder.  Raises Problem where a file is missing, damaged, altered, or of another format or recipe."""
    path = Path(path)
    if not (path / "provenance.json").is_file():
        if part(path).is_dir():
            raise Problem(f"{path} is still in training: run `csglib train --out {path}` with its recipe again to finish it")
        raise Problem(f"{path} is not a finished run (no provenance.json): train one with `csglib train --out {path}`")
    claimed = read_json(path / "provenance.json", AGAIN, {"type": "object"}, formats.LIMITS["provenance.json"])
    if claimed.get("format") != FORMAT:
        raise Problem(f"{path} has run format {claimed.get('format')!r:.40}, this csglib reads {FORMAT}: train the run again")
    provenance = read_json(path / "provenance.json", AGAIN, formats.PROVENANCE)
    for name in FILES:
        check_size(path / name, formats.LIMITS[name], AGAIN)
        if digest(path / name) != provenance["sha256"][name]:
            raise Problem(f"{path / name} was altered after the run (its sha256 differs): {AGAIN}")
    recipe = Recipe.from_dict(read_json(path / "recipe.json", AGAIN, {"type": "object"}), str(path / "recipe.json"))
    if recipe.key != provenance["key"] or recipe.seed != provenance["seed"]:
        raise Problem(f"{path}: recipe.json is not the recipe of this provenance.json: {AGAIN}")
    return Run(path, recipe, read_json(path / "metrics.json", AGAIN, formats.METRICS), provenance)


def part(path: Path) -> Path:
    """The folder in which a run is trained until it is finished."""
    path = path.absolute()
    return path.parent / (path.name + ".part")


def reserve(out: Path, recipe: Recipe) -> Path:
    """The `.part` folder of this recipe, made or taken up again; refuses to touch anything else that is there."""
    if (out / "provenance.json").exists():
        raise Problem(f"{out} already holds a finished run: choose another --out, or remove that folder first")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Problem(f"{out} exists and is not a run: choose another --out")
    if out.is_symlink() or out.absolute() == Path.cwd():
        raise Problem(f"{out} is a link or the current folder, which a run cannot replace: choose another --out")
    folder, text = part(out), dump(dataclasses.asdict(recipe))
    kept = folder / "recipe.json"
    if kept.exists():
        if read_text(kept, "remove that folder first") != text:
            raise Problem(
                f"{folder} holds an unfinished run of another recipe: choose another --out, or remove that folder first"
            )
        return folder
    if folder.exists() and (not folder.is_dir() or any(not p.match("recipe.json*.new") for p in folder.iterdir())):
        raise Problem(f"{folder} exists and is not an unfinished run: choose another --out, or move that folder away")
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
    read(folder)
    for path in folder.iterdir():
        if path.name not in (*FILES, "provenance.json"):
            path.unlink()
    os.rename(folder, out)
    sync(folder.parent)


def dump(value: dict) -> str:
    return json.dumps(value, indent=2) + "\n"


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


def drifted(history: list[dict], metrics: dict, n: int) -> bool:
    """Whether the accuracy on n images is not that of the last epoch, which was measured before the rounding.

    Beyond 1 % of the images and three more: of the published runs the worst moved by 9 of 10,000, by 4 of 5,000 and by 3 of
    531, for the last epoch is measured in the precision of the training.
    """
    last = history[-1].get("test_accuracy")
    return last is None or abs(last - metrics["accuracy"]) * n > n / 100 + 3.5


def pack(readout: Readout) -> dict[str, Tensor]:
    """The readout as it is stored: features in 16 bits, as a_k = low_k + span_k (q / 65535)^2, the rest in float32;
    labels as int16, which holds 32,767 classes.

    The k-nearest-neighbour estimator compares neighbours that half precision would make equal: float16 moves the MIS of
    a ResNet-20 (0.1233) by 2e-4 to 5e-3, depending on how ties are broken; this square-root scale by 3e-5.  Where it too would
    make more than half of a filter's values equal, since one lies far off, all features stay in float32.
    """
    low, high = readout.features.amin(0), readout.features.amax(0)
    span = high - low
    q = ((readout.features - low) / torch.where(span > 0, span, 1)).sqrt().mul(65535).round()
    if span.isfinite().all() and (2 * distinct(q) >= distinct(readout.features).clamp(max=65536)).all():
        stored = readout.tensors() | {"features": q.to(torch.uint16), "low": low, "span": span}
    else:
        stored = readout.tensors()
    return {name: t.contiguous() for name, t in (stored | {"labels": readout.labels.to(torch.int16)}).items()}


def distinct(values: Float[Tensor, "N K"]) -> Int[Tensor, " K"]:
    """How many different values each filter has."""
    return 1 + (values.sort(dim=0).values.diff(dim=0) != 0).sum(0)


def unpack(stored: dict[str, Tensor]) -> Readout:
    stored = stored | {"labels": stored["labels"].long()}
    if "low" not in stored:
        return Readout(**stored)
    low, span, packed = stored.pop("low"), stored.pop("span"), stored.pop("features")
    features = torch.empty(packed.shape)
    for i in range(0, len(packed), 4096):  # in float64, which takes four times the room, never all at once
        q = packed[i : i + 4096].to(torch.float64) / 65535
        features[i : i + 4096] = low + span * q * q
    return Readout(features=features, **stored)


def published(recipe: Recipe, folder: Path = PUBLISHED) -> Run:
    """The run of this recipe among the published ones."""
    path = folder / recipe.name
    if not path.exists():
        raise Problem(f"no run of this recipe is published: make it with `{recipe.command}`")
    run = read(path)
    if run.recipe != recipe:
        raise Problem(f"{path} holds another recipe than its name says: remove it and run `{recipe.command}`")
    return run


def siblings(recipe: Recipe, folder: Path = PUBLISHED) -> list[Recipe]:
    """Those that differ from it in nothing but precision or loop, and have a run there."""
    others = [recipe.in_form(form) for form in FORMS if form != recipe.form]
    return [other for other in others if (folder / other.name).exists()]
