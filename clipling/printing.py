"""Results of verbs as a person reads them in a terminal. Fractions are shown in percent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def text(verb: str, result: Any) -> str:
    """The printed form of what a verb returned."""
    made = {
        "plan": _plan,
        "train": _train,
        "finetune": _finetune,
        "distill": _distill,
        "compress": _compress,
        "reinforce": _reinforce,
        "eval": _eval,
        "data inspect": _inspect,
        "data pack": _pack,
        "bank": _plain,
        "neighbours": _plain,
        "compare": _compare,
        "report": _report,
        "convert": _plain,
        "export": _export,
        "latency": _latency,
        "search index": _search_index,
        "search serve": lambda _: "stopped",
        "predict": _predict,
        "embed": _plain,
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


def _plan(result: Mapping[str, Any]) -> str:
    from clipling.planning.shown import pilot_text, plan_text

    return (pilot_text if "pilots" in result else plan_text)(result, table)


def _train(result: Mapping[str, Any]) -> str:
    if "seeds" in result:
        return _seeds(result)
    return "\n\n".join([_head(result), _measured(result), *_no_gain(result), _end(result, COMPARE)])


def _no_gain(result: Mapping[str, Any]) -> list[str]:
    """A run that did not learn must say so itself, and not only in a comparison."""
    from clipling.evals.learned import FEW, no_better_than_start, noise

    found = no_better_than_start(result)
    if found is None:
        return []
    metric, start, end = found
    before, pairs = _about(result).get("before", "untrained"), result["val_pairs"]
    said = f"{percent(end)} % {metric} (both directions) against {percent(start)} % of the {before} model"
    doubt = noise(start, end, pairs)
    if end < start - doubt:
        return [f"warning: training did harm: {said}"]
    within = f"{pairs} held-out pairs cannot tell apart what differs by less than {100 * doubt:.1f} points"
    if pairs < FEW:
        return [f"warning: whether training helped cannot be said: {said}, and {within}. Give --val with a few hundred pairs."]
    return [f"warning: training did not help, as far as can be told: {said}; {within}"]


def _about(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the numbers of a run are of; runs of before it was written have none."""
    return result.get("about") or {}


def _head(result: Mapping[str, Any], what: str = "pairs") -> str:
    early = f" (stopped early, best at step {result['best_step']:,})" if result.get("stopped_early") else ""
    return (
        f"{result['name']} (seed {result['seed']}): {result['train_pairs']} {what}, {result['samples_seen']:,} samples seen{early}, "
        f"{result['seconds']:.0f} s of steps, {result['parameters']['total_without_token_rows'] / 1e6:.2f} M parameters without token rows"
    )


def _measured(result: Mapping[str, Any], after: str = "best") -> str:
    pairs, val, before = result["val_pairs"], result["val"], _about(result).get("before", "untrained")
    own = {name: value for name, value in val.items() if not name.startswith("watch/")}
    rows = [[name, _chance(name, pairs), percent(result["untrained"].get(name, 0.0)), percent(own[name])] for name in in_order(own)]
    shown = table([f"on {pairs} pairs held out, %", "chance", before, after], rows)
    return f"{shown}{_remark(own, pairs)}\n\n{_best_by(result)}{_watched(result, before, after)}"


def _best_by(result: Mapping[str, Any]) -> str:
    """Which figure picked the checkpoint, and stops the run."""
    by = _about(result).get("best_by", "mean_recall")
    if by == "last":
        return "best: the last checkpoint"
    when = _when(result)
    meant = {"mean_recall": "mean_recall, the mean of all recalls above,"}.get(by, by)
    patience = _about(result).get("patience")
    stops = f"; after {patience} evaluations without a higher one the run stops (--patience)" if patience else ""
    if _about(result).get("latest_within_noise"):
        few = f"{result['val_pairs']} held-out pairs tell checkpoints apart only so far (--val gives more)"
        return f"best: {when}the latest within one standard error of the highest {meant} as {few}{stops}"
    return f"best: {when}the highest {meant} on what is held out{stops}"


def _when(result: Mapping[str, Any]) -> str:
    """`epoch 12 of 20 (step 120 of 200), ` of the checkpoint that was kept, where that is known."""
    per_epoch, best, last = _about(result).get("steps_per_epoch"), result.get("best_step"), result.get("steps")
    if not (per_epoch and best and last):
        return "the checkpoint with "
    return f"epoch {best / per_epoch:.3g} of {last / per_epoch:.3g} (step {best:,} of {last:,}), "


def _watched(result: Mapping[str, Any], before: str, after: str) -> str:
    """The table of sets that were only watched, each with its own size; empty without any."""
    rows = []
    for name, value in result["val"].items():
        if name.startswith("watch/"):
            size = _watch_size(result, name)
            counted = next((f"{size[what]:,} {what}" for what in ("pictures", "pairs") if what in size), "")
            rows.append([name, counted, _watch_chance(name, size), percent(result["untrained"].get(name, 0.0)), percent(value)])
    return "\n\n" + table(["only watched, %", "on", "chance", before, after], rows) if rows else ""


def _watch_size(result: Mapping[str, Any], metric: str) -> Mapping[str, int]:
    return _about(result).get("watch", {}).get(metric.removeprefix("watch/").rpartition("/")[0], {})


def _watch_chance(metric: str, size: Mapping[str, int]) -> str:
    return _chance(metric.rpartition("/")[2], size.get("pairs"), size.get("classes"))


def _search_index(result: Mapping[str, Any]) -> str:
    changes = [f"{result[key]:,} {word}" for key, word in _CHANGES.items() if result[key]]
    said = [f"{result['pictures']:,} pictures ({result['files']:,} files) of {result['images']}: {', '.join(changes)}"]
    if result["broken"]:
        said.append(f"{result['broken']:,} could not be used: {result['problems']}")
    if result["ranking"] == "hnsw":
        said.append(f"ranked by an HNSW graph, recall@10 against comparing all: {percent(result['recall@10'])} %")
    return "\n".join([*said, f"index: {result['index']}", f"next:  clipling search serve {result['index']}"])


# `recognised`: another name, place or date (or a date too young to be trusted), but bytes that were there before.
_CHANGES = {"encoded": "new", "recognised": "known by their bytes", "unchanged": "unchanged", "removed": "removed"}

COMPARE = "clipling compare {run} OTHER_RUN    one page about runs of the same pairs"


def _end(result: Mapping[str, Any], more: str = "", data: str = "PAIRS_IT_HAS_NOT_SEEN") -> str:
    """Where the model is, and what to do next: measure it; `more`: the verb's own next step, with {run} for its folder."""
    model = str(result.get("model", "model"))
    run = model.removesuffix("model").rstrip("/") or model
    said = f"model: {model}\nnext:  clipling eval {run} --data {data}"
    return said + (f"\n       {more.format(run=run)}" if more else "")


def _finetune(result: Mapping[str, Any]) -> str:
    """As `train`, against the start; then what WiSE-FT measured between start and tuned weights, and what was forgotten."""
    begun = {**result, "about": {"before": "start", **_about(result)}}
    after = "kept" if "interpolation" in result else "best"
    end = _end(result, COMPARE)
    return "\n\n".join([_head(result), _measured(begun, after), *_shares(result), end])


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
    by = _about(result).get("best_by", "mean_recall")
    meant = "the mean of all recalls on the pairs held out" if by in ("mean_recall", "last") else f"{by} on the pairs held out"
    said = [table(header, rows), f"val: {meant}; the watched sets have no say. {found['reason'][:1].upper()}{found['reason'][1:]}."]
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
The teacher itself has 100 everywhere, and so has its own text tower, where that is kept, in the text figures of texts alone."""


def _distill(result: Mapping[str, Any]) -> str:
    """As `train`; of bare photos, what agreement with the teacher means."""
    val, photos = result["val"], result["val_pairs"]
    if "neighbour_match@1" not in val:
        return _train(result)
    levels = {"image_match@1": percent(1 / photos), "neighbour_match@1": percent(1 / (photos - 1))}
    texts = _about(result).get("texts")
    if texts:
        levels |= dict.fromkeys(("text_match@1", "text_choice@1"), percent(1 / texts["count"]))
    names = [*(name for name in AGREEMENTS if name in val), *(name for name in val if name not in AGREEMENTS)]
    rows = [[name, levels.get(name, ""), percent(result["untrained"].get(name, 0.0)), percent(val[name])] for name in names]
    before = _about(result).get("before", "untrained")
    measured = table([f"on {photos} photos held out, %", "chance", before, "best"], rows)
    end = _end(result, data="CLASS_FOLDERS_OR_PAIRS")
    said = [AGREEMENT, *_texts(texts), _best_by({"about": {"best_by": "teacher_cosine", **_about(result)}})]
    return "\n\n".join([_head(result, "photos"), measured + _remark(["recall@1"], photos), *said, end])


def _texts(texts: Mapping[str, Any] | None) -> list[str]:
    """On which texts the agreement is measured."""
    if not texts:
        return []
    count = f"{texts['count']:,}"
    if texts["held_out"]:
        return [f"The texts are {count} of the list that were kept away from training."]
    return [f"The texts are the {count} that were trained on: with about 400 or more, a twentieth of them is held out."]


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
    levels = [_level(k, pairs) for k in (1, 5, 10)]
    guessed, best = sum(levels) / 3, result["rows"][0]["mean_recall"]
    by_chance = [*(percent(_level(k, pairs)) for _ in ("i2t", "t2i") for k in (1, 10)), percent(guessed), f"{100 * guessed / best:.0f} %"]
    rows.append(["chance", *[""] * 6, *by_chance])
    threads = f"{result['threads']} thread{'s' * (result['threads'] > 1)}"
    said = (
        f"On {pairs} pairs held out. size: parameters without token rows, of the teacher's; asked: what --to asks for;\n"
        f"ms: one picture, one caption, {threads}; mean: of both directions at 1, 5 and 10."
    )
    remark = _remark(result["rows"][0], pairs)
    end = _end({"model": model}, COMPARE)
    return f"{table(header, rows)}\n\n{said}{remark}\n\n{end}"


def _reinforce(result: Mapping[str, Any]) -> str:
    """What is stored, how large a pair is, and what storing changed."""
    pairs = max(1, result["pairs"])
    size, pictures = result["bytes"] / pairs, result["picture_bytes"] / pairs
    said = [
        f"{result['pairs']:,} pairs in {result['shards_there']} of {result['shards']} tars, {result['made']} of them made now; "
        f"{size:,.0f} bytes a pair, {pictures:,.0f} of them the picture"
    ]
    missing = result["shards"] - result["shards_there"]
    if missing:
        said.append(f"{missing} tars are not there yet: other processes are making them; otherwise the same command makes them")
    if result["damaged"]:
        said.append(f"damaged, and made anew: {', '.join(result['damaged'])}")
    elif result.get("checked"):
        said.append("checked: every tar that was there is as it was written")
    if result["left_out"]:
        said.append(f"left out, their pictures cannot be read: {', '.join(key for key, _ in result['left_out'][:5])}")
    if result["captions"]:
        said.append("synthetic captions: " + ", ".join(f"{count:,} {origin}" for origin, count in result["captions"].items()))
        said += [f"warning: no captions of {origin!r} were made" for origin, count in result["captions"].items() if not count]
    rows = [[name, f"{found['largest']:.1e}", f"{found['lowest_cosine']:.6f}"] for name, found in result["errors"].items()]
    shown = table(["stored embeddings of", "largest error", "lowest cosine"], rows)
    without = "" if sum(result["captions"].values()) else " --set objective.reinforced.options.captions=real"
    return "\n".join([*said, "", shown, "", f"next:  clipling train mobileclip --data {result['out']} --out RUN{without}"])


def _level(k: int, pairs: int) -> float:
    from clipling.evals.chance import chance

    return chance(f"recall@{k}", pairs) or 0.0


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
    return _suite(result) if "suite" in result else _one_result(result)


def _one_result(result: Mapping[str, Any]) -> str:
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


def _suite(result: Mapping[str, Any]) -> str:
    """The headline numbers of a suite, what was skipped and why, the verdict."""
    from clipling.evals.suite.catalogue import evaluation
    from clipling.evals.suite.levels import level
    from clipling.evals.suite.wording import is_fraction, metric_name, value

    def number(name: str, v: float) -> str:
        return value(name, v) + (" %" if is_fraction(name) else "")

    rows = []
    for found in result["results"]:
        for name in (n for n in evaluation(found["task"]).headline if n in found["metrics"]):
            ends = found["intervals"].get(name)
            said = f"{number(name, ends[0])} to {number(name, ends[1])}" if ends else ""
            guessed = level(found["task"], name, found["size"])
            by_chance = "" if guessed is None else number(name, guessed)
            rows.append([found["dataset"], found["task"], metric_name(name), by_chance, number(name, found["metrics"][name]), said])
    shown = table(["dataset", "task", "metric", "chance", "value", "95 % interval"], rows, words=True)
    skipped = [f"left out: {s['task']} on {s['dataset']}: {s['reason']}" for s in result["skipped"]]
    made = f"{result['made']} results made, {result['kept']} kept from before"
    return "\n\n".join([shown, *(["\n".join(skipped)] if skipped else []), result["verdict"], f"{made}\nreport: {result['report']}"])


def _report(result: Mapping[str, Any]) -> str:
    return f"{result['verdict']}\n\nreport: {result['report']}"


def _export(result: Mapping[str, Any]) -> str:
    """Sizes of the files, and how far the graphs are from the torch model."""
    if "bytes_loaded" in result:
        return _web(result)
    files = [[name, f"{size:,}"] for name, size in result["files"].items()]
    rows = [
        [precision, part, f"{value['cosine']:.6f}", f"{value['max_error']:.1e}"]
        for precision, parts in result["agreement"].items()
        for part, value in parts.items()
    ]
    shown = table(["against torch", "on", "lowest cosine", "largest error"], rows)
    end = f"model: {result['out']}\nnext:  python -c \"import clipling; print(clipling.load({result['out']!r}).encode_text(['a dog']))\""
    warned = [f"warning: {line}" for line in result.get("warnings", [])]
    return "\n\n".join([*warned, table(["file", "bytes"], files), shown, *([_gate(result["gate"])] if "gate" in result else []), end])


def _gate(findings: Sequence[Mapping[str, Any]]) -> str:
    """What the smaller graphs lose against fp32."""
    rows = []
    for found in findings:
        kept = found["settings"].get("kept_fp32") or []
        close = f"cosine {found['cosine']['mean']:.4f}, least {found['cosine']['least']:.4f}"
        lost = [
            f"{name} {percent(d['reference'])} to {percent(d['here'])} (drop {percent(d['low'])} to {percent(d['high'])}, "
            f"chance {percent(d['chance'])})"
            for name, d in found["drops"].items()
        ]
        layers = f"{len(kept)} layer{'s' * (len(kept) > 1)} in fp32" if kept else ""
        rows.append([found["file"], found["settings"]["method"], "; ".join([close, *lost, *([layers] if layers else [])])])
    notes = "\n".join(f"{', '.join(files)}: {said}" for said, files in _by_note(findings).items())
    return f"{table(['passed the gate', 'how', 'against fp32'], rows, words=True)}\n{notes}"


def _by_note(findings: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Each note with the files that it is about."""
    found: dict[str, list[str]] = {}
    for finding in findings:
        found.setdefault(finding["note"], []).append(finding["file"])
    return found


def _latency(result: Mapping[str, Any]) -> str:
    rows = [
        [
            row["model"], row["backend"], row["precision"], row["side"], str(row["threads"]), str(row["batch"]),
            f"{row['p50_ms']:.2f}", f"{row['p95_ms']:.2f}", f"{row['per_s']:.1f}",
            "" if row["gflops"] is None else f"{row['gflops']:.3f}", f"{row['file_mb']:.1f}", f"{row['peak_mb']:.0f}",
        ]
        for row in sorted(result["rows"], key=lambda row: (row["side"], row["threads"], row["batch"]))
    ]  # fmt: skip
    header = ["model", "backend", "precision", "side", "threads", "batch", "p50 ms", "p95 ms", "per s", "GFLOPs", "file MB", "peak MB"]
    written = [f"written: {result['out']}"] if "out" in result else []
    return "\n".join([table(header, rows), "", *result["notes"], *written])


def _web(result: Mapping[str, Any]) -> str:
    sizes = f"{result['bytes'] / 1e6:.1f} MB, of which a browser loads {result['bytes_loaded'] / 1e6:.1f} MB"
    towers = ", ".join(f"{side} tower {precision}" for side, precision in result["precisions"].items())
    said = f"web folder: {result['out']} ({sizes}; {towers})"
    return f"{said}\nnext:       python -m http.server --directory {result['out']}, and open the address that it prints; or any file server"


def _predict(result: Mapping[str, Any]) -> str:
    rows = [[row["key"], *(f"{name} {percent(p)} %" for name, p in row["guesses"])] for row in result["first"]]
    guesses = [f"guess {n}" for n in range(1, len(rows[0]))]
    counts = sorted(result["classes"].items(), key=lambda pair: -pair[1])
    said = ", ".join(f"{name} {count:,}" for name, count in counts[:20])
    left_out = f", {result['bad_rows']} could not be read" if result["bad_rows"] else ""
    more = f"\n... and {result['pictures'] - len(rows):,} more" if result["pictures"] > len(rows) else ""
    end = f"\nwritten: {result['out']}" if "out" in result else "\nnext: --out predictions.csv writes all of them"
    return f"{table(['picture', *guesses], rows, words=True)}{more}\n\n{result['pictures']:,} pictures{left_out}: {said}{end}"


def _inspect(result: Mapping[str, Any]) -> str:
    from clipling.data.inspect import render

    return render(result)


def _pack(result: Mapping[str, Any]) -> str:
    pictures = f"{result['resized']:,} pictures resized, {result['kept']:,} kept as they were"
    said = [f"{result['pairs']:,} pairs, {result['captions']:,} captions in {result['shards']:,} tars of {result['out']}", pictures]
    said[1] += f"; {result['bytes'] / 1e6:,.1f} MB"
    if result["left_out"]:
        said.append("left out: " + ", ".join(f"{count:,} {kind}" for kind, count in result["left_out"].items()))
        said.extend(f"  {where[:200]}: {detail[:200]}" for _, where, detail in result["first_problems"])
        said.append(f"  all are listed in {result['problem_list']}")
    return "\n".join([*said, f"next:  clipling train clip --data {result['out']} --out runs/clip"])


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
    return result["text"].rstrip() if "text" in result else table(result["header"], result["rows"], words=True)
