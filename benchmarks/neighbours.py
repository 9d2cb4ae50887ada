"""What does an exact neighbour table cost against the bare matrix product, and how do time and memory grow with the number of pairs?

    python benchmarks/neighbours.py                          all that is not in the result file yet (half an hour on two cores)
    python benchmarks/neighbours.py --exact 1000000          one more exact point (about half an hour)
    python benchmarks/neighbours.py --small                  10,000 and 30,000 rows, printed and not kept

`exact_table_over_gemm`: seconds of nothing but the fp32 product of all rows with all rows, in blocks, over seconds of `build_table` with
files on disk (reading, candidates, fp64 ranking, digests, saving), in one process, in turn. The product is timed in the shape that is
quickest here. Where the machine has quick bf16 the table chooses its candidates in it, and can be quicker than the fp32 product; then the
same table with candidates in fp32 is timed as well, and the product in bf16. The curve: every point in a process of its own, with the peak
of anonymous memory that the table added; rows of 384 fp16 numbers, Gaussian with variance 1/i along the i-th axis (about 26 effective
dimensions), k = 5. `faiss HNSW`: the same rows by faiss's graph, the usual way to P log P, for comparison.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import RESULTS, load, ratio, save

DIM, K, BLOCK = 384, 5, 2048
RATIO_ROWS, ROUNDS = (30_000,), 5
EXACT, APPROXIMATE = (10_000, 30_000, 100_000, 300_000), (10_000, 30_000, 100_000, 300_000, 1_000_000)
SHAPES = ((2048, None), (2048, 8192), (512, 8192), (2048, 2048))  # of the bare product: queries, columns (None: all)
GRAPH = {"links": 32, "build": 40, "search": 64}
METHODS = {"approximate": "faiss", "faiss HNSW": "HNSW"}
GRAPHS = (30_000, 100_000, 300_000)
BF16_SHAPE = (2048, 2048)  # the quickest on the machine this was written on
# Of a machine with quick bf16: the same table with candidates chosen in fp32, and against the product that it does make.
OTHERS = (("candidates in fp32", "gemm", "table_fp32"), ("against the product in bf16", "gemm_bf16", "table"))


def rows_file(folder: Path, count: int):
    """Unit rows on disk, opened as those of a bank are."""
    from clipling.guides.rows import Rows, unit, write_parts

    path = folder / f"{count}.npy"
    if not path.is_file():
        scale = (1 / np.sqrt(np.arange(1, DIM + 1))).astype(np.float32)
        rng = np.random.default_rng(0)
        parts = (unit(rng.standard_normal((min(8192, count - at), DIM), dtype=np.float32) * scale) for at in range(0, count, 8192))
        write_parts(path, parts, (count, DIM), np.dtype(np.float16))
    return Rows.open([path])


def table(rows: Any, method: str, folder: Path):
    from clipling.guides.neighbours import build_table

    count = len(rows)
    return build_table(rows, np.arange(count), [()] * count, np.ones(count, bool), K, block=BLOCK, folder=folder, method=method)


def product_seconds(rows: Any, shape: tuple[int, int | None], dtype: str = "float32") -> float:
    """All rows with all rows, into one buffer."""
    import torch

    all_rows = torch.from_numpy(rows[:]).float().to(getattr(torch, dtype))
    queries, columns = shape[0], shape[1] or len(rows)
    held = torch.empty(queries * columns, dtype=all_rows.dtype)
    began = time.perf_counter()
    for start in range(0, len(rows), queries):
        some = all_rows[start : start + queries]
        for first in range(0, len(rows), columns):
            other = all_rows[first : first + columns]
            torch.mm(some, other.T, out=held[: len(some) * len(other)].view(len(some), len(other)))
    return time.perf_counter() - began


def against_product(count: int, rounds: int) -> dict[str, Any]:
    """Seconds of the products and of tables whose candidates are chosen as this machine does it and in fp32, in turn."""
    from clipling.guides import candidates
    from clipling.guides.precision import BF16, FP32, quickest

    quick = quickest("cpu") == BF16
    found: dict[str, Any] = {
        "candidates": "bf16" if quick else "fp32",
        "gemm": [],
        "gemm_bf16": [],
        "table": [],
        "table_fp32": [],
        "shape": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        rows = rows_file(Path(folder), count)
        few = rows.at(np.arange(min(count, 3 * BLOCK)))
        product_seconds(few, SHAPES[0])  # warm
        for number in range(rounds):
            best = min((product_seconds(rows, shape), shape) for shape in (SHAPES if number == 0 else [tuple(found["shape"][0])]))
            found["gemm"].append(best[0])
            found["shape"].append(list(best[1]))
            found["table"].append(table_seconds(rows, Path(folder) / f"round-{number}"))
            if quick:
                found["gemm_bf16"].append(product_seconds(rows, BF16_SHAPE, "bfloat16"))
                chosen, candidates.quickest = candidates.quickest, lambda device: FP32
                found["table_fp32"].append(table_seconds(rows, Path(folder) / f"round-{number}-fp32"))
                candidates.quickest = chosen
    return found


def table_seconds(rows: Any, folder: Path) -> float:
    began = time.perf_counter()
    table(rows, "exact", folder)
    return time.perf_counter() - began


def point(method: str, count: int, scratch: Path) -> dict[str, Any]:
    """One table: seconds, MiB of anonymous memory that it added at its peak, recall."""
    rows = rows_file(scratch, count)
    table(rows.at(np.arange(2000)), "exact", scratch / "warm")
    before = anonymous()
    peak, stop = [before], threading.Event()

    def watch() -> None:
        while not stop.wait(0.01):
            peak[0] = max(peak[0], anonymous())

    threading.Thread(target=watch, daemon=True).start()
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        began, spent = time.perf_counter(), time.process_time()
        made = table(rows, method, Path(folder))
        seconds, spent = time.perf_counter() - began, time.process_time() - spent
    stop.set()
    return {
        "rows": count,
        "seconds": round(seconds, 2),
        "processor_seconds": round(spent, 2),
        "added_mib": round(peak[0] - before, 1),
        "peak_anonymous_mib": round(peak[0], 1),
        "recall": round(made.info["recall"], 4),
        "method": made.info["method"],
    }


def graph_point(count: int, scratch: Path) -> dict[str, Any]:
    """The same neighbours by faiss's graph (HNSW, Malkov and Yashunin 2018), the usual way to P log P: built, and asked for every row."""
    import faiss
    import torch

    rows = rows_file(scratch, count)
    faiss.omp_set_num_threads(torch.get_num_threads())
    features = rows[:].astype(np.float32)
    began, spent, before = time.perf_counter(), time.process_time(), anonymous()
    index = faiss.IndexHNSWSQ(DIM, faiss.ScalarQuantizer.QT_fp16, GRAPH["links"], faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = GRAPH["build"], GRAPH["search"]
    index.train(features[:1000])
    index.add(features)
    found = np.concatenate([index.search(features[at : at + BLOCK], K + 1)[1] for at in range(0, count, BLOCK)])
    seconds, spent = time.perf_counter() - began, time.process_time() - spent
    sample = np.random.default_rng(0).permutation(count)[:1000]
    from clipling.guides.approximate import recall
    from clipling.guides.search import ExactSearch

    true, _ = ExactSearch(rows[:], np.arange(count), [()] * count).of_columns(sample, K)
    others = np.where(found[sample] == sample[:, None], -2, found[sample])  # a row is no neighbour of its own
    return {
        "rows": count,
        "seconds": round(seconds, 2),
        "processor_seconds": round(spent, 2),
        "added_mib": round(anonymous() - before, 1),
        "peak_anonymous_mib": round(anonymous(), 1),
        "recall": round(recall(others, true), 4),
        "method": f"faiss {faiss.__version__}: HNSW {GRAPH}",
    }


def anonymous() -> float:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) / 1024


def in_a_process(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def slope(points: list[dict[str, Any]], what: str) -> float:
    """Of log(what) over log(rows), over the larger half of the points."""
    points = sorted(points, key=lambda p: p["rows"])[-max(2, len(points) // 2 + 1) :]
    return float(np.polyfit(np.log([p["rows"] for p in points]), np.log([max(p[what], 1e-3) for p in points]), 1)[0])


def plot(curve: dict[str, list[dict[str, Any]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (time_axis, memory_axis) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for method, points in curve.items():
        points = sorted(points, key=lambda p: p["rows"])
        x = [p["rows"] for p in points]
        time_axis.loglog(x, [p["seconds"] for p in points], marker="o", label=method)
        memory_axis.loglog(x, [p["added_mib"] for p in points], marker="o", label=method)
        if method != "exact":
            for p in points:
                time_axis.annotate(f"{p['recall']:.2f}", (p["rows"], p["seconds"]), textcoords="offset points", xytext=(4, -10), fontsize=7)
    time_axis.set(xlabel="rows of 384 features", ylabel="seconds (recall beside the points)")
    memory_axis.set(xlabel="rows of 384 features", ylabel="MiB of anonymous memory added")
    time_axis.legend()
    figure.savefig(path, dpi=120)


def keep(result: dict[str, Any], curve: dict[str, list[dict[str, Any]]]) -> None:
    result["arms"] = {
        f"{method}@{p['rows']}": {
            key: [p[key]] for key in ("rows", "seconds", "processor_seconds", "added_mib", "peak_anonymous_mib", "recall")
        }
        for method, points in curve.items()
        for p in sorted(points, key=lambda p: p["rows"])
    }
    for method, points in curve.items():
        if len(points) > 2:
            result["ratios"][f"slope of seconds, {method}"] = {"value": slope(points, "seconds")}
    result["curve"] = curve
    save(result)
    plot(curve, RESULTS / "neighbours.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exact", type=int, nargs="*", default=[], help="further sizes for exact tables")
    parser.add_argument("--again", action="store_true", help="measure again what is in the result file")
    parser.add_argument("--small", action="store_true", help="two sizes, one round, nothing kept")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--ratio", type=int, nargs=2, metavar=("ROWS", "ROUNDS"), help=argparse.SUPPRESS)
    parser.add_argument("--point", nargs=3, metavar=("METHOD", "ROWS", "SCRATCH"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    if given.ratio or given.point:
        import torch

        torch.set_num_threads(given.threads)
        method, count, scratch = given.point or ("", 0, "")
        if given.ratio:
            print(json.dumps(against_product(*given.ratio)))
        else:
            made = graph_point(int(count), Path(scratch)) if method == "HNSW" else point(method, int(count), Path(scratch))
            print(json.dumps(made))
        return
    result = {"arms": {}, "ratios": {}} if given.again or given.small else load("neighbours")
    result = {"benchmark": "neighbours", **result}
    threads, sizes, rounds = ["--threads", str(given.threads)], RATIO_ROWS, ROUNDS
    if given.small:
        sizes, rounds = RATIO_ROWS[:1], 1
    for count in sizes:
        key = "exact_table_over_gemm" if count == sizes[0] else f"exact_table_over_gemm, {count:,} rows"
        if key not in result["ratios"]:
            found = in_a_process("--ratio", str(count), str(rounds), *threads)
            result["ratios"][key] = {**ratio([a / b for a, b in zip(found["gemm"], found["table"])]), "rows": count}
            for more, above, below in OTHERS if found["gemm_bf16"] else ():
                result["ratios"][f"{key}, {more}"] = {**ratio([a / b for a, b in zip(found[above], found[below])]), "rows": count}
            result.setdefault("seconds", {})[key] = found
            print(key, result["ratios"][key], found, flush=True)
            if not given.small:
                save(result)
    curve = {"exact": [], "approximate": [], "faiss HNSW": [], **result.get("curve", {})}
    wanted = [("exact", n) for n in sorted({*EXACT, *given.exact})] + [("approximate", n) for n in APPROXIMATE]
    wanted += [("faiss HNSW", n) for n in GRAPHS]
    with tempfile.TemporaryDirectory() as scratch:
        for method, count in wanted:
            if any(p["rows"] == count for p in curve[method]) or (given.small and count > 30_000):
                continue
            found = in_a_process("--point", METHODS.get(method, method), str(count), scratch, *threads)
            print(method, found, flush=True)
            curve[method].append(found)
            if not given.small:
                keep(result, curve)


if __name__ == "__main__":
    main()
