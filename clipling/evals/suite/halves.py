"""Parts of a dataset by a hash of its keys, and what is learnt on one part to be tested on the other.

The part of a picture depends on its key alone: it is the same for every model, and pictures that are added move no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np

from clipling.data.classes import LabelledImages, open_labelled
from clipling.errors import UserError
from clipling.evals.public import public
from clipling.evals.ranking import label_hits
from clipling.evals.suite.dataset import Dataset
from clipling.evals.suite.subject import Subject

HELD = 0.2  # of the pictures to learn from: where a setting is chosen
_ROUNDING = 1e-12  # probabilities this close are equal


def halves(keys: Sequence[str], salt: str = "") -> np.ndarray:
    """bool [n]: which keys are in the first half, by the last bit of the key's hash. Another salt gives an independent split."""
    return np.array([not number & 1 for number in _numbers(keys, salt)], dtype=bool)


def share(keys: Sequence[str], part: float, salt: str = "") -> np.ndarray:
    """bool [n]: which keys are in a part of about the share `part`; a larger part holds the smaller."""
    return np.array([number >> 1 < part * 2.0**63 for number in _numbers(keys, salt)], dtype=bool)


def _numbers(keys: Sequence[str], salt: str) -> list[int]:
    data = salt.encode()
    if len(data) > blake2b.SALT_SIZE:
        raise ValueError(f"the salt {salt!r} is longer than {blake2b.SALT_SIZE} bytes")
    return [int.from_bytes(blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8, salt=data).digest()) for key in keys]


@dataclass(frozen=True)
class Learning:
    """Pictures to learn from and pictures to test on: unit rows float64 [n, d], labels int64 [n] of the tested dataset's classes."""

    keys: list[str]
    features: np.ndarray
    labels: np.ndarray
    test_features: np.ndarray
    test_labels: np.ndarray
    notes: list[str] = field(default_factory=list)


def check_source(task: str, train: str | None, train_classes: str | None, sample: int | None) -> None:
    """Raises UserError for settings of `learning` that are wrong, or that would be ignored."""
    if train is None and train_classes is not None:
        raise UserError(f"{task}: train_classes names the classes of train, but no train is given. Give train, or leave it out.")
    if sample is not None and sample < 4:
        raise UserError(f"{task}: sample is {sample}; expected at least 4 pictures, or none for all")


def lacking(dataset: Dataset, sample: int | None) -> str | None:
    """Why nothing can be learnt on one half of the dataset to be tested on the other, as a clause; None when it can."""
    rows = dataset.sample(sample)
    first = halves([dataset.source.keys[i] for i in rows])
    if len(np.unique(dataset.labelled.labels[rows[first]])) < 2:
        return f"the half to learn from ({first.sum()} pictures) holds fewer than two classes"
    return None if (~first).any() else "the half to test on is empty"


def learning(subject: Subject, dataset: Dataset, train: str | None, train_classes: str | None, sample: int | None) -> Learning:
    """The halves of the dataset; or all of it to test on, and the labelled pictures `train` to learn from.

    Args:
        train_classes: the class names of `train`, as in `open_labelled`.
        sample: at most so many pictures of the dataset, and of `train`.

    Raises:
        UserError: `train` cannot be read, has other class names, or is what is tested on.
    """
    rows = dataset.sample(sample)
    if train is None:
        first = halves([dataset.source.keys[i] for i in rows])
        source, learnt, rows = dataset, rows[first], rows[~first]
        labels = np.asarray(dataset.labelled.labels)
    else:
        opened = open_labelled(train, classes=train_classes)
        source = Dataset(train, opened, train)
        learnt, labels = source.sample(sample), _relabelled(opened, dataset, train)
    made = Learning(
        keys=[source.source.keys[i] for i in learnt],
        features=_float64(subject.images(source, learnt)),
        labels=labels[learnt],
        test_features=_float64(subject.images(dataset, rows)),
        test_labels=np.asarray(dataset.labelled.labels)[rows],
    )
    made.notes.extend(_notes(made, {source.hashes[i] for i in learnt}, [dataset.hashes[i] for i in rows], train))
    return made


def _relabelled(opened: LabelledImages, dataset: Dataset, train: str) -> np.ndarray:
    """Labels of `opened` as numbers of the dataset's classes."""
    names, wanted = opened.classnames, dataset.labelled.classnames
    if len(set(wanted)) < len(wanted) or len(set(names)) < len(names):  # two classes of one name: numbers must agree
        if names != wanted:
            raise UserError(f"{train} and {dataset.name} have classes of one name, so they must list their classes in the same order")
        return np.asarray(opened.labels)
    for some, others, where in ((names, wanted, dataset.name), (wanted, names, train)):
        missing = [name for name in some if name not in set(others)]
        if missing:
            raise UserError(
                f"the classes of {train} (train) and {dataset.name} must be the same: {where} lacks {len(missing)} of them, first "
                f"{', '.join(map(repr, missing[:5]))}. Rename its folders, or give the names of train's classes with train_classes: FILE."
            )
    number = {name: c for c, name in enumerate(wanted)}
    return np.array([number[name] for name in names], dtype=np.int64)[np.asarray(opened.labels)]


def _notes(made: Learning, learnt: set[str], tested: list[str], train: str | None) -> list[str]:
    """Counts, classes that cannot be learnt, and pictures that stand on both sides."""
    present = np.unique(made.labels)
    if len(present) < 2:
        raise UserError(f"there is nothing to learn from one class: {train or 'the first half'} holds pictures of {len(present)}")
    what = "one half of the dataset by key hash" if train is None else public(train)
    notes = [f"Learnt from {len(made.labels)} pictures of {len(present)} classes ({what}), tested on {len(made.test_labels)}."]
    unseen = int((~np.isin(made.test_labels, present)).sum())
    if unseen:
        notes.append(f"{unseen} tested pictures are of classes that have no picture to learn from: they count as mistakes.")
    same = sum(h in learnt for h in tested)
    if train is not None and same == len(tested):
        raise UserError(f"every tested picture is also in train ({train}), so memory alone would do. Give another train set, or none.")
    if same:
        notes.append(f"{same} tested pictures have the same bytes as one that was learnt from: the accuracy is overstated.")
    return notes


def _float64(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows, dtype=np.float64)


def model_hits(model: Any, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float64 [n]: whether a fitted scikit-learn classifier is right, ties of its probabilities as their expectation."""
    column = {int(c): j for j, c in enumerate(model.classes_)}
    return label_hits(model.predict_proba(features), [column.get(int(c), -1) for c in labels], tie=_ROUNDING)


def held_out(on: Learning) -> np.ndarray:
    """bool [n]: the pictures to learn from that a setting is chosen on, about a fifth."""
    return share(on.keys, HELD, "choice")


def choose(values: Sequence[float], fit: Callable[[Any, np.ndarray, np.ndarray], Any], on: Learning) -> tuple[Any, list[tuple[Any, float]]]:
    """(the best of `values`, the acc1 of each) on a fifth of the pictures to learn from, models being fitted on the rest.

    Of equally good values the first is taken. `fit(value, features, labels)` gives a fitted classifier. Where the fifth is
    empty or the rest holds one class only, nothing is tried: (the middle value, []), and a note is left.
    """
    held = held_out(on)
    if not held.any() or len(np.unique(on.labels[~held])) < 2:
        on.notes.append(f"Too few pictures to choose a setting on: the middle one of {len(values)} is taken.")
        return values[len(values) // 2], []
    tried = []
    for value in values:
        model = fit(value, on.features[~held], on.labels[~held])
        tried.append((value, float(model_hits(model, on.features[held], on.labels[held]).mean())))
    return max(tried, key=lambda pair: pair[1])[0], tried
