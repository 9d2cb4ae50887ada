"""Results of verbs as a person reads them in a terminal. Fractions are shown in percent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def text(verb: str, result: Any) -> str:
    """The printed form of what a verb returned."""
    made = {
        "train": _train,
        "eval": _eval,
        "data inspect": _inspect,
        "bank": _plain,
        "compare": _compare,
        "demo": _demo,
        "check": _check,
        "show": _show,
    }
    return made[verb](result)


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


def _train(result: Mapping[str, Any]) -> str:
    if "seeds" in result:
        return _seeds(result)
    rows = [[name, percent(result["untrained"].get(name, 0.0)), percent(value)] for name, value in result["val"].items()]
    head = (
        f"{result['name']} (seed {result['seed']}): {result['train_pairs']} pairs, {result['samples_seen']:,} samples seen, "
        f"{result['seconds']:.0f} s of steps, {result['parameters']['total_without_token_rows'] / 1e6:.2f} M parameters without token rows"
    )
    header = [f"on {result['val_pairs']} pairs held out, %", "untrained", "best"]
    return f"{head}\n\n{table(header, rows)}"


def _seeds(result: Mapping[str, Any]) -> str:
    summaries = result["seeds"]
    names = list(next(iter(summaries.values()))["val"])
    rows = []
    for name in names:
        values = [s["val"][name] for s in summaries.values()]
        mean = sum(values) / len(values)
        spread = (sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)) ** 0.5
        rows.append([name, *map(percent, values), f"{percent(mean)} ± {percent(spread)}"])
    return table([f"{result['name']}, %", *(f"seed {s}" for s in summaries), "mean ± spread"], rows)


def _eval(result: Mapping[str, Any]) -> str:
    intervals = result.get("intervals") or {}
    rows = []
    for name, value in result["metrics"].items():
        if "retrieval_recall" in name:
            continue  # the same values under CLIP_benchmark's names
        low_high = intervals.get(name)
        rows.append([name, percent(value), f"{percent(low_high[0])} to {percent(low_high[1])}" if low_high else ""])
    size = ", ".join(f"{v} {k.replace('_', ' ')}" for k, v in result["size"].items())
    return f"{result['model']} on {result['dataset']} ({size})\n\n{table(['metric, %', 'value', '95 % interval'], rows)}"


def _inspect(result: Mapping[str, Any]) -> str:
    from clipling.data.inspect import render

    return render(result)


def _plain(result: Mapping[str, Any]) -> str:
    return "\n".join(f"{key.replace('_', ' ')}: {value}" for key, value in result.items())


def _compare(result: Mapping[str, Any]) -> str:
    return f"{result['verdict']}\n\n{result['table']}\n\nreport: {result['report']}"


def _demo(result: Mapping[str, Any]) -> str:
    return result["text"]


def _check(result: Mapping[str, Any]) -> str:
    marks = {True: "ok", False: "FAIL", None: "skipped"}
    return "\n".join(f"{marks[f['ok']]:8}{f['check']}: {f['message']}" for f in result["findings"])


def _show(result: Mapping[str, Any]) -> str:
    return table(result["header"], result["rows"], words=True)
