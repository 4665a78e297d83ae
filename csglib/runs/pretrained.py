"""A trained network as one folder to share, in the layout of Hugging Face's hub: config.json and model.safetensors."""

import dataclasses
from pathlib import Path

from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from csglib.errors import Damaged, Occupied, Problem
from csglib.files import MIB, read_json, read_tensors, write
from csglib.networks.split import Split
from csglib.recipe import Recipe
from csglib.runs import Run, dump, network
from csglib.runs.schema import WHOLE, record

CONFIG = record({"library_name": {"const": "csglib"}, "num_classes": WHOLE, "recipe": {"type": "object"}})
GATE = "gate.matrix"  # beside the network's own tensors
AGAIN = "save it again, or download it again"


def save_pretrained(run: Run, folder: Path | str) -> Path:
    """Write a run's network, whole, and its gate, in the layout that `from_pretrained` and the hub's tools read.

    Args:
        run: A finished run.
        folder: New, or empty.

    Returns:
        The folder, with config.json and model.safetensors.

    Raises:
        Problem: For a folder that holds something.
    """
    folder, net = Path(folder), run.network()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Occupied(f"{folder} exists and is not an empty folder: choose another")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(net.state_dict()) | ({} if run.gate is None else {GATE: run.gate})
    recipe = dataclasses.replace(run.recipe, weights="fresh", thaw="")  # all its weights are here
    config = {"library_name": "csglib", "num_classes": net.num_classes, "recipe": dataclasses.asdict(recipe)}
    write(folder / "model.safetensors", save({name: t.contiguous() for name, t in tensors.items()}))
    write(folder / "config.json", dump(config))
    return folder


def from_pretrained(name: Path | str) -> tuple[Split, Float[Tensor, "C K"] | None]:
    """A network and its gate as `save_pretrained` wrote them.

    Args:
        name: A folder, or a name on Hugging Face's hub, which needs huggingface_hub.

    Returns:
        The network, in eval mode, and its gate's matrix, None without one.

    Raises:
        Problem: Where there is none, a file is damaged or of another network, or a weight is not finite.
    """
    folder = Path(name) if Path(name).is_dir() else downloaded(str(name))
    config = read_json(folder / "config.json", AGAIN, CONFIG)
    recipe = Recipe.from_dict(config["recipe"], str(folder / "config.json"))
    path = folder / "model.safetensors"
    tensors = read_tensors(path, AGAIN, 2048 * MIB)
    if bad := [key for key, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]:
        raise Damaged(f"{path}: {bad[0]} is not finite: {AGAIN}")
    gate = tensors.pop(GATE, None)
    net = network(recipe, config["num_classes"], tensors, path).eval()
    if gate is not None and gate.shape != (net.num_classes, net.num_filters):
        raise Damaged(
            f"{path}: {GATE} has shape {tuple(gate.shape)}, the network {net.num_classes} x {net.num_filters}: {AGAIN}"
        )
    return net, gate


def downloaded(name: str) -> Path:
    """The folder of a network fetched from the hub.  Raises Problem where that fails."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise Problem(f"{name} is no folder here, and to download it takes a package: pip install huggingface_hub") from None
    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", "model.safetensors"]))
    except Exception as error:  # the hub has many, all of them of a name or a network
        raise Problem(
            f"{name} could not be downloaded ({str(error).splitlines()[0]:.100}): check the name, try again"
        ) from None
