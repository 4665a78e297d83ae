"""Recipe in, run out."""

from csglib.training.trainer import side_by_side, train

__all__ = ["side_by_side", "train"]
