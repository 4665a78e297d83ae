"""From runs to claims: the statistics that test the claims of claims.py, which runs may be compared, and how it is told.

Claims and tolerances are committed before the results that test them are known; rules.py has the rules.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

import numpy as np
import torch

from csgbook import measured
from csgbook.claims import CLAIMS, UNCONFIRMED, Claim
from csgbook.evidence import cut, leak, rules, schedules
from csgbook.evidence.answers import answer as answer  # pages ask for it here
from csgbook.evidence.from_images import class_matrix, reach
from csglib import networks
from csglib.analysis import attacks, metrics
from csglib.errors import Problem
from csglib.recipe import Recipe
from csglib.runs import Run

START = ("dataset", "net", "weights", "holdout", "batch_size")  # with the seed: first weights, and images in their order
SETTING = ("dataset", "holdout", "epochs", "lr", "lr_schedule", "precision", "loop")  # what both sides of a claim share
PRESUMED = Recipe(epochs=200, lr=0.1, lr_schedule="steps", weight_decay=1e-4)  # the paper's schedule; its text gives none


def information_overlap(run: Run) -> float:
    return metrics.overlap(metrics.information(run.readout), run.readout.gate)


def contrast(vectors: Callable[[Run], torch.Tensor], run: Run) -> float:
    """Mean |cos| within classes minus that between classes."""
    same, different = metrics.blocks(metrics.correlation(vectors(run)), metrics.owners(run.readout))
    return same - different


def last_weights(run: Run) -> torch.Tensor:
    """The weights of the last convolution, one row per filter (K x D)."""
    ordered = networks.build(run.recipe.net, len(run.readout.bias)).features.state_dict()  # a file's names are sorted otherwise
    name = [f"features.{name}" for name, w in ordered.items() if w.ndim == 4][-1]
    return run.weights[name].flatten(1)


def responses(run: Run) -> torch.Tensor:
    """The pooled activations on the test images, one row per filter (K x N)."""
    return run.readout.features.T


def removed_filters(run: Run) -> torch.Tensor:
    """Row c masks the filters of class c: those that it owns; without a gate the K/C, rounded up, that it excites most."""
    return metrics.class_filters(run.readout)


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
    "one_group": lambda run: cut.one_group(run.readout),
    "hoyer": lambda run: metrics.hoyer(run.readout.features),
    "reach": reach,
    "acc3": lambda run: metrics.clusters(run.readout, class_matrix(run))[1],
    "followed": lambda run: leak.of(run).followed,
    "by_own_row": lambda run: leak.of(run).by_logit,
    "gated_change": leak.gated_change,
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

HELD: dict[str, Callable[[Run], float]] = {  # values at which a method's own constraint and penalty hold a statistic
    "l1_density": lambda run: 1 / len(run.readout.bias),
}


def schedule(recipe: Recipe) -> str:
    """In words, since a verdict on another schedule than the paper's says so."""
    form = {"onecycle": "one-cycle", "steps": "step", "thirds": "three-step"}[recipe.lr_schedule]
    data = "" if recipe.dataset == "cifar10" else f"{recipe.dataset}, "
    return f"{data}{recipe.epochs} epoch{'s' * (recipe.epochs > 1)}, {form} learning-rate schedule"


def presumed(recipe: Recipe) -> bool:
    fields = ("dataset", "net", "epochs", "batch_size", "lr", "lr_schedule", "momentum", "weight_decay", "cycle", "warmup")
    return all(getattr(recipe, name) == getattr(PRESUMED, name) for name in fields)


def judge(claim: Claim, runs: dict[str, list[Run]]) -> dict:
    """One entry of results.json: the claim, our mean and interval over seeds, the verdict, and the runs behind it."""
    sides = runs.get(claim.of, []), runs.get(claim.over, []) if claim.over else []
    told = [[(run, value) for run in side if (value := STATISTICS[claim.metric](run)) is not None] for side in sides]
    refuse_mixed(claim, *([run for run, _ in side] for side in told))
    told, paired = by_seed(*told) if claim.over else (told, False)
    first, second = ([run for run, _ in side] for side in told)
    ours, other = (np.array([value for _, value in side], float) for side in told)
    used, n = first + second, min(len(ours), len(other)) if claim.over else len(ours)
    held = claim.metric in HELD and all(abs(v - HELD[claim.metric](r)) < 1e-5 for side in told for r, v in side)
    comparable = all(presumed(run.recipe) for run in used)
    ruling = rules.rule(claim, ours, other, paired, comparable, held)
    mean = (float(ours.mean() - other.mean()) if claim.over else float(ours.mean())) if n else None
    e = None if n < 2 else rules.of_difference(ours, other, paired) if claim.over else rules.of_mean(ours)
    low, high = map(float, e.interval()) if e else (None, None)
    return asdict(claim) | {
        "ours": mean,
        "low": low,
        "high": high,
        "n": n,
        "verdict": ruling.verdict,
        "direction": ruling.direction,
        "size": ruling.size,
        "tests": ruling.tests,
        "question": claim.question,
        "comparable": comparable,
        "held": held,
        "paired": paired,
        "values": [ours.tolist(), other.tolist()],
        "runs": [run.recipe.name for run in used],
        "keys": [run.recipe.key for run in used],
        "behind": [
            (name, run.recipe.seed, run.recipe.name) for name, side in ((claim.of, first), (claim.over, second)) for run in side
        ],
        "data": sorted({run.recipe.dataset for run in used}),
        "schedule": ", ".join(sorted({schedule(run.recipe) for run in used})) or None,
    }


def refuse_mixed(claim: Claim, first: list[Run], second: list[Run]) -> None:
    """Runs of one side differ in nothing but the seed, and no two in schedule, loop, precision or data."""
    every = [f.name for f in fields(Recipe) if f.name != "seed"]
    pairs = [(run, side[0], every) for side in (first, second) for run in side[1:]]
    for a, b, names in pairs + [(a, b, SETTING) for a in first[:1] for b in second[:1]]:
        told = {name: (getattr(a.recipe, name), getattr(b.recipe, name)) for name in names}
        told["data digest"] = tuple(str(run.provenance.get("data_digest"))[:16] for run in (a, b))
        if differ := [f"{name} ({x} and {y})" for name, (x, y) in told.items() if x != y]:
            raise Problem(
                f"claim {claim.id} cannot be judged by {a.recipe.name} and {b.recipe.name} together, which differ in "
                f"{', '.join(differ)}: train one of them again like the other"
            )


def by_seed(first: list[tuple[Run, float]], second: list[tuple[Run, float]]) -> tuple[list[list[tuple[Run, float]]], bool]:
    """As many runs of both sides, in the order of their seeds; and whether they are pairs.

    Two runs are a pair where their recipes give them the same first weights and the same images in the same order with the
    same augmentation: what their methods make of one start.  That is known before either is trained.
    """
    sides = [{run.recipe.seed: (run, value) for run, value in side} for side in (first, second)]
    alike = {tuple(getattr(run.recipe, name) for name in START) for run, _ in first + second}
    both = sorted(sides[0].keys() & sides[1].keys())
    least = min(map(len, sides))
    if len(alike) == 1 and len(both) >= min(rules.SEEDS, least):
        return [[side[seed] for seed in both] for side in sides], True
    return [[side[seed] for seed in sorted(side)[:least]] for side in sides], False


def of_page(page: str, *by_schedule: dict[str, list[Run]]) -> list[dict]:
    """The page's claims, judged by these runs; of several schedules, the longest first, by the longest that can decide."""
    return [longest(claim, by_schedule) for claim in CLAIMS if claim.page == page]


def longest(claim: Claim, by_schedule: Sequence[dict[str, list[Run]]]) -> dict:
    """Judged by the first schedule with enough seeds, else by that with most; the others stand under `also`."""
    entries = [judge(claim, runs) for runs in by_schedule]
    leads = next((e for e in entries if e["n"] >= rules.SEEDS), max(entries, key=lambda e: e["n"]))
    told = ("schedule", "ours", "low", "high", "n", "verdict", "behind")
    return leads | {"also": [{name: e[name] for name in told} for e in entries if e is not leads and e["n"]]}


def every(profile: str, folder: Path | str | None = None) -> list[dict]:
    """The list of results.json."""
    by_page = {page: schedules.found(page, profile, folder) for page in dict.fromkeys(claim.page for claim in CLAIMS)}
    return corrected([longest(claim, by_page[claim.page]) for claim in CLAIMS])


def corrected(judged: Sequence[dict]) -> list[dict]:
    """The whole list, each entry with those of its tests that survive Holm's correction over all tests of the list."""
    tests = [(i, name, p) for i, c in enumerate(judged) for name, p in c["tests"].items()]
    kept = rules.holm(np.array([p for *_, p in tests], float))
    survive = {(i, name) for (i, name, _), keep in zip(tests, kept, strict=True) if keep}
    return [c | {"holm": [name for name in c["tests"] if (i, name) in survive]} for i, c in enumerate(judged)]


def seeds(judged: dict) -> dict[str, list[str]]:
    """Links to the entries of the runs behind a claim, each under its experiment by its seed."""
    links: dict[str, list[str]] = {}
    for of, seed, name in judged["behind"]:
        links.setdefault(of, []).append(f"[{seed}](#run-{name})")
    return links


def ends(low: float, high: float, sign: str = "") -> str:
    """An interval, with as many digits as it takes to see on which side of zero it ends."""
    most = max(digits(v, 4) for v in (low, high))
    return f"{low:{sign}.{most}f} to {high:{sign}.{most}f}"


def end(value: float, sign: str, least: int) -> str:
    """One number, with as many digits as it takes to see on which side of zero it lies."""
    return f"{value:{sign}.{digits(value, least)}f}"


def digits(value: float, least: int) -> int:
    return next(d for d in range(least, 13) if abs(value) < rules.SAME or round(value, d))


def row(judged: dict, paper: str, sign: str) -> str:
    """What stands behind the verdict in the table: the numbers and the runs."""
    ours = "–" if judged["ours"] is None else f"{judged['ours']:{sign}.4f}"
    band = "–" if judged["low"] is None else ends(judged["low"], judged["high"], sign)
    runs = "; ".join(f"{of} {', '.join(links)}" for of, links in seeds(judged).items()) or "–"
    return f" | {paper} | {ours} | {band} | {runs} |"


def markdown(judged: Sequence[dict]) -> str:
    """The table of claims, in Markdown: above it the schedules of the runs, whose epochs stand in each row if they differ."""
    sources = list(dict.fromkeys(c["source"] for c in judged if c["source"]))
    every = {other["schedule"]: None for c in judged for other in [c, *c.get("also", ())] if other["ours"] is not None}
    several = len(every) > 1
    lines = [f"{'Runs' if several else 'All runs'}: {'; '.join(every)}.\n"] if every else []
    epochs = {schedule: schedule.rpartition(", ")[0] for schedule in every} if several else {}
    if len(set(epochs.values())) < len(epochs):
        epochs = {schedule: schedule for schedule in every}
    lines += ["| Claim | Verdict | Paper | Ours | 95 % interval | Seeds |", "|---|---|---|---|---|---|"]
    for c in judged:
        sign = "+" if c["over"] else ""
        paper = "–" if c["paper"] is None else f"{c['paper']:{sign}.4f}" + " (unconfirmed)" * (c["metric"] in UNCONFIRMED)
        mark = " †" * bool({"direction", "number"} & set(c.get("holm", ())))
        notes = [epochs[c["schedule"]]] if c["schedule"] in epochs else []
        notes += [f"source {sources.index(c['source']) + 1}"] if c["source"] else []
        notes += [f"tolerance {c['tolerance']:g}"] if c["tolerance"] else []
        about = f" *({', '.join(notes)})*" if notes else ""
        lines.append(f"| {c['sentence']}{about} | **{c['verdict']}**{mark}{row(c, paper, sign)}")
        for other in c.get("also", ()):
            after = f" after {epochs[other['schedule']]}" if other["schedule"] in epochs else ""
            lines.append(f"| *the same{after}* | {other['verdict']}{row(other, '', sign)}")
    listed = "\n".join(f"{i + 1}. {source[0].upper()}{source[1:]}." for i, source in enumerate(sources))
    return "\n".join(lines) + f"\n\nSources of the claims and of the paper's numbers:\n\n{listed}\n"
