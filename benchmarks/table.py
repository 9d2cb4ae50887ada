"""`make bench`: every file of benchmarks/results in one page, docs/benchmarks.md, and on the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import RESULTS, ROOT, mean_and_spread

from clipling.store import atomic_write, read_json

ABOUT = {
    "ping_gain": "Recall on Flickr8k dev in percent after training on Flickr8k train, the same samples seen in every arm but "
    "clip_pretrained (a quarter); mean ± spread (standard deviation) over seeds. Dev was read once a run, at its end.",
    "ping_gain_tuning": "How the settings of `ping_gain` were chosen: trained on five of the six files of train, measured on the sixth.",
    "ping_cost": "A CLIP-PING step against a plain CLIP step of the same student, both in one process, in turn; medians of ratios. "
    "Measured while other work ran on the machine: the intervals show it.",
}


def main() -> None:
    pages = [section(read_json(path)) for path in sorted(RESULTS.glob("*.json"))]
    text = (
        "# Benchmarks\n\nMade by `make bench` from `benchmarks/results/*.json`; each file names the command that made it.\n\n"
        + "\n".join(pages)
    )
    atomic_write(ROOT / "docs" / "benchmarks.md", text)
    print(text)


def section(result: dict[str, Any]) -> str:
    name, made = result["benchmark"], result["made"]
    lines = [f"## {name}", "", ABOUT.get(name, ""), ""]
    lines += arms_table(result["arms"]) + paired_table(result.get("paired", {})) + students_table(result.get("students", {}))
    lines += [f"- {key}: {value['value']:.3f} ({interval(value)})" for key, value in result.get("ratios", {}).items()]
    machine = made["machine"]
    lines += ["", f"`{made['command']}`, commit {made['commit']}, {made['date'][:10]}, {machine['processor']}, {machine['cores']} cores, "]
    lines[-1] += f"torch {made['packages'].get('torch')}."
    lines.append(f"{made['note'][0].upper()}{made['note'][1:]}.\n" if "note" in made else "")
    return "\n".join(lines)


def arms_table(arms: dict[str, dict[str, list]]) -> list[str]:
    metrics = sorted((m for m in next(iter(arms.values()), {}) if "recall@" in m), key=in_order)
    if not metrics:
        return []
    rows = ["| arm | seeds | " + " | ".join(m.replace("_recall", " ") for m in metrics) + " | samples seen | seconds |"]
    rows.append("|---" * (len(metrics) + 4) + "|")
    for arm, values in arms.items():
        cells = [shown(values[m]) for m in metrics]
        seconds = f"{sum(values['seconds']) / len(values['seconds']):.0f}"
        rows.append(f"| {arm} | {len(values['seed'])} | {' | '.join(cells)} | {values['samples_seen'][0]:,} | {seconds} |")
    return [*rows, ""]


def in_order(metric: str) -> tuple[str, int]:
    """i2t before t2i, and @1, @5, @10."""
    name, _, k = metric.partition("@")
    return name, int(k)


def interval(value: dict[str, float]) -> str:
    return f"{value['low']:.3f} to {value['high']:.3f}" if value["samples"] > 1 else "one measurement"


def shown(values: list[float]) -> str:
    mean, spread = mean_and_spread(values)
    return f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ± {spread:.1f}"


def paired_table(paired: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    if not paired:
        return []
    metrics = sorted(next(iter(paired.values())), key=in_order)
    rows = ["Paired over seeds: mean difference ± spread of the difference [95 % interval of the mean].", ""]
    rows += ["| difference | seeds | " + " | ".join(m.replace("_recall", " ") for m in metrics) + " |", "|---" * (len(metrics) + 2) + "|"]
    for name, found in paired.items():
        cells = []
        for metric in metrics:
            d = found[metric]
            one = d["seeds"] < 2
            cells.append(f"{d['mean']:+.1f}" if one else f"{d['mean']:+.1f} ± {d['spread']:.1f} [{d['low']:+.1f}, {d['high']:+.1f}]")
        rows.append(f"| {name} | {found[metrics[0]]['seeds']} | {' | '.join(cells)} |")
    return [*rows, ""]


def students_table(students: dict[str, dict[str, Any]]) -> list[str]:
    if not students:
        return []
    rows = ["| student | ratio | median | 95 % interval |", "|---|---|---|---|"]
    for student, found in students.items():
        for key, value in found.items():
            if isinstance(value, dict) and "value" in value:
                kind = key if key.startswith("memory") else f"step time {key}"
                rows.append(f"| {student} | {kind} / clip | {value['value']:.3f} | {interval(value)} |")
    return [*rows, ""]


if __name__ == "__main__":
    main()
