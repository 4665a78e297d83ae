"""What pages ask of a run that takes images, and so seconds: computed once a process, by the digest of the run's weights."""

import functools
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from csglib.analysis import metrics
from csglib.runs import Run
from csglib.runs.inference import fitted_matrix, sample_maps


def once(statistic: Callable[[Run], object]) -> Callable[[Run], object]:
    known = {}

    @functools.wraps(statistic)
    def of(run: Run):
        weights = run.provenance["sha256"]["model.safetensors"]
        if weights not in known:
            known[weights] = statistic(run)
        return known[weights]

    return of


@once
def class_matrix(run: Run) -> Float[Tensor, "C K"]:
    """The run's gate; for a network without one, each filter to the class whose training images excite it most."""
    return fitted_matrix(run) if run.gate is None else run.gate


@once
def reach(run: Run) -> float:
    """Mean spread of the filters' activation on sample images, in pixels of the map."""
    return metrics.reach(sample_maps(run)).nanmean().item()
