"""Pictures read from their files while a network trains: the same bits as from memory, and what can be wrong with the files."""

import os
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import test_loop
import torch
from conftest import BIN, ROOT
from PIL import Image
from recorded import recorded
from torch.testing import assert_close

from csglib import Problem, data, memory, networks, runs
from csglib.data import imagenet, streamed
from csglib.data.streamed import Reading
from csglib.errors import Damaged
from csglib.paths import folder
from csglib.recipe import Recipe
from csglib.training import distributed, trainer

TORCHRUN = [sys.executable, *["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]]
WNIDS = ("n01440764", "n01443537", "n01484850")
FILES = Reading("streamed", workers=0)
RECIPE = Recipe(dataset="imagenet:tree@16", net="resnet8", epochs=3, cycle="sg", batch_size=8, lr=0.05, precision="float32")


def picture(path: Path, seed: int) -> None:
    """A JPEG of 40 x 24 pixels, each seed another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((40, 24)).save(path, "JPEG")


@pytest.fixture
def tree(place) -> Path:
    """ImageNet's layout: three classes of nine pictures to train on and four to test on."""
    for c, wnid in enumerate(WNIDS):
        for i in range(13):
            part = "train" if i < 9 else "val"
            picture(Path("tree", part, wnid, f"{wnid}_{i}.JPEG"), 100 * c + i)
    return Path("tree").resolve()


@pytest.fixture
def released(tree) -> Path:
    """The same, its validation set as released: one folder, and the devkit's lists."""
    from scipy.io import savemat

    truth = []
    for i, path in enumerate(sorted((tree / "val").glob("*/*"))):
        truth.append(WNIDS.index(path.parent.name) + 1)
        path.rename(tree / "val" / f"ILSVRC2012_val_{i + 1:08}.JPEG")
    for wnid in WNIDS:
        (tree / "val" / wnid).rmdir()
    (tree / imagenet.DEVKIT).mkdir(parents=True)
    (tree / imagenet.DEVKIT / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{n}\n" for n in truth))
    kinds = np.dtype([("ID", object), ("WNID", object), ("words", object), ("gloss", object), ("num_children", object)])
    rows = [(i + 1, wnid, f"fish {i}, of a kind", "", 0) for i, wnid in enumerate(WNIDS)] + [(4, "n00000001", "animal", "", 3)]
    savemat(tree / imagenet.DEVKIT / "meta.mat", {"synsets": np.array(rows, kinds)})
    return tree


@pytest.fixture
def tiny_release(place) -> Path:
    """Tiny ImageNet's layout."""
    root = folder() / "tiny-imagenet-200"
    lines = []
    for c, wnid in enumerate(WNIDS):
        for i in range(6):
            picture(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", 100 * c + i)
        for i in range(2):
            picture(root / "val" / "images" / f"val_{2 * c + i}.JPEG", 100 * c + 50 + i)
            lines.append(f"val_{2 * c + i}.JPEG\t{wnid}\t0\t0\t9\t9\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(WNIDS))
    (root / "words.txt").write_text(f"{WNIDS[0]}\ttench, Tinca tinca\n{WNIDS[1]}\tgoldfish\n{WNIDS[2]}\tgoldfish\n")
    return root.resolve()


def epoch(pictures, seed: int = 0) -> list[torch.Tensor]:
    return [x for x, _ in data.batches(pictures, 8, torch.Generator().manual_seed(seed))]


# The same bits


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_pictures_from_files_are_those_in_memory_whatever_the_number_of_processes(tree, workers):
    resident = data.load("imagenet:tree@16", reading=Reading("resident"))
    found = data.load("imagenet:tree@16", reading=Reading("streamed", workers))
    assert isinstance(resident.train, data.Images) and isinstance(found.train, streamed.Streamed)
    assert (found.digest, found.classes, len(found.train), len(found.test)) == (resident.digest, WNIDS, 27, 12)
    assert torch.equal(found.train.labels, resident.train.labels) and torch.equal(found.test.labels, resident.test.labels)
    for ours, theirs in zip(epoch(found.train), epoch(resident.train), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(found.test.first(5), resident.test.images[:5])


def test_a_crop_at_random_follows_from_seed_and_epoch_alone(tree):
    one, two = (data.load("imagenet:tree@16", "resized", Reading(workers=n)).train for n in (0, 2))
    first = epoch(one)
    assert all(map(torch.equal, first, epoch(two)))
    assert not torch.equal(first[0], epoch(one, seed=1)[0])
    border = data.load("imagenet:tree@16", "border", FILES)
    assert not torch.equal(first[0], epoch(border.train)[0])
    middle = Image.open(tree / os.fsdecode(one.paths[0])).resize((30, 18), Image.Resampling.BILINEAR).crop((7, 1, 23, 17))
    assert np.array_equal(one.first(1)[0].permute(1, 2, 0).numpy(), np.asarray(middle))  # the shorter side to 16 * 256 / 224


@pytest.mark.slow
def test_a_network_trained_from_files_is_the_one_trained_from_memory(tree, tmp_path):
    made = [trainer.train(RECIPE, tmp_path / r.where, "cpu", reading=r) for r in (Reading("resident"), Reading("streamed", 2))]
    assert made[0].metrics == made[1].metrics
    for name, weight in made[0].weights.items():
        assert torch.equal(weight, made[1].weights[name]), name


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_pictures_in_files_without_one_twice_or_lost(world, tree, monkeypatch):
    """Of an epoch each batch in rows, of the 12 test images, and of 11 and 13, every so many: with a remainder too."""
    monkeypatch.setattr(distributed, "world", lambda: world)
    train = data.load("imagenet:tree@16", "border", FILES).train
    alone = [x for x, _ in data.batches(train, 8, torch.Generator().manual_seed(0))]
    parts = []
    for rank in range(world):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append([x for x, _ in data.batches(train, 8, torch.Generator().manual_seed(0), distributed.part(8))])
        assert len(parts[-1]) == 27 // 8
    for whole, *pieces in zip(alone, *parts, strict=True):
        assert_close(torch.cat(pieces), whole, rtol=0, atol=0)
    for n in (11, 12, 13):
        seen = []
        for rank in range(world):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            seen += range(n)[distributed.share(n)]
        assert sorted(seen) == list(range(n))


@pytest.mark.slow
@pytest.mark.parametrize("crop", ["border", "resized"])
def test_steps_recorded_as_a_gpu_captures_them_take_each_batch_from_the_files(crop, tree, monkeypatch):
    """No graph can choose pictures from files: each replay finds the next batch in a buffer, on top of what was recorded."""
    monkeypatch.setattr(data, "of", lambda recipe: data.load(recipe.dataset, crop, FILES))
    recipe = replace(RECIPE, batch_size=4, epochs=4, crop=crop)  # six steps per epoch, of which three come before the capture
    ours, rows, steps = test_loop.trained(recipe, range(4), recorded)
    theirs, expected, _ = test_loop.trained(recipe, range(4))
    assert steps.pixels.shape == (4, 3, 16, 16) and sorted(steps.graphs) == ["gated", "standard"]
    test_loop.assert_close(ours, theirs)
    assert [row["train_loss"] for row in rows] == pytest.approx([row["train_loss"] for row in expected], rel=1e-4)


@pytest.mark.slow
def test_a_training_from_files_that_stops_goes_on_to_the_same_bits(tree, tmp_path):
    recipe = replace(RECIPE, crop="resized", lr_schedule="thirds")
    whole = trainer.train(recipe, tmp_path / "whole", "cpu", reading=FILES)

    def stop(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.train(recipe, tmp_path / "again", "cpu", on_epoch=stop, reading=FILES)
    assert (tmp_path / "again.part" / "checkpoint.safetensors").exists()
    again = trainer.train(recipe, tmp_path / "again", "cpu", reading=Reading("streamed", 1))
    assert_close(again.weights, whole.weights, rtol=0, atol=0)
    assert again.metrics == whole.metrics


# What is chosen


def test_where_pictures_lie_is_chosen_by_their_size_unless_it_is_asked_for(monkeypatch):
    assert not Reading().streams("x", 43_690, 128, "border") and Reading().streams("x", 43_691, 128, "border")
    assert Reading("streamed").streams("x", 1, 16, "border") and Reading().streams("x", 1, 16, "resized")
    with pytest.raises(Problem, match="cropped from its files at random, which memory cannot hold: leave --read out"):
        Reading("resident").streams("x", 1, 16, "resized")
    with pytest.raises(Problem, match="-1 processes cannot read: use 0"):
        Reading(workers=-1).streams("x", 1, 16, "border")


@pytest.mark.parametrize(
    ("crop", "reading", "word"), [("resized", FILES, "--crop resized"), ("border", FILES, "--read streamed")]
)
def test_a_data_set_without_files_of_pictures_cannot_be_read_from_them(crop, reading, word):
    with pytest.raises(Problem, match=f"{word} is for pictures in files, .*: leave it out"):
        data.load("cifar10-mini", crop, reading)


# ImageNet's layouts


def test_the_validation_set_as_released_is_read_by_the_devkits_lists(released):
    found = data.load("imagenet:tree@16", reading=FILES)
    assert found.classes == ("fish 0", "fish 1", "fish 2") and found.test.labels.bincount().tolist() == [4, 4, 4]
    truth = {p.name: n for p, n in zip(sorted((released / "val").iterdir()), [0] * 4 + [1] * 4 + [2] * 4, strict=True)}
    for path, label in zip(found.test.paths, found.test.labels.tolist(), strict=True):
        assert truth[Path(os.fsdecode(path)).name] == label


def test_tiny_imagenet_is_read_whole_or_some_of_its_classes(tiny_release):
    found = data.load("tiny-imagenet@16")
    assert found.classes == ("tench", f"goldfish {WNIDS[1]}", f"goldfish {WNIDS[2]}")
    assert (len(found.train), len(found.test), found.train.size) == (18, 6, 16)
    some = data.load("tiny-imagenet@16@2classes", reading=FILES)
    assert len(some.classes) == 2 and some.train.labels.bincount().tolist() == [6, 6] and some.digest != found.digest
    with pytest.raises(Problem, match="asks for 4 classes: choose 2 to 3"):
        data.load("tiny-imagenet@4classes")


def test_a_holdout_takes_some_of_every_class(tree):
    found = data.of(replace(RECIPE, holdout=12), FILES)
    assert len(found.train) == 15 and set(found.test.labels.tolist()) == {0, 1, 2}


# What can be wrong


def test_a_class_that_one_part_lacks_is_named(tree):
    for path in (tree / "val" / WNIDS[1]).iterdir():
        path.unlink()
    with pytest.raises(Problem, match=f"no picture of class {WNIDS[1]} in val: restore them, or take its pictures out of both"):
        data.load("imagenet:tree@16")


def test_a_list_and_the_pictures_it_names_must_agree(tiny_release):
    (tiny_release / "val" / "images" / "val_3.JPEG").unlink()
    with pytest.raises(Problem, match=r"val_annotations.txt names val_3.JPEG, which is not in .*: restore it, or"):
        data.load("tiny-imagenet@16")
    picture(tiny_release / "val" / "images" / "val_3.JPEG", 1)
    picture(tiny_release / "val" / "images" / "val_99.JPEG", 1)
    with pytest.raises(Problem, match="val_99.JPEG is not named in"):
        data.load("tiny-imagenet@16")


def test_a_devkit_that_does_not_fit_is_refused(released):
    truth = released / imagenet.DEVKIT / "ILSVRC2012_validation_ground_truth.txt"
    text = truth.read_text()
    truth.write_text(text + "1\n")
    with pytest.raises(Problem, match="has 12 pictures, and .* lists 13: unpack the whole validation set"):
        data.load("imagenet:tree@16")
    truth.write_text(text.replace("3", "4", 1))
    with pytest.raises(Problem, match="names class '4', which meta.mat does not have"):
        data.load("imagenet:tree@16")
    (released / imagenet.DEVKIT / "meta.mat").unlink()
    with pytest.raises(Problem, match="lacks the devkit's lists, which say what the pictures show"):
        data.load("imagenet:tree@16")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_is_named_when_it_is_reached(tree, workers):
    broken = tree / "train" / WNIDS[1] / f"{WNIDS[1]}_3.JPEG"
    broken.write_bytes(broken.read_bytes()[:200])
    found = data.load("imagenet:tree@16", reading=Reading("streamed", workers))
    with pytest.raises(Damaged, match=f"{broken.name} does not decode"):
        [*found.train.read([torch.arange(27)])]


def test_a_process_that_dies_is_told_with_the_remedy(tree, monkeypatch):
    home = os.getpid()

    def dies(self, wanted):
        assert os.getpid() != home
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(streamed.Decoder, "__getitem__", dies)
    found = data.load("imagenet:tree@16", reading=Reading("streamed", 2))
    with pytest.raises(Problem, match="a process that reads pictures of .*tree was killed, .*: choose --workers 1; a"):
        epoch(found.train)


def test_verification_reads_every_picture_and_knows_what_has_changed(tree, csglib):
    code, out, _ = csglib("data", "verify", "imagenet:tree@16")
    assert code == 0 and "27 training and 12 test images, of n01440764, " in out and "every picture read, sha256 " in out
    assert csglib("data", "verify", "imagenet:tree@16")[1] == out
    path = tree / "val" / WNIDS[0] / f"{WNIDS[0]}_9.JPEG"
    seen, before = path.stat(), data.load("imagenet:tree@16", reading=FILES).digest
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert data.load("imagenet:tree@16", reading=FILES).digest == before  # of names and lengths
    code, _, err = csglib("data", "verify", "imagenet:tree@16")
    assert code != 0 and f"{path.name} has other contents than before, and the same size and time: restore it" in err
    path.write_bytes(b"no picture")
    code, _, err = csglib("data", "verify", "imagenet:tree@16")
    assert code != 0 and f"{path.name} does not decode" in err
    assert data.load("imagenet:tree@16", reading=FILES).digest != before


def test_imagenet_itself_is_not_ours_to_fetch(csglib):
    code, _, err = csglib("data", "get", "imagenet")
    assert code == 2 and "let nobody else send it: take the training and the validation pictures of ILSVRC 2012" in err


def test_a_full_disk_beside_the_downloads_costs_only_time(tree, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("csglib.data.decoded.write", full)
    with pytest.warns(UserWarning, match="tree will be decoded each time anew, .*No space left on device.*: set CSGLIB_DATA"):
        found = data.load("imagenet:tree@16")
    assert len(found.train) == 27


def test_more_classes_than_filters_are_told(tree, tmp_path, monkeypatch):
    monkeypatch.setitem(networks.NETS, "two", lambda C: networks.Split(torch.nn.Conv2d(3, 2, 3), torch.nn.Linear(2, C)))
    with pytest.warns(UserWarning, match="of 3 classes at least 1 own no filter, since there are 2"):
        trainer.train(replace(RECIPE, net="two", cycle="g"), tmp_path / "run", "cpu", reading=FILES)


@pytest.mark.long
@pytest.mark.slow
def test_imagenets_recipe_runs_end_to_end_with_a_thousand_classes(place):
    """ResNet-18 at 224 pixels in CSG, of one picture per class; killed and resumed, and in two processes.  Some minutes."""
    for c in range(1000):
        for part in ("train", "val"):
            picture(Path("tree", part, f"n{c:08}", "0.JPEG"), 2 * c + (part == "val"))
    words = "--dataset imagenet:tree --net resnet18@layer4 --crop resized --lr-schedule thirds --weight-decay 1e-4"
    words = f"{words} --cycle gs --epochs 2 --batch-size 50 --lr 0.1 --precision float32 --device cpu"
    command, quiet = [str(BIN / "csglib"), "train", *words.split()], os.environ | {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "2"}

    def trained(out: str, *before: str, threads: str = "2") -> subprocess.Popen:
        given = [*before, *command, "--out", out]
        return subprocess.Popen(given, stderr=subprocess.PIPE, env=quiet | {"OMP_NUM_THREADS": threads})

    assert trained("whole").wait() == 0
    killed = trained("again")
    while not Path("again.part/checkpoint.safetensors").exists():
        time.sleep(0.2)
        assert killed.poll() is None
    killed.kill()
    killed.wait()
    assert trained("again").wait() == 0
    whole, again = runs.read("whole"), runs.read("again")
    assert tuple(whole.readout.gate.shape) == (1000, 512) and len(whole.readout.labels) == 1000
    assert_close(again.weights, whole.weights, rtol=0, atol=0)
    assert again.metrics == whole.metrics
    two = trained("two", *TORCHRUN, threads="1")
    assert two.wait() == 0, two.stderr.read().decode()
    assert set(runs.read("two").metrics) == set(whole.metrics)


@pytest.mark.slow
def test_the_tool_that_measures_reading_reads_and_trains(tiny_release, monkeypatch):
    tool = runpy.run_path(str(ROOT / "tools" / "bench_files.py"))
    for name, value in {"SIZE": 16, "BATCH": 4, "ALONE": 12, "STEPS": 3}.items():
        monkeypatch.setitem(tool["main"].__globals__, name, value)
    for kind in ("read", "read_usual", "train_float32"):
        assert tool["KINDS"][kind]()["images_per_second"] > 0
    parts = tool["picture"]()
    assert 0 < parts["bytes"] < parts["squared"]
    assert tool["held"]() > 50


def own_memory() -> int:
    """Kilobytes that the newest child of this process shares with no other."""
    (child,) = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()[-1:]
    rollup = Path(f"/proc/{child}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in rollup if line.startswith("Private_"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux how much memory a process has of its own")
def test_a_process_that_reads_keeps_no_copy_of_what_was_freed_before_it_began(tree):
    """glibc keeps freed blocks; a forked process would have them all, as soon as this one writes there again."""
    memory.keep()
    freed = [torch.ones(1 << 20) for _ in range(128)]  # 512 MB
    del freed
    reader = data.load("imagenet:tree@16", "border", Reading("streamed", workers=1)).train.read([torch.arange(4)] * 4)
    next(reader)
    written = [torch.ones(1 << 20) for _ in range(128)]
    found = own_memory()
    reader.close()
    assert len(written) == 128 and found < 200_000


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux how much memory a process has of its own")
def test_a_process_that_reads_does_not_grow_with_what_it_has_passed_on(tree):
    """It is forked from one that keeps freed blocks, and kept most of its batches; each here has 6 MB."""
    memory.keep()
    loaded = data.load("imagenet:tree@128", "border", Reading("streamed", workers=1)).train
    reader = loaded.read([torch.arange(27).repeat(5)[:128]] * 150)
    for _ in range(5):
        next(reader)
    first = own_memory()
    for _ in range(140):
        next(reader)
    last = own_memory()
    reader.close()
    assert last < first + 200_000  # what it kept was 540 MB; behind all other tests 59 MB were seen
