"""int8 graphs: what is quantised, how near they stay, how small they are."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from clipling.deploy import quantise
from clipling.deploy.fp16 import halved
from clipling.deploy.layers import before_first, convolutional, layers, session
from clipling.deploy.sensitivity import rounded, rows_for, sensitivity, steps
from tests.deploy import handmade


def run(model: onnx.ModelProto, rows: np.ndarray) -> np.ndarray:
    return session(model).run(None, {model.graph.input[0].name: rows})[0]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("graphs")
    return {
        "conv": handmade.folder(place / "conv", handmade.convolutional),
        "matmul": handmade.folder(place / "matmul", handmade.matrix_products),
    }


def test_arithmetic_is_counted_as_by_hand(folders):
    found = layers(onnx.load(folders["conv"] / "image.onnx"), {"pixels": handmade.pictures(1)})
    area = 16 * 16  # after the stride
    by_hand = [area * 16 * 27, area * 16 * 16 * 9, area * 16 * 16, area * handmade.WIDTH * 16, handmade.WIDTH * handmade.DIM]
    assert [layer.macs for layer in found] == by_hand
    assert convolutional(found)
    found = layers(onnx.load(folders["matmul"] / "image.onnx"), {"pixels": handmade.pictures(2)})
    assert found[0].macs == 2 * 48 * 64 * handmade.WIDTH
    assert not convolutional(found)


def test_preprocessing_is_found_by_the_graph_and_left_alone(folders):
    model = quantise.prepared(folders["conv"] / "image.onnx", True)
    assert set(before_first(model)) == {f"preprocess/{name}" for name in ("chw", "cast", "scaled", "normalised")}
    made = quantise.static(model, quantise.calibrate(model, handmade.pictures(8)))
    reads = {
        node.op_type: [n.op_type for n in made.graph.node if node.output[0] in n.input]
        for node in made.graph.node
        if "preprocess" in node.name
    }
    assert reads["Cast"] == ["Mul"]
    assert reads["Mul"] == ["Sub"]


def test_static_int8_of_convolutions(folders):
    path, rows = folders["conv"] / "image.onnx", handmade.pictures(64)
    model = quantise.prepared(path, True)
    made = quantise.static(model, quantise.calibrate(model, rows[:32]))
    cosines = (run(made, rows) * run(onnx.load(path), rows)).sum(1)
    assert cosines.mean() > 0.99
    assert cosines.mean() < 1 - 1e-7  # it is int8
    weights = [t for t in made.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1]
    assert len(weights) == 5
    scales = {t.name: t.dims for t in made.graph.initializer if t.name.endswith("_scale")}
    assert list(scales["w1_scale"]) == [16]  # by channel


def test_dynamic_int8_of_matrix_products_and_the_token_table(folders):
    for side, rows in (("image", handmade.pictures(32)), ("text", np.random.default_rng(0).integers(0, handmade.ROWS, (32, 7)))):
        path = folders["matmul"] / f"{side}.onnx"
        made = quantise.dynamic(quantise.prepared(path, False))
        cosines = (run(made, rows) * run(onnx.load(path), rows)).sum(1)
        assert 0.995 < cosines.mean() < 1 - 1e-7
        assert {"MatMulInteger", "DynamicQuantizeLinear"} <= {node.op_type for node in made.graph.node}
        assert not any(node.op_type == "MatMul" for node in made.graph.node)
    assert len(made.SerializeToString()) < 0.35 * path.stat().st_size


def test_kept_layers_stay_fp32(folders):
    model = quantise.prepared(folders["matmul"] / "image.onnx", False)
    kept = quantise.dynamic(model, ["product1"])
    assert [node.name for node in kept.graph.node if node.op_type == "MatMul"] == ["product1"]
    model = quantise.prepared(folders["conv"] / "image.onnx", True)
    kept = quantise.static(model, quantise.calibrate(model, handmade.pictures(8)), ["conv1"], False)
    names = {t.name: t.data_type for t in kept.graph.initializer}
    assert names["w1"] == onnx.TensorProto.FLOAT
    # Its ReLU reads what the convolution gives, and not a rounded copy of it.
    relu = next(node for node in kept.graph.node if node.name == "relu1")
    assert relu.input[0] == "conv1_out"


def test_keeping_a_layer_never_harms(folders):
    path, rows = folders["conv"] / "image.onnx", handmade.pictures(32)
    model, plain = quantise.prepared(path, True), run(onnx.load(path), rows)
    ranges = quantise.calibrate(model, rows)
    all_int8 = (run(quantise.static(model, ranges), rows) * plain).sum(1).mean()
    for name in ("conv0", "conv1", "conv2", "conv3", "head"):
        for between in (True, False):
            kept = (run(quantise.static(model, ranges, [name], between), rows) * plain).sum(1).mean()
            assert kept > all_int8 - 2e-4, (name, between)


def test_rows_of_a_table_are_exact_to_half_a_step():
    table = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32) * np.geomspace(1e-3, 1e3, 50, dtype=np.float32)[:, None]
    table[7] = 0
    codes, scales = quantise.row_codes(table)
    assert codes.dtype == np.int8
    assert (np.abs(codes * scales - table) <= scales / 2 * 1.001).all()
    assert not codes[7].any()


def test_small_tables_and_tables_read_otherwise_stay():
    rows = numpy_helper.from_array(np.ones((4000, 32), np.float32), "rows")
    gather = onnx.helper.make_node("Gather", ["rows", "ids"], ["a"], "g")
    product = onnx.helper.make_node("MatMul", ["x", "rows"], ["b"], "m")
    for nodes in ([gather, product], [product]):
        model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], [rows]))
        assert [t.name for t in quantise.tables(model).graph.initializer] == ["rows"]
    small = numpy_helper.from_array(np.ones((10, 32), np.float32), "rows")
    model = onnx.helper.make_model(onnx.helper.make_graph([gather], "g", [], [], [small]))
    assert [t.name for t in quantise.tables(model).graph.initializer] == ["rows"]


@pytest.mark.parametrize(("kind", "before", "after", "bad"), [("matmul", "w0", "w1", "product1"), ("conv", "w1", "w2", "conv2")])
def test_a_planted_bad_layer_is_found(tmp_path, kind, before, after, bad):
    place = handmade.folder(tmp_path / kind, handmade.convolutional if kind == "conv" else handmade.matrix_products)
    rows = handmade.pictures(32)
    path = place / "image.onnx"
    healthy = run(onnx.load(path), rows)
    handmade.plant(path, before, after)
    np.testing.assert_allclose(run(onnx.load(path), rows), healthy, atol=1e-4)  # the same function
    static = kind == "conv"
    model = quantise.prepared(path, static)
    found = layers(model, {"pixels": rows[:1]})
    ranges = quantise.calibrate(model, rows) if static else None
    errors = sensitivity(model, found, rows, quantise.plain_ranges(ranges) if static else None)
    worst, second = list(errors)[:2]
    assert worst == bad
    assert errors[worst] > 10 * errors[second]
    for keep in ([], [bad]):
        made = quantise.static(model, ranges, keep) if static else quantise.dynamic(model, keep)
        cosine = (run(made, rows) * healthy).sum(1).mean()
        assert cosine > 0.99 if keep else cosine < 0.99


def test_sensitivity_rounds_as_the_quantiser_does():
    weight = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    by_hand = np.stack([np.rint(w / (abs(w).max() / 127)) * (abs(w).max() / 127) for w in weight.T], axis=1)
    np.testing.assert_allclose(rounded(weight, 1), by_hand, rtol=1e-6)
    assert steps(-1.0, 3.0) == (pytest.approx(4 / 255), 64)
    assert steps(0.5, 3.0) == (pytest.approx(3 / 255), 0)  # zero is always exact
    assert steps(0.0, 0.0)[0] == 1.0


def test_the_number_of_rows_follows_the_arithmetic():
    from clipling.deploy.layers import Layer

    assert rows_for([Layer("a", "MatMul", "x", "w", 1, 10)]) == 32
    assert rows_for([Layer("a", "MatMul", "x", "w", 1, 10**12)]) == 4


def test_fp16_halves_the_file_and_computes_in_fp32(folders):
    for side, rows in (("image", handmade.pictures(16)), ("text", np.random.default_rng(0).integers(0, handmade.ROWS, (16, 7)))):
        path = folders["conv"] / f"{side}.onnx"
        plain = onnx.load(path)
        made = halved(plain)
        onnx.checker.check_model(made, full_check=True)
        got, expected = run(made, rows), run(plain, rows)
        assert got.dtype == np.float32
        assert 1e-7 < np.abs(got - expected).max() < 2e-3
        weights = sum(t.dims[0] * np.prod(t.dims[1:]) for t in plain.graph.initializer if len(t.dims) > 1)
        assert path.stat().st_size - len(made.SerializeToString()) > 1.8 * weights
    assert [t.data_type for t in plain.graph.initializer if t.name == "table"] == [onnx.TensorProto.FLOAT]  # the argument is as before


def test_fp16_leaves_what_would_overflow():
    big = numpy_helper.from_array(np.full((20, 20), 1e6, np.float32), "big")
    node = onnx.helper.make_node("MatMul", ["x", "big"], ["y"], "m")
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [], [big]))
    assert halved(model).graph.initializer[0].data_type == onnx.TensorProto.FLOAT
