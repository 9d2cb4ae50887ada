"""Both towers of a student as ONNX files that need nothing else: preprocessing and unit rows are inside of the graphs."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from clipling.deploy.graphs import ImageGraph, TextGraph
from clipling.deploy.preprocess import PREFIX, preprocessing
from clipling.errors import UserError
from clipling.models.dual import Student
from clipling.store import atomic_produce

OPSET = 18  # the first with an antialiased Resize; later ones are in fewer runtimes of phones and browsers
LARGEST = 2**31 - 1  # bytes of a protobuf message
IMAGE, TEXT = "image.onnx", "text.onnx"
NORMALISED = f"{PREFIX}normalised"


@dataclass(frozen=True)
class Towers:
    """What was written: the files, and whether text rows must have the context length."""

    image: Path
    text: Path
    fixed_length: bool


def export_towers(student: Student, folder: Path) -> Towers:
    """Writes `image.onnx` and `text.onnx` of a student into `folder`, fp32, each whole or not at all.

    image: `pixels` uint8 [n, height, width, 3] to `embedding` float32 [n, d], unit rows. text: `tokens` int64 [n, length] to
    the same. UserError where a tower cannot be traced, or where a graph is above 2 GB.
    """
    image = image_model(student)
    _save(image, folder / IMAGE)
    text, fixed_length = text_model(student)
    _save(text, folder / TEXT)
    return Towers(folder / IMAGE, folder / TEXT, fixed_length)


def image_model(student: Student) -> onnx.ModelProto:
    """The image tower, with its preprocessing before it."""
    size = student.image_size
    # Two pictures: a batch of one would be traced as always one.
    traced = _traced(ImageGraph(student), torch.zeros(2, 3, size, size), {0: "n"}, "image tower")
    _rename(traced.graph, traced.graph.input[0].name, NORMALISED)
    before = preprocessing(student.preprocess_cfg, "pixels", NORMALISED)
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", "height", "width", 3])
    return _finished(traced, pixels, student.embed_dim, before.nodes, before.constants)


def text_model(student: Student) -> tuple[onnx.ModelProto, bool]:
    """The text tower, and whether its rows must have the context length."""
    module = TextGraph(student)
    length = student.context_length
    free = {0: "n"} if module.fixed_length else {0: "n", 1: "length"}
    tokens = student.tokenise(["a dog runs through the snow", "two children"])
    if not module.fixed_length:
        tokens = tokens[:, : max(2, length // 2)]
    traced = _traced(module, tokens, free, "text tower")
    _rename(traced.graph, traced.graph.input[0].name, "tokens")
    rows = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["n", length if module.fixed_length else "length"])
    return _finished(traced, rows, student.embed_dim), module.fixed_length


def _traced(module: nn.Module, example: Tensor, free: dict[int, str], what: str) -> onnx.ModelProto:
    """The module as torch.export traces it. `free` names the dimensions that may vary."""
    shapes = (dict.fromkeys(free, torch.export.Dim.DYNAMIC),)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module.eval(), (example,), dynamo=True, opset_version=OPSET, dynamic_shapes=shapes, verbose=False
            )  # fmt: skip
    except Exception as error:  # the exporter's errors share no other parent
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"torch {torch.__version__} cannot export the {what} to ONNX: {first}") from error
    return program.model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks, and without the fused attention of torch's own, which ONNX does not know."""
    fast = torch.backends.mha.get_fastpath_enabled()
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _finished(
    traced: onnx.ModelProto,
    source: onnx.ValueInfoProto,
    embed_dim: int,
    nodes: list[onnx.NodeProto] | None = None,
    constants: list[onnx.TensorProto] | None = None,
) -> onnx.ModelProto:
    """The whole graph from `source` to `embedding`, without remarks of the exporter: they hold paths of the machine."""
    _rename(traced.graph, "embedding", "token_rows")  # what torch calls its embedding table's result
    _rename(traced.graph, traced.graph.output[0].name, "embedding")
    for node in traced.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    result = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", embed_dim])
    graph = helper.make_graph(
        [*(nodes or []), *traced.graph.node], "clipling", [source], [result], [*(constants or []), *traced.graph.initializer]
    )  # fmt: skip
    opsets = [opset for opset in traced.opset_import if opset.domain == ""]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="clipling", functions=traced.functions)
    for tensor in model.graph.initializer:
        tensor.ClearField("doc_string")
        tensor.ClearField("metadata_props")
    return model


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Another name for a value, wherever it stands."""
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == old:
                    names[place] = new
    for part in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        if part.name == old:
            part.name = new


def _save(model: onnx.ModelProto, path: Path) -> None:
    if model.ByteSize() > LARGEST:
        raise UserError(f"{path.name} would be {model.ByteSize():,} bytes; ONNX files of one piece end at 2 GB. Export a smaller model")
    onnx.checker.check_model(model, full_check=True)
    atomic_produce(path, lambda temporary: temporary.write_bytes(model.SerializeToString(deterministic=True)))
