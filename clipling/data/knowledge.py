"""Stored knowledge joined to the pairs that are trained on: which records and embeddings each has, read one row at a time.

Opening reads every shard once, to check and to note where each row lies; afterwards a step reads the rows that it needs out of the tars.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from clipling.data import draw
from clipling.data.knowledge_checks import Checks
from clipling.data.pairs import Location, Pairs, normalise_caption
from clipling.data.problems import Problems
from clipling.data.reinforced import Sample, TeacherInfo, read_sample
from clipling.data.shard_files import MANIFEST, refuse_damaged
from clipling.data.shards import MEMBER_IMAGES, members_of
from clipling.data.stored_arrays import LARGEST, FormatError
from clipling.data.stored_rows import Records, StoredRows, places_in_npz
from clipling.errors import UserError
from clipling.store import read_json

NOTHING = "no knowledge"


class Knowledge:
    """What is stored beside P pairs.

    records: of all pairs, those of pair i are record_offsets[i] ... record_offsets[i + 1].
    texts [S]: synthetic captions that were asked for, those of pair i are text_offsets[i] ... text_offsets[i + 1]; origins [S] of each.
    licences: of the teachers' weights, and named: what each teacher is called, where the generator's manifest still lies beside the tars;
    unlicensed: whether somewhere it does not.
    """

    def __init__(self, pairs: Pairs, teachers: Sequence[TeacherInfo] = (), origins: str = ".*", changed: str = "refuse") -> None:
        """Joins the pairs to what lies beside them in their tars.

        teachers: names and sizes, where the tars do not say (Apple's). origins: a regular expression that the whole origin of a synthetic
        caption has to fit. changed: what becomes of records whose picture has other bytes now: `refuse`, or `rescale` their crops to the
        picture's size. Raises UserError when a shard is damaged, or pairs have nothing stored, or pictures were changed.
        """
        self.checks = Checks(teachers, changed)
        self.records = Records()
        self.licences: dict[str, str] = {}
        self.named: dict[str, str] = {}
        self.unlicensed = False
        self.texts: list[str] = []
        self.origins: list[str] = []
        self._image, self._text, self._synthetic = StoredRows(), StoredRows(), StoredRows()
        self._pattern = _compiled(origins)
        self._join(pairs)

    @property
    def teachers(self) -> list[TeacherInfo]:
        """In the order of their columns."""
        return self.checks.teachers

    # Made once

    def _join(self, pairs: Pairs) -> None:
        by_shard: dict[str, list[int]] = {}
        for i, location in enumerate(pairs.locations):
            by_shard.setdefault(location.path, []).append(i)
        found: list[tuple[Sample, dict[str, int]] | None] = [None] * len(pairs)
        bad = Problems(pairs.name)
        for folder in dict.fromkeys(Path(path).parent for path in by_shard):
            self._note_licences(folder)
        for path, rows in by_shard.items():
            self._read_shard(Path(path), rows, pairs, found, bad)
        if len(bad):
            why = f"usable knowledge beside them: {bad.summary()}" if set(bad.counts()) != {NOTHING} else "stored knowledge beside them"
            raise UserError(
                f"{len(bad)} of {len(pairs)} pairs of {pairs.name} have no {why}. The first:\n"
                f"{bad.first()}\nMake a source that has it with `clipling reinforce SOURCE --teacher MODEL --out NEW`, or train a recipe "
                "without `reinforced`."
            )
        self._fill(pairs, found)  # type: ignore[arg-type]

    def _read_shard(self, path: Path, rows: list[int], pairs: Pairs, found: list, bad: Problems) -> None:
        if path.suffix != ".tar":
            for i in rows:
                bad.add("no tar", pairs.keys[i], f"its picture is in {path.name}, not in a tar with embeddings")
            return
        refuse_damaged(path)
        samples = {members[kind].offset: members for members in members_of(path) for kind in members if kind in MEMBER_IMAGES}
        with open(path, "rb") as file:
            for i in rows:
                members = samples.get(pairs.locations[i].offset, {})
                try:
                    content = {kind: _read(file, kind, members[kind]) for kind in _KNOWLEDGE if kind in members}
                    sample = read_sample(content, len(pairs.captions_of(i)), self.teachers)
                    self.checks.check(sample, pairs, i)
                except FormatError as error:
                    bad.add(error.kind if "paug.json" in members else NOTHING, pairs.keys[i], str(error))
                    continue
                places = places_in_npz(sample, content["npz"], members["npz"].offset) if "npz" in members else {}
                for name in places:  # from now on its shape will do
                    rows = sample.embeddings[name]
                    sample.embeddings[name] = np.broadcast_to(np.zeros((), rows.dtype), rows.shape)
                found[i] = (sample, places)

    def _fill(self, pairs: Pairs, found: Sequence[tuple[Sample, dict[str, int]]]) -> None:
        records, texts, boxes = [0], [0], []
        for i, (sample, places) in enumerate(found):
            size, path = sample.size, pairs.locations[i].path
            self.records.extend(sample.records)
            records.append(len(self.records))
            boxes += [record.unit_box(*size) for record in sample.records]  # type: ignore[misc] - every picture was looked at
            origins = [origin for origin in sample.synthetic if self._pattern.fullmatch(origin)]
            for rows, name in ((self._image, "image"), (self._text, "text"), *((self._synthetic, origin) for origin in origins)):
                rows.add(sample.embeddings[name], path, places.get(name), sample.scales.get(name))
            for origin in origins:
                self.texts += sample.synthetic[origin]
                self.origins += [origin] * len(sample.synthetic[origin])
            texts.append(len(self.texts))
        for rows in (self._image, self._text, self._synthetic):
            rows.dims = [teacher.dim for teacher in self.teachers]
        self.record_offsets, self.text_offsets = np.array(records, np.int64), np.array(texts, np.int64)
        self.boxes = np.array(boxes, np.float64)  # in unit coordinates
        self.flips = np.array([record.flip for record in self.records], bool)

    # Asked at every step

    def draw(self, seed: int, epoch: int, pairs: np.ndarray) -> np.ndarray:
        """The augmentation of each of `pairs` in an epoch, int64 [n], numbers into `records`."""
        count = self.record_offsets[pairs + 1] - self.record_offsets[pairs]
        return self.record_offsets[pairs] + draw.integers(seed, epoch, pairs, "stored augmentation", count)

    def draw_texts(self, seed: int, epoch: int, pairs: np.ndarray) -> np.ndarray:
        """The synthetic caption of each of `pairs` in an epoch, int64 [n], numbers into `texts`; -1 where it has none."""
        count = self.text_offsets[pairs + 1] - self.text_offsets[pairs]
        drawn = self.text_offsets[pairs] + draw.integers(seed, epoch, pairs, "synthetic caption", np.maximum(count, 1))
        return np.where(count > 0, drawn, -1)

    def image(self, records: np.ndarray) -> np.ndarray:
        """float32 [n, D] of records, each teacher's part a unit row."""
        return self._image[records]

    def text(self, captions: np.ndarray) -> np.ndarray:
        """float32 [n, D] of caption rows of the pairs."""
        return self._text[captions]

    def synthetic(self, texts: np.ndarray) -> np.ndarray:
        """float32 [n, D] of numbers into `texts`."""
        return self._synthetic[texts]

    def links(self, pairs: Pairs) -> list[list[int]]:
        """`pairs.links()`, and pairs of which a synthetic caption is a caption of the other: they are no negatives either."""
        made = [list(own) for own in pairs.links()]
        members: dict[str, dict[int, None]] = {}
        for i in range(len(pairs)):
            own = [*pairs.captions_of(i), *self.texts[self.text_offsets[i] : self.text_offsets[i + 1]]]
            for caption in own:
                members.setdefault(normalise_caption(caption), {})[i] = None
        first = 1 + max((n for own in made for n in own), default=-1)
        for number, same in enumerate(same for same in members.values() if len(same) > 1):
            for i in same:
                made[i].append(first + number)
        return made

    def _note_licences(self, folder: Path) -> None:
        """What the generator wrote of the teachers' licences and names, if these tars still lie beside it."""
        said = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
        licences, named = ((said.get(key) if isinstance(said, dict) else None) for key in ("licences", "named"))
        self.licences |= {str(name): str(text) for name, text in licences.items()} if isinstance(licences, dict) else {}
        self.named |= {str(name): str(text) for name, text in named.items()} if isinstance(named, dict) else {}
        self.unlicensed |= not licences

    def describe(self) -> dict:
        """For `knowledge.json` of a run, and its card."""
        counts = {origin: self.origins.count(origin) for origin in dict.fromkeys(self.origins)}
        about = {"pairs": len(self.record_offsets) - 1, "captions": len(self._text), "synthetic_captions": counts}
        about |= {"augmentations": len(self.records), "flips": int(self.flips.sum()), "operated": self.records.operated}
        return self.checks.describe() | about | {"licences": self.licences, "named": self.named}

    def unchecked(self) -> list[str]:
        """What could not be checked, as notes for the user."""
        return self.checks.unchecked()


_KNOWLEDGE = ("paug.json", "syn.json", "npz", "pth.gz")


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"reinforced.origins = {pattern!r} is no regular expression: {error}") from error


def _read(file: BinaryIO, kind: str, location: Location) -> bytes:
    if location.size > LARGEST:
        raise FormatError(f"{kind} has {location.size >> 20} MB; no more than {LARGEST >> 20} MB are read of a pair")
    file.seek(location.offset)
    return file.read(location.size)
