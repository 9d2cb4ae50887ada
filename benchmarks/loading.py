"""Loading: 256-px JPEGs in a webdataset tar to normalised tensors, against webdataset + Pillow, same interpolation, in turn.

python benchmarks/loading.py            # about 10 minutes; --small for one
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import webdataset
from common import FLICKR, load, ratio, save
from PIL import Image
from torchvision import transforms

from clipling.data.images import decode_fast
from clipling.data.loader import TrainBatches
from clipling.data.pack_shard import Packing, pack_shard
from clipling.data.pairs import Location, Pairs, Row
from clipling.data.pixels import Pixels
from clipling.data.remote import Fetch
from clipling.data.source import open_pairs
from clipling.data.views import WHOLE, Augment, render
from clipling.store import atomic_produce

SIDE = 256
SIZES = (64, 112, 224)
BATCH = 128
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PEER = "webdataset_pillow"
# How clipling may be set: decoded at every step (data.decode), or from the shared cache of decoded pixels, as training does by default.
# `whole` is `fast` without JPEGs read at a fraction of their size: the peer's pixels up to rounding.
EACH_STEP = {"limit_bytes": 0}
ARMS: dict[str, dict[str, Any]] = {
    "whole": {"decode": "fast", **EACH_STEP},
    "fast": {"decode": "fast", **EACH_STEP},
    "exact": {"decode": "exact", **EACH_STEP},
    "cached": {"decode": "exact"},
}


class Whole(Pixels):
    """Pixels decoded by torchvision, never at a fraction of their size."""

    def decode(self, i: int) -> tuple[np.ndarray, float]:
        found, (width, height) = decode_fast(self.pictures.image_bytes(i), 10**9)
        return render(found, np.array(WHOLE), False, self.size), width / height


def tar_of(folder: Path, pictures: int) -> Path:
    """Flickr8k dev in 256 x 256 pixels (the shared pictures have 224), JPEG quality 90, as many as asked for."""
    path = folder / f"flickr8k-{SIDE}-{pictures}.tar"
    if not path.is_file():
        atomic_produce(path, lambda temporary: _write(temporary, pictures))
    return path


def _write(path: Path, pictures: int) -> None:
    pairs = open_pairs(str(FLICKR / "dev-00000.tar"))
    with tarfile.open(path, "w") as out:
        for i in range(pictures):
            buffer = io.BytesIO()
            pairs.image(i).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
            for name, data in ((f"{i:06d}.jpg", buffer.getvalue()), (f"{i:06d}.txt", pairs.captions_of(i)[0].encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                out.addfile(info, io.BytesIO(data))


def peer(path: Path, size: int) -> Iterator[torch.Tensor]:
    """What open_clip's loader does: webdataset, Pillow, torchvision's transforms on each picture, float [n, 3, s, s] batches."""
    seen = transforms.Compose(
        [
            transforms.Resize((size, size), transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, DEVIATION),
        ]
    )
    pipeline = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False).decode("pilrgb").to_tuple("jpg", "txt")
    for images, _ in pipeline.map_tuple(seen, lambda text: text).batched(BATCH, partial=False):
        yield images


def ours(batches: TrainBatches, steps: int, first: int) -> Iterator[torch.Tensor]:
    """Batches as the trainer gets them, normalised as the student does it: on the whole batch."""
    shape = (1, 3, batches.size, batches.size)
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
    # As models/dual.py does it: whole pictures of constants, which are vectorised where a broadcast over three channels is not.
    constants = (1 / (255 * deviation), -mean / deviation)
    scale, shift = (value.expand(shape).contiguous(memory_format=torch.channels_last) for value in constants)
    for step in range(first, first + steps):
        images = batches[step].images.float()
        yield torch.addcmul(shift, images, scale, out=images)


def batches_of(pairs: Pairs, size: int, arm: str) -> TrainBatches:
    tokens = torch.zeros((len(pairs.captions), 4), dtype=torch.int32)
    pixels = (Whole if arm == "whole" else Pixels).open(pairs, size, **ARMS[arm])
    return TrainBatches(np.arange(len(pairs)), pairs, pixels, tokens, Augment(scale=(1.0, 1.0)), size, BATCH)


def seconds(work: Callable[[], Iterator[torch.Tensor]], size: int) -> float:
    """Seconds a picture."""
    began, seen = time.perf_counter(), 0
    for images in work():
        assert images.shape[1:] == (3, size, size)
        assert images.dtype == torch.float32
        seen += len(images)
    return (time.perf_counter() - began) / seen


def agreement(path: Path, pairs: Pairs, size: int) -> dict[str, float]:
    """Mean difference from the peer's pixels, in levels of 255: both must make the same tensors, up to rounding."""
    expected = next(peer(path, size))
    found = {}
    for arm in ARMS:
        batches = batches_of(pairs, size, arm)
        host = batches[0]
        rows = [i for i, pair in enumerate(host.pair) if pair < len(expected)]
        mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
        theirs = (expected[host.pair[rows]] * deviation + mean) * 255
        found[arm] = float((theirs - host.images[rows].float()).abs().mean())
    return found


def memory(folder: Path, pairs: int) -> dict[str, list[float]]:
    """Memory and seconds that opening a packed source of so many pairs takes (captions of 14 words), a process of its own."""
    source = folder / f"packed-{pairs}"
    picture = folder / "small.jpg"
    if not picture.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(picture)
    packing = Packing(None, 90, Fetch(), 1)
    for start in range(0, pairs, 5000):
        caption = "a photo of thing number {} in a place with {} other things all around it"
        rows = [Row(f"pair{i:09d}", [caption.format(i, i % 97)], Location(str(picture))) for i in range(start, start + 5000)]
        pack_shard(source / f"{start // 5000:05d}.tar", rows, start, "", packing)
    with tempfile.TemporaryDirectory() as cache:  # an index that was kept would make the opening another one
        call = subprocess.run(
            [sys.executable, __file__, "--open", str(source)], capture_output=True, check=True, env={**os.environ, "CLIPLING_CACHE": cache}
        )
    found = json.loads(call.stdout)
    assert found["pairs"] == pairs
    return {"bytes_per_pair": [found["bytes"] / pairs], "open_s": [found["seconds"]], "pairs": [pairs]}


def opened(source: str) -> None:
    """What one opening costs, as JSON."""
    process = psutil.Process()
    before, began = process.memory_info().rss, time.perf_counter()
    pairs = open_pairs(source)
    spent = time.perf_counter() - began
    print(json.dumps({"bytes": process.memory_info().rss - before, "seconds": spent, "pairs": len(pairs)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--small", action="store_true", help="a minute, to see that it works; nothing is written")
    parser.add_argument("--open", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.open:
        opened(given.open)
        return
    rounds, pictures = (2, 256) if given.small else (given.rounds, given.pictures)
    torch.set_num_threads(1)
    folder = Path(os.environ.get("CLIPLING_CACHE") or tempfile.gettempdir()) / "benchmark-loading"
    path = tar_of(folder, pictures)
    pairs = open_pairs(str(path))
    steps = pictures // BATCH
    result = load("loading")
    result["arms"], result["ratios"], result["difference_in_levels"] = {}, {}, {}
    for size in SIZES:
        made = {arm: batches_of(pairs, size, arm) for arm in ARMS}
        result["difference_in_levels"][str(size)] = agreement(path, pairs, size)
        times: dict[str, list[float]] = {PEER: [], **{arm: [] for arm in ARMS}}
        for number in range(rounds + 1):  # the first is not counted
            turns = {PEER: seconds(lambda size=size: peer(path, size), size)}
            for arm, batches in made.items():
                turns[arm] = seconds(lambda batches=batches, number=number: ours(batches, steps, number * steps), size)
            for arm, value in turns.items() if number else ():
                times[arm].append(value)
        for arm, values in times.items():
            name = arm if arm == PEER else f"clipling_{arm}"
            result["arms"][f"{name}_{size}"] = {"pairs_per_s": [round(1 / value, 1) for value in values]}
            if arm != PEER:
                result["ratios"][f"{arm}_{size}"] = ratio([theirs / own for theirs, own in zip(times[PEER], values)])
    # The headline is the size where the gain is smallest, decoded anew at every step: no cache, no head start.
    least = min((result["ratios"][f"fast_{size}"] for size in SIZES), key=lambda found: found["value"])
    result["ratios"]["clipling_over_webdataset_pillow"] = least
    for name, value in result["ratios"].items():
        print(f"{name}: {value['value']:.2f} ({value['low']:.2f} to {value['high']:.2f})", flush=True)
    print("difference in levels of 255:", result["difference_in_levels"])
    result["arms"]["opened_source"] = memory(folder, 10_000 if given.small else 100_000)
    print("opened source:", result["arms"]["opened_source"])
    if not given.small:
        print(save(result))


if __name__ == "__main__":
    main()
