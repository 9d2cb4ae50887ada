"""Pictures of which a vision transformer sees some patches only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from open_clip.transformer import PatchDropout, VisionTransformer
from torch import nn

from clipling.errors import UserError


@contextlib.contextmanager
def patches_left_out(tower: nn.Module, share: float) -> Iterator[None]:
    """While it lasts, `tower` in training mode drops `share` of the patches of every picture at random, after positions were added, and
    keeps the class token; other patches for every picture (He et al. 2022, arXiv 2111.06377).

    Raises UserError for a tower that has no patches to leave out.
    """
    if not isinstance(tower, VisionTransformer) or not 0 <= share < 1:
        raise UserError(
            f"masked pictures (MFD) need open_clip's vision transformer as image tower; this student has {type(tower).__name__}. "
            "Use FD instead, or a student such as vit_xs_16."
        )
    before = tower.patch_dropout
    tower.patch_dropout = PatchDropout(share).train(tower.training) if share else nn.Identity()
    try:
        yield
    finally:
        tower.patch_dropout = before
