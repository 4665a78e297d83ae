"""Attack published networks of CIFAR-10 and measure how well their features betray it: data/measured/detection.json.

    python tools/detection.py [IMAGES]

Of the first IMAGES test images those count that the network classifies rightly and the attack turns: a detector is to tell
them from themselves before the attack.  A run that has been measured with the same weights and images is left alone, so the
tool goes on where it was stopped.
"""

import sys

import torch

from csgbook import experiments, measured
from csgbook.evidence import schedules
from csglib import data
from csglib.analysis import attacks
from csglib.data import of as load
from csglib.runs import Run

IMAGES = int(sys.argv[1]) if len(sys.argv) > 1 else 2600
SIZES = (500, 1000, 2000)
SPLITS = 5


def strangers(labels: torch.Tensor) -> torch.Tensor:
    """For each image the place of the next one with another label: whose features the adaptive attack imitates."""
    N = len(labels)
    other = (torch.arange(N) + 1) % N
    while (same := labels[other] == labels).any():
        other[same] = (other[same] + 1) % N
    return other


def measure(run: Run) -> dict:
    net = run.network().eval()
    test = load(run.recipe).test
    images, labels = data.to_float(test.images[:IMAGES]).contiguous(), test.labels[:IMAGES]
    with torch.no_grad():
        natural = torch.cat([net.pooled(batch) for batch in images.split(200)])
    right = net.head(natural).argmax(1) == labels
    target = natural[strangers(labels)]
    found = {"images": IMAGES, "accuracy": right.double().mean().item(), "attacks": {}}
    for name in (*attacks.ATTACKS, "match"):
        features = []
        for i in range(0, IMAGES, 200):
            x, y = images[i : i + 200], labels[i : i + 200]
            generator = torch.Generator().manual_seed(i)
            x = attacks.match(net, x, target[i : i + 200]) if name == "match" else attacks.attack(net, x, y, name, generator)
            with torch.no_grad():
                features.append(net.pooled(x))
        changed = torch.cat(features)
        with torch.no_grad():
            turned = right & (net.head(changed).argmax(1) != labels)
        pair = natural[turned], changed[turned]
        used = int(turned.sum())
        errors = {s: attacks.detection_errors(*pair, s, SPLITS) for s in SIZES if used >= s // 2 + 50}
        found["attacks"][name] = {"turned": used / int(right.sum()), "used": used, "errors": errors}
        print(f"{run.recipe.name} {name}: {used} turned, errors {errors}", flush=True)
    return found


if __name__ == "__main__":
    every = [experiments.published("adversarial", profile) for profile in schedules.PROFILES]
    for group in (group for groups in every for group in groups.values()):
        for run in group:
            if (measured.of("detection", run) or {}).get("images") != IMAGES:
                measured.keep("detection", run, measure(run))
