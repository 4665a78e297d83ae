import pytest
import torch
from matplotlib import pyplot as plt

from csglib import figures
from csglib.runs import PUBLISHED, Recipe, Run

NOTHING = {"accuracy": 0.9, "mis": 0.1, "mis_null": 0.0, "mis_normalised": 0.3, "l1_density": None}


def fake(seed: int, accuracy: float, gpu: str | None = None) -> Run:
    recipe = Recipe(method="standard", seed=seed, precision="float32")
    hardware = {"gpu": gpu, "processor": "An abacus", "threads": 2}
    provenance = {
        "commit": "0123456789",
        "dirty": True,
        "versions": {"torch": "2"},
        "train_seconds": 90.0,
        "hardware": hardware,
    }
    return Run(PUBLISHED / recipe.name, recipe, NOTHING | {"accuracy": accuracy}, provenance)


def test_the_table_gives_mean_and_deviation_over_seeds_beside_the_papers_number():
    table = figures.metrics_table({"std": [fake(0, 0.90), fake(1, 0.92)], "csg": []}, {"std": {"accuracy": 0.9169}}).data
    accuracy = next(line for line in table.splitlines() if "Accuracy" in line)
    assert [cell.strip() for cell in accuracy.split("|")[1:-1]] == ["Accuracy", "0.9100 ± 0.0141", "0.9169", "–", "–"]
    assert [cell.strip() for cell in table.splitlines()[-1].split("|")[1:-1]] == ["runs", "2", "", "0", ""]


def test_one_run_has_no_deviation_and_none_at_all_no_number():
    assert figures.spread([0.5]) == "0.5000"
    assert figures.spread([None]) == figures.spread([]) == "–"


def test_provenance_names_the_machine_that_trained_and_marks_a_dirty_commit():
    text = figures.provenance({"std": [fake(0, 0.9), fake(1, 0.9, gpu="A GPU")]}).data
    assert "An abacus, 2 threads" in text and "A GPU, torch 2" in text
    assert text.count("`01234567` (dirty)") == 2 and "1.5" in text
    assert "No run" in figures.provenance({"std": []}).data


def test_missing_runs_are_listed_with_their_commands():
    assert "csglib train --dataset cifar10 --net resnet20 --method csg --epochs 30 --seed 7" in figures.missing([
        Recipe(seed=7, precision="float32")
    ]).data  # fmt: skip
    assert "are there" in figures.missing([]).data


@pytest.mark.parametrize("epochs, rows", [(1, 1), (3, 3), (9, 4)])
def test_the_film_shows_the_first_and_the_last_gate_and_leaves_no_figure_open(epochs, rows):
    gates = torch.linspace(1, 0.5, epochs)[:, None, None].expand(epochs, 3, 5)
    figure = figures.gate_film(gates, ("a", "b", "c"))
    titles = [ax.get_title(loc="left") for ax in figure.axes if ax.get_title(loc="left")]
    assert len(titles) == rows
    assert titles[0].startswith(f"after gated epoch 1 of {epochs}") and titles[-1].startswith(f"after gated epoch {epochs} of")
    assert plt.get_fignums() == []
