"""Published data sets: their layouts read bit by bit, downloads that appear whole or not at all, damage and its remedy."""

import dataclasses
import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import releases
import torch

from csglib import Problem, data, doctor, memory, paths
from csglib.data import released
from csglib.recipe import Recipe
from csglib.training import pace

ALL = [*releases.BINARY, "tiny-imagenet"]


def test_the_full_set_has_50000_and_10000_balanced_images(cifar10):
    assert cifar10.train.images.shape == (50_000, 3, 32, 32)
    assert cifar10.train.labels.bincount().tolist() == [5000] * 10
    assert cifar10.test.labels.bincount().tolist() == [1000] * 10


def test_the_digest_of_cifar10_is_that_of_the_published_runs():
    sums = released.CIFAR10.sums
    assert hashlib.sha256("".join(sums.values()).encode()).hexdigest().startswith("d47d648dcc594ca9")


def test_what_is_downloaded_is_what_torchvision_downloads():
    from torchvision.datasets import STL10

    ours = released.STL10
    assert (ours.archive.url, ours.archive.digest, ours.folder) == (STL10.url, STL10.tgz_md5, STL10.base_folder)
    known = dict([*STL10.train_list, *STL10.test_list])
    assert ours.sums == {name: known[name] for name in ours.sums} and len(ours.sums) == 4


@pytest.mark.slow
def test_the_sums_of_cifar100_come_from_a_list_whose_sums_of_cifar10_are_right(cifar10_folder):
    """MXNet's, of CIFAR-10's first and last file; the sha1 of CIFAR-100's files stand beside them there."""
    folder = cifar10_folder / released.CIFAR10.folder
    assert paths.digest(folder / "data_batch_1.bin", "sha1") == "aadd24acce27caa71bf4b10992e9e7b2d74c2540"
    assert paths.digest(folder / "test_batch.bin", "sha1") == "67eb016db431130d61cd03c7ad570b013799c88c"


@pytest.mark.parametrize("name", releases.BINARY)
def test_sizes_and_digests_are_such_as_the_layout_gives(name):
    release, known = released.RELEASES[name], pace.KNOWN[name]
    assert known[2:] == (release.side, release.classes) and sum(known[:2]) == release.images
    a_label = 2 if name == "cifar100" else 1
    assert 0 <= release.archive.room - sum(known[:2]) * (3 * release.side**2 + a_label) < 4096
    assert {len(told) for told in (*release.sums.values(), release.archive.digest)} <= set(released.ALGORITHMS)


# Sizes


@pytest.mark.parametrize("size", [32, 64, 96])
def test_a_release_is_brought_to_the_size_behind_its_name_as_pillow_does_it(size, here):
    from PIL import Image

    here("stl10")
    large, sized = data.load("stl10"), data.load(f"stl10@{size}")
    assert sized.train.images.shape == (10, 3, size, size) and torch.equal(sized.train.labels, large.train.labels)
    assert sized.digest == large.digest and sized.name == f"stl10@{size}"
    picture = Image.fromarray(large.test.images[3].permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BILINEAR)
    difference = torch.from_numpy(np.array(picture)).permute(2, 0, 1).int() - sized.test.images[3].int()
    assert difference.abs().max() <= 1


@pytest.mark.parametrize("size", ["8", "1024", "x", "-64", "6.5", "9999999999"])
def test_a_size_that_cannot_be_is_refused_before_anything_is_read(size):
    with pytest.raises(Problem, match=r"choose one from 16 to 512, as in stl10@224"):
        data.load(f"stl10@{size}")


def test_a_size_for_which_memory_is_too_small_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "total", lambda: 2**30)
    with pytest.raises(Problem, match="cifar10@224 takes 8,613 MiB, and this machine has 1,024: choose a smaller size"):
        data.load("cifar10@224")


def test_the_sample_has_one_size():
    with pytest.raises(Problem, match="unknown dataset 'cifar10-mini@64'"):
        data.load("cifar10-mini@64")


def test_a_prediction_knows_the_size(here):
    assert pace.size(Recipe(dataset="stl10@224")) == pace.Size(5000, 8000, 224, 10)


# Layouts


@pytest.fixture
def here(tmp_path, monkeypatch):
    """here(name): the folder of a small release, in CSGLIB_DATA; here(name, FILE=bytes) with other content of files."""
    monkeypatch.setenv("CSGLIB_DATA", str(tmp_path / "raw"))

    def lay(name: str, copies: int = 1, **changed: bytes) -> Path:
        files = releases.contents(name, copies) | {file.replace("__", "."): content for file, content in changed.items()}
        releases.stand_in(monkeypatch, name, files)
        return releases.lay(tmp_path / "raw", name, files)

    return lay


def test_the_records_of_cifar10_are_a_label_then_planes(here):
    record = (here("cifar10") / "data_batch_2.bin").read_bytes()[3073:]
    dataset = data.load("cifar10")
    assert (len(dataset.train), len(dataset.test), dataset.train.labels[11]) == (50, 10, record[0])
    for c, y, x in ((0, 0, 0), (1, 2, 3), (2, 31, 30)):
        assert dataset.train.images[11, c, y, x] == record[1 + c * 1024 + y * 32 + x]


def test_the_records_of_cifar100_have_the_fine_label_second(here):
    record = (here("cifar100") / "train.bin").read_bytes()[3074 * 7 :]
    dataset = data.load("cifar100")
    assert (len(dataset.train), len(dataset.test)) == (100, 100)
    assert dataset.train.labels[7] == record[1] != record[0]
    assert sorted(dataset.train.labels.tolist()) == list(range(100))
    for c, y, x in ((0, 0, 0), (1, 2, 3), (2, 31, 30)):
        assert dataset.train.images[7, c, y, x] == record[2 + c * 1024 + y * 32 + x]
    assert dataset.classes == tuple(f"thing_{i:02}" for i in range(100))


@pytest.mark.parametrize("split", ["train", "test"])
def test_stl10_is_what_torchvision_reads(split, here, monkeypatch):
    from torchvision.datasets import STL10

    folder = here("stl10", copies=2)
    listed = [[name, paths.digest(folder / name, "md5")] for name in ("train_X.bin", "train_y.bin", "unlabeled_X.bin")]
    monkeypatch.setattr(STL10, "train_list", listed)
    monkeypatch.setattr(
        STL10, "test_list", [[f"test_{kind}.bin", paths.digest(folder / f"test_{kind}.bin", "md5")] for kind in "Xy"]
    )
    theirs, dataset = STL10(str(folder.parent), split), data.load("stl10")
    ours = getattr(dataset, split)
    assert len(ours) == len(theirs) == 20 and ours.images.shape == (20, 3, 96, 96)
    for i, (picture, label) in enumerate(theirs):
        assert torch.equal(ours.images[i], torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1))
        assert ours.labels[i] == label
    assert list(dataset.classes) == theirs.classes


def test_a_blank_line_among_the_names_of_classes_is_none(here):
    here("stl10", class_names__txt=releases.lines([*releases.STL_CLASSES, ""]).replace(b"\n", b"\r\n"))
    assert data.load("stl10").classes == releases.STL_CLASSES


def test_other_names_make_another_digest(here):
    here("stl10")
    before = data.load("stl10").digest
    here("stl10", class_names__txt=releases.lines("abcdefghij"))
    assert data.load("stl10").digest != before


@pytest.mark.parametrize(
    "names, said",
    [
        (b"", "names 0"),
        (releases.lines("abcdefghi"), "names 9"),
        (releases.lines("abcdefghii"), "names 9"),
        (releases.lines("abcdefghijk"), "names 11"),
        (b"\xff\xfe" * 10, "cannot be read"),
        (releases.lines(["a\x07", *"bcdefghij"]), "rename it"),
        (b"a" * 20_000, "at most"),
    ],
)
def test_a_list_that_does_not_name_every_class_once_is_refused(names, said, here):
    here("stl10", class_names__txt=names)
    with pytest.raises(Problem, match=said):
        data.load("stl10")


@pytest.mark.parametrize(
    "name, file, place, label, outside",
    [
        ("cifar10", "data_batch_4.bin", 3073, 10, "50 images, 1 of them of none of 10 classes"),
        ("cifar100", "train.bin", 3075, 100, "100 images, 1 of them of none of 100 classes"),
        ("stl10", "test_y.bin", 3, 0, "10 images, 1 of them of none of 10 classes"),
        ("stl10", "train_y.bin", 3, 11, "10 images, 1 of them of none of 10 classes"),
    ],
)
def test_a_label_of_no_class_is_refused(name, file, place, label, outside, here):
    content = bytearray(releases.contents(name)[file])
    content[place] = label
    here(name, **{file.replace(".", "__"): bytes(content)})
    with pytest.raises(Problem, match=f"{outside}: remove .*csglib data get {name}"):
        data.load(name)


def test_labels_and_images_of_unequal_numbers_are_refused(here):
    here("stl10", train_y__bin=bytes([1] * 9))
    with pytest.raises(Problem, match="9 labels for 10 images, 0 of them"):
        data.load("stl10")


@pytest.mark.parametrize("name, file", [("cifar100", "train.bin"), ("stl10", "test_X.bin")])
def test_a_file_that_holds_no_whole_number_of_images_is_refused(name, file, here):
    here(name, **{file.replace(".", "__"): releases.contents(name)[file][:-1]})
    with pytest.raises(Problem, match=f"{file} holds no whole number of images"):
        data.load(name)


# Damage


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, alter, Path.unlink])
@pytest.mark.parametrize(
    "name, file",
    [("cifar10", "data_batch_3.bin"), ("cifar10", "test_batch.bin"), ("cifar100", "train.bin"), ("cifar100", "test.bin")]
    + [("stl10", f"{part}_{kind}.bin") for part in ("train", "test") for kind in "Xy"],
)
def test_a_damaged_file_is_refused_with_its_name_and_a_remedy_that_works(name, file, damage, here):
    folder = here(name)
    damage(folder / file)
    for use in (data.load, data.verify, data.get):
        with pytest.raises(Problem, match=f"{file}.* remove {re.escape(str(folder))}, then run `csglib data get {name}`"):
            use(name)
    assert [f.state for f in doctor.downloaded() if file in f.text] == ["do"]


@pytest.mark.parametrize("name, file", [("cifar100", "fine_label_names.txt"), ("stl10", "class_names.txt")])
def test_without_the_names_of_the_classes_a_set_is_not_complete(name, file, here):
    (here(name) / file).unlink()
    with pytest.raises(Problem, match=f"{file} is missing; remove .*csglib data get {name}"):
        data.load(name)


@pytest.mark.parametrize("name", ALL)
def test_an_absent_set_is_a_problem_that_names_folder_and_remedy(name, tmp_path, monkeypatch):
    monkeypatch.setenv("CSGLIB_DATA", str(tmp_path / "none"))
    with pytest.raises(Problem, match=f"{tmp_path}/none.*csglib data get {name}.*CSGLIB_DATA"):
        data.verify(name)


# Downloads


@pytest.fixture
def offered(tmp_path, monkeypatch):
    """offered(name): the archive that is behind the release's address; offered(name, files) with these files."""
    monkeypatch.setenv("CSGLIB_DATA", str(tmp_path / "raw"))
    (tmp_path / "web").mkdir()

    def offer(name: str, files: dict[str, bytes] | None = None) -> Path:
        files = files or (releases.contents(name) if name in releases.BINARY else releases.tiny())
        archive = releases.packed(name, tmp_path / "web", files)
        releases.stand_in(monkeypatch, name, files, archive)
        return archive

    return offer


@pytest.mark.parametrize("name", ALL)
def test_a_download_is_checked_unpacked_and_leaves_nothing_else(name, offered, tmp_path):
    archive, raw, release = offered(name), tmp_path / "raw", released.RELEASES[name]
    assert data.get(name) == raw / release.folder
    assert [p.name for p in raw.iterdir()] == [release.folder]
    found = sorted(p.relative_to(raw / release.folder).as_posix() for p in (raw / release.folder).rglob("*") if p.is_file())
    assert found == sorted(release.files if name in releases.BINARY else releases.tiny())  # no unlabelled images
    archive.unlink()
    assert data.get(name) == raw / release.folder  # what is there is verified, and nothing is asked for
    if name in releases.BINARY:
        assert data.load(name).digest == data.verify(name)


@pytest.mark.parametrize("name", ALL)
def test_an_archive_that_is_not_the_release_is_refused_and_nothing_remains(name, offered, tmp_path):
    alter(offered(name))
    with pytest.raises(Problem, match=r"is not the official release \(its md5 differs\): try again, or put .* by hand"):
        data.get(name)
    assert list((tmp_path / "raw").iterdir()) == []


@pytest.mark.parametrize("name", ALL)
def test_a_failing_address_is_a_problem_and_nothing_remains(name, offered, tmp_path):
    offered(name).unlink()
    called = released.RELEASES[name].called
    with pytest.raises(Problem, match=f"could not download {called} from .*: try again, or put .* by hand"):
        data.get(name)
    assert list((tmp_path / "raw").iterdir()) == []


@pytest.mark.parametrize("name", ALL)
def test_an_archive_without_one_of_its_files_is_refused_and_nothing_remains(name, offered, tmp_path):
    files = releases.contents(name) if name in releases.BINARY else releases.tiny()
    missing = next(file for file in files if file in (*getattr(released.RELEASES[name], "files", ()), "wnids.txt"))
    archive = offered(name)
    released.RELEASES[name] = dataclasses.replace(  # the stand-in, which goes with the test
        released.RELEASES[name],
        archive=released.Archive(
            archive.as_uri(),
            paths.digest(releases.packed(name, archive.parent, {k: v for k, v in files.items() if k != missing}), "md5"),
        ),
    )
    with pytest.raises(Problem, match=f"{missing} is missing; try again"):
        data.get(name)
    assert list((tmp_path / "raw").iterdir()) == []


@pytest.mark.parametrize("ending", ["tar.gz", "zip"])
@pytest.mark.parametrize("relative", [True, False])
def test_an_archive_that_would_write_outside_is_stopped_and_nothing_remains(relative, ending, offered, tmp_path, monkeypatch):
    escaped = tmp_path / "escaped.txt"
    offered("tiny-imagenet")
    evil = releases.pack(
        tmp_path / "web" / f"evil.{ending}", {"../../../escaped.txt" if relative else str(escaped): b"escaped"}
    )
    releases.stand_in(monkeypatch, "tiny-imagenet", {}, evil)
    with pytest.raises(Problem):
        data.get("tiny-imagenet")
    assert list((tmp_path / "raw").iterdir()) == [] and not escaped.exists()


def test_what_is_no_archive_is_refused_and_nothing_remains(offered, tmp_path, monkeypatch):
    archive = offered("cifar100")
    archive.write_bytes(b"<html>sorry</html>")
    releases.stand_in(monkeypatch, "cifar100", releases.contents("cifar100"), archive)
    with pytest.raises(Problem, match="cifar-100-binary.tar.gz cannot be unpacked .*: try again"):
        data.get("cifar100")
    assert list((tmp_path / "raw").iterdir()) == []


@pytest.mark.parametrize("name", [None, *sorted(releases.tiny())])
def test_tiny_imagenet_is_verified_by_its_parts(name, tmp_path, monkeypatch):
    monkeypatch.setenv("CSGLIB_DATA", str(tmp_path))
    where = releases.lay(tmp_path, "tiny-imagenet", releases.tiny())
    assert data.verify("tiny-imagenet") == ""
    assert "Tiny ImageNet, all of its parts" in [f.text for f in doctor.downloaded()]
    if name and not name.startswith("test"):
        part = (
            name
            if "/" not in name or name.endswith("txt")
            else str(Path(name).parents[-2] if "train" in name else Path(name).parent)
        )
        path = where / part
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(Problem, match=f"{part} is missing; remove .*csglib data get tiny-imagenet"):
            data.verify("tiny-imagenet")


# The command


def test_the_command_gets_verifies_and_names_no_hundred_classes(offered, csglib, tmp_path):
    offered("cifar100")
    code, out, _ = csglib("data", "get", "cifar100")
    told = "cifar100: 100 training and 100 test images, of 100 classes, thing_00 to thing_99, as released"
    place = f" (in {tmp_path / 'raw'})"
    assert (code, out) == (0, f"{told}{place}; {released.CIFAR100.terms}\n")
    assert csglib("data", "verify", "cifar100") == (0, told + place + "\n", "")


def test_the_command_gets_tiny_imagenet(offered, csglib, tmp_path):
    offered("tiny-imagenet")
    code, out, _ = csglib("data", "get", "tiny-imagenet")
    told = f"tiny-imagenet: all of its parts are in {tmp_path / 'raw' / 'tiny-imagenet-200'}"
    assert (code, out) == (0, f"{told}; {released.TINY.terms}\n")


def test_an_unknown_name_is_refused_with_what_can_be_had(csglib):
    code, _, err = csglib("data", "get", "mnist")
    assert code == 2 and err.count(" cifar10,") == 1  # other tests may have added a data set of theirs
    assert all(f" {name}," in err for name in ("cifar10-mini", "cifar100", "stl10", "tiny-imagenet", "voc2007"))
    with pytest.raises(Problem, match="unknown release 'mnist': choose one of cifar10, cifar100"):
        data.get("mnist")


@pytest.mark.slow
def test_a_run_of_a_hundred_classes_is_trained_read_and_verified(here, csglib, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here("cifar100", copies=5)
    words = "--net resnet8 --epochs 2 --cycle gs --batch-size 250 --precision float32 --device cpu --out runs/hundred"
    code, out, err = csglib("train", "--dataset", "cifar100", *words.split())
    assert code == 0, err
    code, out, err = csglib("verify", "runs/hundred")
    assert code == 0 and "recomputed on 500 of 500 test images" in out, err
    code, out, err = csglib("evaluate", "runs/hundred", "--images")
    assert code == 0 and "mis_null" in out, err
    code, out, err = csglib("runs", "runs")
    assert code == 0 and out.startswith("hundred") and out.count("\n") == 1, err
