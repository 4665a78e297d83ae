"""What mutual information sees with few images per class, by simulation: data/measured/few-images.json.

    python tools/few_images.py

Filter k is normal, and on class k mod C shifted: by 3 standard deviations; by so much that it tells the class perfectly; not at
all, which is the null.  Of each MIS and `mis_balanced` are estimated, and of the shift of 3 what they would be with endless
images, by quadrature.
"""

import math
import time

import torch
from scipy import integrate, stats

from csgbook import measured
from csglib.analysis import metrics
from csglib.analysis.information import entropy
from csglib.runs import provenance

CLASSES, IMAGES = (10, 100, 1000), (2, 3, 5, 10, 20, 50, 100, 200)
SHIFTS = {"null": 0.0, "shifted": 3.0, "perfect": 1000.0}
FILTERS = 32


def information(shift: float, p: float) -> float:
    """Of a normal filter shifted on a share p of the images, about whether an image is one of them; in nats."""

    def density(x: float) -> float:
        return p * stats.norm.pdf(x - shift) + (1 - p) * stats.norm.pdf(x)

    def minus_log(x: float) -> float:
        return -density(x) * math.log(density(x)) if density(x) > 0 else 0.0

    mixed = integrate.quad(minus_log, -12, shift + 12, points=[0, shift], limit=200)[0]
    return mixed - 0.5 * math.log(2 * math.pi * math.e)  # less the entropy of the filter where the class is known


def estimates(C: int, n: int, shift: float) -> dict[str, float]:
    y = torch.arange(C * n) % C
    x = torch.randn(C * n, FILTERS, generator=torch.Generator().manual_seed(n))
    x += shift * (y[:, None] == torch.arange(FILTERS) % C)
    return {"mis": metrics.mis(x, y, C), "mis_balanced": metrics.mis_balanced(x, y, C)}


def main() -> None:
    started = time.perf_counter()
    rows = []
    for C in CLASSES:
        truth = {"mis": information(SHIFTS["shifted"], 1 / C), "mis_balanced": information(SHIFTS["shifted"], 0.5)}
        bound = {"mis": entropy(1 / C), "mis_balanced": math.log(2)}
        for n in IMAGES:
            found = {name: estimates(C, n, shift) for name, shift in SHIFTS.items()}
            for metric in truth:
                of = {name: round(values[metric], 6) for name, values in found.items()}
                ends = {"bound": round(bound[metric], 6), "truth": round(truth[metric], 6)}
                rows.append({"metric": metric, "classes": C, "images": n} | of | ends)
            print(rows[-2:], flush=True)
    here = provenance.here(torch.device("cpu"))
    kept = {name: here[name] for name in ("commit", "dirty", "hardware")}
    shares = {"filters": FILTERS, "shift": SHIFTS["shifted"], "seconds": round(time.perf_counter() - started, 1)}
    measured.write("few-images", {"rows": rows} | shares | kept)


if __name__ == "__main__":
    main()
