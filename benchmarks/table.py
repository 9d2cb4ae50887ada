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
    "train_throughput": "Pairs a second of `clipling train clip` and of open_clip's own training loop (the newest release; `main`: its "
    "main branch), the same student (all token rows), tars, batch, threads, loader workers and AdamW; every arm a process of its own, in "
    "turn, timed between optimiser steps of both by one hook. `cpu_s_per_1000_pairs`: processor seconds of all of its processes, which "
    "other work on the machine hardly changes. `without ...`: clipling with one cause switched off; `clipling_over_without_...` is that "
    "cause's share. clipling decodes pictures before the first step, once; `with_decoding` spreads that over the recipe's 20 epochs. "
    "`restricted vocabulary` is clipling's default and trains fewer parameters; `bf16`: both sides under autocast.",
    "train_cost": "Training over 1 k, 10 k and 100 k ToyWorld pairs, one thread, a process a size. Exponents are of growth between the "
    "first and the last size (0: none, 1: proportional). `loss of ...`: CLIP's loss and its gradients with false-negative masks, in "
    "blocks of rows against the whole N x N matrix.",
    "pilot_forecast": "`clipling plan --pilot` on at most 30 % of Flickr8k train, then the full run: recall@10 on dev (mean of both "
    "directions) that was forecast, its 90 % interval, and what was reached. `hit`: reached lies within. `largest_pilot`: what "
    "the largest pilot has, for comparison.",
    "teacher": "A teacher without a model hub: towers that start from EfficientNet-Lite0 and MiniLM, fine-tuned on Flickr8k train "
    "at 64 px; `scratch`: the same architecture, samples and settings from random weights. Recall on dev in percent.",
    "reinforced_efficiency": "Samples seen to the val recall@10 that plain CLIP reaches at its best with the same seed: one student of "
    "2.2 M parameters from random weights, one teacher, stored or live. `clip_short`: plain CLIP on the budget of the arms that are "
    "taught. Recall on dev in percent.",
    "tinyclip_speedup": "Steps to the val recall@10 that training from scratch reaches at its best, for one architecture of half the "
    "teacher's size. Steps are counted in half epochs (11 steps), so ratios of early arrivals are coarse. `relative_recall`: dev "
    "recall@10 in percent of the teacher's. Seconds are clock time on a machine with other work on it.",
    "compression_curve": "A ViT teacher at three sizes, chosen in four ways, all at the same number of samples; recall on dev in percent, "
    "`relative_recall` in percent of the teacher's; milliseconds for one picture and one caption, one thread, all models in turn.",
    "finetune": "From Flickr8k to emoji. `val_recall@10`: emoji held out; `cifar10_acc1`: zero-shot, only watched; `kept`: percent of the "
    "start's. `share`: of the new weights, as WiSE-FT's rule chose on val.",
    "zero_shot_parity": "clipling's numbers and CLIP_benchmark's, of one model on Flickr8k dev and CIFAR-10 (fractions).",
    "suite_cost": "`clipling eval --suite full` on a half-size student over Flickr8k dev and CIFAR-10, with an empty cache, and peak "
    "memory over ToyWorld sources of 500 and 4,000 pictures.",
    "onnx_parity": "Torch against the exported graphs: lowest cosine and largest error over batches of 1 and 5 and several text lengths, "
    "pictures of the tower's size. Weights are random, which is enough for parity.",
    "int8_parity": "int8 against fp32 graphs, with the gate of `clipling export` on Flickr8k dev: recall as fractions (`drop`: at most "
    "0.01 is allowed), layers that stayed in fp32. `zoo/...`: towers of the zoo that saw some thousand `samples` of a stored teacher "
    "(zoo_students), so that there is recall to lose; their embeddings have the teacher's size. Arms without recall have "
    "random weights and were judged by cosines; one without numbers was refused.",
    "latency": "Milliseconds (p50) and pictures a second of one thread, every model a process of its own, calls in turn. Random weights. "
    "`flop_ratio`: ViT-B/32's arithmetic over vit_xs_16's; `int8_over_vit_b32_...`: vit_xs_16 in int8 over ViT-B/32 in torch, batch 16 "
    "unless said.",
    "bank": "`build_bank` against nothing but the forward passes of its two encoders on the same batches, a part of Flickr8k train "
    "at a time, in turn, seconds of both; the ratio is a median over parts.",
    "neighbours": "An exact table against nothing but the fp32 product of all rows with all rows, in turn, and what tables cost as rows "
    "grow: 384 fp16 features a row, k = 5, a process a point; `added mib`: anonymous memory that the table added at its peak. "
    "Recall is a fraction. Where a CPU has quick bf16, candidates are chosen in it (the table is the same), so that the whole table can "
    "take less than the fp32 product; `candidates in fp32` is the same table on a CPU without, `against the product in bf16` what a table "
    "takes beyond the product that it makes.",
    "loading": "256-px JPEGs in a tar to normalised tensors of 64, 112 and 224 px, one thread, against webdataset + Pillow with the "
    "same (bicubic) interpolation, both in one process in turn. Decoded at every step: `fast` (data.decode=fast: torchvision, and JPEGs "
    "twice as large as wanted at a fraction of their size), `whole` (the same, never at a fraction), `exact` (Pillow's pixels). `cached`: "
    "decoded once and memory-mapped, the default of training. `opened_source`: memory held for each pair of a packed source of "
    "100,000 pairs, and the seconds of opening it for the first time. The headline is `fast` at the size where it gains least.",
    "search_load": "The search service on the loopback, over the 1,000 pictures of Flickr8k dev: 32 clients for a minute, "
    "and malformed requests.",
}


# What is shown of benchmarks that measure something else than recall on dev.
COLUMNS = {
    "train_throughput": ("pairs_per_s", "cpu_s_per_1000_pairs", "parameters"),
    "train_cost": ("ms_per_pair", "before_first_step_s", "loss", "gradient", "peak_mib"),
    "pilot_forecast": ("largest_pilot", "forecast", "low", "high", "reached", "hit", "share_of_pairs", "pilot_samples"),
    "ping_cost": (),
    "tinyclip_speedup": (
        *("steps_to_target", "seconds_to_target", "relative_recall", "i2t_recall@1", "i2t_recall@10", "t2i_recall@1", "t2i_recall@10"),
        "seconds",
    ),
    "reinforced_efficiency": (
        *("samples_to_target", "seconds_to_target", "samples_seen", "i2t_recall@1", "i2t_recall@10", "t2i_recall@1", "t2i_recall@10"),
        "seconds",
    ),
    "compression_curve": (
        *(
            "relative_recall",
            "parameters",
            "parameters_with_token_rows",
            "latency_ms",
            "latency_of_teacher",
            "image_ms",
            "text_ms",
            "i2t_recall@10",
        ),
        "t2i_recall@10",
    ),
    "finetune": ("val_recall@10", "cifar10_acc1", "cifar10_kept", "flickr8k_dev_recall@10", "flickr8k_kept", "share"),
    "zero_shot_parity": ("acc1", "acc5", "mean_per_class_recall", "i2t_recall@1", "i2t_recall@10", "t2i_recall@1", "t2i_recall@10"),
    "suite_cost": ("pictures", "peak_mb", "threads"),
    "onnx_parity": ("fp32_image_cosine", "fp32_image_max_error", "fp32_text_cosine", "fp32_text_max_error", "fp32_resized_max_error"),
    "int8_parity": (
        *("samples", "i2t_recall@10_fp32", "t2i_recall@10_fp32", "i2t_recall@10_drop", "t2i_recall@10_drop"),
        *("image_cosine", "image_least_cosine", "image_kept_layers", "text_cosine", "text_least_cosine", "text_kept_layers"),
    ),
    "latency": (
        *("image_gflops", "image_file_mb", "image_p50_ms_batch_1", "image_p50_ms_batch_16", "image_per_s_batch_16"),
        *("text_file_mb", "text_p50_ms_batch_1", "text_p50_ms_batch_16"),
    ),
    "bank": ("seconds",),
    "neighbours": ("rows", "seconds", "processor_seconds", "added_mib", "peak_anonymous_mib", "recall"),
    "loading": ("pairs_per_s", "bytes_per_pair", "open_s"),
    "search_load": ("requests", "bad_count", "requests_per_s", "p50_ms", "p95_ms", "p99_ms"),
}


# What DESIGN promises of a ratio, and what it is of what.
TARGETS = {
    ("train_throughput", "clipling_over_open_clip"): ("at least 1.5", "pairs a second of our training over those of open_clip's own loop"),
    ("loading", "clipling_over_webdataset_pillow"): ("at least 2", "pictures a second, ours over webdataset with Pillow"),
    ("bank", "bank_over_bare_forward"): (
        "at least 0.9",
        "rows a second of `bank` over its encoders alone (above 1 is noise)",
    ),
    ("neighbours", "exact_table_over_gemm"): ("at least 0.7", "speed of a whole exact table over that of the fp32 product alone"),
    ("ping_cost", "step_time"): ("at most 1.05", "seconds of a guided step over a plain CLIP step, 112 px student (others below)"),
    ("ping_cost", "memory"): ("at most 1.02", "peak memory of guided training over plain CLIP, 112 px student"),
}


HEAD = """# Benchmarks

Made by `make bench` from `benchmarks/results/*.json`; each file names the command that made it (the last one, where several made it:
`--help` of a script says what each does). Scripts that train or load need Flickr8k as tars of pictures and captions, in
`shared/data/flickr8k` beside this checkout.

± is over seeds; where there is one, over rounds or parts of the data.

"""


def main() -> None:
    results = [read_json(path) for path in sorted(RESULTS.glob("*.json"))]
    text = HEAD + "\n".join([promised(results), *(section(result) for result in results)])
    atomic_write(ROOT / "docs" / "benchmarks.md", text)
    print(text)


def promised(results: list[dict[str, Any]]) -> str:
    """Every ratio that has a target, with both sides measured in one run."""
    found = {(result["benchmark"], key): value for result in results for key, value in result.get("ratios", {}).items()}
    rows = ["| benchmark | ratio | of what | target | measured | 95 % interval |", "|---|---|---|---|---|---|"]
    for (benchmark, key), (target, sides) in TARGETS.items():
        value = found.get((benchmark, key))
        measured = ("not measured yet", "") if value is None else (f"{value['value']:.3f}", interval(value))
        rows.append(f"| {benchmark} | {key} | {sides} | {target} | {measured[0]} | {measured[1]} |")
    return "\n".join([*rows, ""])


def section(result: dict[str, Any]) -> str:
    name, made = result["benchmark"], result["made"]
    lines = [f"## {name}", "", ABOUT.get(name, ""), ""]
    lines += arms_table(name, result["arms"]) + paired_table(result.get("paired", {})) + students_table(result.get("students", {}))
    lines += [f"- {key}: {value['value']:.3f} ({interval(value)})" for key, value in result.get("ratios", {}).items()]
    machine = made["machine"]
    lines += ["", f"`{made['command']}`, commit {made['commit']}, {made['date'][:10]}, {machine['processor']}, {machine['cores']} cores, "]
    lines[-1] += f"torch {made['packages'].get('torch')}."
    lines.append(f"{made['note'][0].upper()}{made['note'][1:].rstrip('.')}.\n" if "note" in made else "")
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
        rows.append(f"| {arm} | {len(listed(values.get('seed')) or [0])} | {' | '.join(cells)} |")
    return [*rows, ""]


def listed(values: Any) -> list[Any]:
    """The values of a metric: one a seed, or the only one."""
    return values if isinstance(values, list) else [] if values is None else [values]


def cell(values: Any) -> str:
    """Mean and spread; whole where numbers are large; how many seeds never got there, where some did not."""
    values = listed(values)
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
    return f"{value['low']:.3f} to {value['high']:.3f}" if value.get("samples", 1) > 1 else "one measurement"


def shown(values: list[float]) -> str:
    mean, spread = mean_and_spread(values)
    if len(values) == 1 and 0 < abs(mean) < 1:  # fractions, and errors of parity
        return f"{mean:.1e}" if abs(mean) < 0.001 else f"{mean:.7f}".rstrip("0").rstrip(".")
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
