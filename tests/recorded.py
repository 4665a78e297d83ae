"""What a CUDA graph does, on a processor: a step is recorded, operation by operation, and replayed from the same memory.

As there, recording itself changes nothing, and whatever Python computed while it recorded, a number that it read from a tensor,
say, stays what it was in all replays.
"""

from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MOVES_STATISTICS = torch.ops.aten.native_batch_norm.default  # its schema does not say so


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls, self.made, self.before = [], set(), {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not torch.ops.aten._local_scalar_dense.default:
            written = [args[3], args[4]] if func is MOVES_STATISTICS else []
            for i, argument in enumerate(func._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    written.append(args[i] if i < len(args) else kwargs.get(argument.name))
            for t in tensors(written):
                place = t.untyped_storage()
                if place.data_ptr() not in self.made | self.before.keys():
                    self.before[place.data_ptr()] = place, place.clone()
        out = func(*args, **kwargs)
        known = {t.untyped_storage().data_ptr() for t in tensors((args, kwargs))}
        self.made |= {t.untyped_storage().data_ptr() for t in tensors(out)} - known - self.before.keys()
        self.calls.append((func, args, kwargs, out))
        return out

    def undo(self) -> None:
        for place, content in self.before.values():
            place.copy_(content)

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, out in self.calls:
            new = func(*args, **kwargs)
            for here, there in zip(tensors(new), tensors(out), strict=True):
                if here.data_ptr() != there.data_ptr():  # a view or an operation in place is where it was
                    there.copy_(here)


def tensors(tree) -> list[torch.Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, torch.Tensor)]


def recorded(step: Callable[[], None]) -> Callable[[], None]:
    """Takes the place of loop.captured."""
    recorder, generator = Recorder(), torch.get_rng_state()
    with recorder:
        step()
    recorder.undo()
    torch.set_rng_state(generator)
    return recorder.replay
