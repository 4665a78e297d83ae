"""Inputs changed at random: each is accepted with the same result or refused with one sentence, soon and in little memory."""

import io
import json
import math
import multiprocessing
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import releases
import trainings
import yaml
from conftest import LONG, ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from csgbook import experiments, measured
from csgbook.evidence import simulate
from csgbook.pages import attacked, located, tables
from csglib import Problem, data, files, networks, paths, runs
from csglib.analysis.metrics import evaluate
from csglib.data import objects
from csglib.data.released import RELEASES
from csglib.paths import PUBLISHED
from csglib.runs.verify import verify
from csglib.training import trainer

pytestmark = pytest.mark.slow

often = settings(
    max_examples=120 if LONG else 25,
    deadline=None,
    derandomize=not LONG,
    suppress_health_check=list(HealthCheck),
    database=None,
)
SECONDS, BYTES = 5, 2 << 30
TRIED = {}  # how many inputs of each kind were tried, refused


@contextmanager
def refused_or_same(kind: str):
    """What is inside may end or raise Problem, whose text is one sentence; nothing else, and in bounds."""
    tried, refused = TRIED.get(kind, (0, 0))
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        yield
    except Problem as problem:
        refused += 1
        assert "\n" not in str(problem) and 20 < len(str(problem)) < 2000, problem
    TRIED[kind] = tried + 1, refused
    assert time.monotonic() - started < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BYTES


@st.composite
def edits(draw):
    """Up to three changes of some bytes, each a function of the content."""

    def one():
        place, what = (
            draw(st.floats(0, 1, exclude_max=True)),
            draw(st.sampled_from(["flip", "cut", "insert", "drop", "double"])),
        )
        some, bit = draw(st.binary(min_size=1, max_size=12)), draw(st.integers(0, 7))

        def change(b: bytes) -> bytes:
            i = int(place * len(b))
            if what == "flip":
                return b[:i] + bytes([b[i] ^ 1 << bit]) + b[i + 1 :] if b else some
            return {"cut": b[:i], "insert": b[:i] + some + b[i:], "drop": b[:i] + b[i + len(some) :], "double": b[:i] + b}[what]

        return change

    changes = [one() for _ in range(draw(st.integers(1, 3)))]

    def apply(content: bytes) -> bytes:
        for change in changes:
            content = change(content)
        return content

    return apply


LEAVES = [st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)]
JSON = st.recursive(
    st.one_of(*LEAVES, st.sampled_from(["<script>", "`$(x)`", "x;y", "../..", 1e308, 10**400])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def replace_somewhere(value, draw, by):
    """The JSON value with one part of it replaced, or dropped, or with one more."""
    if isinstance(value, dict) and value and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(value)))
        deed = draw(st.sampled_from(["deeper", "deeper", "drop", "more"]))
        if deed == "drop":
            return {k: v for k, v in value.items() if k != key}
        if deed == "more":
            return value | {draw(st.text(max_size=6)): by}
        return value | {key: replace_somewhere(value[key], draw, by)}
    return by


@pytest.fixture(scope="module")
def small(tiny, tmp_path_factory) -> runs.Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(networks.NETS, "small", trainings.small)
        yield trainer.train(trainings.RECIPE, tmp_path_factory.mktemp("small") / "run", "cpu")


@pytest.fixture(scope="module")
def spare(small, tmp_path_factory):
    """spare(): the run's folder anew, in one place."""
    folder = tmp_path_factory.mktemp("spare") / "run"

    def renew() -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        return Path(shutil.copytree(small.path, folder))

    return renew


def sign(folder: Path) -> None:
    path = folder / "provenance.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"sha256": {name: paths.digest(folder / name) for name in runs.FILES}}))


def open_and_use(folder: Path) -> runs.Run:
    run = runs.read(folder)
    verify(run)
    _ = run.network()
    return run


@often
@given(name=st.sampled_from([*runs.FILES, "provenance.json"]), edit=edits())
def test_a_run_folder_with_any_byte_changed(name, edit, spare, small):
    folder = spare()
    (folder / name).write_bytes(edit((folder / name).read_bytes()))
    with refused_or_same("run folder"):
        assert open_and_use(folder).metrics == small.metrics


@often
@given(name=st.sampled_from(runs.FILES), edit=edits())
def test_a_run_folder_with_any_byte_changed_and_signed_anew(name, edit, spare, small):
    folder = spare()
    (folder / name).write_bytes(edit((folder / name).read_bytes()))
    sign(folder)
    with refused_or_same("run folder, signed"):
        found = open_and_use(folder)
        assert evaluate(found.readout) == pytest.approx(found.metrics, abs=1e-6)


@often
@given(name=st.sampled_from(["recipe.json", "metrics.json", "provenance.json"]), by=JSON, more=st.data())
def test_a_run_folder_with_any_part_of_its_json_replaced(name, by, more, spare, small):
    folder = spare()
    text = json.dumps(replace_somewhere(json.loads((folder / name).read_text()), more.draw, by))
    (folder / name).write_text(text)
    if name != "provenance.json":
        sign(folder)
    with refused_or_same("json"):
        found = open_and_use(folder)
        assert all(value == pytest.approx(small.metrics.get(name)) for name, value in found.metrics.items())


@often
@given(kind=st.sampled_from(sorted(measured.TOOLS)), by=JSON, edit=edits(), more=st.data())
def test_a_measured_file_with_any_byte_changed_or_any_part_replaced_under_a_new_seal(kind, by, edit, more, tmp_path_factory):
    folder, expected = tmp_path_factory.getbasetemp() / "measured", measured.read(kind)
    folder.mkdir(exist_ok=True)
    path = folder / f"{kind}.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measured, "FOLDER", folder)
        path.write_bytes(edit((ROOT / "data" / "measured" / path.name).read_bytes()))
        with refused_or_same("measured file"):
            assert measured.read(kind) == expected
        values = replace_somewhere(expected, more.draw, by)
        told = {"seal": measured.seal(values)} | values if isinstance(values, dict) else values
        path.write_text(json.dumps(told))
        with refused_or_same("measured file, sealed"):
            show(kind, measured.read(kind))


def show(kind: str, values: dict) -> None:
    """What pages make of a file that was accepted."""
    runs_ = {"a": [runs.read(PUBLISHED / name) for name in values if (PUBLISHED / name).exists()][:1]}
    if kind == "step-cost":
        tables.cost()
    elif kind == "third-party-resnet20":
        tables.third_party()
    elif kind == "animals-trials":
        located.trials()
    elif kind == "first-verdicts":
        simulate.changed()
    elif kind == "label-leak":
        from csgbook.pages import leak_figures, leak_tables

        leak_tables.questions({}), leak_tables.random_table(), leak_figures.random_labels(), leak_tables.random_note()
    else:
        for page in (attacked.detection, attacked.turned, located.scores, located.filters_of_classes):
            page(runs_)


@st.composite
def headers(draw):
    """A safetensors header with one part of it replaced, under any length."""

    def change(content: bytes) -> bytes:
        n = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + n])
        big = st.sampled_from([0, -1, 1, 2**31, 2**62, 2**64, "F64", "U8", "F8_E4M3", [0, 2**40], [2**32, 2**32], [1] * 70, {}])
        text = json.dumps(replace_somewhere(header, draw, draw(big | JSON))).encode()
        length = draw(st.sampled_from([len(text), len(text), len(text), 0, n, 2**20, 2**40, 2**63]))
        return struct.pack("<Q", length) + text + content[8 + n :]

    return change


@often
@given(name=st.sampled_from(["model.safetensors", "readout.safetensors"]), change=headers())
def test_a_safetensors_header_with_any_part_replaced(name, change, spare, small):
    folder = spare()
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    sign(folder)
    with refused_or_same("safetensors header"):
        assert open_and_use(folder).metrics == small.metrics


def test_a_file_larger_than_any_of_its_kind_is_refused_before_it_is_read(spare):
    for name in (*runs.FILES, "provenance.json"):
        folder = spare()
        with (folder / name).open("ab") as f:
            f.truncate(1 << 40)  # sparse
        started = time.monotonic()
        with pytest.raises(Problem, match=f"{name} has 1,048,576.0 MiB, where at most"):
            runs.read(folder)
        assert time.monotonic() - started < 1


OPEN = """
import pathlib, resource, sys
from csglib.runs import schema
from csglib import runs
from csglib.runs import packing
path = pathlib.Path(sys.argv[1])
limit = schema.LIMITS[path.name]
assert 0 < limit - path.stat().st_size < 16 << 20
size = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (size, size))
if "readout" in path.name:
    packing.unpack(schema.check_readout(runs.read_tensors(path, "", limit), path, ""))
else:
    runs.Run(path.parent, None, {}, {}).weights
"""


LARGEST = {  # number format and shape of each tensor
    "readout.safetensors": {
        "features": ("U16", 64_000, 2_000),
        "low": ("F32", 2_000),
        "span": ("F32", 2_000),
        "labels": ("I16", 64_000),
        "weight": ("F32", 2, 2_000),
        "bias": ("F32", 2),
    },
    "model.safetensors": {"w": ("F16", 239, 1 << 20)},
}


def write_zeros(path: Path, tensors: dict[str, tuple]) -> None:
    """A safetensors file of zeros, which take no room on the disk."""
    header, end = {}, 0
    for name, (dtype, *shape) in tensors.items():
        start, end = end, end + int(dtype[1:]) // 8 * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.truncate(8 + len(text) + end)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells and bounds the memory of a process")
@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_file_that_is_opened_takes_less_than_two_gigabytes(name, tmp_path):
    write_zeros(tmp_path / name, LARGEST[name])
    done = subprocess.run([sys.executable, "-c", OPEN, tmp_path / name, str(BYTES)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """The binary releases, of few images, which csglib takes for the official ones."""
    root = tmp_path_factory.mktemp("raw")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CSGLIB_DATA", str(root))
        for name in releases.BINARY:
            files = releases.contents(name)
            releases.stand_in(patch, name, files)
            releases.lay(root, name, files)
        yield root


@often
@given(where=st.sampled_from([(name, file) for name in releases.BINARY for file in RELEASES[name].sums]), edit=edits())
def test_a_file_of_a_release_with_any_byte_changed(where, edit, release):
    name, file = where
    path = release / RELEASES[name].folder / file
    before = path.read_bytes()
    path.write_bytes(after := edit(before))
    try:
        with refused_or_same("file of a release"):
            data.load(name)
            assert after == before
    finally:
        path.write_bytes(before)


@often
@given(name=st.sampled_from(["cifar100", "stl10"]), edit=edits())
def test_a_list_of_classes_with_any_byte_changed(name, edit, release):
    path = release / RELEASES[name].folder / RELEASES[name].names
    before = path.read_bytes()
    path.write_bytes(edit(before))
    try:
        with refused_or_same("list of classes"):
            assert len(set(data.load(name).classes)) == RELEASES[name].classes
    finally:
        path.write_bytes(before)


def test_a_batch_file_larger_than_the_release_is_refused_before_it_is_read(release):
    path = release / RELEASES["cifar10"].folder / "data_batch_1.bin"
    before = path.read_bytes()
    with path.open("ab") as f:
        f.truncate(1 << 40)  # sparse
    started = time.monotonic()
    try:
        with pytest.raises(Problem, match="data_batch_1.bin differs from the official release"):
            data.load("cifar10")
        assert time.monotonic() - started < 1
    finally:
        path.write_bytes(before)


OBJECT = "<object><name>bird</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
ANNOTATION = f"<?xml version='1.0'?><annotation>{OBJECT.format(11, 6, 30, 15)}</annotation>"
LAUGHS = "".join(f'<!ENTITY l{i + 1} "{f"&l{i};" * 10}">' for i in range(9))
HOSTILE = {
    "laughs": f'<!DOCTYPE x [<!ENTITY l0 "ha">{LAUGHS}]><annotation><object><name>&l9;</name></object></annotation>',
    "file": '<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]><annotation><object><name>&f;</name></object></annotation>',
    "deep": "<a>" * 100_000 + "</a>" * 100_000,
    "large": "<annotation>" + " " * 2_000_000 + "</annotation>",
    "infinite": f"<annotation>{OBJECT.format(1, 1, 'inf', 9)}</annotation>",
    "huge": f"<annotation>{OBJECT.format(1, 1, '1e300', 9)}</annotation>",
    "encoding": "<?xml version='1.0' encoding='nowhere'?><annotation/>",
}


@pytest.fixture(scope="module")
def voc(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("voc")
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(root / "JPEGImages/a.jpg")
    (root / "Annotations/a.xml").write_text(ANNOTATION)
    (root / "ImageSets/Main/train.txt").write_text("a\n")
    return root


@contextmanager
def changed(path: Path, content: bytes):
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def read_birds(voc: Path) -> list:
    found = objects.read_voc(voc, "train", classes=("bird",), size=16)
    assert found.images.shape[1:] == (3, 16, 16) and (found.boxes >= 0).all() and (found.boxes <= 16).all()
    return found.boxes.tolist()


@often
@given(name=st.sampled_from(["Annotations/a.xml", "JPEGImages/a.jpg", "ImageSets/Main/train.txt"]), edit=edits())
def test_a_voc_folder_with_any_byte_changed(name, edit, voc):
    with changed(voc / name, edit((voc / name).read_bytes())), refused_or_same("voc"):
        read_birds(voc)


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> tuple[Path, list[bytes]]:
    """Where PASCAL-Part's masks are read from, and files of them with and without compression."""
    path, mask = tmp_path_factory.mktemp("parts") / "a.mat", np.eye(40, 60, dtype=np.uint8)
    things = [{"mask": mask, "parts": [{"part_name": "head", "mask": mask}]}, {"mask": mask, "parts": []}]
    whole = []
    for compressed in (True, False):
        savemat(path, {"anno": {"objects": things}}, do_compression=compressed)
        whole.append(path.read_bytes())
    return path, whole


@often
@given(compressed=st.booleans(), edit=edits())
def test_a_file_of_masks_with_any_byte_changed(compressed, edit, parts):
    path, whole = parts
    path.write_bytes(edit(whole[compressed]))
    with refused_or_same("masks"):
        assert all(shape.mask.dtype == bool for shape in objects.read_mat(path))


@pytest.mark.parametrize(
    "parse, said",
    [
        (lambda path: os.kill(os.getpid(), signal.SIGSEGV), "its parser crashed"),
        (lambda path: time.sleep(60), "it takes more than 0.5 seconds"),
        (lambda path: len(bytearray(64 << 30)), "MemoryError"),
    ],
)
def test_a_parser_that_crashes_hangs_or_takes_memory_costs_a_process_of_its_own(parse, said, tmp_path):
    with pytest.raises(Problem, match=rf"a\.mat cannot be read \({said}\): mend it"):
        files.apart(parse, tmp_path / "a.mat", "mend it", seconds=0.5, memory=100 << 20)
    assert (
        files.apart(lambda path: path.name, tmp_path / "a.mat", "mend it") == "a.mat" and not multiprocessing.active_children()
    )


SIDE = st.one_of(st.integers(), st.floats(), st.text(st.characters(exclude_characters="<&"), max_size=6))


@often
@given(sides=st.lists(SIDE, min_size=4, max_size=4))
def test_a_voc_box_of_any_numbers(sides, voc):
    text = f"<annotation>{OBJECT.format(*sides)}</annotation>".encode(errors="ignore")
    with changed(voc / "Annotations/a.xml", text), refused_or_same("voc box"):
        read_birds(voc)


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_annotation_is_refused(kind, voc):
    with changed(voc / "Annotations/a.xml", HOSTILE[kind].encode()), pytest.raises(Problem, match=r"a\.xml|bird|has no object"):
        with refused_or_same("hostile xml"):
            read_birds(voc)
        read_birds(voc)


def test_a_photograph_of_too_many_pixels_is_refused_before_it_is_decoded(voc):
    file = io.BytesIO()
    Image.new("L", (40_000, 2_000)).save(file, "JPEG")
    with changed(voc / "JPEGImages/a.jpg", file.getvalue()), pytest.raises(Problem, match="40000 x 2000 pixels, more than"):
        read_birds(voc)


@pytest.mark.parametrize("kind", ["EPS", "TGA", "PCX", "ICO", "PDF"])
def test_a_format_that_runs_programs_or_has_a_vague_beginning_is_no_photograph(kind, voc):
    file = io.BytesIO()
    Image.new("RGB", (60, 40)).save(file, kind)
    with changed(voc / "JPEGImages/a.jpg", file.getvalue()), pytest.raises(Problem, match="does not decode"):
        read_birds(voc)


BOOK = yaml.safe_load(experiments.FILE.read_bytes())


def use_experiments(path: Path) -> None:
    """All that the pipeline does with the file before it starts a job."""
    from parameters import parameters

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments, "FILE", path)
        for page in ("train-a-gate", "table1"):
            for profile in ("smoke", "short"):
                for group in experiments.recipes(page, profile).values():
                    assert all(r.command == r.command.replace("<", "").replace("`", "") for r in group)
                parameters(page, profile, "runs")


@often
@given(by=JSON, more=st.data())
def test_an_experiments_file_and_a_notebooks_parameters_with_any_part_replaced(by, more, tmp_path_factory, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    path = tmp_path_factory.getbasetemp() / "experiments.yml"
    path.write_text(yaml.safe_dump(replace_somewhere(BOOK, more.draw, by)))
    with refused_or_same("experiments and parameters"):
        use_experiments(path)


@often
@given(edit=edits())
def test_an_experiments_file_with_any_byte_changed(edit, tmp_path_factory, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    path = tmp_path_factory.getbasetemp() / "experiments.yml"
    path.write_bytes(edit(experiments.FILE.read_bytes()))
    with refused_or_same("experiments file"):
        use_experiments(path)


@often
@given(edit=edits())
def test_a_checkpoint_with_any_byte_changed(edit, small, spare, checkpoint):
    out, content, expected = checkpoint
    shutil.rmtree(runs.part(out), ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)
    folder = runs.reserve(out, trainings.RECIPE)
    (folder / "checkpoint.safetensors").write_bytes(edit(content))
    with refused_or_same("checkpoint"):
        run = trainer.train(trainings.RECIPE, out, "cpu")
        assert (run.path / "model.safetensors").read_bytes() == expected


@pytest.fixture(scope="module")
def checkpoint(small, tmp_path_factory) -> tuple[Path, bytes, bytes]:
    """Where to train, the checkpoint of the epoch before the last, the weights that it must end with."""
    out, kept = tmp_path_factory.mktemp("checkpoint") / "run", []
    with pytest.MonkeyPatch.context() as patch:
        original = trainer.Checkpoint.save
        patch.setattr(trainer.Checkpoint, "save", lambda self, *a: (original(self, *a), kept.append(self.path.read_bytes())))
        trainer.train(trainings.RECIPE, out, "cpu")
    return out, kept[-2], (small.path / "model.safetensors").read_bytes()


def test_enough_was_tried():
    """Runs last; the long form is asked for at least 1,000 inputs."""
    assert len(TRIED) >= 10 and sum(n for n, _ in TRIED.values()) >= (1000 if LONG else 200), TRIED
    assert all(refused for _, refused in TRIED.values()), TRIED
    print(TRIED)
