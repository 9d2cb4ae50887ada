"""ONNX towers with weights in fp16: half the file, the arithmetic in fp32.

Activations stay fp32 on purpose. CPUs have few fp16 kernels, so a graph that computes in fp16 is no quicker there, and onnxruntime
1.32 crashes on such graphs of vision transformers while it optimises them. Here every weight is cast once, when the graph is opened.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SMALLEST = 256  # numbers: what is smaller (biases, constants of the preprocessing) is not worth a node
LARGEST = float(np.finfo(np.float16).max)


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with its weights in fp16; inputs, outputs and activations are as before.

    Rows of a table (read by Gather alone) are cast after they were read, so that the table stays small in memory, too. A tensor with
    numbers beyond fp16's range stays fp32.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    for tensor in [t for t in graph.initializer if t.data_type == TensorProto.FLOAT]:
        values = numpy_helper.to_array(tensor)
        if values.size < SMALLEST or not np.abs(values).max() <= LARGEST:
            continue
        readers = [node for node in graph.node if tensor.name in node.input]
        if all(node.op_type == "Gather" and node.input[0] == tensor.name for node in readers):
            _cast_after(graph, tensor.name, readers)
        else:
            cast = helper.make_node("Cast", [f"{tensor.name}_fp16"], [tensor.name], f"{tensor.name}_cast", to=TensorProto.FLOAT)
            graph.node.insert(0, cast)
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), f"{tensor.name}_fp16"))
        graph.initializer.remove(tensor)
    return made


def _cast_after(graph: onnx.GraphProto, name: str, readers: list[onnx.NodeProto]) -> None:
    for node in readers:
        out = node.output[0]
        node.input[0], node.output[0] = f"{name}_fp16", f"{out}_fp16"
        cast = helper.make_node("Cast", [f"{out}_fp16"], [out], f"{node.name}_cast", to=TensorProto.FLOAT)
        graph.node.insert(list(graph.node).index(node) + 1, cast)
