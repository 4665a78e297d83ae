"""csglib's docstrings are plain text with code in `backticks`; autodoc would read |x|, x_ and *x as markup.

Shapes stand in signatures, as jaxtyping has them.  What a dataclass's fields are stands in comments beside them, and is shown
as its parameters.
"""

import dataclasses
import inspect
import re

CODE = re.compile(r"(`[^`\n]+`)")
FIELD = re.compile(r"^    (\w+): [^#\n]*  # (.+)$", re.M)


def plain(text: str) -> str:
    return "".join(part if i % 2 else re.sub(r"([*_|@\\])", r"\\\1", part) for i, part in enumerate(CODE.split(text)))


def escape(app, what, name, obj, options, lines):
    lines[:] = [plain(line) for line in lines]
    if what == "class" and dataclasses.is_dataclass(obj):
        lines += ["", *(f":param {field}: {plain(comment)}" for field, comment in FIELD.findall(inspect.getsource(obj))), ""]


def setup(app):
    app.connect("autodoc-process-docstring", escape, priority=400)  # before napoleon, whose marks are none of the text's
    return {"parallel_read_safe": True, "parallel_write_safe": True}
