"""White-box attacks on a student's zero-shot classification: FGSM and PGD within a largest change of any pixel (L-infinity).

Pictures are float32 [n, 3, s, s] in [0, 1], as the model gets them after resizing and before normalisation. An `epsilon` is in those
units: 1/255 is one step of an 8-bit picture. FGSM is Goodfellow et al. 2015 (arXiv 1412.6572, section 4), PGD is Madry et al. 2018
(arXiv 1706.06083, section 2.1). Letters: n pictures, C classes, d features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipling.errors import UserError
from clipling.evals.retrieval import ranks
from clipling.models.dual import Student

REACH = 2.5  # steps may add up to so many epsilons: from any start PGD can cross the whole box (Madry et al. 2018, section 5)


@dataclass
class Attacked:
    """Pictures as an attack left them. images [n, 3, s, s]; hits float64 [n], how often the answer is right (a tie counts as its
    expectation); loss float64 [n], the cross-entropy in nats. `hits` and `loss` are on the CPU."""

    images: Tensor
    hits: Tensor
    loss: Tensor

    def keep_worse(self, rows: Tensor, other: Attacked) -> None:
        """Row by row, takes over those of `other` (one for each of `rows`) that are worse for the model.

        Worse is less often right, and then of higher loss: a picture of high loss may still be right where there are many classes.
        """
        worse = (other.hits < self.hits[rows]) | ((other.hits == self.hits[rows]) & (other.loss > self.loss[rows]))
        chosen = rows[worse]
        self.images[chosen.to(self.images.device)] = other.images[worse.to(other.images.device)]
        self.hits[chosen], self.loss[chosen] = other.hits[worse], other.loss[worse]

    def copy(self) -> Attacked:
        return Attacked(self.images.clone(), self.hits.clone(), self.loss.clone())


@dataclass(frozen=True)
class Classifier:
    """What is attacked: logits are scale * <encode(images), classes>.

    encode: images float [n, 3, s, s] in [0, 1] to rows [n, d] (unit rows of a student), differentiable.
    classes: [C, d], C >= 2.
    """

    encode: Callable[[Tensor], Tensor]
    classes: Tensor
    scale: float = 1.0

    def judge(self, images: Tensor, labels: Tensor) -> Attacked:
        """Hits and loss of images as they are. Raises UserError for features that are not finite."""
        with torch.no_grad():
            rows = self._rows(images)
        return self._judged(images, labels, rows, self._margin(rows, labels))

    def gradient(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Attacked]:
        """(gradient [n, 3, s, s], the images judged): what raises each picture's cross-entropy, up to a positive factor.

        A picture's cross-entropy is softplus(m) with m = logsumexp of the wrong logits - the right one, so it rises where m does.
        The gradient is that of m, which does not vanish where the softmax is saturated (a way to mask gradients: Carlini and Wagner
        2017, arXiv 1608.04644). A gradient that is not finite counts as zero. No parameter gets a gradient.
        """
        with torch.enable_grad():
            moved = images.detach().clone().requires_grad_(True)
            rows = self._rows(moved)
            margin = self._margin(rows, labels)
            # A sum, so that a picture's gradient does not depend on how many others there are. The zero keeps a model that cuts the graph
            # from being an error: its gradient is zero, for the checks to find.
            (gradient,) = torch.autograd.grad(margin.sum() + 0 * moved.sum(), moved)
        gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        return gradient, self._judged(images, labels, rows.detach(), margin.detach())

    def _rows(self, images: Tensor) -> Tensor:
        rows = self.encode(images)
        if not torch.isfinite(rows).all():
            raise UserError("the features of attacked pictures are not finite, so nothing can be measured. The weights are damaged.")
        return rows

    def _margin(self, rows: Tensor, labels: Tensor) -> Tensor:
        logits = self.scale * (rows.double() @ self.classes.to(rows.device).double().T)
        right = labels.to(rows.device)[:, None]
        return torch.logsumexp(logits.scatter(1, right, -torch.inf), 1) - logits.gather(1, right)[:, 0]

    def _judged(self, images: Tensor, labels: Tensor, rows: Tensor, margin: Tensor) -> Attacked:
        found = ranks(rows, self.classes, labels.cpu().numpy(), np.arange(len(self.classes)))
        return Attacked(images.detach(), torch.from_numpy(found.hits(1)), F.softplus(margin).cpu())


@contextmanager
def white_box(student: Student, classes: np.ndarray, scale: float) -> Iterator[Classifier]:
    """The student against class features [C, d] as a `Classifier`, meanwhile in evaluation mode (BatchNorm's statistics are fixed,
    and stay what they were); the former mode afterwards."""
    training = student.training
    student.eval()
    try:
        yield Classifier(lambda images: student.encode_image(normalised(student, images)), torch.tensor(classes), scale)
    finally:
        student.train(training)


def normalised(student: Student, images: Tensor) -> Tensor:
    """Pictures float [n, 3, s, s] in [0, 1] to the input of `encode_image`, differentiable; `student.normalise` for whole numbers / 255."""
    mean, std = (torch.tensor(student.preprocess_cfg[key], device=student.device).view(1, 3, 1, 1) for key in ("mean", "std"))
    images = images.to(student.device).contiguous(memory_format=torch.channels_last)
    return torch.addcmul(-mean / std, images * 255, 1 / (255 * std))


def fgsm(model: Classifier, images: Tensor, labels: Tensor, epsilon: float, gradient: Tensor | None = None) -> Tensor:
    """The fast gradient sign method: one step of `epsilon` along the sign of the gradient, cut to [0, 1].

    gradient: at `images`, where it is known already.
    """
    if gradient is None:
        gradient, _ = model.gradient(images, labels)
    return _moved(images, gradient, epsilon, *_box(images, epsilon))


def pgd_last(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    steps: int = 10,
    step_size: float | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Projected gradient descent as published: the picture after `steps` steps of `step_size` (default 2.5 * epsilon / steps).

    start: pictures to begin at (default `images`), brought into the box first.
    """
    size = _step_size(epsilon, steps, step_size)
    low, high = _box(images, epsilon)
    moved = images if start is None else torch.clamp(start, low, high)
    for _ in range(steps):
        gradient, _ = model.gradient(moved, labels)
        moved = _moved(moved, gradient, size, low, high)
    return moved


def pgd(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    steps: int = 10,
    step_size: float | None = None,
    starts: Sequence[Tensor] = (),
    known: Attacked | None = None,
    stop: bool = False,
) -> Attacked:
    """The worst picture for the model that PGD meets from every one of `starts` (default: `images`), the starts included.

    known: pictures within `epsilon` that compete (those of FGSM, of a smaller epsilon), so that the result is never weaker than they.
    stop: leaves a picture as soon as it is misclassified. The accuracy is the same for a fraction of the time; `loss` is then not
        the highest that could be found.
    """
    size = _step_size(epsilon, steps, step_size)
    low, high = _box(images, epsilon)
    worst = known.copy() if known else None
    for start in starts or (images,):
        moved, rows = torch.clamp(start, low, high), torch.arange(len(images))
        for step in range(steps + 1):
            if worst is not None and stop:
                left = worst.hits[rows] > 0
                rows, moved = rows[left], moved[left.to(moved.device)]
            if not len(rows):
                break
            at = rows.to(images.device)
            gradient, found = model.gradient(moved, labels[at]) if step < steps else (None, model.judge(moved, labels[at]))
            if worst is None:
                worst = found.copy()
            worst.keep_worse(rows, found)
            if gradient is not None:
                moved = _moved(moved, gradient, size, low[at], high[at])
    assert worst is not None
    return worst


def draws(keys: Sequence[str], size: int, what: str) -> Tensor:
    """float32 [n, 3, size, size], uniform in [-1, 1], a function of each picture's key and of `what` alone."""
    seeds = (int.from_bytes(blake2b(f"{what}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") for key in keys)
    made = [np.random.default_rng(seed).uniform(-1, 1, (3, size, size)).astype(np.float32) for seed in seeds]
    return torch.from_numpy(np.stack(made)) if made else torch.empty(0, 3, size, size)


def within(images: Tensor, changed: Tensor, epsilon: float) -> Tensor:
    """`changed` brought into the box of `epsilon` around `images`, and into [0, 1]."""
    return torch.clamp(changed, *_box(images, epsilon))


def _box(images: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon is {epsilon}; expected a share of the range of a pixel, from 0 to 1")
    return (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)


def _moved(images: Tensor, gradient: Tensor, size: float, low: Tensor, high: Tensor) -> Tensor:
    return torch.clamp(images + size * gradient.sign(), low, high)


def _step_size(epsilon: float, steps: int, given: float | None) -> float:
    if steps < 1:
        raise ValueError(f"PGD takes {steps} steps; expected at least one")
    return REACH * epsilon / steps if given is None else given
