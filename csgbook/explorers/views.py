"""What an explorer shows at a state of its controls: numbers, a table, a matrix, curves.

Each function exists twice, here for a kernel and in explore.js for a page without one.  Both read the same rounded data, so the
same state gives the same numbers to the digit; the tests hold the two against each other.
"""

from collections.abc import Callable
from decimal import ROUND_HALF_UP, Decimal
from functools import reduce
from operator import add

import numpy as np
import torch

from csglib.analysis import metrics
from csglib.errors import Problem
from csglib.runs import Run


def gated_data(gates: dict[str, tuple[Run, torch.Tensor]], classes: tuple[str, ...], n: int) -> dict:
    """The first n images' features in eight bits, each run once, and each gate with the place of its run."""
    if len(classes) > 256:
        raise Problem(f"an explorer has room for 256 classes, not for {len(classes)}: leave it out")  # labels are bytes
    runs = list({id(run): run for run, _ in gates.values()}.values())
    if any(not torch.equal(run.sample.labels, runs[0].sample.labels) for run in runs):
        raise Problem("the explorer's runs were read out on different images: choose runs of one data set")
    blocks: dict[str, list] = {name: [] for name in ("q", "head", "bias", "information")}
    for r in (run.sample for run in runs):
        step = r.features.amax(0).clamp(min=1e-12) / 255
        blocks["q"].append((r.features[:n] / step).round().clamp(0, 255).numpy().astype(np.uint8))
        blocks["head"].append((r.weight * step).numpy().astype(np.float32))  # acts on the integers
        blocks["bias"].append(r.bias.numpy().astype(np.float32))
        blocks["information"].append(metrics.information(r).numpy())
    return {name: np.stack(block) for name, block in blocks.items()} | {
        "classes": list(classes),
        "labels": runs[0].sample.labels[:n].numpy().astype(np.uint8),
        "order": [gate.argmax(0).argsort(stable=True).tolist() for _, gate in gates.values()],  # filters, sorted by class
        "gate": np.stack([gate.numpy().astype(np.float32) for _, gate in gates.values()]),
        "run": [next(j for j, other in enumerate(runs) if other is run) for run, _ in gates.values()],
    }


def right(data: dict, guessed: np.ndarray) -> tuple[float, list[float]]:
    """Accuracy over all samples, and over those of each class."""
    y = data["labels"]
    hit = guessed == y
    return hit.mean(), [hit[y == c].mean() if (y == c).any() else 0.0 for c in range(len(data["classes"]))]


def classify(data: dict, j: int, keep: np.ndarray) -> np.ndarray:
    """The class that run j gives each sample where class c uses the filters that keep[c] marks."""
    head = data["head"][j].astype(np.float64) * keep
    return (data["q"][j].astype(np.float64) @ head.T + data["bias"][j].astype(np.float64)).argmax(1)


def cut_view(data: dict, state: dict[str, int]) -> dict:
    """Two networks side by side, of which the first connections are kept."""
    level, names = state["share"], data["networks"]
    n, (C, K) = data["counts"][level], data["rank"].shape[1:]
    sides = [state["left"] * data["ways"] + state["by"], state["right"] * data["ways"] + state["by"]]
    called = [names[state["left"]], names[state["right"]] + ", right" * (state["left"] == state["right"])]
    now = [float(data["mean"][i, level]) for i in sides]
    whole = [float(data["mean"][i, -1]) for i in sides]
    keep = [data["rank"][i] < n for i in sides]
    shown = [k * (0.2 + 0.8 * (data["value"][i] / 255)) for k, i in zip(keep, sides, strict=True)]
    moved = " and ".join(f"{points(x - all_)} points for {name}" for name, x, all_ in zip(called, now, whole, strict=True))
    return {
        "numbers": [
            *[[f"{name}, accuracy", fixed(x, 4)] for name, x in zip(called, now, strict=True)],
            ["Connections kept", f"{n} of {C * K}"],
            ["Per class, mean", f"{fixed(n / C, 1)} of {K} filters"],
        ],
        "told": f"Cutting the other {C * K - n} connections changes accuracy by {moved}.",
        "lines": {
            "title": "Accuracy against the share of connections kept",
            "series": dict(zip(called, (data["mean"][i].tolist() for i in sides), strict=True)),
            "bands": [(data["low"][i].tolist(), data["high"][i].tolist()) for i in sides],
            "at": level,
            "styles": (1, 0),  # the right one blue, as CSG is in the book's figures
        }
        | data["axis"],
        "matrices": [
            matrix(f"{name}: the connections that are left", data["classes"], values[:, data["order"][i]])
            for name, values, i in zip(called, shown, sides, strict=True)
        ],
        "table": {
            "head": ["Class", *[f"{name}, accuracy" for name in called], *[f"{name}, filters" for name in called]],
            "rows": [
                [
                    label,
                    *[[fixed(float(data["each"][i, level, c]), 3), float(data["each"][i, level, c])] for i in sides],
                    *[[str(int(k[c].sum())), k[c].mean()] for k in keep],
                ]
                for c, label in enumerate(data["classes"])
            ],
        },
    }


def points(x: float) -> str:
    """A difference in accuracy with its sign, in points."""
    return ("−" if x < 0 else "+") + fixed(abs(100 * x), 1)


def mean(values: list[float]) -> float:
    """Added one after the other, as the page does: numpy adds in pairs, and then 0.3375 may round the other way."""
    return float(reduce(add, values) / len(values))


def removal_view(data: dict, state: dict[str, int]) -> dict:
    """Every network without the filters of the chosen classes, side by side."""
    classes, y = data["classes"], data["labels"]
    C = len(classes)
    off = np.array([bool(state["removed"] >> c & 1) if data["boxes"] else c == state["removed"] for c in range(C)])
    numbers, columns, told = [], [], []
    for i, name in enumerate(data["networks"]):
        j = data["run"][i]
        lost = (data["gate"][i] * off[:, None]).max(0) > 0
        guessed = classify(data, j, np.broadcast_to(~lost, data["head"][j].shape))
        per_class = right(data, guessed)[1]
        groups = [[v for v, o in zip(per_class, off, strict=True) if o == side] for side in (True, False)]
        numbers.append([f"{name}: switched-off classes", fixed(mean(groups[0]), 3) if groups[0] else "–"])
        numbers.append([f"{name}: the other classes", fixed(mean(groups[1]), 3) if groups[1] else "–"])
        told.append(f"{name} {int(lost.sum())}")
        counts = np.array([[np.sum((y == c) & (guessed == d)) for d in range(C)] for c in range(C)])
        np.fill_diagonal(counts, 0)
        wrong = [f"{classes[int(row.argmax())]}" if row.any() else "–" for row in counts]
        columns.append([[[fixed(v, 3), v], [w, 0.0]] for v, w in zip(per_class, wrong, strict=True)])
    head = [text for name in data["networks"] for text in (f"{name}, accuracy", f"{name}, taken for")]
    return {
        "numbers": numbers,
        "told": f"Filters switched off: {', '.join(told)}.",
        "table": {
            "head": ["True class", *head],
            "rows": [[name, *[cell for column in columns for cell in column[c]]] for c, name in enumerate(classes)],
        },
    }


def film_view(data: dict, state: dict[str, int]) -> dict:
    e = state["epoch"]
    t = data["seen"][e]
    numbers = [["Accuracy, standard path", fixed(data["accuracy"][e], 4)], ["Accuracy, gated path", fixed(data["gated"][e], 4)]]
    G = data["gates"][max(t, 0)] / 255 if t >= 0 else np.full(data["gates"].shape[1:], 0.5)
    density = fixed(int(data["gates"][t].astype(np.int64).sum()) / 255 / G.size, 3) if t >= 0 else "not trained yet"
    series = {"standard path": data["accuracy"][: e + 1], "gated path": data["gated"][: e + 1]}
    gated = data["paths"][e] in ("gated", "joint")
    return {
        "numbers": [*numbers, ["Density of the gate", density]],
        "told": f"This epoch trained the {data['paths'][e]} path: the gate {'moved' if gated else 'was frozen'}.",
        "matrix": matrix("The gate after this epoch", data["classes"], G),
        "lines": {"title": "Test accuracy by epoch", "length": len(data["accuracy"]), "series": series},
    }


def filter_view(data: dict, state: dict[str, int]) -> dict:
    k, classes, y = data["order"][0][state["filter"]], data["classes"], data["labels"]
    G, M, mean = (values[:, k].astype(np.float64) for values in (data["gate"][0], data["information"][0], data["means"]))
    q = data["q"][0][:, k].astype(int)
    bins = np.minimum(q * 24 // 256, 23)
    counts = np.array([np.bincount(bins[y == c], minlength=24) for c in range(len(classes))])
    share = counts / counts.sum(1, keepdims=True).clip(min=1)
    rows = []
    for c, name in enumerate(classes):
        bar = [G[c], M[c] / max(M.max(), 1e-12), mean[c] / max(mean.max(), 1e-12)]  # each as a share of the column's largest
        rows.append([name, [fixed(G[c], 2), bar[0]], [fixed(M[c], 4), bar[1]], [fixed(mean[c], 3), bar[2]]])
    own, told = classes[int(G.argmax())], classes[int(M.argmax())]
    return {
        "numbers": [
            ["Class of the gate", own],
            ["Largest mutual information", told],
            ["Mutual information, nats", fixed(M.max(), 4)],
            ["Images with zero activation", f"{fixed(100 * (q == 0).mean(), 1)} %"],
        ],
        "told": f"Gate and information agree on {own}."
        if own == told
        else f"The gate gives this filter to {own}, and its activation tells most about {told}.",
        "matrix": matrix(
            "Histogram of the activation, one row per class, from no activation to the largest", classes, np.sqrt(share)
        ),
        "table": {"head": ["Class", "Gate", "Mutual information, nats", "Mean activation"], "rows": rows},
        "images": [[int(j), classes[data["of"][j]]] for j in data["best"][k]],
        "across": data["across"],
    }


VIEWS: dict[str, Callable[[dict, dict[str, int]], dict]] = {
    "cut": cut_view,
    "removal": removal_view,
    "film": film_view,
    "filter": filter_view,
}


def matrix(title: str, rows: list[str], values: np.ndarray) -> dict:
    return {"title": title, "rows": rows, "values": values}


def fixed(x: float, digits: int) -> str:
    """As JavaScript's toFixed: the exact value of the double, halves away from zero."""
    return str(Decimal(float(x)).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))
