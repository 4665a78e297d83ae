"""The network in the page: the same logits as PyTorch, what can be switched, the address, images of one's own, bad input."""

import base64
import gzip
import io
import json
import sys
import zlib
from datetime import datetime

import numpy as np
import pytest
import torch
from conftest import LONG, ROOT
from PIL import Image

from csgbook import experiments
from csgbook.explorers import network, network_words, photograph
from csgbook.explorers.network import State
from csglib import Problem, data

sys.path.insert(0, str(ROOT / "tools" / "ext"))
import content_policy  # noqa: E402


@pytest.fixture(scope="module")
def shown(mini) -> network.NetworkInPage:
    """The published networks, as the page of the book has them."""
    runs = experiments.published("network", "short")
    part = data.Images(*(torch.cat([t[100 * c : 100 * c + 10] for c in range(10)]) for t in by_class(mini.test)))
    return network.explorer({name.upper(): runs[name][0] for name in ("std", "csg")}, data.CLASSES, part)


def by_class(images: data.Images) -> tuple[torch.Tensor, torch.Tensor]:
    order = images.labels.argsort(stable=True)
    return images.images[order], images.labels[order]


def wrapped(body: str, policy: str = "") -> str:
    head = f'<meta charset="utf-8" /><meta http-equiv="Content-Security-Policy" content="{policy}">' if policy else ""
    start = f'<!doctype html><html lang="en"><head>{head}<title>Network</title></head>'
    return f"{start}<body><main><h1>Network</h1>{body}</main></body></html>"


@pytest.fixture(scope="module")
def address(shown, tmp_path_factory) -> str:
    """A page on disk with the policy that the book gives it."""
    text = wrapped(shown.to_html())
    path = tmp_path_factory.mktemp("network") / "page.html"
    path.write_text(wrapped(shown.to_html(), content_policy.policy(text, "page.html")))
    return path.as_uri()


READ = """
const root = document.querySelector('.csg-net'), text = (place) => root.querySelector(place).textContent;
const each = (place, value) => [...root.querySelectorAll('section')].map(s => [...s.querySelectorAll(place)].map(value));
return {ready: root.dataset.ready, note: text('.net-note'), hash: location.hash,
  said: text('.net-input p'), status: text('[role=status]'),
  shares: each('.net-bar', b => Number(b.style.getPropertyValue('--share'))),
  off: each('[aria-pressed=false]', t => Number(t.dataset.filter)).map(off => off.sort((a, b) => a - b))};
"""


def read(browser) -> dict:
    return browser.execute_script(READ)


def visit(browser, url: str) -> dict:
    browser.get("about:blank")
    browser.get(url)
    return wait(browser, lambda shown: shown["ready"] == "2" or shown["note"])


def wait(browser, ready) -> dict:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 20, 0.05).until(lambda _: ready(read(browser)))
    return read(browser)


def shares(shown, image: int | torch.Tensor, off: dict[str, set[int]] | None = None) -> np.ndarray:
    pixels = shown.images.images[image] if isinstance(image, int) else image
    state = State(pixels, None, {m.name: frozenset((off or {}).get(m.name, ())) for m in shown.members})
    return np.array([v["share"] for v in shown.view(state)])


def of_class(shown, name: str, c: int) -> set[int]:
    return {k for m in shown.members if m.name == name for k, o in enumerate(m.owner) if o == c}


# Python


@pytest.mark.slow
def test_the_weights_stay_within_their_budget_and_a_page_over_it_is_refused(shown, monkeypatch):
    text = shown.to_html()
    size = sum(len(n["base64"]) for n in shown.spec()["networks"])
    print(f"weights {size:,} bytes, figure {len(text):,}, gzipped {len(gzip.compress(text.encode())):,}")
    assert size <= network.BUDGET
    monkeypatch.setattr(network, "BUDGET", 10_000)
    with pytest.raises(Problem, match=r"take \d+ bytes in the page, more than 10000"):
        shown.to_html()


def test_packed_weights_are_the_networks_own_to_the_bit(shown):
    net, known = shown.members[1].net, shown.spec()["networks"][1]
    raw = base64.b64decode(known["base64"])
    kernels = np.frombuffer(raw, "<f2", 27 * 16).reshape(16, 3, 3, 3)
    assert known["layers"][0]["halves"] and np.array_equal(kernels, net.features[0].weight.detach().numpy())
    assert np.array_equal(np.frombuffer(raw[-40:], "<f4"), net.head.bias.detach().numpy())


def test_other_networks_are_refused(shown, mini):
    runs = experiments.published("icnn", "short")
    with pytest.raises(Problem, match="runs CIFAR's ResNets without a mask, and ICNN is something else"):
        network.explorer({"ICNN": runs["icnn"][0]}, data.CLASSES, mini.test)


def test_without_javascript_there_is_the_first_image_with_its_bars_maps_and_a_caption(shown):
    before = shown.to_html().split('<script type="application/json">')[0]
    assert before.count('class="net-bar"') == 20 and before.count('class="net-tile"') == 128 and "<noscript>" in before
    assert "A test image of class airplane" in before and 'class="csg-controls net-controls" hidden' in before


def test_the_bundle_carries_widgets_and_html_and_is_the_same_every_time(shown):
    bundle = shown._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html", "application/vnd.jupyter.widget-view+json"}
    assert bundle["text/html"] == shown.to_html()


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def noise(w: int, h: int, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(w + h).integers(0, 256, (h, w, {"RGB": 3, "RGBA": 4, "L": 1}[mode]), np.uint8)
    return Image.fromarray(values.squeeze(), mode)


OWN = {
    "wide": (noise(96, 64), "The image is 96 x 64 pixels: the square in its middle is taken."),
    "small": (noise(16, 16), "It is smaller than 32 x 32 pixels, so it is enlarged."),
    "clear": (noise(64, 64, "RGBA"), "Its transparent parts are shown on white."),
    "grey": (noise(64, 64, "L"), "It is grey, and the networks have learned from colour photographs."),
    "plain": (noise(320, 320), ""),
}


def test_the_widgets_show_what_the_page_does(shown):
    box = shown.widget()
    image, own, _, *rest = box.children
    groups, single, view = rest[:10], rest[10:-1], rest[-1]
    image.value, groups[5].value, single[1].value = 5, True, (0,)
    off = {"STD": of_class(shown, "STD", 5), "CSG": of_class(shown, "CSG", 5) | {0}}
    for share in shares(shown, 5, off).max(1):
        assert f"{100 * share:.1f} %" in view.value
    upload = {"name": "a.png", "type": "image/png", "size": 3, "last_modified": datetime.now()}
    own.value = ({**upload, "content": b"no"},)
    assert "This file is no image that can be read here" in view.value and "A test image of class dog" in view.value
    own.value = ({**upload, "content": png(OWN["wide"][0])},)
    assert OWN["wide"][1] in view.value and "Your own image" in view.value


@pytest.mark.slow
def test_the_words_count_what_they_say(shown):
    table = network_words.without_their_class(shown).data
    assert "STD" in table.splitlines()[2] and " of 40" in table.splitlines()[2]
    left = [shares(shown, c, {"CSG": of_class(shown, "CSG", c)})[1].argmax() == c for c in range(10)]
    assert sum(left) <= int(table.splitlines()[3].split("|")[3].split(" of ")[0])
    assert "41 million" in network_words.weight(shown).data and "269,722 parameters" in network_words.weight(shown).data
    assert "of class" in network_words.strongest(shown.members[1], shown, 5).data


# The browser

LOGITS = """
const [sample, done] = arguments, bytes = Uint8Array.from(atob(sample), c => c.charCodeAt(0));
const spec = JSON.parse(document.querySelector('.csg-net script[type="application/json"]').textContent), times = [];
const all = spec.networks.map(known => {
  const run = window.csgResnet(known), rows = [];
  for (let j = 0; j < bytes.length; j += 3072) {
    const start = performance.now();
    rows.push(Array.from(run.forward(bytes.subarray(j, j + 3072)).logits));
    times.push(performance.now() - start);
  }
  return rows;
});
done([all, times]);
"""


@pytest.mark.browser
def test_the_logits_are_pytorchs(shown, address, browser, mini):
    """Of every twentieth image of the sample; in the long form of all 1,000."""
    images = mini.test.images[:: 1 if LONG else 20]
    visit(browser, address)
    browser.set_script_timeout(300)
    rows, times = browser.execute_async_script(LOGITS, base64.b64encode(images.numpy().tobytes()).decode())
    for m, logits in zip(shown.members, rows, strict=True):
        with torch.no_grad():
            expected = m.net(data.to_float(images))
        worst = (torch.tensor(logits) - expected).abs().max().item()
        print(f"{m.name}: {len(images)} images, largest difference {worst:.1e}; a pass {np.median(times):.1f} ms, median")
        assert worst < 1e-3


@pytest.mark.browser
def test_filters_are_switched_by_keyboard_and_by_touch_and_the_address_says_so(shown, address, browser):
    from selenium.webdriver import Keys

    browser.get_log("browser")
    assert visit(browser, address)["hash"] == ""
    assert np.abs(shares(shown, 0) - read(browser)["shares"]).max() < 1e-3
    radios = browser.find_elements("css selector", "[role=radio]")
    radios[0].send_keys(Keys.END)
    browser.switch_to.active_element.send_keys(Keys.HOME)
    for _ in range(5):
        browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert read(browser)["said"] == "A test image of class dog" and read(browser)["hash"] == "#image=5"
    browser.find_element("css selector", "[data-class='5']").send_keys(Keys.SPACE)
    free = min(set(range(64)) - of_class(shown, "CSG", 5))
    tile = browser.find_element("css selector", f"[data-network=CSG] [data-filter='{free}']")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", tile)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    x, y = browser.execute_script("const b = arguments[0].getBoundingClientRect(); return [b.x + 9, b.y + 9]", tile)
    for kind, points in (("touchStart", [{"x": x, "y": y}]), ("touchEnd", [])):
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    off = {"STD": of_class(shown, "STD", 5), "CSG": of_class(shown, "CSG", 5) | {free}}
    now = wait(browser, lambda s: free in s["off"][1])
    assert now["hash"] == f"#image=5&std=c5&csg=c5.{free}" and now["off"] == [sorted(off["STD"]), sorted(off["CSG"])]
    assert np.abs(shares(shown, 5, off) - now["shares"]).max() < 1e-3
    assert now["status"].startswith("STD: ") and " %; CSG: " in now["status"]
    again = visit(browser, address + now["hash"])  # as somebody else opens it
    assert {**again, "ready": "2"} == {**now, "ready": "2"}
    browser.find_element("css selector", ".net-reset").click()
    assert read(browser)["off"] == [[], []] and read(browser)["hash"] == "#image=5"
    assert [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []


@pytest.mark.browser
@pytest.mark.parametrize(
    "hash, told",
    [
        ("#image=99", "there is no image 99: they are 0 to 39"),
        ("#image=1&csg=64", "csg has no filter 64: they are 0 to 63, and c0 to c9"),
        ("#image=1&std=c12", "std has no filter c12"),
        ("#image=1&vgg=3", "there is no network vgg: they are std, csg"),
        ("#image=own", "somebody's own image, which it cannot carry"),
        ("#%=1", "there is no network %"),
    ],
)
def test_an_address_that_does_not_exist_is_told(hash, told, address, browser):
    now = visit(browser, address + hash)
    assert told in now["note"] and now["said"].startswith("A test image of class")


@pytest.mark.browser
def test_an_image_of_ones_own_is_prepared_as_python_does(shown, address, browser, tmp_path):
    visit(browser, address)
    file = browser.find_element("css selector", "input[type=file]")
    for name, (picture, told) in OWN.items():
        path = tmp_path / f"{name}.png"
        path.write_bytes(png(picture))
        file.send_keys(str(path))
        now = wait(browser, lambda s, told=told, name=name: s["said"] == "Your own image" and s["note"] == told)
        pixels, words = photograph.prepared(path.read_bytes())
        assert words == told and now["hash"] == "#image=own"
        if name not in ("small", "clear"):  # enlarging and half-clear pixels are every browser's own
            assert np.abs(shares(shown, pixels) - now["shares"]).max() < 2e-3
    before = read(browser)["shares"]
    size = b"IHDR" + (20_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    huge = b"\x89PNG\r\n\x1a\n\0\0\0\r" + size + zlib.crc32(size).to_bytes(4, "big") + png(noise(9, 9))[33:]
    for name, content, told in (
        ("text.png", b"no image", "This file is no image that can be read here: choose a JPEG, PNG or WebP file."),
        ("huge.png", huge, photograph.HUGE),
    ):
        (tmp_path / name).write_bytes(content)
        file.send_keys(str(tmp_path / name))
        assert wait(browser, lambda s, told=told: s["note"] == told)["shares"] == before
        with pytest.raises(Problem, match=told[:20]):
            photograph.prepared(content)


@pytest.mark.browser
@pytest.mark.parametrize("broken", ["Float32Array", "atob"])
def test_a_browser_without_a_feature_gets_a_sentence_and_keeps_the_figure(broken, shown, browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(wrapped(f"<script>window.{broken} = undefined;</script>" + shown.to_html()))
    browser.get(page.as_uri())
    assert "which this browser lacks" in browser.find_element("css selector", ".net-note").text
    assert not browser.find_element("css selector", ".net-controls").is_displayed()
    assert browser.find_element("css selector", ".net-bars").is_displayed()


@pytest.mark.browser
def test_axe_finds_no_violation(address, browser):
    visit(browser, address + "#image=3&std=c3.1&csg=2")
    browser.execute_script((ROOT / "tests" / "vendor" / "axe.min.js").read_text())
    result = browser.execute_async_script("axe.run(document, {iframes: false}).then(arguments[0])")
    found = [(v["id"], [n["html"][:160] for n in v["nodes"]][:3]) for v in result["violations"]]
    assert found == [], json.dumps(found, indent=1)
