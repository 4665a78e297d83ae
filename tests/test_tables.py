import dataclasses
import re

import pytest
import torch

from csgbook import claims, experiments
from csgbook.evidence import verdicts
from csgbook.pages import more_classes, origin, tables
from csglib.analysis import metrics
from csglib.paths import PUBLISHED
from csglib.recipe import Recipe
from csglib.runs import Run

NOTHING = {"acc2": None, "acc3": None, "accuracy": 0.9, "mis": 0.1, "mis_null": 0.0, "mis_normalised": 0.3, "l1_density": None}


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
    runs = {"std": [fake(0, 0.90), fake(1, 0.92)], "csg": []}
    table = tables.metrics_table(runs, {"paper": {"std": {"accuracy": 0.9169}}}).data
    head, _, ours, paper = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert (head[0], head[1], head[-1]) == ("Network", "Accuracy", "Runs")
    assert (ours[0], ours[1], ours[-1]) == ("STD, ours", "0.9100 ± 0.0141", "2")
    assert (paper[0], paper[1], paper[-1]) == ("STD, paper", "0.9169", "")
    empty = tables.metrics_table({"std": [], "csg": []}, {}).data
    assert "STD, ours" in empty and "CSG, ours" in empty


def test_one_run_has_no_deviation_and_none_at_all_no_number():
    assert tables.spread([0.5]) == "0.5000"
    assert tables.spread([None]) == tables.spread([]) == "–"


def test_provenance_names_machine_commit_versions_and_time_and_links_to_each_run():
    runs = {"std": [fake(0, 0.9), fake(1, 0.9, gpu="A GPU")]}
    text = origin.strip(runs).data
    assert "An abacus, 2 threads / A GPU; torch 2" in text
    assert text.count("`01234567` (dirty)") == 1 and "| 2 / 2 " in text  # minutes of each machine, no mean of both
    for run in runs["std"]:
        assert f"[{run.recipe.seed}](#run-{run.recipe.name})" in text
        assert run.recipe.command in text
    assert "30 epochs, one-cycle learning-rate schedule, `method standard`, `precision float32`" in text
    assert "No run" in origin.strip({"std": []}).data
    assert "#run-" not in origin.strip(runs, published=False).data


def test_what_the_longest_runs_took_is_told_for_each_machine_and_each_run_counts_once(monkeypatch):
    there = [fake(0, 0.9), fake(1, 0.9, gpu="A GPU"), fake(2, 0.9, gpu="A GPU"), fake(3, 0.9)]
    for run, minutes, epochs in zip(there, (180, 6, 8, 1), (200, 200, 200, 30), strict=True):
        run.provenance["train_seconds"] = 60 * minutes
        object.__setattr__(run, "recipe", dataclasses.replace(run.recipe, epochs=epochs))
    monkeypatch.setattr(experiments, "published", lambda *_: {"std": there, "csg": there[:1]})
    told = origin.times_of("paper")
    assert "200 epochs" in told and "180 minutes on An abacus, 2 threads (1 run) and 6 to 8 minutes on A GPU (2 runs)" in told
    monkeypatch.setattr(experiments, "published", lambda *_: {"std": []})
    assert origin.times_of("paper") == ""


def test_provenance_says_how_the_runs_were_computed_and_which_others_it_leaves_out(run, tmp_path):
    moved = dataclasses.replace(run, path=tmp_path / run.path.name)
    assert "Computed in float32 by the plain loop.\n" in origin.strip({"csg": [moved]}).data
    other = run.recipe.in_form(("bfloat16", "plain"))
    (tmp_path / other.name).mkdir()
    assert f"Left out, since they were computed otherwise: `{other.name}`." in origin.strip({"csg": [moved]}).data


def test_missing_runs_are_listed_with_their_commands():
    assert "csglib train --dataset cifar10 --net resnet20 --method csg --epochs 30 --seed 7" in origin.missing([
        Recipe(seed=7, precision="float32")
    ]).data  # fmt: skip
    assert "are there" in origin.missing([]).data


def test_a_runs_entry_shows_recipe_commit_data_and_command(run):
    text = origin.run_entry(run)
    for part in (run.provenance["commit"], run.provenance["key"], run.provenance["data_digest"][:16], run.recipe.command):
        assert part in text
    for name, value in run.recipe.changed().items():
        assert f"`{name} {value}`" in text
    assert f"(run-{run.recipe.name})=" in text


def test_every_table_of_a_readout_holds_for_a_network_with_and_without_a_gate_and_for_none(run, bare):
    runs = {"csg": [run], "std": [bare], "none": []}
    for table in (
        tables.overlap,
        tables.correlation,
        tables.removal,
        tables.clusters_alone,
        tables.representation,
        tables.methods,
    ):
        text = table(runs).data
        assert "nan" not in text and re.search(r"0\.\d{3}", text), table.__name__


def test_filters_with_shuffled_classes_have_the_contrast_of_chance(run, monkeypatch):
    """Where filters of a class are parallel and others orthogonal the contrast is one; with classes shuffled, almost none."""
    monkeypatch.setattr(verdicts, "last_weights", lambda run: torch.eye(10)[metrics.owners(run.readout)])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables.correlation({"csg": [run]}).data.splitlines()]
    found = dict(rows)
    assert found["weights, contrast"] == "1.000"
    assert abs(float(found["weights, contrast with classes shuffled"])) < 0.05 < float(found["responses, contrast"])


def test_the_gap_on_tiny_imagenet_is_that_of_the_seeds_that_both_have():
    def fake_of(seed: int, value: float) -> Run:
        return Run(
            PUBLISHED / "none",
            Recipe(seed=seed, precision="float32"),
            dict.fromkeys(more_classes.SCORES | tables.METRICS, value),
            {},
        )

    pair = {"tiny-std": [fake_of(0, 0.5), fake_of(1, 0.9)], "tiny-csg": [fake_of(0, 0.4)]}
    told = more_classes.gap(pair)
    assert told.startswith("With its gate CSG changes accuracy by −0.1000, MIS by −0.1000, balanced MIS by −0.1000: one seed")
    assert more_classes.gap({"tiny-std": [], "tiny-csg": []}) == ""


def test_the_ablations_say_what_they_change_and_which_are_missing():
    text = tables.ablations({"alternating": [fake(0, 0.9)], "joint": [], "x": [fake(1, 0.8)]}, base="alternating").data
    rows = {cells[1].strip(): [c.strip() for c in cells] for line in text.splitlines() if (cells := line.split("|"))[1:]}
    assert rows["alternating"][2] == "–" and rows["joint"][-2] == "not run here" and rows["x"][3] == "0.800"


@pytest.mark.parametrize("page", dict.fromkeys(c.page for c in claims.CLAIMS))
def test_a_page_without_runs_has_an_answer_that_says_so(page):
    judged = verdicts.of_page(page, {})
    assert judged and "not here" in verdicts.answer(judged)


def test_of_the_values_tried_the_most_informative_within_half_a_point_of_the_best_is_taken():
    def tried(value: float, accuracy: float, mis: float) -> Run:
        recipe = Recipe(method="picnn", theta_lr=value, holdout=50, precision="float32")
        known = NOTHING | {"accuracy": accuracy, "mis": mis, "sharpness": 0.5, "acc3": 0.1}
        return Run(PUBLISHED / recipe.name, recipe, known, {})

    runs = {"a": [tried(0.1, 0.70, 0.2)], "b": [tried(0.2, 0.697, 0.3)], "c": [tried(0.3, 0.694, 0.9)], "d": []}
    text = tables.choices(runs, "theta_lr").data
    assert [line.split("|")[1].strip() for line in text.splitlines() if "taken" in line] == ["0.2"]
    assert "seed 0, measured on a held-out validation set of 50 training images" in text
    text = tables.choices(runs, "theta_lr", control=0.2).data
    assert [line.split("|")[1].strip() for line in text.splitlines() if "taken" in line] == ["0.1"]
    assert [line.split("|")[1].strip() for line in text.splitlines() if "control" in line] == ["0.2"]
    assert "No value" in tables.choices({"d": []}, "theta_lr").data


def test_drawn_masks_are_shown_beside_hard_and_expected_ones(run):
    lines = tables.clusters_by_mask([run]).data.splitlines()[2:]
    hard = metrics.clusters(run.readout, run.readout.gate)
    assert f"{hard[0]:.4f}" in lines[0] and f"{hard[1]:.4f}" in lines[0]
    assert "±" in lines[2] and "±" not in lines[0]
