import json
import sys
import types

import pytest
import torch
from safetensors.torch import load_file, save_file

import csglib
from csglib import Problem, data, runs
from csglib.errors import Occupied
from csglib.paths import PUBLISHED
from csglib.recipe import Recipe

SAMPLE = data.to_float(data.load("cifar10-mini").test.images[:20])


@pytest.fixture
def saved(run, tmp_path):
    return csglib.save_pretrained(run, tmp_path / "shared")


def test_a_network_comes_back_with_its_logits_and_its_gate(run, saved):
    net, gate = csglib.from_pretrained(saved)
    with torch.no_grad():
        assert torch.equal(net(SAMPLE), run.network().eval()(SAMPLE))
    assert torch.equal(gate, run.gate) and not net.training
    assert sorted(p.name for p in saved.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("method", ["standard", "picnn", "icnn"])
def test_every_method_can_be_shared(method, tmp_path):
    path = next(p for p in sorted(PUBLISHED.iterdir()) if p.name.startswith(f"cifar10-resnet20-{method}-"))
    run = runs.read(path)
    net, gate = csglib.from_pretrained(csglib.save_pretrained(run, tmp_path / "shared"))
    with torch.no_grad():
        assert torch.equal(net(SAMPLE), run.network().eval()(SAMPLE))
    assert (gate is None) == (method == "standard")


def test_what_started_from_imagenet_is_shared_whole(run, tmp_path):
    """So nothing has to be downloaded where it is opened."""
    found = json.loads((csglib.save_pretrained(run, tmp_path / "shared") / "config.json").read_text())
    assert Recipe.from_dict(found["recipe"], "it").weights == "fresh"


def test_a_folder_with_something_in_it_is_left_alone(run, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(Occupied):
        csglib.save_pretrained(run, tmp_path)


def damage(folder, deed):
    path = folder / "model.safetensors"
    if deed == "cut off":
        path.write_bytes(path.read_bytes()[:1000])
    elif deed == "gone":
        (folder / "config.json").unlink()
    elif deed == "other library":
        (folder / "config.json").write_text((folder / "config.json").read_text().replace('"csglib"', '"timm"'))
    else:
        tensors = load_file(path)
        if deed == "not finite":
            tensors["head.bias"][0] = float("nan")
        elif deed == "other gate":
            tensors["gate.matrix"] = torch.ones(3, 3)
        else:
            del tensors["head.bias"]
        save_file(tensors, path)


@pytest.mark.parametrize(
    "deed, said",
    [
        ("cut off", "model.safetensors"),
        ("gone", "config.json is missing"),
        ("other library", "config.json"),
        ("not finite", "head.bias is not finite"),
        ("other gate", r"gate.matrix has shape \(3, 3\)"),
        ("lacks one", "is not of resnet"),
    ],
)
def test_a_damaged_folder_is_refused(saved, deed, said):
    damage(saved, deed)
    with pytest.raises(Problem, match=said):
        csglib.from_pretrained(saved)


def test_a_name_is_asked_of_the_hub(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(Problem, match="pip install huggingface_hub"):
        csglib.from_pretrained("someone/csg-resnet20")
    hub = types.SimpleNamespace(snapshot_download=lambda name, allow_patterns: str(saved))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert csglib.from_pretrained("someone/csg-resnet20")[0].num_classes == 10


def test_torch_exports_the_network(run):
    net = run.network().eval()
    exported = torch.export.export(net, (SAMPLE,)).module()
    with torch.no_grad():
        assert torch.allclose(exported(SAMPLE), net(SAMPLE), atol=1e-5)


def test_each_epochs_row_is_handed_over(tiny, tmp_path, monkeypatch):
    """As to TensorBoard or wandb; a run that goes on hands over what it trains, no more."""
    import trainings

    from csglib import networks
    from csglib.training import train

    monkeypatch.setitem(networks.NETS, "small", trainings.small)
    rows = []
    run = train(trainings.RECIPE, tmp_path / "run", "cpu", on_epoch=rows.append)
    assert rows == run.history and rows[1]["path"] == "gated" and 0 <= rows[1]["test_accuracy"] <= 1
