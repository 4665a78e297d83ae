"""The explorers: what they refuse, live against static, and every slider of the built book against Python."""

import dataclasses
import gzip
import html as markup
import re

import numpy as np
import pytest
import torch
from conftest import BUILD, open_page

from csgbook import experiments
from csgbook.evidence import cut
from csgbook.explorers import explore, views
from csgbook.explorers.explore import Control
from csglib import Problem, data
from csglib.analysis import metrics
from csglib.readout import Readout


@pytest.fixture(scope="module")
def explorers(run, bare, mini) -> dict[str, explore.Explorer]:
    return {
        "cut": explore.cut({"CSG <gate>": [run, run], "standard": [bare, bare]}, data.CLASSES, "Cut <it>", (1, 0)),
        "bounds": explore.cut({"0.1": [run]}, data.CLASSES, "Bounds", (0, 0), by=2),
        "removal": explore.remove_classes({"CSG": run, "STD": bare}, data.CLASSES, n=300),
        "film": explore.training_film(run, data.CLASSES),
        "filter": explore.one_filter(run, data.CLASSES, data.Images(mini.test.images[:80], mini.test.labels[:80]), n=300),
    }


NAMES = ["cut", "bounds", "removal", "film", "filter"]


def states(explorer: explore.Explorer) -> list[dict[str, int]]:
    """The start and each control at its ends and in between."""
    found = [explorer.start()]
    for c in explorer.controls:
        n = len(c.levels)
        places = (0b1, 0b1000100000, 0b1111111111) if c.kind == "checks" else sorted({0, n // 3, n - 1})
        found += [explorer.start() | {c.id: place} for place in places]
    return found


# What they compute


def test_all_connections_are_the_network_itself_and_a_tenth_is_one_group_per_class():
    runs = experiments.published("table1", "short")["csg"]
    e = explore.cut({"CSG": runs, "again": runs}, data.CLASSES, "Cut", (0, 1), by=2)
    shown = e.view(e.start() | {"share": len(cut.LEVELS) - 1})
    mean = np.mean([metrics.accuracy(run.readout.logits, run.readout.labels) for run in runs])
    assert float(shown["numbers"][0][1]) == pytest.approx(mean, abs=2e-4)
    assert (
        shown["numbers"][2][1] == "640 of 640"
        and "changes accuracy by +0.0 points for CSG and +0.0 points for" in shown["told"]
    )
    shown = e.view(e.start())
    assert shown["numbers"][2][1] == "64 of 640" and sum(int(row[3][0]) for row in shown["table"]["rows"]) == 64
    mean = 0
    for r in (run.readout for run in runs):  # cut to the gate's own groups
        mean += metrics.accuracy(r.features @ (r.weight * metrics.own_filters(r)).T + r.bias, r.labels) / len(runs)
    assert float(shown["numbers"][0][1]) == pytest.approx(mean, abs=2e-3)


def test_the_accuracy_after_a_cut_equals_a_loop(run):
    r = run.readout
    places = cut.ranks(cut.by_head(r), cut.by_activation(r))
    entries = [(-float(cut.by_head(r)[c, k]), -float(cut.by_activation(r)[c, k]), c, k) for c in range(10) for k in range(64)]
    first = {(c, k) for *_, c, k in sorted(entries)[:96]}
    assert {(c, k) for c in range(10) for k in range(64) if places[c, k] < 96} == first
    hits, size = [0] * 10, [0] * 10
    for i in range(61):
        logits = [r.bias[c] + sum(r.weight[c, k] * r.features[i, k] for k in range(64) if (c, k) in first) for c in range(10)]
        size[r.labels[i]] += 1
        hits[r.labels[i]] += int(np.argmax([float(v) for v in logits])) == int(r.labels[i])
    part = dataclasses.replace(r, features=r.features[:61], labels=r.labels[:61])
    (found,) = cut.accuracies(part, places, [96])
    assert found.tolist() == pytest.approx([h / n if n else float("nan") for h, n in zip(hits, size, strict=True)], nan_ok=True)


@pytest.mark.parametrize("levels, connections, counts", [((1, 10, 100), 640, [6, 64, 640]), ((1,), 12, [1])])
def test_a_level_keeps_its_share_and_at_least_one_connection(levels, connections, counts):
    assert cut.kept(levels, connections) == counts


def test_networks_of_different_sizes_are_not_compared(run):
    other, r = dataclasses.replace(run), run.readout
    half = dataclasses.replace(r, features=r.features[:, :32], weight=r.weight[:, :32], gate=r.gate[:, :32], gates=None)
    object.__setattr__(other, "readout", half)
    with pytest.raises(Problem, match="layers of different sizes"):
        explore.cut({"a": [run], "b": [other]}, data.CLASSES, "Cut", (0, 1))


def test_removing_every_class_leaves_the_bias_and_removing_none_the_network(explorers, run):
    e = explorers["removal"]
    none = e.view({"removed": 0})
    assert none["numbers"][0][1] == "–" and none["told"] == "Filters switched off: CSG 0, STD 0."
    everything = e.view({"removed": 0b1111111111})
    assert everything["told"].startswith("Filters switched off: CSG 64")
    favourite = data.CLASSES[int(run.readout.bias.argmax())]
    assert {row[2][0] for row in everything["table"]["rows"]} == {favourite, "–"}  # the favourite itself is never mistaken


def test_the_first_states_show_something(explorers, run):
    assert explorers["removal"].start() == {"removed": 1 << 3}
    assert explorers["cut"].view(explorers["cut"].start())["numbers"][2][1] == "64 of 640"
    e, M = explorers["filter"], metrics.information(run.readout)
    k = e.data["order"][0][e.start()["filter"]]
    differ = (run.readout.gate.argmax(0) != M.argmax(0)).nonzero()
    assert len(differ) == 0 or k in differ


def test_filters_stand_in_the_order_of_their_classes(explorers, run):
    (control,) = explorers["filter"].controls
    own = [level.split("(")[1].rstrip(")") for level in control.levels]
    assert own == sorted(own, key=data.CLASSES.index)
    assert sorted(int(level.split()[0]) for level in control.levels) == list(range(64))


def test_the_pictures_are_those_that_excite_the_filter_most(explorers, run, mini):
    from csglib.runs.inference import read_out

    a = read_out(run.network(), None, data.Images(mini.test.images[:80], mini.test.labels[:80])).features
    e = explorers["filter"]
    for place in (0, 31, 63):
        k = e.data["order"][0][place]
        labels = mini.test.labels[:80][a[:, k].argsort(descending=True, stable=True)[:6]]
        assert [name for _, name in e.view({"filter": place})["images"]] == [data.CLASSES[int(c)] for c in labels]


@pytest.mark.parametrize("x, digits, text", [(0.0625, 3, "0.063"), (0.5, 0, "1"), (0.1, 4, "0.1000"), (2.675, 2, "2.67")])
def test_numbers_are_rounded_as_javascript_does(x, digits, text):
    assert views.fixed(x, digits) == text


# What they refuse


def test_a_control_without_levels_is_refused(run):
    with pytest.raises(Problem, match="'X' has no levels"):
        Control("x", "range", "X", ())


def test_a_film_of_a_run_without_gates_is_refused(bare):
    with pytest.raises(Problem, match="has no gates to show: choose a run of method csg"):
        explore.training_film(bare, data.CLASSES)


def test_runs_read_out_on_different_images_are_refused(run):
    other = dataclasses.replace(run)
    object.__setattr__(other, "readout", dataclasses.replace(run.readout, labels=run.readout.labels.flip(0)))
    with pytest.raises(Problem, match="read out on different images"):
        explore.remove_classes({"a": run, "b": other}, data.CLASSES)


def test_a_bundle_over_its_budget_is_refused(explorers, monkeypatch):
    monkeypatch.setattr(explore, "BUDGET", 10_000)
    with pytest.raises(Problem, match=r"'Remove classes' takes \d+ bytes gzipped, more than 10000: give it fewer samples"):
        explorers["removal"].to_html()


# Live and static


@pytest.mark.parametrize("name", NAMES)
def test_the_bundle_carries_widgets_and_html_and_is_the_same_every_time(name, explorers):
    e = explorers[name]
    bundle = e._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html", "application/vnd.jupyter.widget-view+json"}
    assert bundle["text/html"] == e.to_html()
    assert "<gate>" not in bundle["text/html"]  # a name is text, never markup


@pytest.mark.parametrize("name", NAMES)
def test_the_widgets_show_what_the_static_page_does_at_every_state(name, explorers):
    import ipywidgets as w

    e = explorers[name]
    box = e.widget()
    inputs = [child for child in box.children if not isinstance(child, w.HTML)]
    for state in states(e):
        rest = iter(inputs)
        for c in e.controls:
            if c.kind == "checks":
                for i in range(len(c.levels)):
                    next(rest).value = bool(state[c.id] >> i & 1)
            else:
                next(rest).value = state[c.id]
        shown = markup.unescape(box.children[-1].value)
        for label, value in e.view(state)["numbers"]:
            assert f"<dt>{label}</dt><dd>{value}</dd>" in shown


@pytest.mark.parametrize("name", NAMES)
def test_without_javascript_there_is_a_figure_with_its_numbers_and_a_caption(name, explorers):
    text = explorers[name].to_html()
    before = text[: text.index('<script type="application/json">')]
    assert '<div class="csg-controls" hidden>' in before and "<noscript>" in before
    assert explorers[name].caption.split(",")[0] in markup.unescape(before)
    assert all(
        f"<dd>{value}</dd>" in markup.unescape(before) for _, value in explorers[name].view(explorers[name].start())["numbers"]
    )
    assert 'alt="' in before or "<table" in before


# In the built book

PAGES = {"explore": ["cut", "bounds", "filter"], "filter-removal": ["removal"], "training-curves": ["film"]}


@pytest.fixture(scope="session")
def built(html) -> dict[str, explore.Explorer]:
    """The explorers of the smoke book, made anew from its runs as its pages make them."""
    runs = experiments.published("explore", "smoke", BUILD / "runs")
    csg, std = runs["csg"][0], runs["std"][0]
    words = {"std": "Standard", "csg": "CSG", "matched": "Matched", "picnn": "PICNN", "icnn": "ICNN"}
    networks = {word: runs[name] for name, word in words.items()}
    return {
        "cut": explore.cut(networks, data.CLASSES, "Cut connections", (0, 1)),
        "bounds": explore.cut({"bound 0.1": runs["alternating"]}, data.CLASSES, "Trained with another bound", (0, 0), by=2),
        "removal": explore.remove_classes({"CSG": csg, "STD": std}, data.CLASSES),
        "film": explore.training_film(csg, data.CLASSES),
        "filter": explore.one_filter(csg, data.CLASSES, data.load("cifar10-mini").test),
    }


PLACES = [(page, i, name) for page, names in PAGES.items() for i, name in enumerate(names)]


@pytest.mark.parametrize("page, i, name", PLACES)
def test_an_explorer_adds_less_than_400_kilobytes_gzipped(page, i, name, html, built):
    text = (html / f"{page}.html").read_text()
    starts = [m.start() for m in re.finditer('<figure class="csg-explorer', text)]
    assert len(starts) == len(PAGES[page])
    assert len(gzip.compress(text[starts[i] : text.index("</script></figure>", starts[i])].encode())) < 400_000


READ = """
const root = arguments[0];
return [[...root.querySelectorAll('.csg-numbers dd')].map(e => e.textContent),
        [...root.querySelectorAll('.csg-table tbody tr')].map(r => [...r.querySelectorAll('td')].map(c => c.textContent))];
"""


def shown(browser, root) -> list:
    return browser.execute_script(READ, root)


def expected(explorer, state) -> list:
    view = explorer.view(state)
    rows = view.get("table", {"rows": []})["rows"]
    return [[value for _, value in view["numbers"]], [[text for text, _ in row[1:]] for row in rows]]


@pytest.mark.browser
@pytest.mark.parametrize("page, i, name", PLACES)
def test_every_control_shows_pythons_numbers_by_keyboard_and_by_mouse(page, i, name, site, browser, built):
    from selenium.webdriver import ActionChains, Keys

    e = built[name]
    open_page(browser, f"{site}/{page}.html", 1280)
    root = browser.find_elements("css selector", ".csg-explorer")[i]
    state = e.start()
    assert shown(browser, root) == expected(e, state)

    def element(c: Control):
        return root.find_elements("css selector", f"[data-control={c.id}]")

    for c in e.controls:
        if c.kind == "range":
            (slider,) = element(c)
            browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", slider)
            last = len(c.levels) - 1
            moves = [(Keys.HOME, 0), (Keys.ARROW_RIGHT, min(1, last)), (Keys.END, last), (Keys.ARROW_LEFT, max(last - 1, 0))]
            for key, place in moves:
                slider.send_keys(key)
                state[c.id] = place
                assert shown(browser, root) == expected(e, state), (c.id, place)
                assert slider.get_attribute("aria-valuetext") == c.levels[place]
                assert root.find_element("css selector", f"output[for={slider.get_attribute('id')}]").text == c.levels[place]
            ActionChains(browser).move_to_element(slider).click().perform()  # the middle
            state[c.id] = int(slider.get_property("value"))
            assert last < 2 or 0 < state[c.id] < last
            assert shown(browser, root) == expected(e, state)
        elif c.kind == "choice":
            (box,) = element(c)
            box.send_keys(Keys.END)
            state[c.id] = int(box.get_property("value"))
            assert state[c.id] == len(c.levels) - 1
            assert shown(browser, root) == expected(e, state)
        else:
            for k, box in enumerate(element(c)):
                if k in (0, 5):
                    box.click()
                else:
                    box.send_keys(Keys.SPACE)
                state[c.id] ^= 1 << k
                assert shown(browser, root) == expected(e, state)
    status = root.find_element("css selector", "[role=status]")
    browser.execute_async_script("setTimeout(arguments[0], 500)")
    text = status.get_attribute("textContent")
    assert all(f"{label}: {value}" in text for label, value in e.view(state)["numbers"])


@pytest.mark.browser
def test_a_state_has_an_address_that_brings_it_back_and_reset_returns_to_the_first(site, browser, built):
    from selenium.webdriver import Keys

    e = built["cut"]
    open_page(browser, f"{site}/explore.html", 1280)
    root = browser.find_elements("css selector", ".csg-explorer")[0]
    root.find_element("css selector", "[data-control=share]").send_keys(Keys.HOME)
    state = e.start() | {"share": 0}
    link = root.find_element("css selector", ".csg-address").get_attribute("href")
    assert link.endswith("#explore=cut-connections&share=0&left=0&right=1&by=0") and browser.current_url == link
    browser.get("about:blank")
    browser.get(link)
    root = browser.find_elements("css selector", ".csg-explorer")[0]
    assert shown(browser, root) == expected(e, state)
    root.find_element("css selector", ".csg-reset").click()
    assert shown(browser, root) == expected(e, e.start())


@pytest.mark.browser
@pytest.mark.parametrize("words", ["share=99", "share=x", "shares=1", "left=5", "share="])
def test_an_address_with_a_state_that_is_not_here_is_told_and_the_rest_shown(words, site, browser, built):
    e = built["cut"]
    browser.get("about:blank")
    browser.get(f"{site}/explore.html#explore=cut-connections&right=2&{words}")
    root = browser.find_elements("css selector", ".csg-explorer")[0]
    note = root.find_element("css selector", ".csg-note")
    assert note.is_displayed() and words in note.text and "which is not here" in note.text
    assert shown(browser, root) == expected(e, e.start() | {"right": 2})


@pytest.mark.browser
def test_the_pictures_of_a_filter_are_drawn(site, browser, built):
    open_page(browser, f"{site}/explore.html", 1280)
    thumbs = browser.find_elements("css selector", ".csg-thumb")
    assert len(thumbs) == 6
    image = thumbs[0].value_of_css_property("background-image")
    assert image.startswith('url("data:image/webp;base64,')
    width = "const i = new Image(); i.onload = () => arguments[1](i.naturalWidth); i.src = arguments[0].slice(5, -2);"
    assert browser.execute_async_script(width, image) == 32 * 32


TIME = """
const [box, done] = arguments, times = [];
let n = 0;
function step() {
  if (n++ === 12) { done(times); return; }
  box.checked = !box.checked;
  const start = performance.now();
  box.dispatchEvent(new Event('input', {bubbles: true}));
  times.push(performance.now() - start);
  requestAnimationFrame(() => setTimeout(step, 0));
}
step();
"""


@pytest.mark.browser
def test_a_box_over_2000_samples_answers_at_once(browser, run, tmp_path):
    """No timed gate: the time that a step takes is printed, and only a hundredfold of it fails."""
    many = dataclasses.replace(run)
    a = run.readout
    doubled = {name: torch.cat([t, t]) for name, t in (("features", a.features), ("labels", a.labels))}
    object.__setattr__(many, "readout", dataclasses.replace(a, **doubled))
    page = tmp_path / "page.html"
    page.write_text(explore.remove_classes({"a": many, "b": many}, data.CLASSES, n=2000).to_html())
    browser.get(page.as_uri())
    times = browser.execute_async_script(TIME, browser.find_element("css selector", "input[type=checkbox]"))
    print(f"from input to the new view: median {np.median(times):.1f} ms, longest {max(times):.1f} ms")
    assert len(times) == 12 and np.median(times) < 1000


@pytest.mark.browser
def test_a_browser_without_a_canvas_gets_a_sentence_and_keeps_the_figure(browser, explorers, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<script>window.Float32Array = undefined;</script>" + explorers["film"].to_html())
    browser.get(page.as_uri())
    assert "which this browser lacks" in browser.find_element("css selector", ".csg-note").text
    assert not browser.find_element("css selector", ".csg-controls").is_displayed()
    assert browser.find_element("css selector", ".csg-matrix img").is_displayed()


# Many classes


@pytest.fixture
def many(run):
    """many(C): a run's stand-in that classifies images into C classes."""

    def stand_in(C: int):
        g, r = torch.Generator().manual_seed(0), run.readout
        K = r.weight.shape[1]
        readout = Readout(
            features=torch.rand(4 * C, K, generator=g),
            labels=torch.arange(4 * C) % C,
            weight=torch.randn(C, K, generator=g),
            bias=torch.zeros(C),
            gate=torch.nn.functional.one_hot(torch.arange(K) % C, C).T.float(),
        )
        copy = dataclasses.replace(run)
        object.__setattr__(copy, "readout", readout)
        return copy, tuple(f"class {c}" for c in range(C))

    return stand_in


def test_of_many_classes_one_is_chosen_every_third_row_is_named_and_the_table_scrolls(many):
    run, classes = many(100)
    e = explore.remove_classes({"a": run}, classes, n=400)
    (control,) = e.controls
    assert (control.kind, control.start, len(control.levels)) == ("choice", 3, 100)
    shown = e.view({"removed": 42})
    assert shown["told"] == "Filters switched off: a 1." and 'csg-scroll csg-long"' in e.to_html()
    told = explore.cut({"a": [run]}, classes, "Cut", (0, 0)).to_html()
    assert re.findall(r"<span>(class \d+)</span>", told)[:34] == [f"class {c}" for c in range(0, 100, 3)]


def test_more_classes_than_a_byte_counts_are_refused_in_one_sentence(many):
    run, classes = many(300)
    with pytest.raises(Problem, match="room for 256 classes, not for 300: leave it out"):
        explore.remove_classes({"a": run}, classes)


@pytest.mark.browser
def test_with_many_classes_too_a_page_shows_pythons_numbers(many, browser, tmp_path):
    from selenium.webdriver import Keys

    run, classes = many(100)
    e = explore.remove_classes({"a": run}, classes, n=400)
    page = tmp_path / "page.html"
    page.write_text(e.to_html())
    browser.get(page.as_uri())
    root = browser.find_element("css selector", ".csg-explorer")
    assert shown(browser, root) == expected(e, {"removed": 3})
    for key, place in ((Keys.HOME, 0), (Keys.ARROW_DOWN, 1), (Keys.END, 99)):
        root.find_element("css selector", "select").send_keys(key)
        assert shown(browser, root) == expected(e, {"removed": place})
    table = root.find_element("css selector", ".csg-scroll")
    assert table.size["height"] < 600 < browser.execute_script("return arguments[0].scrollHeight", table)
