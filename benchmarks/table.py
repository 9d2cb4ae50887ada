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
    "Time of one thread; memory: peak of anonymous memory, a process an arm.",
    "teacher": "A teacher without a model hub: towers that start from EfficientNet-Lite0 and MiniLM, fine-tuned on Flickr8k train "
    "at 64 px; `scratch`: the same architecture, samples and settings from random weights. Recall on dev in percent.",
    "tinyclip_speedup": "Steps to the val recall@10 that training from scratch reaches at its best, for one architecture of half the "
    "teacher's size. Steps are counted in half epochs (11 steps), so ratios of early arrivals are coarse. `relative_recall`: dev "
    "recall@10 in percent of the teacher's. Seconds are clock time on a machine with other work on it.",
    "compression_curve": "A ViT teacher at three sizes, chosen in four ways, all at the same number of samples; recall on dev in percent, "
    "`relative_recall` in percent of the teacher's; milliseconds for one picture and one caption, one thread, all models in turn.",
    "finetune": "From Flickr8k to emoji. `val_recall@10`: emoji held out; `cifar10_acc1`: zero-shot, only watched; `kept`: percent of the "
    "start's. `share`: of the new weights, as WiSE-FT's rule chose on val.",
}


# What is shown of benchmarks that measure something else than recall on dev.
COLUMNS = {
    "ping_cost": (),
    "tinyclip_speedup": (
        *("steps_to_target", "seconds_to_target", "relative_recall", "i2t_recall@1", "i2t_recall@10", "t2i_recall@1", "t2i_recall@10"),
        "seconds",
    ),
    "compression_curve": (
        *("relative_recall", "parameters", "parameters_with_token_rows", "latency_ms", "image_ms", "text_ms", "i2t_recall@10"),
        "t2i_recall@10",
    ),
    "finetune": ("val_recall@10", "cifar10_acc1", "cifar10_kept", "flickr8k_dev_recall@10", "flickr8k_kept", "share"),
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
    lines += arms_table(name, result["arms"]) + paired_table(result.get("paired", {})) + students_table(result.get("students", {}))
    lines += [f"- {key}: {value['value']:.3f} ({interval(value)})" for key, value in result.get("ratios", {}).items()]
    machine = made["machine"]
    lines += ["", f"`{made['command']}`, commit {made['commit']}, {made['date'][:10]}, {machine['processor']}, {machine['cores']} cores, "]
    lines[-1] += f"torch {made['packages'].get('torch')}."
    lines.append(f"{made['note'][0].upper()}{made['note'][1:]}.\n" if "note" in made else "")
    return "\n".join(lines)


def arms_table(name: str, arms: dict[str, dict[str, list]]) -> list[str]:
    columns = COLUMNS.get(name) or sorted({m for values in arms.values() for m in values if "recall@" in m}, key=in_order)
    columns = [c for c in columns if any(c in values for values in arms.values())]
    if not columns:
        return []
    last = [c for c in ("samples_seen", "seconds") if any(c in values for values in arms.values()) and c not in columns]
    titles = [c.replace("_recall@", " @").replace("_", " ") for c in (*columns, *last)]
    rows = ["| arm | seeds | " + " | ".join(titles) + " |", "|---" * (len(titles) + 2) + "|"]
    for arm, values in arms.items():
        cells = [cell(values.get(c)) for c in (*columns, *last)]
        rows.append(f"| {arm} | {len(values['seed'])} | {' | '.join(cells)} |")
    return [*rows, ""]


def cell(values: list[Any] | None) -> str:
    """Mean and spread; whole where numbers are large; how many seeds never got there, where some did not."""
    if not values:
        return ""
    found = [v for v in values if v is not None]
    if not found:
        return "not reached"
    missed = f" ({len(values) - len(found)} not reached)" if len(found) < len(values) else ""
    if min(found) >= 1000:
        return f"{sum(found) / len(found):,.0f}{missed}"
    return shown(found) + missed


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
