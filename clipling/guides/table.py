"""A neighbour table, and how it lies on disk."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipling.errors import UserError
from clipling.store import atomic_write

FORMAT = 1


@dataclass(frozen=True)
class Table:
    """Neighbours of pairs, or of captions.

    ids: int64 [Q, k], pair numbers, nearest first, -1 where there are fewer; rows outside training are all -1. Row i is pair i, or caption
    i of a table by caption. sims: float64 [Q, k], -inf where there is none. rows_hash: digest of the training pairs. hubness:
    see `hubness`. info: method, recall against the exact table, k, cap, by_caption, digest of what the table was made from.
    """

    ids: np.ndarray
    sims: np.ndarray
    rows_hash: str
    hubness: dict[str, Any]
    info: dict[str, Any]

    @property
    def k(self) -> int:
        return self.ids.shape[1]

    def save(self, path: Path | str) -> None:
        """One .npz file, atomically."""
        about = json.dumps({"format": FORMAT, "rows_hash": self.rows_hash, "hubness": self.hubness, "info": self.info}, sort_keys=True)
        save_arrays(Path(path), ids=self.ids, sims=self.sims, about=np.frombuffer(about.encode(), dtype=np.uint8))

    @classmethod
    def load(cls, path: Path | str, rows: np.ndarray | None = None) -> Table:
        """Raises UserError when the file is missing, is no table, or was made for other training rows than `rows`."""
        try:
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(file["about"].tobytes())
                made = cls(file["ids"], file["sims"], about["rows_hash"], about["hubness"], about["info"])
                form = about["format"]
            if made.ids.ndim != 2 or made.ids.dtype != np.int64 or made.sims.shape != made.ids.shape:
                raise ValueError(f"ids are {made.ids.dtype} {made.ids.shape}, sims {made.sims.shape}")
        except Exception as error:  # zipfile, zlib, numpy and json have errors of many kinds for a wrong byte
            why = f"{type(error).__name__}: {error}"
            raise UserError(f"the neighbour table {path} cannot be read ({why}). Remove it, and it is made again.") from error
        if form != FORMAT:
            raise UserError(f"the neighbour table {path} has format {form}; this version reads {FORMAT}. Remove it.")
        if rows is not None and made.rows_hash != rows_digest(rows):
            raise UserError(f"the neighbour table {path} was made for another training split. Remove it, and it is made again.")
        return made


def rows_digest(rows: np.ndarray) -> str:
    """Hexadecimal blake2b of 128 bits of a list of pair numbers, as a set."""
    return hashlib.blake2b(np.unique(np.asarray(rows, dtype="<i8")).tobytes(), digest_size=16).hexdigest()


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    held = io.BytesIO()
    np.savez(held, **arrays)
    atomic_write(path, held.getvalue())


def load_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return file["ids"], file["sims"]


def load_arrays_by_name(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
