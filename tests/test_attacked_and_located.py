import copy

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt

from csgbook import measured
from csgbook.pages import attacked, figures, located
from csglib import Problem, data
from csglib.analysis import metrics
from csglib.data import objects
from csglib.recipe import Recipe

WIDE = {
    "dataset": "zoo",
    "objects": 20,
    "against": "boxes",
    "cam": {"iou": 0.4, "ap30": 0.7, "box_accuracy": 0.6, "max_box_accuracy": 0.65},
    "chance": {"middle_iou": 0.35, "whole_iou": 0.55, "box_accuracy": 0.8},
}
TIGHT = WIDE | {
    "activation": {"iou": 0.3, "ap30": 0.5, "zero_thresholds": 0.25, "filters": [0, 0, 0, 0, 0, 21]},
    "firing": {"iou": 0.2, "ap30": 0.1, "zero_thresholds": 0.0, "filters": [1, 2, 3, 4, 5, 6]},
    "gradient": {"iou": 0.5, "ap20": 0.9, "objects": 10},
}


@pytest.fixture
def kept(tmp_path, monkeypatch, run):
    """What tools would have measured of the run."""
    monkeypatch.setattr(measured, "FOLDER", tmp_path)
    errors = {"500": [0.30, 0.32, 0.28, 0.31, 0.29], "1000": [0.2, 0.2, 0.2, 0.2, 0.2]}
    attacks = {name: {"turned": 0.9, "used": 700, "errors": copy.deepcopy(errors)} for name in attacked.NAMES}
    attacks["fgsm"]["errors"].pop("1000")  # it turned too few
    measured.keep("detection", run, {"images": 1000, "accuracy": 0.8, "attacks": attacks})
    measured.keep("localisation", run, {"crops": {"tight": TIGHT, "wide": WIDE}})
    return tmp_path


def rows(shown) -> dict[str, list[str]]:
    """First cell of each row of a Markdown table -> the others."""
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.data.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in table}


@pytest.mark.slow
def test_the_table_of_detection_shows_what_was_measured(kept, run):
    table = rows(attacked.detection({"csg": [run], "std": []}))
    assert table["Attack"] == ["csg", "std"] and len(table) == 2 + len(attacked.NAMES)
    assert table["PGD"] == ["0.200", "–"] and table["FGSM"] == ["–", "–"]
    assert rows(attacked.success({"csg": [run], "std": []}))["FGSM"] == ["0.900", "–"]


@pytest.mark.slow
@pytest.mark.parametrize("dirty", [True, False])
def test_changed_code_is_marked_on_the_page_with_the_commit_that_measured(kept, run, dirty):
    entry = measured.read("detection")[run.recipe.name] | {"commit": "c" * 40, "dirty": dirty}
    measured.write("detection", {run.recipe.name: entry})
    last = attacked.detection({"csg": [run], "std": []}).data.splitlines()[-1]
    assert last == f"Measured by `tools/detection.py` at commit `cccccccc`{' (dirty)' * dirty}."
    assert "Measured by `tools/localisation.py` at commit" in located.scores({"csg": [run]}).data


def test_the_curves_have_a_marker_a_run_and_size_with_the_interval_of_its_splits(kept, run):
    figure = attacked.detection_curves({"csg": [run], "std": []})
    assert plt.get_fignums() == []
    bim, fgsm = figure.axes[1], figure.axes[0]
    assert bim.lines[0].get_ydata().tolist() == pytest.approx([0.3, 0.2])
    assert len(bim.containers) == 2 and len(fgsm.containers) == 1
    low, high = bim.containers[0].lines[2][0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((0.3 - 0.01963, 0.3 + 0.01963), abs=1e-4)  # t(4, 0.975) s / sqrt 5


def test_without_measurements_pages_say_which_tool_makes_them(tmp_path, monkeypatch, run):
    monkeypatch.setattr(measured, "FOLDER", tmp_path / "none")
    runs = {"csg": [run], "std": []}
    for shown in (attacked.detection(runs), attacked.success(runs), attacked.detection_curves(runs)):
        assert "python tools/detection.py" in shown.data
    for shown in (located.scores(runs), located.filters_of_classes(runs), located.beside_a_guess(runs)):
        assert "python tools/localisation.py" in shown.data
    assert "python tools/trials.py" in located.trials().data


def test_the_table_of_scores_stands_beside_a_guess_without_a_network(kept, run):
    table = rows(located.scores({"animals-csg": [run]}))
    assert table["CAM: IoU of the hottest 30 %"] == ["0.400", "0.350"]
    assert table["ActivMap: share of filters with threshold 0"] == ["0.250", "–"]
    assert table["ActivMap of firing positions: IoU"] == ["0.200", "0.550"]
    assert table["Wide crops, MaxBoxAcc"] == ["0.650", "0.800"]
    assert rows(located.filters_of_classes({"csg": [run]}))["csg"] == list("123456")
    assert rows(located.networks({"csg": [run], "std": []}))["std"][-1] == "0"


def test_marks_of_scores_lie_beside_a_guess_without_a_network_and_what_cannot_be_measured_has_none(kept, run):
    ax = located.beside_a_guess({"csg": [run], "std": []}).axes[0]
    names = [label.get_text() for label in ax.get_yticklabels()]
    y = names.index("ActivMap of firing positions: IoU")
    at = {round(line.get_ydata()[0] - y, 2): line.get_xdata()[0] for line in ax.lines if abs(line.get_ydata()[0] - y) < 0.5}
    assert at == {-0.36: 0.55, -0.16: pytest.approx(0.2)} and len(ax.lines) == 2 * len(names) and not ax.texts
    entry = measured.found("localisation", {"csg": [run]})["csg"][0]
    entry["crops"]["tight"]["activation"]["zero_thresholds"] = 1.0
    ax = located.dots({"csg": [entry]}).axes[0]
    assert [t.get_text() for t in ax.texts] == ["not measurable: every threshold is 0"] and len(ax.lines) == 2 * len(names) - 1


def test_trials_show_their_recipes(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "FOLDER", tmp_path)
    recipe = {"method": "standard", "lr": 0.03, "thaw": "network._blocks.15,network._bn1"}
    trial = {"recipe": recipe, "commit": None, "accuracy": 0.8, "mis": 0.05, "l1_density": None}
    csg = trial | {"recipe": recipe | {"method": "csg", "gate_lr": 1.0}, "l1_density": 0.2}
    measured.write("animals-trials", {"trials": [trial, csg]})
    table = rows(located.trials())
    assert table["standard"] == ["blocks.15, bn1", "0.03", "–", "–", "0.800", "0.0500", "–"]
    assert table["csg"] == ["blocks.15, bn1", "0.03", "1", "0.005", "0.800", "0.0500", "0.200"]


def test_attacked_images_are_shown_with_the_classes_before_and_after(run):
    figure = attacked.pictures({"CSG": run}, data.CLASSES, shown=3)
    assert len(figure.axes) == 9 and plt.get_fignums() == []
    assert [ax.get_title() for ax in figure.axes[:3]] == list(data.CLASSES[:3])
    assert all(" → " in ax.get_title() for ax in figure.axes[3:6])
    natural, changed = (figure.axes[i].images[0].get_array() for i in (0, 3))
    assert 0.03 < abs(natural - changed).max() <= 8 / 255 + 1e-6


def test_heat_maps_need_runs_and_photographs_and_say_so(run, tmp_path, monkeypatch):
    monkeypatch.setenv("CSGLIB_DATA", str(tmp_path))
    assert "csglib data get voc2012" in located.looks({"csg": [run], "std": []}).data
    assert "none of voc_animals, voc2012, voc2010, cifar10-mini is under" in located.looks({"csg": [run]}).data


def test_heat_maps_show_one_object_a_class_with_its_box(run):
    labels = torch.arange(6).repeat(2)
    boxes = torch.tensor([[4.0, 8, 20, 30]]).repeat(12, 1)
    pictures = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    val = objects.Objects(pictures, labels, boxes, ("a",) * 12, torch.zeros(12, 32, 32, dtype=torch.bool), ({},) * 12)
    figure = located.heat_maps({"csg": run}, val)
    assert len(figure.axes) == 12 and plt.get_fignums() == []
    assert [ax.get_title() for ax in figure.axes[:6]] == list(objects.ANIMALS)
    assert all(ax.patches[-1].get_bbox().bounds == (4, 8, 16, 22) for ax in figure.axes)


@pytest.mark.slow
def test_heat_maps_on_the_sample_have_an_image_of_each_class_and_a_row_for_each_network(run, mini):
    figure = located.on_the_sample({"std": [run], "csg": [run], "absent": []})
    assert len(figure.axes) == 30 and plt.get_fignums() == []
    assert [ax.get_title() for ax in figure.axes[:10]] == list(data.CLASSES)
    assert [figure.axes[i].get_ylabel() for i in (10, 20)] == ["STD", "CSG"] and not any(ax.patches for ax in figure.axes)
    c = 4
    shown = mini.test.images[(mini.test.labels == c).nonzero()[0, 0]]
    assert (figure.axes[c].images[0].get_array() == shown.permute(1, 2, 0).numpy()).all()
    net = run.network().eval()
    with torch.no_grad():
        maps = net.maps(data.to_float(shown[None]))[0]
        heat = sum(net.head.weight[c, k] * maps[k] for k in range(64))
    drawn = torch.from_numpy(np.asarray(figure.axes[10 + c].images[1].get_array()))
    expected = torch.nn.functional.interpolate(heat[None, None], (32, 32), mode="bilinear")[0, 0]
    torch.testing.assert_close(drawn, expected, rtol=1e-3, atol=1e-4)
    assert "No run on CIFAR-10" in located.on_the_sample({"std": []}).data


def test_photographs_in_vocs_layout_are_present_or_not(tmp_path, monkeypatch):
    monkeypatch.setenv("CSGLIB_DATA", str(tmp_path))
    assert data.present("cifar10") and not data.present("voc:zoo")
    (tmp_path / "zoo").mkdir()
    assert data.present("voc:zoo")
    with pytest.raises(Problem):
        data.load(Recipe(dataset="voc:zoo").dataset)


def test_each_row_has_the_images_that_excite_its_classs_filters_most_with_a_name_above_those_of_others(run, mini):
    figure = figures.exciting(run, mini.test, mini.classes, shown=3)
    assert plt.get_fignums() == [] and len(figure.axes) == 30
    scores = metrics.class_scores(run.readout)
    for c in range(10):
        for ax, i in zip(figure.axes[3 * c :], scores[:, c].argsort(descending=True)[:3].tolist(), strict=False):
            assert (ax.images[0].get_array() == mini.test.images[i].permute(1, 2, 0).numpy()).all()
            label = int(mini.test.labels[i])
            assert ax.get_title() == ("" if label == c else mini.classes[label])
