"""What is found here and what to do about it: `csglib doctor`, and the choice of profile and precision for the device."""

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from csglib import __version__, runs
from csglib.data import load
from csglib.data.released import RELEASES, verify
from csglib.errors import Problem, check_name
from csglib.paths import CLONE, ROOT, folder
from csglib.recipe import Recipe

PROFILES = ("auto", "quick", "short", "paper")
TOOLS = {
    "notebooks": ("ipywidgets", "matplotlib", "pandas", "tabulate"),
    "the book": ("jupyter_book", "papermill", "snakemake"),
}


@dataclass(frozen=True)
class Choice:
    """What suits the device: a profile of book/experiments.yml, and the precision that training will take."""

    profile: str
    precision: str
    told: str  # the device and the reason, one sentence

    def __str__(self) -> str:
        return self.told


def choose(profile: str = "auto") -> Choice:
    """The profile and the precision for the device that is here.

    `auto` is quick without a GPU, paper on a GPU that computes bfloat16, short on an older one such as Colab's T4.  The
    precision is training's own choice.  Raises Problem where the profile is unknown.
    """
    from csglib.precision import pick_device, settle_precision

    check_name("profile", profile, PROFILES)
    device = pick_device(None)
    settled, why = settle_precision(Recipe(), device)
    gpu = device.type == "cuda"
    if profile == "auto":
        profile = "quick" if not gpu else "paper" if settled.precision == "bfloat16" else "short"
    told = f"{'GPU' if gpu else 'No GPU'}: profile {profile}, precision {settled.precision}, since {why}."
    return Choice(profile, settled.precision, told)


@dataclass(frozen=True)
class Finding:
    state: str  # ok | note: could be more, nothing has to be done | do: something has to be done
    text: str

    def __str__(self) -> str:
        return f"{self.state:5}{self.text}"


def examine() -> Iterator[Finding]:
    """Everything that csglib needs or can use, in the order in which it matters."""
    yield Finding("ok", f"csglib {__version__}, {f'the repository in {ROOT}' if CLONE else f'installed in {ROOT.parent}'}")
    yield pair()
    yield gpu()
    yield speed()
    for purpose, names in TOOLS.items():
        if lacking := [name for name in names if find_spec(name) is None]:
            yield Finding(
                "note", f"tools for {purpose}: no {', '.join(lacking)}; `pip install '.[book]'` in a clone brings them"
            )
        else:
            yield Finding("ok", f"tools for {purpose}")
    yield place()
    yield sample()
    yield from downloaded()
    yield published()


def pair() -> Finding:
    """Python and torch; torchvision tells when it is imported that its torch is another one than it was built for."""
    try:
        import torchvision.ops  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        told = " ".join(str(error).split())[:100]
        return Finding(
            "do", f"torchvision cannot be used ({told}): `pip install --upgrade torch torchvision` gets a pair that fits"
        )
    return Finding("ok", f"Python {platform.python_version()}, torch {version('torch')}, torchvision {version('torchvision')}")


def gpu() -> Finding:
    """A small computation, as a GPU may be there and too old for this torch."""
    import torch

    if torch.cuda.is_available():
        try:
            (torch.zeros(1, device="cuda") + 1).item()
        except RuntimeError as error:
            told = str(error).splitlines()[0][:100]
            return Finding(
                "do", f"the GPU cannot be used ({told}): install a torch for it, or hide it, CUDA_VISIBLE_DEVICES=''"
            )
        return Finding("ok", str(choose()))
    if shutil.which("nvidia-smi") and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        why = "its driver is too old" if torch.version.cuda else "this torch was built without CUDA"
        return Finding(
            "do",
            f"nvidia-smi is here, but torch sees no GPU ({why}, or no GPU is free): update it, or set CUDA_VISIBLE_DEVICES=''",
        )
    return Finding("note", str(choose()))


def speed() -> Finding:
    """What a run of the book takes here."""
    from csglib.precision import pick_device, settle_precision
    from csglib.training import pace

    device = pick_device(None)
    try:
        recipe = settle_precision(Recipe(), device)[0]
        return Finding("ok", f"ResNet-20 on CIFAR-10, {pace.predict(recipe, pace.size(recipe), device)}")
    except (RuntimeError, AssertionError) as error:  # a GPU that cannot be used, of which `gpu` tells
        return Finding("note", f"no step could be timed ({str(error).splitlines()[0][:100]})")


def try_gpu() -> Iterator[Finding]:
    """What only a GPU can show, one after the other, each compared with the plain loop or the processor."""
    import torch

    from csglib.training.gpu import NAMES, check

    if not torch.cuda.is_available():
        yield Finding("note", "there is no GPU here that torch can use, so nothing was tried")
        return
    for name in NAMES:
        began, what = time.monotonic(), name.replace("_", " ")
        try:
            found = check(name)
        except Problem as problem:
            yield Finding("do", f"{what}: {problem}; please report this line with the output of `csglib doctor`")
        else:
            yield Finding("ok", f"{what}: {found} ({time.monotonic() - began:.0f} s)")


def place() -> Finding:
    """Where downloads go: there, or the nearest folder above, has to be writable."""
    where = there = folder().absolute()
    while not there.exists():
        there = there.parent
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        told = f"downloads go to {where}, which cannot be written ({error.strerror})"
        return Finding("do", f"{told}: set CSGLIB_DATA to a folder that can")
    return Finding("ok", f"downloads go to {where}, where {shutil.disk_usage(there).free / 1e9:.0f} GB are free")


def sample() -> Finding:
    try:
        found = load("cifar10-mini")
    except Problem as problem:
        return Finding("do", str(problem))
    return Finding("ok", f"the sample cifar10-mini: {len(found.train)} training and {len(found.test)} test images")


def downloaded() -> Iterator[Finding]:
    """Every data set that was released and is here, whole or in part."""
    for name, release in RELEASES.items():
        where, half = folder() / release.folder, folder() / f"{release.folder}.part"
        if where.exists():
            try:
                whole = verify(name)
            except Problem as problem:
                yield Finding("do", str(problem))
            else:
                yield Finding("ok", f"{release.called}, {'as released' if whole else 'all of its parts'}")
        elif half.exists():
            yield Finding("note", f"a download of {release.called} was stopped, `csglib data get {name}` goes on with {half}")
        elif name == "cifar10":
            yield Finding("note", "CIFAR-10 is not here, and only training on it needs it: `csglib data get cifar10`, 162 MiB")


def published(where: Path | None = None) -> Finding:
    """Each run is opened, and so compared with its digests."""
    where = where or runs.PUBLISHED
    found = sorted(p.parent for p in where.glob("*/provenance.json"))
    if not found:
        return Finding("note", f"no published run in {where}, and only pages of results need them: `csglib data get runs`")
    damaged = []
    for path in found:
        try:
            runs.read(path)
        except Problem as problem:
            damaged.append(str(problem))
    if damaged:
        return Finding("do", f"{len(damaged)} of {len(found)} published runs cannot be used, the first: {damaged[0]}")
    return Finding("ok", f"{len(found)} published runs in {where}")
