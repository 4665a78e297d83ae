"""The state of a training between two epochs, in one sealed file.

Random generators are not in it: all randomness of an epoch comes from (seed, epoch), the schedules from the epoch.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from csglib import files
from csglib.errors import Damaged, Problem


class Checkpoint:
    """All that a next epoch depends on, in one file that is replaced in one step."""

    def __init__(self, path: Path, net, gate, optimisers: list[Optimizer], scaler: GradScaler, data: str, versions: dict):
        """`data` is the digest of the images; those of another digest are refused.  `versions` are those of the libraries."""
        self.path, self.net, self.gate, self.optimisers, self.scaler = path, net, gate, optimisers, scaler
        self.data, self.versions = data, json.dumps(versions)

    def modules(self) -> dict[str, nn.Module]:
        """What has a state of its own, by the names under which it is saved."""
        apart = self.gate is not None and self.gate not in self.net.modules()
        return {"net": self.net} | ({"gate": self.gate} if apart else {})

    def save(self, history: list[dict], gates: list[Tensor], dirty: bool) -> None:
        """Write all, sealed, in one step; a stop leaves the checkpoint before."""
        tensors = {f"{m}.{k}": v for m, module in self.modules().items() for k, v in module.state_dict().items()}
        for i, (optimiser, p) in enumerate((o, p) for o in self.optimisers for p in parameters(o)):
            tensors |= {f"optimiser.{i}.{k}": v for k, v in optimiser.state[p].items() if v is not None}
        tensors |= {f"gates.{t}": g for t, g in enumerate(gates)}
        tensors = {k: v.cpu().contiguous() for k, v in tensors.items()}
        told = {"history": json.dumps(history), "dirty": json.dumps(dirty), "data": self.data, "versions": self.versions}
        told |= {"scaler": json.dumps(self.scaler.state_dict())}
        files.write(self.path, save(tensors, told | {"sha256": seal(tensors, told)}))

    def load(self) -> tuple[list[dict], list[Tensor], bool]:
        """Put the saved state back; returns the history and the gates so far, empty where nothing was saved.

        And whether a part of it was trained with changed code, or with other versions of the libraries.
        """
        if not self.path.exists():
            return [], [], False
        try:
            with safe_open(self.path, "pt") as f:
                told = dict(f.metadata() or {})
                tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (safe_open is no mapping)
            if told.pop("sha256", None) != seal(tensors, told):
                raise SafetensorError("its sha256 differs")
            history = json.loads(told["history"])
            for m, module in self.modules().items():
                module.load_state_dict({k.removeprefix(m + "."): v for k, v in tensors.items() if k.startswith(m + ".")})
        except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
            raise Damaged(
                f"{self.path} is damaged ({files.short(str(error))}): remove {self.path.parent} and train anew"
            ) from None
        if told.get("data", self.data) != self.data:
            raise Problem(
                f"{self.path} was trained on other images than are there now: restore them, or remove {self.path.parent} "
                "and train anew"
            )
        i = 0
        for optimiser in self.optimisers:
            state = {}
            for j, p in enumerate(parameters(optimiser)):
                kept = {k.split(".", 2)[2]: v for k, v in tensors.items() if k.startswith(f"optimiser.{i + j}.")}
                state[j] = {k: v.contiguous(memory_format=layout(p)) if v.shape == p.shape else v for k, v in kept.items()}
            i += len(state)
            # which knows what belongs on the parameter's device: of a fused Adam also the count of its steps
            optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
        if scaler := json.loads(told.get("scaler", "{}")):  # an older checkpoint has none: its scale starts anew, as it did
            self.scaler.load_state_dict(scaler)
        device = next(self.net.parameters()).device
        count = sum(k.startswith("gates.") for k in tensors)
        dirty = told.get("dirty") == "true" or told.get("versions", self.versions) != self.versions
        return history, [tensors[f"gates.{t}"].to(device) for t in range(count)], dirty


def parameters(optimiser: Optimizer) -> list[nn.Parameter]:
    """In the optimiser's order, by which states are numbered."""
    return [p for group in optimiser.param_groups for p in group["params"]]


def seal(tensors: dict[str, Tensor], told: dict[str, str]) -> str:
    """One sha256 over everything in a checkpoint: a flipped bit would train on, to another network."""
    return hashlib.sha256(save(tensors) + json.dumps(told, sort_keys=True).encode()).hexdigest()


def layout(p: Tensor) -> torch.memory_format:
    """As the network holds it: convolutions' kernels channels last."""
    return torch.channels_last if p.ndim == 4 else torch.contiguous_format
