"""Building a bank: features of all pictures and captions of a source by frozen encoders, kept in a folder.

    manifest.json      encoders, preprocessing, licences, digest of the pairs; written last: its presence is "finished"
    pairs.parquet      key, image hash, caption hash, number of captions of every pair
    image-00000.npy    fp16 unit rows [at most 65,536, d_I], then text-..., and views-... where crops were asked for
    valid.npy          bool [P]
    building/          while it is being built: one file for every block of rows

Work is cut into blocks. A block's features depend on nothing but its own rows, so a build that was killed and continued,
or shared by several processes, ends in the same bytes as one that was not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clipling.data.pairs import Pairs
from clipling.data.views import Augment
from clipling.errors import UserError
from clipling.guides.encoders import ImageEncoder, TextEncoder, device_text, open_image_encoder, open_text_encoder
from clipling.guides.features import Block, Features
from clipling.guides.known import Known
from clipling.guides.progress import Progress, silent
from clipling.guides.rows import reading, save_array, write_parts
from clipling.guides.stored import (
    FORMAT,
    MANIFEST,
    PAIRS_FILE,
    VALID_FILE,
    Bank,
    BankRows,
    captions_digest,
    read_manifest,
    shard_name,
    write_pairs_file,
)
from clipling.processes import Watch
from clipling.store import alone, atomic_produce, cache_dir, write_json

__all__ = ["Bank", "BankRows", "bank_for", "build_bank"]

SHARD_ROWS = 65_536
TEXT_BLOCKS = 16  # a block of captions is this many times a block of pictures


def bank_for(
    pairs: Pairs,
    image_encoder: str = "efficientnet_lite0",
    text_encoder: str = "all-MiniLM-L6-v2",
    image_size: int | None = None,
    views: int = 0,
    augment: Augment | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    rank: int = 0,
    world: int = 1,
) -> Path:
    """The folder of the bank of these pairs in the cache, built when absent. Arguments as for `build_bank`."""
    augmentation = dataclasses.asdict(augment) if augment and views else None
    names = [_with_content(image_encoder), text_encoder, image_size]
    settings = [FORMAT, pairs.fingerprint, *names, views, augmentation, seed if views else 0]
    digest = hashlib.blake2b(json.dumps(settings).encode(), digest_size=12).hexdigest()
    folder = cache_dir() / "banks" / digest
    if not (folder / MANIFEST).is_file():
        build_bank(
            pairs,
            folder,
            image_encoder=image_encoder,
            text_encoder=text_encoder,
            image_size=image_size,
            views=views,
            augment=augment,
            seed=seed,
            progress=progress,
            rank=rank,
            world=world,
        )
    return folder


def build_bank(
    pairs: Pairs,
    out: Path | str,
    *,
    image_encoder: str | ImageEncoder = "efficientnet_lite0",
    text_encoder: str | TextEncoder = "all-MiniLM-L6-v2",
    image_size: int | None = None,
    views: int = 0,
    augment: Augment | None = None,
    seed: int = 0,
    block: int = 256,
    update: Path | str | None = None,
    progress: Progress | None = None,
    rank: int = 0,
    world: int = 1,
) -> Bank:
    """Builds the bank of `pairs` in the folder `out`, or continues it, or opens it when it is finished.

    image_size: pixels at which the image encoder sees pictures (None: its own size).
    views: crops of every picture whose features are kept too, those that `crops_of_view(augment, seed, 0 ... views - 1)`
        gives for pair numbers of `pairs`: what the student sees when `augment.views == views`.
    update: an older bank of the same encoders: pairs that it has, unchanged, keep their features bit for bit, and are not encoded again.
    block: pictures in one file while building; what is lost at most when the build is killed.
    rank, world: this process's share when several build one bank; they wait for each other by a `processes.Watch`.
    Pictures that cannot be decoded get rows of zeros and `valid` False.
    Raises UserError when the folder holds something else, or a bank of other pairs or settings, and when another process is lost.
    """
    if isinstance(image_encoder, str):
        image_encoder = open_image_encoder(image_encoder, image_size)
    elif image_size not in (None, image_encoder.preprocess["size"]):
        raise ValueError(f"image_size={image_size}, but the encoder that was given sees {image_encoder.preprocess['size']} pixels")
    if isinstance(text_encoder, str):
        text_encoder = open_text_encoder(text_encoder)
    if (views > 0) != (augment is not None):
        raise ValueError("views and augment go together: crops of which augmentation, and how many")
    if not len(pairs) or not len(pairs.captions):
        raise UserError(f"{pairs.name} has {len(pairs)} pictures and {len(pairs.captions)} captions; a bank needs some of both")
    if update is not None and views:
        raise UserError("a bank with crops cannot be brought up to date: build it anew")
    described = {"image": _described_image(image_encoder), "text": _described(text_encoder)}
    known = None if update is None else Known.of(Bank.open(update), pairs, described)
    features = Features(pairs, image_encoder, text_encoder, views, augment, seed, known)
    return _Build(features, Path(out), block, progress or silent).run(rank, world)


@dataclasses.dataclass
class _Build:
    features: Features
    out: Path
    block: int
    progress: Progress

    def run(self, rank: int, world: int) -> Bank:
        plan = self.plan()
        # Of another launch that builds the same bank, as two trainings on one cache do, the end is waited for.
        with alone(self.out, "building the bank", wait=True) if rank == 0 else contextlib.nullcontext():
            if self._claim(plan):
                with Watch(self.parts, rank, world, "a bank") as watch:
                    self._together(plan, watch)
        return Bank.open(self.out)

    def _together(self, plan: dict[str, Any], watch: Watch) -> None:
        """Makes this process's blocks; the first process waits for all of them and joins them, the others wait for it."""
        blocks, finished = self.blocks(), (self.out / MANIFEST).is_file
        self._encode([b for number, b in enumerate(blocks) if number % watch.world == watch.rank])
        if watch.rank > 0:
            watch.until(finished)
            return
        # a second run that builds the same bank may be quicker, and removes the blocks
        watch.until(lambda: finished() or all(self._done(b) for b in blocks))
        if not finished():
            self._finish(plan, blocks)

    @property
    def pairs(self) -> Pairs:
        return self.features.pairs

    def plan(self) -> dict[str, Any]:
        """Everything that decides the bytes of the bank."""
        of, pairs = self.features, self.pairs
        augment = dataclasses.asdict(of.augment) if of.augment else None
        return {
            "format": FORMAT,
            "pairs": len(pairs),
            "captions": len(pairs.captions),
            "pairs_fingerprint": pairs.fingerprint,
            "image": _described_image(of.image),
            "text": _described(of.text),
            "views": {"count": of.views, "seed": of.seed, "augment": augment} if of.views else None,
            "block": self.block,
            "update": of.known.bank.manifest["pairs_fingerprint"] if of.known else None,
            "licences": {of.image.name: of.image.licence, of.text.name: of.text.licence},
        }

    @property
    def parts(self) -> Path:
        return self.out / "building"

    def _claim(self, plan: dict[str, Any]) -> bool:
        """Whether there is work left in `out`; UserError when it is not ours to work in."""
        finished = (self.out / MANIFEST).is_file()
        started = self.parts / "plan.json"
        found = read_manifest(self.out / MANIFEST) if finished else self._plan_of(started) if started.is_file() else None
        if found is None:
            if self.out.is_dir() and any(p.name != self.parts.name for p in self.out.iterdir()):
                raise UserError(f"{self.out} exists and is not a bank. Choose another folder, or empty this one.")
            write_json(started, plan)
            return True
        plan = json.loads(json.dumps(plan))
        other = [key for key in plan if found.get(key) != plan[key]]
        if other:
            raise UserError(
                f"{self.out} holds a {'finished' if finished else 'half-built'} bank with another {', '.join(other)}. "
                "Choose another folder, or remove this one."
            )
        if finished:
            shutil.rmtree(self.parts, ignore_errors=True)
        return not finished

    def _plan_of(self, path: Path) -> dict[str, Any]:
        with reading(path):
            return dict(json.loads(path.read_text(encoding="utf-8")))

    def blocks(self) -> list[Block]:
        """All the work, in a fixed order."""
        pairs, captions, views = len(self.pairs), len(self.pairs.captions), self.features.views
        sizes = {"image": (pairs, self.block), "text": (captions, self.block * TEXT_BLOCKS)}
        if views:
            sizes["views"] = (pairs, max(1, self.block // views))
        return [Block(kind, at, min(total, at + step)) for kind, (total, step) in sizes.items() for at in range(0, total, step)]

    def _done(self, block: Block) -> bool:
        return (self.parts / block.file).is_file()

    def _encode(self, blocks: Sequence[Block]) -> None:
        for kind in ("image", "views", "text"):
            mine = [b for b in blocks if b.kind == kind]
            todo = [b for b in mine if not self._done(b)]
            total = sum(b.stop - b.start for b in mine)
            done = total - sum(b.stop - b.start for b in todo)
            if mine:
                self.progress(self._what(kind), done, total)
            for block, rows in self.features.of(kind, todo):
                save_array(self.parts / block.file, rows)
                done += block.stop - block.start
                self.progress(self._what(kind), done, total)

    def _what(self, kind: str) -> str:
        image, text = self.features.image, self.features.text
        if kind == "text":
            return f"captions ({text.name} on {device_text(text.device)})"
        pictures = f"pictures, {self.features.views} crops of each" if kind == "views" else "pictures"
        return f"{pictures} ({image.name} at {image.preprocess['size']} px on {device_text(image.device)})"

    def _finish(self, plan: dict[str, Any], blocks: Sequence[Block]) -> None:
        """Joins the blocks into shards, then writes the manifest; each step is whole or absent, and may be done again."""
        shards = {kind: self._merge(kind, [b for b in blocks if b.kind == kind]) for kind in ("image", "text", "views")}
        pairs = self.pairs
        digests = [captions_digest(pairs.captions_of(i)) for i in range(len(pairs))]
        write_pairs_file(self.out / PAIRS_FILE, pairs.keys, pairs.hashes, digests, np.diff(pairs.offsets))
        valid = self._valid(shards)
        save_array(self.out / VALID_FILE, valid)
        for left in self.out.glob(".*.tmp"):  # of a process that was killed while it wrote
            left.unlink(missing_ok=True)
        failed = np.flatnonzero(~valid)
        invalid = {"count": len(failed), "first": [pairs.keys[i] for i in failed[:5]]}
        write_json(self.out / MANIFEST, {**plan, "source": pairs.name, "shards": shards, "invalid": invalid})
        shutil.rmtree(self.parts, ignore_errors=True)

    def _merge(self, kind: str, blocks: Sequence[Block]) -> int:
        """Writes the shards of one kind, of equally many blocks each; returns how many there are."""
        each = self.features.views if kind == "views" else 1
        dim = self.features.text.dim if kind == "text" else self.features.image.dim
        together = max(1, SHARD_ROWS // ((blocks[0].stop - blocks[0].start) * each)) if blocks else 1
        groups = [blocks[at : at + together] for at in range(0, len(blocks), together)]
        for number, group in enumerate(groups):
            path = self.out / shard_name(kind, number)
            if not path.is_file():
                shape = ((group[-1].stop - group[0].start) * each, dim)
                parts = (np.load(self.parts / b.file, allow_pickle=False) for b in group)
                atomic_produce(path, partial(write_parts, parts=parts, shape=shape, dtype=np.dtype(np.float16)))
        return len(groups)

    def _valid(self, shards: dict[str, int]) -> np.ndarray:
        """bool [P]: pairs whose picture and captions all have features."""
        files = {kind: [self.out / shard_name(kind, i) for i in range(count)] for kind, count in shards.items()}
        valid = _present(files["image"])
        missing = np.flatnonzero(~_present(files["text"]))
        valid[np.searchsorted(self.pairs.offsets, missing, side="right") - 1] = False
        return valid


def _present(files: Sequence[Path]) -> np.ndarray:
    return np.concatenate([(np.load(file, mmap_mode="r") != 0).any(axis=1) for file in files])


def _described(encoder: ImageEncoder | TextEncoder) -> dict[str, Any]:
    return {"encoder": encoder.name, "dim": encoder.dim, "weights": encoder.weights, "licence": encoder.licence}


def _described_image(encoder: ImageEncoder) -> dict[str, Any]:
    return {**_described(encoder), "preprocess": dict(encoder.preprocess)}


def _with_content(image_encoder: str) -> str:
    """The encoder's name, with a digest of the file of weights where it names one."""
    _, at, file = image_encoder.partition("@")
    if not at or not Path(file).is_file():
        return image_encoder
    with open(file, "rb") as content:
        return f"{image_encoder} {hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).hexdigest()}"
