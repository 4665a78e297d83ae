"""The book as one file: a zip that reads from disk, in a browser without any network, and a PDF."""

import hashlib
import re
import shutil
import subprocess
import sys
import time
import zipfile

import pytest
from conftest import BUILD, ROOT, open_page

from csglib import Problem

sys.path.insert(0, str(ROOT / "tools"))
import offline  # noqa: E402


@pytest.fixture(scope="session")
def packed(html, tmp_path_factory):
    """The zip of the smoke book, made beside it."""
    folder = tmp_path_factory.mktemp("offline")
    (folder / "html").symlink_to(html)
    return offline.pack(folder)


def test_the_zip_holds_the_whole_book_and_is_the_same_every_time(packed, html):
    with zipfile.ZipFile(packed) as archive:
        assert archive.testzip() is None
        names = {n.removeprefix("csglib-html/") for n in archive.namelist()}
    assert names == {p.relative_to(html).as_posix() for p in html.rglob("*") if p.is_file()} | {"README.txt"}
    first = packed.read_bytes()
    assert offline.pack(packed.parent).read_bytes() == first
    assert packed.with_name("csglib-html.zip.sha256").read_text() == f"{hashlib.sha256(first).hexdigest()}  csglib-html.zip\n"


@pytest.fixture(scope="session")
def disk(packed, tmp_path_factory) -> str:
    """The address of the unpacked zip on the disk."""
    folder = tmp_path_factory.mktemp("unpacked")
    shutil.unpack_archive(packed, folder)
    return (folder / "csglib-html").as_uri()


@pytest.mark.browser
def test_from_disk_mathematics_is_drawn_and_nothing_fails(disk, browser):
    browser.get_log("browser")
    open_page(browser, f"{disk}/method.html", 1280)
    assert browser.execute_script("return document.querySelectorAll('mjx-container').length") > 30
    assert browser.execute_script("return [...document.fonts].filter(f => f.status == 'error').length") == 0
    assert [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []


@pytest.mark.browser
def test_from_disk_an_explorer_moves(disk, browser):
    from selenium.webdriver import Keys

    open_page(browser, f"{disk}/training-curves.html", 1280)
    root = browser.find_element("css selector", ".csg-explorer")
    slider = root.find_element("css selector", "input[type=range]")
    numbers = "return [...arguments[0].querySelectorAll('.csg-numbers dd')].map(e => e.textContent)"
    slider.send_keys(Keys.HOME)
    first = browser.execute_script(numbers, root)
    slider.send_keys(Keys.END)
    assert len(first) > 1 and browser.execute_script(numbers, root) != first


@pytest.mark.browser
def test_from_disk_the_search_finds_pages_and_a_link_leads_to_one(disk, browser):
    open_page(browser, f"{disk}/search.html?q=gate", 1280)
    deadline = time.monotonic() + 20
    while len(found := browser.find_elements("css selector", "#search-results li a")) < 4 and time.monotonic() < deadline:
        time.sleep(0.1)  # they come one after the other
    assert len(found) > 3
    target = found[0].get_attribute("href")
    assert target.startswith(disk)
    browser.get(target)
    assert browser.find_element("css selector", ".bd-article h1").text


def test_without_a_book_or_a_browser_the_tool_says_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(Problem, match="holds no book: run `make book` first"):
        offline.pack(tmp_path)
    monkeypatch.setattr(offline, "BROWSERS", ("no-such-browser",))
    with pytest.raises(Problem, match="no browser to print with here.*install Debian's chromium"):
        offline.print_book(tmp_path)
    monkeypatch.setattr(offline, "BROWSERS", ("sh",))
    with pytest.raises(Problem, match="holds no sources of a book: run `make book` first"):
        offline.print_book(tmp_path)


@pytest.mark.long
@pytest.mark.browser
def test_the_pdf_has_every_page_with_mathematics_and_pictures_and_no_controls(html, tmp_path):
    if not all(map(shutil.which, ("chromium", "pdftotext", "pdfimages"))):
        pytest.skip("no Chromium, or none of poppler's tools, here: install Debian's chromium and poppler-utils")
    shutil.copytree(BUILD / "book_src", tmp_path / "book_src")
    path = offline.print_book(tmp_path)
    text = subprocess.run(["pdftotext", "-layout", path, "-"], capture_output=True, text=True, check=True).stdout
    for page in re.findall(r"(?:file|root): (\S+)", (ROOT / "book" / "_toc.yml").read_text()):
        heading = re.search(r"<h1>(.*?)<a", (html / f"{page}.html").read_text())[1]
        assert re.sub(r"<[^>]+>", "", heading).split()[0] in text, page
    assert "\\(" not in text and "\\[" not in text and "$$" not in text  # raw mathematics
    assert "Show code cell source" not in text and "Threshold" in text
    pictures = subprocess.run(["pdfimages", "-list", path], capture_output=True, text=True, check=True).stdout.splitlines()[2:]
    assert len(pictures) > 10
    assert path.read_bytes().startswith(b"%PDF-")
