"""What an ONNX graph computes with: its convolutions and matrix products, and how much arithmetic each of them is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

KINDS = ("Conv", "MatMul", "Gemm")


@dataclass(frozen=True)
class Layer:
    """One convolution or matrix product.

    node: its name. source: the value that it reads. weight: its constant, None where both factors are computed (attention).
    axis: the weight's axis of output channels. macs: multiply-adds for the input that `layers` was given.
    """

    node: str
    kind: str
    source: str
    weight: str | None
    axis: int
    macs: int


def layers(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> list[Layer]:
    """The layers of a graph in its order, with the arithmetic that `feed` costs.

    The graph is run once: shapes that are worked out inside of it are then known, whatever the exporter wrote of them.
    """
    nodes = [node for node in model.graph.node if node.op_type in KINDS]
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    wanted = {name for node in nodes for name in (node.input[0], node.output[0]) if name not in weights}
    shapes = {name: value.shape for name, value in computed(model, feed, wanted - set(feed)).items()}
    shapes |= weights | {name: value.shape for name, value in feed.items()}
    return [_layer(node, weights, shapes) for node in nodes]


def _layer(node: onnx.NodeProto, weights: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]]) -> Layer:
    transposed = {a.name: a.i for a in node.attribute if a.name in ("transA", "transB")}
    weight = node.input[1] if node.input[1] in weights else None
    if node.op_type == "Conv":
        each, axis = int(np.prod(shapes[node.input[1]][1:])), 0
    else:
        each = shapes[node.input[0]][0 if transposed.get("transA") else -1]
        axis = 0 if transposed.get("transB") else len(weights.get(node.input[1], (0, 0))) - 1
    return Layer(node.name, node.op_type, node.input[0], weight, axis, int(np.prod(shapes[node.output[0]])) * each)


def computed(model: onnx.ModelProto, feed: Mapping[str, np.ndarray], names: set[str]) -> dict[str, np.ndarray]:
    """The values of the given names inside of a graph."""
    looked_into = onnx.ModelProto()
    looked_into.CopyFrom(model)
    del looked_into.graph.output[:]
    asked = sorted(names)
    looked_into.graph.output.extend(onnx.ValueInfoProto(name=name) for name in asked)
    return dict(zip(asked, session(looked_into).run(asked, dict(feed)))) if asked else {}


def session(model: onnx.ModelProto) -> Any:
    """An onnxruntime session of a graph in memory, one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def convolutional(found: list[Layer]) -> bool:
    """Whether convolutions do more than half of the arithmetic."""
    return 2 * sum(layer.macs for layer in found if layer.kind == "Conv") > sum(layer.macs for layer in found)


def before_first(model: onnx.ModelProto) -> list[str]:
    """The names of the nodes that the first layer with a constant weight depends on: the preprocessing of an image graph.

    What merely works out shapes on the way is among them.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    first = next((n for n in model.graph.node if n.op_type in KINDS and n.input[1] in constants), None)
    if first is None:
        return []
    maker = {name: node for node in model.graph.node for name in node.output}
    open_names, found = list(first.input), []
    while open_names:
        node = maker.get(open_names.pop())
        if node is not None and node.name not in found:
            found.append(node.name)
            open_names.extend(node.input)
    return found


def constant(model: onnx.ModelProto, name: str) -> np.ndarray:
    """The values of an initializer."""
    return numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == name))
