"""Results of verbs as a person reads them in a terminal. Fractions are shown in percent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipling.printing.judging import shown_compare, shown_eval, shown_predict, shown_report
from clipling.printing.shipping import shown_export, shown_latency, shown_search_index
from clipling.printing.shown import table
from clipling.printing.shrinking import shown_compress, shown_distill
from clipling.printing.sources import shown_inspect, shown_pack, shown_plan, shown_reinforce
from clipling.printing.training import shown_finetune, shown_train


def text(verb: str, result: Any) -> str:
    """The printed form of what a verb returned."""
    made = {
        "plan": shown_plan,
        "train": shown_train,
        "finetune": shown_finetune,
        "distill": shown_distill,
        "compress": shown_compress,
        "reinforce": shown_reinforce,
        "eval": shown_eval,
        "data inspect": shown_inspect,
        "data pack": shown_pack,
        "bank": _plain,
        "neighbours": _plain,
        "compare": shown_compare,
        "report": shown_report,
        "convert": _plain,
        "export": shown_export,
        "latency": shown_latency,
        "search index": shown_search_index,
        "search serve": lambda _: "stopped",
        "predict": shown_predict,
        "embed": _plain,
        "demo": _demo,
        "check": _check,
        "show": _show,
    }
    return made[verb](result)


def _plain(result: Mapping[str, Any]) -> str:
    return "\n".join(f"{key.replace('_', ' ')}: {value}" for key, value in result.items())


def _demo(result: Mapping[str, Any]) -> str:
    return result["text"]


def _check(result: Mapping[str, Any]) -> str:
    marks = {True: "ok", False: "FAIL", None: "skipped"}
    return "\n".join(f"{marks[f['ok']]:8}{f['check']}: {f['message']}" for f in result["findings"])


def _show(result: Mapping[str, Any]) -> str:
    return result["text"].rstrip() if "text" in result else table(result["header"], result["rows"], words=True)
