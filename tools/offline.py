"""The built book as one file: a zip that reads from disk, and a PDF.

    python tools/offline.py zip BUILD    BUILD/html becomes BUILD/csglib-html.zip, with its sha256 in a file beside
    python tools/offline.py pdf BUILD    BUILD/book_src, which `make book` leaves, becomes BUILD/csglib.pdf

The PDF is Sphinx's single page, printed by a Chromium: it draws mathematics, figures and explorers as the book does, offline.
What is different on paper stands in book/_static/book.css.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from csglib import Problem
from csglib.paths import ROOT, digest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
README = """Open index.html. Everything is in this folder, and no page asks another host for anything.

Read from disk, the search lists the pages that it finds without a line of their text: browsers let no page read other files.
"""


def pack(build: Path) -> Path:
    """Every file at a fixed time and in a fixed order, so that one book has one checksum."""
    html, out = build / "html", build / "csglib-html.zip"
    if not (html / "index.html").is_file():
        raise Problem(f"{html} holds no book: run `make book` first")
    part = out.with_suffix(".part")
    with zipfile.ZipFile(part, "w") as archive:
        entries = {"README.txt": README.encode()}
        entries |= {f.relative_to(html).as_posix(): f.read_bytes() for f in sorted(html.rglob("*")) if f.is_file()}
        for name, content in entries.items():
            info = zipfile.ZipInfo(f"csglib-html/{name}", (1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            archive.writestr(info, content, zipfile.ZIP_DEFLATED, 9)
    os.replace(part, out)
    out.with_name(f"{out.name}.sha256").write_text(f"{digest(out)}  {out.name}\n")
    return out


def print_book(build: Path) -> Path:
    """One page of all pages, then on paper."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise Problem(f"no browser to print with here (looked for {', '.join(BROWSERS)}): install Debian's chromium")
    if not (build / "book_src" / "_toc.yml").is_file():
        raise Problem(f"{build / 'book_src'} holds no sources of a book: run `make book` first")
    work, out = build / "jupyter-book-single", build / "csglib.pdf"
    shutil.rmtree(work, ignore_errors=True)
    jupyter_book = str(Path(sys.executable).with_name("jupyter-book"))
    command = [jupyter_book, "build", str(build / "book_src"), "--config", str(ROOT / "_config.yml")]
    command += ["--path-output", str(work), "--builder", "singlehtml", "--all", "-W", "-n", "--keep-going"]
    run(command, "Jupyter Book could not make the single page")
    part = out.with_suffix(".part.pdf")
    command = [browser, "--headless=new", "--disable-gpu", "--no-pdf-header-footer", "--generate-pdf-document-outline"]
    command += ["--virtual-time-budget=120000", f"--print-to-pdf={part}"]  # time for the mathematics, as fast as it can be had
    command += ["--no-sandbox"] if os.geteuid() == 0 else []  # root has none
    run([*command, (work / "_build" / "singlehtml" / "index.html").resolve().as_uri()], f"{browser} could not print")
    if not part.is_file():
        raise Problem(f"{browser} printed nothing: try a newer one")
    os.replace(part, out)
    shutil.rmtree(work)
    return out


def run(command: list[str], failed: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=1800)
    if done.returncode:
        print(*(done.stdout + done.stderr).splitlines()[-60:], sep="\n", file=sys.stderr)
        raise Problem(f"{failed}: its last words stand above")


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("zip", "pdf"):
        sys.exit(__doc__)
    try:
        out = {"zip": pack, "pdf": print_book}[sys.argv[1]](Path(sys.argv[2]).resolve())
    except Problem as problem:
        print(f"csglib: {problem}", file=sys.stderr)
        sys.exit(2)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
