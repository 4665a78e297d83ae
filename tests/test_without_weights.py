"""Runs that are published without weights and readout: what can be checked of them, and what is refused by name."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors.torch import save

from csgbook import measured
from csgbook.explorers import explore
from csgbook.pages import origin, tables
from csglib import Problem, data, paths, runs
from csglib.runs import packing, release
from csglib.runs.verify import verify

sys.path.insert(0, str(ROOT / "tools"))
import publish  # noqa: E402


@pytest.fixture(scope="module")
def small(run, tmp_path_factory) -> runs.Run:
    return runs.read(release.publish_without_weights(run, tmp_path_factory.mktemp("published")))


@pytest.fixture
def copied(small, tmp_path) -> Path:
    return Path(shutil.copytree(small.path, tmp_path / "copied"))


def sign(folder: Path, **changes) -> None:
    path = folder / "provenance.json"
    told = json.loads(path.read_text())
    sums = told["sha256"] | {n: paths.digest(folder / n) for n in runs.FILES if (folder / n).exists()}
    path.write_text(json.dumps(told | {"sha256": sums} | changes))


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_it_keeps_recipe_history_metrics_and_provenance_and_says_what_it_lacks(small, run):
    assert sorted(p.name for p in small.path.iterdir()) == ["history.jsonl", "metrics.json", "provenance.json", "recipe.json"]
    assert small.left_out == ["model.safetensors", "readout.safetensors"] and run.left_out == []
    assert (small.recipe, small.metrics, small.history) == (run.recipe, run.metrics, run.history)
    assert small.provenance["sha256"] == run.provenance["sha256"]  # of the files that are left out as well
    assert sum(p.stat().st_size for p in small.path.iterdir()) < 20_000


def test_verification_says_what_it_could_compare(small, csglib):
    told = (
        "verified: digests, history, accuracies as numbers of 1,000 test images; model.safetensors and readout.safetensors "
        "left out, so nothing recomputed"
    )
    assert verify(small) == told
    assert csglib("verify", small.path)[:2] == (0, f"{small.path}: {told}\n")


def test_the_books_verification_and_list_take_it(small, csgbook, monkeypatch, tmp_path):
    assert not measured.check(small)
    assert csgbook("verify", small.path)[0] == 0
    monkeypatch.setattr(measured, "FOLDER", tmp_path)
    measured.write("verified", {small.recipe.name: measured.mark(small)})
    assert measured.verified(small)


@pytest.mark.parametrize("of", ["readout", "weights", "gate"])
def test_what_needs_a_file_that_is_left_out_is_refused_by_name_with_the_command(of, small):
    said = rf"{small.path} was published without model.safetensors and readout.safetensors: train it again with `csglib train"
    with pytest.raises(Problem, match=said):
        getattr(small, of)
    with pytest.raises(Problem, match=said):
        small.network()


def test_pages_that_need_a_readout_refuse_it_and_those_that_read_metrics_do_not(small, csglib):
    with pytest.raises(Problem, match="published without"):
        tables.removal({"std": [small]})
    assert f"{small.metrics['mis']:.4f}" in origin.run_entry(small)
    assert "Accuracy" in tables.ablations({"a": [small]}, "a").data
    code, _, err = csglib("evaluate", small.path)
    assert code == 2 and "published without" in err


def test_with_the_files_at_hand_it_is_a_whole_run_again(copied, run):
    for name in ("model.safetensors", "readout.safetensors"):
        shutil.copy(run.path / name, copied)
    assert runs.read(copied).readout.features.shape[0] == 1000
    (copied / "model.safetensors").write_bytes(b"another")
    with pytest.raises(Problem, match="model.safetensors was altered"):
        runs.read(copied)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"accuracy": 0.12345, "acc1": 0.12345}, "accuracy 0.12345, which is no number of its 1000 test images"),
        ({"acc3": 0.00001}, "acc3"),
        ({"removed": 0.5001}, "removed 0.5001"),
        ({"acc1": 0.0}, "contradicts itself"),
        ({"mis_null": 0.3}, "contradicts itself"),
        ({"mis_normalised": 1.5}, "contradicts itself"),
        ({"accuracy": 0.999, "acc1": 0.999}, "the last epoch in history.jsonl"),
    ],
)
def test_a_number_that_no_run_could_have_is_refused(changes, said, copied):
    edit(copied / "metrics.json", **changes)
    with pytest.raises(Problem, match="metrics.json was altered"):
        runs.read(copied)
    sign(copied)
    with pytest.raises(Problem, match=said):
        verify(runs.read(copied))


def test_a_file_that_is_gone_without_being_told_is_refused(copied):
    sign(copied, left_out=["model.safetensors"])
    with pytest.raises(Problem, match="readout.safetensors"):
        runs.read(copied)


@pytest.mark.parametrize("left", [[], ["metrics.json"], ["model.safetensors"] * 2, "model.safetensors"])
def test_no_other_file_may_be_left_out(left, copied):
    sign(copied, left_out=left)
    with pytest.raises(Problem, match="provenance.json"):
        runs.read(copied)


def test_without_its_number_of_images_nothing_is_believed(copied):
    path = copied / "provenance.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "test_images"}))
    with pytest.raises(Problem, match="how many images"):
        verify(runs.read(copied))


def test_only_a_whole_run_that_is_what_it_says_is_published_and_none_is_replaced(small, run, tmp_path):
    with pytest.raises(Problem, match="no weights to verify it by"):
        release.publish_without_weights(small, tmp_path)
    with pytest.raises(Problem, match="a published run is never replaced"):
        release.publish_without_weights(run, small.path.parent)
    false = Path(shutil.copytree(run.path, tmp_path / "false"))
    edit(false / "metrics.json", mis=0.3)
    sign(false)
    with pytest.raises(Problem, match="its readout gives"):
        release.publish_without_weights(runs.read(false), tmp_path / "published")
    assert not [p for p in (tmp_path / "published").rglob("*.json")]


def test_the_tool_publishes_each_run_of_a_folder_once_and_keeps_what_diverged(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "PUBLISHED", tmp_path / "published")
    (tmp_path / "published").mkdir()
    shutil.copytree(run.path, tmp_path / "trained" / run.recipe.name)
    failed = tmp_path / "trained" / "other.part"
    failed.mkdir()
    (failed / "report.json").write_text(json.dumps({"stopped_by": ["train_loss"], "history": [{"epoch": 1}]}))
    for expected in ("published\n", "published already\n"):
        publish.main([str(tmp_path / "trained")])
        assert capsys.readouterr().out.endswith(f"{expected}other: diverged, its report is kept\n")
    assert sorted(p.name for p in (tmp_path / "published").iterdir()) == sorted([run.recipe.name, "other.part"])
    assert runs.read(tmp_path / "published" / run.recipe.name).left_out
    assert runs.diverged(tmp_path / "published" / "other")["stopped_by"] == ["train_loss"]


# Large runs: a sample of the readout stays, and a release has the rest


@pytest.fixture(scope="module")
def large(run, tmp_path_factory) -> runs.Run:
    folder = tmp_path_factory.mktemp("large")
    return runs.read(release.publish_without_weights(run, folder, sample=300, released=folder / "release"))


def test_of_a_large_run_some_images_readout_stays_and_a_file_of_the_release_is_named(large, run):
    assert sorted(p.name for p in large.path.iterdir()) == [
        ".gitignore", "history.jsonl", "metrics.json", "provenance.json", "recipe.json", "sample.safetensors",
    ]  # fmt: skip
    told, packed = large.provenance["released"], large.path.parent / "release" / f"{run.recipe.name}.zip"
    assert told == {"file": packed.name, "bytes": packed.stat().st_size, "sha256": paths.digest(packed)}
    place = torch.linspace(0, 999, 300).long()
    assert torch.equal(large.sample.labels, run.readout.labels[place]) and large.sample.gates is None
    step = (run.readout.features.amax(0) - run.readout.features.amin(0)) / 1000
    assert ((large.sample.features - run.readout.features[place]).abs() <= step).all()
    assert torch.equal(large.sample.gate, run.readout.gate) and run.sample is run.readout
    with pytest.raises(Problem, match="fetch them with `csglib data get runs`, or train it again"):
        _ = large.readout


def test_explorers_draw_from_the_sample_and_say_so(large, run):
    shown = explore.cut({"a": [large]}, data.CLASSES, "Cut", (0, 0))
    assert "Accuracy on 300 of 1,000 test images" in shown.caption
    assert "Accuracy on 1,000 test images" in explore.cut({"a": [run]}, data.CLASSES, "Cut", (0, 0)).caption
    assert "300 test images" in explore.remove_classes({"a": large}, data.CLASSES).caption


def test_the_sample_is_verified_as_far_as_that_goes(large, tmp_path):
    told = verify(large)
    assert "of 300 images the readout stayed, with accuracy" in told
    copy = Path(shutil.copytree(large.path, tmp_path / "copy"))
    (copy / "sample.safetensors").write_bytes(b"another")
    with pytest.raises(Problem, match="sample.safetensors was altered"):
        runs.read(copy)
    r = large.sample
    false = dataclasses.replace(r, labels=(r.labels + 1) % 10)
    (copy / "sample.safetensors").write_bytes(save(packing.pack(false)))
    sign(copy, sha256=large.provenance["sha256"] | {"sample.safetensors": paths.digest(copy / "sample.safetensors")})
    with pytest.raises(Problem, match="sample.safetensors has accuracy"):
        verify(runs.read(copy))


def test_a_sample_that_provenance_does_not_name_is_refused(copied, large):
    shutil.copy(large.path / "sample.safetensors", copied)
    with pytest.raises(Problem, match="none of the files that provenance.json names: remove it"):
        runs.read(copied)


def test_what_is_left_out_comes_from_the_release_and_makes_it_whole(large, run, tmp_path):
    copy = runs.read(shutil.copytree(large.path, tmp_path / "copy"))
    base = (large.path.parent / "release").as_uri()
    release.get_released(copy, base)
    whole = runs.read(copy.path)
    assert torch.equal(whole.readout.features, run.readout.features) and "metrics" in verify(whole)
    assert sorted((copy.path / ".gitignore").read_text().split()) == ["model.safetensors", "readout.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]  # nothing half-made stays


def test_another_file_of_the_release_is_refused_and_nothing_is_taken(large, tmp_path):
    copy = runs.read(shutil.copytree(large.path, tmp_path / "copy"))
    other = tmp_path / "other" / copy.provenance["released"]["file"]
    other.parent.mkdir()
    other.write_bytes(b"x" * copy.provenance["released"]["bytes"])
    with pytest.raises(Problem, match="is not the official release .*train the run again"):
        release.get_released(copy, other.parent.as_uri())
    assert not list(copy.path.glob("model*")) and not list(copy.path.glob("readout*"))


def test_of_gates_that_are_too_large_some_are_stored_the_first_and_the_last_among_them():
    assert packing.kept_gates(30, 640) == list(range(30))
    assert (places := packing.kept_gates(30, 1000 * 512)) == sorted(set(places)) and len(places) == 8
    assert (places[0], places[-1]) == (0, 29)
    assert packing.kept_gates(3, 2**30) == [0, 2]


def test_a_film_of_some_gates_shows_at_each_epoch_the_latest_that_is_kept(run, monkeypatch):
    monkeypatch.setattr(packing, "GATES", 2 * 640)
    gates = torch.stack([torch.full((10, run.readout.weight.shape[1]), x) for x in (0.1, 0.2, 0.3, 0.4, 0.5)])
    r = packing.unpack(packing.pack(dataclasses.replace(run.readout, gates=gates)))
    T = len(packing.kept_gates(5, gates[0].numel()))
    assert len(r.gates) == T < 5
    film = dataclasses.replace(run)
    object.__setattr__(film, "readout", r)
    row = {"test_accuracy": 0.5, "test_accuracy_gated": 0.5}
    paths_ = ("standard", "gated", "gated", "standard", "gated", "gated", "gated")
    object.__setattr__(film, "history", [row | {"epoch": i, "path": path} for i, path in enumerate(paths_)])
    seen = explore.training_film(film, data.CLASSES).data["seen"]
    kept = packing.kept_gates(5, gates[0].numel())
    assert seen == [max((j for j, t in enumerate(kept) if t < n), default=-1) for n in (0, 1, 2, 2, 3, 4, 5)]


def test_an_explorer_of_too_many_connections_is_refused(run):
    wide = dataclasses.replace(run)
    r = run.readout
    big = dataclasses.replace(
        r, features=r.features.repeat(1, 300), weight=r.weight.repeat(1, 300), gate=r.gate.repeat(1, 300), gates=None
    )
    object.__setattr__(wide, "readout", big)
    with pytest.raises(Problem, match="room for 65,536 connections, not for 10 classes with"):
        explore.cut({"a": [wide]}, data.CLASSES, "Cut", (0, 0))
