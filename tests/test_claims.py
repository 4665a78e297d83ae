import copy
import dataclasses
import json
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from csglib import Problem, claims, experiments, measured, papers
from csglib.claims import Claim, interval, judge, probability, verdict
from csglib.runs import Recipe, Run

NUMERIC = Claim("n", "table1", "A number.", "accuracy", "csg", paper=0.92, source="table", tolerance=0.005)
ORDER = Claim("o", "table1", "An order.", "accuracy", "csg", over="std", paper=0.002, source="table")
FEW = st.lists(st.integers(0, 50).map(lambda n: n / 64), min_size=1, max_size=4)
MANY = st.lists(st.integers(0, 50).map(lambda n: n / 64), min_size=6, max_size=8)


@pytest.mark.parametrize("values", [[0.9, 0.91, 0.93], [1.0, 3.0], [0.1, 0.4, 0.2, 0.2, 0.5]])
def test_the_interval_is_students(values):
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert interval(values) == pytest.approx((low, high))


def test_one_seed_has_no_interval():
    assert interval([0.9]) is None
    assert interval([]) is None


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=3), st.lists(st.integers(0, 5), min_size=1, max_size=3))
def test_the_probability_of_few_seeds_counts_all_resamples(a, b):
    first = [Fraction(sum(s), len(a)) for s in product(a, repeat=len(a))]
    second = [Fraction(sum(s), len(b)) for s in product(b, repeat=len(b))]
    wins = sum(2 * (x > y) + (x == y) for x in first for y in second)
    assert probability(list(map(float, a)), list(map(float, b))) == pytest.approx(wins / (2 * len(first) * len(second)))


@settings(max_examples=30, deadline=None)
@given(FEW, FEW)
def test_the_two_orders_share_one_probability(a, b):
    assert probability(a, b) + probability(b, a) == pytest.approx(1, abs=1e-12)


@settings(max_examples=10, deadline=None)
@given(MANY, MANY)
def test_the_two_orders_share_one_probability_with_many_seeds_too(a, b):
    assert probability(a, b) + probability(b, a) == pytest.approx(1, abs=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.one_of(FEW, MANY), st.one_of(FEW, MANY), st.integers(0, 20))
def test_the_probability_rises_when_the_first_side_does(a, b, steps):
    assert probability([x + steps / 64 for x in a], b) >= probability(a, b)


def test_the_probability_of_many_seeds_is_near_that_of_the_central_limit():
    a, b = list(np.linspace(0, 1, 8)), list(np.linspace(0.1, 1.1, 8))
    spread = np.sqrt((np.var(a) + np.var(b)) / 8)
    assert probability(a, b) == pytest.approx(stats.norm.cdf(-0.1 / spread), abs=0.02)


@pytest.mark.parametrize(
    "ours, paper_schedule, expected",
    [
        ([], True, "not run here"),
        ([0.916], False, "reproduced"),  # within the tolerance
        ([0.924], True, "reproduced"),
        ([0.90, 0.935, 0.91], True, "reproduced"),  # in the interval, though the mean is not within the tolerance
        ([0.90, 0.901, 0.902], True, "contradicted"),
        ([0.90, 0.901, 0.902], False, "inconclusive"),  # another schedule
        ([0.9, 0.9001], True, "inconclusive"),  # two seeds
        ([0.9], True, "inconclusive"),
        ([0.94, 0.941, 0.942], True, "contradicted"),  # too good is no reproduction either
    ],
)
def test_the_verdicts_of_a_numeric_claim(ours, paper_schedule, expected):
    assert verdict(NUMERIC, ours, [], paper_schedule) == expected


@pytest.mark.parametrize("fields", [{"paper": None, "source": "table"}, {"paper": 0.92, "source": None}])
def test_a_value_without_a_source_has_no_number(fields):
    claim = Claim("n", "table1", "A number.", "accuracy", "csg", tolerance=0.005, **fields)
    assert verdict(claim, [0.92, 0.92, 0.92], [], True) == "no number"
    assert verdict(claim, [], [], True) == "not run here"


def test_a_numeric_claim_needs_no_tolerance():
    claim = Claim("n", "table1", "A number.", "accuracy", "csg", paper=0.92, source="table")
    assert verdict(claim, [0.9, 0.901, 0.902], [], True) == "contradicted"
    assert verdict(claim, [0.9, 0.92, 0.94], [], True) == "reproduced"


@pytest.mark.parametrize(
    "ours, other, expected",
    [
        ([3.0, 4.0, 5.0], [0.0, 1.0, 2.0], "reproduced"),
        ([0.0, 1.0, 2.0], [3.0, 4.0, 5.0], "contradicted"),
        ([0.0, 1.0, 2.0], [0.0, 1.0, 2.0], "inconclusive"),
        ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], "inconclusive"),
        ([3.0, 4.0], [0.0, 1.0, 2.0], "inconclusive"),  # fewer than three seeds
        ([3.0, 4.0, 5.0], [0.0, 1.0], "inconclusive"),
        ([3.0, 4.0, 5.0], [], "not run here"),
        ([], [0.0, 1.0, 2.0], "not run here"),
    ],
)
@pytest.mark.parametrize("paper_schedule", [True, False])
def test_the_verdicts_of_an_ordering(ours, other, paper_schedule, expected):
    assert verdict(ORDER, ours, other, paper_schedule) == expected


def fake(method: str, seed: int, accuracy: float, **fields) -> Run:
    recipe = Recipe(method=method, seed=seed, precision="float32", **fields)
    return Run(Path("nowhere"), recipe, {"accuracy": accuracy}, {})


def group(method: str, *values: float, **fields) -> list[Run]:
    return [fake(method, seed, value, **fields) for seed, value in enumerate(values)]


def test_a_judged_number_carries_mean_interval_runs_and_schedule():
    runs = group("csg", 0.90, 0.92, 0.94)
    entry = judge(NUMERIC, {"csg": runs, "std": group("standard", 0.1)})
    assert entry["ours"] == pytest.approx(0.92)
    assert (entry["low"], entry["high"]) == pytest.approx(interval([0.90, 0.92, 0.94]))
    assert (entry["n"], entry["verdict"]) == (3, "reproduced")
    assert entry["runs"] == [run.recipe.name for run in runs]
    assert entry["schedule"] == "30 epochs, one cycle"
    assert entry["id"] == "n" and entry["paper"] == 0.92 and entry["source"] == "table"


def test_a_judged_order_carries_the_difference_with_welchs_interval():
    a, b = [0.90, 0.93, 0.91], [0.85, 0.86, 0.84, 0.88]
    entry = judge(ORDER, {"csg": group("csg", *a), "std": group("standard", *b)})
    va, vb = np.var(a, ddof=1) / 3, np.var(b, ddof=1) / 4
    freedom = (va + vb) ** 2 / (va**2 / 2 + vb**2 / 3)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(va + vb)
    difference = np.mean(a) - np.mean(b)
    assert entry["ours"] == pytest.approx(difference)
    assert (entry["low"], entry["high"]) == pytest.approx((difference - half, difference + half))
    assert (entry["n"], entry["verdict"]) == (3, "reproduced")
    assert len(entry["runs"]) == 7


@pytest.mark.parametrize("claim", [NUMERIC, ORDER])
def test_without_runs_nothing_is_claimed(claim):
    entry = judge(claim, {"csg": [], "std": []})
    assert entry["verdict"] == "not run here"
    assert [entry[name] for name in ("ours", "low", "high", "n", "runs", "schedule")] == [None, None, None, 0, [], None]


@pytest.mark.filterwarnings("ignore:Precision loss")
def test_equal_values_of_all_seeds_still_make_valid_json():
    entry = judge(ORDER, {"csg": group("csg", 0.9, 0.9, 0.9), "std": group("standard", 0.8, 0.8, 0.8)})
    json.dumps(entry, allow_nan=False)
    assert entry["verdict"] == "reproduced"


def test_only_the_papers_schedule_contradicts_its_number():
    values = (0.5, 0.51, 0.52)
    paper = {"epochs": 200, "lr": 0.1, "lr_schedule": "steps", "weight_decay": 1e-4}
    assert judge(NUMERIC, {"csg": group("csg", *values, **paper)})["verdict"] == "contradicted"
    assert judge(NUMERIC, {"csg": group("csg", *values)})["verdict"] == "inconclusive"
    assert judge(NUMERIC, {"csg": group("csg", *values, **paper | {"lr": 1e-6})})["verdict"] == "inconclusive"
    mixed = group("csg", *values, **paper)[:2] + [fake("csg", 2, 0.52)]
    assert judge(NUMERIC, {"csg": mixed})["verdict"] == "inconclusive"


@pytest.mark.parametrize(
    "fields, words",
    [
        ({}, "30 epochs, one cycle"),
        ({"epochs": 200, "lr_schedule": "steps"}, "200 epochs, steps"),
        ({"dataset": "cifar10-mini", "epochs": 3}, "cifar10-mini, 3 epochs, one cycle"),
    ],
)
def test_a_schedule_in_words(fields, words):
    assert claims.schedule(Recipe(**fields)) == words


def test_the_claims_are_testable_and_have_their_sources():
    pages = experiments.book()["pages"]
    assert len({claim.id for claim in papers.CLAIMS}) == len(papers.CLAIMS)
    for claim in papers.CLAIMS:
        assert claim.sentence.endswith(".")
        assert claim.metric in claims.STATISTICS
        assert {claim.of, claim.over or claim.of} <= set(pages[claim.page]["experiments"])
        assert claim.source
        assert claim.answer is None or "{ours:" in claim.answer
        assert claim.over or (claim.tolerance and claim.paper is not None), f"{claim.id} cannot be judged"


def test_the_papers_numbers_of_a_page_are_those_of_its_numeric_claims():
    values = papers.paper_values("table1")
    assert values["csg"] == {"accuracy": 0.9192, "mis": 0.1603, "l1_density": 0.1}
    assert values["std"] == {"accuracy": 0.9169, "mis": 0.1119}
    assert papers.paper_values("no such page") == {}


def test_the_table_of_claims_has_a_row_each_and_no_number_where_there_is_none():
    judged = [judge(NUMERIC, {"csg": group("csg", 0.90, 0.92, 0.94)}), judge(ORDER, {})]
    head, rule, number, order, *_, source = claims.markdown(judged).splitlines()
    assert {line.count("|") for line in (head, rule, number, order)} == {7}
    assert "0.9200" in number and "**reproduced** (30 epochs, one cycle)" in number
    assert source == "1. Table." and "source 1, tolerance 0.005" in number
    assert "csg [0](#run-cifar10-resnet20-csg-30e-s0-" in number and "[1](#run-cifar10-resnet20-csg-30e-s1-" in number
    assert "+0.0020" in order and order.count("–") == 3 and "**not run here**" in order


def test_the_answer_is_one_sentence_of_the_claims_that_have_words_for_it():
    told = dataclasses.replace(NUMERIC, answer="the accuracy is {ours:.2f}")
    also = dataclasses.replace(ORDER, answer="and beats the other by {ours:+.3f}")
    runs = {"csg": group("csg", 0.90, 0.92, 0.94), "std": group("standard", 0.8, 0.8, 0.8)}
    text = claims.answer([judge(told, runs), judge(ORDER, runs), judge(also, runs)])
    assert text == (
        "**After 30 epochs, one cycle: the accuracy is 0.92 (reproduced, 3 seeds) "
        "and beats the other by +0.120 (reproduced, 3 seeds).**"
    )
    assert claims.answer([judge(told, {}), judge(also, {})]).startswith("**Not answered yet:**")


@pytest.mark.parametrize("name", claims.STATISTICS)
def test_every_statistic_is_a_number_of_any_run(name, run, bare):
    for each in (run, bare):
        value = claims.STATISTICS[name](each)
        if name in MEASURED:
            assert value is None  # no tool has measured these runs
        else:
            assert isinstance(value, float) and np.isfinite(value)


MEASURED = [
    name for name in claims.STATISTICS if name.startswith(("detection", "cam", "activation", "firing", "gradient", "box"))
]


def detection(fgsm: float, pgd: float) -> dict:
    errors = {"fgsm": fgsm, "bim": pgd, "mim": pgd, "pgd": pgd, "match": 0.5}
    sizes = {name: {"500": [e, e + 0.02], "1000": [e - 0.01, e - 0.01]} for name, e in errors.items()}
    attacks = {name: {"turned": 0.9, "used": 900, "errors": of_size} for name, of_size in sizes.items()}
    return {"images": 1000, "accuracy": 1.0, "attacks": attacks}


def test_a_statistic_of_a_tool_is_read_from_its_file_and_only_for_the_weights_that_were_measured(run, tmp_path, monkeypatch):
    tight = copy.deepcopy(next(iter(measured.read("localisation").values())))["crops"]["tight"]
    monkeypatch.setattr(measured, "FOLDER", tmp_path / "measured")
    for kind, iou in {"cam": 0.3, "activation": 0.2, "firing": 0.1, "gradient": 0.4}.items():
        tight[kind]["iou"] = iou
    measured.keep("detection", run, detection(0.1, 0.3))
    wide = {name: tight[name] for name in ("dataset", "objects", "against", "chance")}
    wide["cam"] = tight["cam"] | {"box_accuracy": 0.6}
    measured.keep("localisation", run, {"crops": {"tight": tight, "wide": wide}})
    found = {name: claims.STATISTICS[name](run) for name in MEASURED}
    expected = {"detection": 0.25, "detection_fgsm": 0.1, "detection_bim": 0.3, "detection_mim": 0.3, "detection_pgd": 0.3}
    expected |= {"detection_match": 0.5, "cam_iou": 0.3, "activation_iou": 0.2, "firing_iou": 0.1}
    assert found == pytest.approx(expected | {"gradient_iou": 0.4, "box_accuracy": 0.6})
    path = tmp_path / "measured" / "detection.json"
    measured.write("detection", {run.recipe.name: measured.read("detection")[run.recipe.name] | {"model": "0" * 64}})
    with pytest.raises(Problem, match="with other weights than its folder: run `python tools/detection.py`"):
        claims.STATISTICS["detection"](run)
    path.write_text("[")
    with pytest.raises(Problem, match="detection.json cannot be read.*restore it with git"):
        claims.STATISTICS["detection"](run)


def test_an_ordering_of_values_that_are_all_alike_is_undecided_with_an_interval_of_no_width(recwarn):
    claim = papers.Claim("x", "p", "A is better.", "accuracy", "a", over="b")
    recipes = [Recipe(seed=seed, precision="float32") for seed in range(3)]
    runs = {name: [Run(Path(r.name), r, {"accuracy": 0.1 + 0.2 * (name == "a")}, {}) for r in recipes] for name in "ab"}
    runs["b"] = [dataclasses.replace(run, metrics={"accuracy": 0.3}) for run in runs["b"]]  # 0.1 + 0.2 is a little more
    told = claims.judge(claim, runs)
    assert told["verdict"] == "inconclusive" and told["low"] == told["high"] == pytest.approx(0, abs=1e-15) and told["n"] == 3
    assert not recwarn.list


def test_the_last_weights_are_those_of_the_last_convolution(run):
    assert torch.equal(claims.last_weights(run), run.weights["features.11.conv2.weight"].flatten(1))


def test_without_a_gate_each_class_loses_the_seven_filters_that_excite_it_most(run, bare):
    assert claims.removed_filters(bare).sum(1).tolist() == [7] * 10
    assert claims.removed_filters(run).sum().item() == 64  # with one, each filter is its class's


@pytest.mark.parametrize("lead, expected", [(0.001, "reproduced"), (-0.004, "reproduced"), (-0.006, "contradicted")])
def test_an_ordering_with_a_tolerance_lets_the_first_lie_that_much_lower(lead, expected):
    claim = papers.Claim("x", "p", "A is equal or better.", "accuracy", "a", over="b", tolerance=0.005)
    other = [0.90, 0.9001, 0.9002]
    assert claims.verdict(claim, [v + lead for v in other], other, False) == expected
