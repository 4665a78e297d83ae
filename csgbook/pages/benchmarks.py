"""What `make bench` measured, for the page that tells it: ratios of two things run side by side, and sizes."""

import json
import statistics

import pandas as pd
from IPython.display import Markdown

from csgbook import measured
from csgbook.pages.tables import markdown, percent

WHAT = {
    "cpu_train": "CPU training by the plain loop, images per second, ten epochs with their start",
    "cpu_float32": "The same in float32, as where bfloat16 is not native",
    "csg_step": "A gated step of CSG on a CPU",
    "csg_step_1000": "The same with 1,000 classes",
    "mis": "Mutual information on a CPU",
    "mis_memory_mb": "Memory that mutual information takes",
    "peak_rss_mb": "Memory that a CIFAR-10 training takes on a CPU",
    "gpu_train": "GPU training, images per second",
    "gpu_run_s": "A run on a GPU",
    "fast_minus_plain": "Accuracy of the fast loop above the plain one's, the same seeds",
    "gpu_run8_s": "One of eight runs side by side on a GPU",
}

NETS = {"resnet8": "A ResNet-8"}


def rows() -> list[dict]:
    return measured.read("speed").get("rows", [])


def table() -> Markdown:
    """Every figure with its spread over rounds and what it is compared with; – where no machine has measured it."""
    told = []
    for row in rows():
        value = "–"
        if row["value"] is not None:
            digits = 0 if row["unit"] == "MB" else 1 if row["value"] > 10 else 3
            value, low, high = (f"{v:z,.{digits}f}" for v in (row["value"], *row["spread"]))
            value = f"{value} {row['unit']} ({low} to {high})"
        told.append(
            {"What": WHAT[row["name"]], "Value (quartiles)": value, "Over, or of": against(row), "Made on": made_on(row)}
        )
    return markdown(pd.DataFrame(told)) if told else Markdown("Nothing has been measured yet: `make bench` does it.")


def against(row: dict) -> str:
    """What a ratio is taken over; of what is measured alone, only what was measured."""
    return row["against"].removeprefix("nothing; ")


def made_on(row: dict) -> str:
    if row["hardware"] is None:
        return "not measured yet"
    h = row["hardware"]
    return h["gpu"] or f"{h['processor']}, {h['threads']} threads"


def sentence() -> Markdown:
    """The same in numbers that mean something alone: images and seconds."""
    found = {row["name"]: row["detail"] for row in rows() if row["value"] is not None}
    told = []
    if "cpu_train" in found:
        d = found["cpu_train"]
        rates = d["images_per_second"]
        told.append(
            f"On the CPU the usual loop trained {rates['usual']:,} images per second, the plain loop here {rates['plain']:,} "
            f"and the fast one {rates['fast']:,} after {d['fast_loop_starts_in_s']:.0f} seconds of compiling, which makes a "
            f"ratio of {d['fast_loop']:.2f} over ten epochs."
        )
    if "cpu_float32" in found:
        d = found["cpu_float32"]
        rates = ", ".join(f"{rate:,} in {name}" for name, rate in d["images_per_second"].items() if name != "usual")
        step, share = 128_000 / d["images_per_second"]["float32"], d["convolutions_gflops"] / d["product_gflops"]
        told.append(
            f"With oneDNN's instructions limited to {d['isa']} the usual loop trained {d['images_per_second']['usual']:,} "
            f"images per second, ours {rates}. Convolutions take {d['convolutions_ms']:.0f} ms of a step of {step:.0f} ms, "
            f"at {percent(share)} of the rate of a product of two large matrices, which limits what any other loop could gain."
        )
    if "mis" in found:
        d = found["mis"]
        told.append(
            f"Mutual information took {d['seconds']:.2f} s, scikit-learn {d['usual_seconds']:.1f} s; no value differed by more "
            f"than {d['largest_difference']:.0e}."
        )
    if "csg_step" in found:
        told.append(f"A standard step took {found['csg_step']['milliseconds_standard']:.0f} ms.")
    if "gpu_run_s" in found:
        accuracy = json.dumps(found["gpu_run_s"]["accuracy"]).strip("[]")
        told.append(f"The run on the GPU reached an accuracy of {accuracy}.")
    if "fast_minus_plain" in found:
        d = found["fast_minus_plain"]
        accuracy, mis = (f"{low:+.3f} to {high:+.3f}" for low, high in (d["intervals"][m] for m in ("accuracy", "mis")))
        told.append(
            f"After {d['epochs']} epochs of CSG on CIFAR-10 with three seeds the fast loop reached accuracies of "
            f"{listed(d['fast'], 'accuracy')} and MIS of {listed(d['fast'], 'mis')}, the plain one "
            f"{listed(d['plain'], 'accuracy')} and {listed(d['plain'], 'mis')}; the 95 % intervals of their differences are "
            f"{accuracy} and {mis}."
        )
    return Markdown(" ".join(told))


def listed(runs: list[dict], metric: str) -> str:
    return ", ".join(f"{run[metric]:.3f}" for run in runs)


def from_files() -> Markdown:
    """What data beyond memory take, as tools/bench_files.py measured it: a table of rates, and what bounds them."""
    d = measured.read("files")
    if not d:
        return Markdown("This has not been measured yet: `python tools/bench_files.py` does it.")
    half, full, usual = (statistics.median(d[name]) for name in ("train", "train_float32", "train_usual"))
    read, read_usual = statistics.median(d["read"]), statistics.median(d["read_usual"])
    rows = [
        {"What": "Read, cropped and flipped, no network", "Here": read, "Usual loop": read_usual, "Ratio": read / read_usual},
        {"What": f"{NETS[d['net']]} trained, {d['precision']} here", "Here": half, "Usual loop": usual, "Ratio": half / usual},
        {"What": f"{NETS[d['net']]} trained, float32 here too", "Here": full, "Usual loop": usual, "Ratio": full / usual},
    ]
    if d["precision"] == "float32":
        del rows[1]
    shown = pd.DataFrame(
        [row | {k: f"{row[k]:,.0f}" for k in ("Here", "Usual loop")} | {"Ratio": f"{row['Ratio']:.2f}"} for row in rows]
    )
    p, e, m, h = d["picture"], d["epoch"], d["mis"], d["hardware"]
    rest = p["squared"] - p["decoded"]
    bound = "the processor, not the disk" if p["bytes"] < p["squared"] / 2 else "the disk"
    return Markdown(
        f"{markdown(shown).data}\n\n"
        f"Images per second, medians of {len(d['read'])} rounds on {h['processor']}, {h['threads']} threads, of Tiny ImageNet, "
        f"whose pictures had {p['side']} x {p['side']} pixels there, brought to {d['size']} x {d['size']}, in batches of "
        f"{d['batch']}. Of {p['squared']:.2f} ms that a picture takes on one core, reading takes {p['bytes']:.2f}, decoding "
        f"{p['decoded'] - p['bytes']:.2f} and resizing {rest:.2f}: the bound is {bound}. A whole epoch, "
        f"{e['pixels_mb'] / 1000:.1f} GB of pixels with those of the validation set, took at most {e['peak_mb'] / 1000:.2f} GB "
        f"of memory, all processes together. MIS of 50,000 images, 512 filters and 1,000 classes takes {m['seconds']:.0f} s "
        f"and {m['peak_mb']:,.0f} MB beside the features."
    )
