"""How fast it is: ratios measured side by side in one run, written to build/bench.json and data/measured/speed.json.

    python tools/bench.py [ROUNDS]        all that this machine can measure, 30 minutes on two cores
    python tools/bench.py only NAME...    some of them; the others keep their last measurement
    python tools/bench.py child WHAT ...  one measurement in a process of its own, as the first does; prints JSON

What this machine cannot measure keeps its last committed measurement, which says where it was made.  A ratio is the median
over rounds in each of which both sides run, one after the other; its spread is the quartiles.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from csgbook import measured
from csgbook.evidence.rules import interval
from csglib import Problem, data, files, networks, paths
from csglib.analysis.information import mutual_information
from csglib.data.images import Images
from csglib.memory import keep
from csglib.precision import native, settle_precision
from csglib.recipe import Recipe
from csglib.runs import provenance
from csglib.training import prepare, trainer
from csglib.training.loop import Loop, loop_of

ROUNDS = 5
STEPS = 40  # of 128 images in a round of the training loops
EPOCHS = 10  # over which starting is counted: 10 of 390 steps
SHORT = 3  # epochs of the trainings that compare the loops' accuracy
UNITS = {
    "cpu_train": ("times", "the usual loop: float32, transforms of torchvision in a DataLoader with a worker a core"),
    "cpu_float32": ("times", "the same usual loop, in float32 as this one"),
    "csg_step": ("times", "a step of standard training, ResNet-20, 64 filters, 10 classes"),
    "csg_step_1000": ("times", "a step of standard training, ResNet-18, 512 filters, 1,000 classes"),
    "mis": ("times", "mutual_info_classif of scikit-learn, a class at a time; 10,000 samples of 64 filters, 10 classes"),
    "mis_memory_mb": ("MB", "the memory before the call; 10,000 samples of 2,048 filters, 10 classes"),
    "peak_rss_mb": ("MB", "nothing; one epoch of CIFAR-10, read, trained and evaluated"),
    "fast_minus_plain": ("of accuracy", "the plain loop, three seeds of CSG each"),
    "gpu_train": ("times", "the usual loop on that machine, with 8 workers"),
    "gpu_run_s": ("s", "nothing; 200 epochs of ResNet-20 on CIFAR-10"),
    "gpu_run8_s": ("s", "nothing; the same, a run, when eight train side by side"),
}


def main(rounds: int, names: list[str]) -> None:
    kept = {row["name"]: row for row in measured.read("speed").get("rows", [])}
    measures = {
        "cpu_train": cpu_train,
        "cpu_float32": cpu_float32,
        "csg_step": csg_step,
        "csg_step_1000": csg_step_1000,
        "mis": mis,
    }
    measures |= {"mis_memory_mb": mis_memory, "peak_rss_mb": peak_rss, "fast_minus_plain": loops}
    if torch.cuda.is_available():
        measures |= {"gpu_train": gpu_train, "gpu_run_s": gpu_run, "gpu_run8_s": gpu_run8}
    here = provenance.here(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for name in names:
        if name not in measures:
            print(f"{name}: this machine cannot measure it; its last measurement stays", file=sys.stderr)
            continue
        try:
            values, detail = measures[name](rounds)
        except Problem as problem:
            print(f"{name}: {problem}; its last measurement stays", file=sys.stderr)
            continue
        unit, against = UNITS[name]
        quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
        kept[name] = {
            "name": name,
            "value": round(quartiles[1], 4),
            "unit": unit,
            "spread": [round(quartiles[0], 4), round(quartiles[2], 4)],
            "against": against,
            "hardware": here["hardware"],
            "detail": detail | {"rounds": len(values), "commit": here["commit"], "dirty": here["dirty"]},
        }
        print(f"{name}: {kept[name]['value']} {unit}, quartiles {kept[name]['spread']}, {detail}", flush=True)
        write(kept)
    write(kept)


def write(kept: dict[str, dict]) -> None:
    """Rows never measured anywhere have no value."""
    empty = {"value": None, "spread": None, "hardware": None, "detail": {}}
    rows = [kept.get(n, {"name": n, "unit": unit, "against": against} | empty) for n, (unit, against) in UNITS.items()]
    path = paths.ROOT / "build" / "bench.json"
    path.parent.mkdir(exist_ok=True)
    files.write(path, json.dumps(rows, indent=1) + "\n")
    measured.write("speed", {"rows": rows})


def child(*words: object) -> dict:
    with tempfile.TemporaryDirectory() as cache:  # nothing that an earlier process compiled is found
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache}
        command = [sys.executable, __file__, "child", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise Problem(f"`{' '.join(map(str, words))}` could not be measured: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


# Training on a processor


def cpu_train(rounds: int) -> tuple[list[float], dict]:
    """Images per second over ten epochs, starting included, the plain loop's over the usual one's; alternating processes."""
    found: dict[str, list[dict]] = {"usual": [], "plain": [], "fast": []}
    for _ in range(rounds):
        found["usual"].append(child("usual", "cpu", torch.get_num_threads()))
        for loop in ("plain", "fast"):
            found[loop].append(child("ours", loop))
    totals = {name: [ten_epochs(f) for f in rows] for name, rows in found.items()}
    ratios = {name: [u / t for u, t in zip(totals["usual"], totals[name], strict=True)] for name in ("plain", "fast")}
    rates = {name: round(statistics.median(128 / f["step"] for f in rows)) for name, rows in found.items()}
    start = round(statistics.median(f["start"] for f in found["fast"]), 1)
    fast = round(statistics.median(ratios["fast"]), 3)
    return ratios["plain"], {"images_per_second": rates, "fast_loop": fast, "fast_loop_starts_in_s": start}


def cpu_float32(rounds: int) -> tuple[list[float], dict]:
    """The same in float32, as a processor without bfloat16 trains; and how near its convolutions come to a matrix product."""
    found: dict[str, list[dict]] = {"usual": [], "float32": []}
    half = native(torch.device("cpu"))[0]
    for _ in range(rounds):
        found["usual"].append(child("usual", "cpu", torch.get_num_threads()))
        for precision in dict.fromkeys(("float32", half)):
            found.setdefault(precision, []).append(child("ours", "plain", "cpu", precision))
    ratios = [ten_epochs(u) / ten_epochs(o) for u, o in zip(found["usual"], found["float32"], strict=True)]
    rates = {name: round(statistics.median(128 / f["step"] for f in rows)) for name, rows in found.items()}
    return ratios, {"images_per_second": rates, "isa": os.environ.get("ONEDNN_MAX_CPU_ISA", "all")} | child("limit")


def limit() -> dict:
    """Rates in float32 of a ResNet-20's convolutions, forward and backward, and of a product of two 1024 x 1024 matrices."""
    keep()
    net = networks.resnet20(10).to(memory_format=torch.channels_last).train()
    convs = {m: None for m in net.modules() if isinstance(m, torch.nn.Conv2d)}
    for conv in convs:
        conv.register_forward_hook(lambda m, inputs, _: convs.update({m: inputs[0].detach()}))
    net(data.to_float(load(1).images))
    first, seconds, operations = next(iter(convs)), 0.0, 0.0
    for conv, x in convs.items():
        conv._forward_hooks.clear()
        x.requires_grad_(conv is not first)  # the first convolution needs no gradient of the pixels
        y = conv(x)
        multiplied = 2 * y[0].numel() * len(y) * conv.weight[0].numel()
        operations += multiplied * (2 if conv is first else 3)
        seconds += best(partial(both_ways, conv, x, torch.ones_like(y)))
    a, b = torch.rand(2, 1024, 1024)
    product = 2 * 1024**3 / best(lambda: a @ b)
    return {
        "convolutions_ms": round(1000 * seconds, 1),
        "convolutions_gflops": round(operations / seconds / 1e9, 1),
        "product_gflops": round(product / 1e9, 1),
    }


def both_ways(conv, x, gradient) -> None:
    conv(x).backward(gradient)


def best(run, times: int = 15) -> float:
    """The fastest of several: what else the machine does can only slow it."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def ten_epochs(found: dict) -> float:
    return found["start"] + EPOCHS * 390 * found["step"]


def usual(device: str, workers: int) -> dict:
    """What most training code does: PIL images through torchvision's transforms in a DataLoader, float32."""
    from PIL import Image
    from torchvision import transforms

    images = load(STEPS + 10)
    pixels, labels = images.images.permute(0, 2, 3, 1).numpy(), images.labels.tolist()
    crop, flip = transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()
    change = transforms.Compose([crop, flip, transforms.ToTensor()])

    class Pictures(torch.utils.data.Dataset):
        def __len__(self):
            return len(labels)

        def __getitem__(self, i):
            return change(Image.fromarray(pixels[i])), labels[i]

    torch.manual_seed(0)
    net = networks.resnet20(10).to(device).train()
    optimiser = torch.optim.SGD(net.parameters(), 0.1, 0.9, nesterov=True, weight_decay=5e-4)
    gpu = device != "cpu"
    loader = torch.utils.data.DataLoader(Pictures(), 128, shuffle=True, num_workers=workers, pin_memory=gpu)
    times, began = [], time.perf_counter()
    for x, y in loader:
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        loss = F.cross_entropy(net(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()  # for its progress bar
        times.append(time.perf_counter())
    step = (times[-1] - times[9]) / (len(times) - 10)
    return {"step": step, "start": max(0.0, times[9] - began - 10 * step)}


def ours(loop: str, device: str = "cpu", precision: str | None = None) -> dict:
    keep()
    images = load(STEPS).to(device)
    recipe = Recipe(method="standard", loop=loop, precision=precision or native(torch.device(device))[0])
    began = time.perf_counter()
    steps = looping(recipe, images)
    seconds = []
    for epoch in range(3):
        steps.start(epoch, tqdm(disable=True))
        steps.row(epoch)
        seconds.append(time.perf_counter())
    step = (seconds[2] - seconds[0]) / 2 / STEPS
    return {"step": step, "start": max(0.0, seconds[0] - began - STEPS * step), "loop": loop}


def load(steps: int) -> Images:
    """Images enough for these steps, CIFAR-10's or the sample's over and over: their content takes no time."""
    sample = data.load("cifar10-mini").train
    n = 128 * steps
    times = -(-n // len(sample))
    return Images(sample.images.repeat(times, 1, 1, 1)[:n].contiguous(), sample.labels.repeat(times)[:n])


def looping(recipe: Recipe, images: Images, classes: int = 10) -> Loop:
    device = images.images.device
    m, net, gate = prepare.build(recipe, classes)
    net.to(device, memory_format=torch.channels_last)
    if gate is not None:
        gate.to(device)
    return loop_of(recipe, m, net, gate, prepare.optimisers_of(recipe, m, net, gate), images)


# The gate's share of a step


def csg_step(rounds: int) -> tuple[list[float], dict]:
    return gated_step("resnet20", 10, (128, 32), 8 * rounds, 10)


def csg_step_1000(rounds: int) -> tuple[list[float], dict]:
    return gated_step("resnet18@layer4", 1000, (32, 224), 8 * rounds, 1)


def gated_step(net_name: str, classes: int, shape: tuple[int, int], rounds: int, steps: int) -> tuple[list[float], dict]:
    """A step of the gated path, with the gate's own step and projection, over one of standard training; in turn."""
    keep()
    B, size = shape
    recipe = Recipe(net=net_name, precision=settle_precision(Recipe(), torch.device("cpu"))[0].precision)
    x, y = torch.randint(0, 256, (B, 3, size, size), dtype=torch.uint8), torch.randint(0, classes, (B,))
    loop = looping(recipe, Images(x, y), classes)
    loop.net.train()

    ratios, times = [], []
    for r in range(rounds + 1):
        seconds = {}
        for epoch in (0, 1) if r % 2 else (1, 0):  # 0 is standard, 1 gated
            started = time.perf_counter()
            for _ in range(steps):
                loop.step(epoch, x, y)
            seconds[epoch] = (time.perf_counter() - started) / steps
        if r:
            ratios.append(seconds[1] / seconds[0]), times.append(seconds[0])
    return ratios, {"milliseconds_standard": round(1000 * statistics.median(times), 1), "batch": B, "pixels": size}


# Mutual information


def mis(rounds: int) -> tuple[list[float], dict]:
    """On samples without ties, where both estimate the same number; their largest difference is told, and must be tiny."""
    from sklearn.feature_selection import mutual_info_classif

    class Silent(np.random.RandomState):  # scikit-learn's noise of 1e-10, against ties, moves a neighbour's rank now and then
        def standard_normal(self, size=None):
            return np.zeros(size)

    features, labels = normal(64)
    mutual_information(features[:100], labels[:100], 10)  # compiles where nothing was kept
    ratios, times, theirs = [], [], []
    for _ in range(min(rounds, 3)):
        started = time.perf_counter()
        found = mutual_information(features, labels, 10).numpy()
        times.append(time.perf_counter() - started)
        started = time.perf_counter()
        expected = np.stack([mutual_info_classif(features, labels == c, random_state=Silent()) for c in range(10)])
        theirs.append(time.perf_counter() - started)
        ratios.append(theirs[-1] / times[-1])
    difference = float(np.abs(found - expected).max())
    if difference > 1e-6:
        raise Problem(f"the two estimates differ by {difference:g}: one of them is wrong, so there is no ratio to tell")
    found = {"seconds": round(statistics.median(times), 3), "usual_seconds": round(statistics.median(theirs), 2)}
    return ratios, found | {"largest_difference": difference}


def mis_memory(rounds: int) -> tuple[list[float], dict]:
    by_filters = {K: child("memory", K)["mb"] for K in (512, 1024)}
    return [child("memory", 2048)["mb"] for _ in range(3)], {"fewer_filters_mb": by_filters}


def memory(filters: str) -> dict:
    """The most memory held during the call, above what is held before it."""
    features, labels = normal(int(filters))
    mutual_information(features[:, :2], labels, 10)
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark so far is forgotten
    before = held("VmRSS")
    mutual_information(features, labels, 10)
    return {"mb": held("VmHWM") - before}


def held(which: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) * 1024 / 1e6


def normal(filters: int) -> tuple[torch.Tensor, torch.Tensor]:
    """10,000 samples whose features say something of their class; no two are equal in float64."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(10_000) % 10
    features = torch.randn(10_000, filters, generator=generator, dtype=torch.float64)
    return features + 2.0 * (labels[:, None] == torch.arange(filters) % 10), labels


def peak_rss(rounds: int) -> tuple[list[float], dict]:
    both = {loop: child("peak", loop)["mb"] for loop in ("plain", "fast")}
    return [max(both.values())], {"by_loop_mb": both}


def peak(loop: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        precision = settle_precision(Recipe(), torch.device("cpu"))[0].precision
        trainer.train(Recipe(method="standard", epochs=1, loop=loop, precision=precision), Path(folder) / "run", "cpu")
    return {"mb": held("VmHWM")}


def loops(rounds: int) -> tuple[list[float], dict]:
    """Whether the fast loop costs accuracy or MIS: short trainings on CIFAR-10 with the same seeds."""
    found = {loop: [child("trained", loop, seed) for seed in range(3)] for loop in ("plain", "fast")}
    pairs = list(zip(found["fast"], found["plain"], strict=True))
    differences = {metric: [fast[metric] - plain[metric] for fast, plain in pairs] for metric in ("accuracy", "mis")}
    intervals = {metric: [round(end, 4) for end in interval(values)] for metric, values in differences.items()}
    return differences["accuracy"], found | {"epochs": SHORT, "intervals": intervals}


def trained(loop: str, seed: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        run = trainer.train(Recipe(seed=int(seed), loop=loop, epochs=SHORT), Path(folder) / "run", "cpu")
    return {name: round(run.metrics[name], 4) for name in ("accuracy", "mis")} | {"seconds": run.provenance["train_seconds"]}


# A GPU


def gpu_train(rounds: int) -> tuple[list[float], dict]:
    ratios, rates = [], []
    for _ in range(rounds):
        theirs, fast = child("usual", "cuda", 8), child("ours", "fast", "cuda")
        ratios.append(theirs["step"] / fast["step"]), rates.append(128 / fast["step"])
    return ratios, {"images_per_second": round(statistics.median(rates))}


def gpu_run(rounds: int) -> tuple[list[float], dict]:
    return whole_runs(1)


def gpu_run8(rounds: int) -> tuple[list[float], dict]:
    return whole_runs(8)


def whole_runs(n: int) -> tuple[list[float], dict]:
    """Wall time of 200 epochs, starting and evaluation after each epoch included, divided by the runs."""
    fields = {"epochs": 200, "lr": 0.1, "lr_schedule": "steps", "weight_decay": 1e-4, "loop": "fast", "precision": "bfloat16"}
    with tempfile.TemporaryDirectory() as folder:
        work = [(Recipe(seed=s, **fields), Path(folder) / str(s)) for s in range(n)]
        began = time.perf_counter()
        done = trainer.side_by_side(work, "cuda", every=50)
        wall = time.perf_counter() - began
        told = {"accuracy": [round(r.metrics["accuracy"], 4) for r in done], "mis": [round(r.metrics["mis"], 4) for r in done]}
    return [wall / n], told | {"train_seconds": [r.provenance["train_seconds"] for r in done]}


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"
    try:
        if sys.argv[1:2] == ["child"]:
            what, *rest = sys.argv[2:]
            if what == "usual":
                rest[1] = int(rest[1])
            kinds = {"usual": usual, "ours": ours, "limit": limit, "memory": memory, "peak": peak, "trained": trained}
            print(json.dumps(kinds[what](*rest)))
        elif sys.argv[1:2] == ["only"]:
            main(ROUNDS, sys.argv[2:])
        else:
            main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS, list(UNITS))
    except Problem as problem:
        sys.exit(f"csglib: {problem}")
