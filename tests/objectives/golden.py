"""The golden rows of core.md section 6, and batches with teachers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipling.objectives.term import Batch, TeacherView, View


def rows(function) -> Tensor:
    """[4, 8] float64 unit rows of a function of 8 i + j."""
    return F.normalize(function(torch.arange(32, dtype=torch.float64).reshape(4, 8)), dim=1)


def image() -> Tensor:
    return rows(lambda n: torch.sin(1 + n))


def text() -> Tensor:
    return rows(lambda n: torch.cos(0.5 * n))


def teacher(scale: float = 50.0) -> TeacherView:
    one, other = rows(lambda n: torch.sin(2 + 1.3 * n)), rows(lambda n: torch.cos(1 + 0.7 * n))
    return TeacherView(scale, one, other, one, other)


def second_teacher(scale: float) -> TeacherView:
    one, other = rows(lambda n: torch.sin(0.3 * n)), rows(lambda n: torch.cos(2 + 0.9 * n))
    return TeacherView(scale, one, other, one, other)


def unit(count: int, size: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def taught_by(image: Tensor, text: Tensor, scale: float, *teachers: TeacherView, same: Tensor | None = None) -> Batch:
    """A batch of one process, whose student has these unit rows and this scale."""
    numbers = torch.arange(len(image))
    view = View(image, text, image, text)
    found = {f"t{i}": one for i, one in enumerate(teachers)}
    return Batch({"main": view}, torch.tensor(scale, dtype=image.dtype), numbers, numbers, same=same, teachers=found)


def part_of(batch: Batch, local: slice) -> Batch:
    """What the process with these rows sees."""

    def cut(view):
        sides = {side: getattr(view, f"{side}_all") for side in ("image", "text")}
        return {side: rows[local] for side, rows in sides.items()} | {f"{side}_all": rows for side, rows in sides.items()}

    views = {name: View(**cut(view)) for name, view in batch.views.items()}
    teachers = {name: TeacherView(view.scale, **cut(view)) for name, view in batch.teachers.items()}
    same = None if batch.same is None else batch.same[local]
    return Batch(views, batch.scale, batch.pair_all[local], batch.pair_all, first=local.start, same=same, teachers=teachers)
