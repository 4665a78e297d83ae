"""Serve vendored browser assets from _static without loading them on every page.

Jupyter Book 1.x adds *every* .js and .css below book/_static to *every* page, so big
vendored bundles must not live there. This extension adds a second static folder after
Jupyter Book has done that scan.
"""

from pathlib import Path

VENDOR = Path(__file__).resolve().parent.parent / "vendor"


def add_vendor(app):
    app.config.html_static_path.append(str(VENDOR))


def setup(app):
    app.connect("builder-inited", add_vendor)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
