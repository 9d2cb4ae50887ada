"""How do time and memory of a training grow with the number of pairs? They should not, but for what is held of every pair.

    python benchmarks/train_cost.py [--small]

ToyWorld sources of 1 k, 10 k and 100 k pairs (drawn once, kept in the cache folder), the same student and batch: seconds of a pair
from step to step, seconds to the first step, peak of anonymous memory (pixels are memory-mapped), a process a size. And one
contrastive loss of 32,768 pairs in blocks, against its N x N matrix.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import RESULTS, load, save

COUNTS, SMALL_COUNTS = (1_000, 10_000, 100_000), (200, 400)
STUDENT, BATCH, STEPS, SKIP = "mobilenetv3_small_64", 256, 24, 4
LARGE = 32_768
SIDE = 80


class Peak:
    """The most anonymous memory (MiB) of this process while it lasts."""

    def __enter__(self) -> Peak:
        self.most, self.stop = 0.0, threading.Event()
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()
        return self

    def _watch(self) -> None:
        while not self.stop.is_set():
            status = Path("/proc/self/status").read_text()
            self.most = max(self.most, next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) / 1024)
            time.sleep(0.005)

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.watcher.join()


def source(count: int) -> Path:
    """A tar of `count` ToyWorld pictures, each with one caption, drawn once."""
    from clipling.data.toyworld_draw import draw as picture_of
    from clipling.data.toyworld_world import World
    from clipling.store import atomic_produce, cache_dir

    path = cache_dir() / "benchmarks" / f"toyworld-{SIDE}-{count}.tar"
    world = World(pairs=count, size=SIDE)

    def produce(temporary: Path) -> None:
        with tarfile.open(temporary, "w") as tar:
            for i in range(count):
                held = io.BytesIO()
                picture_of(world.scene(i)).save(held, "JPEG", quality=90)
                for suffix, content in ((".jpg", held.getvalue()), (".txt", world.captions(i).true[0].encode())):
                    member = tarfile.TarInfo(world.key(i) + suffix)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))

    if not path.is_file():
        atomic_produce(path, produce)
    return path


def train_one(count: int, batch: int, steps: int) -> dict[str, float]:
    """A short training over `count` pairs in this process."""
    from step_times import StepTimes

    from clipling.recipe import load_recipe, with_settings
    from clipling.run import threads, train

    threads(1)
    path = source(count)
    settings = {"data.source": str(path), "student.config": STUDENT, "optimiser.batch": batch, "max_steps": steps}
    settings |= {"evaluation.every": 1e6, "data.workers": 0}
    times = StepTimes()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, Peak() as peak:
        train(with_settings(load_recipe("clip"), settings), Path(folder) / "run", quiet=True)
    spent = times.found()["seconds"][min(SKIP, steps // 4) :]
    # Checkpoints and evaluations between steps are not the step's: the median.
    step = sorted(spent)[len(spent) // 2]
    return {"pairs": count, "ms_per_pair": 1000 * step / batch, "before_first_step_s": times.wall[0] - began, "peak_mib": peak.most}


def loss_one(pairs: int, blocks: bool) -> dict[str, float]:
    """CLIP's loss with false-negative masks over `pairs` rows, forward and backward, in this process."""
    import numpy as np
    import torch

    from clipling.engine.batch import same_mask
    from clipling.objectives import infonce
    from clipling.objectives.contrastive import Clip
    from clipling.objectives.term import Batch, View

    torch.set_num_threads(1)
    if not blocks:
        infonce.MOST_LOGITS = 2**62
    rows = [torch.nn.functional.normalize(torch.randn(pairs, 256, generator=torch.Generator().manual_seed(s)), dim=1) for s in (0, 1)]
    image, text = (r.requires_grad_() for r in rows)
    numbers = np.arange(pairs)
    same = same_mask([[i // 2] if i < 1000 else [] for i in range(pairs)], numbers, numbers, 0)
    pair = torch.from_numpy(numbers)
    began = time.perf_counter()
    with Peak() as peak:
        batch = Batch({"main": View(image, text, image, text)}, torch.tensor(20.0), pair, pair, same=same)
        loss = Clip()(batch)["clip"]
        loss.backward()
    norm = float(torch.cat([image.grad.flatten(), text.grad.flatten()]).norm())
    return {"pairs": pairs, "loss": float(loss), "gradient": norm, "seconds": time.perf_counter() - began, "peak_mib": peak.most}


def apart(*arguments: str) -> dict[str, float] | None:
    """One measurement in a process of its own; None when it failed (an N x N matrix may not fit)."""
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
    if done.returncode:
        print("FAILED", *arguments, (done.stderr.strip().splitlines() or [""])[-1], flush=True)
        return None
    found = json.loads(done.stdout.strip().splitlines()[-1])
    print(arguments, {key: round(value, 4) for key, value in found.items()}, flush=True)
    return found


def slope(rows: list[dict[str, float]], key: str) -> float:
    """The exponent with which a quantity grows between the first and the last number of pairs."""
    first, last = rows[0], rows[-1]
    return math.log(last[key] / first[key]) / math.log(last["pairs"] / first["pairs"])


def draw(rows: list[dict[str, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4))
    for axis, (key, label) in zip(
        axes,
        (("ms_per_pair", "milliseconds a pair, in a step"), ("before_first_step_s", "seconds to the first step"), ("peak_mib", "peak MiB")),
    ):
        axis.plot([r["pairs"] for r in rows], [r[key] for r in rows], "o-")
        if key == "before_first_step_s":
            axis.set(xscale="log", yscale="log", xlabel="training pairs", ylabel=label)
        else:
            axis.set(xscale="log", xlabel="training pairs", ylabel=label, ylim=(0, 1.15 * max(r[key] for r in rows)))
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs=3, type=int, metavar=("PAIRS", "BATCH", "STEPS"), help=argparse.SUPPRESS)
    parser.add_argument("--loss", nargs=2, type=int, metavar=("PAIRS", "BLOCKS"), help=argparse.SUPPRESS)
    parser.add_argument("--small", action="store_true", help="to try it: some hundred pairs, nothing saved")
    given = parser.parse_args()
    if given.train:
        print(json.dumps(train_one(*given.train)))
        return
    if given.loss:
        print(json.dumps(loss_one(given.loss[0], bool(given.loss[1]))))
        return
    batch, steps, large = (32, 4, 2_048) if given.small else (BATCH, STEPS, LARGE)
    counts = SMALL_COUNTS if given.small else COUNTS
    rows = [row for count in counts if (row := apart("--train", str(count), str(batch), str(steps)))]
    losses = {f"loss of {n} {how}": apart("--loss", str(n), blocks) for n, how, blocks in _losses(large)}
    result = load("train_cost")
    named = {f"{int(row['pairs']):,} pairs": row for row in rows} | {name: row for name, row in losses.items() if row}
    result["arms"] = {name: {key: [value] for key, value in row.items()} for name, row in named.items()}
    result["ratios"] = _ratios(rows, losses, large)
    print(json.dumps({name: round(found["value"], 4) for name, found in result["ratios"].items()}, indent=2))
    if not given.small:
        draw(rows, RESULTS / "train_cost.png")
        save(result)


def _losses(large: int) -> list[tuple[int, str, str]]:
    """A batch that fits both ways, and the large one in blocks alone: its matrix and what autograd keeps of it are 4 GiB each."""
    return [(large // 4, "in blocks", "1"), (large // 4, "at once", "0"), (large, "in blocks", "1")]


def _ratios(rows: list[dict[str, float]], losses: dict[str, dict[str, float] | None], large: int) -> dict[str, Any]:
    one = lambda value: {"value": value, "low": value, "high": value, "samples": 1}  # noqa: E731
    found = (
        {f"exponent of {key}": one(slope(rows, key)) for key in ("ms_per_pair", "peak_mib", "before_first_step_s")} if len(rows) > 1 else {}
    )
    if len(rows) > 1:
        more = (rows[-1]["peak_mib"] - rows[0]["peak_mib"]) * 2**20 / (rows[-1]["pairs"] - rows[0]["pairs"])
        found["bytes of memory a pair"] = one(more)
    blocks, at_once = losses.get(f"loss of {large // 4} in blocks"), losses.get(f"loss of {large // 4} at once")
    if blocks and at_once:
        found["blocks over the whole matrix, time"] = one(blocks["seconds"] / at_once["seconds"])
        found["blocks over the whole matrix, memory"] = one(blocks["peak_mib"] / at_once["peak_mib"])
        found["relative difference of the loss"] = one(abs(blocks["loss"] - at_once["loss"]) / at_once["loss"])
        found["relative difference of the gradient's norm"] = one(abs(blocks["gradient"] - at_once["gradient"]) / at_once["gradient"])
    return found


if __name__ == "__main__":
    main()
