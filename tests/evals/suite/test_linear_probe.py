"""The linear probe against scikit-learn called directly on the same halves, and on a train set of its own."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from clipling.errors import UserError
from clipling.evals.suite.halves import halves, learning, share
from clipling.evals.suite.linear_probe import LinearProbe, fitted
from tests.evals.suite.fakes import FakeSubject, labelled_dataset, unit


def blobs(n: int = 240, classes: int = 4, width: int = 8, noise: float = 0.6, seed: int = 0):
    """(dataset of unequal classes, unit features [n, width])."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, size=n, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    centres = rng.standard_normal((classes, width))
    features = unit(centres[labels] + noise * np.linalg.norm(centres, axis=1).mean() * rng.standard_normal((n, width)))
    return labelled_dataset(n, classes, labels), features


def test_equals_scikit_learn_on_the_same_halves():
    dataset, features = blobs()
    labels, first = dataset.labelled.labels, halves(dataset.source.keys)
    keys = np.array(dataset.source.keys)
    rows = features.astype(np.float64)

    def direct(C, fit, test):
        model = LogisticRegression(C=C, max_iter=500).fit(rows[fit], labels[fit])
        return (
            model,
            accuracy_score(labels[test], model.predict(rows[test])),
            balanced_accuracy_score(labels[test], model.predict(rows[test])),
        )

    inner = np.zeros(len(keys), dtype=bool)
    inner[first] = share(keys[first], 0.2, "choice")
    Cs = (0.01, 1.0, 100.0)
    chosen = [direct(C, first & ~inner, inner)[1] for C in Cs]
    best = Cs[int(np.argmax(chosen))]
    assert len(set(chosen)) > 1, "the choice must matter"
    model, acc1, recall = direct(best, first, ~first)
    found = LinearProbe(Cs=Cs, max_iter=500)(FakeSubject(features), dataset)
    assert found.metrics == pytest.approx({"lp_acc1": acc1, "lp_mean_per_class_recall": recall, "C": best})
    assert acc1 != pytest.approx(recall, abs=1e-3), "classes must be unbalanced"
    assert found.items["lp_acc1"].mean() == found.metrics["lp_acc1"]
    assert found.details["tried"] == [{"C": C, "acc1": pytest.approx(a)} for C, a in zip(Cs, chosen)]
    assert (found.details["train"], found.details["test"]) == (first.sum(), (~first).sum())
    own, converged = fitted(best, rows[first], labels[first], 500)
    assert converged
    np.testing.assert_array_equal(own.coef_, model.coef_)
    np.testing.assert_array_equal(own.intercept_, model.intercept_)


def test_two_classes_and_one_C():
    dataset, features = blobs(classes=2)
    first = halves(dataset.source.keys)
    model = LogisticRegression(C=10.0, max_iter=1000).fit(features[first].astype(np.float64), dataset.labelled.labels[first])
    found = LinearProbe(Cs=(10.0,))(FakeSubject(features), dataset)
    expected = model.score(features[~first].astype(np.float64), dataset.labelled.labels[~first])
    assert found.metrics["lp_acc1"] == pytest.approx(expected)
    assert found.details["tried"] == []


def test_features_that_say_nothing_give_chance_and_features_that_say_all_give_one():
    # In each half both classes are equally frequent, so the intercepts say nothing either.
    keys = [f"{i}.png" for i in range(4000)]
    first = halves(keys)
    some = [k for half in (first, ~first) for k in np.array(keys)[half][:40]]
    dataset = labelled_dataset(80, 2, keys=some)
    same = LinearProbe(Cs=(1.0,))(FakeSubject(np.ones((80, 3))), dataset)
    assert same.metrics["lp_acc1"] == pytest.approx(0.5)
    telling = LinearProbe(Cs=(10.0, 100.0, 1000.0))(FakeSubject(np.eye(2)[dataset.labelled.labels]), dataset)
    assert telling.metrics["lp_acc1"] == 1.0
    assert telling.metrics["C"] == 10.0, "of equally good ones the strongest regularisation"


def test_what_does_not_converge_is_a_note_and_no_warning():
    dataset, features = blobs()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = LinearProbe(Cs=(1.0, 1e4), max_iter=2)(FakeSubject(features), dataset)
        assert any("did not converge in 2 iterations: raise max_iter" in note for note in found.notes)
        assert any("In the choice of C" in note for note in found.notes)
        found = LinearProbe(Cs=(1.0,))(FakeSubject(features), dataset)
    assert not any("converge" in note for note in found.notes)


def test_a_class_that_was_not_learnt_counts_as_mistakes_and_copies_are_told():
    dataset, features = blobs(60, 2, noise=0.1)
    first = halves(dataset.source.keys)
    labels = dataset.labelled.labels.copy()
    lone = int(np.flatnonzero(~first)[0])
    labels[lone] = 2
    hashes = [*dataset.hashes]
    hashes[int(np.flatnonzero(~first)[1])] = hashes[int(np.flatnonzero(first)[0])]
    made = labelled_dataset(60, 3, labels, hashes=hashes)
    found = LinearProbe(Cs=(10.0,))(FakeSubject(features), made)
    assert found.items["lp_acc1"][0] == 0.0
    assert any(note.startswith("1 tested pictures are of classes") for note in found.notes)
    assert any(note.startswith("1 tested pictures have the same bytes") for note in found.notes)


def test_a_sample_is_halved_and_the_whole_is_not_encoded():
    dataset, features = blobs()
    subject = FakeSubject(features)
    found = LinearProbe(Cs=(1.0,), sample=50)(subject, dataset)
    assert found.details["train"] + found.details["test"] == 50
    assert sorted(row for asked in subject.asked for row in asked[2]) == dataset.sample(50).tolist()


def class_folder(folder, counts: dict[str, int], colour: int = 0):
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (4, 4), (colour, 10 * number, i)).save(folder / name / f"{i}.png")
    return folder


def test_a_train_set_of_its_own(tmp_path):
    """The classes of train come in another order than the dataset's: they are matched by name."""
    spec = str(class_folder(tmp_path / "train", {"a": 12, "b": 14}))
    dataset = labelled_dataset(30, ["b", "a"], name="test")
    centres = {"a": [1.0, 0.2], "b": [0.2, 1.0]}
    train = np.array([centres["a"]] * 12 + [centres["b"]] * 14)
    test = np.array([centres[dataset.labelled.classnames[c]] for c in dataset.labelled.labels])
    found = LinearProbe(train=spec, Cs=(1.0, 10.0))(FakeSubject({spec: train, "test": test}), dataset)
    assert found.metrics["lp_acc1"] == 1.0
    assert (found.details["train"], found.details["test"], len(found.items["lp_acc1"])) == (26, 30, 30)
    on = learning(FakeSubject({spec: train, "test": test}), dataset, spec, None, None)
    assert sorted(set(zip(on.labels, on.keys))) == sorted((1 if key.startswith("a/") else 0, key) for key in on.keys)


def test_train_must_have_the_same_classes_and_other_pictures(tmp_path):
    spec = str(class_folder(tmp_path / "train", {"a": 3, "b": 3}))
    subject = FakeSubject(lambda dataset, rows, change: np.ones((len(rows), 2)))
    with pytest.raises(UserError, match=r"toy lacks 1 of them, first 'a'"):
        LinearProbe(train=spec)(subject, labelled_dataset(9, ["b", "c"]))
    with pytest.raises(UserError, match=r"lacks 1 of them, first 'c'"):
        LinearProbe(train=spec)(subject, labelled_dataset(9, ["a", "b", "c"]))
    from clipling.data.classes import open_labelled
    from clipling.evals.suite.dataset import Dataset

    with pytest.raises(UserError, match="memory alone would do"):
        LinearProbe(train=spec)(subject, Dataset("again", open_labelled(spec), spec))
    names = tmp_path / "names.txt"
    names.write_text("b\nc\n")
    found = LinearProbe(train=spec, train_classes=str(names), Cs=(1.0,))(subject, labelled_dataset(9, ["b", "c"]))
    assert found.details["train"] == 6


def test_datasets_that_cannot_be_halved_are_skipped():
    assert LinearProbe().skipped(labelled_dataset(40, 2)) is None
    assert "fewer than two classes" in LinearProbe().skipped(labelled_dataset(40, 2, [0] * 40))
    assert LinearProbe(train="x").skipped(labelled_dataset(40, 2, [0] * 40)) is None
    keys = [f"{i}" for i in range(100)]
    learnt = [k for k, first in zip(keys, halves(keys)) if first][:10]
    assert LinearProbe().skipped(labelled_dataset(10, 2, keys=learnt)) == "the half to test on is empty"


@pytest.mark.parametrize(
    "settings",
    [{"Cs": ()}, {"Cs": (10.0, 1.0)}, {"Cs": (0.0, 1.0)}, {"Cs": (float("inf"),)}, {"max_iter": 0}, {"sample": 1}, {"train_classes": "x"}],
)
def test_bad_settings_are_named(settings):
    with pytest.raises(UserError, match=next(iter(settings)) + " "):
        LinearProbe(**settings)


def test_settings_come_from_a_mapping():
    made = TypeAdapter(LinearProbe).validate_python({"Cs": [1, 10], "train": "somewhere", "sample": None})
    assert made == LinearProbe(Cs=(1.0, 10.0), train="somewhere", sample=None)
