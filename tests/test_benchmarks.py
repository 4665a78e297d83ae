"""What `make bench` writes and the page tells of it.  Nothing here is timed: a benchmark is no test."""

import json
import runpy
import sys

import pytest
from conftest import ROOT

from csgbook import measured
from csgbook.pages import benchmarks
from csglib import Problem

pytestmark = pytest.mark.slow

NAMES = ["cpu_train", "cpu_float32", "csg_step", "csg_step_1000", "mis", "mis_memory_mb", "peak_rss_mb"]
NAMES += ["fast_minus_plain", "gpu_train", "gpu_run_s", "gpu_run8_s"]


@pytest.fixture
def tool() -> dict:
    return runpy.run_path(str(ROOT / "tools" / "bench.py"))["main"].__globals__


@pytest.fixture
def bench(tool, monkeypatch, tmp_path):
    """The tool with an empty place for its results and measures that take no time."""
    values = tool
    monkeypatch.setattr(measured, "FOLDER", tmp_path / "measured")
    monkeypatch.setattr(values["paths"], "ROOT", tmp_path)
    monkeypatch.setattr(values["torch"].cuda, "is_available", lambda: False)
    detail = {"seconds": 0.1, "usual_seconds": 11.0, "largest_difference": 1e-15}
    values["mis"] = lambda rounds: ([100.0, 110.0, 130.0][:rounds], detail)
    return values


def rows(tmp_path) -> dict[str, dict]:
    found = json.loads((tmp_path / "build" / "bench.json").read_text())
    assert found == measured.read("speed")["rows"]
    assert [row["name"] for row in found] == NAMES
    assert all(set(row) == {"name", "value", "unit", "spread", "against", "hardware", "detail"} for row in found)
    return {row["name"]: row for row in found}


def test_a_measure_is_a_median_with_its_quartiles_and_its_machine(bench, tmp_path):
    bench["main"](3, ["mis"])
    row = rows(tmp_path)["mis"]
    assert (row["value"], row["spread"], row["unit"]) == (110.0, [105.0, 120.0], "times")
    assert row["hardware"]["processor"] and row["detail"]["rounds"] == 3
    assert (
        "| Mutual information on a CPU" in benchmarks.table().data and "110.0 times (105.0 to 120.0)" in benchmarks.table().data
    )


def test_what_this_machine_cannot_measure_keeps_its_last_measurement_and_says_where_it_was_made(bench, tmp_path, capsys):
    bench["main"](1, ["mis", "gpu_run_s"])
    assert rows(tmp_path)["gpu_run_s"]["value"] is None
    assert "gpu_run_s: this machine cannot measure it" in capsys.readouterr().err
    assert "not measured yet" in benchmarks.table().data

    hardware = {"processor": "a processor", "threads": 16, "gpu": "a large GPU"}
    kept = rows(tmp_path) | {}
    kept["gpu_run_s"] |= {"value": 55.5, "spread": [55.0, 56.0], "hardware": hardware, "detail": {"accuracy": [0.91]}}
    measured.write("speed", {"rows": list(kept.values())})
    bench["main"](3, ["mis", "gpu_run_s"])
    row = rows(tmp_path)["gpu_run_s"]
    assert row["value"] == 55.5 and row["hardware"] == hardware
    assert "| a large GPU" in benchmarks.table().data and "accuracy of 0.91" in benchmarks.sentence().data


def test_a_measure_that_fails_leaves_the_others_and_its_last_value(bench, tmp_path, capsys):
    def broken(rounds):
        raise Problem("there is no CIFAR-10 here")

    bench["main"](3, ["mis"])
    bench["mis"], bench["peak_rss"] = broken, lambda rounds: ([1000.0], {})
    bench["main"](3, ["mis", "peak_rss_mb"])
    assert rows(tmp_path)["mis"]["value"] == 110.0 and rows(tmp_path)["peak_rss_mb"]["value"] == 1000.0
    assert "there is no CIFAR-10 here; its last measurement stays" in capsys.readouterr().err


def test_a_child_that_fails_is_told_with_its_last_words(tool):
    with pytest.raises(Problem, match="could not be measured: .*no-such-loop"):
        tool["child"]("ours", "no-such-loop")


def test_the_loops_of_the_benchmark_train(tool, monkeypatch):
    """Both sides of the comparison, for a few steps each."""
    monkeypatch.setitem(tool, "STEPS", 1)
    for found in (tool["usual"]("cpu", 0), tool["ours"]("plain")):
        assert found["step"] > 0 and found["start"] >= 0


def test_memory_above_what_is_held_before_is_told(tool):
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux tells a process its highest mark")
    small, large = (tool["child"]("memory", n)["mb"] for n in (8, 256))
    assert 0 <= small < large


def test_the_loops_are_compared_by_intervals_of_three_seeds(bench, tmp_path):
    found = {"plain": [(0.50, 0.10), (0.52, 0.11), (0.54, 0.12)], "fast": [(0.51, 0.10), (0.51, 0.12), (0.54, 0.12)]}
    pairs = {(loop, seed): pair for loop, seeds in found.items() for seed, pair in enumerate(seeds)}
    bench["child"] = lambda what, loop, seed: dict(zip(("accuracy", "mis"), pairs[loop, seed], strict=True))
    bench["main"](1, ["fast_minus_plain"])
    row = rows(tmp_path)["fast_minus_plain"]
    assert row["value"] == 0 and row["spread"] == [-0.005, 0.005]
    assert row["detail"]["intervals"]["accuracy"] == [-0.0248, 0.0248]  # 4.303 * 0.01 / sqrt(3)
    assert "intervals of their differences are -0.025 to +0.025 and -0.011 to +0.018" in benchmarks.sentence().data


def test_the_page_tells_what_pictures_in_files_take(monkeypatch):
    rates = {"read": [900, 1100], "read_usual": [500], "train": [300], "train_float32": [150], "train_usual": [100]}
    parts = {"picture": {"side": 64, "bytes": 0.1, "decoded": 0.5, "squared": 1.5}, "mis": {"seconds": 40.2, "peak_mb": 300.0}}
    whole = {"epoch": {"peak_mb": 1500.0, "pixels_mb": 5400.0, "images_per_second": 280.0}}
    stamp = {
        "size": 128,
        "net": "resnet8",
        "batch": 64,
        "precision": "bfloat16",
        "hardware": {"processor": "a processor", "threads": 2},
    }
    monkeypatch.setattr(measured, "read", lambda kind: rates | parts | whole | stamp if kind == "files" else {})
    told = benchmarks.from_files().data
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told.split("\n\n")[0].splitlines()[2:]]
    assert [row[1:] for row in table] == [["1,000", "500", "2.00"], ["300", "100", "3.00"], ["150", "100", "1.50"]]
    assert "reading takes 0.10, decoding 0.40 and resizing 1.00: the bound is the processor, not the disk" in told
    assert "5.4 GB of pixels" in told and "at most 1.50 GB of memory" in told and "takes 40 s and 300 MB" in told
    monkeypatch.setattr(measured, "read", lambda kind: {})
    assert "`python tools/bench_files.py` does it" in benchmarks.from_files().data
