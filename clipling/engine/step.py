"""One training step: features, loss, gradients.

The loss is always differentiated with respect to the features first, then the features with respect to the weights. That makes gradient
caching (Gao et al. 2021, arXiv 2101.06983) the general case (one part is the plain step), and the gradient of each term at
the embeddings comes for free.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clipling.data.loader import HostBatch
from clipling.engine.batch import BatchMaker
from clipling.engine.runtime import Runtime
from clipling.models.dual import Student
from clipling.objectives.term import Objective


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
        image, text = self._features(host, parts)
        leaves = [image.detach().requires_grad_(image.requires_grad or len(parts) > 1), text.detach().requires_grad_()]
        batch = self.make_batch(host, leaves[0], leaves[1], self.student.logit_scale.exp(), self.student.logit_bias)
        loss, values = self.objective(batch)
        gradients = gradient_report(values, leaves) if measure else {}
        loss.backward()
        for part in parts:
            features = (image, text) if len(parts) == 1 else self._part_features(host, part)
            push(features, [None if leaf.grad is None else leaf.grad[part] for leaf in leaves])
        masked = 0 if batch.same is None else int(batch.same.sum())
        return StepResult(loss.detach(), {n: v.detach() for n, v in values.items()}, gradients, masked)

    def _parts(self, host: HostBatch) -> list[slice]:
        n = len(host.pair)
        size = min(self.micro_batch or n, n)
        return [slice(i, min(i + size, n)) for i in range(0, n, size)]

    def _features(self, host: HostBatch, parts: list[slice]) -> tuple[Tensor, Tensor]:
        if len(parts) == 1:
            return self._part_features(host, parts[0])
        with torch.no_grad(), still_statistics(self.student):
            made = [self._part_features(host, part) for part in parts]
        return torch.cat([m[0] for m in made]), torch.cat([m[1] for m in made])

    def _part_features(self, host: HostBatch, part: slice) -> tuple[Tensor, Tensor]:
        """Unit features of some rows. The seed depends on step, process and part only, so that doing it again gives the same dropout."""
        torch.manual_seed(step_seed(self.seed, host.step, self.runtime.rank, part.start))
        self.student.set_step(step_seed(self.seed, host.step, 0, 0))
        device = self.runtime.device
        images = host.images[part].to(device, non_blocking=True)
        tokens = host.tokens[part].to(device, non_blocking=True)
        with self.runtime.autocast(self.autocast):
            image = self.student.encode_image(self.student.normalise(images))
            text = self.student.encode_text(tokens)
        return image.float(), text.float()


def push(features: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Continues the backward pass from the features into the towers; frozen towers are left out."""
    pairs = [(f, g) for f, g in zip(features, gradients, strict=True) if f.requires_grad and g is not None]
    if pairs:
        torch.autograd.backward([f for f, _ in pairs], [g for _, g in pairs])


def gradient_report(values: dict[str, Tensor], leaves: list[Tensor]) -> dict[str, dict[str, float]]:
    """Norm of each value's gradient at the embeddings, and its cosine to the first value's (the contrastive term)."""
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    report: dict[str, dict[str, float]] = {}
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


@contextlib.contextmanager
def still_statistics(model: nn.Module) -> Iterator[None]:
    """Running statistics of BatchNorm stay as they are: the first pass of gradient caching must not count twice."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [m.momentum for m in norms]
    for m in norms:
        m.momentum = 0.0
    try:
        yield
    finally:
        for m, momentum in zip(norms, kept, strict=True):
            m.momentum = momentum
