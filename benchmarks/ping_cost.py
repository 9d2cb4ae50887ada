"""What does a step with CLIP-PING guidance cost against a plain CLIP step of the same student?

    python benchmarks/ping_cost.py

Time: both arms in one process, steps in turn (which goes first changes each round), ratio round by round, loading and look-ups
included, one thread. Memory: one subprocess an arm, the peak of anonymous memory (RssAnon) while training; banks are memory-mapped files.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import FLICKR, load, ratio, save

TRAIN = str(FLICKR / "train-{00000..00005}.tar")
STUDENTS = ("mobilenetv3_small_112", "mobilenetv3_small_64_text128")
ARMS = {
    "clip": ("clip", {}),
    "nn+xnn": ("ping", {"objective.ping.weight": {"self": 0.0, "nn": 1.0, "xnn": 1.0}}),
    "self+nn+xnn": ("ping", {}),
}
THREADS = 1
ROUNDS = 20
MEMORY_STEPS = 4
MEMORY_RUNS = 3


def make(arm: str, student: str):
    """A trainer's step as a function of the step number: batch, loss, gradients, clipping, AdamW."""
    import torch

    from clipling.engine.optim import build_optimiser, set_rate, trained
    from clipling.engine.runtime import Runtime
    from clipling.engine.step import Stepper
    from clipling.recipe import load_recipe, with_settings
    from clipling.run import make_job

    torch.set_num_threads(THREADS)
    name, changes = ARMS[arm]
    settings = {"data.source": TRAIN, "data.workers": 0, "student.config": student, **changes}
    if name == "ping":
        settings["guide.image_size"] = 160
    recipe = with_settings(load_recipe(name), settings)
    job = make_job(recipe, Path(tempfile.gettempdir()) / "unused", Runtime(), quiet=True)
    stepper = Stepper(job.student, job.objective, job.make_batch, Runtime(), 0)
    optimiser = build_optimiser(job.student, job.objective, recipe.optimiser)
    set_rate(optimiser, 1e-4)
    job.student.train()

    def step(number: int) -> None:
        stepper(job.batches[number], measure=False)
        torch.nn.utils.clip_grad_norm_(trained(optimiser), 1.0)
        optimiser.step()
        job.objective.after_step(number)
        optimiser.zero_grad(set_to_none=True)

    return step


def time_ratios(student: str) -> dict[str, Any]:
    """Each guided arm against plain CLIP, in turn, so that the machine's mood falls on both alike."""
    steps = {arm: make(arm, student) for arm in ARMS}
    for step in steps.values():
        for number in range(3):
            step(number)
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for number in range(ROUNDS):
        order = list(ARMS) if number % 2 else list(ARMS)[::-1]
        for arm in order:
            began = time.perf_counter()
            steps[arm](3 + number)
            seconds[arm].append(time.perf_counter() - began)
    found = {"seconds": seconds}
    for arm in ARMS:
        if arm != "clip":
            found[arm] = ratio([a / b for a, b in zip(seconds[arm], seconds["clip"])])
    return found


def peak_memory(arm: str, student: str) -> float:
    """MiB of anonymous memory at its peak over some steps, in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--memory", arm, student], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])["peak"]


def measure_memory(arm: str, student: str) -> None:
    peak, stop = [0.0], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            status = Path("/proc/self/status").read_text()
            now = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) / 1024
            peak[0] = max(peak[0], now)
            time.sleep(0.002)

    step = make(arm, student)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    for number in range(MEMORY_STEPS):
        step(number)
    stop.set()
    watcher.join()
    print(json.dumps({"peak": peak[0]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", nargs=2, metavar=("ARM", "STUDENT"), help=argparse.SUPPRESS)
    parser.add_argument("--memory-only", action="store_true", help="keep the times that were measured, measure memory again")
    given = parser.parse_args()
    if given.memory:
        measure_memory(*given.memory)
        return
    result = load("ping_cost")
    known = result.pop("students", {}) if given.memory_only else {}
    result["students"] = {}
    for student in STUDENTS:
        found = known.get(student) or time_ratios(student)
        turns = [{arm: peak_memory(arm, student) for arm in ARMS} for _ in range(MEMORY_RUNS)]  # in turn, as the steps are
        memory = {arm: [turn[arm] for turn in turns] for arm in ARMS}
        found["peak_anonymous_mib"] = memory
        for arm in ARMS:
            if arm != "clip":
                found[f"memory {arm}"] = ratio([a / b for a in memory[arm] for b in memory["clip"]])
        result["students"][student] = found
        print(student, {k: round(v["value"], 4) for k, v in found.items() if isinstance(v, dict) and "value" in v}, flush=True)
    headline = result["students"][STUDENTS[0]]
    result["arms"] = {arm: {"seconds": headline["seconds"][arm]} for arm in ARMS}
    result["ratios"] = {"step_time": headline["self+nn+xnn"], "memory": headline["memory self+nn+xnn"]}
    save(result)


if __name__ == "__main__":
    main()
