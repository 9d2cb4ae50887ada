"""Hard-concrete gates: masks that are exactly 0 with a probability that can be learned.

Louizos et al., ICLR 2018 (arXiv 1712.01312), with the constants of CoFi (Xia et al., ACL 2022, arXiv 2204.00408), which TinyCLIP's
automatic inheritance uses. A gate has one parameter, `log_alpha`: large is open (mask 1), small is closed (mask 0).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOW, HIGH = -0.1, 1.1  # the interval that a sigmoid is stretched over before it is cut to [0, 1]
TEMPERATURE = 2 / 3
SHARPNESS = 0.8  # of the masks of evaluation ("magical number" in the reference)
EPSILON = 1e-6
MAX_LOG_ALPHA = math.log(100)


def open_probability(log_alpha: Tensor) -> Tensor:
    """How likely a drawn mask is not 0, within [1e-6, 1 - 1e-6]."""
    closed = torch.sigmoid(TEMPERATURE * math.log(-LOW / HIGH) - log_alpha)
    return 1 - closed.clamp(EPSILON, 1 - EPSILON)


def gates(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """Masks in [0, 1] made of numbers in (0, 1), with gradient to log_alpha where they are not cut off."""
    soft = torch.sigmoid((torch.logit(uniform) + log_alpha) / TEMPERATURE)
    return (soft * (HIGH - LOW) + LOW).clamp(0, 1)


def draw_gates(log_alpha: Tensor, generator: torch.Generator) -> Tensor:
    """Random masks, shaped as `log_alpha`."""
    uniform = torch.rand(log_alpha.shape, generator=generator, device=generator.device).to(log_alpha)
    return gates(log_alpha, EPSILON + (1 - 2 * EPSILON) * uniform)


def settled_gates(log_alpha: Tensor, alive: Tensor) -> Tensor:
    """The masks of evaluation, of gates [..., units], each row for itself.

    As many units are 0 as are expected to be (rounded), the smallest ones (of equals the first); the others keep a soft value below 1.
    alive, shaped alike: 0 for units that are always 0.
    """
    soft = torch.sigmoid(SHARPNESS / TEMPERATURE * log_alpha) * alive
    closed = (log_alpha.shape[-1] - (open_probability(log_alpha) * alive).sum(dim=-1, keepdim=True)).round()
    place = soft.argsort(dim=-1, stable=True).argsort(dim=-1)
    return torch.where(place < closed, 0.0, soft)
