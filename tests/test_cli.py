import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from csgbook import experiments
from csglib import runs
from csglib.data import released
from csglib.recipe import Recipe
from csglib.training import trainer

CONTRACT = {"accuracy", "mis", "mis_null", "mis_normalised", "l1_density", "acc1", "acc2", "acc3"}


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """An empty current folder, and no CIFAR-10 anywhere."""
    monkeypatch.setenv("CSGLIB_DATA", str(tmp_path / "no-data"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.fixture
def refused(csglib, csgbook, workplace, snapshot):
    """refused(words, *parts): the command fails with one sentence that has these parts, and writes nothing."""

    def check(words: str, *parts: str) -> None:
        before = snapshot(workplace)
        command = csgbook if words.split()[0] in ("missing", "results") else csglib
        code, out, err = command(*words.split())
        assert code not in (0, None)
        assert out == ""
        assert err.startswith("csglib: ") and err.count("\n") == 1 and err.endswith("\n")
        for part in parts:
            assert part in err
        assert snapshot(workplace) == before

    return check


MINI = "train --dataset cifar10-mini --precision float32"


@pytest.mark.parametrize(
    "words, parts",
    [
        ("train --dataset mnist", ["'mnist'", "cifar10-mini"]),
        ("train --dataset cifar10", ["data_batch_1.bin is missing", "csglib data get cifar10", "CSGLIB_DATA"]),
        (f"{MINI} --net resnet21", ["'resnet21'", "resnet20"]),
        (f"{MINI} --method nothing", ["'nothing'", "standard, matched, csg"]),
        (f"{MINI} --gate-density -0.1", ["gate_density -0.1", "1/C"]),
        (f"{MINI} --gate-density 0.05", ["gate_density 0.05", "0.1"]),
        (f"{MINI} --gate-density 0.05 --out new", ["gate_density 0.05"]),
        (f"{MINI} --gate-density 1.5", ["gate_density 1.5"]),
        (f"{MINI} --epochs 0", ["epochs 0", "at least 1"]),
        (f"{MINI} --epochs 1", ["no epoch would train the gate"]),
        (f"{MINI} --lr -1", ["lr -1"]),
        (f"{MINI} --batch-size 2001", ["2001", "2000"]),
        (f"{MINI} --method standard --gate-lr 0.5", ["does not read gate_lr"]),
        (f"{MINI} --device abacus", ["'abacus'", "cpu"]),
        (f"{MINI} --seed -1", ["seed -1"]),
        (f"{MINI} --seed 99999999999999999999", ["seed 9999"]),
        ("evaluate nowhere", ["nowhere", "csglib train"]),
        ("evaluate .", ["not a finished run"]),
        ("data verify mnist", ["'mnist'", "cifar10"]),
        ("data verify cifar10", ["missing", "csglib data get cifar10"]),
        ("runs nowhere", ["nowhere"]),
        ("results --profile fast", ["'fast'", "smoke"]),
    ],
)
def test_bad_input_gives_one_sentence_with_the_remedy_and_writes_nothing(words, parts, refused):
    refused(words, *parts)


def test_an_output_folder_with_a_finished_run_is_left_alone(run, refused, workplace):
    shutil.copytree(run.path, workplace / "run")
    refused(f"{MINI} --out {workplace}/run", "finished run", "another --out")


def test_an_output_folder_with_other_files_is_left_alone(refused, workplace):
    (workplace / "thesis").mkdir()
    (workplace / "thesis" / "chapter.tex").write_text("precious")
    refused(f"{MINI} --out {workplace}/thesis", "not a run", "another --out")


def test_another_recipes_unfinished_run_is_left_alone(refused, workplace):
    runs.reserve(workplace / "new", Recipe(dataset="cifar10-mini", seed=1, precision="float32"))
    refused(f"{MINI} --out {workplace}/new", "another recipe", "another --out")


def test_an_output_folder_beneath_a_file_is_refused(refused, workplace):
    (workplace / "notes").write_text("precious")
    refused(f"{MINI} --out {workplace}/notes/run", "notes")


@pytest.mark.parametrize("name", [*runs.FILES, "provenance.json"])
def test_a_run_with_a_missing_file_is_not_evaluated(name, run, refused, workplace):
    shutil.copytree(run.path, workplace / "run")
    (workplace / "run" / name).unlink()
    refused(f"evaluate {workplace}/run --json", name)


@pytest.mark.parametrize("name", runs.FILES)
def test_a_run_with_an_altered_file_is_not_evaluated(name, run, refused, workplace):
    shutil.copytree(run.path, workplace / "run")
    with (workplace / "run" / name).open("ab") as f:
        f.write(b" ")
    refused(f"evaluate {workplace}/run", name, "altered", "train the run again")


@pytest.mark.parametrize("size, said", [(0, "differs"), (3073 * 9999, "differs"), (None, "missing")])
def test_a_damaged_batch_file_stops_training_before_it_starts(size, said, refused, workplace, monkeypatch):
    folder = workplace / "raw" / released.CIFAR10.folder
    folder.mkdir(parents=True)
    if size is not None:
        with (folder / "data_batch_1.bin").open("wb") as f:
            f.truncate(size)
    monkeypatch.setenv("CSGLIB_DATA", str(workplace / "raw"))
    refused("train --out new", "data_batch_1.bin", said, "csglib data get cifar10")


def test_a_download_without_a_network_leaves_nothing(refused, workplace, monkeypatch):
    (workplace / "raw").mkdir()
    monkeypatch.setenv("CSGLIB_DATA", str(workplace / "raw"))

    def unreachable(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    refused("data get cifar10", "could not download", "no route to host", "try again")


@pytest.mark.slow
def test_a_new_process_fails_without_a_traceback(workplace):
    code = "from csglib.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "evaluate", "nowhere"], capture_output=True, text=True, cwd=workplace / "here"
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("csglib: nowhere is not a finished run") and done.stderr.count("\n") == 1


def test_ctrl_c_is_told_how_to_go_on(csglib, workplace, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "train", interrupt)
    code, _, err = csglib(*MINI.split())
    assert code == 130
    assert err == "csglib: stopped; given again, `train` goes on from the last whole epoch, and a download where it was\n"


@pytest.mark.parametrize("command", [[], ["train"], ["evaluate"], ["data"], ["runs"]])
def test_help_works(command, csglib):
    code, out, _ = csglib(*command, "--help")
    assert code == 0
    assert f"usage: {' '.join(['csglib', *command])}" in out


@pytest.mark.parametrize("command", [[], ["missing"], ["verify"], ["results"]])
def test_help_of_the_books_command_works(command, csgbook):
    code, out, _ = csgbook(*command, "--help")
    assert code == 0
    assert f"usage: {' '.join(['csgbook', *command])}" in out


def test_evaluate_prints_the_contracts_metrics_as_json(run, csglib):
    code, out, _ = csglib("evaluate", run.path, "--json")
    values = json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert code == 0
    assert set(values) >= CONTRACT
    assert {name: values[name] for name in run.metrics} == run.metrics
    assert values["key"] == run.recipe.key and values["recipe"]["method"] == "csg"


def test_evaluate_prints_a_table_with_four_digits(run, csglib):
    _, out, _ = csglib("evaluate", run.path)
    table = dict(line.split() for line in out.splitlines())
    assert table == {name: f"{value:.4f}" for name, value in run.metrics.items()}


def test_evaluate_from_the_images_agrees_with_the_stored_readout(run, csglib):
    code, out, _ = csglib("evaluate", run.path, "--json", "--images")
    values = json.loads(out)
    assert code == 0
    assert values["accuracy"] == pytest.approx(run.metrics["accuracy"], abs=0.002)
    assert values["mis"] == pytest.approx(run.metrics["mis"], abs=0.002)


@pytest.mark.slow
def test_train_writes_a_run_and_prints_its_metrics_as_json(tiny, csglib, workplace):
    words = "train --dataset tiny --method csg --epochs 2 --cycle gs --batch-size 64 --out new --device cpu"
    code, out, err = csglib(*words.split())
    assert code == 0
    assert json.loads(out) == runs.read("new").metrics  # and nothing else on stdout
    assert "epochs in" in err


@pytest.mark.slow
def test_train_says_why_it_took_its_precision(tiny, csglib, workplace):
    words = "train --dataset tiny --method standard --epochs 1 --batch-size 64 --out new --device cpu"
    _, out, err = csglib(*words.split())
    reason = runs.read("new").provenance["precision_reason"]
    assert reason in out + err
    assert "bfloat16 natively" in reason
    assert "asked for" not in reason  # nobody did


@pytest.mark.slow
def test_train_without_out_names_the_folder_after_the_recipe(tiny, csglib, workplace):
    words = "train --dataset tiny --method standard --epochs 1 --batch-size 64 --precision float32 --device cpu"
    code, _, _ = csglib(*words.split())
    (path,) = (workplace / "here" / "build" / "runs").iterdir()
    assert code == 0 and runs.read(path).recipe.name == path.name


def test_data_verify_counts_the_images(csglib):
    code, out, _ = csglib("data", "verify", "cifar10-mini")
    assert code == 0
    assert "2000 training and 1000 test images" in out


def test_runs_lists_each_run_of_a_folder(run, csglib):
    code, out, _ = csglib("runs", run.path.parent)
    assert code == 0
    assert out.count("\n") == 1 and out.startswith("run ") and f"accuracy {run.metrics['accuracy']:.4f}" in out


@pytest.mark.slow
def test_results_judges_every_claim(csgbook, workplace):
    from csgbook.evidence.verdicts import CLAIMS

    (workplace / "none").mkdir()
    code, _, _ = csgbook("results", "--runs-folder", workplace / "none", "--out", workplace / "deep" / "results.json")
    entries = json.loads((workplace / "deep" / "results.json").read_text())
    assert code == 0
    assert [e["id"] for e in entries] == [c.id for c in CLAIMS]
    assert {e["verdict"] for e in entries} == {"not run here"}
    assert {"id", "page", "paper", "source", "ours", "low", "high", "n", "verdict", "runs", "schedule"} <= set(entries[0])


@pytest.mark.slow
def test_several_seeds_train_side_by_side_into_folders_of_their_own(tiny, csglib, workplace):
    words = "train --dataset tiny --method standard --epochs 1 --batch-size 64 --precision float32 --device cpu"
    code, out, err = csglib(*words.split(), "--seeds", "0", "1", "--out", "runs")
    assert code == 0, err
    trained = [runs.read(path) for path in sorted(Path("runs").iterdir())]
    assert [run.recipe.seed for run in trained] == [0, 1] and all(run.path.name == run.recipe.name for run in trained)
    assert all(str(run.metrics["accuracy"]) in out for run in trained)


@pytest.mark.slow
def test_what_a_profile_lacks_is_trained_and_what_it_has_is_left(tiny, csgbook, workplace, monkeypatch):
    short = Recipe(dataset="tiny", method="standard", epochs=1, batch_size=64, precision="float32")
    recipes = [short, replace(short, dataset="voc:nowhere")]
    monkeypatch.setattr(experiments, "book", lambda: {"pages": {"a-page": None}})

    def untrained(page, profile, folder):
        return [r for r in recipes if not (folder / r.name).exists()]

    monkeypatch.setattr(experiments, "missing", untrained)
    words = ("missing", "--profile", "paper", "--runs-folder", "runs")
    code, _, err = csgbook(*words, "--at-once", "2", "--device", "cpu")
    assert code == 0 and "its photographs are not here, left out: csglib train --dataset voc:nowhere" in err
    assert [path.name for path in Path("runs").iterdir()] == [recipes[0].name]
    before = runs.read(Path("runs", recipes[0].name)).provenance
    assert csgbook(*words)[0] == 0
    assert runs.read(Path("runs", recipes[0].name)).provenance == before


def test_no_training_at_once_is_refused(refused):
    refused("missing --at-once 0", "0 trainings at once cannot be")
