"""Measure what data beyond memory take here, into data/measured/files.json; needs `csglib data get tiny-imagenet`.

    python tools/bench_files.py [ROUNDS]     20 minutes on two cores, with nothing else running
    python tools/bench_files.py child WHAT   one measurement in a process of its own; prints JSON

Tiny ImageNet brought to 128 x 128 pixels, whose 110,000 pictures are 5.4 GB, stays in its files.  Read alone, and with a
ResNet-8: by csglib, and by the usual loop of torchvision's ImageFolder and transforms in a DataLoader with one worker per core.
Then one whole epoch with the memory of all its processes, and MIS at the size of ImageNet's validation set.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from csgbook import measured
from csglib import Problem, data, memory, networks, paths
from csglib.analysis.information import mutual_information
from csglib.data.decoded import square
from csglib.data.pictures import read
from csglib.data.released import TINY
from csglib.data.streamed import Reading
from csglib.precision import native
from csglib.recipe import Recipe
from csglib.runs import provenance
from csglib.training import prepare, trainer
from csglib.training.loop import loop_of

SIZE, BATCH, NET = 128, 64, "resnet8"
ALONE, STEPS = 20_000, 60  # pictures read without a network; steps of training
CPU = torch.device("cpu")


def main(rounds: int) -> None:
    if not (paths.folder() / TINY.folder).is_dir():
        raise Problem(f"{TINY.folder} is not in {paths.folder()}: `csglib data get tiny-imagenet` fetches it")
    here = provenance.here(CPU)
    asked = ("read", "read_usual", "train", "train_float32", "train_usual")
    found = {name: [child(name)["images_per_second"] for _ in range(rounds)] for name in asked}
    told = {name: [round(v) for v in values] for name, values in found.items()}
    whole = {"picture": child("picture"), "epoch": child("epoch"), "mis": child("mis")}
    stamp = {name: here[name] for name in ("commit", "dirty", "hardware")}
    measured.write("files", told | whole | {"size": SIZE, "batch": BATCH, "net": NET, "precision": native(CPU)[0]} | stamp)


def child(what: str) -> dict:
    done = subprocess.run([sys.executable, __file__, "child", what], capture_output=True, text=True)
    if done.returncode:
        raise Problem(f"{what} could not be measured: {done.stderr.strip().splitlines()[-1]}")
    print(f"{what}: {done.stdout.splitlines()[-1]}", flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def dataset() -> data.Dataset:
    return data.load(f"tiny-imagenet@{SIZE}", reading=Reading("streamed"))


def folder() -> torch.utils.data.Dataset:
    """The training pictures as most code reads them."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    crop, flip = transforms.RandomCrop(SIZE, padding=SIZE // 8), transforms.RandomHorizontalFlip()
    change = transforms.Compose([transforms.Resize(SIZE), transforms.CenterCrop(SIZE), crop, flip, transforms.ToTensor()])
    return ImageFolder(paths.folder() / TINY.folder / "train", change)


def usual(batch: int) -> torch.utils.data.DataLoader:
    torch.manual_seed(0)
    return torch.utils.data.DataLoader(folder(), batch, shuffle=True, num_workers=os.cpu_count(), drop_last=True)


# Read alone


def read_alone() -> dict:
    images = dataset().train.take(slice(ALONE))
    began = time.perf_counter()
    n = sum(len(data.to_float(x)) for x, _ in data.batches(images, BATCH, torch.Generator().manual_seed(0)))
    return {"images_per_second": n / (time.perf_counter() - began)}


def read_usual() -> dict:
    began, n = time.perf_counter(), 0
    for x, _ in usual(BATCH):
        n += len(x)
        if n >= ALONE:
            break
    return {"images_per_second": n / (time.perf_counter() - began)}


def picture() -> dict:
    """Milliseconds of one core for a picture: its bytes, decoding them, and all that makes it square."""
    train = dataset().train
    files = [train.root / os.fsdecode(path) for path in train.paths[:2000]]
    steps = {"bytes": lambda p: p.read_bytes(), "decoded": lambda p: read(p, ""), "squared": lambda p: square(p, SIZE)}
    found = {"side": read(files[0], "").width}
    for name, step in steps.items():
        began = time.perf_counter()
        for path in files:
            step(path)
        found[name] = round(1000 * (time.perf_counter() - began) / len(files), 4)
    return found


# With a network


def train(precision: str) -> dict:
    """The second of two epochs, so that starting counts in neither loop."""
    memory.keep()
    d = dataset()
    recipe = Recipe(method="standard", net=NET, precision=precision, lr=0.1, batch_size=BATCH)
    m, net, gate = prepare.build(recipe, len(d.classes))
    net.to(memory_format=torch.channels_last)
    images = d.train.take(slice(BATCH * STEPS))
    loop = loop_of(recipe, m, net, gate, prepare.optimisers_of(recipe, m, net, gate), images)
    for epoch in range(2):
        began = time.perf_counter()
        loop.start(epoch, tqdm(disable=True))
        loop.row(epoch)
    return {"images_per_second": BATCH * STEPS / (time.perf_counter() - began)}


def train_usual() -> dict:
    net = networks.build(NET, 200).train()
    optimiser = torch.optim.SGD(net.parameters(), 0.1, 0.9, nesterov=True, weight_decay=5e-4)
    times = []
    for x, y in usual(BATCH):
        loss = F.cross_entropy(net(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()
        times.append(time.perf_counter())
        if len(times) == STEPS + 10:
            break
    return {"images_per_second": BATCH * STEPS / (times[-1] - times[9])}


def epoch() -> dict:
    """One epoch by the command's own code, evaluated and published, and the most memory of all its processes together."""
    most, done = 0.0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.5):
            most = max(most, held())

    threading.Thread(target=watch, daemon=True).start()
    with tempfile.TemporaryDirectory() as place:
        recipe = Recipe(
            dataset=f"tiny-imagenet@{SIZE}", method="standard", net=NET, epochs=1, batch_size=BATCH, precision=native(CPU)[0]
        )
        run = trainer.train(recipe, Path(place) / "run", "cpu")
    done.set()
    rate, pixels = run.provenance["images_per_second"], 3 * SIZE**2 * 110_000
    return {"peak_mb": round(most), "pixels_mb": round(pixels / 1e6), "images_per_second": rate}


def held() -> float:
    """MB of this process and those that it started, pages that they share counted once."""
    mine = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    total = 0
    for pid in ["self", *mine]:
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:  # it has ended meanwhile
            continue
        total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total * 1024 / 1e6


# Mutual information at ImageNet's size


def mis() -> dict:
    """50,000 images, 512 filters and 1,000 classes: seconds, and the most memory above what the features themselves take."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(50_000) % 1000
    features = torch.rand(50_000, 512, generator=generator) + (labels[:, None] == torch.arange(512)).float()
    mutual_information(features[:2000, :2], labels[:2000], 1000)  # compiles where nothing was kept
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark so far is forgotten
    before, began = status("VmRSS"), time.perf_counter()
    mutual_information(features, labels, 1000)
    seconds = time.perf_counter() - began
    return {"seconds": round(seconds, 1), "peak_mb": round(status("VmHWM") - before)}


def status(which: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) * 1024 / 1e6


KINDS = {
    "read": read_alone,
    "read_usual": read_usual,
    "picture": picture,
    "train": lambda: train(native(CPU)[0]),
    "train_float32": lambda: train("float32"),
    "train_usual": train_usual,
    "epoch": epoch,
    "mis": mis,
}

if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"
    try:
        if sys.argv[1:2] == ["child"]:
            print(json.dumps(KINDS[sys.argv[2]]()))
        else:
            main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
    except Problem as problem:
        sys.exit(f"csglib: {problem}")
