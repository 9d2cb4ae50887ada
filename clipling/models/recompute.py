"""Activation checkpointing: what is inside of a block is dropped after the forward pass and made again in the backward pass.

Chen et al. 2016 (arXiv 1604.06174). Memory of activations falls to one block's and the borders of all; time rises by about one forward
pass. Gradients and running statistics stay the same: the second pass of a block leaves its BatchNorms' statistics alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clipling.errors import UserError


class RecomputedSequential(nn.Sequential):
    """A `Sequential` of blocks, each made again in the backward pass. Names and weights are those of a plain one."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = checkpoint(block, x, use_reentrant=False, context_fn=lambda b=block: (contextlib.nullcontext(), still_statistics(b)))
        return x


def checkpoint_activations(model: nn.Module) -> None:
    """Has both towers of an open_clip model make their activations again. Raises UserError for towers without blocks that we know."""
    for tower in (model.visual, model.text):
        if isinstance(tower, VisionTransformer | TextTransformer | HFTextEncoder):
            tower.set_grad_checkpointing(True)
        elif not (isinstance(tower, TimmModel) and _recompute_blocks(tower.trunk)):
            raise UserError(
                f"compute.activation_checkpointing: the tower {type(tower).__name__} has no blocks that can be made again. "
                "Set it to false, and use optimiser.micro_batch to save memory."
            )


def _recompute_blocks(trunk: nn.Module) -> bool:
    """timm keeps blocks in `blocks`, of the trunk or of its stages: single ones, or stages that are sequences of blocks themselves."""
    found = [m for name, m in trunk.named_modules() if name.rpartition(".")[2] == "blocks" and isinstance(m, nn.Sequential) and len(m)]
    for blocks in found:
        inner = [m for m in blocks if type(m) is nn.Sequential]
        for sequence in inner if len(inner) == len(blocks) else [blocks]:
            sequence.__class__ = RecomputedSequential
    return bool(found)


@contextlib.contextmanager
def still_statistics(model: nn.Module) -> Iterator[None]:
    """Running statistics of BatchNorm stay as they are: a pass that is made twice must not count twice."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [(m.momentum, None if m.num_batches_tracked is None else m.num_batches_tracked.clone()) for m in norms]
    for m in norms:
        m.momentum = 0.0
    try:
        yield
    finally:
        for m, (momentum, batches) in zip(norms, kept, strict=True):
            m.momentum = momentum
            if batches is not None:
                m.num_batches_tracked.copy_(batches)
