"""One training step: features, loss, gradients.

The loss is always differentiated with respect to the features first, then the features with respect to the weights. That makes gradient
caching (Gao et al. 2021, arXiv 2101.06983) the general case (one part is the plain step), and the gradient of each term at
the embeddings comes for free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clipling.data.loader import HostBatch
from clipling.engine.batch import BatchMaker
from clipling.engine.runtime import Runtime
from clipling.models.dual import Student
from clipling.models.patches import patches_left_out
from clipling.models.recompute import still_statistics
from clipling.objectives.term import Objective

MASKED_PATCHES = 0.75  # of the view "masked" (CLIP-KD's MFD; He et al. 2022, arXiv 2111.06377)


@dataclass
class StepResult:
    loss: Tensor
    values: dict[str, Tensor]
    gradients: dict[str, dict[str, float]]
    masked: int
    """Pairs of the local rows with other rows that are not negatives of each other."""


@dataclass
class Stepper:
    """Runs forward and backward of a step; gradients are left in `.grad`, averaged over processes by the caller."""

    student: Student
    objective: Objective
    make_batch: BatchMaker
    runtime: Runtime
    seed: int
    micro_batch: int | None = None
    autocast: str = "none"

    def __call__(self, host: HostBatch, measure: bool) -> StepResult:
        """`measure`: also norm and cosine (to the first term's) of every value's gradient at the embeddings."""
        parts = self._parts(host)
        features = self._features(host, parts)
        cached = len(parts) > 1
        leaves = {name: rows.detach().requires_grad_(cached or rows.requires_grad) for name, rows in features.items()}
        batch = self.make_batch(host, leaves, self.student.logit_scale.exp(), self.student.logit_bias)
        loss, values = self.objective(batch)
        gradients = gradient_report(values, list(leaves.values())) if measure else {}
        loss.backward()
        for part in parts:
            made = self._part_features(host, part) if cached else features
            push([made[name] for name in leaves], [None if leaf.grad is None else leaf.grad[part] for leaf in leaves.values()])
        same = batch.same
        masked = 0 if same is None else same._nnz() if same.is_sparse else int(same.sum())
        return StepResult(loss.detach(), {n: v.detach() for n, v in values.items()}, gradients, masked)

    def _parts(self, host: HostBatch) -> list[slice]:
        n = len(host.pair)
        size = min(self.micro_batch or n, n)
        return [slice(i, min(i + size, n)) for i in range(0, n, size)]

    def _features(self, host: HostBatch, parts: list[slice]) -> dict[str, Tensor]:
        if len(parts) == 1:
            return self._part_features(host, parts[0])
        with torch.no_grad(), still_statistics(self.student):
            made = [self._part_features(host, part) for part in parts]
        return {name: torch.cat([m[name] for m in made]) for name in made[0]}

    def _part_features(self, host: HostBatch, part: slice) -> dict[str, Tensor]:
        """Unit features of some rows, those that terms need. The seed depends on step, process and part only, so that doing it again gives
        the same dropout; masks are drawn alike on all processes and parts."""
        needs = self.objective.needs
        draw = torch.Generator().manual_seed(step_seed(self.seed, host.step, 0, 1))
        torch.manual_seed(step_seed(self.seed, host.step, self.runtime.rank, part.start))
        self.student.set_step(step_seed(self.seed, host.step, 0, 0))
        made: dict[str, Tensor] = {}
        with self.runtime.autocast(self.autocast), self.student.masked(self.objective.masks(draw)):
            if "student.image" in needs or "student.image:masked" in needs:
                images = self.student.normalise(host.images[part].to(self.runtime.device, non_blocking=True))
            if "student.image" in needs:
                made["image"] = self.student.encode_image(images).float()
            if "student.text" in needs:
                made["text"] = self.student.encode_text(host.tokens[part].to(self.runtime.device, non_blocking=True)).float()
            for view, tokens in host.more_tokens.items():
                if f"student.text:{view}" in needs:
                    made[f"text:{view}"] = self.student.encode_text(tokens[part].to(self.runtime.device, non_blocking=True)).float()
            if "student.image:masked" in needs:
                with patches_left_out(self.student.model.visual, MASKED_PATCHES):
                    made["image:masked"] = self.student.encode_image(images).float()
        return made


def push(features: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Continues the backward pass from the features into the towers; frozen towers are left out."""
    pairs = [(f, g) for f, g in zip(features, gradients, strict=True) if f.requires_grad and g is not None]
    if pairs:
        torch.autograd.backward([f for f, _ in pairs], [g for _, g in pairs])


def gradient_report(values: dict[str, Tensor], leaves: list[Tensor]) -> dict[str, dict[str, float]]:
    """Norm of each value's gradient at the embeddings, and its cosine to the first value's (the contrastive term)."""
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    report: dict[str, dict[str, float]] = {}
    if not wanted:
        return report  # both towers are frozen as a whole
    reference: Tensor | None = None
    for name, value in values.items():
        grads = torch.autograd.grad(value, wanted, retain_graph=True, allow_unused=True)
        flat = torch.cat([(torch.zeros_like(w) if g is None else g).flatten() for w, g in zip(wanted, grads, strict=True)])
        reference = flat if reference is None else reference
        cosine = nn.functional.cosine_similarity(flat, reference, dim=0)
        report[name] = {"norm": float(flat.norm()), "cosine": float(cosine)}
    return report


def step_seed(seed: int, step: int, rank: int, part: int) -> int:
    """A number for torch's generator that no two (step, process, part) of a run share in practice."""
    mixed = 0x9E3779B97F4A7C15
    for number in (seed, step, rank, part):
        mixed = ((mixed ^ number) * 0xBF58476D1CE4E5B9) % 2**64
        mixed ^= mixed >> 31
    return mixed % 2**63
