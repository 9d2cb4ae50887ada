"""A moving average of the student's weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Ema:
    """Average of all floating-point parameters and buffers: avg <- decay * avg + (1 - decay) * now.

    The decay of step t is min(decay, (1 + t) / (10 + t)), so that a short run is not dominated by its start.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.average = {n: t.detach().clone() for n, t in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, now in model.state_dict().items():
            mean = self.average[name]
            if mean.is_floating_point():
                mean.lerp_(now, 1 - decay)
            else:
                mean.copy_(now)

    @contextlib.contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """Runs a block with the averaged weights in the model."""
        kept: dict[str, Tensor] = {n: t.detach().clone() for n, t in model.state_dict().items()}
        model.load_state_dict(self.average)
        try:
            yield
        finally:
            model.load_state_dict(kept)
