"""Evaluators with a real tiny student: the same numbers as doing it by hand with stock open_clip's preprocessing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clipling.data.classes import LabelledImages
from clipling.data.source import open_pairs
from clipling.errors import UserError
from clipling.evals.evaluators import Retrieval, ZeroShot
from clipling.evals.retrieval import recall
from clipling.evals.zeroshot import zero_shot
from clipling.models.hub import new_student
from tests.toy import toy_folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return open_pairs(str(toy_folder(tmp_path_factory.mktemp("toy") / "pairs", count=40)))


@pytest.fixture(scope="module")
def student():
    return new_student("tiny_vit_32", seed=3)


def by_hand(student, pairs) -> np.ndarray:
    """[P, d] image features, one picture at a time through open_clip's own transform."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    transform = image_transform_v2(PreprocessCfg(**student.preprocess_cfg), is_train=False)
    with torch.no_grad():
        student.eval()
        rows = [student.encode_image(transform(pairs.image(i))[None]) for i in range(len(pairs))]
    return torch.cat(rows).numpy()


def test_retrieval_equals_open_clips_preprocessing_by_hand(fresh_cache, student, pairs):
    evaluator = Retrieval(pairs, ks=(1, 10))
    image, text = evaluator.features(student)
    np.testing.assert_allclose(image, by_hand(student, pairs), atol=1e-5)
    with torch.no_grad():
        expected = student.encode_text(student.tokenise(pairs.captions)).numpy()
    np.testing.assert_allclose(text, expected, atol=1e-5)
    assert dict(evaluator(student)) == recall(image, text, pairs.offsets, ks=(1, 10))
    assert list(dict(evaluator(student))) == ["i2t_recall@1", "i2t_recall@10", "t2i_recall@1", "t2i_recall@10"]


def test_tokens_are_made_once_a_student_and_the_mode_is_kept(fresh_cache, student, pairs, monkeypatch):
    evaluator, calls = Retrieval(pairs), []
    plain = type(student).tokenise
    monkeypatch.setattr(type(student), "tokenise", lambda self, texts: calls.append(self) or plain(self, texts))
    student.train()
    first, second = dict(evaluator(student)), dict(evaluator(student))
    assert first == second
    assert student.training
    assert len(calls) == 1
    dict(evaluator(new_student("tiny_vit_32", seed=4)))
    assert len(calls) == 2, "another student has another tokenizer"


def test_groups_of_pairs_are_right_answers(fresh_cache, student, pairs):
    pairs = pairs.subset(range(len(pairs)))
    pairs.groups = ["one"] * len(pairs)
    assert dict(Retrieval(pairs)(student))["i2t_recall@1"] == 1
    assert dict(Retrieval(pairs, groups=False)(student))["i2t_recall@1"] < 1


def test_zero_shot_over_labelled_pictures(fresh_cache, student, pairs):
    labels = np.arange(len(pairs)) % 3
    labelled = LabelledImages("toy", pairs.keys, pairs.locations, labels, ["red", "green", "blue"], ["a {c} thing"])
    with torch.no_grad():
        student.eval()
        words = student.encode_text(student.tokenise(["a red thing", "a green thing", "a blue thing"])).numpy()
    assert dict(ZeroShot(labelled)(student)) == pytest.approx(zero_shot(by_hand(student, pairs), labels, words))
    with pytest.raises(UserError, match="2 class names are given for toy, which has 3"):
        ZeroShot(labelled, classnames=["a", "b"])


def test_pairs_without_captions_are_refused(pairs):
    bare = pairs.subset([])
    with pytest.raises(UserError, match="has no captions"):
        Retrieval(bare)
