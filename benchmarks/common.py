"""What every benchmark shares: where results go, what they carry, and how a mean is stated."""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from clipling.environment import environment
from clipling.store import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
RUNS = ROOT / "runs"
FLICKR = ROOT.parent / "shared" / "data" / "flickr8k"


def in_parallel(script: str, jobs: list[list[str]], at_once: int) -> None:
    """Runs a benchmark's script once a job (`script *job`), some at a time, one thread each: on two cores that is faster than one run
    with two threads."""

    def call(arguments: list[str]) -> None:
        done = subprocess.run([sys.executable, script, *arguments], stdout=subprocess.DEVNULL)
        print("done" if done.returncode == 0 else "FAILED", *arguments, flush=True)

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(call, jobs))


def result_path(name: str) -> Path:
    return RESULTS / f"{name}.json"


def load(name: str) -> dict[str, Any]:
    """The result file as it stands, or an empty one."""
    path = result_path(name)
    return read_json(path) if path.is_file() else {"benchmark": name, "arms": {}, "ratios": {}}


def save(result: dict[str, Any]) -> Path:
    """Writes a result with what made it: the command without paths of this machine, commit, machine, packages, date.

    A note that somebody wrote into the file (how several calls made it) stays.
    """
    found = environment()
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *(a for a in sys.argv[1:] if "/" not in a)])
    note = {"note": result["made"]["note"]} if "note" in result.get("made", {}) else {}
    result["made"] = {"command": command, **{k: found[k] for k in ("commit", "machine", "packages", "date")}, **note}
    path = result_path(result["benchmark"])
    write_json(path, result)
    return path


def merged(old: dict[str, dict[str, list[Any]]], new: dict[str, dict[str, list[Any]]]) -> dict[str, dict[str, list[Any]]]:
    """Both, by arm and seed; the new value where both have one."""
    made: dict[str, dict[str, list[Any]]] = {}
    for arm in {**old, **new}:
        rows = {seed: i for i, seed in enumerate(old.get(arm, {}).get("seed", []))}
        fresh = {seed: i for i, seed in enumerate(new.get(arm, {}).get("seed", []))}
        for seed in sorted({*rows, *fresh}):
            source, row = (new[arm], fresh[seed]) if seed in fresh else (old[arm], rows[seed])
            for key, column in source.items():
                made.setdefault(arm, {}).setdefault(key, []).append(column[row])
    return made


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (nan for one value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


# Quantiles 0.975 of Student's t by degrees of freedom: intervals of a handful of seeds.
T975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def paired(a: list[float], b: list[float]) -> dict[str, float]:
    """a - b seed by seed: mean, spread (standard deviation of the differences) and the 95 % interval of the mean."""
    differences = [x - y for x, y in zip(a, b, strict=True)]
    mean, spread = mean_and_spread(differences)
    n = len(differences)
    half = math.nan if n < 2 else T975[n - 1] * spread / math.sqrt(n)
    return {"mean": mean, "spread": spread, "low": mean - half, "high": mean + half, "seeds": n}


def ratio(samples: list[float]) -> dict[str, float]:
    """Median of paired ratios with the 95 % interval of the median (order statistics, binomial)."""
    ordered = sorted(samples)
    n = len(ordered)
    spread = 1.96 * math.sqrt(n) / 2
    low, high = max(0, math.floor(n / 2 - spread)), min(n - 1, math.ceil(n / 2 + spread))
    return {"value": statistics.median(ordered), "low": ordered[low], "high": ordered[high], "samples": n}
