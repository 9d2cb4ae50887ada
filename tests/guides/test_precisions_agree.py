"""Whatever the rows, the precision and the sizes of parts: the table is that of one fp64 inner product at a time, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipling.guides import candidates, columns, search
from clipling.guides.neighbours import build_table
from clipling.guides.precision import BF16, FP32
from clipling.guides.rows import unit
from tests.guides.making import brute_force

KINDS = (
    "random",
    "clustered",
    "duplicated",
    "nearly alike",
    "one line",
    "antipodal",
    "corners",
    "grid",
    "away",
    "norms at the slack",
    "tiny",
)


def rows_of_kind(kind: str, count: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    """fp64 [count, dim] rows, of norm 1 within the slack."""
    noise = rng.normal(size=(count, dim))
    if kind == "clustered":
        return unit(rng.normal(size=(4, dim))[rng.integers(0, 4, count)] + 0.1 * noise)
    if kind == "duplicated":
        return unit(noise[rng.integers(0, max(1, count // 3), count)])
    if kind == "nearly alike":
        return unit(noise[:1] + 10.0 ** -rng.integers(2, 9) * noise)
    if kind == "one line":
        return unit(np.sign(noise[:, :1]) * np.eye(1, dim))
    if kind == "antipodal":
        return unit(noise[: (count + 1) // 2].repeat(2, axis=0)[:count] * np.where(np.arange(count) % 2, -1, 1)[:, None])
    if kind == "corners":  # most similarities are 0
        return np.eye(dim)[rng.integers(0, dim, count)] * np.where(noise[:, :1] < 0, -1, 1)
    if kind == "grid":
        return np.sign(noise) / np.sqrt(dim)
    if kind == "away":  # all similarities of different rows are below 0
        simplex = unit(np.eye(dim) - 1 / dim + 1e-9) if dim > 1 else np.array([[1.0]])
        return simplex[rng.integers(0, dim, count)]
    if kind == "norms at the slack":
        return unit(noise) * rng.choice([0.991, 1.0, 1.009], (count, 1))
    if kind == "tiny":  # all but one feature subnormal in fp16, or zero
        return unit(np.eye(dim)[rng.integers(0, dim, count)] + 1e-7 * noise)
    return unit(noise)


def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 32 columns (64 in bf16), 8 queries of one product, 20 of one pass or fewer; nothing is kept."""
    monkeypatch.setattr(columns, "TILE", 32)
    monkeypatch.setattr(columns, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(candidates, "STEPS", (4, 32))
    monkeypatch.setattr(candidates, "SCORE_BYTES", 1024)
    monkeypatch.setattr(candidates, "SPARE", 0)
    monkeypatch.setattr(search, "QUERIES", 20)
    monkeypatch.setattr(candidates, "HELD", 60)
    monkeypatch.setattr(search, "HELD", 60)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_rows_by_any_precision(data):
    kind, dtype = data.draw(st.sampled_from(KINDS)), data.draw(st.sampled_from([np.float16, np.float32, np.float64]))
    count, dim = data.draw(st.integers(1, 110)), data.draw(st.sampled_from([1, 2, 3, 7, 8, 33, 130]))
    k, by_caption = data.draw(st.sampled_from([1, 2, 5, 40, 200])), data.draw(st.booleans())
    share, block = data.draw(st.sampled_from([candidates.RANKED_SHARE, 1e9])), data.draw(st.sampled_from([1, 17, 2048]))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    features = rows_of_kind(kind, count, dim, rng).astype(dtype)
    owner = np.sort(rng.integers(0, count, count)) if by_caption else None
    links = [sorted({int(c) for c in rng.integers(0, 20, rng.integers(0, 3))}) for _ in range(count)]
    valid, rows = rng.random(count) > 0.1, np.flatnonzero(rng.random(count) > 0.1)
    ids, sims = brute_force(features, rows, links, valid, k, owner)
    for precision in (FP32, BF16):
        with pytest.MonkeyPatch.context() as patch:
            small_parts(patch)
            patch.setattr(candidates, "quickest", lambda device, precision=precision: precision)
            patch.setattr(candidates, "RANKED_SHARE", share)
            table = build_table(features, rows, links, valid, k, block, owner=owner)
        assert table.ids.tobytes() == ids.tobytes(), precision
        assert table.sims.tobytes() == sims.tobytes(), precision
