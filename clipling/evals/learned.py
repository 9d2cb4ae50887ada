"""Did a run learn anything? Its best checkpoint against its own start, on the pairs that it held out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipling.adapt.wise_ft import standard_error
from clipling.evals.chance import judged

FEW = 100  # held-out pairs below which a recall says little


def no_better_than_start(summary: Mapping[str, Any]) -> tuple[str, float, float] | None:
    """(metric, start, end) of a run whose val is within two standard errors of its start, or below; None where it is above, or
    where val has too few pairs to say anything."""
    pairs = int(summary.get("val_pairs") or 0)
    metric = judged(pairs) if pairs else None
    if metric is None:
        return None
    start, end = (_both_ways(summary.get(key) or {}, metric) for key in ("untrained", "val"))
    if start is None or end is None:
        return None
    return (metric, start, end) if end - start <= noise(start, end, pairs) else None


def noise(start: float, end: float, pairs: int) -> float:
    """Two standard errors: of the two recalls the larger one's."""
    return 2 * max(standard_error(start, pairs), standard_error(end, pairs))


def _both_ways(metrics: Mapping[str, float], metric: str) -> float | None:
    found = [metrics[f"{way}_{metric}"] for way in ("i2t", "t2i") if f"{way}_{metric}" in metrics]
    return sum(found) / 2 if len(found) == 2 else None
