"""What decides a trained network: one frozen dataclass, hashed into a key."""

import dataclasses
import hashlib
import itertools
import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real

from csglib.errors import Problem

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
FORMS = tuple(itertools.product(("bfloat16", "float16", "float32"), ("plain", "fast")))  # precision and loop: how, not what
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
