"""CLIP-KD (Yang et al., CVPR 2024, arXiv 2307.12732): ways to distil one CLIP into another, each a term of its own.

The recommended mixture is 1 Clip + 1 CRD + 2000 FD + 1 ICL. Where the released code (github.com/winycg/CLIP-KD) does something
else than the paper says, `mode` chooses: "paper", or "reference" to repeat the code.

All are local losses: means over the rows of this process, whose mean over processes is the value, and the gradient, of one
process. No gradient ever reaches a teacher. GD is in gradient_distillation.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipling.objectives.affinity import scaled, soft_cross_entropy
from clipling.objectives.contrastive import Same
from clipling.objectives.gradient_distillation import GD
from clipling.objectives.infonce import cells, contrast, full, in_blocks, similarity
from clipling.objectives.one_teacher import SIDES, InItsSpace, Mode, OneTeacher, OwnScale, teacher_names, unit_of
from clipling.objectives.options import one_of
from clipling.objectives.term import Batch

__all__ = ["AFD", "CRD", "FD", "GD", "ICL", "MFD"]


class CRD(OneTeacher):
    """Contrastive relational distillation: value `crd`, in nats: half of KL(teacher || student) of image-to-text and text-to-image
    affinities, each side at its own learned scale. `Affinity(kl=True)` with one teacher is the same."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        view, taught = batch.main, self.taught(batch)
        n = len(view.image)

        def side(rows: str, columns: str) -> Tensor:
            def part(block: slice) -> Tensor:
                its = scaled(getattr(taught, rows)[block], getattr(taught, f"{columns}_all"), taught.scale).softmax(dim=1)
                own = similarity(getattr(view, rows)[block], getattr(view, f"{columns}_all"), batch.scale)
                return soft_cross_entropy(own, its, kl=True) * (len(own) / n)

            return in_blocks(part, n, len(view.text_all))

        return {"crd": (side("image", "text") + side("text", "image")) / 2}


class FD(InItsSpace):
    """Feature distillation: value `fd`, the mean squared difference of an entry of student and teacher rows, summed over `sides`.

    Of unit rows it is 2 (1 - cosine) / d_t, hence the paper's weight of 2000. With `sides=("image",)` captions are not needed, so
    that bare photos can be distilled.
    """

    name, view = "fd", "main"

    @property
    def needs(self) -> frozenset[str]:
        asked = {"image": "student.image" if self.view == "main" else f"student.image:{self.view}", "text": "student.text"}
        return frozenset(need for side in self.sides for need in (asked[side], f"teacher.{side}"))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        taught = self.taught(batch)
        rows = {"image": batch.views[self.view].image, "text": batch.main.text if "text" in self.sides else None}
        return {self.name: sum(mean_square(self.lifted(side, rows[side]), getattr(taught, side)) for side in self.sides)}


class MFD(FD):
    """Masked feature distillation: value `mfd`. As FD, but the student sees pictures with most patches left out (the view
    "masked"; the teacher sees them whole); captions are not masked.

    `mode="reference"`: the released code overwrites the masked features with those of the whole picture, so that it equals FD.
    """

    name = "mfd"

    def __init__(self, sides: Sequence[str] = SIDES, teacher: str | None = None, mode: Mode = "paper"):
        super().__init__(sides, teacher)
        self.view = "masked" if one_of("mode", mode, Mode) == "paper" else "main"


class ICL(InItsSpace):
    """Interactive contrastive learning: value `icl`, in nats: half of InfoNCE(student's pictures, teacher's captions) and
    InfoNCE(student's captions, teacher's pictures), at a learned scale of its own (see `OwnScale` for what `mode` says).

    `same` as for `Clip`; without such pairs in a batch it changes nothing.
    """

    def __init__(self, teacher: str | None = None, mode: Mode = "paper", same: Same = "ignore"):
        super().__init__(SIDES, teacher)
        self.scale, self.same = OwnScale(mode), one_of("same", same, Same)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        view, taught, scale = batch.main, self.taught(batch), self.scale()
        masks = {"ignored" if self.same == "ignore" else "positives": cells(batch.same)}
        image = contrast(self.lifted("image", view.image), taught.text_all, scale, batch.target, **masks)
        text = contrast(self.lifted("text", view.text), taught.image_all, scale, batch.target, **masks)
        return {"icl": (image + text) / 2}

    def parameter_groups(self) -> Iterable[dict]:
        return self.scale.groups()

    def after_step(self, step: int) -> None:
        self.scale.bound()

    def report(self) -> dict[str, float]:
        return {"scale": float(self.scale().detach())}


class AFD(OneTeacher):
    """Augmented feature distillation: value `afd`, in nats: CLIP's loss between pictures and captions, each a unit row made by a
    linear layer of the student's and the teacher's row side by side, at a learned scale of its own (see `OwnScale`).

    The layers go from d + d_t to d. (In the released code they take the student's row after FD's head, and where that head exists the sizes
    do not fit; here they take the student's own.) `same` as for `Clip`.
    """

    def __init__(self, teacher: str | None = None, mode: Mode = "paper", same: Same = "ignore"):
        super().__init__(teacher)
        self.scale, self.same = OwnScale(mode), one_of("same", same, Same)
        self.fusion = nn.ModuleDict()

    def setup(self, dims: Mapping[str, int]) -> None:
        """Builds the layers: `dims` holds the sizes `student` (d) and `teacher.<name>` (d_t)."""
        own, its = dims["student"], dims[f"teacher.{self._choose(teacher_names(dims))}"]
        self.fusion.update({side: nn.Linear(own + its, own) for side in SIDES})

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        view, taught, scale = batch.main, self.taught(batch), self.scale()
        image = self._fused("image", view.image_all, taught.image_all)
        text = self._fused("text", view.text_all, taught.text_all)
        local = slice(batch.first, batch.first + len(batch.pair))
        masks = {"ignored" if self.same == "ignore" else "positives": cells(batch.same)}
        loss = contrast(image[local], text, scale, batch.target, **masks)
        return {"afd": (loss + contrast(text[local], image, scale, batch.target, **masks)) / 2}

    def _fused(self, side: str, own: Tensor, its: Tensor) -> Tensor:
        return unit_of(self.fusion[side], torch.cat([full(own), its.to(full(own).dtype)], dim=1))

    def parameter_groups(self) -> Iterable[dict]:
        return self.scale.groups()

    def after_step(self, step: int) -> None:
        self.scale.bound()

    def report(self) -> dict[str, float]:
        return {"scale": float(self.scale().detach())}


def mean_square(rows: Tensor, taught: Tensor) -> Tensor:
    """Mean over all entries of the squared difference, in the precision of `rows`."""
    return F.mse_loss(rows, taught.to(rows.dtype))
