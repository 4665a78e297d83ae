import dataclasses
import itertools

import pytest
import torch
from matplotlib import pyplot as plt

from csgbook.pages import figures
from csglib import data
from csglib.analysis import metrics
from csglib.readout import Readout


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
    "correlations": (lambda pair: figures.correlations(pair), 6),
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


@pytest.mark.parametrize("classes, rows", [((0, 0, 1, 2), (0, 1)), ((3, 3, 2, 2), (0, 1, 2, 3))])
def test_where_filters_fire_is_compared_class_by_class(classes, rows, pair, monkeypatch):
    """The second network owns classes 0 and 1; a row that one of the two lacks stays empty on its side."""
    owned = {"CSG": torch.tensor(classes), "STD": torch.tensor([0, 1, 1, 0])}
    monkeypatch.setattr(figures.metrics, "owners", lambda readout: owned["STD" if readout.gate is None else "CSG"])
    monkeypatch.setattr(figures, "sample_maps", lambda run: torch.rand(1000, 4, 8, 8, generator=torch.manual_seed(0)) + 0.1)
    figure = figures.places(pair, data.CLASSES, shown=2)
    shown = [ax.get_ylabel() for ax in figure.axes if ax.get_ylabel()]
    assert shown == [data.CLASSES[c] for c in rows for group in owned.values() if c in group.tolist()]


def test_the_heat_map_of_removals_shows_the_numbers(run):
    accuracies = metrics.removal(run.readout, metrics.cluster(run.readout.gate))
    image = figures.removals({"own": accuracies}, data.CLASSES).axes[0].images[0]
    assert (image.get_array() == accuracies.numpy()).all()


# Many classes


@pytest.fixture
def many(run, bare):
    """many(C, K): stand-ins with and without a gate, of C classes and K filters."""

    def pair(C: int, K: int):
        g, found = torch.Generator().manual_seed(0), {}
        for name, gated in (("CSG", True), ("STD", False)):
            G = torch.nn.functional.one_hot(torch.arange(K) % C, C).T.float()
            readout = Readout(
                features=torch.rand(4 * C, K, generator=g),
                labels=torch.arange(4 * C) % C,
                weight=torch.randn(C, K, generator=g),
                bias=torch.zeros(C),
                gate=G if gated else None,
            )
            found[name] = dataclasses.replace(run)
            object.__setattr__(found[name], "readout", readout)
        return found, tuple(f"a rather long name of class {c}" for c in range(C))

    return pair


def overlapping(figure) -> list[tuple[str, str]]:
    """Neighbouring names along an axis that lie on each other."""
    figure.canvas.draw()
    found = []
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            texts = [(t.get_text(), t.get_window_extent()) for t in axis.get_ticklabels() if t.get_text() and t.get_visible()]
            found += [(a, b) for (a, x), (b, y) in itertools.pairwise(texts) if x.overlaps(y)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("C, K", [(100, 64), (200, 512)])
def test_names_of_many_classes_are_thinned_so_that_none_lies_on_another(C, K, many):
    pair, classes = many(C, K)
    csg = pair["CSG"]
    accuracies = {name: torch.rand(C, C) for name in pair}
    for figure in (
        figures.gate(csg, classes),
        figures.gate_film(csg.readout.gate[None], classes),
        figures.removals(accuracies, classes),
        figures.confusions(pair, torch.tensor([1, 2]), classes),
        figures.centres(pair, classes),
        figures.owned(groups(pair), classes),
    ):
        assert overlapping(figure) == []
        named = [t.get_text() for ax in figure.axes for t in ax.get_yticklabels() + ax.get_xticklabels()]
        assert sum("rather long" in text for text in named) >= 10 and max(map(len, named)) <= 18


def test_ten_of_many_classes_have_colours_and_the_others_one(many):
    pair, classes = many(40, 64)
    told = [t.get_text() for t in figures.clusters({"CSG": pair["CSG"]}, classes, n=60).legends[0].get_texts()]
    assert told[0] == "other classes" and len(told) == 11


@pytest.mark.parametrize("R, K", [(3, 5), (500, 500), (501, 499), (1000, 512), (1203, 7)])
def test_no_entry_of_a_large_matrix_is_lost(R, K):
    values = torch.zeros(R, K)
    at = torch.randperm(R * K, generator=torch.Generator().manual_seed(0))[:7]
    values.view(-1)[at] = torch.linspace(0.3, 0.9, 7)
    _, ax = plt.subplots()
    image = figures.draw_matrix(ax, values)
    plt.close()
    pixels = torch.tensor(image.get_array().data)
    assert max(pixels.shape) <= 500 and pixels.max() == values.max()
    rows, columns = (-(-n // m) for n, m in zip((R, K), pixels.shape, strict=True))
    for i in at.tolist():
        assert pixels[i // K // rows, i % K // columns] >= values.view(-1)[i]
    assert image.get_extent() == [-0.5, K - 0.5, R - 0.5, -0.5]
    assert [t.get_text() for t in ax.texts] == (
        [] if (R, K) in ((3, 5), (500, 500)) else [f"a cell: the largest of {rows} x {columns}"]
    )
