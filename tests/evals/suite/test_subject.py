"""Features of a model are its own: cached under all that decides them, and never believed when they are damaged."""

from __future__ import annotations

import numpy as np
import pytest

from clipling.errors import UserError
from clipling.evals.suite.dataset import Dataset
from clipling.evals.suite.plan import DatasetSpec
from clipling.evals.suite.subject import Subject
from clipling.models.hub import new_student
from tests.toy import toy_folder


@pytest.fixture
def student(fresh_cache):
    return new_student("tiny_vit_32", seed=0).eval()


@pytest.fixture
def photos(tmp_path) -> Dataset:
    return DatasetSpec(data=str(toy_folder(tmp_path / "photos", count=6))).open("photos")


class ByKey:
    """A change whose outcome depends on the key, as a corruption's random draw does."""

    name = "by key"

    def __call__(self, picture, key):
        return picture.point(lambda value: (value + 40 * len(key)) % 256)


def test_two_models_do_not_share_features(student, photos):
    other = new_student("tiny_vit_32", seed=1).eval()
    one, two = Subject(student, "one", model_hash="1"), Subject(other, "two", model_hash="2")
    before = one.images(photos), one.texts(["a"])
    assert not np.allclose(two.images(photos), before[0])
    assert not np.allclose(two.texts(["a"]), before[1])
    assert np.array_equal(one.images(photos), before[0])


def test_other_preprocessing_gives_other_features(student, photos):
    subject = Subject(student, "one", model_hash="1")
    before = subject.images(photos)
    student.preprocess_cfg["mean"] = [0.9, 0.1, 0.1]
    assert not np.allclose(subject.images(photos), before)


def test_changed_pictures_are_cached_by_their_keys(student, photos):
    """Two datasets of the same pictures under other names: the draws of a corruption are other ones."""
    subject = Subject(student, "one", model_hash="1")
    before = subject.images(photos, change=ByKey())
    photos.source.keys[:] = [f"under/another/name/{key}" for key in photos.source.keys]
    assert not np.allclose(subject.images(photos, change=ByKey()), before)


@pytest.mark.parametrize("damage", ["empty", "NaN", "cut", "archive", "other type"])
def test_blocks_that_are_damaged_are_made_again(student, photos, damage):
    subject = Subject(student, "one", model_hash="1")
    before = np.array(subject.images(photos))
    (path,) = subject.cache.rglob("*.npy")
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "NaN":
        np.save(path, np.full_like(before, np.nan))
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:50])
    elif damage == "archive":
        with path.open("wb") as file:
            np.savez(file, before)
    else:
        np.save(path, before.astype(np.float64))
    assert np.array_equal(subject.images(photos), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_a_scale_that_is_not_finite_is_refused(student, value):
    student.logit_scale.data.fill_(value)
    with pytest.raises(UserError, match="broken gives logit_scale that are not finite"):
        _ = Subject(student, "broken").scale


def test_class_features_that_are_not_finite_are_refused(student):
    student.model.text.token_embedding.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match=r"broken gives features .* not finite"):
        Subject(student, "broken").prompted(["cat", "dog"], ["a {c}."])
