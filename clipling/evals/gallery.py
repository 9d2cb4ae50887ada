"""What the numbers look like: queries with their answers by several students, and the neighbours that guided a training."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clipling.errors import UserError
from clipling.evals.retrieval import RetrievalRanks, nearest

SHOWN = 5
EDGE = 176  # pixels of a thumbnail: twice its size on the page, for dense screens


class Thumbnails:
    """Pictures of pairs as data URIs, made once each; empty when pictures are not wanted or one cannot be read."""

    def __init__(self, pairs: Any, wanted: bool = True) -> None:
        self.pairs, self.wanted = pairs, wanted
        self.made: dict[int, str] = {}

    def __call__(self, pair: int) -> str:
        if not self.wanted:
            return ""
        if pair not in self.made:
            self.made[pair] = self._make(pair)
        return self.made[pair]

    def _make(self, pair: int) -> str:
        try:
            picture = self.pairs.image(pair)
        except (OSError, ValueError, UserError):  # the file went away or broke since the pairs were opened
            return ""
        picture.thumbnail((EDGE, EDGE))
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=82, optimize=True)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


@dataclass(frozen=True)
class Exhibit:
    """One student in a gallery: its label and colour number, its features and ranks on the pairs shown."""

    label: str
    colour: int
    image: np.ndarray  # [P, d]
    text: np.ndarray  # [T, d]
    ranks: RetrievalRanks


@dataclass
class Answers:
    """The nearest five of one student for one query."""

    label: str
    colour: int
    rank: int  # place of the first right answer, counted from 1
    items: list[dict[str, Any]] = field(default_factory=list)  # thumbnail, caption, right


@dataclass
class Example:
    """A query (a caption, or a picture), the right picture, and what each student answers."""

    kind: str
    caption: str
    thumbnail: str
    answers: list[Answers]


@dataclass
class Gallery:
    """Examples of every kind, and how common each kind is among all queries."""

    shares: list[tuple[str, float]]
    examples: list[Example]
    queries: int


def text_gallery(pairs: Any, exhibits: Sequence[Exhibit], thumbnails: Thumbnails, seed: int = 0) -> Gallery:
    """Captions as queries, the five nearest pictures as answers."""
    owner = np.repeat(np.arange(len(pairs)), np.diff(np.asarray(pairs.offsets)))
    shares, chosen = _choose(exhibits, "t2i", owner, seed)
    examples = []
    for kind, row in chosen:
        answers = []
        for shown in exhibits:
            ids, _ = nearest(shown.text[row : row + 1], shown.image, SHOWN)
            right = shown.ranks.image_unit[ids[0]] == shown.ranks.text_unit[row]
            items = [{"thumbnail": thumbnails(int(i)), "caption": _first(pairs, int(i)), "right": bool(r)} for i, r in zip(ids[0], right)]
            answers.append(Answers(shown.label, shown.colour, _rank(shown.ranks.t2i.expected()[row]), items))
        pair = int(owner[row])
        examples.append(Example(kind, pairs.captions[row], thumbnails(pair), answers))
    return Gallery(shares, examples, len(owner))


def image_gallery(pairs: Any, exhibits: Sequence[Exhibit], thumbnails: Thumbnails, seed: int = 0) -> Gallery:
    """Pictures as queries, the five nearest captions as answers."""
    shares, chosen = _choose(exhibits, "i2t", np.arange(len(pairs)), seed)
    examples = []
    for kind, pair in chosen:
        answers = []
        for shown in exhibits:
            ids, _ = nearest(shown.image[pair : pair + 1], shown.text, SHOWN)
            right = shown.ranks.text_unit[ids[0]] == shown.ranks.image_unit[pair]
            items = [{"caption": pairs.captions[int(i)], "right": bool(r)} for i, r in zip(ids[0], right)]
            answers.append(Answers(shown.label, shown.colour, _rank(shown.ranks.i2t.expected()[pair]), items))
        examples.append(Example(kind, _first(pairs, pair), thumbnails(pair), answers))
    return Gallery(shares, examples, int((exhibits[0].ranks.i2t.own > 0).sum()))


def _choose(
    exhibits: Sequence[Exhibit], direction: str, owner: np.ndarray, seed: int
) -> tuple[list[tuple[str, float]], list[tuple[str, int]]]:
    """(share of every kind of query, (kind, query row) of those shown). Kinds are by hits of the first two students.

    Queries are drawn at random within a kind, as many that only one student answers as that only the other does, so the choice
    favours neither. No picture appears twice as a query.
    """
    ranks = [getattr(shown.ranks, direction) for shown in exhibits[:2]]
    hits = [r.hits(SHOWN) > 0.5 for r in ranks]
    if len(exhibits) > 1:
        first, second = (shown.label for shown in exhibits[:2])
        kinds = {
            f"only {second}": (hits[1] & ~hits[0], 2),
            f"only {first}": (hits[0] & ~hits[1], 2),
            "both": (hits[0] & hits[1], 1),
            "neither": (~hits[0] & ~hits[1], 1),
        }
    else:
        kinds = {"among the first five": (hits[0], 3), "not among them": (~hits[0], 3)}
    answered = ranks[0].own > 0
    rng, used = np.random.default_rng(seed), set()
    shares, chosen = [], []
    for kind, (member, count) in kinds.items():
        rows = np.flatnonzero(member & answered)
        shares.append((kind, len(rows) / max(1, int(answered.sum()))))
        for row in rng.permutation(rows):
            if count and owner[row] not in used:
                used.add(owner[row])
                chosen.append((kind, int(row)))
                count -= 1
    return shares, chosen


def neighbour_examples(guides: dict[str, Any], pairs: Any, thumbnails: Thumbnails, most: int = 6) -> list[dict[str, Any]]:
    """The sampled pairs of guides.json with their neighbours in both spaces; keys that `pairs` lacks keep their key as caption."""
    place = {key: i for i, key in enumerate(pairs.keys)} if pairs is not None else {}

    def tile(key: str) -> dict[str, str]:
        row = place.get(key)
        if row is None:
            return {"thumbnail": "", "caption": key}
        return {"thumbnail": thumbnails(row), "caption": _first(pairs, row)}

    return [
        {
            "pair": tile(sample["pair"]),
            "image": [tile(key) for key in sample.get("image_neighbours", [])[:SHOWN]],
            "text": [tile(key) for key in sample.get("text_neighbours", [])[:SHOWN]],
        }
        for sample in guides.get("neighbours_sample", [])[:most]
    ]


def _first(pairs: Any, pair: int) -> str:
    captions = pairs.captions_of(pair)
    return captions[0] if captions else pairs.keys[pair]


def _rank(expected: float) -> int:
    return int(np.ceil(expected))
