"""The network of the page with a kernel: ipywidgets 7.7 (Colab) or 8, and PyTorch for the passes."""

import html

from csgbook.explorers import photograph
from csgbook.explorers.network import CLASS, NetworkInPage, State, style
from csglib import Problem


def made(shown: NetworkInPage):
    """The explorer as widgets: both networks on one image, with filters that can be switched off."""
    import ipywidgets as w

    wide = {"description_width": "initial"}
    names = [f"{shown.classes[int(c)]} {j // len(shown.classes) + 1}" for j, c in enumerate(shown.images.labels)]
    image = w.Dropdown(options=[(name, j) for j, name in enumerate(names)], description="Image", style=wide)
    own = w.FileUpload(accept="image/*", multiple=False, description="Your own image")
    groups = [w.Checkbox(description=name, indent=False) for name in map(plain, shown.classes)]
    single = {
        m.name: w.SelectMultiple(
            options=[
                (f"{k} ({shown.classes[c]})", k) for c in range(len(shown.classes)) for k, o in enumerate(m.owner) if o == c
            ],
            description=f"Off in {plain(m.name)}",
            style=wide,
        )
        for m in shown.members
    }
    view, held = w.HTML(), {"pixels": shown.images.images[0], "label": int(shown.images.labels[0]), "told": ""}

    def show(_=None) -> None:
        classes_off = {c for c, box in enumerate(groups) if box.value}
        off = {
            m.name: frozenset(single[m.name].value) | {k for k, c in enumerate(m.owner) if c in classes_off}
            for m in shown.members
        }
        page = shown.page(State(held["pixels"], held["label"], off))
        told = f'<p class="csg-note net-note">{html.escape(held["told"])}</p>' if held["told"] else ""
        view.value = f'<style>{style()}</style><figure class="{CLASS}">{told}{page}</figure>'

    def choose(_=None) -> None:
        held.update(pixels=shown.images.images[image.value], label=int(shown.images.labels[image.value]), told="")
        show()

    def upload(_=None) -> None:
        files = list(own.value.values()) if isinstance(own.value, dict) else list(own.value)  # ipywidgets 7, 8
        if not files:
            return
        try:
            pixels, told = photograph.prepared(bytes(files[-1]["content"]))
            held.update(pixels=pixels, label=None, told=told)
        except Problem as problem:
            held.update(told=str(problem))
        show()

    image.observe(choose, names="value")
    own.observe(upload, names="value")
    for box in (*groups, *single.values()):
        box.observe(show, names="value")
    show()
    return w.VBox([image, own, w.HTML("Switch off the filters of"), *groups, *single.values(), view])


def plain(name: str) -> str:
    return name.replace("$", "\uff04")  # MathJax looks for formulas in descriptions
