"""The first page of the book: the idea in a picture, what was found, how the claims fared.  From runs and verdicts to Markdown.

Sentences are written here, their numbers come from the runs; where a number no longer bears a headline, a plain one stands in.
"""

import html
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from csgbook import measured
from csgbook.claims import CLAIMS
from csgbook.embed import raw, sprite
from csgbook.evidence import use, verdicts
from csgbook.evidence.cut import one_group_loss
from csgbook.evidence.verdicts import removed
from csgbook.pages import drawings
from csgbook.pages.scoreboard import forest, tally
from csgbook.pages.tables import percent
from csglib import data, paths
from csglib.analysis import metrics
from csglib.runs import Run

Runs = dict[str, list[Run]]  # std, matched, csg
NAMES = {"std": "standard", "matched": "matched", "csg": "CSG"}
RANKS = {0: "most mixed", 0.1: "1 in 10", 0.25: "1 in 4", 0.5: "median"}  # filters with pictures beneath the drawing
ABSENT = "The runs that would show this are not here yet; {doc}`runs` lists those that are.\n"


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
        f"Two networks of ours, ResNet-20 on CIFAR-10, seed {pair['csg'].recipe.seed}. A line leads from a filter to a class "
        "whose prediction it supports, the stronger the more; point at a class to follow its lines. Over all seeds, "
        f"{percent(links['std'])} of a class's support comes from filters of its own colour on the left, "
        f"{percent(links['csg'])} on the right. Beneath, the images that excite a filter most: filters are ranked by how "
        "mixed these images are, and four ranks are shown. A dashed frame: not the filter's class. Of all "
        f"filters' six most exciting test images, {percent(shares['std'])} and {percent(shares['csg'])} show the filter's "
        "class."
    )
    told = f"<figcaption>{html.escape(caption)}</figcaption>"
    return raw(f'<figure class="idea"><div class="idea-panels">{panels}</div>{told}</figure>')


def places(run: Run) -> np.ndarray:
    """Where the embedded sample's test images stand in a run's readout."""
    if run.recipe.dataset == "cifar10":
        return np.fromfile(paths.ROOT / "data" / "cifar10-mini" / "test.index", "<u2").astype(int)
    return np.arange(len(run.readout.labels))


def mixed(run: Run, among: int = 20) -> list[int]:
    """Filters in the order of how few of their most exciting test images show their own class."""
    r = run.readout
    best = r.features.argsort(dim=0, descending=True, stable=True)[:among]
    pure = (r.labels[best] == metrics.owners(r)).double().mean(0)
    return pure.argsort(stable=True).tolist()


def exciting(run: Run, top: int = 6) -> str:
    """Rows of pictures that excite a filter most, from the most mixed filter to the median one."""
    r, mini = run.readout, data.load("cifar10-mini").test
    a, own, order = r.features[places(run)], metrics.owners(r), mixed(run)
    rows = ""
    for share, name in RANKS.items():
        k = order[int(share * len(order))]
        best = a[:, k].argsort(descending=True, stable=True)[:top]
        cells = "".join(
            f'<span class="thumb class-{y}{" foreign" * (y != own[k])}" role="img" aria-label="{data.CLASSES[y]}" '
            f'style="background-position:-{44 * j}px 0"></span>'
            for j, y in enumerate(mini.labels[best].tolist())
        )
        rows += (
            f'<div class="exciting" style="--sprite:url({sprite(mini.images[best], top)});--across:{top}">'
            f"<p>{data.CLASSES[own[k]]} <small>{name}</small></p>{cells}</div>"
        )
    return rows


# What was found


@dataclass(frozen=True)
class Finding:
    headline: str  # where it holds
    otherwise: str
    measure: Callable[[Run], float]
    told: str  # a format of the mean
    holds: Callable[[dict[str, float], Runs], bool]  # of the means by network, and the runs
    sentence: Callable[[dict[str, float], Runs], str]  # of the means and the runs


def points(x: float) -> str:
    return f"{abs(100 * x):.1f} points"


def moved(x: float) -> str:
    return f"{'rises' if x > 0 else 'falls'} by {points(x)}"


def side(x: float) -> str:
    return "higher" if x > 0 else "lower"


def removal_told(m: dict[str, float], runs: Runs) -> str:
    others = np.mean([removed(run)[1] - run.metrics["accuracy"] for run in runs["csg"]])
    return (
        f"Switch off the filters of a class: CSG's network still recognises {percent(m['csg'], 1)} of its images, and "
        f"accuracy on the other classes {moved(others)}. A standard network without as many filters still recognises "
        f"{percent(m['std'])}. "
        "{doc}`More <filter-removal>`."
    )


def group_told(m: dict[str, float], runs: Runs) -> str:
    return (
        f"Let each class see its own filters alone, without retraining: CSG's accuracy {moved(-m['csg'])}, the standard "
        f"network's by {abs(100 * m['std']):.1f}, even with its filters given to classes in the better of two ways. "
        "{doc}`Move it <explore>`, with the networks that the page names."
    )


def information_told(m: dict[str, float], runs: Runs) -> str:
    sparse = {name: np.mean([metrics.hoyer(run.readout.features) for run in runs[name]]) for name in ("std", "csg")}
    more = m["csg"] / m["std"] - 1
    against = f"({sparse['csg']:.2f} against {sparse['std']:.2f})"
    if sparse["csg"] < sparse["std"]:
        told = f"Yet an image's features are *less* sparse {against}, though the authors' figures show the opposite"
    else:
        told = f"An image's features are hardly sparser {against}"
    return (
        f"Their mutual information with it is {percent(abs(more))} {side(more)} than after standard training. {told}: "
        "a filter that is not used for a class may still fire for it. {ref}`Why <use-is-not-firing>`."
    )


def price_told(m: dict[str, float], runs: Runs) -> str:
    gap, paper = m["csg"] - m["std"], next(c.paper for c in CLAIMS if c.id == "accuracy-order")
    chance = by_chance(runs["csg"], runs["std"])
    told = f"CSG classifies {points(gap)} {better(gap)} than standard training"
    if chance:
        told = f"CSG's accuracy cannot be told from that of standard training ({100 * gap:+.2f} points)".replace("-", "−")
    text = (
        f"{told}; the paper reports {points(paper)} {better(paper)}. Against its own standard epochs alone (*matched*) it "
        f"{moved(m['csg'] - m['matched'])}"
    )
    if by_chance(runs["csg"], runs["matched"]):
        text += ", which may be chance"
        if gap < 0 and not chance:
            text += ": most of the price is the epochs that the gate takes, not the gate"
    return text + ". {doc}`More <table1>`."


def better(x: float) -> str:
    return "better" if x > 0 else "worse"


def by_chance(a: list[Run], b: list[Run]) -> bool:
    """Whether Student's 95 % interval of the difference in accuracy, paired by seed, holds zero; needs two seeds."""
    other = {run.recipe.seed: run.metrics["accuracy"] for run in b}
    gaps = [run.metrics["accuracy"] - other[run.recipe.seed] for run in a if run.recipe.seed in other]
    return len(gaps) > 1 and bool(stats.ttest_1samp(gaps, 0).pvalue > 0.05)


FINDINGS = (
    Finding(
        "Without its filters a class is all but lost", "Removing a class's filters",  # below the chance level of ten classes
        lambda run: removed(run)[0], "{:.3f}", lambda m, runs: m["csg"] < 0.1 < m["std"], removal_told,
    ),
    Finding(
        "One group of filters is enough for a class", "One group of filters for each class",
        lambda run: one_group_loss(run.readout), "{:.3f}", lambda m, runs: m["csg"] < 0.02 < m["std"], group_told,
    ),
    Finding(
        "Filters tell more about their class", "What filters tell about their class",
        lambda run: run.metrics["mis"], "{:.3f}", lambda m, runs: m["csg"] > max(m["std"], m["matched"]), information_told,
    ),
    Finding(
        "Here it costs accuracy", "What it does to accuracy",
        lambda run: run.metrics["accuracy"], "{:.4f}",
        lambda m, runs: m["csg"] < m["std"] and not by_chance(runs["csg"], runs["std"]), price_told,
    ),
)  # fmt: skip
AXES = ("accuracy left on the class", "accuracy lost", "mutual information score, nats", "test accuracy")


def findings(runs: Runs, longer: Runs) -> str:
    """Four cards: a headline, the seeds it rests on, a sentence."""
    runs = {name: runs.get(name, []) for name in NAMES}
    if not all(runs.values()):
        return ABSENT
    intro = (
        "Three networks, one mark per seed: standard training, CSG, and the control *matched*, which trains CSG's standard "
        "epochs and leaves the gated ones out.\n"
    )
    cards = [intro, "::::{grid} 1 1 2 2", ":gutter: 3", ":class-container: findings", ""]
    for finding, axis in zip(FINDINGS, AXES, strict=True):
        values = {name: [finding.measure(run) for run in group] for name, group in runs.items()}
        means = {name: float(np.mean(group)) for name, group in values.items()}
        told = {name: finding.told.format(mean) for name, mean in means.items()}
        title = f"{axis}: " + ", ".join(f"{NAMES[name]} {told[name]}" for name in NAMES)
        head = finding.headline if finding.holds(means, runs) else finding.otherwise
        plot = f'<p class="finding-axis">{axis}</p>{drawings.seeds(values, NAMES, told, title)}'
        cards += [f":::{{grid-item-card}} {head}", raw(plot), finding.sentence(means, runs), ":::", ""]
    return "\n".join([*cards, "::::", "", schedule_told(runs, longer)])


def schedule_told(runs: Runs, longer: Runs) -> str:
    """What the numbers above may owe to their schedule, as a box; `longer` are runs on the paper's, as far as there are any."""
    recipe, paper, n = runs["csg"][0].recipe, verdicts.PRESUMED, min(len(group) for group in runs.values())
    if verdicts.presumed(recipe):
        return (
            f"These networks were trained for {recipe.epochs} epochs, the schedule to which the paper's accuracy points. After "
            "fewer epochs some of this comes out otherwise: {doc}`table1` shows how each difference moves.\n"
        )
    form = {
        "onecycle": "a one-cycle learning-rate schedule",
        "steps": "a learning rate that drops in steps",
        "thirds": "a learning rate that drops at each third",
    }
    text = (
        f"These networks were trained for {recipe.epochs} epochs with {form[recipe.lr_schedule]}, {n} seed{'s' * (n > 1)} per "
        f"network. The paper's accuracy points to {paper.epochs} epochs with {form[paper.lr_schedule]}"
    )
    told = [
        f"{NAMES[name]} {mean(group, 'accuracy'):.4f} and {mean(group, 'mis'):.3f} nats ({len(group)} "
        f"seed{'s' * (len(group) > 1)})"
        for name in NAMES
        if (group := longer.get(name))
    ]
    so_far = f". Ours on that schedule so far, accuracy and mutual information score: {'; '.join(told)}"
    text += so_far if told else ", and no run of that length is part of this book yet"
    if longer.get("std") and longer.get("csg"):
        return box(f"{text}.")
    other = measured.read("third-party-resnet20")["metrics"]
    return box(
        f"{text}. Directions may carry over, sizes need not: a standard network that others trained to "
        f"{other['accuracy']:.4f} has a mutual information score of {other['mis']:.3f}, ours at "
        f"{mean(runs['std'], 'accuracy'):.4f} one of {mean(runs['std'], 'mis'):.3f}."
    )


def mean(group: list[Run], metric: str) -> float:
    return float(np.mean([run.metrics[metric] for run in group]))


def box(text: str) -> str:
    return f":::{{admonition}} A short schedule\n:class: warning\n{text}\n:::\n"


# How the claims fared


def pages(results: list[dict], runs: Runs, longer: Runs) -> dict[str, str]:
    """The generated parts of the first page, by the name of the file that index.md includes."""
    return {
        "_idea.md": idea(runs),
        "_findings.md": findings(runs, longer),
        "_verdicts.md": tally(results) + "\n" + forest(results),
    }
