"""open_clip's evaluation preprocessing as ONNX nodes: uint8 [n, height, width, 3] of any size to normalised [n, 3, s, s].

onnxruntime's antialiased resize of uint8 follows Pillow's: both resize one axis after the other with weights of 22 bits, and
round and clip in between. So the order counts where a bicubic filter overshoots: Pillow shortens the rows first, but since 13.0
the columns where a picture loses more than twice as much height as width (pull request 9549). The graph does what the Pillow
that exports it does. With `exclude_outside` (weights beyond the border are left out, as Pillow does) and Pillow's cubic coefficient
-1/2 they differ by at most one level in a few pixels of ten thousand: onnxruntime places its weights in fp32, Pillow in fp64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import PIL
from onnx import helper, numpy_helper

from clipling.errors import UserError, near

PREFIX = "preprocess/"  # of the names of all nodes and values here, by which quantisation leaves them alone
MODES = {"bicubic": "cubic", "bilinear": "linear", "random": "cubic"}  # open_clip: "random" evaluates as bicubic

VERTICAL_FIRST = int(PIL.__version__.split(".")[0]) >= 13


class Nodes:
    """Nodes and constants as they are added, each under a name of its own."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        """One node; returns the name of its result."""
        name = f"{PREFIX}{len(self.nodes)}_{kind}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out or name], name=name, **attributes))
        return out or name

    def constant(self, values: Any, dtype: Any = np.int64) -> str:
        name = f"{PREFIX}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def split(self, values: str, count: int) -> list[str]:
        """The `count` elements of a vector, each of shape [1]."""
        return [self.add("Gather", values, self.constant([place])) for place in range(count)]


def preprocessing(cfg: Mapping[str, Any], pixels: str, out: str) -> Nodes:
    """The nodes from the value `pixels` to the value `out`, equal to `data.views.eval_pixels` and `Student.normalise`.

    cfg: open_clip's preprocess_cfg. UserError for an interpolation or resize_mode that is not known.
    """
    size, mode = int(cfg["size"]), cfg.get("resize_mode") or "shortest"
    interpolation = cfg.get("interpolation") or "bicubic"
    steps = {"squash": _squash, "shortest": _shortest, "longest": _longest}
    if interpolation not in MODES:
        raise UserError(f"unknown interpolation {interpolation!r} in preprocess_cfg. {near(str(interpolation), MODES)}")
    if mode not in steps:
        raise UserError(f"unknown resize_mode {mode!r} in preprocess_cfg. {near(str(mode), steps)}")
    made = Nodes()
    channels_first = made.add("Transpose", pixels, perm=[0, 3, 1, 2])
    sized = steps[mode](made, channels_first, size, MODES[interpolation], int(cfg.get("fill_color") or 0))
    _normalise(made, sized, out, cfg["mean"], cfg["std"])
    return made


def _resize(made: Nodes, image: str, height_width: str, mode: str) -> str:
    """The picture at another size, int64 [2]: rows first, or columns first where Pillow does so."""
    height, width = made.split(height_width, 2)
    if VERTICAL_FIRST:
        old_height, old_width = made.split(made.add("Shape", image, start=2, end=4), 2)
        shrunk = made.add("Sub", old_height, height)
        twice = made.add("Mul", made.add("Sub", old_width, width), made.constant([2]))
        vertical = made.add("And", made.add("Greater", shrunk, made.constant([0])), made.add("Greater", shrunk, twice))
        image = _resize_axis(made, image, 2, made.add("Where", vertical, height, old_height), mode)
    image = _resize_axis(made, image, 3, width, mode)
    return _resize_axis(made, image, 2, height, mode)


def _resize_axis(made: Nodes, image: str, axis: int, length: str, mode: str) -> str:
    before, after = made.add("Shape", image, start=0, end=axis), [made.add("Shape", image, start=3, end=4)] if axis == 2 else []
    options = {"cubic_coeff_a": -0.5} if mode == "cubic" else {}
    return made.add(
        "Resize", image, "", "", made.add("Concat", before, length, *after, axis=0),
        mode=mode, antialias=1, exclude_outside=1, coordinate_transformation_mode="half_pixel", **options,
    )  # fmt: skip


def _squash(made: Nodes, image: str, size: int, mode: str, fill: int) -> str:
    return _resize(made, image, made.constant([size, size]), mode)


def _shortest(made: Nodes, image: str, size: int, mode: str, fill: int) -> str:
    """The shorter side becomes `size`, the longer int(size * longer / shorter); the centre is cut out."""
    sides = made.add("Shape", image, start=2, end=4)
    short = made.add("ReduceMin", sides, keepdims=1)
    scaled = made.add("Div", made.add("Mul", sides, made.constant([size])), short)
    resized = _resize(made, image, scaled, mode)
    # Half of what is too much, rounded as Python rounds: x.5 to the even neighbour.
    over = made.add("Sub", scaled, made.constant([size, size]))
    two = made.constant([2])
    half = made.add("Div", over, two)
    tie = made.add("Mul", made.add("Mod", over, two), made.add("Mod", half, two))
    start = made.add("Add", half, tie)
    end = made.add("Add", start, made.constant([size, size]))
    return made.add("Slice", resized, start, end, made.constant([2, 3]))


def _longest(made: Nodes, image: str, size: int, mode: str, fill: int) -> str:
    """The longer side becomes `size`, the shorter one in proportion; the borders are filled."""
    sides = made.add("Shape", image, start=2, end=4)
    # In fp64 and in this order, so that halves are rounded as in Python.
    exact = made.add("Cast", sides, to=onnx.TensorProto.DOUBLE)
    shares = made.add("Div", exact, made.constant([size], np.float64))
    ratio = made.add("ReduceMax", shares, keepdims=1)
    rounded = made.add("Cast", made.add("Round", made.add("Div", exact, ratio)), to=onnx.TensorProto.INT64)
    scaled = made.add("Max", rounded, made.constant([1]))
    resized = _resize(made, image, scaled, mode)
    missing = made.add("Sub", made.constant([size, size]), scaled)
    before = made.add("Div", missing, made.constant([2]))
    after = made.add("Sub", missing, before)
    none = made.constant([0, 0])
    pads = made.add("Concat", none, before, none, after, axis=0)
    return made.add("Pad", resized, pads, made.constant(fill, np.uint8))


def _normalise(made: Nodes, image: str, out: str, mean: Sequence[float], std: Sequence[float]) -> None:
    mean, std = (np.asarray(values, np.float64).reshape(1, 3, 1, 1) for values in (mean, std))
    scaled = made.add(
        "Mul", made.add("Cast", image, to=onnx.TensorProto.FLOAT), made.constant(1 / (255 * std), np.float32)
    )  # fmt: skip
    made.add("Add", scaled, made.constant(-mean / std, np.float32), out=out)
