"""Results of verbs as a person reads them in a terminal. Fractions are shown in percent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def text(verb: str, result: Any) -> str:
    """The printed form of what a verb returned."""
    made = {
        "train": _train,
        "finetune": _finetune,
        "distill": _distill,
        "compress": _compress,
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
    return "\n\n".join([_head(result), _measured(result), _end(result)])


def _head(result: Mapping[str, Any], what: str = "pairs") -> str:
    early = f" (stopped early, best at step {result['best_step']:,})" if result.get("stopped_early") else ""
    return (
        f"{result['name']} (seed {result['seed']}): {result['train_pairs']} {what}, {result['samples_seen']:,} samples seen{early}, "
        f"{result['seconds']:.0f} s of steps, {result['parameters']['total_without_token_rows'] / 1e6:.2f} M parameters without token rows"
    )


def _measured(result: Mapping[str, Any], before: str = "untrained", after: str = "best") -> str:
    pairs, val = result["val_pairs"], result["val"]
    rows = [[name, _chance(name, pairs), percent(result["untrained"].get(name, 0.0)), percent(val[name])] for name in in_order(val)]
    return f"{table([f'on {pairs} pairs held out, %', 'chance', before, after], rows)}{_remark(val, pairs)}"


def _end(result: Mapping[str, Any]) -> str:
    model = str(result.get("model", "model"))
    return f"model: {model}\nnext:  clipling eval {model.removesuffix('model').rstrip('/') or model} --data PAIRS_IT_HAS_NOT_SEEN"


def _finetune(result: Mapping[str, Any]) -> str:
    """As `train`, against the start; then what WiSE-FT measured between start and tuned weights, and what was forgotten."""
    return "\n\n".join([_head(result), _measured(result, "start", "kept"), *_shares(result), _end(result)])


def _shares(result: Mapping[str, Any]) -> list[str]:
    found = result.get("interpolation")
    if not found:
        return []
    watched = [name for name in found["rows"][0] if name.startswith("watch/") and name.endswith(("recall@10", "acc1"))]
    rows = []
    for row in found["rows"]:
        mark = "  <- kept" if row["share"] == found["share"] else ""
        rows.append([f"{row['share']:g}", percent(row["score"]), *(percent(row[name]) for name in watched), mark])
    header = ["share of new weights", "val, %", *watched, ""]
    said = [table(header, rows), found["reason"]]
    if found["share"] == 0:
        said.append(
            "The model is the start, unchanged: on so few held-out pairs, or after so little training, val does not show that the new "
            "weights are better. Give more pairs with --val, train longer, or keep the new weights with --no-wise."
        )
    return said


AGREEMENTS = ("teacher_cosine", "image_match@1", "text_cosine", "text_match@1", "neighbour_match@1", "text_choice@1")
AGREEMENT = """\
teacher_cosine and text_cosine: how alike student and teacher see one photo, or text; match@1: how often the student's feature is
nearest to the teacher's of the same; neighbour_match@1: both find the same nearest other photo; text_choice@1: the same nearest text.
The teacher itself has 100 everywhere."""


def _distill(result: Mapping[str, Any]) -> str:
    """As `train`; of bare photos, what agreement with the teacher means."""
    val, photos = result["val"], result["val_pairs"]
    if "neighbour_match@1" not in val:
        return _train(result)
    levels = {"image_match@1": percent(1 / photos), "neighbour_match@1": percent(1 / (photos - 1))}
    names = [*(name for name in AGREEMENTS if name in val), *(name for name in val if name not in AGREEMENTS)]
    rows = [[name, levels.get(name, ""), percent(result["untrained"].get(name, 0.0)), percent(val[name])] for name in names]
    measured = table([f"on {photos} photos held out, %", "chance", "untrained", "best"], rows)
    return "\n\n".join([_head(result, "photos"), measured + _remark(["recall@1"], photos), AGREEMENT, _end(result)])


def _compress(result: Mapping[str, Any]) -> str:
    header = ["on val, %", "parameters", "size", "asked", "with tokens", "image ms", "text ms"]
    header += ["i2t@1", "i2t@10", "t2i@1", "t2i@10", "mean", "of teacher's"]
    rows, whole = [], result["rows"][0]["parameters"]
    for row in result["rows"]:
        share = [f"{100 * row[key] / whole:.0f} %" for key in ("parameters", "asked")]
        sizes = [f"{row['parameters'] / 1e6:.2f} M", *share, f"{row['parameters_with_token_rows'] / 1e6:.2f} M"]
        recalls = [percent(row[f"{way}_recall@{k}"]) for way in ("i2t", "t2i") for k in (1, 10)]
        times = [f"{row[key]:.1f}" for key in ("image_ms", "text_ms")]
        rows.append([row["name"], *sizes, *times, *recalls, percent(row["mean_recall"]), f"{100 * row['relative_recall']:.0f} %"])
    pairs, model = result["val_pairs"], result["model"]
    threads = f"{result['threads']} thread{'s' * (result['threads'] > 1)}"
    said = (
        f"On {pairs} pairs held out. size: parameters without token rows, of the teacher's; asked: what --to asks for;\n"
        f"ms: one picture, one caption, {threads}; mean: of both directions at 1, 5 and 10."
    )
    remark = _remark(result["rows"][0], pairs)
    return f"{table(header, rows)}\n\n{said}{remark}\n\n{_end({'model': model})}"


def _seeds(result: Mapping[str, Any]) -> str:
    summaries = result["seeds"]
    first = next(iter(summaries.values()))
    pairs = first.get("val_pairs")
    rows = []
    for name in in_order(first["val"]):
        values = [s["val"][name] for s in summaries.values()]
        mean = sum(values) / len(values)
        spread = (sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)) ** 0.5
        rows.append([name, _chance(name, pairs), *map(percent, values), f"{percent(mean)} ± {percent(spread)}"])
    header = [f"{result['name']}, %", "chance", *(f"seed {s}" for s in summaries), "mean ± spread"]
    return f"{table(header, rows)}{_remark(first['val'], pairs)}"


def in_order(names: Iterable[str]) -> list[str]:
    """i2t recalls by k, then t2i recalls by k, then everything else as it came."""

    def place(name: str) -> tuple[int, int]:
        direction, _, k = name.partition("_recall@")
        return (("i2t", "t2i").index(direction), int(k)) if direction in ("i2t", "t2i") and k.isdigit() else (2, 0)

    return sorted(names, key=place)


def _chance(metric: str, pairs: int | None, classes: int | None = None) -> str:
    """What guessing reaches, where that is known."""
    from clipling.evals.chance import chance

    tries = {"acc1": 1, "mean_per_class_recall": 1, "acc5": 5}.get(metric)
    level = tries / classes if tries and classes else chance(metric, pairs)
    return "" if level is None else percent(level)


def _remark(metrics: Iterable[str], pairs: int | None, split: str = "val") -> str:
    from clipling.evals.chance import remark

    said = remark(metrics, pairs, split)
    return f"\n\n{said}" if said else ""


def _eval(result: Mapping[str, Any]) -> str:
    intervals = result.get("intervals") or {}
    pairs, classes = result["size"].get("pairs"), result["size"].get("classes")
    rows = []
    # CLIP_benchmark's names, `..._retrieval_recall@k`, hold the same values.
    metrics = {name: value for name, value in result["metrics"].items() if "retrieval_recall" not in name}
    for name in in_order(metrics):
        low_high = intervals.get(name)
        said = f"{percent(low_high[0])} to {percent(low_high[1])}" if low_high else ""
        rows.append([name, _chance(name, pairs, classes), percent(metrics[name]), said])
    size = ", ".join(f"{v} {k.replace('_', ' ')}" for k, v in result["size"].items())
    warnings = "".join(f"warning: {line}\n" for line in result.get("warnings") or [])
    head = f"{warnings}{result['model']} on {result['dataset']} ({size})"
    return f"{head}\n\n{table(['metric, %', 'chance', 'value', '95 % interval'], rows)}{_remark(metrics, pairs, 'given')}"


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
