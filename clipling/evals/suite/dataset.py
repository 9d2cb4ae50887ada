"""A dataset of a suite: pairs or labelled pictures, and what a user says beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np

from clipling.data.classes import LabelledImages
from clipling.data.pairs import Pairs, hash_bytes
from clipling.errors import UserError


@dataclass(frozen=True)
class Dataset:
    """What evaluators read.

    spec: the source as the user wrote it, from which it can be opened again.
    language: of captions or class names, as in CLIP_benchmark's files.
    descriptions: visual descriptions by class name, for labelled pictures.
    groups: [P] the group (background, camera, ...) of every picture, "" for none.
    outside: datasets whose pictures are not of this distribution, for out-of-distribution detection.
    queries: a file of own queries (see suite/queries.py).
    family: what datasets share that are one in several languages; "" for none.
    """

    name: str
    source: Pairs | LabelledImages
    spec: str = ""
    language: str = "en"
    descriptions: Mapping[str, Sequence[str]] | None = None
    groups: Sequence[str] | None = None
    outside: tuple[Dataset, ...] = field(default=())
    queries: Path | None = None
    family: str = ""

    def __post_init__(self) -> None:
        if not len(self.source):
            raise UserError(f"{self.name} holds no pictures, so there is nothing to measure on")

    @property
    def kind(self) -> str:
        """`pairs` or `labelled`."""
        return "labelled" if isinstance(self.source, LabelledImages) else "pairs"

    @property
    def labelled(self) -> LabelledImages:
        assert isinstance(self.source, LabelledImages), f"{self.name} has no classes"
        return self.source

    @property
    def pairs(self) -> Pairs:
        assert isinstance(self.source, Pairs), f"{self.name} has no captions"
        return self.source

    def __len__(self) -> int:
        return len(self.source)

    @cached_property
    def hashes(self) -> list[str]:
        """[P] of the image bytes."""
        return list(self.source.hashes) or [hash_bytes(self.source.image_bytes(i)) for i in range(len(self.source))]

    def sample(self, most: int | None) -> np.ndarray:
        """int64 [n] rows in rising order: at most `most` pictures, chosen by a hash of their keys; all of them without `most`.

        The choice depends on nothing but the keys, so it is the same for every model, and a larger sample holds the smaller.
        """
        if most is None or len(self) <= most:
            return np.arange(len(self), dtype=np.int64)
        order = sorted(range(len(self)), key=lambda i: blake2b(self.source.keys[i].encode("utf-8", "surrogatepass")).digest())
        return np.array(sorted(order[:most]), dtype=np.int64)
