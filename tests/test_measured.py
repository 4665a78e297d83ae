"""What tools measured is believed as its tool wrote it, and as far as the readout agrees."""

import json
import shutil

import pytest

from csgbook import measured
from csgbook.measured import check
from csglib import runs
from csglib.errors import Damaged
from csglib.paths import PUBLISHED, ROOT
from csglib.runs.verify import verify

COMMITTED = ROOT / "data" / "measured"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the measured files, in their place."""
    shutil.copytree(COMMITTED, tmp_path / "measured")
    monkeypatch.setattr(measured, "FOLDER", tmp_path / "measured")
    return tmp_path / "measured"


def first(kind: str) -> runs.Run:
    return runs.read(PUBLISHED / next(iter(measured.read(kind))))


def replaced(value, keys: tuple, by):
    """The JSON value with another one at the end of the keys; `*` is any key."""
    key = next(iter(value)) if keys[0] == "*" else keys[0]
    copy = value.copy()
    copy[key] = replaced(value[key], keys[1:], by) if keys[1:] else by
    return copy


def test_every_file_that_is_published_has_its_schema_and_its_seal():
    assert {path.stem for path in COMMITTED.iterdir()} == set(measured.TOOLS)
    assert all(measured.read(kind) for kind in measured.TOOLS)


@pytest.mark.parametrize("kind", measured.OF_RUNS)
def test_what_is_published_agrees_with_the_readouts(kind):
    for name in measured.read(kind):
        check(runs.read(PUBLISHED / name))


NUMBERS = {
    "detection": ("*", "attacks", "pgd", "errors", "500", 0),
    "localisation": ("*", "crops", "wide", "cam", "iou"),
    "animals-trials": ("trials", 0, "accuracy"),
    "few-images": ("rows", 0, "null"),
    "files": ("epoch", "peak_mb"),
    "first-verdicts": ("claims", 0, "values", 0, 0),
    "label-leak": ("trainings", 0, "rows", "label"),
    "scaling": ("steps", 0, "csg_ratio"),
    "speed": ("rows", 3, "value"),
    "step-cost": ("ratio", "csg"),
    "third-party-resnet20": ("metrics", "mis"),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_a_number_changed_by_hand_is_refused_with_its_file(kind, folder):
    path, values = folder / f"{kind}.json", measured.read(kind)
    path.write_text(json.dumps({"seal": measured.seal(values)} | replaced(values, NUMBERS[kind], 0.5)))
    with pytest.raises(Damaged, match=rf"{kind}\.json .*seal"):
        measured.read(kind)
    path.write_text(json.dumps({"seal": measured.seal(values)} | values))  # another layout of the same values
    assert measured.read(kind) == values


@pytest.mark.parametrize(
    "kind, keys, value, said",
    [
        ("detection", ("*", "accuracy"), 0.9, "accuracy 0.9 .*no number of its 2600"),
        ("detection", ("*", "images"), 20000, "accuracy .*no number of its 0"),
        ("detection", ("*", "attacks", "fgsm", "turned"), 0.5, "turned by fgsm 0.5"),
        ("detection", ("*", "attacks", "pgd", "errors", "500", 0), 0.0042, "error under pgd 0.0042"),
        ("detection", ("*", "attacks", "pgd", "errors", "99999"), [0.0], "error under pgd 0.0"),
        ("localisation", ("*", "crops", "wide", "cam", "box_accuracy"), 0.9, "wide cam box_accuracy 0.9"),
        ("localisation", ("*", "crops", "tight", "firing", "filters"), [300, 200, 200, 200, 200, 200], "firing filters"),
        ("localisation", ("*", "crops", "tight", "gradient", "ap20"), 0.55, "gradient ap20 0.55"),
    ],
)
def test_a_number_that_the_run_cannot_give_is_refused_under_a_seal_made_anew(kind, keys, value, said, folder):
    run = first(kind)
    check(run)
    measured.write(kind, replaced(measured.read(kind), keys, value))
    with pytest.raises(Damaged, match=rf"{kind}\.json says .*{said}"):
        check(run)


@pytest.mark.parametrize("value", ["0.5", True, [0.5], -0.5, float("nan"), "<script>alert(1)</script>"])
@pytest.mark.parametrize("kind", NUMBERS)
def test_what_is_no_number_of_its_kind_is_neither_written_nor_read(kind, value, folder):
    if kind in ("speed", "first-verdicts") and value == -0.5:
        return  # some of their numbers are differences
    before = (folder / f"{kind}.json").read_text()
    wrong = replaced(measured.read(kind), NUMBERS[kind], value)
    with pytest.raises(Damaged, match=rf"{kind}\.json .*correct the tool"):
        measured.write(kind, wrong)
    assert (folder / f"{kind}.json").read_text() == before
    (folder / f"{kind}.json").write_text(json.dumps({"seal": measured.seal(wrong)} | wrong))
    with pytest.raises(Damaged, match=rf"{kind}\.json .*`python tools/"):
        measured.read(kind)


@pytest.mark.slow
def test_what_was_measured_is_verified_with_its_run(folder, csgbook):
    run = first("detection")
    measured.write("detection", replaced(measured.read("detection"), ("*", "accuracy"), 0.9))
    code, out, err = csgbook("verify", run.path)
    assert code == 2 and out == "" and err.startswith("csglib: ") and "detection.json says accuracy 0.9" in err


@pytest.mark.parametrize("path", sorted(p.parent for p in PUBLISHED.glob("*/provenance.json")), ids=lambda p: p.name)
def test_every_published_run_is_in_the_list_of_the_verified_as_it_is(path):
    assert measured.verified(runs.read(path)), "run `python tools/verify_all.py` and commit data/measured/verified.json"


def test_a_run_leaves_the_list_when_it_or_what_was_measured_of_it_changes(monkeypatch, tmp_path):
    run = runs.read(next(PUBLISHED / name for name in measured.read("detection")))
    assert measured.verified(run)
    real = measured.of
    with monkeypatch.context() as patch:
        patch.setattr(measured, "of", lambda kind, run: real(kind, run) and real(kind, run) | {"images": 7})
        assert not measured.verified(run)
    copied = shutil.copytree(run.path, tmp_path / run.path.name)
    path = copied / "provenance.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 0 '))
    assert not measured.verified(runs.read(copied))


@pytest.mark.long
@pytest.mark.parametrize("path", sorted(p.parent for p in PUBLISHED.glob("*/provenance.json")), ids=lambda p: p.name)
def test_every_published_run_is_what_its_files_give(path):
    verify(runs.read(path))
