import copy
import dataclasses
import json
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from scipy import stats
from tqdm import tqdm

from csgbook import claims, experiments, measured
from csgbook.evidence import answers, verdicts
from csgbook.evidence.verdicts import Claim, judge
from csglib import Problem, runs
from csglib.errors import Damaged, Occupied
from csglib.recipe import Recipe
from csglib.runs import Run
from csglib.training import prepare
from csglib.training.loop import Loop

NUMERIC = Claim("n", "table1", "A number.", "accuracy", "csg", paper=0.92, source="table", tolerance=0.005)
ORDER = Claim("o", "table1", "An order.", "accuracy", "csg", over="std", paper=0.002, source="table")


def fake(method: str, seed: int, accuracy: float, **fields) -> Run:
    recipe = Recipe(method=method, seed=seed, precision="float32", **fields)
    return Run(Path("nowhere"), recipe, {"accuracy": accuracy}, {})


def group(method: str, *values: float, **fields) -> list[Run]:
    return [fake(method, seed, value, **fields) for seed, value in enumerate(values)]


PAPERS = {"epochs": 200, "lr": 0.1, "lr_schedule": "steps", "weight_decay": 1e-4}


def test_a_judged_number_carries_mean_interval_runs_and_schedule():
    runs = group("csg", 0.920, 0.921, 0.922, **PAPERS)
    entry = judge(NUMERIC, {"csg": runs, "std": group("standard", 0.1)})
    assert entry["ours"] == pytest.approx(0.921)
    assert (entry["low"], entry["high"]) == pytest.approx(stats.t.interval(0.95, 2, 0.921, stats.sem([0.920, 0.921, 0.922])))
    assert (entry["n"], entry["verdict"], entry["size"], entry["direction"]) == (3, "reproduced", "reproduced", None)
    assert entry["runs"] == [run.recipe.name for run in runs]
    assert entry["schedule"] == "200 epochs, step learning-rate schedule"
    assert entry["id"] == "n" and entry["paper"] == 0.92 and entry["source"] == "table"


def test_a_judged_order_of_runs_that_started_alike_has_the_interval_of_their_differences():
    a, b = [0.90, 0.93, 0.91], [0.85, 0.86, 0.84, 0.88]
    entry = judge(ORDER, {"csg": group("csg", *a), "std": group("standard", *b)[::-1]})
    differences = np.array(a) - np.array(b[:3])
    expected = stats.t.interval(0.95, 2, differences.mean(), stats.sem(differences))
    assert entry["ours"] == pytest.approx(differences.mean()) and entry["paired"] and entry["values"] == [a, b[:3]]
    assert (entry["low"], entry["high"]) == pytest.approx(expected)
    assert (entry["n"], entry["verdict"], entry["direction"]) == (3, "direction reproduced, size not", "as claimed")
    assert [seed for _, seed, _ in entry["behind"]] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("field, value", [("batch_size", 64), ("net", "resnet18@layer4"), ("weights", "imagenet")])
def test_of_runs_that_started_unlike_the_interval_is_welchs_of_as_many_seeds(field, value):
    a, b = [0.90, 0.93, 0.91], [0.85, 0.86, 0.84, 0.88]
    entry = judge(ORDER, {"csg": group("csg", *a), "std": group("standard", *b, **{field: value})})
    welch = stats.ttest_ind(a, b[:3], equal_var=False).confidence_interval(0.95)
    assert not entry["paired"] and (entry["low"], entry["high"]) == pytest.approx((welch.low, welch.high))
    assert entry["n"] == 3 and len(entry["runs"]) == 6


def test_of_runs_with_too_few_seeds_in_common_all_count_and_the_interval_is_welchs():
    a, b = [0.90, 0.93, 0.91], [0.85, 0.86, 0.84]
    other = [fake("standard", seed, value) for seed, value in enumerate(b, 2)]
    entry = judge(ORDER, {"csg": group("csg", *a), "std": other})
    welch = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert not entry["paired"] and (entry["low"], entry["high"]) == pytest.approx((welch.low, welch.high))


def beginning(method: str, seed: int, tiny) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The first weights of a training, and the batches of its first two epochs."""
    recipe = Recipe(dataset="tiny", method=method, seed=seed, epochs=3, batch_size=32, precision="float32")
    m, net, gate = prepare.build(recipe, 10)
    weights = torch.cat([p.detach().flatten() for p in net.parameters()])
    loop, batches = Loop(recipe, m, net, gate, prepare.optimisers_of(recipe, m, net, gate), tiny.train), []
    loop.step = lambda epoch, x, y: batches.extend([x.clone(), y.clone()])
    for epoch in range(2):
        loop.start(epoch, tqdm(disable=True))
    return weights, batches


def test_of_one_seed_every_method_starts_with_the_same_weights_and_sees_the_same_images_in_the_same_order(tiny):
    """What pairing rests on."""
    weights, batches = beginning("standard", 0, tiny)
    assert len(batches) == 2 * 2 * (320 // 32)
    for method in ("matched", "csg", "joint", "fixed", "picnn", "icnn"):
        same_weights, same_batches = beginning(method, 0, tiny)
        assert torch.equal(weights, same_weights), method
        assert all(torch.equal(a, b) for a, b in zip(batches, same_batches, strict=True)), method
    other_weights, other_batches = beginning("standard", 1, tiny)
    assert not torch.equal(weights, other_weights) and not torch.equal(batches[0], other_batches[0])


@pytest.mark.parametrize("claim", [NUMERIC, ORDER])
def test_without_runs_nothing_is_claimed(claim):
    entry = judge(claim, {"csg": [], "std": []})
    assert entry["verdict"] == "not run here"
    assert [entry[name] for name in ("ours", "low", "high", "n", "runs", "schedule")] == [None, None, None, 0, [], None]


def test_equal_values_of_all_seeds_make_valid_json_without_a_test():
    entry = judge(ORDER, {"csg": group("csg", 0.9, 0.9, 0.9), "std": group("standard", 0.8, 0.8, 0.8)})
    json.dumps(entry, allow_nan=False)
    assert entry["direction"] == "as claimed" and entry["low"] == entry["high"] and entry["tests"] == {}


def test_only_the_papers_schedule_judges_its_number():
    values = (0.5, 0.51, 0.52)
    assert judge(NUMERIC, {"csg": group("csg", *values, **PAPERS)})["verdict"] == "contradicted"
    assert judge(NUMERIC, {"csg": group("csg", *values)})["verdict"] == "inconclusive: another schedule"
    assert judge(NUMERIC, {"csg": group("csg", 0.92, 0.9201, 0.9202)})["verdict"] == "inconclusive: another schedule"
    other = PAPERS | {"lr": 1e-6}
    assert judge(NUMERIC, {"csg": group("csg", *values, **other)})["verdict"] == "inconclusive: another schedule"
    stated = dataclasses.replace(NUMERIC, stated=True)
    assert judge(stated, {"csg": group("csg", *values)})["verdict"] == "contradicted"


def of_data(runs: list[Run], digest: str) -> list[Run]:
    return [dataclasses.replace(run, provenance={"data_digest": digest}) for run in runs]


A, B = group("csg", 0.9, 0.91, 0.92), group("standard", 0.8, 0.81, 0.82)
MIXED = {  # what differs: the runs of both sides
    "epochs": (A, group("standard", 0.8, 0.81, 0.82, epochs=10)),
    "lr ": (A, group("standard", 0.8, 0.81, 0.82, lr=0.1)),
    "lr_schedule": (A, group("standard", 0.8, 0.81, 0.82, lr_schedule="steps")),
    "loop": (A, group("standard", 0.8, 0.81, 0.82, loop="fast")),
    "dataset": (A, group("standard", 0.8, 0.81, 0.82, dataset="cifar10-mini")),
    "holdout": (A, group("standard", 0.8, 0.81, 0.82, holdout=5000)),
    "precision": (A, [dataclasses.replace(r, recipe=dataclasses.replace(r.recipe, precision="bfloat16")) for r in B]),
    "data digest": (of_data(A, "a" * 64), of_data(B, "b" * 64)),
}


@pytest.mark.parametrize("what", MIXED)
def test_runs_that_differ_in_what_both_sides_should_share_are_refused_by_name(what):
    first, second = MIXED[what]
    message = rf"claim o .*{first[0].recipe.name} and {second[0].recipe.name} .*differ in.*{what}.*: train one of them again"
    with pytest.raises(Problem, match=message):
        judge(ORDER, {"csg": first, "std": second})
    assert judge(ORDER, {"csg": A, "std": B})["n"] == 3


WITHIN = {  # of a side: any field but the seed
    "weight_decay": [fake("csg", 2, 0.92, weight_decay=1e-4)],
    "cycle": [fake("csg", 2, 0.92, cycle="sg")],
    "loop": [fake("csg", 2, 0.92, loop="fast")],
    "epochs": [fake("csg", 2, 0.92, **PAPERS)],
    "precision": [Run(Path("nowhere"), Recipe(method="csg", seed=2, precision="bfloat16"), {"accuracy": 0.92}, {})],
    "data digest": of_data(A[2:], "b" * 64),
}


@pytest.mark.parametrize("what", WITHIN)
@pytest.mark.parametrize("claim", [NUMERIC, ORDER, dataclasses.replace(ORDER, of="std", over="csg")])
def test_runs_of_one_side_that_differ_in_more_than_the_seed_are_refused_by_name(claim, what):
    mixed = (of_data(A[:2], "a" * 64) if what == "data digest" else A[:2]) + WITHIN[what]
    with pytest.raises(Problem, match=rf"claim {claim.id} .*{mixed[2].recipe.name}.*differ in.*{what}"):
        judge(claim, {"csg": mixed, "std": of_data(B, "a" * 64) if what == "data digest" else B})


def test_only_the_runs_that_a_claim_uses_have_to_be_alike(run):
    """A run on which a tool has measured nothing takes no part."""
    claim = dataclasses.replace(ORDER, metric="detection", over=None, paper=0.1, tolerance=0.1)
    unlike = dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, epochs=10))
    assert judge(claim, {"csg": [run, unlike]})["verdict"] == "not run here"


def test_a_density_that_the_projection_and_the_penalty_hold_at_its_bound_is_not_measurable(run):
    claim = Claim("d", "table1", "A density.", "l1_density", "csg", paper=0.1, source="table", tolerance=0.005)
    recipes = [Recipe(seed=s, precision="float32", **PAPERS) for s in range(3)]
    seeds = [dataclasses.replace(run, recipe=r, metrics={"l1_density": 0.1 + 1e-8 * r.seed}) for r in recipes]
    assert judge(claim, {"csg": seeds})["verdict"] == "not measurable"
    loose = seeds[:2] + [dataclasses.replace(seeds[2], metrics={"l1_density": 0.1002})]
    assert judge(claim, {"csg": loose})["verdict"] == "reproduced"


def test_holms_correction_marks_tests_of_the_whole_list():
    strong = {"csg": group("csg", 0.900, 0.9001, 0.9002), "std": group("standard", 0.8, 0.8002, 0.8001)}
    weak = {"csg": group("csg", 0.90, 0.91, 0.92), "std": group("standard", 0.84, 0.88, 0.87)}
    judged = verdicts.corrected([judge(ORDER, strong), judge(dataclasses.replace(ORDER, paper=None), weak), judge(ORDER, {})])
    assert judged[0]["holm"] == ["direction", "size"] and judged[1]["tests"]["direction"] < 0.05
    assert judged[1]["holm"] == ["direction"] and judged[2]["holm"] == []
    crowd = verdicts.corrected(judged[:2] + 10 * [judge(dataclasses.replace(ORDER, paper=None), weak)])
    assert crowd[0]["holm"] == ["direction", "size"] and crowd[1]["holm"] == []
    *_, first, second = [line for line in verdicts.markdown(crowd[:2]).splitlines() if line.startswith("| An order")]
    assert "size not** †" in first and "reproduced** |" in second


@pytest.mark.parametrize(
    "fields, words",
    [
        ({}, "30 epochs, one-cycle learning-rate schedule"),
        ({"epochs": 200, "lr_schedule": "steps"}, "200 epochs, step learning-rate schedule"),
        ({"dataset": "cifar10-mini", "epochs": 3}, "cifar10-mini, 3 epochs, one-cycle learning-rate schedule"),
    ],
)
def test_a_schedule_in_words(fields, words):
    assert verdicts.schedule(Recipe(**fields)) == words


def test_the_claims_are_testable_and_have_their_sources():
    pages = experiments.book()["pages"]
    assert len({claim.id for claim in claims.CLAIMS}) == len(claims.CLAIMS)
    for claim in claims.CLAIMS:
        assert claim.sentence.endswith(".")
        assert claim.metric in verdicts.STATISTICS
        assert {claim.of, claim.over or claim.of} <= set(pages[claim.page]["experiments"])
        assert claim.source
        assert claim.answer is None or bool(answers.PAIR.search(claim.answer)) != ("{ours}" in claim.answer)
        assert claim.answer is None or claim.over is None or answers.PAIR.search(claim.answer)
        assert claim.over or (claim.tolerance and claim.paper is not None), f"{claim.id} cannot be judged"


def test_the_papers_numbers_of_a_page_are_those_of_its_numeric_claims():
    values = claims.paper_values("table1")
    assert values["csg"] == {"accuracy": 0.9192, "mis": 0.1603, "l1_density": 0.1}
    assert values["std"] == {"accuracy": 0.9169, "mis": 0.1119}
    assert claims.paper_values("no such page") == {}


def test_the_table_of_claims_has_a_row_each_and_no_number_where_there_is_none():
    judged = [judge(NUMERIC, {"csg": group("csg", 0.90, 0.92, 0.94)}), judge(ORDER, {})]
    schedule, _, head, rule, number, order, *_, source = verdicts.markdown(judged).splitlines()
    assert schedule == "All runs: 30 epochs, one-cycle learning-rate schedule."
    assert {line.count("|") for line in (head, rule, number, order)} == {7}
    assert "0.9200" in number and "**inconclusive: another schedule** |" in number
    assert source == "1. Table." and "source 1, tolerance 0.005" in number
    assert "csg [0](#run-cifar10-resnet20-csg-30e-s0-" in number and "[1](#run-cifar10-resnet20-csg-30e-s1-" in number
    assert "+0.0020" in order and order.count("–") == 3 and "**not run here**" in order


BETTER = "CSG classifies <better|worse> than the other"
ASKED = {"source": claims.OURS, "paper": None}
WORDS = [  # our values, those of the other, changes of the claim, what is told
    (
        (0.90, 0.92, 0.94), (0.8, 0.8, 0.8), {},
        "CSG classifies better than the other, by 12.0 percentage points (7.0 to 17.0); in the paper: better, by 0.2 "
        "percentage points. The authors' claim: **direction reproduced, size not**.",
    ),
    (
        (0.8, 0.8, 0.8), (0.90, 0.92, 0.94), ASKED,
        "CSG classifies worse than the other, by 12.0 percentage points (7.0 to 17.0).",
    ),
    (
        (0.90, 0.91, 0.92), (0.90, 0.92, 0.9), ASKED,
        "We cannot tell whether CSG classifies better or worse than the other: a difference of +0.3 percentage points may be "
        "chance (−3.5 to +4.1).",
    ),
    (
        (0.9,), (0.8,), {},
        "In one run of each network, CSG classifies better than the other, by 10.0 percentage points; one run decides nothing. "
        "The authors' claim: **inconclusive**.",
    ),
    (
        (0.9, 0.9, 0.9), (0.9, 0.9, 0.9), {},
        "Whether CSG classifies better or worse than the other cannot be measured here: the score could not have come out "
        "otherwise. The authors' claim: **not measurable**.",
    ),
    (
        (0.5, 0.5001, 0.5), (0.5, 0.5, 0.5), ASKED,
        "We cannot tell whether CSG classifies better or worse than the other: a difference of +0.003 percentage points may be "
        "chance (−0.01 to +0.02).",
    ),
]  # fmt: skip


@pytest.mark.parametrize("ours, other, changes, told", WORDS)
def test_a_claim_is_told_by_what_its_interval_says(ours, other, changes, told):
    claim = dataclasses.replace(ORDER, answer=BETTER, **changes)
    c = judge(claim, {"csg": group("csg", *ours), "std": group("standard", *other)})
    assert answers.sentence(c) == told


def test_a_number_of_a_paper_is_told_with_the_paper_s():
    told = dataclasses.replace(NUMERIC, answer="CSG recognises {ours} % of the images")
    c = judge(told, {"csg": group("csg", 0.92, 0.921, 0.922, **PAPERS)})
    assert answers.sentence(c) == (
        "CSG recognises 92.1 % of the images (91.9 to 92.3). The authors' claim, 92.0 with a tolerance of 0.5 percentage "
        "points: **reproduced**."
    )


def test_the_box_has_answer_certainty_and_caveat():
    order = dataclasses.replace(ORDER, answer=BETTER)
    runs = {"csg": group("csg", 0.90, 0.92, 0.94), "std": group("standard", 0.9, 0.91, 0.9)}
    text = verdicts.answer([judge(order, runs), judge(NUMERIC, runs)], "It may rain.")
    assert text.count("\n- ") == 1 and "cannot tell does not mean that there is no difference" in text
    assert "3 seeds of each network" in text and text.index("Answer") < text.index("How sure?") < text.index("Caveat.")
    assert "30 epochs, one-cycle learning-rate schedule" in text and "It may rain." in text
    one = verdicts.answer([judge(order, {n: side[:1] for n, side in runs.items()})])
    assert "Not at all: each comparison rests on one run of each network." in one
    longer = {"csg": group("csg", 0.90, 0.92, 0.94, **PAPERS), "std": group("standard", 0.8, 0.81, 0.8, **PAPERS)}
    assert "Caveat" not in verdicts.answer([judge(order, longer)])
    assert "cannot tell" not in verdicts.answer([judge(order, longer)])
    assert verdicts.answer([judge(order, {})]) == answers.ABSENT
    missing = dataclasses.replace(order, of="fixed", answer="fixed gates are <better|worse>")
    assert "- Not measured yet: whether fixed gates are better or worse." in verdicts.answer(
        [judge(order, runs), judge(missing, runs)]
    )


@pytest.mark.parametrize("name", verdicts.STATISTICS)
def test_every_statistic_is_a_number_of_any_run(name, run, bare):
    for each in (run, bare):
        value = verdicts.STATISTICS[name](each)
        if name in MEASURED:
            assert value is None  # no tool has measured these runs
        elif name == "gated_change":
            assert np.isnan(value)  # no standard epoch comes before their gated one
        else:
            assert isinstance(value, float) and np.isfinite(value)


MEASURED = [
    name for name in verdicts.STATISTICS if name.startswith(("detection", "cam", "activation", "firing", "gradient", "box"))
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
    found = {name: verdicts.STATISTICS[name](run) for name in MEASURED}
    expected = {"detection": 0.25, "detection_fgsm": 0.1, "detection_bim": 0.3, "detection_mim": 0.3, "detection_pgd": 0.3}
    expected |= {"detection_match": 0.5, "cam_iou": 0.3, "activation_iou": 0.2, "firing_iou": 0.1}
    assert found == pytest.approx(expected | {"gradient_iou": 0.4, "box_accuracy": 0.6})
    path = tmp_path / "measured" / "detection.json"
    measured.write("detection", {run.recipe.name: measured.read("detection")[run.recipe.name] | {"model": "0" * 64}})
    with pytest.raises(Damaged, match="tools/detection.py"):
        verdicts.STATISTICS["detection"](run)
    path.write_text("[")
    with pytest.raises(Damaged, match="detection.json"):
        verdicts.STATISTICS["detection"](run)


def test_an_ordering_of_values_that_are_all_alike_is_not_measurable_with_an_interval_of_no_width(recwarn):
    claim = claims.Claim("x", "p", "A is better.", "accuracy", "a", over="b")
    recipes = [Recipe(seed=seed, precision="float32") for seed in range(3)]
    runs = {name: [Run(Path(r.name), r, {"accuracy": 0.1 + 0.2 * (name == "a")}, {}) for r in recipes] for name in "ab"}
    runs["b"] = [dataclasses.replace(run, metrics={"accuracy": 0.3}) for run in runs["b"]]  # 0.1 + 0.2 is a little more
    told = verdicts.judge(claim, runs)
    assert told["verdict"] == "not measurable" and told["low"] == told["high"] == pytest.approx(0, abs=1e-15) and told["n"] == 3
    assert not recwarn.list


def test_the_last_weights_are_those_of_the_last_convolution(run):
    assert torch.equal(verdicts.last_weights(run), run.weights["features.5.conv2.weight"].flatten(1))


def test_without_a_gate_each_class_loses_the_seven_filters_that_excite_it_most(run, bare):
    assert verdicts.removed_filters(bare).sum(1).tolist() == [7] * 10
    assert verdicts.removed_filters(run).sum().item() == 64  # with one, each filter is its class's


@pytest.mark.parametrize(
    "low, high, told",
    [
        (0.01234, 0.5, "+0.0123 to +0.5000"),
        (0.00003, 0.5, "+0.00003 to +0.50000"),  # a reader sees on which side of zero it ends
        (-0.5, -0.000004, "-0.500000 to -0.000004"),
        (0.0, 0.0, "+0.0000 to +0.0000"),
        (0.0, 1e-17, "+0.0000 to +0.0000"),
    ],
)
def test_an_interval_is_printed_with_the_digits_that_show_its_side_of_zero(low, high, told):
    assert verdicts.ends(low, high, "+") == told


@pytest.mark.parametrize(
    "fields",
    [{"epochs": 200}, {"lr": 0.1}, {"lr_schedule": "steps"}, {"cycle": "sg"}, {"loop": "fast"}, {"precision": "bfloat16"}],
)
def test_a_checkpoint_of_another_schedule_is_refused(fields, tmp_path):
    recipe = Recipe(dataset="cifar10-mini", precision="float32")
    runs.reserve(tmp_path / "run", recipe)
    with pytest.raises(Occupied):
        runs.reserve(tmp_path / "run", dataclasses.replace(recipe, **fields))
    runs.reserve(tmp_path / "run", recipe)  # its own goes on


@pytest.mark.parametrize("name", get_args(get_type_hints(Recipe)["lr_schedule"]))
def test_every_schedule_of_a_recipe_has_words(name):
    recipe = Recipe(lr_schedule=name, precision="float32")
    assert verdicts.schedule(recipe).endswith("learning-rate schedule")
