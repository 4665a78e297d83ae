"""A grid of networks: in which cells a claim holds, what is empty, what is named, and what its learning rates come from."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from scipy import stats

from csgbook import experiments, measured
from csgbook.evidence import grid
from csgbook.pages import elsewhere, grid_training
from csgbook.pages.figures import COLOURS
from csglib import runs
from csglib.recipe import Recipe
from csglib.runs import Run

sys.path.insert(0, str(ROOT / "tools"))
import rates  # noqa: E402

NET = "resnet18-32x0.25@layer4"


def run_of(method: str, seed: int, accuracy: float, mis: float, **fields) -> Run:
    metrics = {"accuracy": accuracy, "mis_normalised": mis, "removed": accuracy / 2}
    return Run(
        Path("nowhere"), Recipe(net=NET, method=method, seed=seed, **fields), metrics, {"left_out": ["readout.safetensors"]}
    )


def cell(network: str = "resnet18", data: str = "cifar10", diverged: dict | None = None, **methods) -> grid.Cell:
    """Of each method the accuracy and the MIS of its seeds, one after the other."""
    found = {m: [run_of("standard", seed, *values) for seed, values in enumerate(v)] for m, v in methods.items()}
    return grid.Cell(data, network, Recipe(net=NET, method="standard"), found, diverged or {})


STD = [(0.80, 0.20), (0.81, 0.21), (0.82, 0.22)]


def shifted(accuracy: float, mis: float, n: int = 3) -> list:
    return [(a + accuracy + 0.001 * (-1) ** i, m + mis + 0.001 * (-1) ** i) for i, (a, m) in enumerate(STD[:n])]


@pytest.mark.parametrize(
    "accuracy, mis, holds",
    [
        (0.01, 0.05, True),
        (-0.004, 0.05, True),
        (-0.02, 0.05, False),
        (0.01, -0.05, False),
        (-0.02, -0.05, False),
        (0.01, 0, False),
    ],
)
def test_the_claim_holds_where_mis_is_greater_and_accuracy_at_most_half_a_point_lower(accuracy, mis, holds):
    exact = [(a + accuracy, m + mis) for a, m in STD]
    assert cell(std=STD, picnn=exact).holds("picnn") is holds
    assert elsewhere.halves_of(cell(std=STD, picnn=exact), "picnn") == (accuracy >= -0.005, mis > 0)


def test_a_difference_is_of_the_seeds_that_both_have_and_its_interval_that_of_pairs():
    c = cell(std=STD, picnn=shifted(-0.01, 0.05))
    d = c.difference("picnn", "accuracy")
    pairs = [a - b for (a, _), (b, _) in zip(shifted(-0.01, 0.05), STD, strict=True)]
    low, high = stats.t.interval(0.95, 2, loc=sum(pairs) / 3, scale=stats.sem(pairs))
    assert (d.mean, d.low, d.high, d.n) == pytest.approx((sum(pairs) / 3, low, high, 3))
    one = cell(std=STD, picnn=shifted(-0.01, 0.05, 1)).difference("picnn", "accuracy")
    assert (one.low, one.high, one.n) == (None, None, 1) and one.mean == pytest.approx(-0.009)


def test_without_a_run_of_both_a_cell_is_empty_and_nothing_is_counted():
    empty = [cell(), cell(std=STD), cell(picnn=shifted(0, 0.1))]
    assert [c.holds("picnn") for c in empty] == [None] * 3
    assert grid.signs(empty, "picnn") is None
    assert "Not answered yet" in elsewhere.answer(empty).data
    assert [elsewhere.told(c, "picnn", "accuracy") for c in empty] == [""] * 3
    assert "not run here" in elsewhere.table(empty[:1]).data and "no cell to count" in elsewhere.count(empty).data


def test_a_training_that_diverged_is_named_and_counts_as_a_failure():
    lost = cell(diverged={"picnn": "train_loss of epoch 3"}, std=STD)
    assert lost.holds("picnn") is False
    s = grid.signs([lost, cell("vgg11", std=STD, picnn=shifted(0.01, 0.1))], "picnn")
    assert (s.holds, s.fails) == (["vgg11"], ["resnet18"])
    assert "diverged: train_loss of epoch 3" in elsewhere.table([lost]).data
    assert elsewhere.count([lost]).data.splitlines()[2].split("|")[-2].strip() == "1"
    texts = [t.get_text() for ax in elsewhere.differences([lost]).axes for t in ax.texts]
    assert texts == [" diverged"] * 2


def test_the_sign_test_counts_networks_by_their_means_over_data_sets():
    found = []
    for i in range(10):  # on one data set half a point too low in all, on the other better by more in nine
        found.append(cell(f"n{i}", "a", std=STD, picnn=shifted(-0.02, 0.1)))
        found.append(cell(f"n{i}", "b", std=STD, picnn=shifted(0.03 if i else -0.03, 0.1)))
    s = grid.signs(found, "picnn")
    assert len(s.holds) == 9 and s.fails == ["n0"]
    test = stats.binomtest(9, 10)
    assert s.p == pytest.approx(test.pvalue) and s.p == pytest.approx(22 / 1024)
    assert (s.low, s.high) == pytest.approx(tuple(test.proportion_ci()))
    said = elsewhere.answer(found).data
    assert "holds in 9 of 10 networks" in said and "in 9 of 20 cells" in said and "sign test p = 0.021" in said
    assert "So far" not in said


def test_the_answer_says_how_much_of_the_grid_it_rests_on():
    one = cell("n0", "a", std=STD[:1], picnn=shifted(0.01, 0.1, 1))
    said = elsewhere.answer([one, cell("n1", "a"), cell("n1", "b")]).data
    assert "So far 1 of 3 cells have runs, none with three seeds: nothing is decided yet." in said
    said = elsewhere.answer([cell("n0", "a", std=STD, picnn=shifted(0.01, 0.1)), cell("n1", "a")]).data
    assert said.endswith(" So far 1 of 2 cells have runs.")


def test_intervals_decide_a_cell_only_where_both_halves_are_clear():
    assert cell(std=STD, picnn=shifted(0.01, 0.05)).sure("picnn")
    assert cell(std=STD, picnn=shifted(-0.05, 0.05)).sure("picnn")  # it fails, surely
    assert not cell(std=STD, picnn=shifted(-0.005, 0.05)).sure("picnn")
    assert not cell(std=STD[:1], picnn=shifted(0.01, 0.05, 1)).sure("picnn")


def test_one_seed_has_no_interval_and_a_network_without_runs_no_row():
    full, one, none = cell("a", std=STD, csg=shifted(0.01, 0.1)), cell("b", std=STD[:1], csg=shifted(0, 0.1, 1)), cell("c")
    ax = elsewhere.differences([full, one, none]).axes[0]
    marks = [c.lines[0] for c in ax.containers]
    assert [round(float(m.get_ydata()[0])) for m in marks] == [0, 1]
    assert [m.get_markerfacecolor() for m in marks] == [COLOURS["csg"], "white"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert [label.get_text() for label in elsewhere.differences([none]).axes[0].get_yticklabels()] == ["c"]
    beside = elsewhere.differences([full, cell("a", "animals")]).axes  # a data set without runs takes no room
    assert [ax.get_title() for ax in beside] == ["CIFAR-10\naccuracy", "CIFAR-10\nMIS / bound"]


def test_a_network_has_a_row_for_each_method_and_those_without_runs_are_named():
    full, one, none = cell("a", std=STD, picnn=shifted(0.01, 0.1)), cell("b", std=STD[:1], csg=shifted(-0.1, 0, 1)), cell("c")
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in elsewhere.table([full, one, none]).data.splitlines()]
    a, changed, b, lower = rows[4:8]
    assert (a[0], *a[2:]) == ("a", "STD", "0.810 ± 0.010", "0.210 ± 0.010", "", "3")
    assert changed[0] == "" and changed[2] == "PICNN − STD" and changed[5:] == ["holds †", "3"]
    assert re.fullmatch(r"\+0\.010 \(\+0\.\d{3} to \+0\.\d{3}\)", changed[3])
    assert (b[0], lower[3], *lower[5:]) == ("b", "−0.099", "fails", "1")
    assert elsewhere.table([full, one, none]).data.endswith("No run yet: c.")


def test_few_filters_are_named(monkeypatch):
    monkeypatch.setattr(grid.measured, "read", lambda kind: {"sizes": {"cifar10": {"classes": 10}, "many": {"classes": 100}}})
    many = grid.Cell("many", "resnet18", Recipe(dataset="many", net=NET), {}, {})
    assert "ResNet-18 on many (1.3)" in elsewhere.few([cell(), many]).data
    assert elsewhere.few([cell()]).data == "Every network here has at least five filters per class."
    assert elsewhere.ratio(many) == "1.3 (< 5)" and elsewhere.ratio(cell()) == "12.8"
    unknown = grid.Cell("x", "resnet18", Recipe(dataset="folder:x", net=NET), {}, {})
    assert "not known yet" in elsewhere.few([unknown]).data and elsewhere.ratio(unknown) == ""


def test_traits_are_those_of_the_network_itself():
    known = elsewhere.traits("convnext6-32x0.25@features")
    assert (known["Filters K"], known["Side of the map"], known["Normalisation"]) == (192, 4, "layer")
    known = elsewhere.traits(NET)
    assert (known["Filters K"], known["Normalisation"], known["Negative values at the gate"]) == (128, "batch", 0)
    assert known["Convolutions and linear layers before the gate"] == 20  # 17 of 3 x 3, three shortcuts


def test_ranks_are_compared_over_every_way_to_deal_them():
    assert elsewhere.ranks_apart([1, 2, 3], [4, 5, 6, 7]) == pytest.approx(2 / 35)
    assert elsewhere.ranks_apart([1, 1], [1, 1]) == 1
    twin = stats.mannwhitneyu([1, 5, 3.5], [4, 2, 9, 7], method="exact").pvalue
    assert elsewhere.ranks_apart([1, 5, 3.5], [4, 2, 9, 7]) == pytest.approx(twin)


def test_traits_are_told_apart_only_where_there_are_networks_of_both_kinds():
    good = cell("a", std=STD, picnn=shifted(0.01, 0.1))
    bad = cell("b", std=STD, picnn=shifted(-0.1, 0.1))
    assert "none of both kinds" in elsewhere.apart([good]).data
    assert (
        "Holds: a. Fails: b. With 2 networks split so, the smallest p of a rank test is 1," in elsewhere.apart([good, bad]).data
    )


def test_the_costs_are_epochs_times_images_times_measured_steps(monkeypatch):
    pace = {"net": NET, "pixels": 32, "batch": 128, "train": 0.001, "test": 0.0002}
    size = {"train": 50_000, "test": 10_000, "pixels": 32, "classes": 10}
    hardware = {"processor": "P", "threads": 2}
    known = {"paces": [pace], "sizes": {"cifar10": size}, "precision": "bfloat16", "hardware": hardware}
    monkeypatch.setattr(grid_training.measured, "read", lambda kind: known)
    csg, matched = (Recipe(net=NET, method=m, epochs=6) for m in ("csg", "matched"))
    tried = Recipe(net=NET, method="standard", epochs=2, holdout=5000)
    assert grid_training.seconds([csg]) == (pytest.approx(6 * 52), 0)
    assert grid_training.seconds([matched]) == (pytest.approx(4 * 52), 0)  # two gated epochs are skipped
    assert grid_training.seconds([tried]) == (pytest.approx(2 * (45 + 1)), 0)
    assert grid_training.seconds([Recipe(net="resnet20")]) == (0, 1)
    assert "24 trainings take about 2 hours on P, 2 threads, in bfloat16; of 1 the step was not" in grid_training.cost(
        [csg] * 24 + [Recipe(net="resnet20")]
    )
    assert "of none of them the step was measured" in grid_training.cost([Recipe(net="resnet20")])


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    path = Path(shutil.copy(experiments.FILE, tmp_path / "experiments.yml"))
    monkeypatch.setattr(experiments, "FILE", path)
    return path


def test_the_rate_with_most_held_out_images_right_is_written_with_its_measurement(file, monkeypatch, capsys):
    def trial(lr: float, accuracy: float) -> Run:
        return run_of("standard", 0, accuracy, 0.1, lr=lr, epochs=2, holdout=5000)

    found = {"cifar10/resnet18/lr-0.03": 0.41, "cifar10/resnet18/lr-0.1": 0.5, "cifar10/resnet18/lr-0.3": 0.52}
    published = {name: [trial(float(name.split("-")[-1]), a)] for name, a in found.items()}
    published["cifar10/vgg11/lr-0.1"] = [trial(0.1, 0.3)]
    monkeypatch.setattr(experiments, "published", lambda *_: published)
    before = yaml.safe_load(file.read_text())
    rates.main(file.parent)
    assert "resnet18: 0.3 (0.03 0.410, 0.1 0.500, 0.3 0.520)\nvgg11: 1 of 3 rates tried" in capsys.readouterr().out
    assert "lr: 0.3, seeds: [0, 1, 2]} # held out: 0.03 0.410, 0.1 0.500, 0.3 0.520\n" in file.read_text()
    after = yaml.safe_load(file.read_text())
    grids = before["profiles"]["short"]["grids"]
    grids["elsewhere"]["networks"]["resnet18"]["lr"] = 0.3
    for tap in grids["taps"]["networks"].values():
        tap["lr"] = 0.3
    grids["rates"]["networks"]["resnet18"]["lr"] = 0.3  # the same list, whose rates the trials replace
    assert after == before


def test_the_page_says_where_the_grid_has_another_rate_than_was_chosen(monkeypatch):
    trials = {
        lr: run_of("standard", 0, a, 0.1, lr=lr, epochs=2, holdout=5000) for lr, a in ((0.1, 0.5), (0.3, 0.5), (0.03, 0.4))
    }
    monkeypatch.setattr(grid, "rates", lambda *_: {"resnet18": trials})
    assert grid.taken(trials) == 0.1  # the smallest of equals
    assert "0.1, and the grid has 0.2" in grid_training.rates("short", {}, [cell()]).data


@pytest.mark.slow
def test_cells_of_a_folder_have_their_runs_and_what_diverged_in_any_form(tmp_path):
    recipe = experiments.recipes("elsewhere", "short", tmp_path)["cifar10/vgg11/picnn"][0].in_form(("float32", "plain"))
    folder = runs.part(tmp_path / recipe.name)
    folder.mkdir()
    (folder / "report.json").write_text(
        json.dumps({"stopped_by": ["train_loss"], "history": [{"epoch": 2, "train_loss": "nan"}]})
    )
    found = grid.cells("elsewhere", "short", {}, tmp_path)
    assert {c.network: c.diverged for c in found if c.diverged} == {"vgg11": {"picnn": "train_loss of epoch 2"}}
    assert len(found) == 30 and not any(run for c in found for group in c.runs.values() for run in group)


def test_the_page_says_how_short_each_data_set_is_trained_and_how_far_standard_training_comes():
    recipe = Recipe(dataset="cifar10", net=NET, method="standard", epochs=6)
    trained = grid.Cell("cifar10", "resnet18", recipe, {"std": [run_of("standard", 0, 0.8, 0.2)]}, {})
    empty = grid.Cell("animals", "resnet18", Recipe(dataset="voc:nowhere@32", net=NET, epochs=30, batch_size=64), {}, {})
    cells = [row.strip("| ").split("|") for row in grid_training.schedules([trained, empty]).data.splitlines()[2:]]
    assert [[word.strip() for word in row] for row in cells] == [
        ["`cifar10`", "6", "2", "128", "0.10", "0.80 to 0.80"],
        ["animals, `voc:nowhere@32`", "30", "10", "64", "", "not run here"],
    ]


def test_of_a_data_set_that_is_not_here_the_classes_and_the_costs_are_known_by_its_release():
    recipe = experiments.recipes("elsewhere", "short")["tiny-imagenet/resnet18/std"][0]
    assert grid.Cell("tiny-imagenet", "resnet18", recipe, {}, {}).classes == 20
    assert grid.size("voc:nowhere@32") is None
    pace = next(p for p in measured.read("grid-pace")["paces"] if p["net"] == recipe.net)
    assert grid_training.seconds([recipe]) == (pytest.approx(15 * (10_000 * pace["train"] + 1000 * pace["test"])), 0)


def test_what_is_missing_is_counted_by_data_set_beside_the_command():
    lacking = [Recipe(net=NET, seed=seed) for seed in (0, 1)] + [Recipe(net=NET, dataset="tiny-imagenet@32@20classes")]
    told = grid_training.missing(lacking, "quick").data
    assert told.startswith(
        "3 runs are not run here, so their cells are empty: 2 on `cifar10`, 1 on `tiny-imagenet@32@20classes`."
    )
    assert "csgbook missing --profile short --page elsewhere" in told
