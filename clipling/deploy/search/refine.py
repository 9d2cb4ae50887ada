"""One query vector of a text, a picture, and of pictures that were liked and disliked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Rocchio 1971, "Relevance feedback in information retrieval"; the weights that Manning, Raghavan and Schuetze,
# "Introduction to Information Retrieval" (2008), section 9.1.1, call reasonable.
ALPHA, BETA, GAMMA = 1.0, 0.75, 0.15


def refined(asked: Sequence[np.ndarray], liked: Sequence[np.ndarray], disliked: Sequence[np.ndarray]) -> np.ndarray:
    """The unit vector of  1.0 mean(asked) + 0.75 mean(liked) - 0.15 mean(disliked);  a mean of nothing is 0.

    asked: unit vectors [d] of what was typed, shown or clicked. All in one space: embeddings of texts and of pictures.

    Raises:
        ValueError: neither asked nor liked, or the sum has no direction.
    """
    if not asked and not liked:
        raise ValueError("a query needs a text, a picture or a liked result")
    total = sum(
        weight * np.mean(rows, axis=0, dtype=np.float64)
        for weight, rows in ((ALPHA, asked), (BETA, liked), (-GAMMA, disliked))
        if len(rows)
    )
    length = float(np.linalg.norm(total))
    if not length > 1e-6:
        raise ValueError("what is asked for and what is disliked cancel each other")
    return (total / length).astype(np.float32)
