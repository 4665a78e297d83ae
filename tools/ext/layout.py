"""Cells that hold a number carry the class `number`, which book.css never breaks; a style sheet cannot tell them itself."""

import re

from docutils import nodes

VALUE = r"[+\-−–]?\d[\d,.]*(?:e[+\-]?\d+)?"
NUMBER = re.compile(rf"{VALUE}(?:\s*±\s*{VALUE})?(?:\s*(?:to|/|of)\s*{VALUE})?(?:\s*(?:%|s|ms|min|h|nats|points|times))?")


def mark(app, doctree, docname=None):
    for entry in doctree.findall(nodes.entry):
        if NUMBER.fullmatch(entry.astext().strip()):
            entry["classes"].append("number")


def setup(app):
    app.connect("doctree-read", mark)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
