"""A Content-Security-Policy in the head of every page, so that any static host serves it: no other host is asked for anything.

Scripts inside a page are allowed by their digests, and only those that the themes and explore.js are known to write: another
one, which text in a recipe or a name might have smuggled in, stops the build.  Styles may stand in the page, as MathJax and
figures set them there.
"""

import base64
import hashlib
import html
import re
from pathlib import Path

from sphinx.errors import ExtensionError

KNOWN = [  # how each script inside a page begins
    'document.documentElement.dataset.mode = localStorage.getItem("mode")',
    "let toggleHintShow = ",
    "let toggleHintHide = ",
    "let toggleOpenOnPrint = ",
    "var togglebuttonSelector = ",
    "DOCUMENTATION_OPTIONS.pagename = ",
    "DOCUMENTATION_OPTIONS.search_as_you_type = ",
    "window.MathJax = {",
    "// Activate the search field on page load",
    "// The explorers of explore.py in a page without a kernel",
    "// The worked example of worked.py in a page without a kernel",
    "// A network in the page: the controls and the view of network.py",
    "// The filter atlas: the wall and the card of atlas.py",
]
HANDLERS = ["toggleFullScreen()", "window.print()"]  # of the theme's buttons
SCRIPT = re.compile(r"<script(?P<attributes>[^>]*)>(?P<text>.*?)</script\s*>", re.S | re.I)
TAG = re.compile(r"<[a-zA-Z][^<>]*>")
HANDLER = re.compile(r"""\son\w+\s*=\s*("[^"]*"|'[^']*'|[^\s>]+)""", re.I)
HEAD = '<meta charset="utf-8" />'


def digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def policy(page: str, name: str) -> str:
    """What this page may do; raises ExtensionError where it holds a script or a handler that is not known."""
    allowed = {}
    for script in SCRIPT.finditer(page):
        attributes, text = script["attributes"], script["text"]
        if "application/json" in attributes or (re.search(r"\ssrc=", attributes) and not text.strip()):
            continue  # data do not run, files are the policy's 'self'
        if not text.strip().startswith(tuple(KNOWN)):
            raise ExtensionError(f"{name} has a script that is not known: {text.strip()[:80]!r}")
        allowed[digest(text)] = None
    for tag in TAG.finditer(SCRIPT.sub("", page)):
        for handler in HANDLER.finditer(tag[0]):
            text = html.unescape(handler[1].strip("\"'"))
            if text not in HANDLERS:
                raise ExtensionError(f"{name} has a handler that is not known: {text[:80]!r}")
    # Of both handlers on every page: the search page reads the others
    scripts = ["'self'", *allowed, "'unsafe-hashes'", *map(digest, HANDLERS)]
    return (
        f"default-src 'self'; script-src {' '.join(scripts)}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "font-src 'self' data:; object-src 'none'; frame-src 'none'; base-uri 'none'; form-action 'self'"
    )


def apply(app, exception):
    if exception or app.builder.format != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        if "_static" in path.relative_to(app.outdir).parts:
            continue
        text = path.read_text(encoding="utf-8")
        if text.count(HEAD) != 1:
            raise ExtensionError(f"{path.name} has no place for its Content-Security-Policy: it lacks {HEAD}")
        meta = f'{HEAD}<meta http-equiv="Content-Security-Policy" content="{policy(text, path.name)}">'
        path.write_text(text.replace(HEAD, meta), encoding="utf-8")


def setup(app):
    app.connect("build-finished", apply, priority=900)  # after all that changes a page
    return {"parallel_read_safe": True, "parallel_write_safe": True}
