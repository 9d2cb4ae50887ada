"""Affinity mimicking: the student learns the teacher's similarities between all pictures and captions of a batch.

TinyCLIP (Wu et al., ICCV 2023, arXiv 2309.12314) with one teacher; MobileCLIP (Vasu et al., arXiv 2311.17049) with several. Of v, u the
student's and V, U a teacher's unit features, with scales s and S:

    i2t = mean_i sum_j -softmax(S V_i . U)_j log softmax(s v_i . u)_j        t2i likewise with the sides exchanged

It is a local loss: the rows of this process over the columns of the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clipling.errors import UserError
from clipling.objectives.infonce import full, in_blocks, similarity
from clipling.objectives.one_teacher import teacher_names
from clipling.objectives.options import one_of
from clipling.objectives.term import Batch, Term

Average = Literal["after_softmax", "logits_concat"]


class Affinity(Term):
    """Soft cross-entropy on the affinities of all teachers of the batch: value `affinity`, half of i2t + t2i, in nats.

    scale: what the student's similarities are multiplied by. None: its own learned scale (`batch.scale`). A number: that, for
        student and teachers alike (TinyCLIP's scripts: 50); the student's learned scale then gets no gradient from here.
    teacher_scale: of all teachers. None: `scale` where that is a number, otherwise each teacher's own (`TeacherView.scale`).
    average: `after_softmax`: the mean of the teachers' probabilities. `logits_concat`: the softmax of the sum of their scaled
        similarities, as if their features were one concatenated row.
    kl: subtract the entropy of the targets: the gradient is the same, and 0 is perfect. TinyCLIP does not.

    Pairs that are not negatives of each other (`batch.same`) are not masked: the teacher gives them the probability that they deserve.
    The loss against captions as hard labels is a term of its own (`Clip`); a recipe mixes both by their weights (alpha, 1 - alpha).
    """

    needs = frozenset({"student.image", "student.text", "teacher.image", "teacher.text"})

    def __init__(
        self, scale: float | None = None, teacher_scale: float | None = None, average: Average = "after_softmax", kl: bool = False
    ):
        super().__init__()
        for name, value in (("scale", scale), ("teacher_scale", teacher_scale)):
            if value is not None and not value > 0:
                raise UserError(f"{name}={value!r}: expected a positive number, or None for a scale that was learned")
        self.scale, self.average, self.kl = scale, one_of("average", average, Average), kl
        self.teacher_scale = scale if teacher_scale is None else teacher_scale

    def setup(self, dims: Mapping[str, int]) -> None:
        teacher_names(dims)  # there has to be one

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        view = batch.main
        scale = batch.scale if self.scale is None else self.scale

        def side(rows: str, columns: str) -> Tensor:
            def part(block: slice) -> Tensor:
                logits = scaled(getattr(view, rows)[block], getattr(view, f"{columns}_all"), scale)
                return soft_cross_entropy(logits, self.targets(batch, rows, columns, block), self.kl) * (len(logits) / n)

            return in_blocks(part, n, len(view.text_all))

        n = len(view.image)
        return {"affinity": (side("image", "text") + side("text", "image")) / 2}

    @torch.no_grad()
    def targets(self, batch: Batch, rows: str, columns: str, block: slice = slice(None)) -> Tensor:
        """[n, N] probabilities of all teachers together: their local `rows` (those of a block) over all `columns` ("image", "text")."""
        logits = []
        for teacher in batch.teachers.values():
            scale = teacher.scale if self.teacher_scale is None else self.teacher_scale
            logits.append(scaled(getattr(teacher, rows)[block], getattr(teacher, f"{columns}_all"), scale))
        if self.average == "logits_concat":
            return torch.stack(logits).sum(dim=0).softmax(dim=1)
        return torch.stack([one.softmax(dim=1) for one in logits]).mean(dim=0)


def scaled(rows: Tensor, columns: Tensor, scale: Tensor | float) -> Tensor:
    """[n, N] logits in fp32 or better of rows [n, d] and columns [N, d]."""
    return similarity(rows, columns, scale if isinstance(scale, Tensor) else full(rows).new_tensor(scale))


def soft_cross_entropy(logits: Tensor, target: Tensor, kl: bool = False) -> Tensor:
    """Mean over rows of the cross-entropy, in nats, of logits [n, N] with the probabilities target [n, N]; `kl`: less their entropy."""
    target = target.to(logits.dtype)
    if kl:
        return F.kl_div(logits.log_softmax(dim=1), target, reduction="batchmean")
    return F.cross_entropy(logits, target)
