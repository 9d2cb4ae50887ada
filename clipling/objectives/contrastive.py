"""The two losses that pair pictures with captions: CLIP's softmax and SigLIP's sigmoid.

Both are local losses: the rows of this process over the columns of the whole batch. Averaged over processes, with a
differentiable gather, they equal the loss and the gradient of one process.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from clipling.objectives.infonce import cells, contrast, in_blocks, similarity, within
from clipling.objectives.term import Batch, Term

Same = Literal["ignore", "positive"]


class Clip(Term):
    """Symmetric InfoNCE of CLIP (Radford et al., arXiv 2103.00020): value `clip`, in nats.

    `same` says what becomes of pairs of the batch that are not negatives of each other (`batch.same`): "ignore" leaves
    them out, "positive" spreads the target evenly over the pair and them. Without any the loss is open_clip's `ClipLoss`.
    """

    def __init__(self, same: Same = "ignore"):
        super().__init__()
        self.same = _check(same)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        view, target = batch.main, batch.target
        masks = {"ignored" if self.same == "ignore" else "positives": cells(batch.same)}
        image = contrast(view.image, view.text_all, batch.scale, target, **masks)
        text = contrast(view.text, view.image_all, batch.scale, target, **masks)
        return {"clip": (image + text) / 2}


class SigLip(Term):
    """Pairwise sigmoid loss of SigLIP (Zhai et al., arXiv 2303.15343): value `siglip`, summed over columns, mean over rows.

    It needs a student with a `logit_bias`. `same` as for `Clip`; without such pairs the loss is open_clip's `SigLipLoss`.
    """

    def __init__(self, same: Same = "ignore"):
        super().__init__()
        self.same = _check(same)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        if batch.bias is None:
            raise ValueError("SigLip needs a student with a logit_bias: set `init_logit_bias` (-10) in its model_cfg")
        view, same, target, bias = batch.main, cells(batch.same), batch.target, batch.bias

        def part(block: slice) -> Tensor:
            mask = within(same, block)
            logits = similarity(view.image[block], view.text_all, batch.scale) + bias
            labels = -torch.ones_like(logits)
            labels[torch.arange(len(labels), device=labels.device), target[block]] = 1
            if mask is not None and self.same == "positive":
                labels[mask] = 1
            loss = F.logsigmoid(labels * logits)
            if mask is not None and self.same == "ignore":
                loss = loss.index_put(mask, loss.new_zeros(()))
            return -loss.sum()

        return {"siglip": in_blocks(part, len(target), len(view.text_all)) / len(target)}


def _check(same: str) -> Same:
    if same not in get_args(Same):
        raise ValueError(f"same={same!r}: expected one of {', '.join(map(repr, get_args(Same)))}")
    return same
