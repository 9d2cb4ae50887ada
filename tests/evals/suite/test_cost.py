"""Costs against closed forms and against the files and counts that they describe."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from clipling.data.classes import LabelledImages
from clipling.data.source import open_pairs
from clipling.errors import UserError
from clipling.evals.suite.cost import METRICS, Cost, image_flops, lengths, text_flops
from clipling.evals.suite.dataset import Dataset
from clipling.evals.suite.subject import Subject
from clipling.models.hub import new_student, save_student
from tests.models.making import CAPTIONS, small_conv
from tests.toy import toy_folder


@pytest.fixture(scope="module")
def student():
    return new_student("tiny_vit_32", seed=0).eval()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return open_pairs(str(toy_folder(tmp_path_factory.mktemp("toy") / "pairs", count=12)))


def layer(length: int, width: int, mlp: int, queries: int | None = None) -> int:
    """Multiply-adds of a transformer layer; with `queries`, only so many positions need more than their key and value."""
    queries = length if queries is None else queries
    attention = queries * width * width + 2 * length * width * width + 2 * queries * length * width + queries * width * width
    return attention + 2 * queries * width * mlp


def test_an_image_is_counted_as_by_hand_attention_included(student):
    tokens = 17  # 4 x 4 patches of 8 x 8 pixels, and one for the class
    by_hand = 16 * (3 * 8 * 8) * 128 + 3 * layer(tokens, 128, 256) + 128 * 64
    assert image_flops(student) == 2 * by_hand


@pytest.mark.parametrize("words", [0, 5, 200])
def test_a_text_is_counted_as_by_hand_without_padding(student, words):
    length = min(words + 2, 77)
    by_hand = layer(length, 64, 128) + layer(length, 64, 128, queries=1) + 64 * 64
    assert text_flops(student, "dog " * words) == 2 * by_hand
    assert lengths(student, ["dog " * words]) == [length]


def test_convolutions_are_counted_as_by_hand():
    """Every convolution and linear map of a MobileNet, from the shapes that hooks see (groups and strides included)."""
    student = new_student(small_conv(), seed=0).eval()
    spent = []

    def see(module, inputs, output):
        weights = module.weight[0].numel()  # multiply-adds of one output number
        spent.append(2 * output.numel() * weights)

    hooks = [m.register_forward_hook(see) for m in student.model.visual.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    counted = image_flops(student)
    [hook.remove() for hook in hooks]
    assert counted == sum(spent) > 0


def test_counting_leaves_torch_and_the_student_as_they_were(student):
    student.train()
    before = torch.backends.mha.get_fastpath_enabled()
    image_flops(student)
    assert torch.backends.mha.get_fastpath_enabled() == before
    assert student.training
    student.eval()


def test_what_is_reported(student, pairs, tmp_path):
    found = Cost(rounds=2)(Subject(student, "tiny", cache=tmp_path), Dataset("toy", pairs))
    metrics = found.metrics
    assert tuple(metrics) == METRICS
    assert metrics["parameters"] == sum(p.numel() for p in student.parameters())
    assert metrics["parameters"] - metrics["parameters_without_token_rows"] == 49408 * 64
    assert metrics["image_gflops"] == image_flops(student) / 1e9
    assert metrics["text_gflops"] == text_flops(student, "dog " * 100) / 1e9
    assert 0 < metrics["image_ms"] < 1000
    assert 0 < metrics["text_ms"] < 1000
    save_student(student, tmp_path / "model")
    size = (tmp_path / "model" / "open_clip_model.safetensors").stat().st_size / 1e6
    assert metrics["file_mb"] <= size < metrics["file_mb"] + 0.05, "but for the file's header"
    assert found.details["threads"] == torch.get_num_threads()
    assert found.details["environment"]["machine"]["processor"] in found.notes[0]
    assert json.loads(json.dumps(found.details, allow_nan=False)) == found.details
    assert not found.items


def test_the_mean_length_is_that_of_the_datasets_texts(student, pairs, tmp_path):
    subject = Subject(student, "tiny", cache=tmp_path)
    text = Cost(rounds=1)(subject, Dataset("toy", pairs)).details["text"]
    needed = (student.tokenise(pairs.captions) == 49407).int().argmax(1) + 1
    assert text["tokens_mean"] == pytest.approx(float(needed.double().mean()))
    assert text["tokens_nearest"] == int(needed[(needed - text["tokens_mean"]).abs().argmin()])
    assert text["gflops_nearest"] < text["gflops_full"]
    assert (text["tokens_full"], text["tokens_timed"]) == (77, 12)
    source = LabelledImages("toy", pairs.keys, pairs.locations, np.arange(len(pairs)) % 2, ["dog", "cat"], ["a photo of a {c}"])
    assert Cost(rounds=1)(subject, Dataset("toy", source)).details["text"]["tokens_mean"] == 7


def test_a_restricted_vocabulary_saves_memory_and_not_the_file(pairs, tmp_path):
    small = new_student("tiny_vit_32", seed=0, vocabulary=CAPTIONS)
    found = Cost(rounds=1)(Subject(small, "small", cache=tmp_path), Dataset("toy", pairs)).metrics
    assert found["parameters"] < 2e6
    assert found["file_mb"] > 49408 * 64 * 4 / 1e6
    assert found["parameters_without_token_rows"] == small.sizes()["total_without_token_rows"]


def test_settings():
    assert TypeAdapter(Cost).validate_python({"rounds": 3}) == Cost(rounds=3)
    with pytest.raises(UserError, match="rounds is 0"):
        TypeAdapter(Cost).validate_python({"rounds": 0})
