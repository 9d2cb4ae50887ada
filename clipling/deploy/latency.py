"""`clipling latency`: how quick models are on this machine's processor, side by side.

Every arm (a model, a backend, a precision) is a process of its own. They take turns, call by call, so that a slow minute of the
machine is nobody's. What is timed is the graph: pixels of the model's size to unit rows, and the tokens of ten words to unit rows;
decoding, resizing from the camera's size and tokenising are not in it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from clipling.deploy.latency_worker import CAPTION
from clipling.deploy.layers import layers
from clipling.deploy.reference import reference_config, reference_folder
from clipling.environment import environment
from clipling.errors import UserError
from clipling.runtime.manifest import NAME, read_manifest
from clipling.runtime.tokens import Tokens
from clipling.store import write_json

SIDES = ("image", "text")
WARM = 2
ROUNDS = 15


@dataclass(frozen=True)
class Arm:
    """model: as shown. backend: torch or onnx. precision: of the graph. spec: what the worker opens."""

    model: str
    backend: str
    precision: str
    spec: dict[str, Any]


def latency(
    models: Sequence[str],
    *,
    references: Sequence[str] = (),
    threads: Sequence[int] = (1,),
    batches: Sequence[int] = (1, 16),
    rounds: int = ROUNDS,
    out: Path | None = None,
) -> dict[str, Any]:
    """Times exported folders (every precision that they have), models in torch, and architectures with random weights in both.

    Returns {"machine", "rows", ...}; a row has model, backend, precision, side, threads, batch, p50_ms, p95_ms, per_s (batch / p50),
    cpu_ms (processor time, the median), peak_mb (of the whole process), file_mb and gflops (a multiply-add counts as 2).
    """
    if not models and not references:
        raise UserError("latency needs a model: an exported folder, a run folder, or --reference ViT-B-32")
    for name, values in (("threads", threads), ("batch", batches), ("rounds", (rounds,))):
        if not values or min(values) < 1:
            raise UserError(f"--{name} is {list(values)}; expected numbers from 1 on")
    for name in references:
        reference_config(name)  # a mistyped name is told before the first export
    arms = [arm for model, name in zip(models, labels(models)) for arm in arms_of(model, name)] + [
        arm for name in references for arm in reference_arms(name)
    ]
    flops = {model: gflops(folder) for model, folder in {a.model: a.spec["folder"] for a in arms if a.backend == "onnx"}.items()}
    rows = [row for count in threads for row in measured(arms, count, batches, rounds)]
    for row in rows:
        row["gflops"] = flops.get(row["model"], {}).get(row["side"])
    found = environment()
    made = {"machine": found["machine"], "packages": found["packages"], "date": found["date"], "rounds": rounds, "rows": rows}
    made["notes"] = notes(found["machine"]["processor"], rows)
    if out is not None:
        write_json(out, made)
        made["out"] = str(out)
    return made


def notes(processor: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    """What a reader of the table has to know: of int8, what this table itself shows."""
    return [
        f"{processor}. Times are of this machine and of this hour; compare rows of one table.",
        f"Text: {len(CAPTION.split())} words. Peak memory is of the whole process, libraries and both towers included.",
        *int8_against_fp32(rows),
        *["fp16 halves the file and is no quicker on CPUs: the arithmetic stays in fp32."] * any(r["precision"] == "fp16" for r in rows),
    ]


def int8_against_fp32(rows: Sequence[dict[str, Any]]) -> list[str]:
    """How many times the images and texts a second int8 makes here, at each side: the least and the most of all rows."""
    place = lambda r: (r["model"], r["side"], r["threads"], r["batch"])  # noqa: E731
    fp32 = {place(r): r["per_s"] for r in rows if r["backend"] == "onnx" and r["precision"] == "fp32"}
    said = []
    for side in SIDES:
        ratios = [r["per_s"] / fp32[place(r)] for r in rows if r["precision"] == "int8" and r["side"] == side and place(r) in fp32]
        if ratios:
            said.append(f"{side} {min(ratios):.2f} to {max(ratios):.2f}")
    if not said:
        return []
    why = "Int8 instructions (VNNI, AMX, dot product of ARM) help in large matrix products; small graphs may be no quicker, only smaller."
    return [f"int8 over fp32 in this table, in images or texts a second: {', '.join(said)} times. {why}"]


def labels(models: Sequence[str]) -> list[str]:
    """What models are called: the last part of a folder, or as many parts as tell them apart."""
    places = [Path(model.removeprefix("local-dir:")) for model in models]
    parts = [(place.resolve() if place.exists() else place).parts for place in places]
    short = ["/".join(p[-1:] if (place / NAME).is_file() else p[-2:]) for p, place in zip(parts, places)]
    for count in range(2, max(map(len, parts), default=0) + 1):
        short = [name if short.count(name) == 1 else "/".join(p[-count:]) for name, p in zip(short, parts)]
    if len(set(short)) < len(short):
        raise UserError(f"latency is given one model twice: {max(short, key=short.count)}. Give every model once")
    return short


def arms_of(model: str, name: str | None = None) -> list[Arm]:
    """The graphs of an exported folder, or a model in torch. UserError for a folder without the fp32 graphs, or none of both towers."""
    folder, name = Path(model), name or labels([model])[0]
    if (folder / NAME).is_file():
        manifest = read_manifest(folder)
        both = [p for p in manifest.image.files if p in manifest.text.files]
        if "fp32" not in both:
            raise UserError(f"{folder} has no fp32 graphs of both towers, which the others are compared with. Export the model again")
        return [Arm(name, "onnx", p, {"backend": "onnx", "folder": str(folder), "precision": p}) for p in both]
    return [Arm(name, "torch", "fp32", {"backend": "torch", "model": model})]


def reference_arms(name: str) -> list[Arm]:
    """An architecture in torch and in ONNX."""
    folder = reference_folder(name)
    onnx_arm = Arm(name, "onnx", "fp32", {"backend": "onnx", "folder": str(folder), "precision": "fp32"})
    return [Arm(name, "torch", "fp32", {"backend": "torch", "reference": name}), onnx_arm]


def measured(arms: Sequence[Arm], threads: int, batches: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Rows of all arms with one number of threads."""
    spent: dict[tuple[int, str, int], dict[str, list[float]]] = {}
    with ExitStack() as held:
        workers = [held.enter_context(Worker(arm, threads)) for arm in arms]
        for number in range(WARM + rounds):
            for batch in batches:
                for side in SIDES:
                    for place, worker in enumerate(workers):
                        times = worker.ask({"do": "run", "side": side, "batch": batch, "calls": 1})
                        if number >= WARM:
                            kept = spent.setdefault((place, side, batch), {"ms": [], "cpu_ms": []})
                            for key, values in kept.items():
                                values += times[key]
        about = [worker.about | worker.ask({"do": "memory"}) for worker in workers]
    return [row(arms[place], side, threads, batch, times, about[place]) for (place, side, batch), times in sorted(spent.items())]


def row(arm: Arm, side: str, threads: int, batch: int, times: dict[str, list[float]], about: dict[str, Any]) -> dict[str, Any]:
    """One line of the table."""
    p50, p95 = np.quantile(times["ms"], [0.5, 0.95])
    return {
        "model": arm.model,
        "backend": arm.backend,
        "precision": arm.precision,
        "side": side,
        "threads": threads,
        "batch": batch,
        "p50_ms": float(p50),
        "p95_ms": float(p95),
        "least_ms": float(min(times["ms"])),
        "cpu_ms": float(np.median(times["cpu_ms"])),
        "per_s": float(1000 * batch / p50),
        "peak_mb": about["peak_mb"],
        "file_mb": about["file_mb"][side],
        "size": about["size"],
        "times_ms": times["ms"],
        "times_cpu_ms": times["cpu_ms"],
    }


def gflops(folder: str) -> dict[str, float]:
    """1e9 floating-point operations of one picture and of one text of ten words, by the fp32 graphs of an exported folder.

    Convolutions and matrix products are counted, a multiply-add as 2, as in clipling.evals.suite.cost.
    """
    manifest = read_manifest(folder)
    size = manifest.image.size
    feeds = {
        "image": {"pixels": np.zeros((1, size, size, 3), np.uint8)},
        "text": {"tokens": Tokens(Path(folder), manifest.text)([CAPTION])},
    }
    graphs = {side: onnx.load(Path(folder) / getattr(manifest, side).files["fp32"]) for side in SIDES}
    return {side: 2 * sum(layer.macs for layer in layers(graphs[side], feeds[side])) / 1e9 for side in SIDES}


class Worker:
    """The process of an arm. Used with `with`: it ends when the block does."""

    def __init__(self, arm: Arm, threads: int) -> None:
        self.arm = arm
        self.process = subprocess.Popen(
            [sys.executable, "-m", "clipling.deploy.latency_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            self.about = self.ask({"do": "open", "arm": arm.spec, "threads": threads})
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The worker's answer. UserError when it failed or ended."""
        what = f"{self.arm.model} ({self.arm.backend}, {self.arm.precision})"
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise UserError(f"the process of {what} ended with code {self.process.wait()}: is there enough memory?")
        answer = json.loads(line)
        if "error" in answer:
            raise UserError(f"{what} cannot be timed: {answer['error']}")
        return answer
