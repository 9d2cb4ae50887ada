"""`compare`: run folders in, one honest report out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clipling.data.source import open_pairs
from clipling.data.split import split
from clipling.errors import UserError
from clipling.evals.chance import chance, judged, remark, shown
from clipling.evals.evaluators import Retrieval
from clipling.evals.gallery import Exhibit
from clipling.evals.measure import METRICS, Measured, budget, cells, difference, measure, with_means
from clipling.evals.report import Sources, write_report
from clipling.evals.results import RETRIEVAL, Result, read_result
from clipling.evals.runs import Arm, Run, arms, baseline_of, read_run
from clipling.evals.verdict import Row, Verdict, judge


def compare(
    runs: Sequence[Path | str],
    out: Path | str,
    *,
    pictures: bool = True,
    test: Any | None = None,
    pairs: Any | None = None,
    baseline: str | None = None,
    references: Sequence[Path | str] = (),
    credits: str = "",
) -> dict[str, Any]:
    """Compares finished runs and writes one self-contained report to `out` (a folder: `out/report.html`).

    Every student is measured on `test` where given, otherwise on the val pairs that the runs share. `pairs` is the training
    source (`Pairs`) where the caller has it open; otherwise it is opened from the recipe of the first run, and when that fails
    the report says so and does without pictures and intervals. `baseline` names the run that the others are measured against
    (default: plain CLIP). `references` are result files of models that could be had without training. `pictures=False` leaves
    thumbnails out. `credits`: who made the pictures that the page shows, where their licence wants it said.

    Returns the verdict, the table and the differences as JSON-able values, and the path of the report.
    Raises UserError for folders that are no finished runs and for a baseline that does not exist.
    """
    if not runs:
        raise UserError("compare needs at least one run folder")
    comparable, left_out = _comparable([read_run(folder) for folder in runs], test)
    found = arms(comparable)
    base = baseline_of(found, baseline)
    found = _ordered(found, base)
    sources, notes = _sources(found, test, pairs, pictures)
    evaluator = Retrieval(sources.measured) if sources.measured is not None else None
    measured = measure(found, evaluator) if evaluator else {}
    notes = left_out + notes + _mismatches(found, measured, sources) + _chosen_here(found, sources)
    rows = [_row(arm, base, measured) for arm in found]
    ready = _references(references, sources)
    verdict = judge(rows, base, ready, notes, sources.count, sources.split)
    exhibits = _exhibits(rows, base, measured, shown(sources.count))
    path = Path(out) if Path(out).suffix == ".html" else Path(out) / "report.html"
    write_report(path, rows, verdict, ready, sources, exhibits, credits)
    return _as_json(rows, verdict, sources, path)


def _comparable(runs: Sequence[Run], test: Any) -> tuple[list[Run], list[str]]:
    """The runs that have recall, or whose model can be measured on `test`; notes on the others. UserError when none is left."""
    kept = [run for run in runs if all(name in run.summary["val"] for name in METRICS) or (test is not None and run.model)]
    if not kept:
        raise UserError(
            "compare: no run has recall of captions, which is what is compared (runs on bare photos measure how well they agree with "
            "their teacher). Measure each with `clipling eval RUN --data PAIRS`, or give runs that were trained on pairs."
        )
    left_out = [run for run in runs if all(run is not other for other in kept)]
    return kept, [
        f"{run.folder.name} ({run.name}) is left out: it has no recall of captions, as runs on bare photos do not; `clipling eval` "
        "measures it on pairs."
        for run in left_out
    ]


def _ordered(found: list[Arm], base: Arm | None) -> list[Arm]:
    """The baseline first; colours by place, the quiet colour 0 only for the baseline."""
    ordered = sorted(found, key=lambda arm: arm is not base)
    for place, arm in enumerate(ordered):
        arm.colour = place if base is not None else place + 1
    return ordered


def _row(arm: Arm, base: Arm | None, measured: Mapping[int, Measured]) -> Row:
    apart = difference(arm, base, measured) if base is not None and arm is not base else None
    return Row(arm, cells(arm, measured), budget(arm), apart)


def _sources(found: Sequence[Arm], test: Any, pairs: Any, pictures: bool) -> tuple[Sources, list[str]]:
    """The pairs to measure on and those to look neighbours up in, with notes on what could not be had."""
    every = [run for arm in found for run in arm.runs]
    settings = [_data_of(run) for run in every]
    same = all(s == settings[0] for s in settings)
    notes = []
    if not same and test is None:
        notes.append("The runs were trained or validated on different data, so their numbers on val cannot be compared; give test pairs.")
    val = None
    try:
        if pairs is None:
            pairs = _open(settings[0])
        if test is None and same:
            val = _val_pairs(settings[0], pairs)
            if len(val) != every[0].summary.get("val_pairs", len(val)):
                notes.append("The val pairs of the runs could not be found again in their source, so there are no intervals.")
                val = None
    except UserError as error:
        notes.append(f"The source of the runs cannot be opened, so pictures and intervals are missing: {_first_sentence(error)}")
    measured = test if test is not None else val
    fewest = min((int(run.summary["val_pairs"]) for run in every if run.summary.get("val_pairs")), default=None)
    count = len(measured) if measured is not None else fewest
    return Sources(measured, "test" if test is not None else "val", pairs, pictures, count, fewest), notes


def _first_sentence(error: Exception) -> str:
    """A report is shown to others: what was wrong, without the listing of folders that helps at the terminal."""
    return str(error).splitlines()[0].split(". ")[0].rstrip(".") + "."


def _data_of(run: Run) -> dict[str, Any]:
    """What decides the pairs and the split of a run."""
    data = run.recipe.get("data") or {}
    keys = ("source", "val", "image_column", "caption_column", "separator", "group", "max_bad")
    known = {key: data[key] for key in keys if data.get(key) is not None}
    return known if "source" in known else {**known, "source": str(run.summary.get("data", ""))}


def _open(data: Mapping[str, Any], key: str = "source") -> Any:
    if not data.get(key):
        raise UserError("the recipe names no source")
    return open_pairs(data[key], **{name: value for name, value in data.items() if name not in ("source", "val")})


def _val_pairs(data: Mapping[str, Any], pairs: Any) -> Any:
    return _open(data, "val") if "val" in data else pairs.subset(split(pairs)[1])


def _mismatches(found: Sequence[Arm], measured: Mapping[int, Measured], sources: Sources) -> list[str]:
    """Says so when a kept model does not give the val numbers that its run reported."""
    if sources.split != "val":
        return []
    said, metric = [], shown(sources.count)
    for arm in found:
        for run in arm.runs:
            if id(run) not in measured:
                continue
            here = with_means(measured[id(run)].ranks.recall()).get(metric)
            then = with_means(run.summary["val"]).get(metric)
            if here is not None and then is not None and abs(here - then) > 0.005:
                said.append(
                    f"The model of {run.folder.name} gives {100 * here:.1f} % {metric} on val here, its run reported {100 * then:.1f} %."
                )
    return said


def _chosen_here(found: Sequence[Arm], sources: Sources) -> list[str]:
    """Says so when the numbers are of pairs on which the best of several checkpoints was picked."""
    if sources.split != "val":
        return []
    picked = [(run.recipe.get("evaluation") or {}).get("best", "mean_recall") for arm in found for run in arm.runs]
    by = sorted({str(name) for name in picked if name != "last"})
    if not by:
        return []
    return [f"Checkpoints were chosen on these val pairs (by {', '.join(by)}), which flatters them; pairs of their own would not."]


def _references(paths: Sequence[Path | str], sources: Sources) -> list[Result]:
    """Results of ready-made models. Raises UserError for one that is not a retrieval result on the pairs of this comparison."""
    results = []
    for path in paths:
        result = read_result(Path(path))
        if result.task != RETRIEVAL:
            raise UserError(f"{path} is a {result.task} result; a reference for this table must be a {RETRIEVAL} result")
        if sources.measured is not None and result.data_hash != sources.measured.fingerprint:
            raise UserError(
                f"{path} was measured on other pairs ({result.dataset}) than this comparison ({sources.measured.name}). "
                "Run clipling eval on the same pairs."
            )
        results.append(result)
    return results


def _exhibits(rows: Sequence[Row], base: Arm | None, measured: Mapping[int, Measured], metric: str) -> list[Exhibit]:
    """The students of the galleries: the baseline and the two best others, by their first seeds."""
    others = sorted((r for r in rows if r.arm is not base), key=lambda r: -r.cells[metric].value)
    guided_first = sorted(others, key=lambda r: r.arm.kind != "guided")[:2]
    shown = [r for r in rows if r.arm is base] + guided_first
    exhibits = []
    for row in shown:
        found = measured.get(id(row.arm.runs[0]))
        if found is not None and found.image is not None and found.text is not None:
            exhibits.append(Exhibit(row.arm.label, row.arm.colour, found.image, found.text, found.ranks))
    return exhibits


def _as_json(rows: Sequence[Row], verdict: Verdict, sources: Sources, path: Path) -> dict[str, Any]:
    return {
        "report": str(path),
        "verdict": "\n".join([verdict.text, *(f"- {line}" for line in (*verdict.points, *verdict.warnings))]),
        "tone": verdict.tone,
        "warnings": verdict.warnings,
        "table": _as_text(rows, sources),
        "split": sources.split,
        "pairs": len(sources.measured) if sources.measured is not None else None,
        "judged_by": judged(sources.count),
        "chance": {name: chance(name, sources.count) for name in METRICS},
        "rows": [
            {
                "name": row.arm.label,
                "kind": row.arm.kind,
                "seeds": row.arm.seeds,
                "metrics": {name: asdict(cell) for name, cell in row.cells.items()},
                "budget": row.budget,
                "difference": {name: {**asdict(apart), "reading": apart.reading} for name, apart in (row.difference or {}).items()},
            }
            for row in rows
        ],
    }


def _as_text(rows: Sequence[Row], sources: Sources) -> str:
    """The table for a terminal: percent, budgets."""
    head = [f"{sources.split}, %", *METRICS, "samples seen", "seconds", "trained parameters"]
    body = [
        [
            row.arm.label,
            *(f"{100 * row.cells[metric].value:.1f}" for metric in METRICS),
            f"{row.budget['samples_seen']:,}",
            f"{row.budget['seconds']:.0f}",
            f"{row.budget['parameters']:,}",
        ]
        for row in rows
    ]
    if sources.count:
        levels = [f"{100 * (chance(metric, sources.count) or 0):.1f}" for metric in METRICS]
        body.append([f"chance, {sources.count} pairs", *levels, "", "", ""])
    widths = [max(map(len, column)) for column in zip(head, *body)]
    lines = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in (head, *body)]
    said = remark(METRICS, sources.count, sources.split)
    return "\n".join([*lines, *([said] if said else [])])
