"""Pictures that stay in their files, decoded by processes of torch's DataLoader whenever they are asked for.

Order and augmentation are drawn before a file is opened, from the generator of the epoch alone, so the number of processes
changes no bit; and pixels are those that the same pictures would have in memory.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from csglib import memory
from csglib.data import sums
from csglib.data.decoded import REMEDY, centre, resized, square
from csglib.data.pictures import read
from csglib.errors import Problem
from csglib.files import MIB

RESIDENT = 2048 * MIB  # of all pixels together: what is held in memory unless somebody asks otherwise
Crop = Literal["border", "resized"]


@dataclass(frozen=True)
class Reading:
    """How pictures reach the device.  No part of a recipe, since no bit of a run depends on it."""

    where: Literal["auto", "resident", "streamed"] = "auto"  # auto: resident up to RESIDENT
    workers: int | None = None  # processes that decode; None: a processor each, but one that computes keeps half of its cores

    def streams(self, name: str, pictures: int, size: int, crop: Crop) -> bool:
        """Whether so many pictures stay in their files.  Raises Problem where what was asked for cannot be."""
        if self.workers is not None and self.workers < 0:
            raise Problem(f"{self.workers} processes cannot read: use 0, to read in the process that trains, or more")
        if crop == "resized":
            if self.where == "resident":
                raise Problem(f"{name} is cropped from its files at random, which memory cannot hold: leave --read out")
            return True
        room = 3 * size * size * pictures
        if self.where == "resident" and room > (there := memory.total()):
            raise Problem(
                f"{name} takes {room / MIB:,.0f} MiB in {size} x {size} pixels, and this machine has {there / MIB:,.0f}: leave "
                "--read out, or choose a smaller size"
            )
        return self.where == "streamed" or (self.where == "auto" and room > RESIDENT)


AUTO = Reading()


@dataclass(frozen=True)
class Streamed:
    """N pictures in files, and their classes: what `Images` is for pictures in memory."""

    root: Path
    paths: np.ndarray  # N names beneath the root, as bytes: a million Python strings would be copied into every process
    labels: Int[Tensor, " N"]
    size: int  # pixels of a side
    crop: Crop = "border"
    workers: int | None = None
    groups: Int[Tensor, " N"] | None = None
    device: torch.device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def border(self) -> int:
        """Pixels of zeros from which a crop may take; none where crops are of the file's own pixels."""
        return 0 if self.crop == "resized" else self.size // 8

    @property
    def where(self) -> str:
        by = f"{n} process{'es' * (n > 1)}" if (n := self.processes) else "the process that trains"
        return f"read from their files by {by}"

    @property
    def processes(self) -> int:
        if self.workers is not None:
            return self.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(cores, 16) if self.device.type == "cuda" else max(1, cores // 2)

    def to(self, device: torch.device | str) -> "Streamed":
        return replace(self, labels=self.labels.to(device), device=torch.device(device))

    def take(self, order: Int[Tensor, " n"] | slice) -> "Streamed":
        whole = isinstance(order, slice)
        paths = self.paths[order if whole else order.cpu().numpy()]
        labels = self.labels[order if whole else order.to(self.device)]
        groups = None if self.groups is None else self.groups[order if whole else order.cpu()]
        return replace(self, paths=paths, labels=labels, groups=groups)

    def first(self, n: int) -> UInt8[Tensor, "n 3 S S"]:
        """The first so many, as evaluation sees them."""
        few = replace(self, workers=0)
        return next(few.read([torch.arange(min(n, len(self)))]))

    def read(self, chunks: Sequence[Tensor], seeds: Int[Tensor, " N"] | None = None) -> Iterator[Tensor]:
        """The pictures of one chunk of places after another, on the device.

        With seeds, one per picture, each is cropped at random; without, as evaluation sees it.  Raises Problem where a picture
        cannot be read or a process dies.
        """
        wanted = [(chunk, None if seeds is None else seeds[chunk]) for chunk in chunks]
        n = min(self.processes, len(wanted))
        if n:
            memory.trim()
        loader = DataLoader(
            Decoder(self.root, self.paths, self.size, self.crop),
            batch_size=None,  # a chunk is a batch already
            sampler=wanted,
            num_workers=n,
            prefetch_factor=2 if n else None,
            pin_memory=self.device.type == "cuda",
        )
        try:
            yield from ahead(loader, self.device)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            fewer = f"--workers {n // 2}"
            raise Problem(
                f"a process that reads pictures of {self.root} was killed, as happens where memory is short: choose "
                f"{fewer}; a training goes on from its last checkpoint"
            ) from None


def verify(root: Path, *parts: Streamed) -> str:
    """Read every picture of these parts, and remember its sum; return the sha256 over all names and sums.

    Raises Problem where one does not open, or has changed without its size or time.
    """
    paths = [root / os.fsdecode(path) for part in parts for path in part.paths]
    return sums.verify(root, paths, lambda path: read(path, REMEDY))


class Decoder(torch.utils.data.Dataset):
    """What a process of the loader holds: a chunk of places in, pixels out, or the Problem that one of them has."""

    def __init__(self, root: Path, paths: np.ndarray, size: int, crop: Crop):
        self.root, self.paths, self.size, self.crop = root, paths, size, crop

    def __getitem__(self, wanted: tuple[Tensor, Tensor | None]) -> UInt8[Tensor, "B 3 S S"] | Problem:
        places, seeds = wanted
        pixels = torch.empty(len(places), 3, self.size, self.size, dtype=torch.uint8)
        if torch.utils.data.get_worker_info() is not None:
            pixels.share_memory_()  # or the loader would copy them; and freed blocks stay with this process, as in its parent
        for row, i in enumerate(places.tolist()):
            path = self.root / os.fsdecode(self.paths[i])
            try:
                if self.crop == "border":
                    found = square(path, self.size)[0]
                elif seeds is None:
                    found = centre(path, self.size)
                else:
                    found = resized(path, self.size, int(seeds[row]))
            except Problem as problem:  # as a value: raised, it would come out of this process as a traceback
                return problem
            pixels[row] = torch.from_numpy(found)
        return pixels


def ahead(chunks: Iterable[Tensor | Problem], device: torch.device) -> Iterator[Tensor]:
    """Each chunk on the device; to a GPU the next one is copied, on a stream of its own, while this one is computed with."""
    if device.type != "cuda":
        for chunk in chunks:
            yield sound(chunk)
        return
    copies, before = torch.cuda.Stream(device), None
    for chunk in chunks:
        with torch.cuda.stream(copies):
            moved = sound(chunk).to(device, non_blocking=True)
        if before is not None:
            yield before
        torch.cuda.current_stream(device).wait_stream(copies)
        moved.record_stream(torch.cuda.current_stream(device))
        before = moved
    if before is not None:
        yield before


def sound(chunk: Tensor | Problem) -> Tensor:
    if isinstance(chunk, Problem):
        raise chunk
    return chunk
