"""Embeddings as they are stored: fp32, fp16, or int8 with a scale for each row and teacher.

A row holds the unit features of several teachers one after the other. What is read back is made unit again, teacher by teacher: rounding
changes lengths as well as directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from clipling.errors import UserError, near

Storage = Literal["fp32", "fp16", "int8"]
DTYPES = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2"), "int8": np.dtype("i1")}
SCALE = "_scale"  # behind the name of int8 rows: what they are multiplied by, float32 [n, teachers]


def storage_of(name: str) -> Storage:
    """Raises UserError for a form that is not there."""
    if name not in get_args(Storage):
        raise UserError(f"embeddings are stored as {', '.join(get_args(Storage))}, not as {name!r}. {near(name, get_args(Storage))}")
    return name  # type: ignore[return-value]


def packed(name: str, rows: np.ndarray, dims: Sequence[int], storage: Storage) -> dict[str, np.ndarray]:
    """Arrays by name of unit rows float32 [n, D], D = sum(dims)."""
    if storage_of(storage) != "int8":
        return {name: rows.astype(DTYPES[storage])}
    scale = np.stack([np.abs(part).max(axis=1, initial=1e-12) for part in parts(rows, dims)], axis=1).astype(np.float32) / np.float32(127)
    quantised = np.concatenate([np.rint(part / scale[:, t : t + 1]) for t, part in enumerate(parts(rows, dims))], axis=1)
    return {name: quantised.astype(np.int8), name + SCALE: scale}


def unpacked(rows: np.ndarray, dims: Sequence[int], scale: np.ndarray | None = None) -> np.ndarray:
    """float32 [n, D] of stored rows: each teacher's part a unit row (or zeros where it is stored as zeros)."""
    made = rows.astype(np.float32)
    for t, part in enumerate(parts(made, dims)):  # views: written in place
        if scale is not None:
            part *= scale[:, t : t + 1]
        part /= np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)
    return made


def parts(rows: np.ndarray, dims: Sequence[int]) -> list[np.ndarray]:
    """Each teacher's columns of rows [n, D]. Raises ValueError when the sizes do not add up to D."""
    if sum(dims) != rows.shape[1]:
        raise ValueError(f"rows of {rows.shape[1]} numbers are not those of teachers of {' + '.join(map(str, dims))}")
    return np.split(rows, np.cumsum(dims)[:-1], axis=1)


def error(rows: np.ndarray, arrays: Mapping[str, np.ndarray], name: str, dims: Sequence[int]) -> dict[str, float]:
    """What storing changed: the largest difference of a number, and the lowest cosine of a teacher's row with itself."""
    if not len(rows):
        return {"largest": 0.0, "lowest_cosine": 1.0}
    back = unpacked(arrays[name], dims, arrays.get(name + SCALE))
    both = zip(parts(rows.astype(np.float64), dims), parts(back.astype(np.float64), dims), strict=True)
    cosine = min(float((a * b).sum(axis=1).min()) for a, b in both)
    return {"largest": float(np.abs(back - rows).max()), "lowest_cosine": cosine}
