"""Which recalls say something on a set of pairs: by how often a right answer is found by chance alone.

The chance level of recall@k is taken as k / number of pairs in both directions: with several captions a picture, right captions
are as many times more as captions are. Where it is above 20 % the value is shown with its chance level and judges nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

KS = (1, 5, 10)
MOST = 0.2


def chance(metric: str, pairs: int | None) -> float | None:
    """Chance level of a `...recall@k` among `pairs`; None for another metric (one of another set, as `watch/...`), or
    when the number of pairs is not known."""
    k = metric.rpartition("recall@")[2]
    return min(1.0, int(k) / pairs) if pairs and k.isdigit() and "/" not in metric else None


def tells(metric: str, pairs: int | None) -> bool:
    """Whether chance alone stays at or below 20 %. What is not known is not held against a metric."""
    level = chance(metric, pairs)
    return level is None or level <= MOST


def judged(pairs: int | None) -> str | None:
    """`recall@k` of the largest k that tells something on that many pairs: what verdicts are about. None: too few pairs."""
    return next((f"recall@{k}" for k in sorted(KS, reverse=True) if tells(f"recall@{k}", pairs)), None)


def shown(pairs: int | None) -> str:
    """The recall to draw and to sort by, which is needed even where none can judge."""
    return judged(pairs) or f"recall@{min(KS)}"


def too_few(pairs: int | None, split: str = "val") -> str:
    """What is said where no recall tells anything."""
    what = "held-out" if split == "val" else split
    return f"only {pairs} {what} pair{'' if pairs == 1 else 's'}: too few to judge; give {'--val' if split == 'val' else 'more'}"


def remark(metrics: Iterable[str], pairs: int | None, split: str = "val") -> str:
    """One sentence on those of `metrics` that tell nothing on that many pairs; empty when all do."""
    if judged(pairs) is None:
        return f"{too_few(pairs, split).capitalize()}."
    ks = sorted({int(m.rpartition("recall@")[2]) for m in metrics if not tells(m, pairs)})
    if not ks:
        return ""
    names = " and ".join(f"recall@{k}" for k in ks)
    best = judged(pairs)
    lower = " or below" if best != f"recall@{min(KS)}" else ""
    return f"With {pairs} pairs, chance alone is above {100 * MOST:.0f} % at {names}: judge by {best}{lower}."
