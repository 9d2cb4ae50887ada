"""How many pictures a second our students encode on one thread, against ViT-B/32 in torch and in ONNX.

    python benchmarks/latency.py [--rounds 40]

The students are the zoo's with random weights, which is fine for speed; int8 was made without data, by the same code as
`clipling export --precision int8`. All arms take turns, call by call. Both ratios are of `vit_xs_16`:

    int8_over_vit_b32_images_per_s   its int8 pictures a second, through those of ViT-B/32 in torch (median of the rounds' ratios)
    flop_ratio                       the floating-point operations of ViT-B/32's picture through those of its own
"""

from __future__ import annotations

import argparse
from typing import Any

from common import load, ratio, save

from clipling.deploy.latency import SIDES, Arm, arms_of, gflops, measured, reference_arms
from clipling.deploy.precisions import add_precisions
from clipling.deploy.reference import reference_folder
from clipling.deploy.samples import take
from clipling.runtime.manifest import read_manifest

STUDENTS = ("mobilenetv3_small_64_text128", "vit_xs_16")
LARGE = "ViT-B-32"
BATCHES = (1, 16)


def arms() -> list[Arm]:
    made = []
    for name in STUDENTS:
        folder = reference_folder(name)
        manifest = read_manifest(folder)
        missing = tuple(p for p in ("int8", "fp16") if p not in manifest.text.files)
        if missing:
            add_precisions(folder, missing, take(manifest.image), say=print)
        made += [reference_arms(name)[0], *arms_of(str(folder))]
    return made + reference_arms(LARGE)


def name_of(arm: dict[str, Any]) -> str:
    return f"{arm['model']} {arm['backend']} {arm['precision']}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    all_arms = arms()
    flops = {a.model: gflops(a.spec["folder"]) for a in all_arms if a.backend == "onnx"}
    rows = measured(all_arms, 1, BATCHES, rounds)
    result = load("latency")
    result["arms"] = {}
    for row in rows:
        arm = result["arms"].setdefault(name_of(row), {"seed": [0], "peak_mb": [row["peak_mb"]]})
        arm[f"{row['side']}_gflops"] = [flops[row["model"]][row["side"]]]
        arm[f"{row['side']}_file_mb"] = [row["file_mb"]]
        for key in ("p50_ms", "p95_ms", "cpu_ms", "per_s"):
            arm[f"{row['side']}_{key}_batch_{row['batch']}"] = [row[key]]
    result["ratios"] = ratios(rows, flops)
    for side in SIDES:
        for row in sorted((r for r in rows if r["side"] == side), key=lambda r: (r["batch"], r["p50_ms"])):
            speed = f"{row['p50_ms']:9.2f} ms  {row['per_s']:9.1f} / s  cpu {row['cpu_ms']:8.2f} ms"
            print(f"{name_of(row):48} {side:5} batch {row['batch']:2}  {speed}")
    for name, value in result["ratios"].items():
        print(f"{name}: {value['value']:.2f} ({value['low']:.2f} to {value['high']:.2f})")
    print(save(result))


def ratios(rows: list[dict[str, Any]], flops: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Round by round, so that a slow minute is in both. Batch 16; `_batch_1` and the processor's own time beside it."""

    def times(model: str, backend: str, precision: str, batch: int, key: str) -> list[float]:
        wanted = (model, backend, precision, "image", batch)
        return next(r[key] for r in rows if (r["model"], r["backend"], r["precision"], r["side"], r["batch"]) == wanted)

    made = {}
    for batch, suffix in ((16, ""), (1, "_batch_1")):
        for key, what in (("times_ms", "images_per_s"), ("times_cpu_ms", "images_per_cpu_s")):
            ours = times("vit_xs_16", "onnx", "int8", batch, key)
            for backend, against in (("torch", "vit_b32"), ("onnx", "vit_b32_onnx")):
                theirs = times(LARGE, backend, "fp32", batch, key)
                made[f"int8_over_{against}_{what}{suffix}"] = ratio([b / a for a, b in zip(ours, theirs) if a > 0])
    flop = flops[LARGE]["image"] / flops["vit_xs_16"]["image"]
    return made | {"flop_ratio": {"value": flop, "low": flop, "high": flop, "samples": 1}}


if __name__ == "__main__":
    main()
