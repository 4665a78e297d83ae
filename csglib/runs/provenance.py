"""Which code, libraries and hardware make a run or a measurement: the commit, and whether files differ from it."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from csglib.errors import printable
from csglib.paths import ROOT


def here(device: torch.device, written: Path | None = None) -> dict:
    """What makes something on this device now; commit and dirty are None outside of a clone.

    A file that a tool has `written` into before, one entry after another, does not make the code that writes it dirty.
    """

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    versions = {"python": platform.python_version()}
    for name in ("csglib", "torch", "torchvision", "numpy", "safetensors"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    top = git("rev-parse", "--show-toplevel")
    ours = top is not None and Path(top).resolve() == ROOT  # not a repository around an installed copy
    beside = [f":(exclude,literal){written}"] if written is not None and written.is_relative_to(ROOT) else []
    status = git("status", "--porcelain", "--untracked-files=no", "--", ".", *beside)
    return {
        "commit": git("rev-parse", "HEAD") if ours else None,
        "dirty": bool(status) if ours and status is not None else None,
        "versions": versions,
        "hardware": {
            "processor": printable(processor()),
            "threads": torch.get_num_threads(),
            "gpu": printable(torch.cuda.get_device_name(device)) if device.type == "cuda" else None,
        },
    }


def processor() -> str:
    """The processor's name, as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
