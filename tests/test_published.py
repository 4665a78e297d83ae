"""The runs under data/runs: whole, from clean commits, true to their readouts, and as good as the project promises."""

import math

import pytest

from csgbook import experiments
from csglib import runs
from csglib.analysis import metrics
from csglib.paths import PUBLISHED

FOLDERS = sorted(p.parent for p in PUBLISHED.glob("*/provenance.json"))
SHORT = experiments.published("table1", "short")


def test_those_of_cifar10_fit_into_100_megabytes_and_all_into_150():
    sizes = {folder.name: sum(p.stat().st_size for p in folder.iterdir()) for folder in FOLDERS}
    assert sum(size for name, size in sizes.items() if name.startswith("cifar10")) < 100e6
    assert sum(sizes.values()) < 150e6


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_a_run_is_whole_stands_at_its_place_and_comes_from_a_clean_commit(folder):
    run = runs.read(folder)
    assert run.recipe.name == folder.name
    assert run.provenance["dirty"] is False and len(run.provenance["commit"]) == 40
    assert sum(p.stat().st_size for p in folder.iterdir()) < 5e6
    assert len(run.history) == run.recipe.epochs
    assert run.history[-1]["path"] in ("standard", "joint")  # the standard path is trained last
    assert all(math.isfinite(v) for v in run.metrics.values() if v is not None)
    if run.left_out:
        return
    a = run.readout
    assert run.metrics["accuracy"] == metrics.accuracy(a.logits, a.labels)
    assert run.metrics["mis"] == pytest.approx(metrics.mis(a.features, a.labels, len(a.bias)), abs=1e-9)
    if run.recipe.method == "csg" and run.recipe.gate_projection == "max":
        assert (a.gate.amax(0) == 1).all() and run.metrics["l1_density"] >= 1 / len(a.bias)


@pytest.mark.slow
def test_every_published_run_is_asked_for_by_a_page():
    asked = {
        recipe.name
        for profile in ("short", "paper")
        for page in experiments.book()["pages"]
        for group in experiments.recipes(page, profile).values()
        for recipe in group
    }
    assert {p.name for p in FOLDERS} <= asked


@pytest.mark.slow
@pytest.mark.parametrize("run", [SHORT["csg"][0], SHORT["std"][0]], ids=["csg", "std"])
def test_the_metrics_follow_from_the_readout(run):
    again = metrics.evaluate(run.readout)
    assert len(run.metrics) >= 8  # sharpness came later
    for name, stored in run.metrics.items():
        assert again[name] == (stored and pytest.approx(stored, rel=1e-9)), name


def test_three_seeds_of_both_reach_what_the_short_schedule_promises():
    std, csg = ([run.metrics for run in SHORT[name]] for name in ("std", "csg"))
    assert len(std) >= 3 and len(csg) >= 3
    assert all(m["accuracy"] >= 0.90 for m in std)
    assert sum(m["accuracy"] for m in std) / len(std) - sum(m["accuracy"] for m in csg) / len(csg) <= 0.015
    assert all(c["mis"] - s["mis"] >= 0.02 for c, s in zip(csg, std, strict=True))
    assert all(m["l1_density"] <= 0.105 for m in csg)
