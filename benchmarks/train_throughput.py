"""Is training quicker than open_clip's own training loop, and what makes it so?

    pip install --no-deps --target peer webdataset==0.2.86     # what open_clip asks for; and pandas, braceexpand beside it
    python benchmarks/train_throughput.py --packages peer [--main CHECKOUT/src] [--small]

One student (MobileNetV3-small at 112 px with a text tower of four layers, all 49,408 token rows), the same tars, batch, threads,
loader workers and AdamW on both sides; every arm a process of its own, in turn, timed between optimiser steps. `clipling_over_open_clip`
is pairs a second over pairs a second. Then clipling again with one cause switched off at a time. Pictures are decoded before the first step
in clipling, once; open_clip decodes them at every step: `with_decoding` adds that time, spread over the epochs of the recipe.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import FLICKR, ROOT, load, ratio, save

TRAIN, VAL = str(FLICKR / "train-{00000..00005}.tar"), str(FLICKR / "dev-00000.tar")
STUDENT = "mobilenetv3_small_112"
SKIP = 3  # first steps, while loaders fill their buffers
EPOCHS, PAIRS = 20, 6_091  # of the recipe `clip`; in the tars
ARMS = ("clipling", "open_clip", "open_clip main")
MORE = ("clipling restricted vocabulary", "clipling bf16", "open_clip bf16")
WITHOUT = (
    *("decoded pictures", "cut captions", "length groups", "one look-up of tokens", "lean last text layer", "channels_last"),
    *("fused optimiser", "kept memory"),
)


def without(cause: str) -> None:
    """Switches one cause off in this process."""
    import torch

    from clipling.data.pixels import Pixels
    from clipling.engine import trainer
    from clipling.models import towers
    from clipling.models.dual import Student

    def decoded() -> None:
        made = Pixels.open
        Pixels.open = lambda *a, **k: made(*a, **{**k, "limit_bytes": 0})  # type: ignore[method-assign, assignment]

    def cut() -> None:
        def whole(tower: Any, tokens: Any, *_: Any) -> Any:  # ids of all captions are held cut to the longest
            return towers._first(tower(torch.nn.functional.pad(tokens, (0, tower.context_length - tokens.shape[1]))))

        towers.text_features = whole

    def groups() -> None:
        towers._groups = lambda rows, device: 1

    def look_up() -> None:
        towers._embedded = lambda tower, tokens: None

    def lean() -> None:
        towers._plain = lambda block: False

    def channels() -> None:
        made, normalise = Student.__init__, Student.normalise

        def init(self: Any, *a: Any, **k: Any) -> None:
            made(self, *a, **k)
            self.model.visual.to(memory_format=torch.contiguous_format)

        Student.__init__ = init  # type: ignore[method-assign]
        Student.normalise = lambda self, images: normalise(self, images).contiguous()  # type: ignore[method-assign]

    def fused() -> None:
        made = trainer.build_optimiser

        def unfused(*a: Any) -> Any:
            optimiser = made(*a)
            for group in optimiser.param_groups:
                group["fused"] = None
            return optimiser

        trainer.build_optimiser = unfused  # type: ignore[assignment]

    def kept() -> None:
        trainer.freed_memory_kept = contextlib.nullcontext  # type: ignore[assignment]

    off: dict[str, Callable[[], None]] = dict(zip(WITHOUT, (decoded, cut, groups, look_up, lean, channels, fused, kept), strict=True))
    off[cause]()


def one_of_ours(arm: str, given: argparse.Namespace) -> dict[str, Any]:
    """Some steps of `clipling train clip`, in this process."""
    import torch
    from step_times import StepTimes

    from clipling.recipe import load_recipe, with_settings
    from clipling.run import train

    torch.set_num_threads(given.threads)
    if arm.startswith("without "):
        without(arm.removeprefix("without "))
    settings = {
        "data.source": TRAIN,
        "data.val": VAL,
        "data.crop": [0.9, 1.0],
        "data.workers": given.workers,
        "student.config": given.student,
        "student.vocabulary": "restricted" if "restricted" in arm else "full",
        "optimiser.batch": given.batch,
        "optimiser.autocast": "bf16" if "bf16" in arm else "none",
        "max_steps": given.steps,
        "evaluation.every": 1000.0,
    }
    times = StepTimes()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        train(with_settings(load_recipe("clip"), settings), Path(folder) / "run", quiet=True)
    before = times.wall[0] - began  # opening, decoding, measuring the untrained student, the first step
    return {"parameters": times.parameters, "before_first_step": before, **times.found()}


def one_of_theirs(arm: str, given: argparse.Namespace) -> list[str]:
    config = ROOT / "clipling" / "models" / "zoo" / f"{given.student}.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "peers" / "open_clip_loop.py"), str(config), TRAIN]
    command += ["--source", given.main] if arm.endswith("main") else []
    command += ["--precision", "amp_bf16"] if "bf16" in arm else []
    return command + numbers(given)


def numbers(given: argparse.Namespace) -> list[str]:
    return [s for key in ("batch", "steps", "workers", "threads") for s in (f"--{key}", str(getattr(given, key)))]


def run(arm: str, given: argparse.Namespace) -> dict[str, Any] | None:
    """One arm in a process of its own: pairs a second, processor seconds for a thousand pairs; None when it failed."""
    ours = not arm.startswith("open_clip")
    command = [sys.executable, __file__, "--one", arm, "--student", given.student, *numbers(given)] if ours else one_of_theirs(arm, given)
    environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads)}
    if given.packages and not ours:
        environment["PYTHONPATH"] = os.pathsep.join([str(Path(given.packages).resolve()), environment.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        print(f"{arm} FAILED: {done.stderr.strip().splitlines()[-1:]}", flush=True)
        return None
    found = json.loads(done.stdout.strip().splitlines()[-1])
    steps = len(found["seconds"][SKIP:])
    made = {
        "pairs_per_s": given.batch * steps / sum(found["seconds"][SKIP:]),
        "cpu_s_per_1000_pairs": 1000 * sum(found["cpu_seconds"][SKIP:]) / (given.batch * steps),
        "parameters": found["parameters"],
    }
    print(arm, {key: round(value, 2) for key, value in made.items()}, found.get("version", ""), flush=True)
    return made


def ratios(arms: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Pairs a second over pairs a second, round by round, and the same of processor time."""

    def over(one: str, other: str, key: str = "pairs_per_s") -> list[float]:
        return [a / b for a, b in zip(arms[one][key], arms[other][key])] if {one, other} <= arms.keys() else []

    wanted = {
        "clipling_over_open_clip": over("clipling", "open_clip"),
        "clipling_over_open_clip_main": over("clipling", "open_clip main"),
        "cpu_time_open_clip_over_clipling": over("open_clip", "clipling", "cpu_s_per_1000_pairs"),
        "restricted_vocabulary_over_open_clip": over("clipling restricted vocabulary", "open_clip"),
        "bf16_over_open_clip_bf16": over("clipling bf16", "open_clip bf16"),
        **{f"clipling_over_without_{cause.replace(' ', '_')}": over("clipling", f"without {cause}") for cause in WITHOUT},
    }
    return {name: ratio(values) for name, values in wanted.items() if values}


def decoding_seconds(given: argparse.Namespace) -> float:
    """Seconds to decode all training pictures once, with an empty cache."""
    lines = (
        "import sys, time",
        "from clipling.data.source import open_pairs",
        "from clipling.data.pixels import Pixels",
        "pairs, began = open_pairs(sys.argv[1]), time.perf_counter()",
        f"Pixels.open(pairs, 140, 'squash', threads={given.threads})",
        "print(time.perf_counter() - began)",
    )
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "CLIPLING_CACHE": folder}
        done = subprocess.run([sys.executable, "-c", "\n".join(lines), TRAIN], capture_output=True, text=True, env=environment, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--main", help="src folder of a checkout of open_clip's main branch: a third arm")
    parser.add_argument("--packages", help="folder of packages that open_clip's side imports first: a webdataset up to 0.2.86")
    parser.add_argument("--arms", nargs="*", help="only these (a cause as: 'without NAME')")
    parser.add_argument(
        "--student", default=STUDENT, help="another one is added to the result (vit_xs_16: --batch 64 --steps 9 --rounds 3)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="to try it: one round of a few steps, nothing saved")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one_of_ours(given.one, given)))
        return
    if given.small:
        given.rounds, given.batch, given.steps = 1, 64, SKIP + 4
    arms = given.arms or [*ARMS, *MORE, *(f"without {cause}" for cause in WITHOUT)]
    arms = [arm for arm in arms if given.main or not arm.endswith("main")]
    found: dict[str, dict[str, list[float]]] = {}
    for number in range(given.rounds):
        for arm in arms if number % 2 else arms[::-1]:
            for key, value in (run(arm, given) or {}).items():
                found.setdefault(arm, {}).setdefault(key, []).append(value)
    made = ratios(found)
    if {"clipling", "open_clip"} <= found.keys() and given.student == STUDENT:
        seconds = decoding_seconds(given) / EPOCHS / PAIRS
        spread = [1 / (1 / rate + seconds) for rate in found["clipling"]["pairs_per_s"]]
        made["clipling_over_open_clip_with_decoding"] = ratio([a / b for a, b in zip(spread, found["open_clip"]["pairs_per_s"])])
    if given.student != STUDENT:
        found = {f"{given.student}: {arm}": values for arm, values in found.items()}
        made = {f"{name}_{given.student}": value for name, value in made.items()}
    result = load("train_throughput")
    result["arms"].update(found)
    result["ratios"].update(made)
    print(json.dumps({key: round(value["value"], 3) for key, value in made.items()}, indent=2))
    if not given.small:
        save(result)


if __name__ == "__main__":
    main()
