"""How much each weight of a student matters, to choose which units a smaller one keeps."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from clipling.errors import UserError
from clipling.models.dual import Student

Importance = dict[str, Tensor]  # by the names of `student.model.named_parameters()`, of the parameters' shapes, at least 0


def magnitude(student: Student, folds: dict[str, str]) -> Importance:
    """The square of every element of every matrix and kernel.

    folds: weights of convolutions with the batch normalisation after each (names within the model). Those are scaled as
    the normalisation scales them, because the scale of a convolution in front of one means nothing.
    """
    scores = {}
    for name, weight in student.model.named_parameters():
        if weight.ndim < 2:
            continue
        value = weight.detach()
        if name in folds:
            norm = student.model.get_submodule(folds[name])
            value = value * (norm.weight.detach() * (norm.running_var + norm.eps).rsqrt()).view(-1, *[1] * (weight.ndim - 1))
        scores[name] = value.square()
    return scores


def first_order(student: Student, batches: Iterable[tuple[Tensor, Tensor]]) -> Importance:
    """|w * dL/dw| of every parameter, summed over batches: to first order, how much the loss changes without it.

    batches: images (pixels uint8 [n, 3, s, s], or normalised floats) and token ids [n, L] of pairs, n at least 2; L is the
    CLIP loss of each batch in evaluation mode. The criterion is that of Michel et al. (arXiv 1905.10650) and Molchanov et
    al. (arXiv 1906.10771), summed over single weights.
    """
    parameters = dict(student.model.named_parameters())
    trained = {name: parameter.requires_grad for name, parameter in parameters.items()}
    scores = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    training, seen = student.training, 0
    student.eval()
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        for images, tokens in batches:
            gradients = torch.autograd.grad(_clip_loss(student, images, tokens), list(parameters.values()), allow_unused=True)
            for (name, parameter), gradient in zip(parameters.items(), gradients):
                if gradient is not None:
                    scores[name] += (parameter.detach() * gradient).abs()
            seen += 1
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(trained[name])
        student.train(training)
    if not seen:
        raise UserError("first-order importance needs at least one batch of pairs, and got none")
    return scores


def _clip_loss(student: Student, images: Tensor, tokens: Tensor) -> Tensor:
    if len(images) < 2:
        raise UserError(f"first-order importance needs batches of at least 2 pairs, not {len(images)}: one pair has no negatives")
    images = student.normalise(images) if images.dtype == torch.uint8 else images.to(student.device)
    logits = student.logit_scale.exp() * student.encode_image(images) @ student.encode_text(tokens).T
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
