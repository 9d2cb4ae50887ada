"""Teachers asked once, their answers stored beside the pairs: `clipling reinforce` (MobileCLIP, Vasu et al., arXiv 2311.17049).

Every shard is made as a whole and appears whole: a tar under its name, then a small file beside it with its checksum. What is not there is
made by the next start of the same command, whichever process of however many; a shard that is damaged is found by its checksum and made
again alone. The same command makes the same bytes.
"""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipling.data.images import ImageError, decode, size_and_format
from clipling.data.packing import Storage, error, packed, storage_of
from clipling.data.pairs import Pairs, hash_bytes
from clipling.data.reinforced import Sample, TeacherInfo, members
from clipling.data.replay import Record, draw_records, replay
from clipling.data.shard_files import MANIFEST, ShardFile, bytes_digest, shard_name, write_shard_file
from clipling.data.shards import MEMBER_IMAGES
from clipling.data.views import Augment
from clipling.errors import UserError
from clipling.guides.captions import Captions, Item
from clipling.guides.differences import differences
from clipling.guides.progress import Progress, silent
from clipling.models.dual import Student
from clipling.store import atomic_produce, read_json, write_json

FORMAT = 1
TOLD = ("licences", "named")  # in the manifest, deciding nothing
BATCH = 256  # crops that a teacher sees at once
SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


@dataclass(frozen=True)
class Settings:
    """How knowledge is made.

    augmentations: crops of each picture. augment: their crop and flip. operations: RandAugment on each crop. storage: of embeddings.
    shard: pairs of one tar.
    """

    augmentations: int = 10
    augment: Augment = dataclasses.field(default_factory=lambda: Augment(scale=(0.08, 1.0)))
    operations: bool = True
    storage: Storage = "fp16"
    shard: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        storage_of(self.storage)
        for name, least in (("augmentations", 1), ("shard", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} {getattr(self, name)}: expected at least {least}")


def reinforce(
    pairs: Pairs,
    out: Path,
    teachers: Mapping[str, Student],
    captions: Captions,
    settings: Settings,
    *,
    licences: Mapping[str, str] | None = None,
    named: Mapping[str, str] | None = None,
    check: bool = False,
    rank: int = 0,
    world: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Makes the shards in `out` that are not there; returns what there is: shards made and found, bytes, errors of storing, captions.

    licences: of the teachers' weights, and named: what each teacher is called, for the cards of the students. check: read all shards that
    are there and make those again whose checksum is not the one that was written. rank, world: this process makes every `world`-th shard.
    Raises UserError when `out` holds something else, or was begun with other pairs, teachers or settings.
    """
    progress = progress or silent
    _begin(out, plan(pairs, teachers, captions, settings) | {"licences": dict(licences or {}), "named": dict(named or {})})
    if world == 1:  # others might be writing it just now
        _remove(out, MANIFEST)
    count = -(-len(pairs) // settings.shard)
    mine = range(rank, count, world)
    damaged = [number for number in mine if check and _is_damaged(out, number)]
    for number in damaged:
        (out / shard_name(number)).with_suffix(".json").unlink()  # it is no longer taken for done, whatever happens next
    missing = [number for number in mine if ShardFile.of(out, number) is None]
    done = sum(_size(number, pairs, settings) for number in mine if number not in missing)
    total = sum(_size(number, pairs, settings) for number in mine)
    progress("teachers' knowledge", done, total)
    maker = _Maker(pairs, teachers, captions, settings)
    for number in missing:
        _remove_leftovers(out, number)
        maker.write(out, number)
        done += _size(number, pairs, settings)
        progress("teachers' knowledge", done, total)
    found = [ShardFile.of(out, number) for number in range(count)]
    there = [file for file in found if file]
    made = {"shards": count, "shards_there": len(there), "made": len(missing), "damaged": [shard_name(number) for number in damaged]}
    return made | _summed(there)


def plan(pairs: Pairs, teachers: Mapping[str, Student], captions: Captions, settings: Settings) -> dict[str, Any]:
    """What decides every byte of the shards; it is their manifest."""
    return {
        "format": FORMAT,
        "pairs": len(pairs),
        "pairs_fingerprint": pairs.fingerprint,
        "teachers": [
            {"name": name, "dim": model.embed_dim, "scale": _scale(model), "pixels": model.image_size, "weights": _weights(model)}
            for name, model in teachers.items()
        ],
        "captions": [{"origin": one.origin, "made_by": one.made_by} for one in captions.captioners],
        "settings": json.loads(json.dumps(dataclasses.asdict(settings))),
        "torch": torch.__version__,
    }


def _begin(out: Path, now: dict[str, Any]) -> None:
    path = out / MANIFEST
    if path.is_file():
        before = read_json(path)
        changed = differences(before, now, {*before, *now} - {*TOLD})
        if changed:
            raise UserError(
                f"{out} was begun with other settings: {'; '.join(changed)}. Give the same source, teachers and flags to go on, or another "
                "--out."
            )
        return
    if out.is_dir() and any(p.name != MANIFEST and not p.name.startswith(".") for p in out.iterdir()):
        raise UserError(f"{out} is not empty and holds no {MANIFEST}: choose another --out")
    write_json(path, now)


def _is_damaged(out: Path, number: int) -> bool:
    written = ShardFile.of(out, number)
    return written is not None and bytes_digest(out / shard_name(number)) != written.checksum


def _remove_leftovers(out: Path, number: int) -> None:
    """Parts of this shard that a killed process left."""
    tar = shard_name(number)
    _remove(out, tar, tar.replace(".tar", ".json"))


def _remove(out: Path, *names: str) -> None:
    for name in names:
        for path in out.glob(f".{name}.*.tmp"):
            path.unlink(missing_ok=True)


def _size(number: int, pairs: Pairs, settings: Settings) -> int:
    return min(settings.shard, len(pairs) - number * settings.shard)


def _summed(files: Sequence[ShardFile]) -> dict[str, Any]:
    names = sorted({name for file in files for name in file.errors})
    errors = {
        name: {
            "largest": max(file.errors[name]["largest"] for file in files if name in file.errors),
            "lowest_cosine": min(file.errors[name]["lowest_cosine"] for file in files if name in file.errors),
        }
        for name in names
    }
    origins: dict[str, int] = {}
    for file in files:
        for origin, count in file.captions.items():
            origins[origin] = origins.get(origin, 0) + count
    return {
        "pairs": sum(file.pairs for file in files),
        "left_out": [row for file in files for row in file.left_out],
        "bytes": sum(file.bytes for file in files),
        "picture_bytes": sum(file.picture_bytes for file in files),
        "captions": origins,
        "errors": errors,
    }


class _Maker:
    """Makes one shard after the other."""

    def __init__(self, pairs: Pairs, teachers: Mapping[str, Student], captions: Captions, settings: Settings) -> None:
        self.pairs, self.teachers, self.captions, self.settings = pairs, teachers, captions, settings
        self.infos = [TeacherInfo(name, model.embed_dim, _scale(model)) for name, model in teachers.items()]
        self.dims = [info.dim for info in self.infos]

    def write(self, out: Path, number: int) -> None:
        first = number * self.settings.shard
        rows, left_out = [], []
        for row in range(first, first + _size(number, self.pairs, self.settings)):
            try:
                rows.append(_Row(row, self.pairs))
            except ImageError as bad:
                left_out.append([self.pairs.keys[row], str(bad)])
        samples = self._samples(rows)
        path = out / shard_name(number)
        picture_bytes = 0
        flips = self.settings.augment.flip > 0

        def produce(temporary: Path) -> None:
            nonlocal picture_bytes
            with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
                for row, sample in zip(rows, samples, strict=True):
                    suffix, data = row.picture(self.pairs)
                    picture_bytes += len(data)
                    sample.hash = hash_bytes(data)
                    parts = {suffix: data, "txt": "\n".join(row.captions).encode(), "json": row.record(self.pairs)}
                    for end, content in (parts | members(sample, self.settings.storage, flips)).items():
                        _add(tar, f"{member_key(self.pairs.keys[row.number])}.{end}", content)

        atomic_produce(path, produce)
        errors = self._errors(samples)
        origins = {one.origin: sum(len(s.synthetic.get(one.origin, ())) for s in samples) for one in self.captions.captioners}
        # Last: a tar without this file is not done.
        write_shard_file(path, ShardFile(bytes_digest(path), path.stat().st_size, len(rows), picture_bytes, left_out, origins, errors))

    def _samples(self, rows: Sequence[_Row]) -> list[Sample]:
        items = [Item(row.number, row.captions, self.pairs.extras[row.number], row.open(self.pairs)) for row in rows]
        synthetic = self.captions.of(items) if self.captions.captioners else [{} for _ in rows]
        records = self._records(rows)
        images = self._images(rows, records)
        texts = [text for row, more in zip(rows, synthetic) for text in (*row.captions, *(t for one in more.values() for t in one))]
        features = self._texts(texts)
        samples, at = [], 0
        for i, (row, more) in enumerate(zip(rows, synthetic, strict=True)):
            counts = {"text": len(row.captions), **{origin: len(found) for origin, found in more.items()}}
            embeddings = {"image": images[i]}
            for name, count in counts.items():
                embeddings[name] = features[at : at + count]
                at += count
            samples.append(Sample(records[i], row.size, "", self.infos, more, embeddings))
        return samples

    def _records(self, rows: Sequence[_Row]) -> list[list[Record]]:
        s, sizes = self.settings, [row.size for row in rows]
        numbers = np.array([row.number for row in rows], dtype=np.int64)
        views = [draw_records(s.augment, s.operations, s.seed, view, numbers, sizes) for view in range(s.augmentations)] if rows else []
        return [list(of_one) for of_one in zip(*views, strict=True)] if rows else []

    def _images(self, rows: Sequence[_Row], records: Sequence[Sequence[Record]]) -> np.ndarray:
        """float32 [rows, K, D]: every picture is decoded once for all teachers and augmentations."""
        made = np.empty((len(rows), self.settings.augmentations, sum(self.dims)), np.float32)
        together = max(1, BATCH // self.settings.augmentations)  # pictures
        for start in range(0, len(rows), together):
            some = slice(start, min(start + together, len(rows)))
            pictures = [np.asarray(row.open(self.pairs)()) for row in rows[some]]
            at = 0
            rendered: dict[int, torch.Tensor] = {}
            for model, dim in zip(self.teachers.values(), self.dims, strict=True):
                size = model.image_size
                if size not in rendered:
                    crops = [replay(p, r, size) for p, own in zip(pictures, records[some], strict=True) for r in own]
                    rendered[size] = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
                with model.evaluating():
                    features = model.encode_image(model.normalise(rendered[size])).cpu().numpy()
                made[some, :, at : at + dim] = features.reshape(len(pictures), -1, dim)
                at += dim
        return made

    def _texts(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [texts, D], each teacher by its own tokenizer."""
        unique = list(dict.fromkeys(texts))
        place = {text: i for i, text in enumerate(unique)}
        features = np.concatenate([model.encode_texts_in_batches(unique) for model in self.teachers.values()], axis=1)
        return features[[place[text] for text in texts]]

    def _errors(self, samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
        found = {}
        for name in dict.fromkeys(name for sample in samples for name in sample.embeddings):
            rows = np.concatenate([sample.embeddings[name] for sample in samples if name in sample.embeddings])
            found[name] = error(rows, packed(name, rows, self.dims, self.settings.storage), name, self.dims)
        return found


class _Row:
    """One pair whose picture opens. Raises ImageError otherwise."""

    def __init__(self, number: int, pairs: Pairs) -> None:
        self.number = number
        self.captions = pairs.captions_of(number)
        image = pairs.image(number)
        self.size = image.size

    def open(self, pairs: Pairs) -> Any:
        return lambda: pairs.image(self.number)

    def picture(self, pairs: Pairs) -> tuple[str, bytes]:
        """Suffix and bytes for a tar: the picture's own where tars know its format, otherwise the same pixels as a PNG."""
        data = pairs.image_bytes(self.number)
        suffix = SUFFIXES.get(size_and_format(data)[2] or "")
        if suffix in MEMBER_IMAGES:
            return suffix, data
        buffer = io.BytesIO()
        decode(data).save(buffer, "PNG")
        return "png", buffer.getvalue()

    def record(self, pairs: Pairs) -> bytes:
        """The `json` of a plain pair: captions, group, and everything else that the source says."""
        group = {"group": pairs.groups[self.number]} if pairs.groups[self.number] else {}
        content = {**pairs.extras[self.number], "captions": self.captions, **group, "key": pairs.keys[self.number]}
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"), default=str).encode("utf-8", "replace")


def member_key(key: str) -> str:
    """A key as the name of members: the part up to the first dot is what readers of tars take for the key."""
    return key.replace("%", "%25").replace(".", "%2E")


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # no owner and no time: the same pairs make the same bytes
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _scale(model: Student) -> float:
    return round(float(model.logit_scale.detach().exp()), 6)


def _weights(model: Student) -> str:
    total = blake2b(digest_size=16)
    for name, value in sorted(model.stock_state().items()):
        total.update(name.encode())
        total.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
