"""What a page's claims say, in sentences: the answer, how sure it is, the caveat.

The words stand in claims.py and verdicts.py has judged: which of a pair of words is told, each number and each verdict come
from there.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from csgbook.evidence import rules

ABSENT = "**Not answered yet:** the runs that would tell are not here."
PAIR = re.compile(r"<([^|>]+)\|([^|>]+)>")  # what is told of a positive value, and of a negative one


@dataclass(frozen=True)
class Unit:
    """How a metric is told: its factor, the digits that matter, and the words behind the number."""

    scale: float
    digits: int
    words: str

    def told(self, *values: float, sign: str = "") -> list[str]:
        """All with as many digits as it takes to see which of them are not zero."""
        scaled = [self.scale * v for v in values]
        digits = next(d for d in range(self.digits, 13) if all(abs(v) < rules.SAME or round(v, d) for v in scaled))
        return [f"{v:{sign}.{digits}f}".replace("-", "−") for v in scaled]

    def size(self, value: float) -> str:
        return f"{self.told(abs(value))[0]} {self.words}"


POINTS = Unit(100.0, 1, "percentage points")  # of any share
NATS, IOU, COSINE = Unit(1.0, 3, "nats"), Unit(1.0, 3, "in IoU"), Unit(1.0, 2, "in mean |cos|")
UNITS = {
    "mis": NATS,
    "hoyer": Unit(1.0, 3, "on a scale from 0 to 1"),
    "reach": Unit(1.0, 2, "pixels of the feature map"),
    "weight_contrast": COSINE,
    "response_contrast": COSINE,
    "cam_iou": IOU,
    "activation_iou": IOU,
    "gradient_iou": IOU,
}


def answer(judged: Sequence[dict], but: str = "") -> str:
    """The box at the head of a page, in Markdown; `but` is what else a reader should know."""
    known = [c for c in judged if c["answer"] and c["ours"] is not None]
    if not known:
        return ABSENT
    other = [c for c in known if not c["comparable"]]
    caveat = [about_schedule(c, len(other) < len(known)) for c in other[:1]] + [but] * bool(but)
    parts = ["**Answer**", sentences(judged), f"**How sure?** {sure(known)}"]
    parts += [f"**Caveat.** {' '.join(caveat)}"] * bool(caveat)
    return '<div class="answer">\n\n' + "\n\n".join(parts) + "\n\n</div>\n"


def sentences(judged: Sequence[dict]) -> str:
    """A list of what is told of each claim, in Markdown."""
    told = [c for c in judged if c["answer"]]
    known = [c for c in told if c["ours"] is not None]
    if not known:
        return ABSENT
    after = known[0]["schedule"]
    lines = [f"- {sentence(c)}" + f" (After {c['schedule']}.)" * (c["schedule"] != after) for c in known]
    return "\n".join(lines + [f"- Not measured yet: whether {either(c)}." for c in told if c["ours"] is None])


def sentence(c: dict) -> str:
    """One claim, with its number and its interval, and with the verdict where a paper claims it."""
    text = said(c)
    sentence = f"{text[0].upper()}{text[1:]}."
    if c["question"]:
        return sentence
    unit, claim = UNITS.get(c["metric"], POINTS), "The authors' claim"
    if not c["over"]:
        claim += f", {unit.told(c['paper'])[0]} with a tolerance of {unit.size(c['tolerance'])}"
    return f"{sentence} {claim}: **{c['verdict'].removesuffix(': one seed')}**."


def said(c: dict) -> str:
    """A judged claim as the sentence of its page: what was found, by how much, and how it may be read."""
    unit, ours = UNITS.get(c["metric"], POINTS), c["ours"]
    if c["verdict"] == "not measurable":
        return f"whether {either(c)} cannot be measured here: the score could not have come out otherwise"
    if not PAIR.search(c["answer"]):
        return c["answer"].format(ours=unit.told(ours)[0]) + band(c, unit)
    if c["low"] is None:
        return f"in one run of each network, {chosen(c, ours)}, by {unit.size(ours)}; one run decides nothing"
    if not c["low"] <= 0 <= c["high"]:
        paper = f"; in the paper: {way(c, c['paper'])}, by {unit.size(c['paper'])}" if c["over"] and c["paper"] else ""
        return f"{chosen(c, ours)}, by {unit.size(ours)}{band(c, unit)}{paper}"
    difference = unit.told(ours, sign="+")[0]
    return f"we cannot tell whether {either(c)}: a difference of {difference} {unit.words} may be chance{band(c, unit)}"


def band(c: dict, unit: Unit) -> str:
    """The interval in brackets; signs where it holds zero, else the words have told the direction."""
    low, high = c["low"], c["high"]
    if low is None or high - low < rules.SAME:
        return ""
    ends = unit.told(low, high, sign="+") if low <= 0 <= high else unit.told(*sorted((abs(low), abs(high))))
    return f" ({' to '.join(ends)})"


def way(c: dict, value: float) -> str:
    return PAIR.search(c["answer"])[1 if value > 0 else 2]


def chosen(c: dict, value: float) -> str:
    return PAIR.sub(way(c, value), c["answer"])


def either(c: dict) -> str:
    return PAIR.sub(r"\1 or \2", c["answer"])


def sure(known: Sequence[dict]) -> str:
    """How sure a page is of its answers: from how many seeds they come, and what that cannot show."""
    seeds = sorted({c["n"] for c in known})
    if seeds == [1]:
        return "Not at all: each comparison rests on one run of each network."
    told = (
        f"{' or '.join(map(str, seeds))} seeds of each network, 95 % intervals in brackets ({{doc}}`how we judge <verdicts>`)."
    )
    if any("we cannot tell" in said(c) for c in known):
        told += " With so few seeds small effects go unseen: that we cannot tell does not mean that there is no difference."
    return told


def about_schedule(c: dict, some: bool = False) -> str:
    """What the numbers, or some of them, may owe to other conditions than the paper's."""
    if c["data"] != ["cifar10"]:
        return "Images, network and schedule differ from the paper's, so its numbers need not agree with ours."
    what = "Part of this rests on" if some else "We have"
    return (
        f"{what} a short schedule ({c['schedule']}). The accuracy in CSG's paper points to 200 epochs with a learning rate "
        "that drops in steps; neither sizes nor directions need carry over ({doc}`table1` has some that did not)."
    )
