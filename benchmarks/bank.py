"""What does building a bank cost beyond the bare forward pass of its encoders?

    python benchmarks/bank.py                  Flickr8k train, both sides of the encoders at once (about 20 minutes on two cores)
    python benchmarks/bank.py --small          300 pictures, printed and not kept

`bank_over_bare_forward`: seconds of the image and the text encoder over the very same batches (pictures decoded and resized, captions in
their blocks, both in memory before the clock starts) over seconds of `build_bank`, which decodes, resizes, encodes, checks and saves. Both
in one process with the same threads of torch, a part of the source at a time, in turn. `image side` and `text side` say where the rest is.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import FLICKR, load, ratio, save

TRAIN = str(FLICKR / "train-{00000..00005}.tar")
SIZE, BLOCK, PART = 160, 256, 768  # pixels, as in ping_gain; pictures in a file; pictures in one turn


def forward_seconds(pairs: Any, image: Any, text: Any) -> dict[str, float]:
    """Of the encoders alone, on the batches that a bank asks them for."""
    import torch

    from clipling.data.views import eval_pixels
    from clipling.guides.bank import TEXT_BLOCKS
    from clipling.guides.features import BATCH

    pixels = np.stack([eval_pixels(pairs.image(i), image.preprocess) for i in range(len(pairs))])
    stack = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    began = time.perf_counter()
    for start in range(0, len(stack), BLOCK):
        block = stack[start : start + BLOCK]
        for at in range(0, len(block), BATCH):
            image.encode(block[at : at + BATCH])
    middle = time.perf_counter()
    step = BLOCK * TEXT_BLOCKS
    for start in range(0, len(pairs.captions), step):
        text.encode(pairs.captions[start : start + step])
    return {"image": middle - began, "text": time.perf_counter() - middle}


def bank_seconds(pairs: Any, image: Any, text: Any) -> dict[str, float]:
    """Of `build_bank`, and of its sides by what it tells its progress."""
    from clipling.guides.bank import build_bank

    spent, last = {"image": 0.0, "text": 0.0}, [time.perf_counter()]

    def progress(what: str, done: int, total: int) -> None:
        now = time.perf_counter()
        spent["text" if what.startswith("captions") else "image"] += now - last[0]
        last[0] = now

    with tempfile.TemporaryDirectory() as folder:
        began = last[0] = time.perf_counter()
        build_bank(pairs, Path(folder) / "bank", image_encoder=image, text_encoder=text, block=BLOCK, progress=progress)
        return {**spent, "all": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--again", action="store_true", help="measure again what is in the result file")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    import torch

    from clipling.data.source import open_pairs
    from clipling.guides.encoders import open_image_encoder, open_text_encoder

    torch.set_num_threads(given.threads)
    pairs = open_pairs(TRAIN)
    image, text = open_image_encoder("efficientnet_lite0", SIZE), open_text_encoder("all-MiniLM-L6-v2")
    result = {"benchmark": "bank", "arms": {}, "ratios": {}} if given.again or given.small else load("bank")
    turns = result.setdefault("turns", [])
    part, last = (150, 300) if given.small else (PART, len(pairs) - len(pairs) % PART)
    forward_seconds(pairs.subset(range(64)), image, text)  # warm
    for start in range(len(turns) * part, last, part):  # resumable by turn
        some = pairs.subset(range(start, start + part))
        calls = [("forward", forward_seconds), ("bank", bank_seconds)]
        made = {name: call(some, image, text) for name, call in (calls if len(turns) % 2 else calls[::-1])}
        turns.append({**made, "pictures": len(some), "captions": len(some.captions), "threads": given.threads})
        sides = {side: ratio([t["forward"][side] / t["bank"][side] for t in turns]) for side in ("image", "text")}
        whole = ratio([(t["forward"]["image"] + t["forward"]["text"]) / t["bank"]["all"] for t in turns])
        result["ratios"] = {"bank_over_bare_forward": whole, **{f"{side} side": value for side, value in sides.items()}}
        seconds = {"forward": [t["forward"]["image"] + t["forward"]["text"] for t in turns], "bank": [t["bank"]["all"] for t in turns]}
        result["arms"] = {name: {"seconds": [round(s, 2) for s in column]} for name, column in seconds.items()}
        print(turns[-1], {key: round(value["value"], 3) for key, value in result["ratios"].items()}, flush=True)
        if not given.small:
            save(result)


if __name__ == "__main__":
    main()
