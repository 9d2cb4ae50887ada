"""Visual classification via description (Menon & Vondrick 2023, arXiv 2210.07183): classes by what they look like."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from clipling.errors import UserError, near
from clipling.evals.ranking import label_hits
from clipling.evals.retrieval import ranks
from clipling.evals.suite.dataset import Dataset
from clipling.evals.suite.found import LABELLED, Found, floats
from clipling.evals.suite.subject import Subject
from clipling.evals.zeroshot import prompts

EXPLAINED = 6
_BLOCK_BYTES = 64 << 20
_WHICH = ("has", "often", "typically", "may", "can")
_WHICH_IS = ("a", "an", "used")


@dataclass(frozen=True)
class Descriptions:
    """A class scores the mean of the cosines of its descriptions: the dot product with their mean, which is not made a unit vector.

    A class whose descriptions disagree has a shorter mean and so lower scores; `acc1_normalised_mean` is the other classifier, by
    unit means. `acc1_names` is zero-shot by the dataset's own prompts on the same pictures. A class without descriptions is its
    plain prompt.

    pooling: `mean`, or `max`: the best cosine of a class (acc1_normalised_mean stays what it is).
    template: what is put around "class name, description"; the paper puts nothing.
    sample: at most so many pictures.
    """

    pooling: Literal["mean", "max"] = "mean"
    template: str = "{c}"
    sample: int | None = None

    task: ClassVar[str] = "descriptions"
    takes: ClassVar[frozenset[str]] = frozenset({LABELLED})
    version: ClassVar[int] = 1
    headline: ClassVar[tuple[str, ...]] = ("acc1", "acc1_names")
    lower: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if self.pooling not in ("mean", "max"):
            raise UserError(f"{self.task}: pooling is {self.pooling!r}. {near(str(self.pooling), ('mean', 'max'))}")
        if self.sample is not None and self.sample < 1:
            raise UserError(f"{self.task}: sample is {self.sample}; expected at least 1 picture, or none for all")
        prompts(["class"], [self.template])  # refuses one without a place for the name

    def skipped(self, dataset: Dataset) -> str | None:
        if dataset.descriptions is None:
            return "it has no descriptions"
        return None if any(dataset.descriptions.values()) else "its descriptions are all empty"

    def __call__(self, subject: Subject, dataset: Dataset) -> Found:
        names = dataset.labelled.classnames
        given = checked(dataset.descriptions, names, dataset.name)
        rows = dataset.sample(self.sample)
        labels, image = np.asarray(dataset.labelled.labels)[rows], subject.images(dataset, rows)
        plain = np.asarray(subject.classes(dataset), dtype=np.float64)
        described = _described(subject, names, given, self.template, plain)
        mean = described.pooled(np.add) / np.diff(described.offsets)[:, None]
        numbers = np.arange(len(names))
        by_name = ranks(image, plain, labels, numbers).hits(1)
        hits = ranks(image, mean, labels, numbers).hits(1) if self.pooling == "mean" else _by_best(image, described, labels)
        other = ranks(image, _unit(mean), labels, numbers).hits(1)
        share, present = _per_class(hits, labels, len(names))
        named, _ = _per_class(by_name, labels, len(names))
        items = {"acc1": hits, "acc1_names": by_name, "acc1_normalised_mean": other}
        empty = sum(not given[name] for name in names)
        return Found(
            metrics=floats({name: values.mean() for name, values in items.items()} | {"mean_per_class_recall": share[present].mean()}),
            items=items,
            details={
                "classes": [{"name": names[c], "accuracy": float(share[c]), "by_name": float(named[c])} for c in np.flatnonzero(present)],
                "explained": _explained(dataset, rows, labels, image, described, self.pooling),
            },
            notes=[f"{empty} of {len(names)} classes have no descriptions and stand by their plain prompts."] if empty else [],
        )


def sentence(name: str, clause: str) -> str:
    """ "{name}, {clause}" with the words between that the first word of the clause asks for.

    a, an, used: "which is"; has, often, typically, may, can: "which"; all others: "which has" (the paper's released rules).
    """
    clause = " ".join(clause.split())
    first = clause.partition(" ")[0].lower()
    between = "which is" if first in _WHICH_IS else "which" if first in _WHICH else "which has"
    return f"{name}, {between} {clause}"


def read_descriptions(path: Path | str, classnames: Sequence[str]) -> dict[str, list[str]]:
    """Descriptions by class name from a JSON object {class: [description, ...]}; an empty list stands for the plain prompt.

    Raises UserError: not such a file, a class twice, classes that are missing or unknown, descriptions that are blank or no text.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"), object_pairs_hook=_once)
    except OSError as error:
        raise UserError(f"the descriptions in {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    except _TwiceError as error:
        raise UserError(f"{path} names {error.args[0]!r} twice. Put its descriptions into one list.") from error
    return checked(content, classnames, str(path))


def checked(content: Any, classnames: Sequence[str], where: str) -> dict[str, list[str]]:
    """Descriptions of exactly these classes, blanks around them removed. Raises UserError as `read_descriptions`."""
    wanted = f"a list of descriptions for every class, such as {{{classnames[0]!r}: ['a long tail', 'has spots']}}"
    if not isinstance(content, Mapping):
        raise UserError(f"{where}: descriptions must be a JSON object with {wanted}, not {type(content).__name__}")
    unknown = [name for name in content if name not in set(classnames)]
    if unknown:
        raise UserError(f"{where} describes {len(unknown)} unknown classes, first {unknown[0]!r}. {near(str(unknown[0]), set(classnames))}")
    missing = [name for name in dict.fromkeys(classnames) if name not in content]
    if missing:
        raise UserError(
            f"{where} lacks {len(missing)} of {len(set(classnames))} classes, first {', '.join(map(repr, missing[:5]))}. "
            "Describe them, or give them an empty list to take their plain prompts."
        )
    for name, texts in content.items():
        if isinstance(texts, str) or not isinstance(texts, Sequence) or any(not isinstance(text, str) for text in texts):
            raise UserError(f"{where}: the descriptions of {name!r} are {str(texts)[:60]!r}; expected {wanted}")
        if any(not text.strip() for text in texts):
            raise UserError(f"{where}: a description of {name!r} is blank. Remove it; an empty list stands for the plain prompt.")
    return {name: [text.strip() for text in texts] for name, texts in content.items()}


class _TwiceError(Exception):
    pass


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise _TwiceError(name)
    return dict(pairs)


@dataclass(frozen=True)
class _Described:
    """Texts of all classes one after the other: those of class c are `texts[offsets[c]:offsets[c + 1]]`; `features [T, d]`."""

    names: list[str]
    texts: list[str]
    features: np.ndarray
    offsets: np.ndarray

    def pooled(self, how: np.ufunc, values: np.ndarray | None = None) -> np.ndarray:
        """[C, ...]: the sum or maximum over the texts of a class, of the features or of `values [T, ...]`."""
        return how.reduceat(self.features if values is None else values, self.offsets[:-1], axis=0)


def _described(subject: Subject, names: Sequence[str], given: Mapping[str, list[str]], template: str, plain: np.ndarray) -> _Described:
    """The texts and their unit rows; the plain prompt's row for a class that has none."""
    texts = [prompts([sentence(name, clause)], [template])[0] for name in names for clause in given[name]]
    features = np.asarray(subject.texts(texts), dtype=np.float64) if texts else np.empty((0, plain.shape[1]))
    parts, shown, start = [], [], 0
    for c, name in enumerate(names):
        end = start + len(given[name])
        parts.append(features[start:end] if end > start else plain[c : c + 1])
        shown += texts[start:end] or [name]
        start = end
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
    return _Described(list(names), shown, np.concatenate(parts), offsets)


def _by_best(image: np.ndarray, described: _Described, labels: np.ndarray) -> np.ndarray:
    """float64 [n]: the expected hits when a class scores its best cosine; pictures in blocks."""
    block, found = max(1, _BLOCK_BYTES // (8 * len(described.features))), []
    for start in range(0, len(image), block):
        scores = described.features @ np.asarray(image[start : start + block], dtype=np.float64).T
        found.append(label_hits(described.pooled(np.maximum, scores).T, labels[start : start + block]))
    return np.concatenate(found)


def _per_class(hits: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(accuracy [C], whether the class has pictures [C])."""
    count = np.bincount(labels, minlength=classes)
    return np.bincount(labels, weights=hits, minlength=classes) / np.maximum(count, 1), count > 0


def _explained(
    dataset: Dataset, rows: np.ndarray, labels: np.ndarray, image: np.ndarray, described: _Described, pooling: str
) -> list[dict[str, Any]]:
    """Some pictures of different classes, chosen by a hash of their keys: the class they are given, and how like its descriptions."""
    keys = dataset.source.keys
    order = sorted(range(len(rows)), key=lambda i: blake2b(keys[rows[i]].encode("utf-8", "surrogatepass"), salt=b"explained").digest())
    first = list({int(labels[i]): i for i in reversed(order)}.values())[::-1][:EXPLAINED]
    found = []
    for i in first:
        cosines = described.features @ np.asarray(image[i], dtype=np.float64)
        scores = described.pooled(np.maximum if pooling == "max" else np.add, cosines)
        scores = scores if pooling == "max" else scores / np.diff(described.offsets)
        c = int(scores.argmax())
        part = range(described.offsets[c], described.offsets[c + 1])
        listed = sorted(([described.texts[t], float(cosines[t])] for t in part), key=lambda pair: -pair[1])
        found.append({"row": int(rows[i]), "class": described.names[c], "true": described.names[labels[i]], "descriptions": listed})
    return found


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
