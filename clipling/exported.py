"""An exported folder where `predict` and `embed` expect a model: what is deployed can be asked, int8 graphs included."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipling.evals.suite.dataset import Dataset
from clipling.runtime.manifest import NAME
from clipling.runtime.model import Runtime

BLOCK = 256  # pictures whose bytes are in memory at once


def is_exported(model: str) -> bool:
    return (Path(model) / NAME).is_file()


class Exported:
    """Answers what `Subject` does, by the graphs that clipling.load would take (int8 where the folder has it)."""

    def __init__(self, folder: str, threads: int | None = None) -> None:
        self.runtime = Runtime(folder, threads=threads)
        kinds = ", ".join(f"{side} {precision}" for side, precision in self.runtime.precisions.items())
        self.name = f"{self.runtime.manifest.name} ({kinds})"

    @property
    def scale(self) -> float:
        return self.runtime.logit_scale

    def images(self, dataset: Dataset) -> np.ndarray:
        """Unit rows float32 [P, d] of the pictures. UserError names one that cannot be read."""
        pairs = dataset.pairs
        parts = [range(start, min(start + BLOCK, len(pairs))) for start in range(0, len(pairs), BLOCK)]
        return np.concatenate([self.runtime.encode_image([pairs.image_bytes(i) for i in part]) for part in parts])

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit rows float32 [T, d]."""
        return self.runtime.encode_text(list(texts))

    def prompted(self, names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
        """Unit rows float32 [C, d]: the prompt ensemble of these names."""
        return self.runtime.class_features(names, templates)
