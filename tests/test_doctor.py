"""The doctor: what it says of this machine and of others, and which profile and precision suit a device."""

import shutil
import sys
from collections import namedtuple
from contextlib import nullcontext

import pytest
import torch

from csglib import Problem, doctor, precision
from csglib.data import released
from csglib.errors import Unknown
from csglib.recipe import Recipe
from csglib.training import gpu as gpu_checks
from csglib.training import pace


@pytest.fixture
def gpu(monkeypatch):
    """gpu(name, capability): as if there were such a GPU; none can be computed on."""

    def pretend(name: str, capability: tuple[int, int]) -> None:
        monkeypatch.setattr("csglib.precision.pick_device", lambda _: torch.device("cuda"))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
        monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: capability >= (8, 0))

    return pretend


@pytest.fixture(autouse=True)
def predicted(monkeypatch):
    """What is predicted is the concern of tests/test_pace.py."""
    monkeypatch.setattr(
        pace, "predict", lambda recipe, of, device: f"{recipe.epochs} epochs: about 25 min in {recipe.precision}"
    )


def test_the_doctor_predicts_a_run_of_the_book(monkeypatch):
    monkeypatch.setattr("csglib.precision.cpu_has_bfloat16", lambda: False)
    monkeypatch.setattr("csglib.precision.pick_device", lambda _: torch.device("cpu"))
    assert str(named("ResNet-20 on CIFAR-10")).endswith("30 epochs: about 25 min in float32")


def named(text: str) -> doctor.Finding:
    return next(f for f in doctor.examine() if text in f.text)


def test_without_a_gpu_the_page_trains_the_sample(monkeypatch):
    monkeypatch.setattr("csglib.precision.pick_device", lambda _: torch.device("cpu"))
    settled = precision.settle_precision(Recipe(), torch.device("cpu"))[0].precision
    assert (doctor.choose().profile, doctor.choose().precision) == ("quick", settled)
    assert str(doctor.choose()).startswith(f"No GPU: profile quick, precision {settled}, since this processor")


def test_a_t4_gets_the_short_schedule_and_the_precision_that_training_takes_there(gpu):
    gpu("Tesla T4", (7, 5))
    settled = precision.settle_precision(Recipe(), torch.device("cuda"))[0].precision
    assert settled != "bfloat16"
    assert (doctor.choose().profile, doctor.choose().precision) == ("short", settled)
    assert str(doctor.choose()).startswith(f"GPU: profile short, precision {settled}, since Tesla T4 does not compute bfloat16")


def test_a_gpu_with_bfloat16_gets_the_papers_schedule(gpu):
    gpu("NVIDIA L4", (8, 9))
    assert (doctor.choose().profile, doctor.choose().precision) == ("paper", "bfloat16")
    assert "precision bfloat16, since NVIDIA L4 computes" in doctor.choose().told


def test_a_profile_that_is_asked_for_is_taken_and_an_unknown_one_refused(gpu):
    gpu("NVIDIA L4", (8, 9))
    assert doctor.choose("quick").profile == "quick"
    with pytest.raises(Unknown, match="'fast'.* auto, quick, short, paper"):
        doctor.choose("fast")


def test_here_nothing_has_to_be_done(csglib, monkeypatch, tmp_path):
    monkeypatch.setenv("CSGLIB_DATA", str(tmp_path))
    code, out, err = csglib("doctor")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[-1] == "Nothing has to be done."
    for part in (
        f"torch {torch.__version__.split('+')[0]}",
        "2000 training",
        "csglib data get cifar10",
        "published runs in",
        str(tmp_path),
    ):
        assert any(part in line for line in lines[:-1]), part


def test_where_something_has_to_be_done_the_exit_status_says_so(csglib, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CSGLIB_DATA", str(tmp_path / "file"))
    code, out, _ = csglib("doctor")
    assert code == 1
    assert out.splitlines()[-1] == "1 thing to do, marked `do`"
    assert [line for line in out.splitlines() if line.startswith("do ")][0].endswith("set CSGLIB_DATA to a folder that can")


def test_altered_files_of_cifar10_have_to_be_replaced(monkeypatch, tmp_path):
    (tmp_path / released.CIFAR10.folder).mkdir()
    monkeypatch.setenv("CSGLIB_DATA", str(tmp_path))
    (found,) = doctor.downloaded()
    assert found.state == "do" and "data_batch_1.bin is missing" in found.text


def test_a_download_that_was_stopped_is_noted_with_how_it_goes_on(monkeypatch, tmp_path):
    (tmp_path / "stl10_binary.part").mkdir()
    monkeypatch.setenv("CSGLIB_DATA", str(tmp_path))
    assert [f.state for f in doctor.downloaded()] == ["note", "note"]
    assert "csglib data get stl10` goes on with" in [f.text for f in doctor.downloaded()][1]


def test_a_damaged_run_is_found_and_no_run_is_only_noted(run, tmp_path):
    assert doctor.published(tmp_path).state == "note" and "csglib data get runs" in doctor.published(tmp_path).text
    shutil.copytree(run.path, tmp_path / "whole")
    assert doctor.published(tmp_path).text == f"1 published runs in {tmp_path}"
    shutil.copytree(run.path, tmp_path / "damaged")
    (tmp_path / "damaged" / "metrics.json").write_text("{}")
    found = doctor.published(tmp_path)
    assert found.state == "do" and "1 of 2" in found.text and "metrics.json was altered" in found.text


def test_a_sample_that_was_altered_has_to_be_restored(monkeypatch, tmp_path):
    monkeypatch.setattr("csglib.data.cifar10.ROOT", tmp_path)
    assert doctor.sample().state == "do"


def test_a_gpu_that_cannot_compute_or_that_torch_does_not_see_has_to_be_seen_to(gpu, monkeypatch):
    gpu("Tesla K80", (3, 7))

    def fails(*_, **__):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")

    monkeypatch.setattr(torch, "zeros", fails)
    assert doctor.gpu().state == "do" and "no kernel image" in doctor.gpu().text and "more" not in doctor.gpu().text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert doctor.gpu().state == "do" and "nvidia-smi is here" in doctor.gpu().text


def test_a_torchvision_of_another_torch_is_found(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)
    assert doctor.pair().state == "do" and "pip install --upgrade torch torchvision" in doctor.pair().text


def test_without_a_gpu_none_is_tried_and_one_sentence_says_so(csglib, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert csglib("doctor", "--gpu") == (
        0,
        "note there is no GPU here that torch can use, so nothing was tried\nNothing has to be done.\n",
        "",
    )


def test_each_check_of_a_gpu_says_what_it_found_and_one_that_fails_has_to_be_reported(csglib, monkeypatch):
    def check(name: str) -> str:
        if name == "side_by_side":
            raise Problem("they end 90 % of their way from where they end alone")
        return "as it should be"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_checks, "check", check)
    code, out, _ = csglib("doctor", "--gpu")
    lines = out.splitlines()
    assert code == 1 and len(lines) == len(gpu_checks.CHECKS) + 1
    assert lines[0] == "ok   captured: as it should be (0 s)"
    assert "do   side by side: they end 90 % of their way from where they end alone; please report this line" in out


def test_little_disk_space_is_told(monkeypatch):
    usage = namedtuple("usage", "total used free")(0, 0, 3_000_000_000)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    assert "3 GB are free" in doctor.place().text


def test_missing_notebook_tools_are_only_noted(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "papermill" else object())
    assert named("the book").state == "note" and "no papermill;" in named("the book").text
    assert named("notebooks").state == "ok"
