import pytest
import torch
from matplotlib import pyplot as plt

from csgbook.pages import figures
from csglib import data
from csglib.analysis import metrics


@pytest.mark.slow
@pytest.mark.parametrize("epochs, rows", [(1, 1), (3, 3), (9, 4)])
def test_the_film_shows_the_first_and_the_last_gate_and_leaves_no_figure_open(epochs, rows):
    gates = torch.linspace(1, 0.5, epochs)[:, None, None].expand(epochs, 3, 5)
    figure = figures.gate_film(gates, ("a", "b", "c"))
    titles = [ax.get_title(loc="left") for ax in figure.axes if ax.get_title(loc="left")]
    assert len(titles) == rows
    assert titles[0].startswith(f"after gated epoch 1 of {epochs}") and titles[-1].startswith(f"after gated epoch {epochs} of")
    assert plt.get_fignums() == []


@pytest.fixture(scope="module")
def pair(run, bare):
    """The same network with its gate and without."""
    return {"CSG": run, "STD": bare}


def groups(pair):
    return {name: [run] for name, run in pair.items()}


DRAWINGS = {
    "gate_and_information": (lambda pair: figures.gate_and_information(pair, data.CLASSES), 6),
    "correlations": (lambda pair: figures.correlations(pair), 4),
    "confusions": (lambda pair: figures.confusions(pair, torch.tensor([0, 5]), data.CLASSES), 4),
    "centres": (lambda pair: figures.centres(pair, data.CLASSES), 2),
    "clusters": (lambda pair: figures.clusters(pair, data.CLASSES, n=60), 4),
    "owned": (lambda pair: figures.owned(groups(pair), data.CLASSES), 2),
    "ablations": (lambda pair: figures.ablations(groups(pair) | {"none": []}, base="CSG"), 2),
    "compare": (lambda pair: figures.compare(groups(pair)), 2),
    "places": (lambda pair: figures.places(pair, data.CLASSES, filters=3, shown=2), 12),
    "trade": (lambda pair: figures.trade(groups(pair) | {"none": []}), 1),
    "losses": (lambda pair: figures.losses(pair["CSG"]), 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWINGS)
def test_a_figure_has_its_panels_and_is_closed(name, pair):
    draw, panels = DRAWINGS[name]
    figure = draw(pair)
    assert len([ax for ax in figure.axes if ax.get_label() != "<colorbar>"]) == panels
    assert plt.get_fignums() == []


def test_the_heat_map_of_removals_shows_the_numbers(run):
    accuracies = metrics.removal(run.readout, metrics.cluster(run.readout.gate))
    image = figures.removals({"own": accuracies}, data.CLASSES).axes[0].images[0]
    assert (image.get_array() == accuracies.numpy()).all()
