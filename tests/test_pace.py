"""Predicted times: the arithmetic, what is measured and how often, and what is said of a precision that is emulated."""

import dataclasses
import sys

import pytest
import torch
import trainings

from csglib import networks, precision
from csglib.recipe import Recipe
from csglib.training import pace, trainer
from csglib.training.pace import Pace, Size

CPU = torch.device("cpu")
TINY = Recipe(dataset="tiny", method="csg", epochs=3, batch_size=64, precision="float32")


@pytest.mark.parametrize(
    "seconds, said",
    [
        (0.2, "1 s"),
        (40.0, "40 s"),
        (89.0, "89 s"),
        (95.0, "2 min"),
        (1500.0, "25 min"),
        (6900.0, "1 h 55 min"),
        (260e3, "3 days"),
    ],
)
def test_a_time_in_words(seconds, said):
    assert pace.words(seconds) == said


def test_a_training_takes_its_epochs_each_with_whole_batches_and_an_evaluation():
    of, measured = Size(1000, 500, 32, 10), Pace(train=0.01, test=0.001)
    recipe = Recipe(method="csg", epochs=9, batch_size=300, precision="float32")
    assert pace.seconds(recipe, of, measured) == pytest.approx(9 * (900 * 0.01 + 500 * 0.001))
    skipping = dataclasses.replace(recipe, method="matched")  # it trains in the standard epochs of csg alone: 6 of 9
    assert pace.seconds(skipping, of, measured) == pytest.approx(6 * (900 * 0.01 + 500 * 0.001))


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["cifar10", "cifar10-mini"])
def test_the_known_sizes_are_those_of_the_data(dataset, request):
    found = request.getfixturevalue({"cifar10": "cifar10", "cifar10-mini": "mini"}[dataset])
    size = (len(found.train), len(found.test), found.train.images.shape[2], len(found.classes))
    assert pace.KNOWN[dataset] == size
    assert pace.size(Recipe(dataset=dataset, holdout=500)) == Size(size[0] - 500, 500, *size[2:])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["standard", "csg", "matched", "picnn", "icnn"])
def test_a_few_steps_of_every_method_are_measured(method, tiny):
    recipe = dataclasses.replace(TINY, method=method)
    found = pace.measure(recipe, pace.size(recipe), CPU)
    assert 0 < found.test < found.train < 60


def test_recipes_that_differ_in_seed_or_schedule_alone_are_measured_once(monkeypatch, tiny):
    asked = []
    monkeypatch.setattr(pace, "measure", lambda recipe, of, device: asked.append(recipe.method) or Pace(0.1, 0.0))
    several = [dataclasses.replace(TINY, seed=s, epochs=e) for s, e in ((0, 3), (1, 6))]
    several.append(dataclasses.replace(TINY, method="icnn"))
    assert pace.total(several, CPU) == pytest.approx(0.1 * 320 * (3 + 6 + 3))
    assert asked == ["csg", "icnn"]


@pytest.mark.parametrize("native, slow", [(False, 12.0), (True, 0.5)])
def test_another_precision_is_named_where_it_is_faster(native, slow, monkeypatch, tiny):
    """As if bfloat16 took so many times as long as float32."""
    monkeypatch.setattr("csglib.precision.cpu_has_bfloat16", lambda: native)
    monkeypatch.setattr(pace, "measure", lambda r, of, _: Pace(slow if r.precision == "bfloat16" else 1.0, 0.0))
    faster, other = ("bfloat16", "float32") if native else ("float32", "bfloat16")
    told = pace.predict(dataclasses.replace(TINY, precision=other), pace.size(TINY), CPU)
    assert f"with --precision {faster} about {pace.words(960 * min(1.0, slow))}" in told
    assert "with --precision" not in pace.predict(dataclasses.replace(TINY, precision=faster), pace.size(TINY), CPU)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_precision_that_is_emulated_is_told_before_training_with_its_measured_factor(
    precision, monkeypatch, tiny, tmp_path, capsys
):
    monkeypatch.setattr("csglib.precision.cpu_has_bfloat16", lambda: False)
    monkeypatch.setattr(trainer, "emulation", lambda net, images, p: 12.34 if (len(images), p) == (16, precision) else 0)
    monkeypatch.setitem(networks.NETS, "small", trainings.small)
    recipe = Recipe(dataset="tiny", net="small", method="standard", epochs=1, batch_size=64, precision=precision)
    run = trainer.train(recipe, tmp_path / "run", "cpu")
    said = capsys.readouterr().err
    assert (
        f"{precision} is emulated here: 16 images take 12.3 times as long as in float32" in said
        and "--precision float32" in said
    )
    assert run.recipe.precision == precision  # and it goes on


def test_what_is_native_is_not_called_emulated(monkeypatch):
    for native in (True, False):
        monkeypatch.setattr("csglib.precision.cpu_has_bfloat16", lambda native=native: native)
        assert not precision.emulated("float32", CPU) and precision.emulated("bfloat16", CPU) is not native


def test_the_factor_is_measured_on_a_copy(mini):
    net = trainings.small(10).train()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    assert 0.01 < precision.emulation(net, mini.train.images[:4], "bfloat16") < 1000
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize(
    "limit, native", [("AVX2", False), ("avx512_core", False), ("AVX512_CORE_BF16", True), ("ALL", True), ("", True)]
)
def test_a_limit_on_what_onednn_may_use_counts(limit, native, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert precision.cpu_has_bfloat16() is native


@pytest.mark.slow
def test_the_command_predicts_when_all_is_ready_and_trains_the_same_bits(csglib, monkeypatch, tmp_path, tiny):
    monkeypatch.setitem(networks.NETS, "small", trainings.small)
    words = ["train", "--dataset", "tiny", "--net", "small", "--method", "csg", "--cycle", "gs", "--precision", "float32"]
    words += ["--batch-size", "64", "--epochs", "2"]
    assert csglib(*words, "--out", tmp_path / "silent")[0] == 0  # a second of training is not predicted
    real = pace.predict
    monkeypatch.setattr(pace, "tell", lambda r, dataset, device: print(real(r, pace.size_of(dataset), device), file=sys.stderr))
    code, _, err = csglib(*words, "--out", tmp_path / "told")
    assert code == 0 and err.startswith("csg, 2 epochs: about 1 s here, ")
    told, silent = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("told", "silent"))
    assert told == silent
    code, _, err = csglib(*words, "--out", tmp_path / "told")
    assert code == 2 and err.count("\n") == 1  # what is wrong is said alone


@pytest.mark.parametrize("epochs, said", [(312, False), (313, True)])
def test_a_minute_on_the_sample_is_not_predicted(epochs, said, tiny, monkeypatch, capsys):
    monkeypatch.setattr(pace, "predict", lambda *_: "about a while")
    pace.tell(dataclasses.replace(TINY, epochs=epochs), tiny, CPU)
    assert (capsys.readouterr().err == "about a while\n") is said
