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
from csgbook.explorers import explore, views
from csgbook.explorers.explore import Control
from csglib import Problem, data
from csglib.analysis import metrics


@pytest.fixture(scope="module")
def explorers(run, bare, mini) -> dict[str, explore.Explorer]:
    gates = {"learned <gate>": (run, run.readout.gate), "means": (run, explore.normalised_means(run))}
    return {
        "sparsity": explore.sparsity(gates, data.CLASSES, n=300),
        "trained density": explore.trained_density({"0.1": run, "1": run}, data.CLASSES, n=200),
        "removal": explore.remove_classes({"CSG": run, "STD": bare}, data.CLASSES, n=300),
        "film": explore.training_film(run, data.CLASSES),
        "filter": explore.one_filter(run, data.CLASSES, data.Images(mini.test.images[:80], mini.test.labels[:80]), n=300),
    }


NAMES = ["sparsity", "trained density", "removal", "film", "filter"]


def states(explorer: explore.Explorer) -> list[dict[str, int]]:
    """The start and each control at its ends and in between."""
    found = [explorer.start()]
    for c in explorer.controls:
        n = len(c.levels)
        places = (0b1, 0b1000100000, 0b1111111111) if c.kind == "checks" else sorted({0, n // 3, n - 1})
        found += [explorer.start() | {c.id: place} for place in places]
    return found


# What they compute


def test_dense_is_the_network_itself():
    run = experiments.published("table1", "short")["csg"][0]
    a = run.readout
    shown = explore.sparsity({"learned": (run, a.gate)}, data.CLASSES).view({"gate": 0, "threshold": 0})
    expected = metrics.accuracy(a.logits[:2000], a.labels[:2000])
    assert float(shown["numbers"][0][1]) == pytest.approx(expected, abs=0.002)  # eight bits move few images
    assert shown["numbers"][1][1] == "1.0000"
    assert float(shown["numbers"][2][1]) == pytest.approx(run.metrics["mis"], abs=1e-4)


def test_a_threshold_of_one_leaves_each_filter_its_best_class(explorers):
    shown = explorers["sparsity"].view({"gate": 1, "threshold": 50})
    assert shown["numbers"][1][1] == "0.1000" and shown["numbers"][3][1] == "64"
    assert sum(int(row[2][0]) for row in shown["table"]["rows"]) == 64


def test_the_sparsity_view_equals_a_loop(explorers):
    e = explorers["sparsity"]
    d, i, t = e.data, 1, 20
    keep = d["gate"][i] >= np.float32(t / 50)
    right = 0
    for n, y in enumerate(d["labels"]):
        logits = [
            sum(float(d["head"][0][c, k]) * int(d["q"][0][n, k]) for k in range(64) if keep[c, k]) + float(d["bias"][0][c])
            for c in range(10)
        ]
        right += int(np.argmax(logits)) == y
    assert e.view({"gate": i, "threshold": t})["numbers"][0][1] == views.fixed(right / 300, 4)


def test_removing_every_class_leaves_the_bias_and_removing_none_the_network(explorers, run):
    e = explorers["removal"]
    assert e.view({"gate": 0, "removed": 0})["numbers"][1][1] == "–"
    everything = e.view({"gate": 0, "removed": 0b1111111111})
    assert everything["numbers"][3][1] == "64"
    column = 1 + int(run.readout.bias.argmax())
    assert all(row[column][0] == "100" for row in everything["table"]["rows"])


def test_the_pictures_are_those_that_excite_the_filter_most(explorers, run, mini):
    from csglib.runs.inference import read_out

    a = read_out(run.network(), None, data.Images(mini.test.images[:80], mini.test.labels[:80])).features
    e = explorers["filter"]
    for k in (0, 31, 63):
        labels = mini.test.labels[:80][a[:, k].argsort(descending=True, stable=True)[:6]]
        assert [name for _, name in e.view({"filter": k})["images"]] == [data.CLASSES[int(c)] for c in labels]


@pytest.mark.parametrize("x, digits, text", [(0.0625, 3, "0.063"), (0.5, 0, "1"), (0.1, 4, "0.1000"), (2.675, 2, "2.67")])
def test_numbers_are_rounded_as_javascript_does(x, digits, text):
    assert views.fixed(x, digits) == text


# What they refuse


def test_a_control_without_levels_is_refused(run):
    with pytest.raises(Problem, match="has no levels"):
        explore.sparsity({}, data.CLASSES)
    with pytest.raises(Problem, match="'Trained with the bound.*has no levels"):
        explore.trained_density({}, data.CLASSES)
    with pytest.raises(Problem, match="has no levels"):
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
    with pytest.raises(Problem, match=r"'Sparsity' takes \d+ bytes gzipped, more than 10000: give it fewer samples"):
        explorers["sparsity"].to_html()


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

PAGES = {"explore": ["sparsity", "trained density", "filter"], "filter-removal": ["removal"], "training-curves": ["film"]}


@pytest.fixture(scope="session")
def built(html) -> dict[str, explore.Explorer]:
    """The explorers of the smoke book, made anew from its runs as its pages make them."""
    first = {n: group[0] for n, group in experiments.published("explore", "smoke", BUILD / "runs").items() if group}
    csg, std = first["csg"], first["std"]
    gates = {
        "CSG, learned gate": (csg, csg.readout.gate),
        "CSG, mean activations": (csg, explore.normalised_means(csg)),
        "STD, mean activations": (std, explore.normalised_means(std)),
    }
    return {
        "sparsity": explore.sparsity(gates, data.CLASSES),
        "trained density": explore.trained_density({"0.1": first["alternating"]}, data.CLASSES),
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
            box.send_keys(Keys.ARROW_DOWN)
            state[c.id] = int(box.get_property("value"))
            assert state[c.id] == 1
            assert shown(browser, root) == expected(e, state)
        else:
            for k, box in enumerate(element(c)):
                if k in (0, 5):
                    box.click()
                else:
                    box.send_keys(Keys.SPACE)
                state[c.id] |= 1 << k
                assert shown(browser, root) == expected(e, state)
    status = root.find_element("css selector", "[role=status]")
    browser.execute_async_script("setTimeout(arguments[0], 500)")
    text = status.get_attribute("textContent")
    assert all(f"{label}: {value}" in text for label, value in e.view(state)["numbers"])


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
const [slider, done] = arguments, times = [];
let n = 0;
function step() {
  if (n === 12) { done(times); return; }
  slider.value = String((n++ * 7) % (Number(slider.max) + 1));
  const start = performance.now();
  slider.dispatchEvent(new Event('input', {bubbles: true}));
  times.push(performance.now() - start);
  requestAnimationFrame(() => setTimeout(step, 0));
}
step();
"""


@pytest.mark.browser
def test_a_slider_over_2000_samples_answers_at_once(browser, run, tmp_path):
    """No timed gate: the time that a step takes is printed, and only a hundredfold of it fails."""
    many = dataclasses.replace(run)
    a = run.readout
    doubled = {name: torch.cat([t, t]) for name, t in (("features", a.features), ("labels", a.labels))}
    object.__setattr__(many, "readout", dataclasses.replace(a, **doubled))
    page = tmp_path / "page.html"
    page.write_text(explore.sparsity({"a": (many, explore.normalised_means(many))}, data.CLASSES, n=2000).to_html())
    browser.get(page.as_uri())
    times = browser.execute_async_script(TIME, browser.find_element("css selector", "input[type=range]"))
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
