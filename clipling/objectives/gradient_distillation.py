"""CLIP-KD's gradient distillation (Yang et al., CVPR 2024, arXiv 2307.12732): the student's contrastive gradient follows the teacher's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipling.objectives.infonce import full, similarity
from clipling.objectives.one_teacher import SIDES, InItsSpace, Mode
from clipling.objectives.options import one_of
from clipling.objectives.term import Batch


class GD(InItsSpace):
    """Value `gd`: for both directions of CLIP's loss and both sides, the mean squared difference of an entry of the gradient that the
    loss has at the student's features and the gradient it has at the teacher's; four means summed.

    mode: "paper" multiplies similarities and gradients by the scale (temperature 1 / scale). "reference" divides by it, as the released
        code does by mistake: its gradients are tiny, hence its weight of 1e8, which must not be used with "paper".

    Student features are compared in the teacher's space, through heads where the sizes differ. Pairs that are not negatives of each
    other (`batch.same`) are not masked: student and teacher have the same labels, right or wrong. Every process computes the
    similarities of all N x N pairs, because the gradient at a column needs the softmax of every row.
    """

    def __init__(self, teacher: str | None = None, mode: Mode = "paper"):
        super().__init__(SIDES, teacher)
        self.mode = one_of("mode", mode, Mode)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        view, taught = batch.main, self.taught(batch)
        local = slice(batch.first, batch.first + len(batch.pair))
        image, text = self.lifted("image", view.image_all), self.lifted("text", view.text_all)
        own = contrastive_gradients(image, text, self._factor(full(batch.scale)), local)
        with torch.no_grad():
            factor = self._factor(image.new_tensor(taught.scale))
            its = contrastive_gradients(taught.image_all.to(image.dtype), taught.text_all.to(image.dtype), factor, local)
        return {"gd": sum(F.mse_loss(one, other) for one, other in zip(own, its, strict=True))}

    def _factor(self, scale: Tensor) -> Tensor:
        return scale if self.mode == "paper" else 1 / scale


def contrastive_gradients(image: Tensor, text: Tensor, factor: Tensor, local: slice) -> list[Tensor]:
    """Gradients of the cross-entropies of `factor * image @ text^T` with respect to the `local` rows of image, text [N, d].

    Four [n, d]: image-to-text at images and at texts, text-to-image at images and at texts. The gradient of a softmax over columns j is
    (softmax - one-hot) times what the logits are made of; no tensor is larger than N x N.
    """
    with torch.autocast(image.device.type, enabled=False):
        logits = similarity(image, text, factor)  # [N, N]
        made = []
        for shares in (logits.softmax(dim=1), logits.softmax(dim=0)):
            made.append(shares[local] @ text - text[local])
            made.append(shares[:, local].T @ image - image[local])
        return [factor / len(image) * gradient for gradient in made]
