"""The loss of multi-modal reinforced training: MobileCLIP (Vasu et al., arXiv 2311.17049) and MobileCLIP2 (arXiv 2508.20691).

For one set of captions, with v, u the student's and V_t, U_t teacher t's unit features and scales s and S_t:

    P_i2t = mean_t softmax(S_t V_t . U_t)        distill = 1/2 [ CE(P_i2t, s v . u) + CE(P_t2i, s u . v) ]        clip: CLIP's own loss

Both are summed over the sets of captions, real and synthetic (sums, as in the released code, not means). It is a local loss: the rows of
this process over the columns of the whole batch. The weights of both parts live in the objective: (0, 1) for most of the published
models, (0.25, 0.75) for MobileCLIP-B.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from clipling.errors import UserError
from clipling.objectives.affinity import scaled, soft_cross_entropy
from clipling.objectives.infonce import cells, info_nce, similarity
from clipling.objectives.one_teacher import teacher_names
from clipling.objectives.options import one_of, some_of
from clipling.objectives.term import Batch, Term

Captions = Literal["both", "mix", "real"]
Same = Literal["ignore", "positive"]
VIEWS: dict[str, tuple[str, ...]] = {"both": ("main", "syn"), "mix": ("mix",), "real": ("main",)}
PARTS = ("clip", "distill")


class Reinforced(Term):
    """Values `clip` and `distill`, in nats, each summed over the sets of captions.

    captions: `both`: the drawn real caption and the drawn synthetic one, each with a loss of its own (twice the texts of a plain step).
        `mix`: one caption a picture, real or synthetic at random, and one loss: the texts of a plain step. `real`: no synthetic captions.
    scales: what the teachers' similarities are multiplied by: one number for all, or one for each in the recipe's order (MobileCLIP: 100;
        MobileCLIP2: 70 and 60). None: each teacher's own.
    kl: subtract the entropy of the targets: the gradient is the same, and 0 is perfect.
    same: for `clip`, what becomes of pairs that are not negatives of each other (see `Clip`); `distill` leaves them to the teachers.
    parts: which values are made; the objective gives those that have a weight.
    """

    def __init__(
        self,
        captions: Captions = "both",
        scales: float | Sequence[float] | None = None,
        kl: bool = False,
        same: Same = "ignore",
        parts: Sequence[str] = PARTS,
    ):
        super().__init__()
        self.captions, self.kl, self.same = one_of("captions", captions, Captions), kl, one_of("same", same, Same)
        self.parts = some_of("parts", parts, PARTS)
        self.scales = scales if scales is None or isinstance(scales, int | float) else list(scales)
        given = [] if scales is None else self.scales if isinstance(self.scales, list) else [self.scales]
        if not all(isinstance(s, int | float) and not isinstance(s, bool) and 0 < s < math.inf for s in given) or self.scales == []:
            raise UserError(f"scales={scales!r}: expected a positive number, or one for each teacher, or null for those they learned")
        self._check_ignored()
        self.needs = self._needs()

    def _check_ignored(self) -> None:
        """Raises UserError for what is said of a part that is not made."""
        for part, name, value, default in (
            ("clip", "same", self.same, "ignore"),
            ("distill", "scales", self.scales, None),
            ("distill", "kl", self.kl, False),
        ):
            if part not in self.parts and value != default:
                given = str(default).lower() if default is not None else "null"
                raise UserError(f"{name}={value!r} would be ignored: `{part}` has weight 0. Set {name}={given}, or give {part} a weight")

    def _needs(self) -> frozenset[str]:
        texts = {"main": "text", "syn": "text:syn", "mix": "text:mix"}
        sides = ["student", "teacher"] if "distill" in self.parts else ["student"]
        return frozenset(f"{who}.{what}" for who in sides for what in ("image", *(texts[v] for v in VIEWS[self.captions])))

    def setup(self, dims: Mapping[str, int]) -> None:
        if "distill" not in self.parts:
            return
        names = teacher_names(dims)
        if isinstance(self.scales, list) and len(self.scales) != len(names):
            of = f"the teacher {names[0]}" if len(names) == 1 else f"the {len(names)} teachers {', '.join(names)}"
            raise UserError(f"scales={self.scales}: {len(self.scales)} number{'s' * (len(self.scales) > 1)} for {of}")

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        made = {part: [] for part in self.parts}
        for view in VIEWS[self.captions]:
            if "clip" in made:
                made["clip"].append(self._clip(batch, view))
            if "distill" in made:
                made["distill"].append(self._distill(batch, view))
        return {part: torch.stack(values).sum() for part, values in made.items()}

    def _clip(self, batch: Batch, view: str) -> Tensor:
        image, text, target = batch.main, batch.views[view], batch.target
        masks = {"ignored" if self.same == "ignore" else "positives": cells(batch.same)}
        of_images = info_nce(similarity(image.image, text.text_all, batch.scale), target, **masks)
        return (of_images + info_nce(similarity(text.text, image.image_all, batch.scale), target, **masks)) / 2

    def _distill(self, batch: Batch, view: str) -> Tensor:
        image, text = batch.main, batch.views[view]
        i2t, t2i = self.targets(batch, view)
        loss = soft_cross_entropy(scaled(image.image, text.text_all, batch.scale), i2t, self.kl)
        return (loss + soft_cross_entropy(scaled(text.text, image.image_all, batch.scale), t2i, self.kl)) / 2

    @torch.no_grad()
    def targets(self, batch: Batch, view: str) -> tuple[Tensor, Tensor]:
        """[n, N] probabilities, picture to caption and caption to picture: the mean of those of all teachers."""
        i2t, t2i = [], []
        for place, teacher in enumerate(batch.teachers.values()):
            scale = self._scale(place, teacher.scale)
            text, text_all = teacher.texts_of(view)
            i2t.append(scaled(teacher.image, text_all, scale).softmax(dim=1))  # type: ignore[arg-type]
            t2i.append(scaled(text, teacher.image_all, scale).softmax(dim=1))  # type: ignore[arg-type]
        return torch.stack(i2t).mean(dim=0), torch.stack(t2i).mean(dim=0)

    def _scale(self, place: int, own: float) -> float:
        if self.scales is None:
            return own
        return float(self.scales[place] if isinstance(self.scales, list) else self.scales)
