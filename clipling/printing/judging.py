"""Results, suites, predictions and comparisons as a person reads them in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipling.printing.shown import chance_of, in_order, percent, remark_on, table


def shown_eval(result: Mapping[str, Any]) -> str:
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
        rows.append([name, chance_of(name, pairs, classes), percent(metrics[name]), said])
    size = ", ".join(f"{v} {k.replace('_', ' ')}" for k, v in result["size"].items())
    warnings = "".join(f"warning: {line}\n" for line in result.get("warnings") or [])
    head = f"{warnings}{result['model']} on {result['dataset']} ({size})"
    return f"{head}\n\n{table(['metric, %', 'chance', 'value', '95 % interval'], rows)}{remark_on(metrics, pairs, 'given')}"


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


def shown_report(result: Mapping[str, Any]) -> str:
    return f"{result['verdict']}\n\nreport: {result['report']}"


def shown_predict(result: Mapping[str, Any]) -> str:
    rows = [[row["key"], *(f"{name} {percent(p)} %" for name, p in row["guesses"])] for row in result["first"]]
    guesses = [f"guess {n}" for n in range(1, len(rows[0]))]
    counts = sorted(result["classes"].items(), key=lambda pair: -pair[1])
    said = ", ".join(f"{name} {count:,}" for name, count in counts[:20])
    left_out = f", {result['bad_rows']} could not be read" if result["bad_rows"] else ""
    more = f"\n... and {result['pictures'] - len(rows):,} more" if result["pictures"] > len(rows) else ""
    end = f"\nwritten: {result['out']}" if "out" in result else "\nnext: --out predictions.csv writes all of them"
    return f"{table(['picture', *guesses], rows, words=True)}{more}\n\n{result['pictures']:,} pictures{left_out}: {said}{end}"


def shown_compare(result: Mapping[str, Any]) -> str:
    return f"{result['verdict']}\n\n{result['table']}\n\nreport: {result['report']}"
