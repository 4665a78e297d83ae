"""The device, and the precision in which it computes: which is native, which is emulated, and how each is asked for."""

import copy
import dataclasses
import os
import time
from contextlib import contextmanager

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from csglib.errors import Problem, printable
from csglib.recipe import Recipe


def pick_device(name: str | None) -> torch.device:
    """The device of that name; None takes cuda where there is one.  Raises Problem for one that is not here."""
    count = torch.cuda.device_count()
    known = ["cpu"] + ["cuda"] * (count > 0) + [f"cuda:{i}" for i in range(count)]
    if name is not None and name not in known:
        raise Problem(f"no device {name!r} here: choose one of {', '.join(known)}, or leave --device out")
    return torch.device(name or ("cuda" if count else "cpu"))


def settle_precision(recipe: Recipe, device: torch.device) -> tuple[Recipe, str]:
    """The recipe with its precision named, and the reason, for print and provenance."""
    precision, verdict = native(device)
    if recipe.precision == "auto":
        return dataclasses.replace(recipe, precision=precision), verdict
    return recipe, f"asked for; {verdict}"


def native(device: torch.device) -> tuple[str, str]:
    """The precision in which this device trains fastest, and why: bfloat16 where it computes that itself."""
    if device.type == "cuda":
        with torch.cuda.device(device):  # of several GPUs this one is asked
            found = torch.cuda.is_bf16_supported(including_emulation=False)
        why, other = printable(torch.cuda.get_device_name(device)), "float16"  # as on a T4
    else:
        found, why, other = cpu_has_bfloat16(), "this processor", "float32"
    return "bfloat16" if found else other, f"{why} {'computes' if found else 'does not compute'} bfloat16 natively"


def emulated(precision: str, device: torch.device) -> bool:
    """Whether this device computes it by other means, and so more slowly than float32."""
    half = {"cpu": ("bfloat16", "float16"), "cuda": ("bfloat16",)}[device.type]
    return precision in half and precision != native(device)[0]


def cpu_has_bfloat16() -> bool:
    """AVX-512 with bfloat16 or AMX, where oneDNN may use it: there bfloat16 doubles the images per second (measured 1,700
    against 935 on 2 cores); elsewhere it is emulated, 12 times slower than float32 (37 against 470).
    """
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch offers no public test
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()  # oneDNN computes with no more than this, whatever is there
    allowed = limit in ("", "ALL", "DEFAULT") or any(word in limit for word in ("BF16", "FP16", "AMX", "AVX10"))
    return allowed and any(getattr(torch.cpu, probe, bool)() for probe in probes)


def emulation(net: nn.Module, images: UInt8[Tensor, "N 3 H W"], precision: str) -> float:
    """How many times as long as in float32 the network takes with these images, forward and backward; measured on a copy."""
    net, x, taken = copy.deepcopy(net), images.to(memory_format=torch.channels_last).float() / 255, {}
    for name in ("float32", precision):
        for _ in range(2):  # the first warms up
            began = time.perf_counter()
            with autocast(images.device, name):
                net(x).float().sum().backward()
            taken[name] = time.perf_counter() - began
    return taken[precision] / taken["float32"]


def autocast(device: torch.device, precision: str):
    """A context in which this precision is computed; float32 without TF32."""
    half = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    return torch.autocast(device.type, half[precision]) if precision in half else exact(device, precision)


@contextmanager
def exact(device: torch.device, precision: str):
    """float32 is float32: since Ampere, GPUs else round the factors of convolutions to TF32's 10 bits."""
    if device.type != "cuda" or precision != "float32":
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    named = hasattr(cudnn, "conv")  # since torch 2.9
    if matmul.fp32_precision == "tf32" if named else matmul.allow_tf32:
        raise Problem("float32 is asked for, and TF32 is on here: call torch.set_float32_matmul_precision('highest') first")
    where, name, full = (cudnn.conv, "fp32_precision", "ieee") if named else (cudnn, "allow_tf32", False)
    before = getattr(where, name)
    setattr(where, name, full)
    try:
        yield
    finally:
        setattr(where, name, before)
