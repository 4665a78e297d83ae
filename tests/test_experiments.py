import dataclasses
import functools
import json

import pytest
import torch
import yaml
from torch import nn

from csgbook import experiments
from csglib import Problem, methods, networks, runs
from csglib.errors import Missing, Unknown
from csglib.recipe import FORMS, Recipe

BOOK = experiments.book()
PAIRS = [(page, profile) for page in BOOK["pages"] for profile in BOOK["profiles"]]


@pytest.mark.slow
@pytest.mark.parametrize("page, profile", PAIRS)
def test_every_page_has_valid_recipes_in_every_profile(page, profile):
    p = experiments.profile(profile)
    for name, group in experiments.recipes(page, profile).items():
        if name in BOOK["experiments"]:
            seeds = p.kinds.get(BOOK["experiments"][name].get("kind"), {}).get("seeds", p.seeds)
            assert [r.seed for r in group] == ([] if name in p.leave_out else list(seeds)), name
        else:
            assert name.count("/") == 2 and group and len({r.seed for r in group}) == len(group), name  # a cell of a grid
        for recipe in group:
            assert recipe.key  # its precision is named
            if recipe.seed == group[0].seed:
                methods.method(recipe).gate(recipe, of_name(recipe.net))
            assert Recipe.from_dict(vars(recipe), "itself") == recipe


@functools.cache
def of_name(net: str) -> networks.Split:
    """Of any weights: to draw those of a whole VGG takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("kaiming_normal_", "kaiming_uniform_", "xavier_uniform_", "trunc_normal_", "normal_", "uniform_"):
            patch.setattr(nn.init, name, lambda tensor, *_args, **_named: tensor)
        return networks.build(net, 10)


@pytest.mark.slow
@pytest.mark.parametrize("page, profile", PAIRS)
def test_two_experiments_of_a_page_share_recipes_only_where_an_ablation_costs_nothing_less(page, profile):
    groups = {name: g for name, g in experiments.recipes(page, profile).items() if name in BOOK["experiments"]}
    alone = {name: g for name, g in groups.items() if not BOOK["experiments"][name].get("kind")}
    ablations = {name: g for name, g in groups.items() if name not in alone}
    for side in (alone, ablations) if "ablation" not in experiments.profile(profile).kinds else (groups,):
        keys = [r.key for group in side.values() for r in group]
        assert len(keys) == len(set(keys))


def test_an_ablation_changes_one_thing():
    groups = experiments.recipes("what-matters", "short")
    base = groups.pop("alternating")[0].changed()
    for name, (first, *_) in groups.items():
        changed = first.changed()
        assert {k for k in base | changed if base.get(k) != changed.get(k)} - {"fixed_gate"} != set(), name
        assert len({k for k in base | changed if base.get(k) != changed.get(k)} - {"fixed_gate"}) == 1, name


def test_no_recipe_is_asked_for_twice():
    assert len(missing := experiments.missing("training-curves", "paper", "nowhere")) == len(set(missing))


@pytest.mark.parametrize("page", BOOK["pages"])
def test_every_experiment_of_a_page_exists(page):
    assert set((BOOK["pages"][page] or {}).get("experiments", [])) <= set(BOOK["experiments"])


def test_every_experiment_is_used():
    used = {name for page in BOOK["pages"].values() for name in (page or {}).get("experiments", [])}
    assert used == set(BOOK["experiments"])


def test_quick_reads_the_runs_of_short_and_trains_nothing():
    assert experiments.recipes("table1", "quick") == experiments.recipes("table1", "short")
    assert not experiments.profile("quick").train
    assert experiments.profile("short").train


def test_the_paper_profile_follows_the_presumed_schedule_and_short_does_not():
    from csgbook.evidence.verdicts import presumed

    assert not any(presumed(r) for group in experiments.recipes("table1", "short").values() for r in group)
    assert all(presumed(r) for group in experiments.recipes("table1", "paper").values() for r in of_cifar(group))


def test_an_enlarged_recipe_keeps_its_gate_seed_and_precision_and_takes_data_and_schedule_of_the_profile():
    small = Recipe(
        dataset="cifar10-mini", epochs=4, cycle="sg", batch_size=64, lr=0.1, gate_density=0.3, seed=5, precision="float32"
    )
    for name, epochs in (("short", 30), ("paper", 200)):
        large = experiments.enlarged(small, name)
        assert (large.dataset, large.epochs, large.cycle, large.batch_size) == ("cifar10", epochs, "sgs", 128)
        assert (large.gate_density, large.seed, large.precision) == (0.3, 5, "float32")


def test_std_and_csg_differ_in_the_method_alone():
    table = experiments.recipes("table1", "short")
    for std, csg in zip(table["std"], table["csg"], strict=True):
        assert std.changed() == csg.changed() | {"method": "standard"}


def test_an_unknown_profile_or_page_is_refused_with_the_choice():
    with pytest.raises(Unknown, match="'fast'.*smoke.*paper"):
        experiments.profile("fast")
    with pytest.raises(Unknown, match="'table9'.*table1"):
        experiments.recipes("table9", "smoke")


def test_a_folder_without_runs_misses_them_all(tmp_path):
    missing = experiments.missing("table1", "smoke", tmp_path)
    assert missing == [r for group in experiments.recipes("table1", "smoke").values() for r in group]
    assert experiments.published("table1", "smoke", tmp_path) == dict.fromkeys(BOOK["pages"]["table1"]["experiments"], [])


def test_a_misspelt_field_of_the_file_is_refused(tmp_path, monkeypatch):
    text = experiments.FILE.read_text().replace("{method: csg}", "{methd: csg}")
    (tmp_path / "experiments.yml").write_text(text)
    monkeypatch.setattr(experiments, "FILE", tmp_path / "experiments.yml")
    with pytest.raises(Problem, match="experiments.yml.*'methd'"):
        experiments.recipes("table1", "smoke")


def test_without_the_file_the_problem_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "FILE", tmp_path / "experiments.yml")
    with pytest.raises(Missing, match="experiments.yml"):
        experiments.book()


# Grids: many experiments in few lines


def in_grid(change, monkeypatch, tmp_path) -> dict[str, list[Recipe]]:
    """The recipes of a grid of two data sets, two networks and two methods, with one thing changed."""
    grid = {
        "data": {"a": {"dataset": "cifar10", "epochs": 4}, "b": {"dataset": "folder:x", "lr": 0.5}},
        "networks": {"n": {"net": "resnet20"}, "m": {"net": "resnet8", "lr": 0.3, "seeds": [7]}},
        "methods": {"std": {"method": "standard"}, "csg": {"method": "csg"}},
    }
    change(grid)
    changed_file(monkeypatch, tmp_path, lambda table: table["profiles"]["short"]["grids"].update(taps=grid))
    return experiments.cells(experiments.profile("short"), "taps")


def test_a_grid_is_every_data_set_with_every_network_under_every_method(monkeypatch, tmp_path):
    cells = in_grid(lambda grid: None, monkeypatch, tmp_path)
    assert list(cells) == [f"{d}/{n}/{m}" for d in "ab" for n in "nm" for m in ("std", "csg")]
    assert [r.seed for r in cells["a/n/std"]] == [0, 1, 2] and [r.seed for r in cells["a/m/std"]] == [7]
    assert cells["a/m/csg"][0].changed() == {"net": "resnet8", "lr": 0.3, "epochs": 4, "seed": 7}
    assert cells["b/m/csg"][0].lr == 0.5  # a data set's field goes before a network's


def test_a_method_may_be_confined_to_networks_and_data_sets(monkeypatch, tmp_path):
    cells = in_grid(lambda grid: grid["methods"]["csg"].update(networks=["m"], data=["b"]), monkeypatch, tmp_path)
    assert [name for name in cells if name.endswith("csg")] == ["b/m/csg"]


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda grid: grid["methods"]["csg"].update(networks=["o"]), "unknown networks of grid taps 'o': choose one of n, m"),
        (lambda grid: grid["data"]["a"].update(epoch=3), "unknown recipe field 'epoch'"),
        (lambda grid: grid["networks"].clear(), "experiments.yml"),
        (lambda grid: grid.pop("methods"), "experiments.yml.*methods"),
    ],
)
def test_a_grid_that_is_none_is_refused(change, said, monkeypatch, tmp_path):
    with pytest.raises(Problem, match=said):
        in_grid(change, monkeypatch, tmp_path)


def test_all_methods_of_a_network_share_its_rate_and_schedule():
    for grid in ("elsewhere", "taps"):
        cells = experiments.cells(experiments.profile("short"), grid)
        for name, group in cells.items():
            std = cells[f"{name.rpartition('/')[0]}/std"]
            for a, b in zip(std, group, strict=True):
                assert {k for k in a.changed() | b.changed() if a.changed().get(k) != b.changed().get(k)} <= {
                    "method",
                    "theta_lr",
                }


@pytest.mark.slow
def test_a_diverged_cell_is_told_and_not_trained_again(tmp_path, csgbook, monkeypatch):
    recipe = experiments.recipes("table1", "smoke")["std"][0]
    out = tmp_path / recipe.name
    runs.part(out).mkdir(parents=True)
    report = {"stopped_by": ["train_loss"], "history": [{"epoch": 0, "train_loss": "nan"}]}
    (runs.part(out) / "report.json").write_text(json.dumps(report))
    assert experiments.obstacle(recipe, tmp_path) == "it diverged (train_loss of epoch 0)"
    assert experiments.diverged(recipe, tmp_path / "elsewhere") is None
    asked = []
    monkeypatch.setattr("csglib.training.trainer.side_by_side", lambda work, device: asked.extend(work))
    code, _, err = csgbook("missing", "--profile", "smoke", "--page", "table1", "--runs-folder", tmp_path, "--device", "cpu")
    assert code == 0 and "it diverged (train_loss of epoch 0), left out: csglib train" in err
    assert {r.method for r, _ in asked} == {"csg", "matched"}


@pytest.mark.slow
def test_a_cell_that_diverges_stops_no_other(tmp_path, csgbook, monkeypatch):
    """It is told and kept as a result; another mistake still stops the command."""
    tried = []

    def fail(work, device):
        (recipe, out), *_ = work
        tried.append(recipe.method)
        if recipe.method == "standard":
            runs.part(out).mkdir(parents=True)
            report = {"stopped_by": ["train_loss"], "history": [{"epoch": 0, "train_loss": "inf"}]}
            (runs.part(out) / "report.json").write_text(json.dumps(report))
            raise Problem("train_loss of epoch 0 is inf")
        if recipe.method == "csg":
            raise Problem("no room")

    monkeypatch.setattr("csglib.training.trainer.side_by_side", fail)
    code, _, err = csgbook("missing", "--profile", "smoke", "--page", "table1", "--runs-folder", tmp_path, "--device", "cpu")
    assert code == 2 and tried == ["standard", "matched", "csg"] and "train_loss of epoch 0 is inf" in err and "no room" in err


# Precision and loop: how a run is computed


@pytest.fixture
def processor(monkeypatch):
    """processor(native): as if this machine had no GPU and did, or did not, compute bfloat16."""

    def pretend(native: bool) -> None:
        monkeypatch.setattr(experiments, "pick_device", lambda _: torch.device("cpu"))
        monkeypatch.setattr("csglib.precision.cpu_has_bfloat16", lambda: native)

    return pretend


def of_cifar(recipes) -> list[Recipe]:
    """Without those of more classes, which the page shows beside."""
    return [r for r in recipes if r.dataset == "cifar10"]


def page_with(folder, **forms) -> dict[str, list[Recipe]]:
    """The recipes of Table 1 after runs of it were put there: page_with(folder, std=[form of seed 0, of seed 1, ...])."""
    for name, of_seeds in forms.items():
        for recipe, form in zip(experiments.recipes("table1", "short")[name], of_seeds, strict=False):
            (folder / recipe.in_form(form).name).mkdir(exist_ok=True)
    return experiments.recipes("table1", "short", folder)


BF16, FLOAT, FAST = ("bfloat16", "plain"), ("float32", "plain"), ("float32", "fast")


@pytest.mark.parametrize("native, form", [(True, BF16), (False, FLOAT)])
def test_without_runs_a_page_is_trained_in_what_is_native(native, form, processor, tmp_path):
    processor(native)
    assert {r.form for group in page_with(tmp_path).values() for r in group} == {form}


@pytest.mark.slow
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_a_run_serves_whatever_its_precision_and_loop_and_what_is_missing_joins_it(form, native, processor, tmp_path):
    processor(native)
    groups = page_with(tmp_path, std=[form])
    assert {r.form for group in groups.values() for r in group} == {form}
    assert groups["std"][0] not in experiments.missing("table1", "short", tmp_path)
    assert len(of_cifar(experiments.missing("table1", "short", tmp_path))) == 8


@pytest.mark.parametrize("native", [True, False])
def test_runs_of_two_forms_are_told_apart_and_the_form_of_most_is_read(native, processor, tmp_path):
    processor(native)
    groups = page_with(tmp_path, std=[BF16, FLOAT, FLOAT], csg=[FLOAT, FAST])
    assert {r.form for group in groups.values() for r in group} == {FLOAT}
    missing = of_cifar(experiments.missing("table1", "short", tmp_path))
    assert [r.seed for r in missing if r.method == "standard"] == [0]
    assert {r.form for g in page_with(tmp_path, csg=[BF16, BF16]).values() for r in g} == {BF16}  # three of each


@pytest.mark.slow
def test_published_runs_keep_their_keys():
    for page in BOOK["pages"]:
        for group in experiments.published(page, "short").values():
            assert all(run.recipe.key == run.provenance["key"] and run.path.name == run.recipe.name for run in group)
    found = [run.recipe for group in experiments.published("table1", "short").values() for run in group]
    assert len(of_cifar(found)) == 9


def changed_file(monkeypatch, tmp_path, change) -> None:
    table = yaml.safe_load(experiments.FILE.read_text())
    change(table)
    (tmp_path / "experiments.yml").write_text(yaml.safe_dump(table, sort_keys=False))
    monkeypatch.setattr(experiments, "FILE", tmp_path / "experiments.yml")


def test_a_precision_that_the_file_names_is_the_only_one_that_counts(monkeypatch, tmp_path):
    changed_file(monkeypatch, tmp_path, lambda table: table["profiles"]["short"]["recipe"].update(precision="float32"))
    groups = experiments.recipes("table1", "short")
    assert {r.form for group in groups.values() for r in group} == {FLOAT}
    assert len(of_cifar(experiments.missing("table1", "short"))) == 9
    assert not any(experiments.published("table1", "short").values())


@pytest.mark.parametrize("field, value", [("precision", "float32"), ("loop", "fast")])
def test_a_profile_that_compares_two_forms_for_a_claim_is_refused_by_name(field, value, monkeypatch, tmp_path):
    def change(table):
        table["profiles"]["short"]["recipe"]["precision"] = "bfloat16"
        table["experiments"]["csg"][field] = value

    changed_file(monkeypatch, tmp_path, change)
    with pytest.raises(Problem, match="profile short compares .*csg in .*standard in bfloat16, loop plain for the claim"):
        experiments.recipes("table1", "short")


def test_what_is_emulated_here_is_not_trained_beside_other_runs_and_the_remedy_is_told(processor):
    recipe = Recipe(precision="bfloat16")
    processor(True)
    assert experiments.obstacle(recipe) is None
    processor(False)
    assert "`precision: float32` in experiments.yml trains all of them" in experiments.obstacle(recipe)
    assert experiments.obstacle(dataclasses.replace(recipe, precision="float32")) is None
    assert "photographs are not here" in experiments.obstacle(Recipe(dataset="voc:nowhere", precision="float32"))


def test_cells_of_tiny_imagenet_are_told_where_it_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("CSGLIB_DATA", str(tmp_path))
    cells = experiments.recipes("elsewhere", "short", tmp_path)
    recipe = dataclasses.replace(cells["tiny-imagenet/resnet18/csg"][0], precision="float32")
    assert recipe.dataset == "tiny-imagenet@32@20classes"
    assert experiments.obstacle(recipe) == f"there is no tiny-imagenet-200 in {tmp_path}"
    (tmp_path / "tiny-imagenet-200").mkdir()
    assert experiments.obstacle(recipe) is None


def test_siblings_differ_in_precision_or_loop_alone(tmp_path):
    recipe = Recipe(precision="float32", seed=3)
    for other in (recipe, recipe.in_form(FAST), recipe.in_form(BF16), dataclasses.replace(recipe, seed=4)):
        (tmp_path / other.name).mkdir()
    assert runs.siblings(recipe, tmp_path) == [recipe.in_form(BF16), recipe.in_form(FAST)]
