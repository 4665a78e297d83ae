"""From runs to verdicts: the statistics that test the claims of papers.py, the rules, and how both are told.

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
from dataclasses import asdict
from functools import partial
from itertools import product

import numpy as np
import torch
from scipy import stats

from csglib import attacks, measured, metrics, nets
from csglib.papers import CLAIMS, Claim
from csglib.runs import Recipe, Run
from csglib.train import fitted_matrix, sample_maps

PRESUMED = Recipe(epochs=200, lr=0.1, lr_schedule="steps", weight_decay=1e-4)  # the paper's schedule; its text gives none


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


def detection_error(attack: str, run: Run) -> float | None:
    """Mean error over splits and sizes of the training set; of the attack `any` over all but the adaptive one."""
    found = measured.of("detection", run)
    names = attacks.ATTACKS if attack == "any" else (attack,)
    return found and float(np.mean([errors for name in names for errors in found["attacks"][name]["errors"].values()]))


def located(kind: str, score: str, crop: str, run: Run) -> float | None:
    """A score of tools/localisation.py, of crops `tight` as the paper's or `wide` with the photograph around the object."""
    found = measured.of("localisation", run)
    return found and found["crops"][crop][kind][score]


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
    "cam_iou": partial(located, "cam", "iou", "tight"),
    "activation_iou": partial(located, "activation", "iou", "tight"),
    "firing_iou": partial(located, "firing", "iou", "tight"),
    "gradient_iou": partial(located, "gradient", "iou", "tight"),
    "box_accuracy": partial(located, "cam", "box_accuracy", "wide"),
    "detection": partial(detection_error, "any"),
    "detection_fgsm": partial(detection_error, "fgsm"),
    "detection_bim": partial(detection_error, "bim"),
    "detection_mim": partial(detection_error, "mim"),
    "detection_pgd": partial(detection_error, "pgd"),
    "detection_match": partial(detection_error, "match"),
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
    sides = runs.get(claim.of, []), runs.get(claim.over, []) if claim.over else []
    told = [[(run, value) for run in side if (value := STATISTICS[claim.metric](run)) is not None] for side in sides]
    first, second = ([run for run, _ in side] for side in told)
    ours, other = ([value for _, value in side] for side in told)
    used = first + second
    mean, band = (float(np.mean(ours)) if ours else None), interval(ours)
    if claim.over:  # the difference of means, with Welch's interval
        mean = float(np.mean(ours) - np.mean(other)) if ours and other else None
        band = None
        if min(len(ours), len(other)) >= 2 and np.ptp([*ours, *other]) < 1e-12:
            band = (mean, mean)  # all alike but for rounding
        elif min(len(ours), len(other)) >= 2:
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
