"""Which layers suffer from int8: each alone is rounded as the quantiser would, and the embeddings are compared.

One instrumented graph serves all layers: every layer's input passes a switch between the values and their rounded copy, and
every weight can be replaced, so that trying a layer is one run and no new session.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from clipling.deploy.layers import Layer, constant, session
from clipling.deploy.quantise import Ranges

FEWEST, MOST = 4, 32  # rows that are compared
BUDGET = 3e10  # multiply-adds in all, as far as FEWEST allows: well below a minute of one core for small towers


def sensitivity(model: onnx.ModelProto, found: Sequence[Layer], rows: np.ndarray, ranges: Ranges | None) -> dict[str, float]:
    """1 - mean cosine of the embeddings when one layer alone is in int8, by the node's name, the worst first.

    model: a prepared graph. found: its layers; those without a constant weight are passed over. rows: of the graph's input, of
    which a few are taken. ranges: of the activations (static), None where they are quantised as they come (dynamic).
    """
    weighted = [layer for layer in found if layer.weight is not None]
    if not weighted:
        return {}
    rows = rows[: rows_for(weighted)]
    switched = session(instrumented(model, weighted, ranges))
    name = model.graph.input[0].name
    plain = switched.run(["embedding"], {name: rows})[0]
    errors = {}
    for number, layer in enumerate(weighted):
        feed = {name: rows, layer.weight: rounded(constant(model, layer.weight), layer.axis), f"switch_{number}": np.array(True)}
        errors[layer.node] = 1.0 - float((plain * switched.run(["embedding"], feed)[0]).sum(1, dtype=np.float64).mean())
    return dict(sorted(errors.items(), key=lambda item: -item[1] if np.isfinite(item[1]) else -np.inf))


def rows_for(found: Sequence[Layer]) -> int:
    """How many rows are compared, so that trying every layer stays within `BUDGET`."""
    once = sum(layer.macs for layer in found) * (len(found) + 1)
    return int(np.clip(BUDGET // max(once, 1), FEWEST, MOST))


def rounded(weight: np.ndarray, axis: int) -> np.ndarray:
    """The weight as int8 codes with a scale for each channel of `axis` show it."""
    others = tuple(place for place in range(weight.ndim) if place != axis)
    scale = np.abs(weight).max(axis=others, keepdims=True) / 127
    return (np.rint(weight / np.where(scale > 0, scale, 1)) * scale).astype(weight.dtype)


def instrumented(model: onnx.ModelProto, found: Sequence[Layer], ranges: Ranges | None) -> onnx.ModelProto:
    """The graph with `switch_0`, `switch_1`, ... (bool, off) as further inputs, and the layers' weights, which may be replaced."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    number_of = {layer.node: number for number, layer in enumerate(found)}
    nodes = []
    for node in list(made.graph.node):
        if node.name in number_of:
            nodes += _switch(made.graph, node, number_of[node.name], ranges)
        nodes.append(node)
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    kinds = {tensor.name: tensor for tensor in made.graph.initializer}
    for name in dict.fromkeys(layer.weight for layer in found):
        made.graph.input.append(helper.make_tensor_value_info(name, kinds[name].data_type, list(kinds[name].dims)))
    return made


def _switch(graph: onnx.GraphProto, node: onnx.NodeProto, number: int, ranges: Ranges | None) -> list[onnx.NodeProto]:
    source, prefix = node.input[0], f"switch_{number}"
    node.input[0] = f"{prefix}_out"
    graph.initializer.append(numpy_helper.from_array(np.array(False), prefix))
    graph.input.append(helper.make_tensor_value_info(prefix, TensorProto.BOOL, []))
    codes, step, zero = f"{prefix}_codes", f"{prefix}_step", f"{prefix}_zero"
    if ranges is None:
        rounding = helper.make_node("DynamicQuantizeLinear", [source], [codes, step, zero])
    else:
        scale, point = steps(*ranges[source])
        graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), step))
        graph.initializer.append(numpy_helper.from_array(np.array(point, np.uint8), zero))
        rounding = helper.make_node("QuantizeLinear", [source, step, zero], [codes])
    return [
        rounding,
        helper.make_node("DequantizeLinear", [codes, step, zero], [f"{prefix}_rounded"]),
        helper.make_node("Where", [prefix, f"{prefix}_rounded", source], [f"{prefix}_out"]),
    ]


def steps(low: float, high: float) -> tuple[float, int]:
    """(scale, zero point) of uint8 codes from low to high, zero being exact."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255 or 1.0
    return scale, int(np.clip(np.rint(-low / scale), 0, 255))
