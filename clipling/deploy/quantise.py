"""ONNX towers in int8, by onnxruntime's quantiser.

Where matrix products do the work, weights are int8 by output channel and activations are quantised as they come (dynamic).
Where convolutions do, activations have fixed ranges out of calibration pictures (static, QDQ). Preprocessing stays as it is,
and so does any layer that the caller names.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from clipling.deploy.layers import before_first

TABLE = 2**16  # values: smaller tables of embeddings (positions) are not worth a node
BATCH = 8  # calibration rows at once
# What has an 8-bit kernel on CPUs and stands between convolutions: leaving it out would turn numbers to and fro.
BETWEEN = ("Add", "Mul")
# Quantised with the layer before them, whose range is then the cut one: a ReLU6 leaves [0, 6] of what may reach to 60.
CUTS = ("Relu", "Clip")
WEIGHTED = ("Conv", "MatMul", "Gemm")

Ranges = Mapping[str, tuple[float, float]]


def prepared(path: Path, static: bool) -> onnx.ModelProto:
    """The graph as the quantisers want it: constants folded, shapes inferred, and, for `dynamic`, every product a MatMul."""
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        # Symbolic shapes are left out: that pass fails on graphs of torch.onnx and wants sympy.
        quant_pre_process(str(path), f"{folder}/prepared.onnx", skip_symbolic_shape=True)
        model = onnx.load(f"{folder}/prepared.onnx")
    if not static:
        # The quantiser would do it and rename the nodes by which layers are kept.
        wrapped = ONNXModel(model)
        wrapped.replace_gemm_with_matmul()
        model = wrapped.model
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{number}"
    return model


def dynamic(model: onnx.ModelProto, keep: Collection[str] = ()) -> onnx.ModelProto:
    """int8 weights and activations quantised while running. `keep`: names of nodes that stay fp32."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        quantize_dynamic(
            _copy(model),
            f"{folder}/int8.onnx",
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(keep),
        )
        made = onnx.load(f"{folder}/int8.onnx")
    return _finished(tables(made))


def static(model: onnx.ModelProto, ranges: Any, keep: Collection[str] = (), between: bool = True) -> onnx.ModelProto:
    """int8 weights by output channel and uint8 activations with the ranges that `calibrate` found.

    keep: names of nodes that stay fp32. between: also sums and products.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import save_and_reload_model_with_shape_infer

    kinds = [*WEIGHTED, *CUTS, *(BETWEEN if between else ())]
    cuts = _cuts_beside(model, keep)
    alone = [*keep, *(node.name for node in cuts), *before_first(model)]
    ranges = _cut_ranges(model, ranges, cuts)
    shaped = save_and_reload_model_with_shape_infer(_copy(model))
    quantiser = QDQQuantizer(shaped, True, False, QuantType.QInt8, QuantType.QUInt8, ranges, [], alone, kinds, {})
    quantiser.quantize_model()
    return _finished(tables(quantiser.model.model))


def _cuts_beside(model: onnx.ModelProto, keep: Collection[str]) -> list[onnx.NodeProto]:
    """The ReLUs before and behind layers in fp32, which stay in fp32, too.

    Behind: quantised alone, they would round the uncut range before they cut it. Before: the quantiser takes a ReLU away where
    the rounding to its range cuts as well, and does so even where no rounding follows (onnxruntime 1.32).
    """
    kept = [node for node in model.graph.node if node.name in keep]
    beside = {name for node in kept for name in (*node.input, *node.output)}
    return [node for node in model.graph.node if node.op_type in CUTS and beside & {node.input[0], node.output[0]}]


def _cut_ranges(model: onnx.ModelProto, ranges: Any, cuts: Iterable[onnx.NodeProto]) -> Any:
    """The ranges, where what a ReLU alone reads has the range of what it gives: the rest of it is cut off anyway."""
    from onnxruntime.quantization.calibrate import TensorsData

    values, readers = dict(ranges.items()), Counter(name for node in model.graph.node for name in node.input)
    for node in cuts:
        if readers[node.input[0]] == 1 and node.input[0] in values and node.output[0] in values:
            values[node.input[0]] = values[node.output[0]]
    return TensorsData(ranges.calibration_method, values)


def calibrate(model: onnx.ModelProto, rows: np.ndarray) -> Any:
    """The least and greatest value of every activation over `rows` of the graph's input, as onnxruntime's TensorsData."""
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prepared.onnx"
        onnx.save(model, path)
        calibrator = create_calibrator(
            path,
            [*WEIGHTED, *CUTS, *BETWEEN],
            augmented_model_path=f"{folder}/augmented.onnx",
            calibrate_method=CalibrationMethod.MinMax,
        )
        calibrator.collect_data(_Reader(model.graph.input[0].name, rows))
        found = calibrator.compute_data()
        del calibrator  # it holds the augmented file open
    return found


def plain_ranges(ranges: Any) -> dict[str, tuple[float, float]]:
    """onnxruntime's TensorsData as (least, greatest) by name."""
    return {name: tuple(float(np.asarray(end).min()) for end in data.range_value) for name, data in ranges.items()}


class _Reader:
    """onnxruntime's CalibrationDataReader over an array."""

    def __init__(self, name: str, rows: np.ndarray) -> None:
        self.parts: Iterable[dict[str, np.ndarray]] = iter([{name: rows[start : start + BATCH]} for start in range(0, len(rows), BATCH)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.parts, None)

    def __iter__(self) -> _Reader:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self.parts)


def tables(model: onnx.ModelProto) -> onnx.ModelProto:
    """Large tables of embeddings (fp32 [v, w], read by Gather alone) as int8 rows with a scale each, changed in place.

    A scale for a row costs 4 bytes and keeps rare rows, which are small, as exact as frequent ones.
    """
    graph = model.graph
    for tensor in [t for t in graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) == 2]:
        readers = [node for node in graph.node if tensor.name in node.input]
        by_row = all(node.op_type == "Gather" and node.input[0] == tensor.name and _axis(node) == 0 for node in readers)
        if readers and by_row and tensor.dims[0] * tensor.dims[1] >= TABLE:
            _split_table(graph, tensor, readers)
    return model


def _split_table(graph: onnx.GraphProto, tensor: onnx.TensorProto, readers: list[onnx.NodeProto]) -> None:
    name = f"{tensor.name}/table"
    codes, scales = row_codes(numpy_helper.to_array(tensor))
    graph.initializer.remove(tensor)
    graph.initializer.extend([numpy_helper.from_array(codes, f"{name}_codes"), numpy_helper.from_array(scales, f"{name}_scales")])
    for node in readers:
        ids, out, place = node.input[1], node.output[0], list(graph.node).index(node)
        codes, whole, scale = f"{out}/codes", f"{out}/whole", f"{out}/scale"
        made = [
            helper.make_node("Gather", [f"{name}_codes", ids], [codes], f"{node.name}/codes"),
            helper.make_node("Cast", [codes], [whole], f"{node.name}/whole", to=TensorProto.FLOAT),
            helper.make_node("Gather", [f"{name}_scales", ids], [scale], f"{node.name}/scale"),
            helper.make_node("Mul", [whole, scale], [out], f"{node.name}/scaled"),
        ]
        graph.node.remove(node)
        for offset, new in enumerate(made):
            graph.node.insert(place + offset, new)


def row_codes(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int8 [v, w], fp32 [v, 1]): codes times scales is the table up to half a step, a row's largest value being 127 steps."""
    scales = np.abs(table).max(axis=1, keepdims=True).astype(np.float32) / 127
    safe = np.where(scales > 0, scales, 1)
    return np.rint(table / safe).astype(np.int8), scales


def _axis(node: onnx.NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "axis"), 0)


def _finished(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without what only the quantisers read, and signed as every graph of ours."""
    del model.graph.value_info[:]
    del model.metadata_props[:]
    model.producer_name, model.producer_version = "clipling", ""
    model.graph.name = "clipling"
    return model


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    return made
