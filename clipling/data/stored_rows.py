"""Rows of embeddings that stay in their tars: where each lies, and reading some of them. And many augmentation records in arrays."""

from __future__ import annotations

import io
import os
import zipfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

import numpy as np

from clipling.data.packing import unpacked
from clipling.data.reinforced import Sample, array_name
from clipling.data.replay import Record
from clipling.errors import UserError

OPEN_FILES = 200


class StoredRows:
    """Rows of several teachers: `rows[numbers]` is float32 [n, D], each teacher's part a unit row.

    A row lies at a byte of a file, or, where its array is packed, in memory.
    """

    def __init__(self) -> None:
        self.files: list[str] = []
        self.memory: list[np.ndarray] = []
        self.dims: list[int] = []
        self.dtype = np.dtype(np.float32)
        self._file, self._at = array("i"), array("q")
        self._scales: list[np.ndarray] = []
        self._open: dict[int, BinaryIO] = {}

    def __len__(self) -> int:
        return len(self._at)

    def add(self, rows: np.ndarray, path: str, place: int | None, scale: np.ndarray | None) -> None:
        """More rows [n, D] as they are stored; place: the byte of the first of them in the file `path`, None where they are packed."""
        self.dtype = rows.dtype
        if scale is not None:
            self._scales.append(scale)
        if place is None:
            self._file.extend([-1] * len(rows))
            self._at.extend(range(len(self.memory), len(self.memory) + len(rows)))
            self.memory += list(rows)
            return
        if not self.files or self.files[-1] != path:
            self.files.append(path)
        size = rows.dtype.itemsize * rows.shape[1]
        self._file.extend([len(self.files) - 1] * len(rows))
        self._at.extend(place + k * size for k in range(len(rows)))

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        made = np.empty((len(rows), sum(self.dims)), self.dtype)
        for place, row in enumerate(rows.tolist()):
            number, at = self._file[row], self._at[row]
            made[place] = self.memory[at] if number < 0 else self._read(number, at, made.shape[1])
        scale = None
        if self._scales:
            self._scales = [np.concatenate(self._scales)]
            scale = self._scales[0][rows]
        return unpacked(made, self.dims, scale)

    def _read(self, number: int, at: int, width: int) -> np.ndarray:
        file = self._open.get(number)
        if file is None:
            if len(self._open) >= OPEN_FILES:
                self._open.pop(next(iter(self._open))).close()
            file = self._open[number] = open(self.files[number], "rb", buffering=0)  # noqa: SIM115 - kept open for the next rows
        data = _read_at(file, at, width * self.dtype.itemsize)
        if len(data) < width * self.dtype.itemsize:
            raise UserError(f"{self.files[number]} became shorter while it was read")
        return np.frombuffer(data, self.dtype)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}}  # workers open the files themselves


def _read_at(file: BinaryIO, at: int, size: int) -> bytes:
    """Processes that were forked share a file's position, and would read each other's rows: it is neither used nor moved."""
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), size, at)
    file.seek(at)  # Windows, which does not fork
    return file.read(size)


class Records(Sequence):
    """Augmentation records in arrays, some 50 bytes each instead of ten times as many: `records[i]` is a Record."""

    def __init__(self) -> None:
        self._boxes, self._flips = array("i"), array("b")
        self._operations, self._magnitudes, self._ends = array("b"), array("d"), array("q", [0])

    def extend(self, records: Iterable[Record]) -> None:
        for record in records:
            self._boxes.extend(record.box or (-1, 0, 0, 0))
            self._flips.append(record.flip)
            self._operations.extend(number for number, _ in record.operations)
            self._magnitudes.extend(strength for _, strength in record.operations)
            self._ends.append(len(self._operations))

    @property
    def operated(self) -> int:
        """How many do more than crop and mirror."""
        return int((np.diff(np.frombuffer(self._ends, np.int64)) > 0).sum())

    def __len__(self) -> int:
        return len(self._flips)

    def __getitem__(self, i):  # type: ignore[override]
        if isinstance(i, slice):
            return [self[n] for n in range(*i.indices(len(self)))]
        i = range(len(self))[int(i)]
        own = slice(self._ends[i], self._ends[i + 1])
        box = tuple(self._boxes[4 * i : 4 * i + 4])
        return Record(None if box[0] < 0 else box, bool(self._flips[i]), tuple(zip(self._operations[own], self._magnitudes[own])))

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))


def places_in_npz(sample: Sample, data: bytes, at: int) -> dict[str, int]:
    """The byte of the first row of each array of a sample, for an npz at byte `at` of a tar; arrays that are packed in it are missing."""
    places = {}
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        infos = {info.filename.removesuffix(".npy"): info for info in file.infolist()}
    for name, rows in sample.embeddings.items():
        info = infos.get(array_name(name))
        if info is None or info.compress_type != zipfile.ZIP_STORED:
            continue
        # A local header of 30 bytes, then name and extra field, whose lengths are its last four bytes; then the array's own header.
        name_length, extra_length = np.frombuffer(data, "<u2", 2, info.header_offset + 26).tolist()
        begin = info.header_offset + 30 + name_length + extra_length
        part = io.BytesIO(data[begin : begin + info.file_size])
        version = np.lib.format.read_magic(part)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(part)
        if shape == rows.shape and dtype == rows.dtype and not fortran:
            places[name] = at + begin + part.tell()
    return places
