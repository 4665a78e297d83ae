"""Small, counted repairs of markup that axe-core flags and that dependencies make.

Each entry is (what, pattern, replacement). A repair that stops matching fails
tests/test_book.py, so that an upstream fix lets us delete it.
"""

import re
from pathlib import Path

FIXES = [
    (
        "pydata search button: name must contain the visible text",
        re.compile(r'(<button class="btn search-button-field[^>]*?) title="Search" aria-label="Search"'),
        r"\1",
    ),
    (
        "pydata theme switch: icon titles differ from the button's name",
        re.compile(r'(<i class="theme-switch [^>]*?) title="[^"]*"'),
        r"\1",
    ),
    (
        "book theme: the logo is outside every landmark",
        re.compile(r'<div class="sidebar-primary-item">(\s*<a class="navbar-brand logo".*?</a>\s*)</div>', re.S),
        r'<div class="sidebar-primary-item" role="navigation" aria-label="Home">\1</div>',
    ),
    ("myst-nb: summary name hides its visible text", re.compile(r'<summary aria-label="Toggle hidden content">'), "<summary>"),
    (
        "docutils: citation list role without list items",
        re.compile(r'<div role="list" class="citation-list">'),
        '<div class="citation-list">',
    ),
    (
        "our wide tables scroll: the keyboard must reach them",
        re.compile(r'<table class="table'),
        '<table tabindex="0" class="table',
    ),
    (
        "our figures scroll on a phone: the keyboard must reach them",
        re.compile(r'<figure class="align-default" id='),
        '<figure tabindex="0" class="align-default" id=',
    ),
    ("docutils: doc-biblioentry is deprecated", re.compile(r' role="doc-biblioentry"'), ""),
]


def apply(app, exception):
    if exception or app.builder.format != "html":
        return
    counts = dict.fromkeys((name for name, _, _ in FIXES), 0)
    for path in Path(app.outdir).rglob("*.html"):
        if "_static" in path.relative_to(app.outdir).parts:
            continue
        text = before = path.read_text(encoding="utf-8")
        for name, pattern, repl in FIXES:
            text, n = pattern.subn(repl, text)
            counts[name] += n
        if text != before:
            path.write_text(text, encoding="utf-8")
    for name, n in counts.items():
        print(f"a11y fix applied {n:3d}x: {name}")


def setup(app):
    app.connect("build-finished", apply)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
