"""Convolutions of timm's towers that need care on CPU. Weights, names and results stay those of the stock model."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SubsampledConv2d(nn.Conv2d):
    """A strided 1x1 convolution, computed as the picture's every s-th pixel times the weights: the same result."""

    def forward(self, x: Tensor) -> Tensor:
        vertical, horizontal = self.stride
        return F.conv2d(x[..., ::vertical, ::horizontal], self.weight, self.bias)


def make_safe(tower: nn.Module) -> None:
    """Changes the convolutions whose weight gradient corrupts memory in oneDNN (github.com/uxlfoundation/oneDNN/issues/6035).

    Those are strided 1x1 convolutions of fewer than 16 channels in channels_last layout, as in the stem of FastViT and
    MobileOne: a crash at best, a wrong gradient at worst.
    """
    for module in tower.modules():
        if type(module) is nn.Conv2d and unsafe(module):
            module.__class__ = SubsampledConv2d


def unsafe(module: nn.Conv2d) -> bool:
    """Whether oneDNN's weight gradient of this convolution writes outside of its memory."""
    pointwise = module.kernel_size == (1, 1) and module.padding == (0, 0) and module.groups == 1
    return pointwise and max(module.stride) > 1 and module.in_channels < 16
