"""How the claims fared: a tally of verdicts, and every interval in one picture."""

import html
from collections import Counter
from collections.abc import Sequence

from csgbook.claims import OURS
from csgbook.embed import raw
from csgbook.evidence import verdicts
from csgbook.evidence.rules import SEEDS
from csgbook.pages import drawings

GROUPS = {"papers": "Claims of the papers", "book": "Questions of this book"}
VERDICTS = {"yes": "reproduced, or yes", "no": "contradicted, or no", "open": "inconclusive, or open", "none": "not judged"}
ORDER = ("yes", "no", "open", "none")
LABELS = {  # what a row of the forest plot calls a claim; another is told by its sentence
    "accuracy-order": "Accuracy is higher with CSG",
    "mis-order": "Mutual information rises with CSG",
    "overlap-order": "Information lies where the gate is",
    "weights-order": "A class's filters have similar weights",
    "removed-order": "Removal hurts standard training less",
    "centre-order": "A class activates its own filters more",
    "sparse-order": "Features are sparser with CSG",
    "picnn-mis": "Mutual information rises with PICNN",
    "picnn-accuracy": "PICNN keeps the accuracy",
    "icnn-place": "ICNN's filters fire in one place",
    "icnn-mis": "Mutual information rises with ICNN",
    "animals-accuracy": "Animals: accuracy is higher",
    "animals-mis": "Animals: mutual information rises",
    "cam-order": "Animals: CAM fits the box better",
    "activation-order": "Animals: filters fit the box better",
    "gradient-order": "Animals: gradients fit the box better",
    "detection-order": "Attacks are detected more surely",
    "detection-fgsm": "FGSM is detected more surely",
    "detection-pgd": "PGD is detected more surely",
    "accuracy-csg": "Accuracy, CSG",
    "accuracy-std": "Accuracy, standard",
    "mis-csg": "Mutual information, CSG",
    "mis-std": "Mutual information, standard",
    "density-csg": "Density of the gate",
    "removed-csg": "Accuracy left after removal",
    "kept-csg": "Change on other classes",
}


def kind(verdict: str) -> str:
    """Of a verdict in any words: yes, no, open, or none where nothing could be judged."""
    if "reproduced" in verdict or verdict == "yes":
        return "yes"
    if verdict in ("no", "contradicted", "opposite"):
        return "no"
    return "none" if verdict.startswith(("not ", "no ")) and verdict != "no difference found" else "open"


def by_schedule(results: Sequence[dict]) -> list[dict]:
    """The claims whose verdict is of another kind under another schedule that has enough seeds to decide."""
    decided = [(c, other) for c in results for other in c["also"] if min(c["n"], other["n"]) >= SEEDS]
    return list({c["id"]: c for c, other in decided if kind(other["verdict"]) != kind(c["verdict"])}.values())


def short(verdict: str) -> str:
    """Without the reason that may follow it."""
    return verdict.split(":")[0]


def question(c: dict) -> bool:
    """Whether the book asks this itself, and no paper claims it."""
    return c.get("question", c["source"] == OURS)


def choice() -> str:
    """Radio buttons above the list of all results; book.css hides what they leave out, without a script."""
    sets = {"claims": {"all": "all"} | GROUPS, "verdicts": {"any": "any"} | VERDICTS}
    fields = ""
    for name, buttons in sets.items():
        labels = "".join(
            f'<label><input type="radio" name="show-{name}" id="show-{value}"{" checked" * (not i)}> {told}</label>'
            for i, (value, told) in enumerate(buttons.items())
        )
        fields += f"<fieldset><legend>{name.capitalize()}</legend>{labels}</fieldset>"
    return raw(f'<form class="choice">{fields}</form>')


def tally(results: list[dict]) -> str:
    """How many claims of the papers, and questions of the book, ended in which verdict."""
    groups = {
        GROUPS["papers"]: [c for c in results if not question(c)],
        GROUPS["book"]: [c for c in results if question(c)],
    }
    rows = ""
    for name, group in groups.items():
        counts = sorted(
            Counter(short(c["verdict"]) for c in group).items(), key=lambda item: (ORDER.index(kind(item[0])), -item[1])
        )
        told = ", ".join(f"{n} {verdict}" for verdict, n in counts)
        bars = "".join(
            f'<li class="tally-{kind(verdict)}" style="flex-grow:{n}"><b>{n}</b> <span>{html.escape(verdict)}</span></li>'
            for verdict, n in counts
        )
        rows += f'<p class="tally-name">{name} <span>({len(group)})</span></p>'
        rows += f'<ul class="tally" aria-label="{name}: {told}">{bars}</ul>'
    return raw(f'<div class="tallies">{rows}</div>')


def forest(results: list[dict]) -> str:
    """The papers' claims that have an interval: differences around zero, values around the paper's own."""
    drawable = [c for c in results if not question(c) and c["low"] is not None and c["ours"] is not None]
    blocks = ""
    usual = Counter(c["schedule"] for c in drawable).most_common(1)[0][0] if drawable else ""
    for title, rows in (
        ("Differences. The line is no difference.", [c for c in drawable if c["over"]]),
        ("Values. The line is the paper's value.", [c for c in drawable if not c["over"] and c["paper"] is not None]),
    ):
        if rows:
            blocks += (
                f'<p class="forest-title">{title}</p><ul class="forest">{"".join(forest_row(c, usual) for c in rows)}</ul>'
            )
    if not blocks:
        return "No claim has an interval yet: that takes two seeds of each side.\n"
    shapes = {"yes": "reproduced", "no": "contradicted", "open": "open, or not judged", "paper": "the paper's value"}
    key = "".join(
        f'<span><svg class="drawn key" viewBox="0 0 20 20" aria-hidden="true">{drawings.mark(shape, 10)}</svg>{words}</span>'
        for shape, words in shapes.items()
    )
    told = f"<p>After {length(usual)}, where a row does not say otherwise.</p>" if usual else ""
    return raw(f'<div class="forests"><p class="forest-key">{key}</p>{told}{blocks}</div>')


def length(schedule: str) -> str:
    """Its epochs; of a schedule in words."""
    return html.escape(next((part for part in schedule.split(", ") if "epoch" in part), schedule))


def forest_row(c: dict, usual: str) -> str:
    """One claim; its schedule where that is not the usual one."""
    zero = 0.0 if c["over"] else c["paper"]
    shape = {"none": "open"}.get(k := kind(c["verdict"]), k)
    plot = drawings.interval(c["low"], c["high"], c["ours"], shape, c["paper"], zero)
    digits = 3 if max(abs(c["low"]), abs(c["high"])) >= 0.01 else 4
    sign = "+" if c["over"] else ""
    ours, low, high = (verdicts.end(c[name], sign, digits) for name in ("ours", "low", "high"))
    told = f"<b>{ours}</b> <small>{low} to {high}</small>".replace("-", "−")
    label = html.escape(LABELS.get(c["id"], c["sentence"]))
    if c["schedule"] != usual:
        label += f" <small>({length(c['schedule'])})</small>"
    return (
        f'<li class="{shape}"><span class="forest-claim">{label}</span>{plot}<span class="forest-number">{told}</span>'
        f'<span class="forest-verdict">{html.escape(short(c["verdict"]))}</span></li>'
    )
