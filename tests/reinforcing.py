"""A small reinforced source: pictures of differing shapes, two untrained teachers of differing sizes, synthetic captions by rules."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from clipling.data.pairs import Pairs
from clipling.data.source import open_pairs
from clipling.data.views import Augment
from clipling.guides.captions import Captions, captioner
from clipling.guides.reinforce import Settings, reinforce
from clipling.models.dual import Student
from clipling.models.hub import new_student
from tests.teaching import teacher_config

WORDS = ("dog", "child", "man in a hat", "boat", "red car", "crowd")
PLACES = ("in the snow", "on the beach", "near the lake", "on a street")


def pictures(folder: Path, count: int = 24, seed: int = 0) -> Path:
    """PNGs and a JPEG of differing sizes, one to three captions each, in English a rewriter knows."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        small.resize((60 + 7 * (i % 4), 50 + 5 * (i % 3))).save(folder / (f"{i:03d}.jpg" if i % 2 else f"{i:03d}.png"))
        word, place = WORDS[i % len(WORDS)], PLACES[i // len(WORDS) % len(PLACES)]
        lines = [f"A {word} is running {place}, number {n} of picture {i}" for n in range(1 + i % 3)]
        (folder / f"{i:03d}.txt").write_text("\n".join(lines))
    return folder


def teachers() -> dict[str, Student]:
    return {"first": new_student(teacher_config(), seed=3).eval(), "second": new_student("tiny_vit_32", seed=1).eval()}


def settings(**changes) -> Settings:
    given = {"augmentations": 3, "shard": 10, "augment": Augment(scale=(0.2, 1.0), flip=0.5)}
    return Settings(**{**given, **changes})


def made(
    pairs: Pairs, out: Path, captions: tuple[str, ...] = ("rules", "others"), asked: dict[str, Student] | None = None, **changes
) -> dict:
    """`reinforce` of pairs with the settings above."""
    run = {name: changes.pop(name) for name in ("check", "rank", "world") if name in changes}
    models = teachers() if asked is None else asked
    return reinforce(pairs, out, models, Captions([captioner(spec) for spec in captions]), settings(**changes), **run)


def reinforced(folder: Path, count: int = 24, **changes) -> Pairs:
    """A reinforced source of `count` pairs, opened."""
    made(open_pairs(str(pictures(folder / "pictures", count))), folder / "out", **changes)
    return open_pairs(str(folder / "out"))


def repacked(
    source: Path, target: Path, change: Callable[[str, bytes], tuple[str, bytes] | None] = lambda name, data: (name, data)
) -> Path:
    """All tars of a folder as one tar, pairs in the reverse order, their members too; `change` may change or leave out a member."""
    members: list[tuple[str, bytes]] = []
    for path in sorted(source.glob("*.tar")):
        with tarfile.open(path) as tar:
            members += [(m.name, tar.extractfile(m).read()) for m in tar]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in reversed(members):
            found = change(name, data)
            if found is not None:
                info = tarfile.TarInfo(found[0])
                info.size, info.mtime = len(found[1]), 1234567
                tar.addfile(info, io.BytesIO(found[1]))
    return target


def in_json(data: bytes, **changes) -> bytes:
    return json.dumps({**json.loads(data), **changes}).encode()
