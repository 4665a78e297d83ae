"""The checks of `csglib doctor --gpu`: on a GPU as they are, and on the processor with what stands in for a graph.

Needs pytest and torch alone.
"""

import dataclasses
import types

import pytest
import torch
import trainings
from recorded import recorded

from csglib import Problem, networks
from csglib.training import gpu, loop, prepare
from csglib.training.loop import Replayed

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here that torch can use")
SMALL = {"captured": "7 methods", "memory": "csg 0 MiB, icnn 0 MiB"}


@needs_gpu
@pytest.mark.parametrize("name", gpu.NAMES)
def test_on_a_gpu(name):
    """In a process of its own, which torch needs to compile, too: it cannot where the tests check shapes."""
    print(gpu.check(name))


@pytest.fixture
def standing_in(monkeypatch):
    """On the processor a small network trains; its steps are recorded and replayed as a graph would do it."""
    monkeypatch.setattr(loop, "replays", lambda recipe, device: recipe.loop == "fast")
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", tuple)
    monkeypatch.setattr(loop, "captured", lambda step, pool: recorded(step))
    monkeypatch.setattr(torch, "compile", lambda maps: maps)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    on_gpu = types.SimpleNamespace(is_cuda=True)
    optimisers_of = prepare.optimisers_of

    def for_a_gpu(recipe, m, net, gate):  # whose Adam counts in tensors
        made = optimisers_of(recipe, m, net, gate)
        return made[:1] + ([m.optimiser(recipe, gate, on_gpu.is_cuda)] if m.optimiser is not None else [])

    monkeypatch.setattr(prepare, "optimisers_of", for_a_gpu)
    monkeypatch.setitem(networks.NETS, "small", trainings.small)
    monkeypatch.setattr(gpu, "RECIPE", dataclasses.replace(gpu.RECIPE, net="small"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:16 filters are few")
@pytest.mark.parametrize("name", [n for n in gpu.NAMES if n != "two_processes"])
def test_the_checks_themselves(name, standing_in):
    found = dict(zip(gpu.NAMES, gpu.CHECKS, strict=True))[name](torch.device("cpu"))
    assert SMALL.get(name, "") in found


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["rate", "batch"])
def test_a_graph_that_repeats_its_first_step_is_found(fault, standing_in, monkeypatch):
    """What a captured step that reads from Python instead of its buffers would train."""
    original = Replayed.batch

    def batch(self):
        if fault == "batch":
            self.at.clamp_(max=3)
        x, y = original(self)
        if fault == "rate":
            self.optimisers[0].param_groups[0]["lr"].copy_(self.lrs[3])
        return x, y

    monkeypatch.setattr(Replayed, "batch", batch)
    with pytest.raises(Problem, match="of its way from where the plain loop ends"):
        gpu.captured(torch.device("cpu"))


def test_graphs_that_are_not_made_are_found(standing_in, monkeypatch):
    monkeypatch.setattr(loop, "replays", lambda recipe, device: False)
    with pytest.raises(Problem, match="standard is compiled"):
        gpu.captured(torch.device("cpu"))


@pytest.mark.slow
def test_a_graph_for_each_epoch_is_found(standing_in, monkeypatch):
    run = Replayed.run
    monkeypatch.setattr(Replayed, "run", lambda self, *a: (run(self, *a), self.graphs.update({len(self.graphs): None})))
    with pytest.raises(Problem, match="csg keeps 13 graphs for 2 paths"):
        gpu.memory(torch.device("cpu"))


@pytest.mark.slow
def test_a_check_that_crashes_or_hangs_is_told_in_one_sentence(monkeypatch):
    with pytest.raises(Problem, match="KeyError: 'no such check'"):
        gpu.check("no such check")
    monkeypatch.setattr(gpu, "SECONDS", 0.1)
    with pytest.raises(Problem, match="more than 0.1 seconds"):
        gpu.check("captured")
