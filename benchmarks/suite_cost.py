"""How long does the full suite take on a small student, and does its memory grow with the number of pictures?

    python benchmarks/teacher.py && python benchmarks/tinyclip_speedup.py --arms inherit+affinity --seeds 1      first: a student
    python benchmarks/suite_cost.py                  [--model RUN]

`full`: `clipling eval --suite full` over Flickr8k dev and CIFAR-10 with an empty cache, seconds a task and in all. `memory`: the peak
resident memory of the process for the tasks that see every picture, over ToyWorld sources of 500 and 4,000 pictures, all of them corrupted
as well, at one severity: resized pictures are kept up to a bound of 256 MB, which 500 do not fill. `plain`: the same without corruptions.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import FLICKR, RUNS, load, save
from teacher import DEV

from clipling.evals.results import read_results

STUDENT = RUNS / "tinyclip_speedup" / "inherit_affinity" / "seed-1"
FULL = """
suite: full
datasets:
  flickr8k-dev: {{data: {dev}}}
  cifar10: {{data: {cifar}, outside: ["demo:emoji"]}}
"""
MEMORY = """
tasks: [zeroshot_classification, calibration, geometry, linear_probe, knn, corruptions]
datasets:
  toyworld: {{data: "demo:toyworld?pairs={pairs}", task: zeroshot}}
settings:
  corruptions: {{sample: {pairs}, corruptions: [gaussian_noise, contrast], severities: [3]}}
"""
PLAIN = MEMORY.partition("settings:")[0].replace(", corruptions", "")
PEAK = """
import resource, sys
from clipling.cli import main
code = main(sys.argv[1:])
print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
sys.exit(code)
"""
PICTURES = (500, 4000)


def suite(model: Path, content: str, folder: Path, threads: int) -> tuple[float, float]:
    """(seconds, peak MB) of one suite in a process of its own, with a cache of its own."""
    (folder / "suite.yaml").write_text(content)
    environment = {**os.environ, "CLIPLING_CACHE": str(folder / "cache")}
    arguments = ["eval", str(model), "--suite", str(folder / "suite.yaml"), "--out", str(folder / "out"), "--threads", str(threads)]
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", PEAK, *arguments], env=environment, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - began
    return seconds, float(done.stdout.rsplit("PEAK", 1)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=STUDENT)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--parts", default="full,memory,plain")
    given = parser.parse_args()
    result = load("suite_cost")
    parts = given.parts.split(",")
    if "full" in parts:
        with tempfile.TemporaryDirectory() as folder:
            content = FULL.format(dev=DEV, cifar=FLICKR.parent / "cifar10")
            seconds, peak = suite(given.model.resolve(), content, Path(folder), given.threads)
            tasks = {f"{r.task} on {r.dataset}": [round(r.made["seconds"], 2)] for r in read_results(Path(folder) / "out")}
        result["arms"]["full"] = {"seconds": [round(seconds, 1)], "peak_mb": [round(peak, 1)], "threads": [given.threads]}
        result["tasks_seconds"] = tasks
    for part, content in (("memory", MEMORY), ("plain", PLAIN)):
        if part in parts:
            for pictures in PICTURES:
                with tempfile.TemporaryDirectory() as folder:
                    seconds, peak = suite(given.model.resolve(), content.format(pairs=pictures), Path(folder), given.threads)
                result["arms"][f"{part}@{pictures}"] = {"seconds": [round(seconds, 1)], "peak_mb": [round(peak, 1)], "pictures": [pictures]}
        small, large = (result["arms"].get(f"{part}@{n}") for n in PICTURES)
        if small and large:
            result["ratios"][f"peak memory, 8 x the pictures, {part}"] = {"value": large["peak_mb"][0] / small["peak_mb"][0]}
    result["ratios"].pop("peak memory, 8 x the pictures", None)
    save(result)
    print(result["arms"], result["ratios"])


if __name__ == "__main__":
    main()
