"""The first page and the page of the method: their numbers against slow twins, their words against the evidence, the worked
example in a browser against csglib.methods.csg."""

import dataclasses
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from docutils import nodes

from csgbook import claims, experiments
from csgbook.evidence import cut, schedules, use
from csgbook.explorers import worked
from csgbook.pages import drawings, first_page, scoreboard
from csglib import data, runs
from csglib.analysis import metrics
from csglib.methods import csg
from csglib.readout import Readout

sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tools" / "ext")]
import assemble  # noqa: E402
import content_policy  # noqa: E402
import layout  # noqa: E402


@pytest.fixture(scope="module")
def three(run, bare) -> first_page.Runs:
    return {"std": [bare], "matched": [bare], "csg": [run]}


@pytest.fixture(scope="module")
def readout() -> Readout:
    """Four classes, eight filters, ninety images: small enough for loops."""
    rng = torch.Generator().manual_seed(0)
    a, W, b = torch.rand(90, 8, generator=rng), torch.randn(4, 8, generator=rng), torch.randn(4, generator=rng)
    G = csg.project(torch.rand(4, 8, generator=rng) - 0.5)
    return Readout(features=a, labels=torch.arange(90) % 4, weight=W, bias=b, gate=G, gates=None)


# What is used, against loops


def test_evidence_and_its_share_equal_loops(readout):
    r, own = readout, readout.gate.argmax(0)
    E = np.zeros((4, 8))
    for c in range(4):
        for k in range(8):
            above = r.weight[c, k] - r.weight[:, k].mean()
            E[c, k] = max(0.0, np.mean([above * r.features[i, k] for i in range(90) if r.labels[i] == c]))
    assert use.evidence(r).numpy() == pytest.approx(E, abs=1e-5)
    shares = [sum(E[c, k] for k in range(8) if own[k] == c) / E[c].sum() for c in range(4)]
    assert use.own_evidence(r) == pytest.approx(np.mean(shares), abs=1e-5)


def test_one_group_per_class_equals_a_loop_and_takes_the_better_assignment(readout):
    r, found = readout, []
    for own in (r.gate.argmax(0), r.weight.argmax(0)):
        hits = 0
        for i in range(90):
            logits = [sum(r.weight[c, k] * r.features[i, k] for k in range(8) if own[k] == c) + r.bias[c] for c in range(4)]
            hits += int(np.argmax([float(v) for v in logits])) == int(r.labels[i])
        found.append(hits / 90)
    assert found[0] != found[1]
    assert cut.one_group(r) == pytest.approx(max(found))
    assert cut.one_group_loss(r) == pytest.approx(metrics.accuracy(r.logits, r.labels) - max(found))


def test_own_and_other_classes_equal_loops(readout):
    r, own = readout, readout.gate.argmax(0)
    ratio, apart, inside = [], [], []
    for k in range(8):
        a = r.features[:, k].double().numpy()
        mine, rest = a[r.labels == own[k]], a[r.labels != own[k]]
        spread = np.sqrt((mine.var() + rest.var()) / 2)
        ratio.append(rest.mean() / mine.mean())
        apart.append((mine.mean() - rest.mean()) / spread)
        inside.append(spread / mine.mean())
    assert use.elsewhere(r) == pytest.approx(np.mean(ratio))
    assert use.separation(r) == pytest.approx(np.mean(apart))
    assert use.within(r) == pytest.approx(np.mean(inside))


def test_no_gradient_of_the_gated_loss_reaches_what_the_gate_shuts_off(readout):
    """The share is that of the activation whose gradient autograd finds to be zero."""
    r = readout
    a = r.features.clone().requires_grad_()
    F.cross_entropy((a * r.gate[r.labels]) @ r.weight.T + r.bias, r.labels).backward()
    assert 0 < (a.grad == 0).sum() < a.numel()
    assert use.unseen(r) == pytest.approx((r.features * (a.grad == 0)).sum() / r.features.sum())
    assert use.unseen(dataclasses.replace(r, gate=None)) is None


def test_the_images_that_excite_a_filter_equal_a_loop(readout):
    r, own = readout, readout.gate.argmax(0)
    shares = [np.mean([r.labels[i] == own[k] for i in np.argsort(-r.features[:, k].numpy())[:6]]) for k in range(8)]
    assert use.exciting(r) == pytest.approx(np.mean(shares))


# The first page


@pytest.mark.parametrize(
    "verdict, kind",
    [
        ("reproduced", "yes"), ("size reproduced", "yes"), ("direction reproduced", "yes"), ("yes", "yes"),
        ("contradicted", "no"), ("opposite", "no"), ("no", "no"), ("inconclusive", "open"), ("open", "open"),
        ("no difference found", "open"),        ("not measurable", "none"), ("not run here", "none"), ("no number", "none"),
    ],
)  # fmt: skip
def test_any_words_of_a_verdict_have_a_shape(verdict, kind):
    assert scoreboard.kind(verdict) == kind


def claim(id: str, verdict: str, **values) -> dict:
    told = {"id": id, "sentence": f"<{id}> is so.", "source": "the paper", "over": "std", "paper": None}
    told["schedule"] = "200 epochs, step learning-rate schedule"
    return told | {"ours": 0.02, "low": 0.01, "high": 0.03, "verdict": verdict} | values


RESULTS = [
    claim("accuracy-order", "contradicted", paper=0.0023, ours=-0.014, low=-0.021, high=-0.007),
    claim("accuracy-matched", "open", source=claims.OURS, ours=-0.002, low=-0.005, high=0.002),
    claim("new", "size reproduced", paper=0.05, low=0.0002, schedule="voc:town, 20 epochs, one-cycle learning-rate schedule"),
    claim("value", "inconclusive: another schedule", over=None, paper=0.9),
    claim("flat", "not measurable", ours=0.0, low=0.0, high=0.0),
    claim("absent", "not run here", ours=None, low=None, high=None),
]  # fmt: skip


def test_the_tally_counts_every_claim_once_apart_for_papers_and_book():
    text = scoreboard.tally(RESULTS)
    assert [int(n) for n in re.findall(r"<b>(\d+)</b>", text)] == [1, 1, 1, 1, 1, 1]
    assert "Claims of the papers <span>(5)</span>" in text and "Questions of this book <span>(1)</span>" in text
    assert 'aria-label="Questions of this book: 1 open"' in text and "another schedule" not in text
    asked = scoreboard.tally([c | {"question": c["id"] == "new"} for c in RESULTS])  # a claim may say itself whose it is
    assert 'aria-label="Questions of this book: 1 size reproduced"' in asked
    assert text.index("size reproduced</span>") < text.index("contradicted</span>") < text.index("inconclusive</span>")


def test_the_forest_draws_each_claim_that_has_an_interval_on_its_side_of_the_line():
    text = scoreboard.forest(RESULTS)
    rows = re.findall(r'<li class="(\w+)">(.*?)</li>', text)
    assert [shape for shape, _ in rows] == ["no", "yes", "open", "open"]  # two differences and a flat one, then the value
    assert "&lt;new&gt; is so." in text and "<new>" not in text  # a sentence is text, never markup
    assert "−0.014" in rows[0][1] and "−0.021 to −0.007" in rows[0][1] and "contradicted" in rows[0][1]
    assert "+0.0002 to +0.030" in rows[1][1] and "(20 epochs)" in rows[1][1]  # its side of zero, its length
    assert "After 200 epochs, where" in text and all("epochs" not in rows[i][1] for i in (0, 2, 3))
    assert all(part.count('class="zero"') == 1 for _, part in rows)
    assert [part.count("mark paper") for _, part in rows] == [1, 1, 0, 1]
    ends = [[float(v) for v in re.search(r'x1="([\d.]+)" x2="([\d.]+)" y1="10"', part).groups()] for _, part in rows]
    assert ends[0][1] < 100 < ends[1][0]  # below zero, above zero
    assert all(0 <= x <= 200 for pair in ends for x in pair)
    assert "takes two seeds" in scoreboard.forest([claim("one", "inconclusive", low=None, high=None)])


def test_a_row_puts_every_value_at_its_place():
    text = drawings.interval(-1, 3, 1, "yes", paper=4.0)
    assert 'x1="77.5" x2="167.5"' in text  # the largest, the paper's 4, ends at 190
    assert 'd="M190.0 10' in text and 'cx="122.5"' in text


def test_each_finding_tells_the_runs_numbers(three):
    text = first_page.findings(three, {})
    for finding in first_page.FINDINGS:
        for group in three.values():
            assert finding.told.format(use.means(finding.measure, group)) in text
    assert text.count("{grid-item-card}") == 4 and "A short schedule" in text and "2 epochs" in text
    assert "which may be chance" not in text  # of one seed nothing is known


def test_chance_is_named_only_where_the_seeds_allow_it():
    """By the formula: the mean of the paired differences against 4.303 standard errors of three seeds."""
    published = experiments.published("which-one", "short")
    for name, other in (("csg", "matched"), ("csg", "std"), ("std", "csg"), ("csg", "csg")):
        gaps = [a.metrics["accuracy"] - b.metrics["accuracy"] for a, b in zip(published[name], published[other], strict=True)]
        holds = abs(np.mean(gaps)) <= 4.303 * np.std(gaps, ddof=1) / np.sqrt(3)
        assert first_page.by_chance(published[name], published[other]) == bool(holds and name != other), (name, other)
    assert first_page.by_chance(published["csg"], published["matched"]) and not first_page.by_chance(
        published["csg"], published["std"]
    )
    assert "which may be chance" in first_page.findings({name: published[name] for name in first_page.NAMES}, {})


def test_runs_on_the_papers_schedule_are_told_as_soon_as_there_are_any(three):
    text = first_page.schedule_told(three, {"std": three["std"], "csg": three["csg"]})
    run = three["csg"][0]
    assert (
        f"CSG {run.metrics['accuracy']:.4f} and {run.metrics['mis']:.3f} nats (1 seed)" in text
        and "no run of that length" not in text
    )
    one = first_page.schedule_told(three, {"std": [], "csg": three["csg"]})
    assert (
        f"so far, accuracy and mutual information score: CSG {run.metrics['accuracy']:.4f}" in one
        and "others trained to" in one
    )
    assert "no run of that length" in first_page.schedule_told(three, {})
    assert "200 epochs" in text and "2 epochs with a one-cycle" in text


@pytest.mark.slow
@pytest.mark.parametrize("finding", first_page.FINDINGS, ids=lambda f: f.headline)
def test_a_headline_stands_only_where_the_numbers_bear_it(finding, three):
    published = experiments.published("which-one", "short")
    names = ("std", "matched", "csg")
    means = {name: use.means(finding.measure, published[name]) for name in names}
    assert finding.holds(means, published)
    turned = {name: "csg" if name == "std" else "std" for name in names}  # the other way round
    assert not finding.holds({n: means[m] for n, m in turned.items()}, {n: published[m] for n, m in turned.items()})
    assert finding.headline in first_page.findings({name: published[name] for name in names}, {})


@pytest.mark.slow
def test_what_may_be_chance_costs_nothing_and_sparser_features_are_told_as_such():
    """After 200 epochs, where CSG's accuracy and sparsity come out otherwise than after 30."""
    published = schedules.leading(schedules.found("table1", "quick"))
    assert published["csg"][0].recipe.epochs == 200 and first_page.by_chance(published["csg"], published["std"])
    text = first_page.findings(published, {})
    assert "Here it costs accuracy" not in text and "What it does to accuracy" in text and "most of the price" not in text
    assert re.search(r"cannot be told from that of standard training \(−0\.\d\d points\); the paper", text)
    assert "hardly sparser" in text and "*less* sparse" not in text and "A short schedule" not in text
    short = first_page.findings({name: experiments.published("table1", "short")[name] for name in first_page.NAMES}, {})
    assert "Here it costs accuracy" in short and "most of the price" in short and "*less* sparse" in short


def test_without_its_runs_a_part_says_so(three):
    assert first_page.idea({"std": three["std"], "csg": []}) == first_page.ABSENT == first_page.findings({}, {})


def test_the_samples_images_stand_in_the_readout_where_the_index_says(run, mini):
    published = experiments.published("which-one", "short")["csg"][0]
    assert torch.equal(published.readout.labels[first_page.places(published)], mini.test.labels)
    assert torch.equal(run.readout.labels[first_page.places(run)], mini.test.labels)


def test_the_pictures_beneath_a_network_are_those_that_excite_a_filter(run, mini):
    text, own = first_page.exciting(run), metrics.owners(run.readout)
    for line, share in zip(text.split('<div class="exciting"')[1:], first_page.RANKS, strict=True):
        k = first_page.mixed(run)[int(share * 64)]
        best = run.readout.features[:, k].argsort(descending=True, stable=True)[:6]
        assert re.findall(r'aria-label="(\w+)"', line) == [data.CLASSES[c] for c in mini.test.labels[best]]
        assert line.count("foreign") == int((mini.test.labels[best] != own[k]).sum())
        assert f"<p>{data.CLASSES[own[k]]} <small>" in line


def test_the_lines_of_a_network_are_as_strong_as_its_evidence(run):
    text = drawings.of_network(run.readout, data.CLASSES, ["x"] * 10, "CSG")
    share = use.evidence(run.readout)
    share = share / share.amax(0).clamp(min=1e-12)
    assert text.count("<path") == int((share > 0.05).sum())
    for c in range(10):
        assert len(re.findall(rf'<path[^>]*class="class-{c}"', text)) == int((share[c] > 0.05).sum())
    assert 'role="img" aria-label="CSG: lines from 64 filters' in text


def test_the_first_page_includes_what_is_written_and_is_short(three, tmp_path):
    written = {**first_page.pages(RESULTS, three, {}), **worked.pages(three, three)}
    text = {name: (ROOT / "book" / f"{name}.md").read_text() for name in ("index", "method")}
    asked = re.findall(r"\{include\} (_\w+\.md)", text["index"] + text["method"])
    assert sorted(asked) == sorted(written)
    prose = text["index"] + written["_findings.md"]
    words = re.sub(r"```\{raw\}.*?```|<[^>]+>|```sh.*?```", " ", prose, flags=re.S).split()
    assert len(words) < 600  # two minutes at a reader's usual 250 to 300 words


def test_a_book_with_other_experiments_has_both_pages_too(monkeypatch, tmp_path):
    """One experiment, no profile of the paper's schedule: what cannot be shown is said."""
    table = {
        "profiles": {"quick": {"train": False, "seeds": [0], "recipe": {"epochs": 30, "precision": "bfloat16"}}},
        "experiments": {"std": {"method": "standard"}},
        "pages": {"table1": {"experiments": ["std"]}, "explore": {}},
    }
    monkeypatch.setattr(experiments, "book", lambda: table)
    assemble.write_front(tmp_path, RESULTS, "quick", str(runs.PUBLISHED))
    assert (tmp_path / "_findings.md").read_text() == (tmp_path / "_idea.md").read_text() == first_page.ABSENT
    assert "| 1 " in (tmp_path / "_firing.md").read_text() and "No run of CSG" in (tmp_path / "_rhythm.md").read_text()
    assert "tally-yes" in (tmp_path / "_verdicts.md").read_text()


# The worked example


def twin(w: float, pressure: float, steps: int) -> np.ndarray:
    """The gate after so many steps, by the equations of the page."""
    a, W = np.array(worked.ACTIVATIONS), np.array([[1, w, -1], [-1, -w, 1]])
    G = np.ones((2, 3))
    for _ in range(steps):
        step = np.zeros((2, 3))
        for c in range(2):
            z = W @ (a[c] * G[c])
            p = np.exp(z) / np.exp(z).sum()
            for k in range(3):
                step[c, k] = a[c, k] * sum((p[j] - (j == c)) * W[j, k] for j in range(2)) / 2
        G = G - step - (pressure if G.sum() > 3 else 0)
        G = np.clip(G / G.max(0), 0, 1)
    return G


@pytest.mark.parametrize("w", worked.SPEAKS)
@pytest.mark.parametrize("pressure", worked.PRESSURES)
def test_the_worked_gate_follows_the_equations(w, pressure):
    for steps in (0, 1, 7, 40):
        assert worked.trained(w, pressure, steps).numpy() == pytest.approx(twin(w, pressure, steps), abs=1e-9)


def test_pressure_alone_breaks_no_tie_and_the_weights_do():
    for pressure in worked.PRESSURES:
        assert worked.trained(0.0, pressure, 40)[:, 1].tolist() == [1, 1]
    assert worked.trained(0.5, 0.03, 40)[:, 1].tolist() == [1, 0]
    assert worked.trained(-0.5, 0.03, 40)[:, 1].tolist() == [0, 1]


def test_the_solutions_of_the_pages_exercises_are_those_of_the_gate():
    def shut(pressure: float) -> int:
        return next(n for n in range(41) if worked.trained(0.25, pressure, n)[1, 1] == 0)

    page = (ROOT / "book" / "method.md").read_text()
    assert f"After {shut(0.0)} steps and after {shut(0.1)}." in page
    assert f"At 4/6, or {csg.density(worked.trained(0.0, 0.1, 40)):.3f}." in page
    assert worked.view(worked.START | {"steps": 0})["standard-1"] == worked.view(worked.START | {"steps": 40})["standard-1"]


def test_the_example_starts_between_open_and_shut():
    shown = worked.view(worked.START)
    assert 0.1 < shown["gate-1-1"][1] < 0.9 and shown["fires-1"] != shown["passes-1"]


def test_without_javascript_the_example_is_a_figure_with_its_numbers():
    before = worked.figure().split('<script type="application/json">')[0]
    assert '<div class="worked-controls" hidden>' in before and "<noscript>" in before
    for name, (text, _) in worked.view(worked.START).items():
        assert re.search(rf'data-out="{name}" [^>]*>{re.escape(text)}<', before), name


def test_the_page_may_run_the_examples_script_and_no_other():
    page = f"<html>{worked.figure()}</html>"
    assert content_policy.digest(re.findall(r"<script>(.*?)</script>", page, re.S)[0]) in content_policy.policy(page, "method")
    with pytest.raises(content_policy.ExtensionError, match="not known"):
        content_policy.policy(page.replace("<script>//", "<script>alert();//"), "method")


@pytest.fixture
def example(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(f'<!doctype html><meta charset="utf-8">{worked.figure()}')
    browser.get_log("browser")
    browser.get(page.as_uri())
    return browser


def shown(browser) -> dict:
    read = "return Object.fromEntries([...document.querySelectorAll('[data-out]')].map(e => [e.dataset.out, e.textContent]))"
    return browser.execute_script(read)


def expected(state: dict) -> dict:
    return {name: text for name, (text, _) in worked.view(state).items()}


@pytest.mark.slow
@pytest.mark.browser
def test_every_control_of_the_example_shows_pythons_numbers_by_keyboard(example):
    from selenium.webdriver import Keys

    state = dict(worked.START)
    assert shown(example) == expected(state)
    for c in worked.CONTROLS:
        box = example.find_element("css selector", f"[data-control={c.id}]")
        last = len(c.levels) - 1
        moves = [(Keys.HOME, 0), (Keys.ARROW_RIGHT, min(1, last)), (Keys.END, last), (Keys.ARROW_LEFT, max(last - 1, 0))]
        for key, place in moves if c.kind == "range" else [(Keys.ARROW_UP, 0), (Keys.ARROW_DOWN, 1)]:
            box.send_keys(key)
            state[c.id] = place
            assert int(box.get_property("value")) == place
            assert shown(example) == expected(state), (c.id, place)
            assert c.kind != "range" or box.get_attribute("aria-valuetext") == c.levels[place]
    example.execute_async_script("setTimeout(arguments[0], 500)")
    status = example.find_element("css selector", "[role=status]").get_attribute("textContent")
    assert f"Density {expected(state)['density']}" in status
    example.find_element("css selector", ".worked-reset").send_keys(Keys.ENTER)
    assert shown(example) == expected(worked.START)
    assert [e["message"] for e in example.get_log("browser") if e["level"] == "SEVERE"] == []


@pytest.mark.browser
def test_at_every_step_and_weight_the_page_shows_pythons_numbers(example):
    """A hundred states, set at once: rounding at the last digit included."""
    rng = np.random.default_rng(0)
    states = [{c.id: int(rng.integers(len(c.levels))) for c in worked.CONTROLS} for _ in range(100)]
    move = """
    return arguments[0].map(state => {
      for (const [id, place] of Object.entries(state)) document.querySelector(`[data-control=${id}]`).value = place;
      document.querySelector('[data-control=steps]').dispatchEvent(new Event('input'));
      return Object.fromEntries([...document.querySelectorAll('[data-out]')].map(e => [e.dataset.out, e.textContent]));
    });"""
    assert example.execute_script(move, states) == [expected(state) for state in states]


@pytest.mark.browser
def test_a_script_that_fails_leaves_the_figure_and_a_sentence(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(f"<script>Array.prototype.flat = undefined;</script>{worked.figure()}")
    browser.get(page.as_uri())
    assert "do not work in this browser" in browser.find_element("css selector", ".worked-note").text
    assert not browser.find_element("css selector", ".worked-controls").is_displayed()
    assert shown(browser) == expected(worked.START)


# Layout


@pytest.mark.parametrize(
    "text, number",
    [("0.8924 ± 0.0006", True), ("-0.0205 to -0.0072", True), ("+0.5", True), ("10,000", True), ("12.5 %", True),
     ("1e-06", True), ("std", False), ("30 epochs, one-cycle schedule", False), ("ACC2", False), ("0.1 of the classes", False)],
)  # fmt: skip
def test_a_cell_with_a_number_is_marked_so_that_it_never_breaks(text, number):
    assert bool(layout.NUMBER.fullmatch(text)) == number


def test_a_commit_of_digits_alone_is_no_number():
    number, commit = nodes.entry("", nodes.paragraph("", "43284505")), nodes.entry("", nodes.literal("", "43284505"))
    layout.mark(SimpleNamespace(env=SimpleNamespace(docname="table1")), nodes.row("", number, commit))
    assert number["classes"] == ["number"] and commit["classes"] == []


def test_every_function_that_draws_photographs_is_known_to_the_book():
    found = {}
    for module in ("figures", "attacked", "located"):
        text = (ROOT / "csgbook" / "pages" / f"{module}.py").read_text()
        for name, body in re.findall(r"^def (\w+)\((.*?)(?=^def |^@|\Z)", text, re.S | re.M):
            if "permute(1, 2, 0)" in body:
                found[name] = module
    assert len(found) >= 4
    reached = {"overlays": "looks"}  # drawn for
    for name, module in found.items():
        assert assemble.PHOTOGRAPHS.search(f"{module}.{reached.get(name, name)}("), name
    assert not assemble.PHOTOGRAPHS.search("figures.gate(run)")


def test_results_of_the_published_runs_have_what_the_first_page_reads():
    asked = set(re.findall(r'c\["(\w+)"\]', (ROOT / "csgbook" / "pages" / "scoreboard.py").read_text()))
    assert {
        "verdict",
        "ours",
        "low",
        "high",
        "paper",
        "over",
        "source",
        "sentence",
        "id",
        "question",
        "also",
        "n",
        "schedule",
    } >= asked
    assert set(scoreboard.LABELS) - {c.id for c in claims.CLAIMS} == set()
