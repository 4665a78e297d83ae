"""The first page of the book: the idea in a picture, what was found, how the claims fared.  From runs and verdicts to Markdown.

Sentences are written here, their numbers come from the runs; where a number no longer bears a headline, a plain one stands in.
"""

import html
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from csglib import claims, data, drawings, measured, metrics, use
from csglib.claims import removed
from csglib.markup import sprite
from csglib.papers import OURS
from csglib.runs import Run

Runs = dict[str, list[Run]]  # std, matched, csg
NAMES = {"std": "standard", "matched": "matched", "csg": "CSG"}
SHOWN = 4  # classes with pictures of a filter beneath the drawing
ABSENT = "The runs that would show this are not here yet; {doc}`runs` lists those that are.\n"


def raw(markup: str) -> str:
    return f"```{{raw}} html\n{markup}\n```\n"


# The idea in a picture


def idea(runs: Runs) -> str:
    """Two networks side by side: what their filters are used for, and the images that excite some of them most."""
    pair = {name: runs[name][0] for name in ("std", "csg") if runs.get(name)}
    if len(pair) < 2:
        return ABSENT
    mini = data.load("cifar10-mini").test
    faces = drawings.faces(mini.images, mini.labels, len(data.CLASSES))
    heads = {"std": "Standard training", "csg": "With class-specific gates"}
    panels = "".join(
        f'<div><p class="idea-head">{heads[name]}</p>{drawings.of_network(run.readout, data.CLASSES, faces, heads[name])}'
        f"{exciting(run)}</div>"
        for name, run in pair.items()
    )
    shares = {name: np.mean([use.exciting(run.readout) for run in runs[name]]) for name in pair}
    links = {name: np.mean([use.own_evidence(run.readout) for run in runs[name]]) for name in pair}
    caption = (
        f"What filters are used for, in two trained networks of ours (ResNet-20, CIFAR-10, seed {pair['csg'].recipe.seed}). A line leads from a "
        "filter to a class whose prediction it supports, and is as strong as its support; a filter has the colour of the class it "
        f"serves most. In the mean over seeds {links['std']:.0%} of the support for a class comes from its own filters on the left, "
        f"{links['csg']:.0%} on the right. Beneath, the filter that each of {SHOWN} classes uses most, with the six "
        "images of the book's sample that excite it most; a dashed frame marks another class. Of all filters' six most exciting "
        f"test images, {shares['std']:.0%} and {shares['csg']:.0%} show the filter's class."
    )
    return raw(f'<figure class="idea"><div class="idea-panels">{panels}</div><figcaption>{html.escape(caption)}</figcaption></figure>')


def places(run: Run) -> np.ndarray:
    """Where the embedded sample's test images stand in a run's readout."""
    if run.recipe.dataset == "cifar10":
        return np.fromfile(data.ROOT / "data" / "cifar10-mini" / "test.index", "<u2").astype(int)
    return np.arange(len(run.readout.labels))


def exciting(run: Run, top: int = 6) -> str:
    """A row of pictures for a few classes: of the filter that the class uses most, what excites it most."""
    r, mini = run.readout, data.load("cifar10-mini").test
    E = use.evidence(r) * metrics.own_filters(r)
    a = r.features[places(run)]
    rows = ""
    for c in np.linspace(0, len(data.CLASSES) - 1, SHOWN).round().astype(int).tolist():
        k = int(E[c].argmax())
        best = a[:, k].argsort(descending=True, stable=True)[:top]
        of = mini.labels[best].tolist()
        cells = "".join(
            f'<span class="thumb class-{y}{" foreign" * (y != c)}" role="img" aria-label="{data.CLASSES[y]}" '
            f'style="background-position:-{44 * j}px 0"></span>'
            for j, y in enumerate(of)
        )
        rows += (
            f'<div class="exciting" style="--sprite:url({sprite(mini.images[best], top)});--across:{top}">'
            f"<p>{data.CLASSES[c]}<small>filter {k}</small></p>{cells}</div>"
        )
    return rows


# What was found


@dataclass(frozen=True)
class Finding:
    headline: str  # where it holds
    otherwise: str
    measure: Callable[[Run], float]
    told: str  # a format of the mean
    holds: Callable[[dict[str, float]], bool]  # of the means by network
    sentence: Callable[[dict[str, float], Runs, dict[str, dict]], str]  # the means, the runs, the claims by their id


def points(x: float) -> str:
    return f"{abs(100 * x):.1f} points"


def side(x: float) -> str:
    return "higher" if x > 0 else "lower"


def removal_told(m: dict[str, float], runs: Runs, judged: dict[str, dict]) -> str:
    others = np.mean([removed(run)[1] - run.metrics["accuracy"] for run in runs["csg"]])
    return (
        f"Switch off the filters of a class: CSG's network still recognises {m['csg']:.1%} of its images, and its accuracy on "
        f"the other classes moves by {100 * others:+.1f} points. Without as many filters a standard network still recognises "
        f"{m['std']:.0%}. {{doc}}`More <filter-removal>`."
    )


def group_told(m: dict[str, float], runs: Runs, judged: dict[str, dict]) -> str:
    return (
        f"Let each class see its own filters alone, without retraining: CSG's accuracy moves by {-100 * m['csg']:.1f} points, "
        f"the standard network's by {-100 * m['std']:.1f}, although its filters are given to classes in the way that suits it best. "
        "{doc}`Move it <explore>`."
    )


def information_told(m: dict[str, float], runs: Runs, judged: dict[str, dict]) -> str:
    sparse = {name: np.mean([metrics.hoyer(run.readout.features) for run in runs[name]]) for name in ("std", "csg")}
    more = m["csg"] / m["std"] - 1
    less = "less" if sparse["csg"] < sparse["std"] else "more"
    return (
        f"Their mutual information with it is {abs(more):.0%} {side(more)} than after standard training. Yet an image's "
        f"features are *{less}* sparse ({sparse['csg']:.2f} against {sparse['std']:.2f}), where the paper's figures show sparser "
        "ones: a filter that is not used for a class may still fire for it. {ref}`Why <use-is-not-firing>`."
    )


def price_told(m: dict[str, float], runs: Runs, judged: dict[str, dict]) -> str:
    order, matched = judged["accuracy-order"], judged["accuracy-matched"]
    gap, rest = m["csg"] - m["std"], m["csg"] - m["matched"]
    text = f"CSG classifies {points(gap)} {'better' if gap > 0 else 'worse'} than standard training"
    if order.get("paper") is not None:
        text += f"; the paper reports {points(order['paper'])} {'better' if order['paper'] > 0 else 'worse'}"
    text += f". Against its own standard epochs alone (*matched*) it differs by {100 * rest:+.1f} points"
    if matched.get("low") is not None and matched["low"] <= 0 <= matched["high"]:
        text += ", which may be chance: the price is the epochs that the gate takes, not the gate"
    return text + ". {doc}`More <table1>`."


FINDINGS = (
    Finding(
        "Remove a class's filters and the class is gone", "Removing a class's filters",
        lambda run: removed(run)[0], "{:.3f}", lambda m: m["csg"] < 0.01 < m["std"], removal_told,
    ),
    Finding(
        "One group of filters is enough for a class", "One group of filters for each class",
        lambda run: use.one_group_loss(run.readout), "{:.3f}", lambda m: m["csg"] < 0.02 < m["std"], group_told,
    ),
    Finding(
        "Filters tell more about their class", "What filters tell about their class",
        lambda run: run.metrics["mis"], "{:.3f}", lambda m: m["csg"] > max(m["std"], m["matched"]), information_told,
    ),
    Finding(
        "Here it costs accuracy", "What it does to accuracy",
        lambda run: run.metrics["accuracy"], "{:.4f}", lambda m: m["csg"] < m["std"], price_told,
    ),
)  # fmt: skip
AXES = ("accuracy left on the class", "accuracy lost", "mutual information score, nats", "test accuracy")


def findings(runs: Runs, results: list[dict]) -> str:
    """Four cards: a headline, the seeds it rests on, a sentence."""
    runs = {name: runs.get(name, []) for name in NAMES}
    judged = {c["id"]: c for c in results}
    if not all(runs.values()) or not {"accuracy-order", "accuracy-matched"} <= set(judged):
        return ABSENT
    cards = ["::::{grid} 1 1 2 2", ":gutter: 3", ":class-container: findings", ""]
    for finding, axis in zip(FINDINGS, AXES, strict=True):
        values = {name: [finding.measure(run) for run in group] for name, group in runs.items()}
        means = {name: float(np.mean(group)) for name, group in values.items()}
        told = {name: finding.told.format(mean) for name, mean in means.items()}
        title = f"{axis}: " + ", ".join(f"{NAMES[name]} {told[name]}" for name in NAMES)
        head = finding.headline if finding.holds(means) else finding.otherwise
        plot = f'<p class="finding-axis">{axis}</p>{drawings.seeds(values, NAMES, told, title)}'
        cards += [f":::{{grid-item-card}} {head}", raw(plot), finding.sentence(means, runs, judged), ":::", ""]
    return "\n".join([*cards, "::::", "", schedule_told(runs)])


def schedule_told(runs: Runs) -> str:
    """What the numbers above may owe to their schedule, as a box."""
    recipe, n = runs["csg"][0].recipe, min(len(group) for group in runs.values())
    seeds = f"{n} seed{'s' * (n > 1)}"
    if claims.presumed(recipe):
        return f"Marks are seeds; all networks trained for {recipe.epochs} epochs, {seeds} each.\n"
    paper = claims.PRESUMED
    form = {"onecycle": "a one-cycle learning-rate schedule", "steps": "a learning rate dropped in steps"}
    text = (
        f"These networks were trained for {recipe.epochs} epochs with {form[recipe.lr_schedule]}, {seeds} per network. The paper's "
        f"accuracy points to {paper.epochs} epochs with {form[paper.lr_schedule]}, and we have no such run yet. Directions may well carry over, "
        "sizes need not: "
    )
    longer = measured.read("third-party-resnet20")["metrics"]
    ours = np.mean([run.metrics["mis"] for run in runs["std"]])
    text += (
        f"a standard network of other people that reaches {longer['accuracy']:.4f} has a mutual information score of {longer['mis']:.3f}, "
        f"ours with {np.mean([run.metrics['accuracy'] for run in runs['std']]):.4f} one of {ours:.3f}."
    )
    return f":::{{admonition}} A short schedule\n:class: warning\n{text}\n:::\n"


# How the claims fared


def kind(verdict: str) -> str:
    """Of a verdict in any words: yes, no, open, or none where nothing could be judged."""
    if "reproduced" in verdict or verdict == "yes":
        return "yes"
    if verdict in ("no", "contradicted", "opposite"):
        return "no"
    return "none" if verdict.startswith(("not ", "no ")) and verdict != "no difference found" else "open"


ORDER = ("yes", "no", "open", "none")


def tally(results: list[dict]) -> str:
    """How many claims of the papers, and questions of the book, ended in which verdict."""
    groups = {
        "Claims of the papers": [c for c in results if c["source"] != OURS],
        "Questions of this book": [c for c in results if c["source"] == OURS],
    }
    rows = ""
    for name, group in groups.items():
        counts = sorted(Counter(c["verdict"] for c in group).items(), key=lambda item: (ORDER.index(kind(item[0])), -item[1]))
        told = ", ".join(f"{n} {verdict}" for verdict, n in counts)
        bars = "".join(
            f'<li class="tally-{kind(verdict)}" style="flex-grow:{n}"><b>{n}</b> <span>{html.escape(verdict)}</span></li>'
            for verdict, n in counts
        )
        rows += f'<p class="tally-name">{name} <span>({len(group)})</span></p><ul class="tally" aria-label="{name}: {told}">{bars}</ul>'
    return raw(f'<div class="tallies">{rows}</div>')


LABELS = {  # what a row of the forest plot calls a claim; another is told by its sentence
    "accuracy-order": "Accuracy is higher with CSG",
    "mis-order": "Mutual information is higher with CSG",
    "overlap-order": "Information lies where the gate is open",
    "weights-order": "Weights of a class's filters resemble each other",
    "removed-order": "Removal hurts a standard network less",
    "centre-order": "A class's activation falls on its own filters",
    "sparse-order": "Features are sparser with CSG",
    "picnn-mis": "Mutual information is higher with PICNN",
    "picnn-accuracy": "PICNN keeps the accuracy",
    "icnn-place": "ICNN's filters fire in one place",
    "icnn-mis": "Mutual information is higher with ICNN",
    "animals-accuracy": "Animals: accuracy is higher with CSG",
    "animals-mis": "Animals: mutual information is higher",
    "cam-order": "Animals: CAM meets the box better",
    "activation-order": "Animals: single filters meet the box better",
    "gradient-order": "Animals: gradients meet the box better",
    "detection-order": "Attacks are detected better with CSG",
    "detection-fgsm": "FGSM is detected better",
    "detection-pgd": "PGD is detected better",
    "accuracy-csg": "Accuracy of CSG",
    "accuracy-std": "Accuracy of standard training",
    "mis-csg": "Mutual information score of CSG",
    "mis-std": "Mutual information score, standard",
    "density-csg": "Density of the gate",
    "removed-csg": "Accuracy left on a class without its filters",
    "kept-csg": "Change on the other classes",
}


def forest(results: list[dict]) -> str:
    """The papers' claims that have an interval: differences around zero, values around the paper's own."""
    drawable = [c for c in results if c["source"] != OURS and c["low"] is not None and c["ours"] is not None]
    blocks = ""
    for title, rows in (
        ("Differences. The line is no difference.", [c for c in drawable if c["over"]]),
        ("Values. The line is the paper's value.", [c for c in drawable if not c["over"] and c["paper"] is not None]),
    ):
        if rows:
            blocks += f'<p class="forest-title">{title}</p><ul class="forest">{"".join(map(forest_row, rows))}</ul>'
    if not blocks:
        return "No claim has an interval yet: that takes two seeds of each side.\n"
    shapes = (("yes", "reproduced"), ("no", "contradicted"), ("open", "inconclusive or not judged"), ("paper", "the paper's value"))
    key = "".join(
        f'<span><svg class="drawn key" viewBox="0 0 20 20" aria-hidden="true">{drawings.mark(shape, 10)}</svg>{words}</span>'
        for shape, words in shapes
    )
    return raw(f'<div class="forests"><p class="forest-key">{key}</p>{blocks}</div>')


def forest_row(c: dict) -> str:
    zero = 0 if c["over"] else c["paper"]
    shape = {"none": "open"}.get(k := kind(c["verdict"]), k)
    plot = drawings.interval(c["low"], c["high"], c["ours"], shape, c["paper"], zero)
    digits = 3 if max(abs(c["low"]), abs(c["high"])) >= 0.1 else 4
    sign = "+" if c["over"] else ""
    told = f"{c['ours']:{sign}.{digits}f} <small>{c['low']:{sign}.{digits}f} to {c['high']:{sign}.{digits}f}</small>"
    label = html.escape(LABELS.get(c["id"], c["sentence"]))
    return (
        f'<li class="{shape}"><span class="forest-claim">{label}</span>{plot}<span class="forest-number">{told}</span>'
        f'<span class="forest-verdict">{html.escape(c["verdict"])}</span></li>'
    )


def pages(results: list[dict], runs: Runs) -> dict[str, str]:
    """The generated parts of the first page, by the name of the file that index.md includes."""
    return {
        "_idea.md": idea(runs),
        "_findings.md": findings(runs, results),
        "_verdicts.md": tally(results) + "\n" + forest(results),
    }
