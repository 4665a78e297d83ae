"""The sheet of cost and time: its counts against theory, its predictions against arithmetic by hand."""

import math
import runpy
from dataclasses import replace

import pytest
import torch
import torchvision
from conftest import ROOT

from csgbook import experiments, measured
from csgbook.pages import gpu_costs, more_classes
from csgbook.pages.gpu_costs import Machines, Task
from csglib import Problem
from csglib.recipe import Recipe
from csglib.runs import provenance

SMALL = Task(
    "small", Recipe(net="resnet20", method="standard", epochs=3, batch_size=10, precision="bfloat16"), 1000, 10, 32, True
)
PLAIN = Machines(
    peak=1e12, inside=100e6, between=10e6, node=4, reached=(0.5, 1.0), used=(0.1, 0.4), launch=(0.0, 0.0)
)  # round numbers


@pytest.fixture
def nothing_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(measured, "FOLDER", tmp_path)


@pytest.fixture
def small(monkeypatch, nothing_measured):
    """One task whose step costs 1e10 operations per image, starts no kernel worth counting and sends 100 MB."""
    monkeypatch.setattr(gpu_costs, "tasks", lambda: [SMALL])
    monkeypatch.setattr(gpu_costs, "counted", lambda task: {"operations": 10**10, "kernels": 1, "gradient_bytes": 10**8})


def test_counts_are_those_of_the_layers():
    """Of the ResNet-20: each convolution costs 2 operations per multiply-add, three times over but for the first, whose input
    needs no gradient."""
    convolutions = [16 * 3 * 9 * 32**2] + [16 * 16 * 9 * 32**2] * 6
    convolutions += [32 * 16 * 9 * 16**2] + [32 * 32 * 9 * 16**2] * 5 + [64 * 32 * 9 * 8**2] + [64 * 64 * 9 * 8**2] * 5
    head = 64 * 10
    cost = gpu_costs.counted(SMALL)
    assert cost["operations"] == 2 * (3 * (sum(convolutions) + head) - convolutions[0])
    assert cost["gradient_bytes"] == 4 * 269_722 and cost["gate_bytes"] == 0
    assert cost["kernels"] > 3 * 19 + 2 * 19  # convolutions, batch normalisations and rectifiers, forward and backward


@pytest.mark.slow
def test_the_two_networks_have_the_gradients_of_torchvision_s_and_a_gate():
    imagenet, voc = map(gpu_costs.counted, gpu_costs.tasks())
    net = torchvision.models.resnet18()
    assert imagenet["gradient_bytes"] == 4 * (sum(p.numel() for p in net.parameters()) + 1000 * 512)
    assert imagenet["gate_bytes"] == 4 * 1000 * 512
    assert 3 * 3.6e9 * 0.98 < imagenet["operations"] < 3 * 3.7e9  # three times 1.8 billion multiply-adds
    net = torchvision.models.resnet152()
    learning = [p for name, p in net.named_parameters() if name.startswith(("layer3", "layer4"))]
    assert voc["gradient_bytes"] == 4 * (sum(p.numel() for p in learning) + 2048 * 6 + 6 + 6 * 2048)


@pytest.mark.parametrize("gpus, seconds", [(1, 0), (2, 1.0), (4, 1.5), (8, 1.5 + 2.5), (16, 1.5 + 3.75)])
def test_an_exchange_takes_as_long_as_its_rings(gpus, seconds):
    assert gpu_costs.exchange(10**8, gpus, PLAIN) == pytest.approx(seconds)


def test_hours_and_price_follow_from_speed_and_exchange(small):
    one, two = gpu_costs.rows((1, 2), price=3.0, machines=PLAIN)
    assert one["basis"] == "assumed: 10 % to 40 % of the H200's peak"
    assert one["images_per_second"] == pytest.approx((10, 40)) and one["steps"] == 100
    assert one["hours"] == pytest.approx((3 * 100 * 0.25 / 3600, 3 * 100 * 1.0 / 3600))
    assert one["price"] == pytest.approx([3 * h for h in one["hours"]])
    assert two["exchange_ms"] == pytest.approx((1000, 2000)) and two["steps"] == 50 and two["batch"] == 20
    assert two["hours"] == pytest.approx((3 * 50 * max(0.25, 1) / 3600, 3 * 50 * (1 + 2) / 3600))  # hidden, and added
    assert two["gpu_hours"] == pytest.approx([2 * h for h in two["hours"]])
    assert two["price"] == pytest.approx([3 * 2 * h for h in two["hours"]])


def test_a_deep_network_on_a_small_batch_waits_for_its_kernels(small):
    (row,) = gpu_costs.rows((1,), machines=replace(PLAIN, launch=(0.5, 2.0)))
    assert row["hours"] == pytest.approx((3 * 100 * 0.5 / 3600, 3 * 100 * 2.0 / 3600))


def entry(name: str, value: float | None) -> dict:
    """As tools/bench.py writes it."""
    hardware = {"processor": "a processor", "threads": 1, "gpu": "a GPU"}
    return {"name": name, "value": value, "unit": "images/s", "spread": None, "against": "", "hardware": hardware, "detail": {}}


def on_a_processor(steps: list[tuple], decoded: float) -> None:
    """As tools/scaling.py writes it: net, pixels and ratio of each step."""
    rest = {
        "thaw": "",
        "batch": 1,
        "operations": 1,
        "images_per_second": 1.0,
        "images_quartiles": [1, 1],
        "csg_quartiles": [1, 1],
    }
    told = [{"net": net, "pixels": pixels, "csg_ratio": ratio} | rest for net, pixels, ratio in steps]
    hardware = {"processor": "a processor", "threads": 1, "gpu": None}
    code = {"commit": None, "dirty": None, "hardware": hardware, "precision": "float32", "rounds": 2, "load": 0.5}
    measured.write("scaling", {"steps": told, "decoded_per_core": decoded} | code)


def test_a_measurement_takes_the_place_of_the_assumption(small):
    measured.write(
        "speed", {"rows": [entry("gpu_resnet20_64", 1.0), entry("gpu_resnet20_32", 500.0), entry("gpu_other_32", None)]}
    )
    (row,) = gpu_costs.rows((1,), machines=PLAIN)
    assert row["basis"] == "measured: a GPU" and row["images_per_second"] == (500, 500)


def test_the_gate_s_share_counts_in_gated_epochs_alone(nothing_measured):
    """The nearest size of the same network is taken; the cycle sgs of 9 epochs has 3 gated ones."""
    task = SMALL._replace(recipe=replace(SMALL.recipe, method="csg", epochs=9))
    assert gpu_costs.gate_ratio(task) == 1
    on_a_processor([("resnet20", 40, 1.3), ("resnet20", 99, 5.0), ("other", 32, 7.0)], 50.0)
    assert gpu_costs.gate_ratio(task) == pytest.approx(1 + 0.3 * 3 / 9)
    assert gpu_costs.gate_ratio(SMALL) == 1


def test_cores_decode_for_the_higher_speed_where_images_do_not_lie_on_the_gpu(small, monkeypatch):
    on_a_processor([], 15.0)
    assert gpu_costs.rows((1,), machines=PLAIN)[0]["cores"] is None
    monkeypatch.setattr(gpu_costs, "tasks", lambda: [SMALL._replace(resident=False)])
    assert gpu_costs.rows((1,), machines=PLAIN)[0]["cores"] == math.ceil(40 / 15)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"gpus": (0,)}, "0 GPUs cannot share the 1000 images of small: use 1 to 100"),
        ({"gpus": (101,)}, "101 GPUs cannot share"),
        ({"gpus": (6,)}, "6 GPUs do not fill nodes of 4: use a multiple"),
        ({"price": math.nan}, "a GPU-hour cannot cost nan"),
        ({"price": -1.0}, "a GPU-hour cannot cost -1"),
    ],
)
def test_what_cannot_be_is_refused(small, change, said):
    with pytest.raises(Problem, match=said):
        gpu_costs.rows(machines=PLAIN, **change)


@pytest.mark.slow
def test_the_table_shows_every_row_and_no_price_that_nobody_gave():
    table, _, speeds = gpu_costs.table().data.partition("\n\n")
    shown = table.splitlines()
    assert len(shown) == 2 + 2 * 3 and all("VOC 2010" in line or "ImageNet" in line for line in shown[2:])
    assert "Price" not in table and all(speeds.count(task.title) == 1 for task in gpu_costs.tasks())
    head, _, *priced = gpu_costs.table(2.0).data.partition("\n\n")[0].splitlines()
    price = [word.strip() for word in head.split("|")].index("Price")
    assert len(priced) == 6 and {line.split("|")[price].strip() for line in priced}.isdisjoint({"–"})


@pytest.mark.slow
def test_the_page_says_what_imagenet_would_take_and_how_to_train_it(monkeypatch, tmp_path):
    asked = []
    row = {"hours": (1.5, 6.0), "cores": 40}
    monkeypatch.setattr(gpu_costs, "rows", lambda gpus, asked_=asked, **options: asked_.append((gpus, options)) or [row, row])
    told = more_classes.imagenet(tmp_path).data
    assert asked == [((1, 8), {"asked": [gpu_costs.tasks()[0]]})]
    assert "Not run here" in told and "predicted to take 1.5 to 6 h on one H200, with 40 processor cores" in told
    commands = [line for line in told.splitlines() if line.startswith("csglib train")]
    recipes = experiments.recipes("table1", "paper", tmp_path)
    assert commands == [recipes[name][0].command for name in more_classes.IMAGENET]
    assert all("--crop resized --" in c and "--net resnet18@layer4" in c and "--batch-size 256" in c for c in commands)


@pytest.mark.slow
def test_the_page_shows_imagenet_s_numbers_once_there_are_runs(monkeypatch, tmp_path, run):
    groups = experiments.recipes("table1", "paper", tmp_path)
    csg = groups["imagenet-csg"][0]
    values = run.metrics | {"mis_balanced": 0.61, "mis_balanced_null": 0.18}
    trained = replace(run, recipe=csg)
    object.__setattr__(trained, "metrics", values)
    there = dict.fromkeys(groups, []) | {"imagenet-csg": [trained]}
    monkeypatch.setattr(experiments, "published", lambda *_: there)
    told = more_classes.imagenet(tmp_path).data
    table, rest = told.split("**Not run here.**")
    assert "Balanced MIS, nats" in table and "0.6100" in table and "STD" not in table
    assert "--method standard" in rest and "--method csg" not in rest


@pytest.mark.slow
def test_the_tool_measures_what_the_sheet_reads(nothing_measured):
    tool = runpy.run_path(str(ROOT / "tools" / "scaling.py"))
    task = SMALL._replace(recipe=replace(SMALL.recipe, method="csg", gate_density=0.2))
    step = tool["measure_steps"](task, 2, "float32")
    code = {name: provenance.here(torch.device("cpu"))[name] for name in ("commit", "dirty", "hardware")}
    told = {"steps": [step], "decoded_per_core": tool["measure_decoding"](1), "precision": "float32", "rounds": 2, "load": 0.5}
    measured.write("scaling", told | code)
    found = gpu_costs.on_a_processor()
    assert found["decoded_per_core"] > 1 and 0.1 < found["steps"][0]["csg_ratio"] < 10
    assert gpu_costs.gate_ratio(task) == pytest.approx(
        1 + max(0, step["csg_ratio"] - 1) / 3
    )  # one of its three epochs is gated
    assert step["operations"] == gpu_costs.counted(task)["operations"]
