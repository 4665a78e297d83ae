"""Tables and sentences of the page on the gate's leak; leak.py computes what they tell, leak_figures.py draws it."""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
from IPython.display import Markdown

from csgbook import measured
from csgbook.evidence import leak, rules, verdicts
from csgbook.evidence.leak import Rows
from csgbook.pages.tables import commit, percent
from csglib.analysis import metrics
from csglib.runs import Run

Runs = dict[str, list[Run]]
HEADS = {  # of the short answer, by how often at least the gated path names a wrong row's class
    0.9: "**Yes: the gated path answers with the class whose row it is given, whatever the image shows.**",
    0.5: "**In part: the gated path names the class whose row it is given more often than not.**",
    0.0: "**Not in these runs: the gated path seldom names the class whose row it is given.**",
}
SHOWN = {  # what each field of Rows is called
    "ungated": "no gate",
    "label": "label's row",
    "predicted": "predicted class's row",
    "wrong": "wrong row: names the true class",
    "followed": "wrong row: names the row's class",
    "by_logit": "no label: largest own logit",
    "by_probability": "no label: largest own probability",
    "without_image": "no image: names the row's class",
}
MASKED = {"csg": "CSG", "meaningless": "CSG, gate shuffled", "std": "standard, masked"}
GROUPS = {"random": "random labels", "true": "true labels"}


def told(values: Iterable[float], digits: int = 3, sign: str = "", share: bool = True) -> str:
    """Mean and 95 % interval over seeds; of a share the interval ends at 0 and 1."""
    values = [v for v in values if not np.isnan(v)]
    if not values:
        return "–"
    mean, interval = f"{np.mean(values):{sign}.{digits}f}", rules.interval(values)
    if interval is None:
        return mean
    low, high = np.clip(interval, 0, 1) if share and not sign else interval
    return f"{mean} ({low:{sign}.{digits}f}\u00a0to\u00a0{high:{sign}.{digits}f})"  # breaks before the bracket alone


def table(rows: dict[str, dict[str, str]], corner: str) -> Markdown:
    """Row name -> column name -> text."""
    frame = pd.DataFrame([{corner: name} | row for name, row in rows.items()])
    return Markdown(frame.to_markdown(index=False, disable_numparse=True))


def masked(runs: Runs) -> dict[str, list[Rows]]:
    """CSG under its gate, CSG under that gate with its filters shuffled, and standard networks masked; one entry per seed."""
    csg = [run.readout for run in runs.get("csg", [])]
    return {
        "csg": [leak.measure(r, r.gate) for r in csg],
        "meaningless": [leak.measure(r, leak.without_meaning(r.gate)) for r in csg],
        "std": [leak.of(run) for run in runs.get("std", [])],
    }


def values(group: list[Rows], name: str) -> list[float]:
    return [getattr(rows, name) for rows in group]


def chance_of(runs: Runs) -> float:
    return 1 / len(next(run for group in runs.values() for run in group).readout.bias)


# Which row


def rows_table(runs: Runs) -> Markdown:
    found = masked(runs)
    return table(
        {text: {MASKED[kind]: told(values(g, name)) for kind, g in found.items()} for name, text in SHOWN.items()},
        "Given to the gated path",
    )


def gates(runs: Runs) -> Markdown:
    """How dense each run's gate is, and how far its gated path follows the row."""
    shown = ("label", "wrong", "followed", "ungated")
    return table(
        {
            name: {"L1-density": told([run.metrics["l1_density"] for run in group])}
            | {SHOWN[field]: told(values([leak.of(run) for run in group], field)) for field in shown}
            for name, group in runs.items()
            if group and group[0].readout.gate is not None
        },
        "Run",
    )


def summary(runs: Runs) -> Markdown:
    """The short answer, in words that the numbers bear."""
    found, trained = masked(runs), relabelled()
    if not found["csg"] or not found["std"]:
        return Markdown("Not answered here: the runs that would tell are missing.")
    csg, std = ({name: float(np.mean(values(found[kind], name))) for name in SHOWN} for kind in ("csg", "std"))
    text = (
        "Given the row of the image's own class, as in training, CSG's gated path classifies "
        f"{percent(csg['label'], 1)} of the test images correctly. Given the row of a wrong class, it names that wrong "
        f"class in {percent(csg['followed'], 1)} of cases and the right one in {percent(csg['wrong'], 1)}. A standard network "
        f"that never saw a gate, masked in the same way, names it in {percent(std['followed'], 1)}."
    )
    if random := trained.get(("random", "csg")):
        text += (
            " Trained on random labels, the gated path names the random label of "
            f"{percent(np.mean(values(random, 'label')), 1)} of held-out images, and the ungated path of "
            f"{percent(np.mean(values(random, 'ungated')), 1)}, where chance is "
            f"{percent(1 / measured.read('label-leak')['classes'])}."
        )
    seen = (
        f"Without a label, by the class that scores most under its own row, the same filters classify "
        f"{percent(csg['by_logit'], 1)} of the test images correctly, and without any gate {percent(csg['ungated'], 1)}."
    )
    head = next(words for least, words in HEADS.items() if csg["followed"] >= least)
    but = (
        "**But the network is not blind.**" if csg["by_logit"] > 0.5 else "**What the network sees by itself is little here.**"
    )
    return Markdown(f"{head} {text}\n\n{but} {seen}")


# Random labels


def trainings() -> list[dict]:
    return measured.read("label-leak").get("trainings", [])


def relabelled() -> dict[tuple[str, str], list[Rows]]:
    """What tools/label_leak.py measured: (labels, method) -> one entry per seed."""
    found: dict[tuple[str, str], list[Rows]] = {}
    for t in trainings():
        found.setdefault((t["labels"], t["recipe"]["method"]), []).append(Rows(**t["rows"]))
    return found


def random_table() -> Markdown:
    found, by_group = relabelled(), {}
    for t in trainings():
        by_group.setdefault((t["labels"], t["recipe"]["method"]), []).append(t)
    if not found:
        return Markdown(f"Not measured yet: `python {measured.TOOLS['label-leak']}` does it.")
    names = {key: f"{GROUPS[key[0]]}, {key[1].upper() if key[1] == 'csg' else 'standard'}" for key in found}
    rows = {text: {names[key]: told(values(g, name)) for key, g in found.items()} for name, text in SHOWN.items()}
    for name, text in (("mis", "MIS of the ungated features, nats"), ("mis_null", "the same with labels shuffled")):
        rows[text] = {names[key]: told([t[name] for t in group], 4) for key, group in by_group.items()}
    return table(rows, "Held-out images")


def random_note() -> Markdown:
    """How the networks with random labels were trained, in one sentence."""
    kept = measured.read("label-leak")
    if not kept:
        return Markdown("")
    first = kept["trainings"][0]
    net = first["recipe"]["net"].replace("resnet", "ResNet-")
    return Markdown(
        f"{len(kept['trainings'])} trainings of a {net}, {len(first['history'])} epochs each in "
        f"{first['recipe']['precision']}, {first['images']:,} held-out images, together {kept['seconds'] / 60:.0f} minutes on "
        f"{kept['hardware']['processor']}, {kept['hardware']['threads']} thread{'s' * (kept['hardware']['threads'] > 1)}, by "
        f"`{measured.TOOLS['label-leak']}` at commit {commit(kept)}."
    )


# The ungated path, and the schedule


def specific(runs: Runs) -> Markdown:
    """What is class-specific in the ungated path, by the book's metrics."""
    statistics: dict[str, Callable[[Run], float]] = {
        "test accuracy": lambda run: run.metrics["accuracy"],
        "MIS, nats": lambda run: run.metrics["mis"],
        "MIS with labels shuffled, nats": lambda run: run.metrics["mis_null"],
        "share of a class's mean activation in its own filters": lambda run: metrics.own_share(run.readout),
        "accuracy on a class without its filters": lambda run: verdicts.removed(run)[0],
        "accuracy on the other classes then": lambda run: verdicts.removed(run)[1],
    }
    names = [name for name in ("csg", "matched", "std") if runs.get(name)]
    return table(
        {text: {name: told([of(run) for run in runs[name]]) for name in names} for text, of in statistics.items()},
        "Ungated path",
    )


def schedule_table(runs: Runs) -> Markdown:
    """Where the best test accuracy lies, and what a gated epoch and the standard epoch after it change."""
    columns = {}
    for name in ("csg", "alternating", "warm-up", "std"):
        if group := runs.get(name, []):
            bests, steps = [leak.best(run) for run in group], [leak.gated_steps(run) for run in group]
            over = [[s.after - s.before for s in seed] for seed in steps], [[s.then - s.after for s in seed] for seed in steps]
            changed = [told([np.mean(seed) for seed in side if seed], 4, "+") for side in over]
            columns[f"{name}, {group[0].recipe.epochs} epochs"] = {
                "Best before any gated epoch": told([b.before for b in bests]) if name != "std" else "–",
                "Best after a gated epoch": told([b.gated for b in bests]),
                "Best after a later standard epoch": told([b.standard for b in bests]),
                "Best epoch of each seed": ", ".join(str(b.epoch) for b in bests),
                "Mean change over a gated epoch": changed[0],
                "Mean change over the epoch after it": changed[1],
                "Seeds": str(len(group)),
            }
    if not columns:
        return Markdown("The runs that would tell are not here.")
    rows = next(iter(columns.values()))
    return table({row: {name: column[row] for name, column in columns.items()} for row in rows}, "Ungated path, test accuracy")


def schedule_summary(runs: Runs) -> Markdown:
    """In one or two sentences, of CSG's runs."""
    if not (group := runs.get("csg", [])):
        return Markdown("The runs that would tell are not here.")
    bests = [leak.best(run) for run in group]
    n, late = len(bests), sum(b.path == "standard" and b.standard > b.before for b in bests)
    mean = {part: np.nanmean([getattr(b, part) for b in bests]) for part in ("before", "gated", "standard")}
    return Markdown(
        f"In {late} of {n} CSG run{'s' * (n > 1)} the best test accuracy comes after a standard epoch that follows gated ones: "
        f"{mean['standard']:.3f} on average, against {mean['gated']:.3f} after the best gated epoch and {mean['before']:.3f} "
        "before any gated epoch."
    )


# Questions


def answers(runs: Runs) -> list[leak.Answer]:
    csg, kept, found = runs.get("csg", []), measured.read("label-leak"), []
    for question in leak.QUESTIONS:
        group = [leak.of(run) for run in csg] if question.of == "csg" else relabelled().get((question.of, "csg"), [])
        chance = 1 / kept.get("classes", 10) if question.of != "csg" or not csg else chance_of(runs)
        found.append(leak.settle(question, values(group, question.statistic), chance))
    return found


def questions(runs: Runs) -> Markdown:
    """The questions against chance, each with its answer."""
    rows = {
        a.question.sentence: {
            "Above chance?": f"**{a.word}**",
            "Ours": f"{np.mean(a.values):.4f}" if a.values else "–",
            "95 % interval": f"{max(0, a.interval[0]):.4f} to {min(1, a.interval[1]):.4f}" if a.interval else "–",
            "Chance": f"{a.chance:.2f}",
            "Seeds": str(len(a.values)),
        }
        for a in answers(runs)
    }
    return table(rows, "Question")
