"""In which numbers candidates for nearest neighbours are compared: the quickest that the device has, with a proven margin.

Candidates are ranked by exact inner products afterwards, so the choice never changes a table; it only decides how long it takes and how
many columns are ranked in vain.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

NORM_SLACK = 0.01  # rows are unit rows up to rounding
QUICKER = 1.5  # times fp32, from which bf16 is worth its wider margin
PROBE = (512, 2048, 384)  # queries, columns, features of the product that is timed
PROBES = 3


@dataclass(frozen=True)
class Precision:
    """unit: the largest relative error when a number is rounded to dtype (Higham 2002, section 2.2)."""

    dtype: torch.dtype
    unit: float

    def margin(self, dim: int) -> float:
        """How far two inner products of unit rows [dim] may be off, together: one column may be too low and another too high.

        Both inputs and the result are rounded to dtype and sums to fp32, each within half a unit in the last place of what is rounded
        (Higham 2002, section 3.1). Products of rounded rows are at most as large, in sum, as the rows are long (Cauchy and Schwarz).
        """
        return 2 * ((3 + 2 * self.unit) * self.unit + (dim + 1) * 2.0**-24) * (1 + NORM_SLACK) ** 2


FP32 = Precision(torch.float32, 2.0**-24)
BF16 = Precision(torch.bfloat16, 2.0**-8)


@functools.cache
def quickest(device: str) -> Precision:
    """BF16 where its product takes clearly less time than that of fp32 and sums in fp32 (AMX, AVX512-BF16, tensor cores), by a short
    measurement; else FP32."""
    rows = torch.nn.functional.normalize(torch.randn(PROBE[1], PROBE[2], generator=torch.Generator().manual_seed(0)), dim=1)
    rows = rows.to(device)
    with plain_products():
        seconds = {p: min(_seconds(rows.to(p.dtype), device) for _ in range(PROBES)) for p in (FP32, BF16)}
        if seconds[BF16] * QUICKER > seconds[FP32]:
            return FP32
        some = rows[:64].to(BF16.dtype)
        error = (some @ rows.to(BF16.dtype).T).double() - rows[:64].double() @ rows.double().T
    return BF16 if float(error.abs().max()) < BF16.margin(PROBE[2]) / 2 else FP32


def _seconds(rows: torch.Tensor, device: str) -> float:
    _wait(device)
    began = time.perf_counter()
    torch.mm(rows[: PROBE[0]], rows.T)
    _wait(device)
    return time.perf_counter() - began


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def plain_products() -> Iterator[None]:
    """Matrix products of fp32 in fp32 and sums of bf16 in fp32, whatever the program has allowed for its training."""
    allowed, matmul = torch.get_float32_matmul_precision(), torch.backends.cuda.matmul
    reduced = matmul.allow_bf16_reduced_precision_reduction
    torch.set_float32_matmul_precision("highest")
    matmul.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)
        matmul.allow_bf16_reduced_precision_reduction = reduced
