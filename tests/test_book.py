"""The book: clean sources, the smoke profile from recipe to HTML, and the built pages in a real browser."""

import json
import os
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

from csgbook import claims, experiments
from csglib import Problem
from csglib.paths import ROOT

sys.path.insert(0, str(ROOT / "tools"))
from conftest import BUILD, open_page, snakemake  # noqa: E402
from parameters import parameters  # noqa: E402

NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))


def code_cells(path: Path) -> list:
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_source_notebooks_are_clean_and_short(path):
    nb = nbformat.read(path, as_version=4)
    nbformat.validate(nb)
    cells = code_cells(path)
    assert all(not c.outputs and c.execution_count is None for c in cells)
    assert "widgets" not in nb.metadata and "papermill" not in nb.metadata
    assert sum("parameters" in c.metadata.get("tags", []) for c in cells) == 1
    assert max(c.source.count("\n") + 1 for c in cells) <= 15
    assert nb.cells[0].source.startswith("# ")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_figure_has_a_caption_and_an_alt_text(path):
    draws = r"figures\.\w+\(|located\.(looks|on_the_sample)\(|attacked\.(pictures|detection_curves)\("
    drawn = [c for c in code_cells(path) if re.search(draws, c.source)]
    assert drawn or any(re.search(r"\b(explore|network|atlas)\.\w+\(", c.source) for c in code_cells(path))
    for cell in drawn:
        assert len(cell.metadata["mystnb"]["figure"]["caption"]) > 20
        assert len(cell.metadata["mystnb"]["image"]["alt"]) > 20


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_notebook_starts_with_the_same_set_up_cell_and_it_does_nothing_here(path, monkeypatch):
    sources = [c.source for c in code_cells(path)]
    assert sources[0] == code_cells(NOTEBOOKS[0])[0].source and sources[0].startswith("# @title Set up")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("nothing is to be installed here"))
    exec(sources[0], {})


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone: git cannot fetch the book from here")
def test_on_colab_the_set_up_cell_fetches_the_book_and_installs_it(tmp_path):
    """With a stand-in for google.colab and for pip; the clone is real, and csglib is imported from it."""
    cell = code_cells(NOTEBOOKS[0])[0].source
    code = f"""
import re, subprocess, sys, types
sys.modules["google"] = sys.modules["google.colab"] = types.ModuleType("google.colab")
installed, run = [], subprocess.run
subprocess.run = lambda words, **k: installed.append(words) if "pip" in words else run(words, **k)
cell = {cell!r}
try:
    exec(re.sub('repository = ".*?"', 'repository = ""', cell), {{}})
except AssertionError as stop:
    print("asked:", stop)
exec(re.sub('repository = ".*?"', 'repository = "{ROOT.as_uri()}"', cell), {{}})
import csgbook.experiments as e
print(installed[0][1:], len(e.published("table1", "quick")["csg"]), e.FILE)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""}
    )
    assert done.returncode == 0, done.stderr
    assert "asked: Set repository to the address" in done.stdout
    assert "['-m', 'pip', 'install', '--quiet', '--editable', 'csglib-book[pages]', 'torch==" in done.stdout
    assert "published runs in" in done.stdout  # the doctor has looked around
    assert str(tmp_path / "csglib-book") in done.stdout.splitlines()[-1]


def test_every_notebook_is_a_page_of_the_experiments_file_and_of_the_table_of_contents():
    pages = {p.stem for p in NOTEBOOKS}
    assert pages == set(experiments.book()["pages"])
    assert pages <= set(re.findall(r"file: (\S+)", (ROOT / "book" / "_toc.yml").read_text()))


def test_an_unknown_notebook_parameter_is_refused(monkeypatch):
    table = experiments.book()
    table["pages"]["train-a-gate"]["parameters"]["smoke"]["epoch"] = 4
    monkeypatch.setattr(experiments, "book", lambda: table)
    with pytest.raises(Problem, match="epoch.*no parameter.*epochs"):
        parameters("train-a-gate", "smoke", "runs")


@pytest.mark.slow
def test_an_unknown_profile_stops_before_anything_runs(tmp_path):
    done = snakemake("profile=fast", f"build={tmp_path / 'build'}")
    assert done.returncode != 0
    assert "unknown profile 'fast': choose one of smoke, quick, short, paper" in done.stderr + done.stdout
    assert not (tmp_path / "build").exists()


def test_results_list_every_claim_with_its_runs(html):
    results = json.loads((BUILD / "results.json").read_text())
    assert [r["id"] for r in results] == [c.id for c in claims.CLAIMS]
    for r in results:
        assert {"page", "paper", "source", "ours", "low", "high", "n", "verdict", "runs", "keys", "schedule"} <= set(r)
        unmeasured = r["page"] in ("localisation", "adversarial")  # tools measure published runs, and animals are not here
        if r["id"] in ("meaning-mis", "picnn-learned") or unmeasured:  # the smoke profile leaves out what it compares with
            assert r["verdict"] == "not run here" and r["ours"] is None
        else:
            assert r["n"] == 1 and r["runs"] and r["schedule"] == "cifar10-mini, 3 epochs, one-cycle learning-rate schedule"
            assert r["ours"] is not None


def test_the_results_page_shows_every_claim_and_number_and_the_index_counts_them(html):
    def text(page: str) -> str:
        return re.sub(r"<[^>]+>", "", (html / f"{page}.html").read_text()).replace("&#39;", "'").replace("’", "'")

    results, shown = json.loads((BUILD / "results.json").read_text()), text("results")
    for r in results:
        assert r["sentence"] in shown
        assert r["ours"] is None or f"{r['ours']:.4f}".lstrip("-") in shown
    index = (html / "index.html").read_text()
    assert sum(int(n) for n in re.findall(r'<li class="tally-\w+"[^>]*><b>(\d+)</b>', index)) == len(results)
    csg = experiments.published("which-one", "smoke", BUILD / "runs")["csg"][0]
    assert f">{csg.metrics['accuracy']:.4f}<" in index and index.count('class="drawn drawn-links"') == 2


def test_every_run_behind_a_claim_has_its_entry_with_recipe_and_commit(html):
    text = (html / "runs.html").read_text()
    for r in json.loads((BUILD / "results.json").read_text()):
        for name, key in zip(r["runs"], r["keys"], strict=True):
            assert f'id="run-{name}"' in text and key in text
            assert f'href="runs.html#run-{name}"' in (html / f"{r['page']}.html").read_text()
            assert f'href="runs.html#run-{name}"' in (html / "results.html").read_text()
    assert len(list((html / "_downloads").rglob("provenance.json"))) >= 5


@pytest.mark.parametrize("page", dict.fromkeys(c.page for c in claims.CLAIMS))
def test_a_page_of_results_opens_with_its_answer_and_ends_with_its_provenance(page, html):
    text = (html / f"{page}.html").read_text()
    answered = page not in ("localisation", "adversarial")  # tools measure published runs, and animals are not here
    told = "one run decides nothing" if page == "label-leak" else "Not at all: each comparison rests on one run of each network"
    answer = told if answered else "Not answered yet:"
    assert answer in text
    end = text.index("Run it again")
    assert text.index(answer) < text.index('id="where-the-numbers-come-from"') < end


def test_executed_pages_leave_no_path_of_this_machine(html):
    for page in html.glob("*.html"):
        assert str(ROOT) not in page.read_text(), page.name


def test_every_repair_of_the_themes_markup_is_still_needed(html):
    counts = re.findall(r"a11y fix applied\s+(\d+)x", (BUILD / "jupyter-book.log").read_text())
    assert len(counts) == 8 and all(int(n) > 0 for n in counts)


class Page(HTMLParser):
    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.references, self.images = [], [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        if "id" in a:
            self.ids.append(a["id"])
        if tag == "img":
            self.images.append(a)
        self.references += [(tag, a[key]) for key in ("href", "src") if a.get(key)]


def test_links_inside_the_book_lead_somewhere_and_no_asset_is_foreign(html):
    pages = {p.name: Page(p) for p in html.glob("*.html")}
    for name, page in pages.items():
        assert len(page.ids) == len(set(page.ids)), f"{name} repeats an id"
        for tag, reference in page.references:
            url = urlsplit(reference)
            if url.scheme or url.netloc:
                assert tag == "a" or url.scheme == "data", (name, tag, reference)
                continue
            assert not url.path or (html / unquote(url.path)).exists(), (name, reference)
            target = url.path or name
            if url.fragment and target in pages:
                assert url.fragment in pages[target].ids, (name, reference)


def test_every_image_has_an_alt_text(html):
    images = [i for p in html.glob("*.html") for i in Page(p).images]
    assert len(images) >= 4
    assert all(len(i.get("alt", "")) > 20 and not i["alt"].endswith(".png") for i in images)


PAGES = re.findall(r"(?:file|root): (\S+)", (ROOT / "book" / "_toc.yml").read_text())


@pytest.fixture(scope="module", params=PAGES)
def opened(request, site, browser) -> tuple[str, list[str], list[str]]:
    """A page of the book in a wide window, opened once for what follows; its name, its errors and what it asked for."""
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # forget the pages before
    open_page(browser, f"{site}/{request.param}.html", 1280)
    time.sleep(0.3)
    errors = [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"]
    messages = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return request.param, errors, asked


@pytest.mark.browser
def test_a_page_loads_without_errors_and_asks_no_other_host(opened, site):
    _, errors, asked = opened
    assert errors == [] and len(asked) > 5
    assert [u for u in asked if not u.startswith((site, "data:"))] == []


@pytest.mark.parametrize("page", PAGES)
def test_a_link_to_a_page_shows_its_title_and_what_it_is_about(page, html):
    told = dict(re.findall(r'<meta (?:property|name)="([\w:]+)" content="([^"]*)"', (html / f"{page}.html").read_text()))
    assert told["og:title"] and told["og:type"] == "website"
    assert len(told["og:description"]) > 30 and told["description"] == told["og:description"]


@pytest.mark.browser
def test_all_mathematics_renders(opened, browser):
    count = "return document.querySelectorAll('{}').length"
    formulas = browser.execute_script(count.format(".math"))
    assert formulas > 30 or opened[0] != "method"
    assert browser.execute_script(count.format("mjx-container")) >= formulas
    assert browser.execute_script(count.format("mjx-merror, [data-mjx-error]")) == 0


@pytest.mark.browser
@pytest.mark.parametrize("mode", ["light", "dark"])
def test_axe_finds_no_violation(opened, mode, browser):
    """Of the page by night its contrast: nothing else in it changes."""
    browser.execute_script("const d = document.documentElement.dataset; d.theme = d.mode = arguments[0]", mode)
    browser.execute_script((ROOT / "tests" / "vendor" / "axe.min.js").read_text())
    time.sleep(0.3)  # colours fade
    browser.set_script_timeout(60)
    only = "" if mode == "light" else ", runOnly: {type: 'rule', values: ['color-contrast']}"
    result = browser.execute_async_script(f"axe.run(document, {{iframes: false{only}}}).then(arguments[0])")
    found = [(v["id"], [n["html"][:160] for n in v["nodes"]][:3]) for v in result["violations"]]
    assert found == [], json.dumps(found, indent=1)


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
def test_a_page_is_no_wider_than_its_window(opened, width, site, browser):
    if width < 600:  # it is laid out anew, as a phone would
        open_page(browser, f"{site}/{opened[0]}.html", width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.mark.browser
def test_images_are_drawn(site, browser):
    open_page(browser, f"{site}/train-a-gate.html", 1280)
    widths = browser.execute_script("return [...document.images].filter(i => i.alt.length > 20).map(i => i.naturalWidth)")
    assert len(widths) == 2 and min(widths) > 600


LINES = """
return [...document.querySelectorAll('td.number')].map(cell => {
  const range = document.createRange();
  range.selectNodeContents(cell.querySelector('p') || cell);
  return new Set([...range.getClientRects()].map(box => Math.round(box.top))).size;
});"""


@pytest.mark.browser
def test_numbers_stay_on_one_line_and_code_is_a_small_one(site, browser):
    open_page(browser, f"{site}/table1.html", 400)
    lines = browser.execute_script(LINES)
    assert len(lines) > 20 and set(lines) == {1}
    heights = browser.execute_script("return [...document.querySelectorAll('details.hide')].map(d => d.offsetHeight)")
    assert len(heights) > 3 and all(24 <= h <= 32 for h in heights)  # not less, so that a finger finds it


SHOWN = (
    "return [...document.querySelectorAll('tbody tr')].filter(row => row.offsetHeight).map(row => row.className.split(' ')[0])"
)


@pytest.mark.browser
def test_all_results_can_be_chosen_by_who_claims_and_by_verdict(site, browser):
    open_page(browser, f"{site}/results.html", 1280)
    every = browser.execute_script(SHOWN)
    assert len(every) >= len(claims.CLAIMS) and set(every) <= {f"verdict-{kind}" for kind in ("yes", "no", "open", "none")}
    browser.find_element("id", "show-open").click()
    assert browser.execute_script(SHOWN) == ["verdict-open"] * every.count("verdict-open")
    browser.find_element("id", "show-any").click()
    parts = []
    for group in ("papers", "book"):
        browser.find_element("id", f"show-{group}").click()
        parts.append(len(browser.execute_script(SHOWN)))
    assert min(parts) > 0 and sum(parts) == len(every)


@pytest.mark.browser
def test_by_night_figures_are_inverted_and_photographs_are_not(site, browser):
    images = "[...document.querySelectorAll('.cell_output > figure > img')]"
    seen = []
    for page in ("table1", "icnn"):
        open_page(browser, f"{site}/{page}.html", 1280)
        browser.execute_script("localStorage.setItem('mode', 'dark'); localStorage.setItem('theme', 'dark')")
        open_page(browser, f"{site}/{page}.html", 1280)
        seen += browser.execute_script(f"return {images}.map(i => [i.className, getComputedStyle(i).filter])")
    assert {"photographs" in name: filter for name, filter in seen} == {True: "none", False: "invert(1) hue-rotate(180deg)"}


@pytest.mark.browser
def test_the_search_works_under_the_pages_policy_and_a_script_from_elsewhere_does_not(site, browser):
    browser.get_log("browser")
    open_page(browser, f"{site}/search.html?q=gate", 1280)
    found = "return document.querySelectorAll('#search-results li').length"
    deadline = time.monotonic() + 20
    while not browser.execute_script(found) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert browser.execute_script(found) > 3
    time.sleep(0.5)
    assert [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []
    browser.execute_script("""
        const script = document.createElement("script");
        script.textContent = "window.smuggled = 1";
        document.body.append(script);
        new Image().src = "https://elsewhere.example/x.png";
        document.body.insertAdjacentHTML("beforeend", "<img src='nowhere.png' onerror='window.smuggled = 1'>");
    """)
    time.sleep(0.5)
    assert browser.execute_script("return window.smuggled") is None
    refused = [e["message"] for e in browser.get_log("browser") if "Content Security Policy" in e["message"]]
    assert len(refused) == 3 and any("elsewhere.example" in message for message in refused)


def test_every_page_carries_its_policy(html):
    for path in html.glob("*.html"):
        head = path.read_text().split("</head>")[0]
        assert head.count('http-equiv="Content-Security-Policy"') == 1, path.name
        assert head.index("Content-Security-Policy") < head.index("<script"), path.name
