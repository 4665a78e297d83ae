"""Classes of cells and rows that a style sheet cannot tell by itself.

A cell that holds a number is never broken, one that holds a sentence gets room for it; on the page of results each row carries
the kind of its verdict, by which a reader chooses.
"""

import re

from docutils import nodes

from csgbook.pages.scoreboard import kind

VALUE = r"[+\-−–]?\d[\d,.]*(?:e[+\-]?\d+)?"
NUMBER = re.compile(rf"{VALUE}(?:\s*±\s*{VALUE})?(?:\s*(?:to|/|of)\s*{VALUE})?(?:\s*(?:%|s|ms|min|h|nats|points|times))?")


def mark(app, doctree):
    docname = app.env.docname
    for entry in doctree.findall(nodes.entry):
        code = next(entry.findall(nodes.literal), None) is not None  # as is a commit of digits alone
        if NUMBER.fullmatch(entry.astext().strip()) and not code:
            entry["classes"].append("number")
        elif len(entry.astext()) > 40:
            entry["classes"].append("sentence")
    if docname == "results":
        for row in doctree.findall(nodes.row):
            if isinstance(row.parent, nodes.tbody):
                row["classes"].append(f"verdict-{kind(row[1].astext().removesuffix(' †').split(':')[0])}")


def setup(app):
    app.connect("doctree-read", mark)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
