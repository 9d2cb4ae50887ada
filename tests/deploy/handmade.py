"""An exported folder made by hand in a moment: two small graphs, a tokenizer of words, a manifest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from clipling.runtime.manifest import ImageSide, Manifest, TextSide

SIZE, DIM, WIDTH = 32, 24, 48
WORDS = [
    "a",
    "of",
    "the",
    "red",
    "green",
    "blue",
    "yellow",
    "black",
    "disc",
    "square",
    "bar",
    "on",
    "white",
    "grey",
    "pink",
    "in",
    "number",
]
ROWS = 3000  # token rows: enough for the table to be worth int8


class Graph:
    """Nodes and constants, added in order."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, values: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def weight(self, name: str, *shape: int) -> str:
        inputs = shape[0] if len(shape) == 2 else int(np.prod(shape[1:]))
        return self.constant(name, (self.rng.normal(size=shape) * np.sqrt(2 / inputs)).astype(np.float32))

    def add(self, kind: str, *inputs: str, name: str, **attributes) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def unit(self, value: str) -> None:
        length = self.add("ReduceL2", value, self.constant("last_axis", np.array([-1])), name="length", keepdims=1)
        self.nodes.append(helper.make_node("Div", [value, length], ["embedding"], name="unit"))

    def save(self, path: Path, source: onnx.ValueInfoProto) -> None:
        result = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", DIM])
        graph = helper.make_graph(self.nodes, "handmade", [source], [result], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)


def pixels_first(graph: Graph) -> str:
    chw = graph.add("Transpose", "pixels", name="preprocess/chw", perm=[0, 3, 1, 2])
    cast = graph.add("Cast", chw, name="preprocess/cast", to=TensorProto.FLOAT)
    scaled = graph.add("Mul", cast, graph.constant("scale", np.float32([1 / 64])), name="preprocess/scaled")
    return graph.add("Sub", scaled, graph.constant("shift", np.float32([2])), name="preprocess/normalised")


def convolutional(path: Path, seed: int = 0) -> None:
    """Four convolutions with ReLU6 and ReLU, a residual sum, a projection."""
    g = Graph(seed)
    x = pixels_first(g)
    zero, six = g.constant("zero", np.float32(0)), g.constant("six", np.float32(6))
    x = g.add("Conv", x, g.weight("w0", 16, 3, 3, 3), name="conv0", strides=[2, 2], pads=[1, 1, 1, 1])
    x = first = g.add("Clip", x, zero, six, name="clip0")
    x = g.add("Conv", x, g.weight("w1", 16, 16, 3, 3), name="conv1", pads=[1, 1, 1, 1])
    x = g.add("Relu", x, name="relu1")
    x = g.add("Conv", x, g.weight("w2", 16, 16, 1, 1), name="conv2")
    x = g.add("Add", x, first, name="sum")
    x = g.add("Conv", x, g.weight("w3", WIDTH, 16, 1, 1), name="conv3")
    x = g.add("Flatten", g.add("GlobalAveragePool", g.add("Relu", x, name="relu3"), name="pool"), name="flat")
    g.unit(g.add("Gemm", x, g.weight("w4", WIDTH, DIM), name="head"))
    g.save(path, helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", "h", "w", 3]))


def matrix_products(path: Path, seed: int = 0) -> None:
    """Patches and three matrix products."""
    g = Graph(seed)
    x = g.add("Reshape", pixels_first(g), g.constant("patches", np.array([0, -1, 64])), name="patched")
    for number, (rows, columns) in enumerate([(64, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH)]):
        x = g.add("Relu", g.add("MatMul", x, g.weight(f"w{number}", rows, columns), name=f"product{number}"), name=f"relu{number}")
    x = g.add("ReduceMean", x, g.constant("tokens_axis", np.array([1])), name="pool", keepdims=0)
    g.unit(g.add("MatMul", x, g.weight("w3", WIDTH, DIM), name="head"))
    g.save(path, helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", "h", "w", 3]))


def text(path: Path, seed: int = 1) -> None:
    """A table of token rows and two matrix products."""
    g = Graph(seed)
    x = g.add("Gather", g.constant("table", g.rng.normal(size=(ROWS, WIDTH)).astype(np.float32)), "tokens", name="rows")
    x = g.add("Relu", g.add("MatMul", x, g.weight("w0", WIDTH, WIDTH), name="product0"), name="relu0")
    x = g.add("ReduceMean", x, g.constant("tokens_axis", np.array([1])), name="pool", keepdims=0)
    g.unit(g.add("MatMul", x, g.weight("w1", WIDTH, DIM), name="head"))
    g.save(path, helper.make_tensor_value_info("tokens", TensorProto.INT64, ["n", "length"]))


def folder(place: Path, image=matrix_products) -> Path:
    """A folder that `clipling.load` opens."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    place.mkdir(parents=True, exist_ok=True)
    image(place / "image.onnx")
    text(place / "text.onnx")
    tokenizer = Tokenizer(models.WordLevel({"?": 0, **{word: i + 1 for i, word in enumerate(WORDS)}}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(place / "tokenizer.json"))
    side = ImageSide(SIZE, [0.5] * 3, [0.25] * 3, "bicubic", "squash", 0, {"fp32": "image.onnx"})
    words = TextSide(16, "tokenizer.json", "lower", None, None, 0, False, {"fp32": "text.onnx"})
    Manifest("handmade", DIM, 10.0, None, side, words, {}).write(place)
    return place


def plant(path: Path, before: str, after: str, times: float = 1000.0, channel: int = 3) -> None:
    """Makes the layer with the weight `after` unfit for int8 without changing what the graph computes.

    One channel between both layers is divided by `times` in the first weight and multiplied in the second; a ReLU between lets it
    through. The second layer's scales must then serve numbers that are 1,000 times larger than all others.
    """
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name in (before, after):
            values = numpy_helper.to_array(tensor).copy()
            first = tensor.name == before
            # A convolution's weight is [out, in, ...], a matrix product's [in, out].
            axis = int(first) if values.ndim == 2 else int(not first)
            values[(slice(None),) * axis + (channel,)] *= 1 / times if first else times
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """Smooth random pictures uint8 [count, SIZE, SIZE, 3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 4, 3))
    return np.repeat(np.repeat(coarse, SIZE // 4, 1), SIZE // 4, 2).astype(np.uint8)
