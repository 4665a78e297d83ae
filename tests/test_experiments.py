import pytest

from csglib import Problem, experiments, methods, nets
from csglib.runs import Recipe

BOOK = experiments.book()
PAIRS = [(page, profile) for page in BOOK["pages"] for profile in BOOK["profiles"]]


@pytest.mark.parametrize("page, profile", PAIRS)
def test_every_page_has_valid_recipes_in_every_profile(page, profile):
    p = experiments.profile(profile)
    for name, group in experiments.recipes(page, profile).items():
        seeds = p.kinds.get(BOOK["experiments"][name].get("kind"), {}).get("seeds", p.seeds)
        assert [r.seed for r in group] == ([] if name in p.leave_out else list(seeds)), name
        for recipe in group:
            assert recipe.key  # its precision is named
            if recipe.seed == group[0].seed:
                methods.method(recipe).gate(recipe, nets.build(recipe.net, 10))
            assert Recipe.from_dict(vars(recipe), "itself") == recipe


@pytest.mark.parametrize("page, profile", PAIRS)
def test_two_experiments_of_a_page_share_recipes_only_where_an_ablation_costs_nothing_less(page, profile):
    groups = experiments.recipes(page, profile)
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
    from csglib.claims import presumed

    assert not any(presumed(r) for group in experiments.recipes("table1", "short").values() for r in group)
    assert all(presumed(r) for group in experiments.recipes("table1", "paper").values() for r in group)


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
    with pytest.raises(Problem, match="unknown profile 'fast'.*smoke.*paper"):
        experiments.profile("fast")
    with pytest.raises(Problem, match="unknown page 'table9'.*table1"):
        experiments.recipes("table9", "smoke")


def test_a_folder_without_runs_misses_them_all(tmp_path):
    missing = experiments.missing("table1", "smoke", tmp_path)
    assert missing == [r for group in experiments.recipes("table1", "smoke").values() for r in group]
    assert experiments.published("table1", "smoke", tmp_path) == {"std": [], "matched": [], "csg": []}


def test_a_misspelt_field_of_the_file_is_refused(tmp_path, monkeypatch):
    text = experiments.FILE.read_text().replace("{method: csg}", "{methd: csg}")
    (tmp_path / "experiments.yml").write_text(text)
    monkeypatch.setattr(experiments, "FILE", tmp_path / "experiments.yml")
    with pytest.raises(Problem, match="experiments.yml.*'methd'"):
        experiments.recipes("table1", "smoke")


def test_without_the_file_the_problem_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "FILE", tmp_path / "experiments.yml")
    with pytest.raises(Problem, match="experiments.yml is missing"):
        experiments.book()
