"""Several schedules on one page: the longest that can decide leads, the others stand beside it, what is missing is named."""

import dataclasses
import json
import re

import numpy as np
import pytest
from matplotlib import pyplot as plt

from csgbook import claims, experiments
from csgbook.evidence import schedules, verdicts
from csgbook.pages import growth, origin, scoreboard
from csglib import Problem
from csglib.analysis import attacks
from csglib.recipe import Recipe
from csglib.runs import Run

LONG = {"epochs": 200, "lr": 0.1, "lr_schedule": "steps", "weight_decay": 1e-4}
METHODS = {"csg": "csg", "std": "standard", "matched": "matched"}
ACCURACY = {"csg": (0.893, 0.892, 0.8925), "std": (0.905, 0.904, 0.909), "matched": (0.8933, 0.893, 0.8959)}


@pytest.fixture
def trained(run):
    """trained(seeds of csg, std, matched, gain, fields): runs as they would be, with the readout of a real one."""

    def make(counts: tuple[int, int, int], gain: float = 0.0, **fields) -> schedules.Runs:
        groups = {}
        for (name, method), n in zip(METHODS.items(), counts, strict=True):
            recipes = [Recipe(method=method, seed=seed, precision="bfloat16", **fields) for seed in range(n)]
            metrics = [{"accuracy": a + gain * (name == "csg"), "mis": a / 6, "l1_density": 0.1} for a in ACCURACY[name]]
            metrics = [run.metrics | m for m in metrics]
            groups[name] = [dataclasses.replace(run, recipe=r, metrics=m) for r, m in zip(recipes, metrics, strict=False)]
        return groups

    return make


@pytest.fixture
def published(trained, monkeypatch):
    """published(paper, short, ablations): what lies in data/runs."""

    def put(paper: schedules.Runs, short: schedules.Runs, ablations: schedules.Runs) -> None:
        def of(page: str, profile: str, folder=None) -> dict[str, list[Run]]:
            if page == "what-matters":
                return {"standard": ablations["std"], "alternating": ablations["csg"], "joint": []}
            return paper if profile == "paper" else short

        monkeypatch.setattr(experiments, "published", of)

    return put


def test_the_longest_schedule_that_can_decide_leads_and_the_others_stand_beside_it(trained, published):
    published(trained((3, 3, 1), 0.01, **LONG), trained((3, 3, 3)), trained((0, 0, 0)))
    by_schedule = schedules.found("table1", "quick")
    assert [r["csg"][0].recipe.epochs for r in by_schedule] == [200, 30]
    judged = {c["id"]: c for c in verdicts.of_page("table1", *by_schedule)}
    order, matched, number = (judged[name] for name in ("accuracy-order", "accuracy-matched", "accuracy-std"))
    assert order["schedule"] == "200 epochs, step learning-rate schedule" and [c["schedule"] for c in order["also"]] == [
        "30 epochs, one-cycle learning-rate schedule"
    ]
    assert (
        matched["schedule"] == "30 epochs, one-cycle learning-rate schedule"
        and matched["also"][0]["verdict"] == "inconclusive: one seed"
    )
    assert number["verdict"] != "inconclusive: another schedule" == number["also"][0]["verdict"]
    table = verdicts.markdown(list(judged.values())).splitlines()
    assert table[0] == "Runs: 200 epochs, step learning-rate schedule; 30 epochs, one-cycle learning-rate schedule."
    assert sum(line.startswith("| *the same after 30 epochs* |") for line in table) == len(judged) - 2  # of matched it leads
    assert {t.count("|") for t in table[2:21]} == {7} and "better than standard training. *(200 epochs, source" in table[8]
    text = verdicts.answer(list(judged.values()))
    assert text.count("(After 30 epochs, one-cycle learning-rate schedule.)") == 1  # matched alone, which the longer lacks
    named = schedules.named(by_schedule)
    assert set(named) == {f"{name}, {n} epochs" for name in METHODS for n in (200, 30)}
    assert {r.recipe.name for r in schedules.beside("table1", "quick")} == {r.recipe.name for g in named.values() for r in g}


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["quick", "short", "paper"])
def test_with_runs_of_one_schedule_there_is_no_other(profile, trained, published):
    published(trained((0, 0, 0), **LONG), trained((3, 3, 3)), trained((1, 0, 0), epochs=10))
    by_schedule = schedules.found("table1", profile)
    assert len(by_schedule) == 1 and set(schedules.named(by_schedule)) == set(METHODS)
    assert all(c["also"] == [] for c in verdicts.of_page("table1", *by_schedule))
    assert {r.recipe.epochs for r in schedules.beside("table1", profile)} == {10, 30}
    assert {r.recipe.epochs for r in schedules.beside("representation", "short")} == {30}


def test_a_page_shows_a_schedule_that_has_all_its_networks_or_both_sides_of_a_claim(trained, monkeypatch):
    short, long = trained((3, 3, 3)), trained((3, 3, 0), **LONG)
    there = {"short": {**short, "picnn": short["std"]}, "paper": {**long, "picnn": []}}
    monkeypatch.setattr(
        experiments, "published", lambda page, profile, folder=None: there["short" if profile == "quick" else profile]
    )
    epochs = {
        page: [run[0].recipe.epochs for runs in schedules.found(page, "quick") if (run := runs["csg"])]
        for page in ("filter-removal", "picnn", "atlas", "explore")
    }
    # PICNN has no long run: its own page and the atlas wait for it, a claim on CSG and STD does not
    assert epochs == {"filter-removal": [200, 30], "picnn": [30], "atlas": [30], "explore": [200, 30]}
    assert schedules.leading(schedules.found("explore", "quick")) is there["short"]
    two = [long, {**short, "matched": []}]
    assert schedules.leading(two) is long
    assert schedules.leading(two, lambda run: run.recipe.epochs == 30) is two[1]  # where only those can be drawn
    told = origin.shown(two, long)
    assert "show the networks after 200 epochs" in told and "also judged after 30 epochs" in told
    assert origin.shown([long], long) == ""


def test_under_a_long_schedule_a_page_shows_it_though_the_short_one_has_no_run(trained, monkeypatch):
    there = {"short": trained((0, 0, 0)), "paper": trained((1, 1, 0), **LONG)}
    monkeypatch.setattr(
        experiments, "published", lambda page, profile, folder=None: there["short" if profile == "quick" else profile]
    )
    assert schedules.found("network", "paper") == [there["paper"]]
    assert schedules.found("network", "quick") == [there["short"]]  # which asks for the short ones, and names them as missing


def test_a_profile_that_does_not_exist_is_refused_on_every_page():
    for page in ("table1", "network"):
        with pytest.raises(Problem, match="quik"):
            schedules.found(page, "quik")


def test_without_runs_the_page_is_empty_and_says_so(trained, published):
    published(*[trained((0, 0, 0))] * 3)
    by_schedule = schedules.found("table1", "quick")
    assert by_schedule == [trained((0, 0, 0))] and schedules.beside("table1", "quick") == []
    assert {c["verdict"] for c in verdicts.of_page("table1", *by_schedule)} == {"not run here"}
    lengths = schedules.lengths("quick")
    assert list(lengths) == [10, 30, 200] and growth.gaps(lengths) == []
    assert growth.gap_table(lengths).data.count("after") == 3 and "is open" in growth.gap_table(lengths).data


def test_the_gap_is_told_by_length_with_what_is_missing_and_how_it_moves(trained, published):
    published(trained((3, 3, 1), 0.012, **LONG), trained((3, 3, 3)), trained((1, 3, 0), epochs=10))
    lengths = schedules.lengths("quick")
    text = growth.gap_table(lengths).data
    rows = [re.split(r" *\| *", line)[1:-1] for line in text.splitlines() if line.startswith("|")][2:]
    assert [row[0] for row in rows] == ["10"] * 2 + ["30"] * 4 + ["200"] * 4
    assert rows[0][4] == "inconclusive: one seed" and rows[-3][:2] + rows[-3][4:] == [
        "200",
        "CSG − MATCHED",
        "inconclusive: one seed",
        "1",
    ]
    assert "Not run here: MATCHED after 10 epochs." in text
    assert "- CSG − STD in accuracy rises from 30 to 200 epochs, by +0.0120" in text
    assert text.count("from 30 to 200 epochs") == 2  # of MATCHED there is one seed


def test_the_move_of_a_gap_is_judged_seed_by_seed(trained, published):
    published(trained((3, 3, 3), **LONG), trained((3, 3, 3)), trained((0, 0, 0)))
    text = growth.gap_table(schedules.lengths("quick")).data
    assert "changes by +0.0000 (+0.0000 to +0.0000) from 30 to 200 epochs, which may be chance" in text
    c = verdicts.judge(claims.CLAIMS[2], trained((3, 3, 3)))
    assert growth.by_seed(c) == pytest.approx(dict(enumerate(np.subtract(ACCURACY["csg"], ACCURACY["std"]))))
    other = trained((3, 3, 3), **LONG)
    other = {
        name: [dataclasses.replace(r, recipe=dataclasses.replace(r.recipe, seed=r.recipe.seed + 7)) for r in g]
        for name, g in other.items()
    }
    published(other, trained((3, 3, 3)), trained((0, 0, 0)))  # no seed in common
    assert (
        "CSG − STD in accuracy: -0.0135 after 30 epochs and -0.0135 after 200"
        in growth.gap_table(schedules.lengths("quick")).data
    )


@pytest.mark.slow
def test_the_figure_has_an_interval_from_three_seeds_on_and_a_hollow_mark_below(trained, published):
    published(trained((3, 3, 1), 0.012, **LONG), trained((3, 3, 3)), trained((1, 3, 0), epochs=10))
    before = plt.get_fignums()
    figure = growth.gap_figure(schedules.lengths("quick"))
    for ax in figure.axes:
        hollow = [bar for bar in ax.containers if bar.lines[0].get_markerfacecolor() == "white"]
        assert len(ax.containers) == 5 and len(hollow) == 2 and all(not bar.lines[2] for bar in hollow)
        assert [t.get_text() for t in ax.get_xticklabels()] == ["10", "30", "200"]
    assert plt.get_fignums() == before


def test_the_other_statistics_are_told_as_csgs_difference_by_length(trained, published, monkeypatch):
    published(trained((3, 3, 2), **LONG), trained((3, 3, 3)), trained((0, 0, 0)))
    values = {"csg": 0.2, "standard": 0.1, "matched": 0.15}
    for metric in growth.TITLES:
        of = lambda run: values[run.recipe.method] * (run.recipe.epochs / 30) ** 0.5 + 0.001 * run.recipe.seed  # noqa: E731
        monkeypatch.setitem(verdicts.STATISTICS, metric, of)
    lengths = schedules.lengths("quick")
    removed = [c for n, c in growth.others(lengths) if c["metric"] == "removed_own"]
    assert [(c["of"], c["over"]) for c in removed] == [("std", "csg")] * 2  # as the claim puts it
    turned = growth.toward({**removed[0], "ours": 0.3, "low": 0.1, "high": 0.4})
    assert (turned["of"], turned["over"]) == ("csg", "std") and (turned["ours"], turned["low"], turned["high"]) == (
        -0.3,
        -0.4,
        -0.1,
    )
    assert growth.toward(turned) is turned
    rows = [re.split(r" *\| *", line)[1:-1] for line in growth.others_table(lengths).data.splitlines()]
    assert rows[0][2:4] == ["30 epochs", "200 epochs"] and len({len(row) for row in rows}) == 1
    assert {row[0] for row in rows[2:]} >= {
        "{doc}`contrast of weights <filter-correlation>`",
        "{doc}`accuracy with one group <explore>`",
    }
    assert {tuple(row[2:]) for row in rows[2:] if row[1] == "STD"} == {("**+0.1000**", "**+0.2582**", "up")}
    assert {tuple(row[2:]) for row in rows[2:] if row[1] == "MATCHED"} == {("**+0.0500**", "+0.1291 (2 seeds)", "–")}
    assert growth.number({"ours": 0.01, "low": 0.002, "high": 0.02, "n": 3}) == "**+0.0100**"
    assert growth.number({"ours": 0.01, "low": -0.002, "high": 0.02, "n": 3}) == "+0.0100"
    assert growth.number({"ours": -0.01, "low": None, "high": None, "n": 1}) == "-0.0100 (1 seed)"
    figure = growth.others_figure(lengths)
    assert {ax.get_title() for ax in figure.axes if ax.get_visible()} == {
        growth.TITLES[c["metric"]] for _, c in growth.others(lengths)
    }


def test_a_claim_is_told_to_depend_on_the_schedule_where_its_verdict_is_of_another_kind():
    def claim(id: str, verdict: str, *also: tuple[str, int]) -> dict:
        return {"id": id, "n": 3, "verdict": verdict, "also": [{"verdict": v, "n": n} for v, n in also]}

    moved = [claim("a", "reproduced", ("contradicted", 3)), claim("b", "yes", ("open", 3)), claim("c", "no", ("yes", 5))]
    same = [
        claim("d", "reproduced", ("direction reproduced, size not", 3)),
        claim("e", "yes"),
        claim("f", "inconclusive", ("open", 3)),
        claim("g", "yes", ("inconclusive: two seeds", 2)),
    ]
    assert scoreboard.by_schedule(moved + same) == moved


def test_the_minutes_of_a_cpu_and_a_gpu_are_not_averaged(trained):
    group = trained((0, 3, 0))["std"]
    on = [("EPYC", None, 14_400), ("Xeon", "H200", 480), ("Xeon", "H200", 486)]
    made = [
        dataclasses.replace(
            run,
            provenance=run.provenance
            | {"train_seconds": seconds, "hardware": {"processor": processor, "threads": 2, "gpu": gpu}},
        )
        for run, (processor, gpu, seconds) in zip(group, on, strict=True)
    ]
    assert origin.minutes(made) == "240 / 8 ± 0" and origin.joined(origin.machine, made) == "EPYC, 2 threads / H200"


def test_every_statistic_that_compares_the_same_networks_has_a_panel():
    """Of the four attacks alone there is none: the detector's error is their mean."""
    compared = {c.metric for c in claims.CLAIMS if c.over and {c.of, c.over} <= set(schedules.NETWORKS)}
    single = {f"detection_{name}" for name in attacks.ATTACKS}
    assert compared - single - {"accuracy", "mis"} == set(growth.TITLES)


def test_runs_that_should_not_be_compared_stop_every_place_that_compares_them(trained, published):
    mixed = trained((3, 3, 3))
    mixed["std"] = [dataclasses.replace(r, recipe=dataclasses.replace(r.recipe, loop="fast")) for r in mixed["std"]]
    published(trained((0, 0, 0)), mixed, trained((0, 0, 0)))
    for use in (
        lambda: verdicts.of_page("table1", *schedules.found("table1", "quick")),
        lambda: growth.gap_table(schedules.lengths("quick")),
        lambda: verdicts.every("quick"),
    ):
        with pytest.raises(Problem, match="differ in loop"):
            use()


def test_the_smoke_profile_has_its_own_schedule_alone(tmp_path):
    assert len(schedules.found("table1", "smoke", tmp_path)) == 1
    assert list(schedules.lengths("smoke", tmp_path)) == [3]


def test_a_book_with_other_profiles_or_experiments_shows_what_it_has(monkeypatch, tmp_path):
    table = experiments.book()
    table["profiles"] = {name: table["profiles"][name] for name in ("smoke", "short")} | {"mine": table["profiles"]["short"]}
    table["pages"]["table1"]["experiments"] = ["std"]
    table["pages"]["what-matters"] = {}
    monkeypatch.setattr(experiments, "book", lambda: table)
    assert schedules.profiles("mine") == ["short"] and list(schedules.lengths("mine", tmp_path)) == [30]
    del table["profiles"]["short"]
    assert schedules.profiles("mine") == ["mine"] and schedules.found("table1", "mine", tmp_path) == [{"std": []}]
    table["pages"]["table1"] = {}
    assert schedules.lengths("mine", tmp_path) == {} and schedules.beside("table1", "mine", tmp_path) == []


def test_the_tables_of_metrics_name_their_schedules_and_the_papers_numbers_stand_in_the_first(trained, published):
    published(trained((3, 3, 3), **LONG), trained((3, 3, 3)), trained((0, 0, 0)))
    text = growth.metrics_tables(schedules.found("table1", "quick"), {"paper": claims.paper_values("table1")}).data
    first, second = text.split("After 30 epochs, one-cycle learning-rate schedule:")
    assert first.startswith("After 200 epochs, step learning-rate schedule:") and "0.9192" in first and "0.9192" not in second
    assert "0.1000 (unconfirmed)" in first


@pytest.mark.slow
def test_the_list_of_results_has_every_claim_with_its_verdict_in_order(monkeypatch, csgbook, tmp_path):
    code, _, err = csgbook("results", "--profile", "quick", "--runs-folder", tmp_path, "--out", tmp_path / "results.json")
    entries = json.loads((tmp_path / "results.json").read_text())
    assert code == 0 and [e["id"] for e in entries] == [c.id for c in claims.CLAIMS], err
    assert all({"direction", "size", "tests", "holm", "paired", "question", "also"} <= set(e) for e in entries)


def test_networks_on_data_of_their_own_do_not_decide_which_schedule_leads():
    assert schedules.shared({"csg", "tiny-csg", "alternating"}) == {"csg", "alternating"}
    assert schedules.shared({"animals-csg", "animals-std"}) == {"animals-csg", "animals-std"}  # there is no other
