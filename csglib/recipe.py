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
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

from csglib.errors import Problem

Precision = Literal["auto", "float32", "bfloat16", "float16"]
FORMS = tuple(itertools.product(("bfloat16", "float16", "float32"), ("plain", "fast")))  # precision and loop: how, not what

# A field's type holds what it may be: names, an interval, or choices.  `Recipe` reads them, and so does the command's help.
NAME = re.compile(r"(?!/)(?!.*\.\.)[A-Za-z0-9._:@,/+ ~-]*")  # names reach shells, pages and paths
Name = Annotated[str, NAME]
Count = Annotated[int, "[1, inf)"]
Positive = Annotated[float, "(0, inf)"]
NotNegative = Annotated[float, "[0, inf)"]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a trained network.  A default never changes: the key counts only what differs from it."""

    # cifar10 | cifar10-mini | cifar100 | stl10 (or stl10@224) | tiny-imagenet | imagenet:PATH | voc:PATH, VOC's objects |
    # folder:PATH, a subfolder per class
    dataset: Name = "cifar10"
    net: Name = "resnet20"  # resnet20 | resnet8 | NAME@LAYER of torchvision | NAME-32xWIDTH@LAYER, fitted to 32 pixels
    method: Name = "csg"  # standard | csg | picnn | icnn | and the controls matched, joint, fixed
    epochs: Count = 30  # passes over the training images, of both paths together
    seed: Annotated[int, "[0, 1099511627776)"] = 0  # of the first weights, the images' order and augmentation, all draws
    batch_size: Annotated[int, "[2, inf)"] = 128  # images per step; an incomplete last batch is left out
    lr: Positive = 0.2  # largest learning rate of the weights
    # onecycle: up for 30 %, then down to 0; steps: a tenth from 1/2, again from 3/4; thirds: from 1/3 and 2/3
    lr_schedule: Literal["onecycle", "steps", "thirds"] = "onecycle"
    momentum: Annotated[float, "(0, 1)"] = 0.9  # of the weights' SGD, with Nesterov's correction
    weight_decay: NotNegative = 5e-4  # of the weights; never of the gate
    cycle: Annotated[str, re.compile("[sg]+")] = "sgs"  # epochs, repeated: s standard, g gated; the last epoch is standard
    warmup: Annotated[int, "[0, inf)"] = 0  # standard epochs before the first cycle
    gate_start: Annotated[float, "(0, 1]"] = 0.5  # every gate entry before the first step
    gate_lr: NotNegative = 0.1  # learning rate of the gate's SGD, constant
    gate_momentum: Annotated[float, "[0, 1)"] = 0.9  # of the gate's SGD
    gate_penalty: NotNegative = 5e-3  # lambda2, weight of the hinge ReLU(||G||_1 - g)
    gate_density: Annotated[float, "(0, 1]"] = 0.1  # g / (CK), where the hinge ends; the default means 1/C below ten classes
    gate_projection: Literal["max", "clip"] = "max"  # after a step: divide by each filter's maximum and clip | only clip
    fixed_gate: Literal["random", "shuffled"] = "random"  # of method fixed: equal shares | rows dealt to the wrong images
    picnn_weight: NotNegative = 2.0  # lambda of PICNN's interpretation loss
    theta_lr: NotNegative = 1e-3  # Adam's learning rate of PICNN's matrix, constant
    theta_decay: NotNegative = 1e-4  # its weight decay, which pulls towards the uniform matrix
    correspondence: Literal["learned", "random"] = "learned"  # PICNN's matrix; random: one class per filter, fixed
    template_weight: NotNegative = 1e-6  # of ICNN's filter loss in the first epoch; in epoch e divided by e
    crop: Literal["border", "resized"] = "border"  # of training images: of a border of zeros | ImageNet's random resized crop
    holdout: Annotated[int, "[0, inf)"] = 0  # last training images as a validation set, read out in place of the test images
    weights: Literal["fresh", "imagenet"] = "fresh"  # where they start; the head is always fresh
    thaw: Name = ""  # the layers that learn, by the beginnings of their names, separated by commas; empty: all
    precision: Precision = "auto"  # bfloat16 and float16 by autocast; auto: chosen for the device before training
    loop: Literal["plain", "fast"] = "plain"  # operation by operation | compiled by torch, and captured as graphs on a GPU

    def __post_init__(self):
        for name, kind in KINDS.items():
            if (value := getattr(self, name)) is not getattr(
                Recipe, name
            ):  # of 30 most are, and a grid has thousands of recipes
                object.__setattr__(self, name, checked(name, kind, value))

    def density(self, num_classes: int) -> float:
        """gate_density for so many classes: the default is one class per filter of ten, and so 1/C where there are fewer."""
        default = self.gate_density == Recipe.gate_density
        return max(self.gate_density, 1 / num_classes) if default else self.gate_density

    def changed(self) -> dict:
        """The fields that differ from their defaults."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}

    def refuse_options(self, names: Iterable[str]) -> None:
        """Raises Problem where one of these fields differs from its default."""
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
        """The same recipe in another precision and loop."""
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
        """The recipe of a JSON object.  Raises Problem, which names the source, where it is none."""
        for name, value in values.items():
            if name not in KINDS:
                raise Problem(f"{source} has an unknown recipe field {name!r}: the fields are {', '.join(KINDS)}")
            kind = plain_type(KINDS[name])
            if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
                raise Problem(f"{source}: recipe field {name} should be of type {kind.__name__}, not {value!r}")
            if kind is not str and abs(value) > 2**63:
                raise Problem(f"{source}: recipe field {name} is larger than any sensible number: correct it")
        return cls(**{name: plain_type(KINDS[name])(value) for name, value in values.items()})


KINDS = get_type_hints(Recipe, include_extras=True)  # field -> its type with what it may be


def plain_type(kind: object) -> type:
    """str, int or float."""
    return str if get_origin(kind) is Literal else get_args(kind)[0]


def checked(name: str, kind: object, value: object) -> object:
    """The value as one of its field's type: 1 and 1.0 are one value and get one key, whichever a notebook's parameter is."""
    plain = plain_type(kind)
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not isinstance(value, str) if plain is str else not number or (plain is int and value % 1 != 0):
        told = {str: "text", int: "a whole number such as 3", float: "a number such as 0.5"}[plain]
        raise Problem(f"{name} {value!r} is of another type: give {told}")
    value, default = plain(value), getattr(Recipe, name)
    if value == default:
        return value
    if get_origin(kind) is Literal:
        fits, remedy = value in get_args(kind), f"use one of {', '.join(get_args(kind))}"
    elif plain is str:
        fits, remedy = get_args(kind)[1].fullmatch(value), PLAIN
    else:
        fits, remedy = within(value, get_args(kind)[1]), f"use a number in {get_args(kind)[1]} such as {default:g}"
    if not fits:
        raise Problem(f"{name} {value!r} is out of range: {REMEDIES.get(name, remedy)}")
    return value


PLAIN = "use letters, digits and . _ - + @ : , / ~ alone, and no path upwards; ln -s gives a folder another name"
REMEDIES = {  # where more can be said
    "dataset": f"{PLAIN}; pictures of your own are called folder:PATH",
    "epochs": "train for at least 1",
    "batch_size": "batch normalisation needs at least 2 images",
    "gate_density": "use a number from 1/C, one class per filter, to 1, no pressure",
    "cycle": "use letters s (standard) and g (gated), such as sgs",
}


def within(value: float | int, interval: str) -> bool:
    """Whether a number lies in an interval such as "(0, 1]"; NaN lies in none."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    return (low <= value if interval[0] == "[" else low < value) and (value <= high if interval[-1] == "]" else value < high)
