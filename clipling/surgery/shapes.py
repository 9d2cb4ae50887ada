"""What the axes of a tower's tensors mean, so that a smaller tower can be cut out of it.

A *set of units* is something that is kept or dropped as one in every tensor that touches it: a hidden channel of the residual
stream, an attention head, an MLP unit, a channel of a convolution. A `Layout` says for every tensor of a tower which set each
axis runs over. Everything else follows: the indices of a cut, the importance of a unit, the size of a tower that does
not exist yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from clipling.errors import UserError

EMBED = "embed"  # the shared space, the one set that both towers have
POSITIONS = "positions"  # of text; their order means something, so the first are kept by every rule


@dataclass(frozen=True)
class Axis:
    """One axis: `outer` copies (query, key, value) of a set of units of `inner` neighbouring elements (a head's channels).

    `units` None is an axis that is never cut: pixels, a vocabulary, a kernel.
    """

    units: str | None = None
    outer: int = 1
    inner: int = 1


FIXED = Axis()


@dataclass
class Layout:
    """The tensors of one tower. Layers are told by the prefix of their tensors' names, sets of their own begin with it."""

    axes: dict[str, tuple[Axis, ...]]
    stages: list[list[str]] = field(default_factory=list)  # prefixes of the layers that may replace each other, in order
    kinds: dict[str, Any] = field(default_factory=dict)  # by layer prefix, "" for the rest: what it computes, to be compared
    skips: dict[str, bool] = field(default_factory=dict)  # by layer prefix: whether the input is added, where that varies
    folds: dict[str, str] = field(default_factory=dict)  # weight of a convolution: the batch normalisation after it
    grid: tuple[str, int] | None = None  # positions of a picture: their tensor, and places along one side


def counts(layout: Layout, state: Mapping[str, Tensor]) -> dict[str, int]:
    """The number of units of every set. UserError unless every tensor of `state` has a rule that its shape obeys."""
    found: dict[str, int] = {}
    for name, value in state.items():
        axes = layout.axes.get(name)
        if axes is None or len(axes) != value.ndim:
            raise UserError(f"inheritance has no rule for the tensor {name} {list(value.shape)}: this kind of tower is not supported")
        for axis, size in zip(axes, value.shape):
            if axis.units is None:
                continue
            units, rest = divmod(size, axis.outer * axis.inner)
            if rest or found.setdefault(axis.units, units) != units:
                raise UserError(f"inheritance's rule for the tensor {name} {list(value.shape)} does not fit the tower")
    return found


def positions(kept: Tensor, axis: Axis, count: int) -> Tensor:
    """int64: the places along `axis`, of `count` units, that belong to the units `kept`."""
    places = torch.arange(axis.outer * count * axis.inner).view(axis.outer, count, axis.inner)
    return places[:, kept].flatten()


def unit_scores(layout: Layout, count: Mapping[str, int], importance: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """float64 [units] for every set: the importance of all elements that touch a unit, summed.

    importance: by tensor name, of the tensors' shapes; tensors that it lacks (buffers, say) count nothing.
    """
    scores = {units: torch.zeros(size, dtype=torch.float64) for units, size in count.items()}
    for name, value in importance.items():
        for dim, axis in enumerate(layout.axes[name]):
            if axis.units is not None:
                by_unit = value.to("cpu", torch.float64).movedim(dim, 0).reshape(axis.outer, count[axis.units], axis.inner, -1)
                scores[axis.units] += by_unit.sum((0, 2, 3))
    return scores


def elements(
    layout: Layout,
    shapes: Mapping[str, Iterable[int]],
    count: Mapping[str, int],
    dropped: tuple[str, ...],
    units: Callable[[str, int], int],
) -> int:
    """How many elements the tensors of `shapes` would have with units(set, number now) units and without layers `dropped`."""
    total = 0
    for name, shape in shapes.items():
        if not name.startswith(dropped or ("\0",)):
            sizes = zip(layout.axes[name], shape)
            total += prod(size if a.units is None else a.outer * a.inner * units(a.units, count[a.units]) for a, size in sizes)
    return total
