"""The graph's resize, crop and pad against Pillow's, on sizes of every kind."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from PIL import Image

from clipling.data.views import eval_pixels
from clipling.deploy.preprocess import PREFIX, preprocessing
from clipling.errors import UserError

SIZE = 48
FIXED = [(1, 1), (1, 300), (300, 1), (48, 48), (48, 49), (49, 48), (47, 96), (96, 97), (500, 333), (129, 248), (248, 129), (96, 5), (5, 96)]


def session(**cfg) -> onnxruntime.InferenceSession:
    cfg = {"size": SIZE, "mean": [0, 0, 0], "std": [1, 1, 1], **cfg}
    made = preprocessing(cfg, "pixels", "out")
    source = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", "h", "w", 3])
    result = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 3, None, None])
    graph = helper.make_graph(made.nodes, "g", [source], [result], made.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    assert all(node.name.startswith(PREFIX) for node in made.nodes)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def run(model, array: np.ndarray) -> np.ndarray:
    return model.run(None, {"pixels": array[None]})[0][0].transpose(1, 2, 0)


@pytest.mark.parametrize("mode", ["squash", "shortest", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_are_pillows(mode, interpolation):
    cfg = {"resize_mode": mode, "interpolation": interpolation, "fill_color": 7}
    model, rng = session(**cfg), np.random.default_rng(0)
    off = []
    for height, width in [*FIXED, *rng.integers(1, 200, (30, 2)).tolist()]:
        array = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)  # noise: nothing is harder on a filter
        expected = eval_pixels(Image.fromarray(array), {"size": SIZE, **cfg})
        got = run(model, array) * 255
        assert got.shape == expected.shape, (height, width)
        difference = np.abs(np.rint(got) - expected)
        assert difference.max() <= 2, (height, width)
        off.append((difference > 0).mean())
    assert np.mean(off) < 0.01


def test_a_picture_of_the_models_size_is_left_as_it_is():
    array = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    for mode in ("squash", "shortest", "longest"):
        assert np.array_equal(np.rint(run(session(resize_mode=mode), array) * 255), array)


def test_normalised_as_in_training():
    mean, std = [0.48, 0.45, 0.4], [0.27, 0.26, 0.2]
    array = np.random.default_rng(2).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    got = run(session(resize_mode="squash", mean=mean, std=std), array)
    assert np.abs(got - (array / 255 - mean) / std).max() < 1e-5


@pytest.mark.parametrize(("cfg", "message"), [({"resize_mode": "crop"}, "resize_mode 'crop'"), ({"interpolation": "lanczos"}, "'lanczos'")])
def test_what_is_not_known(cfg, message):
    with pytest.raises(UserError, match=message):
        session(**cfg)
