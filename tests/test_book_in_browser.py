"""The built pages in a real browser: what they load, how they look, what axe finds."""

import json
import time

import pytest
from conftest import ROOT, open_page
from test_book import PAGES

from csgbook import claims

pytestmark = pytest.mark.browser


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


def test_a_page_loads_without_errors_and_asks_no_other_host(opened, site):
    _, errors, asked = opened
    assert errors == [] and len(asked) > 5
    assert [u for u in asked if not u.startswith((site, "data:"))] == []


def test_all_mathematics_renders(opened, browser):
    count = "return document.querySelectorAll('{}').length"
    formulas = browser.execute_script(count.format(".math"))
    assert formulas > 30 or opened[0] != "method"
    assert browser.execute_script(count.format("mjx-container")) >= formulas
    assert browser.execute_script(count.format("mjx-merror, [data-mjx-error]")) == 0


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


@pytest.mark.parametrize("width", [1280, 400])
def test_a_page_is_no_wider_than_its_window(opened, width, site, browser):
    if width < 600:  # it is laid out anew, as a phone would
        open_page(browser, f"{site}/{opened[0]}.html", width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


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


def test_numbers_stay_on_one_line_and_code_is_a_small_one(site, browser):
    open_page(browser, f"{site}/table1.html", 400)
    lines = browser.execute_script(LINES)
    assert len(lines) > 20 and set(lines) == {1}
    heights = browser.execute_script("return [...document.querySelectorAll('details.hide')].map(d => d.offsetHeight)")
    assert len(heights) > 3 and all(24 <= h <= 32 for h in heights)  # not less, so that a finger finds it


SHOWN = (
    "return [...document.querySelectorAll('tbody tr')].filter(row => row.offsetHeight).map(row => row.className.split(' ')[0])"
)


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


BARE = """
return [...document.querySelectorAll('section:has(> .of-papers, > .of-book)')].filter(part => part.offsetHeight
  && ![...part.querySelectorAll('tbody tr')].some(row => row.offsetHeight)).map(part => part.id);
"""


def test_no_heading_stays_without_a_row_under_both_filters(site, browser):
    open_page(browser, f"{site}/results.html", 1280)
    for group in ("papers", "book"):
        browser.find_element("id", f"show-{group}").click()
        for verdict in ("yes", "no", "open", "none"):
            browser.find_element("id", f"show-{verdict}").click()
            assert browser.execute_script(BARE) == [], (group, verdict)


def test_by_night_figures_are_inverted_and_photographs_are_not(site, browser):
    images = "[...document.querySelectorAll('.cell_output > figure > img')]"
    seen = []
    for page in ("table1", "icnn"):
        open_page(browser, f"{site}/{page}.html", 1280)
        browser.execute_script("localStorage.setItem('mode', 'dark'); localStorage.setItem('theme', 'dark')")
        open_page(browser, f"{site}/{page}.html", 1280)
        seen += browser.execute_script(f"return {images}.map(i => [i.className, getComputedStyle(i).filter])")
    assert {"photographs" in name: filter for name, filter in seen} == {True: "none", False: "invert(1) hue-rotate(180deg)"}


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
