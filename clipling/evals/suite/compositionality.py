"""Compositionality: does the picture prefer its caption to the same caption made false?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import pairwise
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from clipling.errors import UserError, near
from clipling.evals.hard_negatives import KINDS, Kind, Negative, Nouns, Truth, frequent_nouns, negatives
from clipling.evals.hard_negatives_words import WORD
from clipling.evals.retrieval import TIE
from clipling.evals.suite.dataset import Dataset
from clipling.evals.suite.found import PAIRS, Found, floats
from clipling.evals.suite.subject import Subject

NOUN_PICTURES = 10_000  # pictures whose captions are searched for nouns
EXAMPLES = 2  # of the most wrongly, and of the most rightly decided
Cases = list[tuple[int, Negative]]  # (row of the picture, its caption and what was made of it)


@dataclass(frozen=True)
class Compositionality:
    """The share of captions that score higher with their own picture than a hard negative does, by kind of negative.

    The negatives are made by rules of the dataset's own captions (see hard_negatives.py; after ARO, arXiv 2210.01936, and SugarCrepe,
    arXiv 2306.14610). A tie counts half, so a constant model scores 0.5. `blind/<kind>` is what a reader without eyes would score: it
    takes the text whose pairs of neighbouring words are the more frequent in the captions of the other pictures.

    kinds: of word_order, attribute, relation, object. sample: pictures, chosen by a hash of their keys; None for all.
    captions: `one` caption a picture (the first by hash that a rule of the kind fits), or `all` that a rule fits.
    """

    kinds: tuple[Kind, ...] = KINDS
    sample: int | None = 2000
    captions: Literal["one", "all"] = "one"

    task: ClassVar[str] = "compositionality"
    takes: ClassVar[frozenset[str]] = frozenset({PAIRS})
    version: ClassVar[int] = 1
    headline: ClassVar[tuple[str, ...]] = ("mean", *KINDS)
    lower: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise UserError(f"kinds is {list(self.kinds)}; expected one or more of {', '.join(KINDS)}, each once")
        for kind in self.kinds:
            if kind not in get_args(Kind):
                raise UserError(f"compositionality has no kind {kind!r}. {near(str(kind), KINDS)}")
        if self.sample is not None and self.sample < 1:
            raise UserError(f"sample is {self.sample}; expected a number of pictures from 1 on, or null for all")
        if self.captions not in ("one", "all"):
            raise UserError(f"captions is {self.captions!r}; expected one or all")

    def skipped(self, dataset: Dataset) -> str | None:
        if dataset.language.casefold().replace("_", "-").split("-")[0] not in ("en", "eng", "english"):
            return f"its language is {dataset.language}, and the rules for hard negatives are English"
        if dataset.pairs.unpaired or not dataset.pairs.captions:
            return "it has no captions"
        made = _Made(dataset, self)
        if not any(True for kind in self.kinds for _ in made.cases(kind)):
            return f"no caption fits a rule for hard negatives of the kinds {', '.join(self.kinds)}"
        return None

    def __call__(self, subject: Subject, dataset: Dataset) -> Found:
        made = _Made(dataset, self)
        cases = {kind: list(made.cases(kind)) for kind in self.kinds}
        margins = _margins(subject, dataset, made.rows, cases)
        blind = _blind(dataset, cases)
        found = Found(metrics={})
        for kind in (kind for kind in self.kinds if cases[kind]):
            rows = np.array([row for row, _ in cases[kind]], dtype=np.int64)
            for name, apart, tie in ((kind, margins[kind], TIE), (f"blind/{kind}", blind[kind], 1e-9)):
                found.items[name], found.units[name] = _right(apart, tie), rows
        found.metrics = floats({name: values.mean() for name, values in found.items.items()})
        measured = [kind for kind in self.kinds if cases[kind]]
        if measured:
            found.metrics["mean"] = float(np.mean([found.metrics[kind] for kind in measured]))
            found.metrics["blind/mean"] = float(np.mean([found.metrics[f"blind/{kind}"] for kind in measured]))
        found.details = {"kinds": [_shown(kind, cases[kind], margins[kind], found, made) for kind in measured]}
        found.notes = _notes(self, dataset, made, cases)
        return found


class _Made:
    """The negatives of a dataset, made when they are asked for."""

    def __init__(self, dataset: Dataset, settings: Compositionality) -> None:
        self.dataset, self.settings, self.pairs = dataset, settings, dataset.pairs
        self.rows = dataset.sample(settings.sample)
        self.left_out: Counter[Kind] = Counter()  # captions, or pictures when one caption of each is asked for
        self._truths: dict[tuple[int, ...], Truth] = {}

    @cached_property
    def nouns(self) -> Nouns:
        return frequent_nouns(self.pairs.captions_of(int(i)) for i in self.dataset.sample(NOUN_PICTURES))

    @cached_property
    def _same(self) -> dict[tuple[str, str], list[int]]:
        """Pictures by group and by hash."""
        found: dict[tuple[str, str], list[int]] = {}
        for i, (group, digest) in enumerate(zip(self.pairs.groups, self.dataset.hashes)):
            for name in (("group", group), ("hash", digest)):
                if name[1]:
                    found.setdefault(name, []).append(i)
        return found

    def truth(self, row: int) -> Truth:
        """What the captions of this picture, of its group, and of equal pictures say."""
        names = (("group", self.pairs.groups[row]), ("hash", self.dataset.hashes[row]))
        rows = tuple(sorted({row, *(i for name in names for i in self._same.get(name, ()))}))
        if rows not in self._truths:
            self._truths[rows] = Truth.of(caption for i in rows for caption in self.pairs.captions_of(i))
        return self._truths[rows]

    def cases(self, kind: Kind) -> Iterator[tuple[int, Negative]]:
        self.left_out[kind] = 0
        nouns = self.nouns if kind in ("relation", "object") else Nouns({}, frozenset())
        for row in map(int, self.rows):
            captions = self.pairs.captions_of(row)
            if self.settings.captions == "all":
                made = negatives(captions, kind, nouns, self.truth(row)) if captions else []
                self.left_out[kind] += made.count(None)
                yield from ((row, negative) for negative in made if negative is not None)
                continue
            drawn = sorted(captions, key=lambda text: blake2b(text.encode("utf-8", "surrogatepass")).digest())
            tried = (negatives([caption], kind, nouns, self.truth(row))[0] for caption in drawn)
            negative = next((negative for negative in tried if negative is not None), None)
            self.left_out[kind] += negative is None
            if negative is not None:
                yield row, negative


def _margins(subject: Subject, dataset: Dataset, rows: np.ndarray, cases: Mapping[Kind, Cases]) -> dict[Kind, np.ndarray]:
    """By kind float64 [n]: the cosine of the picture with its caption minus that with the negative."""
    texts = list(dict.fromkeys(text for some in cases.values() for _, made in some for text in (made.caption, made.negative)))
    if not texts:
        return {kind: np.empty(0) for kind in cases}
    image, text = subject.images(dataset, rows), subject.texts(texts)
    at_image, at_text = {int(row): n for n, row in enumerate(rows)}, {caption: n for n, caption in enumerate(texts)}
    found = {}
    for kind, some in cases.items():
        pictures = np.asarray(image[[at_image[row] for row, _ in some]], dtype=np.float64)
        # Each cosine by itself, so that equal texts give equal cosines.
        true, false = (
            np.einsum("nd,nd->n", pictures, np.asarray(text[[at_text[getattr(made, which)] for _, made in some]], dtype=np.float64))
            for which in ("caption", "negative")
        )
        found[kind] = true - false
    return found


def _right(apart: np.ndarray, tie: float) -> np.ndarray:
    """float64 [n]: 1 where the true caption is ahead, a half in a tie."""
    return np.where(np.abs(apart) <= tie, 0.5, (apart > 0).astype(np.float64))


def _blind(dataset: Dataset, cases: Mapping[Kind, Cases]) -> dict[Kind, np.ndarray]:
    """By kind float64 [n]: the blind score of the caption minus that of the negative.

    The score of a text is the mean over its bigrams, its beginning and end included, of log(1 + how often the captions of the other
    pictures have it).
    """
    needed = {two for some in cases.values() for _, made in some for text in (made.caption, made.negative) for two in _bigrams(text)}
    counts = Counter(two for caption in dataset.pairs.captions for two in _bigrams(caption) if two in needed)

    def score(text: str, own: Counter) -> float:
        return float(np.mean([np.log1p(counts[two] - own[two]) for two in _bigrams(text)]))

    found = {}
    for kind, some in cases.items():
        owns = {row: Counter(two for caption in dataset.pairs.captions_of(row) for two in _bigrams(caption)) for row, _ in some}
        found[kind] = np.array([score(made.caption, owns[row]) - score(made.negative, owns[row]) for row, made in some])
    return found


def _bigrams(text: str) -> list[tuple[str, str]]:
    return list(pairwise(["", *WORD.findall(text.casefold()), ""]))


def _shown(kind: Kind, cases: Cases, margin: np.ndarray, found: Found, made: _Made) -> dict[str, Any]:
    order = np.argsort(margin, kind="stable")
    # Of fewer than four each one once.
    chosen = [*order[:EXAMPLES], *order[max(EXAMPLES, len(order) - EXAMPLES) :]]
    by_rule: dict[str, list[float]] = {}
    for (_, negative), right in zip(cases, found.items[kind]):
        by_rule.setdefault(negative.rule, []).append(float(right))
    return {
        "kind": kind,
        "accuracy": found.metrics[kind],
        "blind": found.metrics[f"blind/{kind}"],
        "count": len(cases),
        "left_out": made.left_out[kind],
        "rules": [{"rule": rule, "accuracy": float(np.mean(by_rule[rule])), "count": len(by_rule[rule])} for rule in sorted(by_rule)],
        "examples": [
            {"row": cases[n][0], "caption": cases[n][1].caption, "negative": cases[n][1].negative, "margin": float(margin[n])}
            for n in map(int, chosen)
        ],
    }


def _notes(settings: Compositionality, dataset: Dataset, made: _Made, cases: Mapping[Kind, Sequence]) -> list[str]:
    what = "pictures" if settings.captions == "one" else "captions"
    rest = [f"{made.left_out[kind]:,} of {kind}" for kind in settings.kinds if made.left_out[kind]]
    notes = [
        "Chance is 50 %.",
        "The negatives are made by rules, and many read unnaturally: blind/<kind> is the share that word pairs alone decide rightly, "
        "with no picture. A score at or below it shows nothing of what the model sees. A few negatives may be true after all.",
    ]
    notes += [f"{what.capitalize()} that no rule fits are left out: {', '.join(rest)}."] if rest else []
    notes += (
        [f"Measured on {len(made.rows):,} of {len(dataset):,} pictures, chosen by a hash of their keys."]
        if len(made.rows) < len(dataset)
        else []
    )
    missing = [kind for kind in settings.kinds if not cases[kind]]
    notes += [f"No caption fits a rule of {', '.join(missing)}: the mean is over the other kinds."] if missing else []
    return notes
