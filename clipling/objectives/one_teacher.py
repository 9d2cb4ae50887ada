"""What terms share that learn from one teacher: which one it is, heads into its space, a scale of their own.

In CLIP-KD's released code FD, GD and ICL share one pair of heads, and heads act on the student's raw outputs. Here every term
has heads of its own, so that terms can be mixed freely, and they act on unit features, which are what a batch holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipling.errors import UserError, near
from clipling.objectives.infonce import full
from clipling.objectives.options import one_of, some_of
from clipling.objectives.term import Batch, TeacherView, Term

Mode = Literal["paper", "reference"]
SIDES = ("image", "text")
LOG_SCALE = math.log(1 / 0.07)
MAX_LOG_SCALE = math.log(100)


def teacher_names(dims: Mapping[str, int]) -> list[str]:
    """The teachers that `setup` is told of, in the recipe's order; UserError when there is none."""
    names = [key.removeprefix("teacher.") for key in dims if key.startswith("teacher.")]
    if not names:
        raise UserError("this term learns from a teacher, but there is none. Give --teacher MODEL, or add one to the recipe's teachers")
    return names


class OneTeacher(Term):
    """A term that learns from the teacher named `teacher`; None: from the only one there is."""

    needs = frozenset({"student.image", "student.text", "teacher.image", "teacher.text"})

    def __init__(self, teacher: str | None = None):
        super().__init__()
        self.teacher = teacher

    def setup(self, dims: Mapping[str, int]) -> None:
        self._choose(teacher_names(dims))

    def _choose(self, names: Sequence[str]) -> str:
        kind = type(self).__name__
        if self.teacher is None and len(names) != 1:
            raise UserError(f"{kind} learns from one teacher, but there are {len(names)}: set its `teacher` to one of {', '.join(names)}")
        if self.teacher is not None and self.teacher not in names:
            raise UserError(f"{kind} wants the teacher {self.teacher!r}. {near(self.teacher, names)}")
        return names[0] if self.teacher is None else self.teacher

    def taught(self, batch: Batch) -> TeacherView:
        """The features of the term's teacher, cut off from any graph."""
        found = batch.teachers[self._choose(list(batch.teachers))]
        rows = {name: value.detach() for name, value in vars(found).items() if isinstance(value, Tensor)}
        return replace(found, **rows)


class InItsSpace(OneTeacher):
    """Student features compared in the teacher's own space: a head with bias for each side where d and d_t differ, else none."""

    def __init__(self, sides: Sequence[str] = SIDES, teacher: str | None = None):
        super().__init__(teacher)
        self.sides = some_of("sides", sides, SIDES)
        self.heads = nn.ModuleDict()

    def setup(self, dims: Mapping[str, int]) -> None:
        """Builds the heads: `dims` holds the sizes `student` (d) and `teacher.<name>` (d_t)."""
        own, its = dims["student"], dims[f"teacher.{self._choose(teacher_names(dims))}"]
        if own != its:
            self.heads.update({side: nn.Linear(own, its) for side in self.sides})

    def lifted(self, side: str, rows: Tensor) -> Tensor:
        """Unit rows [n, d_t] in fp32 or better of the student's unit rows [n, d]."""
        return unit_of(self.heads[side], rows) if side in self.heads else full(rows)


def unit_of(head: nn.Module, rows: Tensor) -> Tensor:
    """The head's results as unit rows, in fp32 also under autocast."""
    with torch.autocast(rows.device.type, enabled=False):
        return F.normalize(head(full(rows)), dim=1)


class OwnScale(nn.Module):
    """What a term multiplies its similarities by, learned.

    `paper`: the exponential of a log-scale that starts at ln(1/0.07), is kept in [0, ln 100] and never decayed. `reference`: the released
    code of CLIP-KD forgets the exponential, so the same number, 2.66, is the scale itself, without bounds and under torch's default
    decay of 0.01.
    """

    def __init__(self, mode: Mode):
        super().__init__()
        self.mode = one_of("mode", mode, Mode)
        self.value = nn.Parameter(torch.tensor(LOG_SCALE))

    def forward(self) -> Tensor:
        return self.value.exp() if self.mode == "paper" else self.value

    def groups(self) -> Iterable[dict]:
        return [{"params": [self.value], "weight_decay": 0.0 if self.mode == "paper" else 0.01}]

    @torch.no_grad()
    def bound(self) -> None:
        if self.mode == "paper":
            self.value.clamp_(0, MAX_LOG_SCALE)
