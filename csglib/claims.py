"""Claims: one sentence each, the statistic that tests it, the paper's number with its source, the rule for the verdict.

Claims and rules are committed before the results that test them are known.

- numeric: reproduced where the paper's value lies in our 95 % interval over at least three seeds (of two it is wide enough for
  anything) or within the claim's tolerance of our mean; contradicted where, on the schedule that we presume to be the paper's
  with at least three seeds, neither holds.
- ordering: with at least three seeds of each side, reproduced where the bootstrap probability that the first mean exceeds the
  second is at least 0.95, contradicted where it is at most 0.05; with a tolerance, that it exceeds the second less that much.
- otherwise inconclusive; "not run here" without runs, "no number" where the paper's value has no source.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product

import numpy as np
import torch
from scipy import stats

from csglib import metrics, nets
from csglib.runs import Recipe, Run
from csglib.train import fitted_matrix, sample_maps

PRESUMED = Recipe(epochs=200, lr=0.1, lr_schedule="steps", weight_decay=1e-4)  # the paper's schedule; its text gives none
SECOND_HAND = "third-party transcription (NeverGiveU/NNInterpretation, demos/CSG, column val_in_paper)"
SWAPPED = "for the density the same, its two values taken as swapped, since 0.0788 < 1/C lies outside the feasible set"
REDRAWN = "the paper's figure of gate and filter-class matrices, as the same third party redraws it; no number"
NOTEBOOK = "figures in the authors' earlier research code (hyliang96/ICNN); no table"
RECALLED = "recalled, read in no source"
OURS = "a question of this book, not of the paper"
ABSTRACT = "abstract of PICNN (Guo et al., AAAI 2024), whose tables were not at hand; no number"
ICNN = "the aim of ICNN's loss (Zhang et al., CVPR 2018), whose tables were not at hand; no number"


@dataclass(frozen=True)
class Claim:
    id: str
    page: str  # whose runs test it
    sentence: str
    metric: str  # a key of STATISTICS
    of: str  # the experiment that is measured
    over: str | None = None  # for an ordering: the experiment whose metric should be smaller
    paper: float | None = None  # the paper's value; for an ordering the difference of its two values
    source: str | None = None  # where the claim or its value was read; a value without one is not used
    tolerance: float | None = (
        None  # half-width around our mean within which the value counts; of an ordering, how far below the first may lie
    )
    answer: str | None = None  # the words for {ours} in the page's one-sentence answer; None leaves the claim out of it


CLAIMS = (
    Claim(
        "accuracy-csg", "table1", "ResNet-20 trained with CSG classifies CIFAR-10 with an accuracy of 0.9192.",
        "accuracy", "csg", paper=0.9192, source=SECOND_HAND, tolerance=0.005,
    ),
    Claim(
        "accuracy-std", "table1", "The same network trained as usual reaches 0.9169.",
        "accuracy", "std", paper=0.9169, source=SECOND_HAND, tolerance=0.005,
    ),
    Claim(
        "accuracy-order", "table1", "CSG classifies better than standard training.",
        "accuracy", "csg", over="std", paper=0.0023, source=SECOND_HAND,
        answer="CSG's accuracy differs from that of standard training by {ours:+.4f}",
    ),
    Claim(
        "accuracy-matched", "table1", "CSG classifies better than the same number of standard epochs without the gated ones.",
        "accuracy", "csg", over="matched", source=OURS,
        answer="from that of its own standard epochs alone by {ours:+.4f}",
    ),
    Claim(
        "mis-csg", "table1", "The mutual information score of the CSG network is 0.1603 nats.",
        "mis", "csg", paper=0.1603, source=SECOND_HAND, tolerance=0.01,
    ),
    Claim(
        "mis-std", "table1", "That of the standard network is 0.1119 nats.",
        "mis", "std", paper=0.1119, source=SECOND_HAND, tolerance=0.01,
    ),
    Claim(
        "mis-order", "table1", "CSG's filters say more about the class than those of standard training.",
        "mis", "csg", over="std", paper=0.0484, source=SECOND_HAND,
        answer="its mutual information score by {ours:+.4f} nats",
    ),
    Claim(
        "mis-matched", "table1", "They say more than those of the same number of standard epochs without the gated ones.",
        "mis", "csg", over="matched", source=OURS,
    ),
    Claim(
        "density-csg", "table1", "The gate ends at an L1-density of 0.1: each filter serves one class.",
        "l1_density", "csg", paper=0.1, source=SWAPPED, tolerance=0.005,
    ),
    Claim(
        "alternate-order", "training-curves", "Alternating the two paths trains a better classifier than minimising their sum.",
        "accuracy", "alternating", over="joint", source=RECALLED,
        answer="alternating the paths instead of adding their losses changes the accuracy by {ours:+.4f}",
    ),
    Claim(
        "overlap-order", "gate-and-information",
        "CSG's information lies where its gate is open, more than a standard network's lies on each filter's best class.",
        "overlap", "csg", over="std", source=REDRAWN,
        answer="the share of the filters' information that lies on one class each is larger by {ours:+.3f} with CSG",
    ),
    Claim(
        "weights-order", "filter-correlation",
        "The weights of filters of one class resemble each other, more than those of different classes: more so with CSG.",
        "weight_contrast", "csg", over="std", source=NOTEBOOK,
        answer="CSG changes the contrast between |cos| within and between classes by {ours:+.3f} for the weights",
    ),
    Claim(
        "responses-order", "filter-correlation",
        "The responses of filters of one class resemble each other, more than those of different classes: more so with CSG.",
        "response_contrast", "csg", over="std", source=OURS,
        answer="by {ours:+.3f} for the responses",
    ),
    Claim(
        "removed-csg", "filter-removal", "Without the filters of a class, CSG's network no longer recognises that class.",
        "removed_own", "csg", paper=0.0, source=NOTEBOOK, tolerance=0.01,
        answer="CSG's network has {ours:.3f} accuracy left on a class whose filters are removed",
    ),
    Claim(
        "kept-csg", "filter-removal", "The accuracy on the other classes stays.",
        "removed_gain", "csg", paper=0.0, source=NOTEBOOK, tolerance=0.01,
        answer="and its accuracy on the others changes by {ours:+.3f}",
    ),
    Claim(
        "removed-order", "filter-removal",
        "A standard network still recognises a class without the seven filters that it excites most, better than CSG's does.",
        "removed_own", "std", over="csg", source=NOTEBOOK,
    ),
    Claim(
        "centre-order", "representation",
        "The centre of a class excites its own filters, a larger share than in a standard network.",
        "own_share", "csg", over="std", source=NOTEBOOK,
        answer="with CSG the share of a class centre that lies in the filters of the class changes by {ours:+.3f}",
    ),
    Claim(
        "sparse-order", "representation", "The features of an image are sparser than in a standard network.",
        "hoyer", "csg", over="std", source=NOTEBOOK,
        answer="the sparsity of an image's features by {ours:+.3f}",
    ),
    Claim(
        "learned-mis", "what-matters", "A learned gate makes filters more informative than one drawn at random and fixed.",
        "mis", "alternating", over="random", source=OURS,
        answer="learning the gate instead of drawing it at random changes the mutual information score by {ours:+.4f} nats",
    ),
    Claim(
        "learned-accuracy", "what-matters", "A learned gate makes a better classifier than one drawn at random and fixed.",
        "accuracy", "alternating", over="random", source=OURS,
        answer="the accuracy by {ours:+.4f}",
    ),
    Claim(
        "meaning-mis", "what-matters", "A random gate that follows the class informs more than one dealt to the wrong images.",
        "mis", "random", over="shuffled", source=OURS,
    ),
    Claim(
        "picnn-mis", "picnn", "PICNN's filters say more about the class than those of standard training.",
        "mis", "picnn", over="std", source=ABSTRACT,
        answer="PICNN's mutual information score differs from that of standard training by {ours:+.4f} nats",
    ),
    Claim(
        "picnn-accuracy", "picnn", "Its accuracy is higher, equal, or at most half a point lower.",
        "accuracy", "picnn", over="std", source=ABSTRACT, tolerance=0.005,
        answer="its accuracy by {ours:+.4f}",
    ),
    Claim(
        "picnn-cluster", "picnn",
        "Without the filters of the true class PICNN's network is wrong more often than the standard one.",
        "acc3", "std", over="picnn", source=OURS,
    ),
    Claim(
        "picnn-learned", "picnn", "A learned correspondence makes filters more informative than one dealt out beforehand.",
        "mis", "picnn", over="picnn-random", source=OURS,
    ),
    Claim(
        "icnn-place", "icnn", "ICNN's filters fire in one place of the map: their activation reaches less far.",
        "reach", "std", over="icnn", source=ICNN,
        answer="standard training lets a filter's activation reach {ours:+.2f} pixels of the map further than ICNN does",
    ),
    Claim(
        "icnn-mis", "icnn", "Its filters fire for one class each, and so say more about it than those of standard training.",
        "mis", "icnn", over="std", source=ICNN,
        answer="ICNN's mutual information score differs from that of standard training by {ours:+.4f} nats",
    ),
    Claim(
        "which-mis", "which-one", "PICNN's filters say more about the class than CSG's.",
        "mis", "picnn", over="csg", source=OURS,
        answer="PICNN's mutual information score differs from CSG's by {ours:+.4f} nats",
    ),
    Claim(
        "which-accuracy", "which-one", "PICNN classifies better than CSG.",
        "accuracy", "picnn", over="csg", source=OURS,
        answer="its accuracy by {ours:+.4f}",
    ),
    Claim(
        "which-fixed", "which-one", "CSG's learned gate makes filters more informative than one dealt out beforehand.",
        "mis", "csg", over="fixed", source=OURS,
    ),
    Claim(
        "which-joint", "which-one", "Taking turns makes filters more informative than adding the losses of both paths.",
        "mis", "csg", over="csg-joint", source=OURS,
    ),
)  # fmt: skip


def information_overlap(run: Run) -> float:
    return metrics.overlap(metrics.information(run.readout), run.readout.gate)


def class_matrix(run: Run) -> torch.Tensor:
    """The run's gate; for a network without one, each filter to the class whose training images excite it most."""
    return fitted_matrix(run) if run.readout.gate is None else run.readout.gate


def contrast(vectors: Callable[[Run], torch.Tensor], run: Run) -> float:
    """Mean |cos| within classes minus that between classes."""
    same, different = metrics.blocks(metrics.correlation(vectors(run)), metrics.owners(run.readout))
    return same - different


def last_weights(run: Run) -> torch.Tensor:
    """The weights of the last convolution, one row a filter (K x D)."""
    ordered = nets.build(run.recipe.net, len(run.readout.bias)).features.state_dict()  # a file's names are sorted otherwise
    name = [f"features.{name}" for name, w in ordered.items() if w.ndim == 4][-1]
    return run.weights[name].flatten(1)


def responses(run: Run) -> torch.Tensor:
    """The pooled activations on the test images, one row a filter (K x N)."""
    return run.readout.features.T


def removed_filters(run: Run) -> torch.Tensor:
    """Row c masks the filters of class c: those that it owns; without a gate the K/C, rounded up, that it excites most."""
    C, K = run.readout.weight.shape
    if run.readout.gate is not None:
        return metrics.own_filters(run.readout)
    return metrics.most_active(run.readout, torch.full((C,), math.ceil(K / C)))


def removed(run: Run) -> tuple[float, float]:
    """Mean accuracy on the class whose filters are removed, and on the others."""
    return metrics.own_and_others(metrics.removal(run.readout, removed_filters(run)))


def stored(name: str, run: Run) -> float | None:
    return run.metrics[name]


STATISTICS: dict[str, Callable[[Run], float | None]] = {
    "accuracy": partial(stored, "accuracy"),
    "mis": partial(stored, "mis"),
    "l1_density": partial(stored, "l1_density"),
    "overlap": information_overlap,
    "weight_contrast": partial(contrast, last_weights),
    "response_contrast": partial(contrast, responses),
    "removed_own": lambda run: removed(run)[0],
    "removed_gain": lambda run: removed(run)[1] - run.metrics["accuracy"],
    "own_share": lambda run: metrics.own_share(run.readout),
    "hoyer": lambda run: metrics.hoyer(run.readout.features),
    "reach": lambda run: metrics.reach(sample_maps(run)).nanmean().item(),
    "acc3": lambda run: metrics.clusters(run.readout, class_matrix(run))[1],
}


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95 % interval of the mean over seeds; None for fewer than two."""
    if len(values) < 2:
        return None
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def probability(a: Sequence[float], b: Sequence[float], draws: int = 20_000) -> float:
    """Bootstrap probability over seeds that mean(a) > mean(b), ties counted half: all resamples if few, else seeded draws."""

    def means(x: Sequence[float]) -> np.ndarray:
        n = len(x)
        rng = np.random.default_rng(0)  # the same for both sides, so that they may change places
        if n**n <= draws:
            return np.array([np.mean(s) for s in product(sorted(x), repeat=n)])
        return np.sort(rng.choice(np.sort(x), (draws, n)).mean(1))

    first, second = means(a), np.sort(means(b))
    below = np.searchsorted(second, first - 1e-12, "left")  # equal means may differ in the last digits
    upto = np.searchsorted(second, first + 1e-12, "right")
    return float(np.mean(below + upto) / (2 * len(second)))


def verdict(claim: Claim, ours: Sequence[float], other: Sequence[float], presumed_schedule: bool) -> str:
    if not len(ours) or (claim.over and not len(other)):
        return "not run here"
    if claim.over:
        if min(len(ours), len(other)) < 3:
            return "inconclusive"
        p = probability([value + (claim.tolerance or 0) for value in ours], other)
        return "reproduced" if p >= 0.95 else "contradicted" if p <= 0.05 else "inconclusive"
    if claim.paper is None or claim.source is None:
        return "no number"
    band = interval(ours)
    inside = len(ours) >= 3 and band[0] <= claim.paper <= band[1]
    if inside or abs(np.mean(ours) - claim.paper) <= (claim.tolerance or 0):
        return "reproduced"
    return "contradicted" if presumed_schedule and len(ours) >= 3 else "inconclusive"


def schedule(recipe: Recipe) -> str:
    """In words, since a verdict on another schedule than the paper's says so."""
    form = {"onecycle": "one cycle", "steps": "steps"}[recipe.lr_schedule]
    data = "" if recipe.dataset == "cifar10" else f"{recipe.dataset}, "
    return f"{data}{recipe.epochs} epochs, {form}"


def presumed(recipe: Recipe) -> bool:
    fields = ("dataset", "net", "epochs", "batch_size", "lr", "lr_schedule", "momentum", "weight_decay", "cycle", "warmup")
    return all(getattr(recipe, name) == getattr(PRESUMED, name) for name in fields)


def judge(claim: Claim, runs: dict[str, list[Run]]) -> dict:
    """One entry of results.json: the claim, our mean and interval over seeds, the verdict, and the runs behind it."""
    first, second = runs.get(claim.of, []), runs.get(claim.over, []) if claim.over else []
    ours, other = ([STATISTICS[claim.metric](run) for run in side] for side in (first, second))
    used = first + second
    mean, band = (float(np.mean(ours)) if ours else None), interval(ours)
    if claim.over:  # the difference of means, with Welch's interval
        mean = float(np.mean(ours) - np.mean(other)) if ours and other else None
        band = None
        if min(len(ours), len(other)) >= 2:
            welch = stats.ttest_ind(ours, other, equal_var=False).confidence_interval(0.95)
            band = (float(welch.low), float(welch.high))
    return asdict(claim) | {
        "ours": mean,
        "low": band and band[0],
        "high": band and band[1],
        "n": min(len(ours), len(other)) if claim.over else len(ours),
        "verdict": verdict(claim, ours, other, all(presumed(run.recipe) for run in used)),
        "runs": [run.recipe.name for run in used],
        "keys": [run.recipe.key for run in used],
        "behind": [
            (name, run.recipe.seed, run.recipe.name) for name, side in ((claim.of, first), (claim.over, second)) for run in side
        ],
        "schedule": ", ".join(sorted({schedule(run.recipe) for run in used})) or None,
    }


RERUN = {  # the numbers of the third party's own run, in the same table; its two densities taken as swapped
    "csg": {"accuracy": 0.9177, "mis": 0.1264, "l1_density": 0.0788},
    "std": {"accuracy": 0.9194, "mis": 0.0883},
}


def paper_values(page: str) -> dict[str, dict[str, float]]:
    """The paper's numbers of one page: experiment -> metric -> value."""
    values: dict[str, dict[str, float]] = {}
    for claim in CLAIMS:
        if claim.page == page and claim.over is None and claim.paper is not None:
            values.setdefault(claim.of, {})[claim.metric] = claim.paper
    return values


def of_page(page: str, runs: dict[str, list[Run]]) -> list[dict]:
    """The page's claims, judged by these runs."""
    return [judge(claim, runs) for claim in CLAIMS if claim.page == page]


def answer(judged: Sequence[dict]) -> str:
    """What a page's claims say, in one sentence."""
    told = [c for c in judged if c["answer"]]
    if not told or any(c["ours"] is None for c in told):
        return "**Not answered yet:** the runs that would tell are not here."
    parts = [f"{c['answer'].format(ours=c['ours'])} ({c['verdict']}, {c['n']} seed{'s' * (c['n'] > 1)})" for c in told]
    text = ", ".join(parts).replace(", and ", " and ")
    return f"**After {told[0]['schedule']}: {text}.**"


def seeds(judged: dict) -> dict[str, list[str]]:
    """Links to the entries of the runs behind a claim, each under its experiment by its seed."""
    links: dict[str, list[str]] = {}
    for of, seed, name in judged["behind"]:
        links.setdefault(of, []).append(f"[{seed}](#run-{name})")
    return links


def markdown(judged: Sequence[dict]) -> str:
    """The table of claims, in Markdown."""
    sources = list(dict.fromkeys(c["source"] for c in judged if c["source"]))
    lines = ["| Claim | Verdict | Paper | Ours | 95 % interval | Seeds |", "|---|---|---|---|---|---|"]
    for c in judged:
        sign = "+" if c["over"] else ""
        paper = "–" if c["paper"] is None else f"{c['paper']:{sign}.4f}"
        ours = "–" if c["ours"] is None else f"{c['ours']:{sign}.4f}"
        band = "–" if c["low"] is None else f"{c['low']:{sign}.4f} to {c['high']:{sign}.4f}"
        note = f" ({c['schedule']})" if c["ours"] is not None else ""
        runs = "; ".join(f"{of} {', '.join(links)}" for of, links in seeds(c).items()) or "–"
        notes = [f"source {sources.index(c['source']) + 1}"] if c["source"] else []
        notes += [f"tolerance {c['tolerance']:g}"] if c["tolerance"] else []
        about = f" *({', '.join(notes)})*" if notes else ""
        lines.append(f"| {c['sentence']}{about} | **{c['verdict']}**{note} | {paper} | {ours} | {band} | {runs} |")
    listed = "\n".join(f"{i + 1}. {source[0].upper()}{source[1:]}." for i, source in enumerate(sources))
    return "\n".join(lines) + f"\n\nSources of the claims and of the paper's numbers:\n\n{listed}\n"
