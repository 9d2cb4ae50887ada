"""The embeddings of one pair as bytes: `npz`, and Apple's `pth.gz`, none of which may be larger than `LARGEST` in any form.

A gzipped file, a zip and a tensor can each say in a few bytes that they are huge; so what they say is added up before anything is made.
"""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

LARGEST = 64 * 2**20  # bytes of a pair's embeddings once unpacked: DataCompDR's largest are 221 KB
ZIP_TIME = (1980, 1, 1, 0, 0, 0)


class FormatError(ValueError):
    """A member that is not what the layout says; the message says which and why. kind: in one or two words, to count by."""

    def __init__(self, message: str, kind: str = "unreadable knowledge") -> None:
        super().__init__(message)
        self.kind = kind


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """What `numpy.savez` writes, without the time of day: the same arrays are the same bytes. Nothing is packed, so that one row can be
    read out of the tar without the others; unit rows do not pack anyway."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(array), allow_pickle=False)
            file.writestr(zipfile.ZipInfo(f"{name}.npy", ZIP_TIME), content.getvalue())
    return buffer.getvalue()


def read_npz(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of an .npz, none of them a pickle. Raises FormatError; so does one that would be too large."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            _refuse_large("npz", sum(info.file_size for info in file.infolist()))
            made = {}
            for info in file.infolist():
                with file.open(info) as part:
                    made[info.filename.removesuffix(".npy")] = np.lib.format.read_array(part, allow_pickle=False)
            return made
    except FormatError:
        raise
    except Exception as error:  # zipfile and numpy raise all sorts of errors on damaged bytes
        raise FormatError(f"npz: {error or type(error).__name__}") from error


def read_pickle(data: bytes) -> dict[str, np.ndarray]:
    """The tensors of a `pth.gz`, read by torch's restricted loader, as float32. Raises FormatError for anything else in it."""
    import torch

    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            content = file.read(LARGEST + 1)
        _refuse_large("pth.gz", len(content))
        # torch's form since 1.6: a zip, whose parts may be packed once more. The form before has no list of its parts to look at first.
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            _refuse_large("pth.gz", sum(info.file_size for info in file.infolist()))
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        tensors = {str(name): rows for name, rows in found.items() if isinstance(rows, torch.Tensor)}
        # A tensor of one number can claim to repeat it a billion times; it would, as soon as it is made float32.
        _refuse_large("pth.gz", sum(4 * rows.numel() for rows in tensors.values()))
        return {name: rows.float().numpy() for name, rows in tensors.items()}
    except FormatError:
        raise
    except Exception as error:  # the loader raises many kinds
        raise FormatError(f"pth.gz is no gzipped file of tensors alone: {_reason(error)}") from error


def _refuse_large(name: str, size: int) -> None:
    if size > LARGEST:
        raise FormatError(f"{name}: more than {LARGEST >> 20} MB once unpacked")


def _reason(error: Any) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
