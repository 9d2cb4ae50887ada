"""The rows that a search compares its queries with, in the precision of the product."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipling.guides.rows import write_parts
from clipling.store import atomic_produce

TILE = 2048  # columns of a part in fp32, twice as many in bf16
RESIDENT_BYTES = 2**26  # of converted columns that are kept in memory
Run = tuple[int, int]


class Columns:
    """Unit rows [C, d] of any float type, in memory or memory-mapped, and given a tile at a time.

    order int64 [C]: the row that each place holds; as they are, without. They are kept as they are multiplied on a GPU and where they take
    at most `RESIDENT_BYTES`, and in a memory-mapped file of the folder `scratch` in bf16, whose conversion takes a third as long as
    its product. Otherwise they are converted whenever they are asked for.
    """

    def __init__(self, rows: np.ndarray, device: str = "cpu", order: np.ndarray | None = None, scratch: Path | None = None) -> None:
        self.rows, self.device, self.order, self.scratch = rows, device, order, scratch
        self._held: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def keep(self, dtype: torch.dtype) -> None:
        """Converts them now, where they are kept at all: before other processes want the same file."""
        self._converted(dtype)

    def tiles(self, dtype: torch.dtype, runs: Sequence[Run] | None = None) -> Iterator[Tensor]:
        """[c, d] each: all places, or those of the runs (start, stop), one after the other."""
        held = self._converted(dtype)
        for pieces in _tiles([(0, len(self))] if runs is None else runs, TILE * 4 // dtype.itemsize):
            if held is not None:
                parts = [held[start:stop] for start, stop in pieces]
            else:
                parts = [tile(self.rows[self._chosen(start, stop)], dtype) for start, stop in pieces]
            yield parts[0] if len(parts) == 1 else torch.cat(parts)

    def _chosen(self, start: int, stop: int) -> slice | np.ndarray:
        return slice(start, stop) if self.order is None else self.order[start:stop]

    def _converted(self, dtype: torch.dtype) -> Tensor | None:
        if self._held is not None and self._held.dtype == dtype:
            return self._held
        self._held = None
        if self.device != "cpu" or self.rows.size * dtype.itemsize <= RESIDENT_BYTES:
            held = torch.empty(self.rows.shape, dtype=dtype, device=self.device)
            for start, part in self._parts(dtype):
                held[start : start + len(part)] = part
            self._held = held
        elif self.scratch is not None and dtype == torch.bfloat16:
            self._held = self._file(self.scratch)
        return self._held

    def _parts(self, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
        for start in range(0, len(self), TILE):
            yield start, tile(self.rows[self._chosen(start, start + TILE)], dtype)

    def _file(self, folder: Path) -> Tensor:
        """bf16, whose bits numpy holds as whole numbers. The name tells the order: cells may be learned anew beside an older file."""
        order = "" if self.order is None else "-" + hashlib.blake2b(self.order, digest_size=8).hexdigest()
        path = folder / f"columns-bf16{order}.npy"
        if not is_array(path, self.rows.shape, np.dtype(np.int16)):
            parts = (part.view(torch.int16).numpy() for _, part in self._parts(torch.bfloat16))
            atomic_produce(path, lambda temporary: write_parts(temporary, parts, self.rows.shape, np.dtype(np.int16)))
        return torch.from_numpy(np.load(path, mmap_mode="c")).view(torch.bfloat16)  # "c": torch wants rows that could be written


def is_array(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Whether a file is there as it was written."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return found.shape == shape and found.dtype == dtype


def _tiles(runs: Sequence[Run], most: int) -> Iterator[list[Run]]:
    """The runs cut and put together so that each list has at most so many places."""
    pieces: list[Run] = []
    room = most
    for start, stop in runs:
        while start < stop:
            here = min(stop, start + room)
            pieces.append((start, here))
            room -= here - start
            start = here
            if room == 0:
                yield pieces
                pieces, room = [], most
    if pieces:
        yield pieces


def tile(rows: np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
    """[c, d] of rows of any float type; memory-mapped ones are copied."""
    rows = rows if rows.flags.writeable and rows.flags.c_contiguous else np.array(rows)
    return torch.from_numpy(rows).float().to(dtype)  # fp16 by way of fp32: a third quicker than at once
