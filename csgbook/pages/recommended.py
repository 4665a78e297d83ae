"""Which method for which aim: each recommendation with the claims that bear it, and none where they do not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from IPython.display import Markdown

from csgbook.claims import CLAIMS
from csgbook.evidence import answers, rules
from csgbook.evidence.verdicts import STATISTICS, judge
from csglib.runs import Run

Runs = dict[str, list[Run]]
COUNTED = {1: "one run", 2: "two runs"}  # too few for a verdict
CONTROLS = ("csg-joint", "fixed", "picnn-random")  # which would tell why one method does better


def above(c: dict) -> bool:
    """The interval lies above zero; of fewer seeds than a verdict takes, the mean."""
    return (c["low"] if c["n"] >= rules.SEEDS else c["ours"]) > 0


def not_above(c: dict) -> bool:
    return not above(c)


def not_below(c: dict) -> bool:
    return (c["high"] if c["n"] >= rules.SEEDS else c["ours"]) >= 0


def near(c: dict) -> bool:
    """A number within its tolerance."""
    return abs(c["ours"] - c["paper"]) <= c["tolerance"]


@dataclass(frozen=True)
class Advice:
    aim: str
    method: str
    needs: dict[str, Callable[[dict], bool]]  # claims that have to come out so
    told: tuple[str, ...]  # claims whose sentences say why
    beside: str  # what the method is like, whatever the runs say


ADVICE = (
    Advice(
        "Filters that serve one class each, at little cost in accuracy", "PICNN",
        {"which-accuracy": above, "which-mis": not_below, "picnn-cluster": above},
        ("picnn-accuracy", "which-accuracy", "which-mis", "picnn-cluster"),
        "It needs no schedule, penalty or projection.",
    ),
    Advice(
        "A gate with one class per filter, or with a density that you set", "CSG",
        {"mis-order": above, "density-csg": near}, ("mis-order", "accuracy-order", "accuracy-matched"),
        "CSG's gate ends where the bound says; PICNN's matrix stays soft, as the table says.",
    ),
    Advice(
        "Informative filters, whether or not others know the same", "ICNN", {"icnn-mis": above}, ("icnn-mis",),
        "Its score is that of the features behind the mask, which tidies every map, and in {doc}`a trial <icnn>` the mask "
        "alone did as well.",
    ),
    Advice(
        "Accuracy alone", "standard training", {"accuracy-order": not_above, "picnn-accuracy": not_above},
        ("accuracy-order", "picnn-accuracy"), "",
    ),
)  # fmt: skip


def recommendations(runs: Runs, others: Sequence[Runs] = ()) -> Markdown:
    """A list, one aim each, after what the comparison cannot tell; `others` are runs of other schedules."""
    before = " ".join(filter(None, [unknown(runs), longer(runs, others)]))
    return Markdown(f"{before}\n\n" + "\n".join(f"- {told(advice, runs)}" for advice in ADVICE))


def longer(runs: Runs, others: Sequence[Runs]) -> str:
    """What longer trainings say of CSG's accuracy, where there are any; not all of these methods have them."""
    claim = next(c for c in CLAIMS if c.id == "accuracy-order")
    judged = [judge(claim, beside) for beside in others if most_epochs(beside) > most_epochs(runs)]
    if not judged or judged[0]["ours"] is None:
        return ""
    return f"Longer trainings can change them. After {judged[0]['schedule']}: {answers.said(judged[0])} ({{doc}}`table1`)."


def most_epochs(runs: Runs) -> int:
    return max((run.recipe.epochs for group in runs.values() for run in group), default=0)


def told(advice: Advice, runs: Runs) -> str:
    ids = dict.fromkeys([*advice.needs, *advice.told])
    judged = {claim.id: judge(claim, runs) for claim in CLAIMS if claim.id in ids}
    if absent := [c["of"] if not runs.get(c["of"]) else c["over"] for c in judged.values() if c["ours"] is None]:
        return f"**{advice.aim}: we cannot say yet.** There is no run of *{absent[0]}*."
    least = min(judged[name]["n"] for name in advice.needs)
    head = advice.method if least >= rules.SEEDS else f"perhaps {advice.method}, judging by {COUNTED[least]} of each network"
    if not all(holds(judged[name]) for name, holds in advice.needs.items()):
        head = f"our runs do not support {advice.method}"
    why = [plain(judged[name]) for name in advice.told]
    more = [acc3(runs)] if advice.method == "ICNN" else [price(judged)] if advice.method == "CSG" else []
    return " ".join(filter(None, [f"**{advice.aim}: {head}.**", *why, *more, advice.beside]))


def plain(c: dict) -> str:
    """Its sentence, without what is said of the authors."""
    text = answers.said(c).split("; in the paper")[0]
    return f"{text[0].upper()}{text[1:]}."


def price(judged: dict[str, dict]) -> str:
    """Whether the epochs that the gate takes cost most of the accuracy: what the gate itself costs is surely less than half."""
    lost, alone = judged["accuracy-order"], judged["accuracy-matched"]
    if min(lost["n"], alone["n"]) < rules.SEEDS or lost["high"] >= 0 or alone["low"] <= lost["ours"] / 2:
        return ""
    return "So most of the loss comes from the epochs that the gate takes from standard training, not from the gate."


def acc3(runs: Runs) -> str:
    icnn, std = (100 * np.mean([STATISTICS["acc3"](run) for run in runs[name]]) for name in ("icnn", "std"))
    return (
        f"Without the filters of the true class it still recognises {icnn:.0f} % of the images, a standard network {std:.0f} %."
    )


def unknown(runs: Runs) -> str:
    """What stands between these numbers and an explanation."""
    missing: Sequence[str] = [f"*{name}*" for name in CONTROLS if not runs.get(name)]
    text = (
        "They hold for this network, these images and this schedule. PICNN's learning rate was chosen on a validation set and "
        "CSG's values were not, and PICNN adds both losses in every step where CSG alternates."
    )
    if missing:
        names = " and ".join(filter(None, [", ".join(missing[:-1]), missing[-1]]))
        text += f" So we cannot yet say why one of the two does better: that takes runs of {names}."
    return text
