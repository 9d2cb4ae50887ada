"""Own queries: what users type, against all pictures, with the grades that a user gave."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from clipling.errors import UserError
from clipling.evals.ranking import coverage, first_relevant, gains, ndcg, reciprocal_rank
from clipling.evals.retrieval import nearest
from clipling.evals.suite.dataset import Dataset
from clipling.evals.suite.found import PAIRS, Found, floats
from clipling.evals.suite.query_file import MAX_BAD, Queries, read_queries
from clipling.evals.suite.subject import Subject

K = 10
KS = (1, 5, 10)
FEWEST = 5  # queries that make a slice
WORST, SHOWN, RELEVANT = 12, 5, 20
_BLOCK_BYTES = 64 << 20
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class OwnQueries:
    """Retrieval of pictures by own queries with graded relevance (the file: see query_file.py). Every picture is a candidate.

    ndcg@10: see ranking.py; `gain` as there. mrr: mean of 1 / position of the first relevant picture. recall@k: share of queries
    with at least one relevant picture among the k nearest, as in all recalls here (elsewhere: success or hit rate at k).
    coverage@10: mean share of a query's relevant pictures that are among the 10 nearest (TREC's recall at 10). Relevant is a
    grade of 1 or more. Ties count as their expectation.

    Slices (`<metric>/<slice>`, each of five queries or more; words are runs of letters and digits, whatever their case):
    tail, head: the rarest word of the query that captions know is in at most / more captions than the median over queries of
    just that number (the median over all words would be one or two captions: most words are rare). short, long: at most / more
    words than the median query. unseen_words: at least one word that no caption holds; the dataset's captions stand for what a
    model was trained on.
    """

    gain: Literal["exponential", "linear"] = "exponential"

    task: ClassVar[str] = "queries"
    takes: ClassVar[frozenset[str]] = frozenset({PAIRS})
    version: ClassVar[int] = 1
    headline: ClassVar[tuple[str, ...]] = ("ndcg@10", "mrr", "recall@10")
    lower: ClassVar[frozenset[str]] = frozenset()

    def skipped(self, dataset: Dataset) -> str | None:
        return None if dataset.queries is not None else "it has no queries"

    def __call__(self, subject: Subject, dataset: Dataset) -> Found:
        assert dataset.queries is not None
        read = read_queries(dataset.queries)
        known, notes = matched(read, dataset)
        text, image = subject.texts(known.texts), subject.images(dataset)
        items = measured(text, image, known.grades, self.gain)
        sliced = {name: mask for name, mask in slices(known.texts, dataset.pairs.captions).items() if mask.sum() >= FEWEST}
        table = [
            {"slice": name, "queries": int(mask.sum()), **{m: float(items[m][mask].mean()) for m in ("ndcg@10", "mrr", "recall@10")}}
            for name, mask in sliced.items()
        ]
        parts = {f"{metric}/{name}": items[metric][mask] for name, mask in sliced.items() for metric in items if metric != f"coverage@{K}"}
        items = items | parts
        return Found(
            metrics=floats({name: values.mean() for name, values in items.items()}),
            items=items,
            details={"slices": table, "worst": _worst(items, known, text, image), "left_out": known.left_out},
            notes=notes,
        )


@dataclass(frozen=True)
class Judged:
    """Queries that have a relevant picture in the dataset: `texts` [Q], `grades` [Q] of rows of the dataset.

    left_out: the first keys and rows of the file that cannot be used. Notes count them and name none: private pages have notes.
    """

    texts: list[str]
    grades: list[dict[int, int]]
    left_out: list[str] = field(default_factory=list)


def matched(read: Queries, dataset: Dataset) -> tuple[Judged, list[str]]:
    """The queries with rows in place of keys, and notes on what was left out.

    Raises UserError when more than 10 % of the keys are unknown, or when no query has a relevant picture.
    """
    row = {key: i for i, key in enumerate(dataset.source.keys)}
    keys = read.keys()
    unknown = [key for key in keys if key not in row]
    if len(unknown) > MAX_BAD * len(keys):
        raise UserError(
            f"{dataset.queries}: {len(unknown)} of {len(keys)} keys are no pictures of {dataset.name} (at most {MAX_BAD:.0%} may be "
            f"unknown), first {', '.join(map(repr, unknown[:5]))}. Its keys look like {dataset.source.keys[0]!r}."
        )
    texts, grades = [], []
    for text, judged in zip(read.texts, read.grades):
        rows = {row[key]: grade for key, grade in judged.items() if key in row}
        if max(rows.values(), default=0) > 0:
            texts.append(text)
            grades.append(rows)
    if not texts:
        raise UserError(f"{dataset.queries}: no query has a relevant picture (grade 1 or more) in {dataset.name}")
    notes = []
    if unknown:
        notes.append(f"{len(unknown)} of {len(keys)} keys are no pictures of the dataset.")
    if len(texts) < len(read.texts):
        notes.append(f"{len(read.texts) - len(texts)} of {len(read.texts)} queries have no relevant picture here and were left out.")
    if len(read.problems):
        notes.append(f"{len(read.problems)} of {read.rows} rows cannot be used.")
    if read.unread:
        notes.append(f"Further columns were not read: {', '.join(read.unread)}.")
    left_out = [*unknown[:5], *(f"{problem.where}: {problem.detail}" for problem in read.problems.rows[:5])]
    return Judged(texts, grades, left_out), notes


def measured(
    text: np.ndarray, image: np.ndarray, grades: Sequence[dict[int, int]], gain: Literal["exponential", "linear"], block: int | None = None
) -> dict[str, np.ndarray]:
    """float64 [Q] of every metric: `text [Q, d]` against `image [P, d]`, unit rows, a block of queries at a time (64 MB of cosines)."""
    found: dict[str, list[np.ndarray]] = {}
    for scores, table in _blocks(text, image, grades, block or max(1, _BLOCK_BYTES // (8 * len(image)))):
        ranks = first_relevant(scores, table > 0)
        values = {
            f"ndcg@{K}": ndcg(scores, gains(table, gain), K),
            "mrr": reciprocal_rank(ranks),
            **{f"recall@{k}": ranks.hits(k) for k in KS},
            f"coverage@{K}": coverage(scores, table > 0, K),
        }
        for name, part in values.items():
            found.setdefault(name, []).append(part)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _blocks(text: np.ndarray, image: np.ndarray, grades: Sequence[dict[int, int]], size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(cosines fp64 [q, P], grades [q, P]) of some queries after the other."""
    columns = np.asarray(image, dtype=np.float64).T
    for start in range(0, len(text), size):
        few = grades[start : start + size]
        table = np.zeros((len(few), len(image)), dtype=np.int16)
        for q, judged in enumerate(few):
            table[q, list(judged)] = list(judged.values())
        yield np.asarray(text[start : start + size], dtype=np.float64) @ columns, table


def words(text: str) -> list[str]:
    """Runs of letters and digits, whatever their case. Languages without blanks give a sentence at once."""
    return _WORD.findall(text.casefold())


def slices(texts: Sequence[str], captions: Sequence[str]) -> dict[str, np.ndarray]:
    """bool [Q] by name of slice: see OwnQueries. Without captions, only by length."""
    spoken = [words(text) for text in texts]
    length = np.array([len(some) for some in spoken])
    middle = np.median(length)
    found = {"short": length <= middle, "long": length > middle}
    frequency = Counter(word for caption in captions for word in set(words(caption)))
    if not frequency:
        return found
    rarest = np.array([min((frequency[w] for w in some if w in frequency), default=0) for some in spoken])
    known = rarest > 0
    middle = np.median(rarest[known]) if known.any() else 0.0
    unseen = np.array([any(w not in frequency for w in some) for some in spoken])
    return {"head": known & (rarest > middle), "tail": known & (rarest <= middle), **found, "unseen_words": unseen}


def _worst(items: dict[str, np.ndarray], known: Judged, text: np.ndarray, image: np.ndarray) -> list[dict[str, Any]]:
    """The queries of the lowest nDCG (of these, the lowest reciprocal rank), what they find, and their relevant pictures, best first."""
    values = items[f"ndcg@{K}"]
    order = np.lexsort((np.arange(len(values)), items["mrr"], values))[:WORST]
    found, _ = nearest(text[order], image, SHOWN)
    return [
        {
            "query": known.texts[q],
            "ndcg": float(values[q]),
            "found": found[i].tolist(),
            "relevant": [row for row, grade in sorted(known.grades[q].items(), key=lambda pair: (-pair[1], pair[0])) if grade][:RELEVANT],
        }
        for i, q in enumerate(order)
    ]
