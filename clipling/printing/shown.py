"""Numbers and tables as they are shown, and what guessing reaches beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], words: bool = False) -> str:
    """Columns padded to their widest cell; the first (all, where they hold words) aligned left, numbers right."""
    widths = [max(len(str(r[c])) for r in [header, *rows]) for c in range(len(header))]
    lines = []
    for row in [header, ["-" * w for w in widths], *rows]:
        cells = [str(cell).ljust(w) if c == 0 or words else str(cell).rjust(w) for c, (cell, w) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def level_of(k: int, pairs: int) -> float:
    from clipling.evals.chance import chance

    return chance(f"recall@{k}", pairs) or 0.0


def in_order(names: Iterable[str]) -> list[str]:
    """i2t recalls by k, then t2i recalls by k, then everything else as it came."""

    def place(name: str) -> tuple[int, int]:
        direction, _, k = name.partition("_recall@")
        return (("i2t", "t2i").index(direction), int(k)) if direction in ("i2t", "t2i") and k.isdigit() else (2, 0)

    return sorted(names, key=place)


def chance_of(metric: str, pairs: int | None, classes: int | None = None) -> str:
    """What guessing reaches, where that is known."""
    from clipling.evals.chance import chance

    tries = {"acc1": 1, "mean_per_class_recall": 1, "acc5": 5}.get(metric)
    level = tries / classes if tries and classes else chance(metric, pairs)
    return "" if level is None else percent(level)


def remark_on(metrics: Iterable[str], pairs: int | None, split: str = "val") -> str:
    from clipling.evals.chance import remark

    said = remark(metrics, pairs, split)
    return f"\n\n{said}" if said else ""
