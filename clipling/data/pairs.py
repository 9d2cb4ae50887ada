"""Pairs: images with one or more captions each, under stable keys. What every reader ends in."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b

import numpy as np
from PIL import Image

from clipling.data import images
from clipling.data.problems import Problems
from clipling.errors import UserError


@dataclass(frozen=True, slots=True)
class Location:
    """Where an image's bytes are: a whole file (`size` -1), or `size` bytes from `offset` on (a member of a tar)."""

    path: str
    offset: int = 0
    size: int = -1

    def read(self) -> bytes:
        """The bytes. Raises OSError, also when the file has become shorter than the location says."""
        with open(self.path, "rb") as file:
            if self.size < 0:
                return file.read()
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) != self.size:
            raise OSError(f"{self.path} ends before byte {self.offset + self.size}")
        return data


@dataclass(slots=True)
class Row:
    """What a reader found for one image, before the image was looked at."""

    key: str
    captions: list[str]
    location: Location
    group: str = ""
    extras: dict = field(default_factory=dict)
    part: int = 0
    """Which of the parts of a spec, joined by `::`, it came from."""


@dataclass
class Pairs:
    """P images and their T captions.

    Attributes:
        name: the source as the user wrote it.
        keys: [P] unique and stable.
        captions: [T]; those of pair i are `captions[offsets[i]:offsets[i + 1]]`.
        offsets: int64 [P + 1].
        locations: [P].
        hashes: [P] hexadecimal blake2b of 128 bits of the image bytes.
        groups: [P] what belongs together, such as a product; "" for none.
        extras: [P] everything else a source says of a pair (`split`, `lang`, ...).
        problems: the rows that were left out.
        unpaired: whether `captions` belong to no image (see photos.py). No pair has caption rows of its own then: all
            offsets are 0, and training draws from all captions for every image.
        parts: [P] the number of the part of the spec (joined by `::`) that each came from.
    """

    name: str
    keys: list[str]
    captions: list[str]
    offsets: np.ndarray
    locations: list[Location]
    hashes: list[str]
    groups: list[str]
    extras: list[dict]
    problems: Problems = field(default_factory=Problems)
    unpaired: bool = False
    parts: list[int] = field(default_factory=list)

    @classmethod
    def from_rows(cls, name: str, rows: Sequence[Row], hashes: Sequence[str], problems: Problems | None = None) -> Pairs:
        """Pairs of rows whose keys are unique; `hashes` [P] of their image bytes."""
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row.captions) for row in rows], out=offsets[1:])
        return cls(
            name=name,
            keys=[row.key for row in rows],
            captions=[caption for row in rows for caption in row.captions],
            offsets=offsets,
            locations=[row.location for row in rows],
            hashes=list(hashes),
            groups=[row.group for row in rows],
            extras=[row.extras for row in rows],
            parts=[row.part for row in rows],
            problems=problems if problems is not None else Problems(name),
        )

    def __len__(self) -> int:
        return len(self.keys)

    def caption_rows(self, i: int) -> range:
        """The caption numbers (into `captions`) of pair i."""
        return range(int(self.offsets[i]), int(self.offsets[i + 1]))

    def captions_of(self, i: int) -> list[str]:
        return self.captions[int(self.offsets[i]) : int(self.offsets[i + 1])]

    def image_bytes(self, i: int) -> bytes:
        """The encoded image. Raises UserError when the file has gone since it was indexed."""
        return read_image(self.locations[i], self.keys[i])

    def image(self, i: int) -> Image.Image:
        """The upright RGB picture. Raises UserError or ImageError."""
        return images.decode(self.image_bytes(i))

    def row(self, i: int) -> Row:
        """Pair i as a reader would give it."""
        return Row(self.keys[i], self.captions_of(i), self.locations[i], self.groups[i], self.extras[i], self.parts[i] if self.parts else 0)

    def subset(self, rows: Iterable[int]) -> Pairs:
        """The pairs of the given numbers, in that order; captions that belong to no image stay, all of them."""
        rows = [int(i) for i in rows]
        chosen = Pairs.from_rows(self.name, [self.row(i) for i in rows], [self.hashes[i] for i in rows], self.problems)
        if self.unpaired:
            chosen.captions, chosen.unpaired = self.captions, True
        return chosen

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal blake2b of 128 bits of keys, image hashes, captions and groups, in order."""
        total = blake2b(digest_size=16)
        for i in range(len(self)):
            for text in (self.keys[i], self.hashes[i], self.groups[i], *self.captions_of(i)):
                data = text.encode("utf-8", "surrogatepass")
                total.update(len(data).to_bytes(8, "little") + data)
            total.update(b"\xff" * 8)
        for text in self.captions if self.unpaired else ():
            data = text.encode("utf-8", "surrogatepass")
            total.update(len(data).to_bytes(8, "little") + data)
        return total.hexdigest()

    def links(self) -> list[list[int]]:
        """For each pair the ids of the classes of "same" pairs that it is in; two pairs with a common id are the same.

        A class is all pairs with one normalised caption, one image hash, or one group; classes of one pair are left
        out. Pairs of a class are never negatives of each other and never neighbours.
        """
        return self._links

    @cached_property
    def _links(self) -> list[list[int]]:
        members: dict[tuple[str, str], list[int]] = {}
        for i in range(len(self)):
            classes = {("caption", normalise_caption(caption)): None for caption in self.captions_of(i)}
            classes |= {("hash", self.hashes[i]): None} if self.hashes[i] else {}
            classes |= {("group", self.groups[i]): None} if self.groups[i] else {}
            for name in classes:
                members.setdefault(name, []).append(i)
        found: list[list[int]] = [[] for _ in range(len(self))]
        for number, same in enumerate(same for same in members.values() if len(same) > 1):
            for i in same:
                found[i].append(number)
        return found


def read_image(location: Location, key: str) -> bytes:
    """The bytes at `location`. Raises UserError when they have gone since they were indexed."""
    try:
        return location.read()
    except (OSError, ValueError) as error:
        raise UserError(
            f"the image of {key!r} can no longer be read ({error}). Put it back, or run again after removing its row."
        ) from error


def hash_bytes(data: bytes) -> str:
    """Hexadecimal blake2b of 128 bits: the hash of image bytes used all over."""
    return blake2b(data, digest_size=16).hexdigest()


def clean_caption(text: str) -> str:
    """The caption as it is kept: without blanks around it, and encodable as UTF-8 (lone surrogates become `?`)."""
    return text.strip().encode("utf-8", "replace").decode("utf-8")


_BLANKS = re.compile(r"\s+")


def normalise_caption(text: str) -> str:
    """What makes two captions the same: case, compatibility forms, blanks and punctuation at the end do not count."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    text = _BLANKS.sub(" ", text).strip()
    end = len(text)
    while end and (text[end - 1] == " " or unicodedata.category(text[end - 1]).startswith("P")):
        end -= 1
    return text[:end] or text  # "!!!" and "???" stay different captions
