"""Tables and sentences that pages show.  Each function takes runs and returns Markdown."""

from collections.abc import Callable, Collection

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown

from csgbook import claims, measured
from csgbook.evidence import verdicts
from csgbook.evidence.verdicts import schedule
from csglib.analysis import metrics
from csglib.methods.csg import sharpness
from csglib.runs import Run

METRICS = {  # what a table calls each number of metrics.json
    "accuracy": "Accuracy",
    "mis": "MIS, nats",
    "mis_null": "MIS, shuffled labels",
    "mis_normalised": "MIS / H(1/C)",
    "l1_density": "L1-density",
}


def markdown(table: pd.DataFrame) -> Markdown:
    return Markdown(table.to_markdown(index=False, disable_numparse=True))


def spread(values: list[float | None], digits: int = 4) -> str:
    """Mean and standard deviation over seeds."""
    values = [v for v in values if v is not None]
    if not values:
        return "–"
    return f"{np.mean(values):.{digits}f}" + (f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else "")


def percent(x: float, digits: int = 0) -> str:
    return f"{100 * x:.{digits}f} %"


def commit(p: dict, digits: int = 8) -> str:
    """Of what made a run or a measurement."""
    return f"`{(p['commit'] or 'unknown')[:digits]}`" + (" (dirty)" if p.get("dirty") else "")


def metrics_table(runs: dict[str, list[Run]], others: dict[str, dict[str, dict[str, float]]]) -> Markdown:
    """A row for each experiment of ours, mean and standard deviation over seeds, and beneath it one for what others report.

    `others` maps who reports to experiment -> metric -> value.  Without runs an experiment has no row of ours, unless none has.
    """
    rows = []
    for experiment, group in runs.items():
        name = experiment.upper()
        if group or not any(runs.values()):
            ours = {title: shortest(m, [r.metrics[m] for r in group]) for m, title in METRICS.items()}
            rows.append({"Network": f"{name}, ours"} | ours | {"Runs": str(len(group))})
        for who, values in others.items():
            if theirs := values.get(experiment):
                unsure = {m: " (unconfirmed)" for m in claims.UNCONFIRMED if m in theirs}
                told = {title: spread([theirs.get(m)]) + unsure.get(m, "") for m, title in METRICS.items()}
                rows.append({"Network": f"{name}, {who}"} | told | {"Runs": ""})
    return markdown(pd.DataFrame(rows))


def shortest(metric: str, values: list[float | None]) -> str:
    """Without a deviation where that says nothing: of a score by chance, and of what is the same in all seeds."""
    told = spread(values, 3 if metric == "mis_normalised" else 4)
    mean, _, deviation = told.partition(" ± ")
    return mean if metric == "mis_null" or deviation == "0.0000" else told


def statistics(
    rows: dict[str, Callable[[Run], float | None]], runs: dict[str, list[Run]], digits: int = 3, counts: Collection[str] = ()
) -> Markdown:
    """One row per statistic, one column per experiment: mean and standard deviation over seeds, of counts with one digit."""
    table = {"Measure": [*rows, "runs"]}
    for name, group in runs.items():
        table[name] = [*(spread([row(run) for run in group], 1 if title in counts else digits) for title, row in rows.items())]
        table[name].append(str(len(group)))
    return markdown(pd.DataFrame(table))


def overlap(runs: dict[str, list[Run]], draws: int = 20) -> Markdown:
    """How far gate and information agree, against the same gate with its filters shuffled."""

    def row(run: Run) -> dict[str, float | None]:
        r = run.readout
        M = metrics.information(r)
        G = metrics.own_filters(r) if r.gate is None else r.gate
        rng = torch.Generator().manual_seed(0)
        shuffled = [metrics.overlap(M, G[:, torch.randperm(G.shape[1], generator=rng)]) for _ in range(draws)]
        return {
            "Information on the filter's class (gate, or class of largest mean activation)": metrics.overlap(M, G),
            "The same with the filters shuffled": float(np.mean(shuffled)),
            "Information on each filter's best class, the most that is possible": metrics.overlap(M, None),
            "Filters whose class is that of their largest information": (G.argmax(0) == M.argmax(0)).double().mean().item(),
        }

    computed = {name: [row(run) for run in group] for name, group in runs.items()}
    titles = next((list(r) for group in computed.values() for r in group), [])
    table = {"Measure": titles} | {name: [spread([r[t] for r in group], 3) for t in titles] for name, group in computed.items()}
    return markdown(pd.DataFrame(table))


def correlation(runs: dict[str, list[Run]], draws: int = 20) -> Markdown:
    """Mean |cos| within and between classes, of weights and of responses; and what the contrast is by chance."""

    def block(vectors: Callable[[Run], torch.Tensor], which: int) -> Callable[[Run], float]:
        return lambda run: metrics.blocks(metrics.correlation(vectors(run)), metrics.owners(run.readout))[which]

    def by_chance(vectors: Callable[[Run], torch.Tensor]) -> Callable[[Run], float]:
        def contrast(run: Run) -> float:
            matrix = metrics.correlation(vectors(run))
            drawn = [metrics.blocks(matrix, metrics.shuffled(metrics.owners(run.readout), seed)) for seed in range(draws)]
            return float(np.mean([same - different for same, different in drawn]))

        return contrast

    rows = {}
    for kind, vectors in (("weights", verdicts.last_weights), ("responses", verdicts.responses)):
        rows |= {f"{kind}, within": block(vectors, 0), f"{kind}, between": block(vectors, 1)}
        rows[f"{kind}, contrast"] = lambda run, vectors=vectors: verdicts.contrast(vectors, run)
        rows[f"{kind}, contrast with classes shuffled"] = by_chance(vectors)
    return statistics(rows, runs)


def removal(runs: dict[str, list[Run]], draws: int = 10) -> Markdown:
    """Accuracy left on the class whose filters are removed, and on the others, one class after another; and two controls."""
    rows = []
    for name, group in runs.items():
        results: dict[str, list[tuple[float, float]]] = {"none": []}
        for run in group:
            r, masks = run.readout, verdicts.removed_filters(run)
            count = masks.sum(1).long()
            own = "its own" if r.gate is not None else f"the {int(count[0])} most active"
            chosen = {own: [masks]}
            chosen["as many, at random"] = [metrics.random_filters(count, masks.shape[1], seed) for seed in range(draws)]
            if r.gate is not None:
                chosen["as many, the most active"] = [metrics.most_active(r, count)]
            results["none"].append((run.metrics["accuracy"],) * 2)
            for kind, several in chosen.items():
                pairs = [metrics.own_and_others(metrics.removal(r, m)) for m in several]
                results.setdefault(kind, []).append(tuple(np.mean(pairs, 0)))
        for kind, pairs in results.items():
            left, others = zip(*pairs, strict=True) if pairs else ((), ())
            row = {"Network": name, "Filters removed of a class": kind, "Accuracy on it": spread(list(left), 3)}
            rows.append(row | {"On the other classes": spread(list(others), 3)})
    return markdown(pd.DataFrame(rows))


def clusters_alone(runs: dict[str, list[Run]]) -> Markdown:
    """ACC1, ACC2 and ACC3 of PICNN, with each network's own classes of filters and with these shuffled."""

    def acc(i: int, shuffled: bool) -> Callable[[Run], float]:
        def value(run: Run) -> float:
            G = metrics.own_filters(run.readout)
            if shuffled:
                G = G[:, torch.randperm(G.shape[1], generator=torch.Generator().manual_seed(0))]
            return metrics.clusters(run.readout, G)[i]

        return value

    rows = {
        "ACC1: all filters": lambda run: run.metrics["accuracy"],
        "ACC2: only those of the predicted class": acc(0, False),
        "ACC2 with the filters shuffled": acc(0, True),
        "ACC3: all but those of the true class": acc(1, False),
        "ACC3 with the filters shuffled": acc(1, True),
    }
    return statistics(rows, runs)


def representation(runs: dict[str, list[Run]], n: int = 2000) -> Markdown:
    """How sparse the features are, how well they separate classes, and how the filters are shared out."""
    from sklearn.metrics import silhouette_score

    def owned(run: Run) -> torch.Tensor:
        return torch.bincount(metrics.owners(run.readout), minlength=len(run.readout.bias)).double()

    rows = {
        "Hoyer sparsity of an image's features": lambda run: metrics.hoyer(run.readout.features),
        "Share of a class's mean activation on its own filters": lambda run: metrics.own_share(run.readout),
        "Silhouette of the classes": lambda run: float(silhouette_score(run.readout.features[:n], run.readout.labels[:n])),
        "Fewest filters of a class": lambda run: owned(run).min().item(),
        "Most filters of a class": lambda run: owned(run).max().item(),
        "Dead filters (no activation on any test image)": lambda run: (run.readout.features.amax(0) <= 0).double().sum().item(),
    }
    return statistics(rows, runs, counts=list(rows)[3:])


def ablations(runs: dict[str, list[Run]], base: str) -> Markdown:
    """One row per experiment: what its recipe changes, and what comes out."""
    known = next((group[0].recipe.changed() for name, group in runs.items() if name == base and group), {})
    rows = []
    for name, group in runs.items():
        changed = group[0].recipe.changed() if group else {}
        words = ", ".join(f"`{k} {v}`" for k, v in changed.items() if known.get(k) != v and k != "seed")
        row = {"Variant": name, "Changes": "–" if name == base or not group else words}
        for metric in ("accuracy", "mis", "l1_density", "acc3"):  # ACC2 mostly repeats the accuracy (page on removal)
            told = spread([run.metrics[metric] for run in group], 3)
            if metric == "l1_density":  # which hardly varies
                told = told.split(" ±")[0]
            row[METRICS.get(metric, metric.upper())] = told
        rows.append(row | {"Runs": str(len(group)) if group else "not run here"})
    return markdown(pd.DataFrame(rows))


def choices(runs: dict[str, list[Run]], option: str, control: float | None = None) -> Markdown:
    """What each value of an option gave on the held-out validation set, and which is taken by the rule of experiments.yml.

    A control is shown and is no candidate.
    """
    rows, tried = [], {getattr(group[0].recipe, option): group[0] for group in runs.values() if group}
    candidates = {value: run for value, run in tried.items() if value != control}
    best = max((run.metrics["accuracy"] for run in candidates.values()), default=0)
    good = {value: run for value, run in candidates.items() if run.metrics["accuracy"] >= best - 0.005}
    taken = max(good, key=lambda value: good[value].metrics["mis"], default=None)
    for value, run in tried.items():
        m = run.metrics
        row = {f"`{option}`": f"{value:g}", "Accuracy": f"{m['accuracy']:.4f}", "MIS, nats": f"{m['mis']:.4f}"}
        row |= {
            "Mean maximum share per filter": f"{m['sharpness']:.3f}",
            "ACC3": f"{m['acc3']:.4f}",
            "Role": {taken: "taken", control: "control"}.get(value, "–"),
        }
        rows.append(row)
    if not rows:
        return Markdown("No value has been tried here yet.")
    shown = next(iter(tried.values())).recipe
    told = f"{schedule(shown)}, seed {shown.seed}, measured on a held-out validation set of {shown.holdout:,} training images"
    return Markdown(f"{pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)}\n\n{told[0].upper()}{told[1:]}.")


def clusters_by_mask(runs: list[Run], draws: int = 10) -> Markdown:
    """ACC2 and ACC3 with hard, expected and sampled masks; of the sampled the deviation is over seeds and draws."""
    rows = {"hard: the filter's most probable class": [], "expected: times the probability": [], "sampled, as in training": []}
    for run in runs:
        r = run.readout
        for row, mask, seeds in zip(rows.values(), ("hard", "expected", "sampled"), (1, 1, draws), strict=True):
            row += [metrics.clusters(r, r.gate, mask, seed) for seed in range(seeds)]
    table = [
        {"Masks": name, "ACC2": spread([v[0] for v in values]), "ACC3": spread([v[1] for v in values])}
        for name, values in rows.items()
    ]
    return markdown(pd.DataFrame(table))


def methods(runs: dict[str, list[Run]]) -> Markdown:
    """One row per method, every number under the same protocol; a network without a gate has its matrix fitted afterwards.

    Two tables, as wide as a page: accuracy and information, then clusters and cost.
    """
    cost = measured.read("step-cost").get("ratio", {})
    stored = {"Accuracy": "accuracy", "MIS, nats": "mis", "MIS / H(1/C)": "mis_normalised", "Chance level": "mis_null"}
    first, second = [], []
    for name, group in runs.items():
        row = {title: spread([run.metrics[m] for run in group], 3) for title, m in stored.items()}
        first.append({"Method": name} | row | {"Runs": str(len(group))})
        accuracies = [metrics.clusters(run.readout, verdicts.class_matrix(run)) for run in group]
        row = {"ACC2": spread([a for a, _ in accuracies], 3), "ACC3": spread([a for _, a in accuracies], 3)}
        row["Mean maximum share per filter"] = spread(
            [sharpness(run.readout.gate) for run in group if run.readout.gate is not None], 3
        )
        row["Time"] = spread([cost.get(group[0].recipe.method)], 2) if group else "–"
        second.append({"Method": name} | row)
    return Markdown("\n\n".join(pd.DataFrame(t).to_markdown(index=False, disable_numparse=True) for t in (first, second)))


def cost() -> Markdown:
    """One sentence on how the times of a step were measured."""
    c = measured.read("step-cost")
    if not c:
        return Markdown("The time of a step has not been measured yet: `python tools/step_cost.py` does it.")
    low, high = max(c["quartiles"].values(), key=lambda q: q[1] - q[0])
    return Markdown(
        f"Times are medians of {c['rounds']} rounds of {c['steps']} steps of each method in turn, in the mean of its epochs' "
        f"paths, relative to standard training in the same round, {c['milliseconds']['standard']:.0f} ms per step of "
        f"{c['batch_size']} images. The widest quartiles of a ratio are {low:.2f} and {high:.2f}. Measured on "
        f"{c['hardware']['processor']}, {c['hardware']['threads']} threads, {c['precision']}, at commit {commit(c)}."
    )


def third_party() -> Markdown:
    """The metrics of the third-party ResNet-20, as tools/third_party.py measured them."""
    found = measured.read("third-party-resnet20")
    row = {title: spread([found["metrics"][metric]]) for metric, title in METRICS.items() if metric != "l1_density"}
    return markdown(pd.DataFrame([{"Network": "STD, third party" + (" (dirty)" if found["dirty"] else ""), **row}]))


def grid(cells: dict[str, dict[str, str]], corner: str) -> Markdown:
    """Row name -> column name -> text."""
    table = pd.DataFrame([{corner: row} | columns for row, columns in cells.items()])
    return Markdown(table.to_markdown(index=False, disable_numparse=True))
