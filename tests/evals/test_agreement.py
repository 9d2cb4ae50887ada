"""Agreement with a teacher against brute force over every photo and text."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from clipling.data.photos import open_photos
from clipling.data.source import open_pairs
from clipling.errors import UserError
from clipling.evals.agreement import Agreement, match, mean_cosine, same_choice
from clipling.models.catalogue import zoo_config
from clipling.models.hub import new_student
from tests.toy import toy_folder

TEXTS = ["a red disc", "a green bar", "a blue square on pink", "nothing", "black"]
PHOTOS = 30
SAME_SIZE = ["teacher_cosine", "image_match@1", "text_cosine", "text_match@1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(toy_folder(tmp_path_factory.mktemp("toy") / "pairs", count=PHOTOS))


@pytest.fixture(scope="module")
def photos(folder):
    return open_photos(folder)


def model(seed: int, embed_dim: int = 16, image_size: int = 32, noise: float = 0.0):
    config = copy.deepcopy(zoo_config("tiny_vit_32"))
    config["model_cfg"]["embed_dim"] = embed_dim
    config["model_cfg"]["vision_cfg"]["image_size"] = image_size
    made = new_student(config, seed=seed).eval()
    with torch.no_grad():
        for parameter in (p for p in made.parameters() if p.ndim > 1):
            parameter.add_(noise * parameter.std() * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return made


def features(student, photos) -> tuple[np.ndarray, np.ndarray]:
    """Image and text features made one at a time, by open_clip's own transform."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    transform = image_transform_v2(PreprocessCfg(**student.preprocess_cfg), is_train=False)
    with torch.no_grad():
        image = [student.encode_image(transform(photos.image(i))[None])[0].double().numpy() for i in range(len(photos))]
        text = [student.encode_text(student.tokenise([text]))[0].double().numpy() for text in TEXTS]
    return np.stack(image), np.stack(text)


def first(row, but=None) -> int:
    return max((score, -n) for n, score in enumerate(row) if n != but)[1] * -1


def brute_force(student, teacher, photos) -> dict[str, float]:
    (image, text), (image_t, text_t) = features(student, photos), features(teacher, photos)
    count, found = len(photos), {}
    if student.embed_dim == teacher.embed_dim:
        found["teacher_cosine"] = sum(float(a @ b) for a, b in zip(image, image_t)) / count
        found["image_match@1"] = sum(first([a @ b for b in image_t]) == i for i, a in enumerate(image)) / count
        found["text_cosine"] = sum(float(a @ b) for a, b in zip(text, text_t)) / len(TEXTS)
        found["text_match@1"] = sum(first([a @ b for b in text_t]) == i for i, a in enumerate(text)) / len(TEXTS)
    own, taught = ([first([a @ b for b in rows], but=i) for i, a in enumerate(rows)] for rows in (image, image_t))
    found["neighbour_match@1"] = sum(a == b for a, b in zip(own, taught)) / count
    chosen, wanted = ([first([a @ b for b in words]) for a in rows] for rows, words in ((image, text), (image_t, text_t)))
    found["text_choice@1"] = sum(a == b for a, b in zip(chosen, wanted)) / count
    return found


@pytest.mark.parametrize(("dim", "size", "noise"), [(16, 32, 0.1), (16, 48, 0.0), (24, 48, 0.0)])
def test_equals_brute_force(photos, dim, size, noise):
    """A disturbed copy, a teacher that sees larger pictures, and one of another embedding size."""
    student, teacher = model(0), model(0 if noise else 1, dim, size, noise)
    found, wanted = dict(Agreement(photos, teacher, TEXTS)(student)), brute_force(student, teacher, photos)
    assert list(found) == list(wanted)
    assert found == pytest.approx(wanted, abs=1e-6)
    assert set(SAME_SIZE).isdisjoint(found) == (dim != 16)
    if noise:
        assert 1 / PHOTOS < found["image_match@1"] < 1, "neither blind nor equal: the comparison can tell"


def test_the_teacher_scores_exactly_one(photos):
    teacher = model(3)
    found = dict(Agreement(photos, teacher, TEXTS)(teacher))
    assert list(found) == [*SAME_SIZE, "neighbour_match@1", "text_choice@1"]
    assert set(found.values()) == {1.0}
    assert dict(Agreement(photos, teacher)(copy.deepcopy(teacher))) == {
        "teacher_cosine": 1.0,
        "image_match@1": 1.0,
        "neighbour_match@1": 1.0,
    }


def test_teacher_features_are_made_once_and_students_stay_as_they_are(photos, monkeypatch):
    teacher, student = model(3), model(4).train()
    agreement = Agreement(photos, teacher, TEXTS)
    one = dict(agreement(student))
    monkeypatch.setattr(type(teacher.model.visual), "forward", _counting(type(teacher.model.visual).forward, teacher, counts := [0]))
    assert dict(agreement(student)) == one
    assert counts == [0]
    assert student.training


def _counting(plain, teacher, counts):
    def forward(self, x):
        counts[0] += self is teacher.model.visual
        return plain(self, x)

    return forward


def test_captions_of_the_photos_are_not_looked_at(folder, photos):
    teacher, student = model(3), model(4)
    assert dict(Agreement(open_pairs(folder), teacher, TEXTS)(student)) == dict(Agreement(photos, teacher, TEXTS)(student))


def test_equal_photos_and_equal_texts_are_each_others_answers(folder):
    pairs = open_pairs(folder)
    teacher = model(3)
    found = dict(Agreement(pairs.subset([0, 0, 1, 2, 2]), teacher, ["a", "b", "a"])(teacher))
    assert set(found.values()) == {1.0}


def test_chance_levels(photos):
    teacher = model(3)
    agreement = Agreement(photos, teacher, TEXTS)
    levels = agreement.chance()
    assert levels == {"image_match@1": 1 / 30, "neighbour_match@1": 1 / 29, "text_match@1": 1 / 5, "text_choice@1": 1 / 5}
    assert Agreement(photos, teacher).chance() == {"image_match@1": 1 / 30, "neighbour_match@1": 1 / 29}
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(400, 8)) for _ in range(2)]
    unit = [r / np.linalg.norm(r, axis=1, keepdims=True) for r in rows]
    assert match(*unit, np.arange(400)) < 0.02  # 1 / 400 expected
    assert same_choice((unit[0], unit[0]), (unit[1], unit[1]), others=True) < 0.02


def test_a_constant_student_scores_chance():
    rng = np.random.default_rng(0)
    taught = rng.normal(size=(20, 6)).astype(np.float32)
    taught /= np.linalg.norm(taught, axis=1, keepdims=True)
    constant = np.repeat(taught[:1], 20, axis=0)
    assert match(constant, taught, np.arange(20)) == pytest.approx(1 / 20)
    assert same_choice((constant, constant), (taught, taught), others=True) == pytest.approx(1 / 19)
    nothing = np.full_like(constant, np.nan)
    assert match(nothing, taught, np.arange(20)) == 0
    assert same_choice((nothing, nothing), (taught, taught), others=True) == pytest.approx(1 / 19)
    assert np.isnan(mean_cosine(nothing, taught))


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    a, b, c, d = (rng.normal(size=(n, 5)) for n in (23, 23, 11, 11))
    whole = same_choice((a, a), (b, b), others=True), same_choice((a, c), (b, d))
    monkeypatch.setattr("clipling.evals.agreement._BLOCK_BYTES", 8 * 23 * 4)
    assert (same_choice((a, a), (b, b), others=True), same_choice((a, c), (b, d))) == pytest.approx(whole)


def test_too_few_photos(photos):
    with pytest.raises(UserError, match="needs at least 2 held-out photos; there are 1"):
        Agreement(photos.subset([0]), model(3))
