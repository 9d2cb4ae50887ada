"""Rows of features on disk: memory-mapped fp16 shards that look like one array."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from clipling.errors import UserError
from clipling.store import atomic_produce

WARM_BYTES = 2**33
AT_ONCE = 1024  # rows worked on together where all rows are gone through: copies in fp64 stay small


@dataclass(frozen=True)
class Centre:
    """What is subtracted from rows, float32 [d], and what makes each of them unit again, float32 [n] (0 for rows of zeros)."""

    mean: np.ndarray
    inverse: np.ndarray


@dataclass(frozen=True)
class Rows:
    """fp16 unit rows [n, d], read where they are needed: `rows[numbers]` is fp16 [len(numbers), d].

    shards: memory maps, each of `per_shard` rows but the last. index: int64 [n], the stored row of each row (None: as
    they are stored). centre: None for rows as stored. A row of zeros stands for features that could not be had, and stays zeros.

    Nothing is copied into memory: pages that were read stay in the operating system's cache, which serves as well as a
    copy and does not count as memory of the process.
    """

    shards: Sequence[np.ndarray]
    per_shard: int
    index: np.ndarray | None = None
    centre: Centre | None = None

    @classmethod
    def open(cls, files: Sequence[Path]) -> Rows:
        """Raises UserError when a file is missing or is not what was written."""
        shards: list[np.ndarray] = []
        for file in files:
            with reading(file):
                shards.append(np.asarray(np.load(file, mmap_mode="r", allow_pickle=False)))
            shape, dtype = shards[-1].shape, shards[-1].dtype
            if len(shape) != 2 or dtype != np.float16 or shape[1] != shards[0].shape[1]:
                raise damaged(file, f"holds {dtype} {list(shape)}")
        return cls(shards, len(shards[0]))

    def __len__(self) -> int:
        return self.stored if self.index is None else len(self.index)

    @property
    def stored(self) -> int:
        """Rows on disk."""
        return sum(len(shard) for shard in self.shards)

    @property
    def dim(self) -> int:
        return self.shards[0].shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.dim

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float16)

    def __getitem__(self, numbers: slice | Sequence[int] | np.ndarray) -> np.ndarray:
        if isinstance(numbers, slice):
            numbers = np.arange(len(self))[numbers]
        numbers = np.asarray(numbers, dtype=np.int64)
        if len(numbers) and numbers.min() < 0:
            raise IndexError("row numbers begin at 0")
        rows = self._stored(numbers if self.index is None else self.index[numbers])
        return rows if self.centre is None else _centred(rows, self.centre.mean, self.centre.inverse[numbers])

    def _stored(self, numbers: np.ndarray) -> np.ndarray:
        if len(self.shards) == 1:
            return self.shards[0][numbers]
        found = np.empty((len(numbers), self.dim), dtype=np.float16)
        shard = numbers // self.per_shard
        for number in np.unique(shard):
            here = shard == number
            found[here] = self.shards[number][numbers[here] - number * self.per_shard]
        return found

    def prepared(self, features: np.ndarray) -> np.ndarray:
        """Features of the same encoder [n, d] as rows of this array would be: fp16, centred, unit; zeros stay zeros."""
        rows = features.astype(np.float16)
        return rows if self.centre is None else _centred(rows, self.centre.mean, _inverse(rows, self.centre.mean))

    def at(self, index: np.ndarray) -> Rows:
        """The rows of the given numbers, in that order, without reading them."""
        index = np.asarray(index, dtype=np.int64)
        centre = None if self.centre is None else Centre(self.centre.mean, self.centre.inverse[index])
        return Rows(self.shards, self.per_shard, index if self.index is None else self.index[index], centre)

    @property
    def uncentred(self) -> Rows:
        """The rows as they are stored."""
        return Rows(self.shards, self.per_shard, self.index)

    def mean(self, numbers: np.ndarray) -> np.ndarray:
        """float32 [d]: the mean of the rows of the given numbers, rows of zeros left out."""
        total, count = np.zeros(self.dim), 0
        for start in range(0, len(numbers), AT_ONCE):
            rows = self[numbers[start : start + AT_ONCE]].astype(np.float64)
            total += rows.sum(axis=0)
            count += int((rows != 0).any(axis=1).sum())
        return (total / max(count, 1)).astype(np.float32)

    def less(self, mean: np.ndarray) -> Rows:
        """All rows less `mean` [d], made unit again."""
        stored = self.uncentred
        inverse = [_inverse(stored[start : start + AT_ONCE], mean) for start in range(0, len(self), AT_ONCE)]
        return Rows(self.shards, self.per_shard, self.index, Centre(mean, np.concatenate([*inverse, np.zeros(0, np.float32)])))

    def warm(self) -> None:
        """Reads everything once, so that later reads come from memory; too much to stay there is left alone."""
        if sum(shard.nbytes for shard in self.shards) > WARM_BYTES:
            return
        for shard in self.shards:
            for start in range(0, len(shard), AT_ONCE):
                shard[start : start + AT_ONCE].max()


def damaged(file: Path, why: str) -> UserError:
    """The error for a file of a bank that is not what was written."""
    return UserError(f"the bank {file.parent} is damaged: {file.name} {why}. Remove the folder and build the bank again.")


@contextlib.contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turns whatever goes wrong while a bank's file is read into `damaged`."""
    try:
        yield
    except FileNotFoundError as error:
        raise damaged(file, "is missing") from error
    except Exception as error:  # numpy, pyarrow and json have errors of many kinds for a wrong byte
        reason = (str(error).splitlines() or [""])[0]
        raise damaged(file, f"cannot be read ({type(error).__name__}: {reason})") from error


def _inverse(rows: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """float32 [n]: 1 / norm of rows [n, d] less the mean; 0 for rows of zeros, and where nothing is left."""
    present = (rows != 0).any(axis=1)
    left = (rows.astype(np.float32) - mean).astype(np.float64)
    norms = np.sqrt(np.add.reduce(left * left, axis=1))
    return np.where(present & (norms > 0), 1 / np.maximum(norms, 1e-30), 0).astype(np.float32)


def _centred(rows: np.ndarray, mean: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """fp16 [n, d]: (rows - mean) * inverse. By torch, whose conversions from and to fp16 are ten times as quick as numpy's."""
    made = torch.from_numpy(np.ascontiguousarray(rows)).float().sub_(torch.from_numpy(mean))
    return made.mul_(torch.from_numpy(inverse)[:, None]).half().numpy()


def save_array(path: Path | str, array: np.ndarray) -> None:
    """A .npy file, whole or absent. Raises UserError when the disk is full (numpy's own `save` loses the reason)."""
    atomic_produce(path, lambda temporary: write_parts(temporary, [array], array.shape, array.dtype))


def write_parts(path: Path, parts: Iterable[np.ndarray], shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Writes one .npy file of the rows of several arrays, one after the other."""
    with open(path, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            for start in range(0, len(part), AT_ONCE):
                file.write(np.ascontiguousarray(part[start : start + AT_ONCE], dtype=dtype).tobytes())


def unit(rows: np.ndarray) -> np.ndarray:
    """float rows [n, d] divided by their norms; rows of zeros stay zeros."""
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    return (rows / np.maximum(norms, 1e-12)[:, None]).astype(rows.dtype)


def segment_means(rows: Rows, offsets: np.ndarray) -> np.ndarray:
    """fp16 [P, d]: the unit mean of rows offsets[i] ... offsets[i + 1] for each i; zeros where all of them are."""
    count = len(offsets) - 1
    means = np.zeros((count, rows.dim), dtype=np.float16)
    step = max(1, AT_ONCE // 4)  # of pairs, which have several rows each
    for start in range(0, count, step):
        stop = min(count, start + step)
        first, last = offsets[start:stop], offsets[start + 1 : stop + 1]
        filled = last > first  # reduceat gives nonsense for segments without rows
        if filled.any():
            part = rows[np.arange(offsets[start], offsets[stop])].astype(np.float64)
            means[start:stop][filled] = unit(np.add.reduceat(part, (first - offsets[start])[filled], axis=0))
    return means
