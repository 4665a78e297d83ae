"""Whether the gate leaks the label: against a slow twin, on networks whose answer is known, and as the page tells it."""

import dataclasses
import math
import sys
from pathlib import Path

import pytest
import torch

from csgbook import claims, measured
from csgbook.evidence import leak, verdicts
from csgbook.pages import leak_figures, leak_tables
from csglib.data import cifar10
from csglib.paths import ROOT
from csglib.readout import Readout
from csglib.recipe import Recipe
from csglib.runs import Run

sys.path.insert(0, str(ROOT / "tools"))
import label_leak  # noqa: E402

N, C, K = 60, 4, 9


def drawn(seed: int = 0) -> Readout:
    """Random features, head, gate and labels; every class has images."""
    g = torch.Generator().manual_seed(seed)
    return Readout(
        features=torch.rand(N, K, generator=g),
        labels=torch.arange(N) % C,
        weight=torch.randn(C, K, generator=g),
        bias=torch.randn(C, generator=g),
        gate=torch.rand(C, K, generator=g),
    )


def one_hot() -> torch.Tensor:
    """Filter k to class k mod C."""
    return torch.eye(C)[torch.arange(K) % C].T.contiguous()


def slow(r: Readout, G: torch.Tensor) -> dict[str, float]:
    """From the equations, image by image in float64: z_c = sum_k W_ck G_rk a_k + b_c."""
    a, W, b, G = (t.double().tolist() for t in (r.features, r.weight, r.bias, G))
    y = r.labels.tolist()

    def logits(features: list[float], row: list[float]) -> list[float]:
        return [sum(W[c][k] * row[k] * features[k] for k in range(K)) + b[c] for c in range(C)]

    def top(scores: list[float]) -> int:
        return scores.index(max(scores))

    def softmax(z: list[float], c: int) -> float:
        return math.exp(z[c]) / sum(math.exp(v) for v in z)

    hits = {name: [] for name in (f.name for f in dataclasses.fields(leak.Rows))}
    for n in range(N):
        under = [logits(a[n], G[row]) for row in range(C)]
        ungated = top(logits(a[n], [1.0] * K))
        hits["ungated"].append(ungated == y[n])
        hits["label"].append(top(under[y[n]]) == y[n])
        hits["predicted"].append(top(under[ungated]) == y[n])
        hits["by_logit"].append(top([under[c][c] for c in range(C)]) == y[n])
        hits["by_probability"].append(top([softmax(under[c], c) for c in range(C)]) == y[n])
        for row in range(C):
            if row != y[n]:
                hits["wrong"].append(top(under[row]) == y[n])
                hits["followed"].append(top(under[row]) == row)
    mean = [sum(a[n][k] for n in range(N)) / N for k in range(K)]
    hits["without_image"] = [top(logits(mean, G[row])) == row for row in range(C)]
    return {name: sum(right) / len(right) for name, right in hits.items()}


@pytest.mark.parametrize("seed", range(5))
def test_every_share_is_that_of_the_slow_twin(seed):
    r = drawn(seed)
    for matrix in (r.gate, one_hot(), leak.without_meaning(r.gate, seed)):
        assert dataclasses.asdict(leak.measure(r, matrix)) == pytest.approx(slow(r, matrix), abs=1e-12)


def test_a_gate_that_leaks_everything_is_followed_by_a_network_that_sees_nothing():
    """Features without a word on the class, the head a multiple of a one-hot gate: the row alone decides."""
    a = 1 + 0.01 * torch.rand(N, K, generator=torch.Generator().manual_seed(0))
    blind = Readout(a, torch.arange(N) % C, 5 * one_hot(), torch.zeros(C), one_hot())
    found = leak.measure(blind, blind.gate)
    assert (found.label, found.followed, found.wrong, found.without_image) == (1, 1, 0, 1)
    assert found.ungated == found.predicted < 0.5 and found.by_logit < 0.5 and found.by_probability < 0.5


def test_a_gate_that_leaks_nothing_changes_nothing_whatever_the_row():
    r = drawn()
    found = leak.measure(r, torch.ones(C, K))
    assert found.label == found.predicted == found.by_logit == found.by_probability == found.ungated
    assert found.wrong == pytest.approx(found.ungated)
    assert found.followed == pytest.approx((1 - found.ungated) / (C - 1))  # a wrong answer is one of the wrong rows
    assert found.without_image == 1 / C


def test_a_network_that_sees_needs_no_label_even_where_the_gate_leaks():
    y = torch.arange(N) % C
    seeing = Readout(0.1 + 5 * one_hot()[y], y, one_hot(), torch.zeros(C), one_hot())
    found = leak.measure(seeing, seeing.gate)
    assert (found.ungated, found.label, found.by_logit, found.followed, found.wrong) == (1, 1, 1, 1, 0)


def test_a_shuffled_matrix_keeps_its_filters_and_gives_them_to_others():
    G = torch.rand(C, K)
    other = leak.without_meaning(G)
    assert not torch.equal(G, other) and torch.equal(leak.without_meaning(G), other)
    assert sorted(map(tuple, G.T.tolist())) == sorted(map(tuple, other.T.tolist()))


# Before and after gated epochs


def with_history(accuracies: list[float | None], seed: int = 0, **fields) -> Run:
    recipe = Recipe(epochs=len(accuracies), seed=seed, precision="float32", **fields)
    paths = {"csg": lambda e: leak.alternate(recipe, e), "standard": lambda e: "standard", "matched": lambda e: "standard"}
    rows = [{"epoch": e, "path": paths[recipe.method](e), "test_accuracy": a} for e, a in enumerate(accuracies)]
    rows = [row if row["test_accuracy"] is not None else {"epoch": row["epoch"], "path": "skipped"} for row in rows]
    run = Run(Path(recipe.name), recipe, {}, {})
    object.__setattr__(run, "history", rows)
    return run


def test_the_steps_around_gated_epochs_are_those_of_the_history():
    accuracies = [0.2, 0.1, 0.4, 0.5, 0.6, 0.8, 0.7]  # s g s s g s s
    run = with_history(accuracies, method="csg")
    assert leak.gated_steps(run) == [leak.Step(2, 0.2, 0.1, 0.4), leak.Step(5, 0.5, 0.6, 0.8)]
    assert leak.gated_change(run) == pytest.approx(0.0)
    assert leak.best(run) == leak.Best(before=0.2, gated=0.6, standard=0.8, epoch=6, path="standard")
    assert leak.gated_steps(with_history(accuracies, method="standard")) == leak.gated_steps(run)
    early = leak.best(with_history([0.9, *accuracies[1:]], method="csg"))
    assert (early.before, early.epoch) == (0.9, 1)


def test_where_there_is_no_such_epoch_there_is_no_number():
    skipped = with_history([0.2, None, 0.4, 0.5, None, 0.8], method="matched")
    assert leak.gated_steps(skipped) == [] and math.isnan(leak.gated_change(skipped))
    assert math.isnan(leak.best(with_history([0.1, 0.2], method="standard")).gated)
    two = with_history([0.1, 0.2, 0.3, 0.4, 0.5], method="csg", cycle="sgg")
    assert [step.epoch for step in leak.gated_steps(two)] == [2]  # only the first of two follows a standard epoch


# Questions against chance


@pytest.mark.parametrize(
    "values, word",
    [
        ((0.5, 0.6, 0.55), "yes"),
        ((1.0, 1.0, 1.0), "yes"),
        ((0.01, 0.02, 0.015), "no"),
        ((0.09, 0.1, 0.12), "open"),
        ((0.1, 0.1, 0.1), "open"),
        ((0.5, 0.6), "open: two seeds"),
        ((0.5,), "open: one seed"),
        ((), "not run here"),
    ],
)
def test_a_question_is_answered_by_its_interval(values, word):
    found = leak.settle(leak.QUESTIONS[0], values, 0.1)
    assert found.word == word
    assert (found.interval is None) == (len(values) < 2)


def test_questions_ask_for_shares_that_exist():
    fields = {f.name for f in dataclasses.fields(leak.Rows)}
    assert {q.statistic for q in leak.QUESTIONS} <= fields == set(leak_tables.SHOWN) >= set(leak_figures.DRAWN)
    assert {q.of for q in leak.QUESTIONS} == {"csg", "random"} and all(q.sentence.endswith(".") for q in leak.QUESTIONS)


# Random labels


def test_random_labels_are_the_samples_own_dealt_to_other_images(mini):
    first, again, other = label_leak.relabelled(0), label_leak.relabelled(0), label_leak.relabelled(1)
    for part in ("train", "test"):
        a, b, c, true = (getattr(d, part) for d in (first, again, other, mini))
        assert torch.equal(a.labels, b.labels) and not torch.equal(a.labels, c.labels)
        assert torch.equal(a.labels.bincount(), true.labels.bincount()) and torch.equal(a.images, true.images)
        assert abs((a.labels == true.labels).double().mean().item() - 0.1) < 5 * math.sqrt(0.09 / len(true))
    assert first.digest == again.digest and len({first.digest, other.digest, mini.digest}) == 3


def test_what_the_tool_keeps_follows_its_schema_and_is_read_back(run, tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "FOLDER", tmp_path)
    entry = label_leak.entry("true", run)
    assert entry["rows"]["ungated"] == run.metrics["accuracy"] and len(entry["history"]) == run.recipe.epochs
    made = {"commit": None, "dirty": None, "hardware": {"processor": "a processor", "threads": 1, "gpu": None}, "seconds": 60}
    measured.write("label-leak", {"classes": 10, "trainings": [entry] * 3} | made)
    assert leak_tables.relabelled() == {("true", "csg"): [leak.of(run)] * 3}
    assert "true labels, CSG" in leak_tables.random_table().data and "3 trainings" in leak_tables.random_note().data


def test_what_is_published_was_trained_on_the_labels_that_it_names():
    kept = measured.read("label-leak")
    groups = {(t["labels"], t["recipe"]["method"], t["seed"]) for t in kept["trainings"]}
    assert len(groups) == len(kept["trainings"]) == 12 and kept["dirty"] is False
    for t in kept["trainings"]:
        expected = label_leak.relabelled(t["seed"]).digest if t["labels"] == "random" else cifar10.MINI_SHA256
        assert t["data_digest"] == expected
        for name in ("ungated", "label", "predicted", "by_logit", "by_probability"):
            count = t["rows"][name] * t["images"]
            assert abs(count - round(count)) < 1e-6
        assert t["rows"]["ungated"] == pytest.approx(t["history"][-1]["test_accuracy"], abs=0.0135)


# The page


@pytest.mark.slow
def test_the_page_holds_with_runs_without_and_without_what_the_tool_measured(run, bare, tmp_path, monkeypatch):
    full = {"std": [bare], "matched": [], "csg": [run], "alternating": [], "warm-up": []}
    tables = (
        leak_tables.summary,
        leak_tables.rows_table,
        leak_tables.specific,
        leak_tables.schedule_table,
        leak_tables.questions,
        leak_tables.gates,
    )
    for where in (measured.FOLDER, tmp_path):
        monkeypatch.setattr(measured, "FOLDER", where)
        for runs in (full, {name: [] for name in full}, {}):
            assert all("nan" not in table(runs).data for table in tables)
        leak_figures.random_labels(), leak_tables.random_table(), leak_tables.random_note()
    for draw in (leak_figures.rows, leak_figures.before_and_after):
        assert draw(full).axes and draw({}).axes
    assert "missing" in leak_tables.summary({}).data


def test_the_short_answer_says_yes_only_where_the_gated_path_follows_its_row(run, bare):
    def told(gate: torch.Tensor) -> str:
        other = dataclasses.replace(run)
        object.__setattr__(other, "readout", dataclasses.replace(run.readout, gate=gate))
        return leak_tables.summary({"csg": [other], "std": [bare]}).data

    assert told(torch.ones_like(run.readout.gate)).startswith("**Not in these runs")
    G = torch.eye(10).repeat(1, 7)[:, :64]
    planted = Readout(torch.ones_like(run.readout.features), run.readout.labels, G, torch.zeros(10), G)
    sighted = dataclasses.replace(run)
    object.__setattr__(sighted, "readout", planted)
    text = leak_tables.summary({"csg": [sighted], "std": [bare]}).data
    assert text.startswith("**Yes") and "What the network sees by itself is little here" in text


def test_the_claims_of_the_page_are_questions_of_the_book_and_are_judged_by_their_runs(run, bare):
    own = [c for c in claims.CLAIMS if c.page == "label-leak"]
    assert len(own) == 3 and all(c.question for c in own)
    followed = next(c for c in own if c.metric == "followed")
    told = verdicts.judge(followed, {"csg": [run], "std": [bare]})
    rows = [leak.of(each).followed for each in (run, bare)]
    assert told["ours"] == pytest.approx(rows[0] - rows[1]) and told["verdict"] == "inconclusive: one seed"
