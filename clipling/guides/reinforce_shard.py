"""One shard of a reinforced source: pictures opened, crops drawn, teachers and captioners asked, a tar written."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipling.data.images import ImageError, decode, size_and_format
from clipling.data.packing import error, packed
from clipling.data.pairs import Pairs, hash_bytes
from clipling.data.reinforced import Sample, TeacherInfo, members, texts_digest
from clipling.data.replay import Record, draw_records, replay
from clipling.data.shard_files import ShardFile, bytes_digest, shard_name, write_shard_file
from clipling.data.shards import MEMBER_IMAGES
from clipling.errors import UserError
from clipling.guides.captions import Captions, Item
from clipling.guides.reinforce_plan import Plan
from clipling.models.dual import Student
from clipling.store import atomic_produce

BATCH = 256  # crops that a teacher sees at once
SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


class Maker:
    """Makes one shard after the other."""

    def __init__(self, plan: Plan, teachers: Mapping[str, Student], captions: Captions) -> None:
        self.plan, self.pairs, self.settings = plan, plan.pairs, plan.settings
        self.teachers, self.captions = teachers, captions
        self.infos = [TeacherInfo(one["name"], one["dim"], one["scale"], one["identity"]) for one in plan.content["teachers"]]
        self.dims = [info.dim for info in self.infos]

    def write(self, out: Path, number: int) -> None:
        """Makes `out`'s shard of that number, and the file beside it."""
        rows, left_out = [], []
        for row in self.settings.rows(number, self.pairs):
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
        size, made_from = path.stat().st_size, self.plan.made_from(number)
        write_shard_file(path, ShardFile(bytes_digest(path), size, len(rows), picture_bytes, left_out, origins, errors, made_from))

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
            digests = {name: texts_digest(texts) for name, texts in {"text": row.captions, **more}.items()}
            samples.append(Sample(records[i], row.size, "", self.infos, more, embeddings, digests=digests))
        return samples

    def _records(self, rows: Sequence[_Row]) -> list[list[Record]]:
        s, sizes = self.settings, [row.size for row in rows]
        numbers = np.array([row.number for row in rows], dtype=np.int64)
        views = [draw_records(s.augment, s.operations, s.seed, view, numbers, sizes) for view in range(s.augmentations)] if rows else []
        return [list(of_one) for of_one in zip(*views, strict=True)] if rows else []

    def _images(self, rows: Sequence[_Row], records: Sequence[Sequence[Record]]) -> np.ndarray:
        """float32 [rows, K, D]: every picture is decoded once for all teachers and augmentations."""
        made = np.empty((len(rows) * self.settings.augmentations, sum(self.dims)), np.float32)
        crops = ((picture, record) for row, own in zip(rows, records, strict=True) for picture, record in row.crops(self.pairs, own))
        # Whole pictures where at least one fits into a batch, parts of one otherwise: K does not decide how many are held.
        size, start = BATCH // self.settings.augmentations * self.settings.augmentations or BATCH, 0
        while some := list(islice(crops, size)):
            made[start : start + len(some)] = self._features(some)
            start += len(some)
        return made.reshape(len(rows), self.settings.augmentations, made.shape[1])

    def _features(self, crops: Sequence[tuple[np.ndarray, Record]]) -> np.ndarray:
        """float32 [n, D] of (picture, record): each crop is rendered once for all teachers of one size."""
        rendered: dict[int, torch.Tensor] = {}
        parts = []
        for name, model in self.teachers.items():
            size = model.image_size
            if size not in rendered:
                rendered[size] = torch.from_numpy(np.stack([replay(p, r, size) for p, r in crops])).permute(0, 3, 1, 2)
            with model.evaluating():
                parts.append(_directions(name, model.encode_image(model.normalise(rendered[size])).cpu().numpy()))
        return np.concatenate(parts, axis=1)

    def _texts(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [texts, D], each teacher by its own tokenizer."""
        unique = list(dict.fromkeys(texts))
        place = {text: i for i, text in enumerate(unique)}
        features = np.concatenate([_directions(n, model.encode_texts_in_batches(unique)) for n, model in self.teachers.items()], axis=1)
        return features[[place[text] for text in texts]]

    def _errors(self, samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
        found = {}
        for name in dict.fromkeys(name for sample in samples for name in sample.embeddings):
            rows = np.concatenate([sample.embeddings[name] for sample in samples if name in sample.embeddings])
            found[name] = error(rows, packed(name, rows, self.dims, self.settings.storage), name, self.dims)
        return found


class _Row:
    """One pair whose picture opens. Raises ImageError otherwise.

    The picture is read several times, minutes apart: for its size, by captioners, by teachers, for the tar. Each raises UserError where it
    is no longer the one of `pairs`: the embeddings would be those of another picture than the one beside them.
    """

    def __init__(self, number: int, pairs: Pairs) -> None:
        self.number = number
        self.captions = pairs.captions_of(number)
        data = pairs.image_bytes(number)
        self.size = decode(data).size
        self._same(data, pairs)

    def open(self, pairs: Pairs) -> Any:
        return lambda: decode(self.data(pairs))

    def data(self, pairs: Pairs) -> bytes:
        """The encoded picture."""
        return self._same(pairs.image_bytes(self.number), pairs)

    def _same(self, data: bytes, pairs: Pairs) -> bytes:
        if hash_bytes(data) != pairs.hashes[self.number]:
            raise UserError(
                f"the picture of {pairs.keys[self.number]!r} was changed since the source was opened. Run the same command again when "
                "nobody changes pictures: what is finished stays."
            )
        return data

    def crops(self, pairs: Pairs, records: Sequence[Record]) -> Iterator[tuple[np.ndarray, Record]]:
        """The picture, decoded once, with each of its records."""
        picture = np.asarray(self.open(pairs)())
        return ((picture, record) for record in records)

    def picture(self, pairs: Pairs) -> tuple[str, bytes]:
        """Suffix and bytes for a tar: the picture's own where tars know its format, otherwise the same pixels as a PNG."""
        data = self.data(pairs)
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


def _directions(teacher: str, rows: np.ndarray) -> np.ndarray:
    """The rows [n, d]. Raises UserError when one is no direction: stored as int8 it would look like one."""
    if not (np.isfinite(rows).all() and rows.any(axis=1).all()):
        raise UserError(
            f"the teacher {teacher!r} makes embeddings that are not finite, or zeros: its weights are damaged. Ask another one."
        )
    return rows


def member_key(key: str) -> str:
    """A key as the name of members: the part up to the first dot is what readers of tars take for the key."""
    return key.replace("%", "%25").replace(".", "%2E")


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # no owner and no time: the same pairs make the same bytes
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
