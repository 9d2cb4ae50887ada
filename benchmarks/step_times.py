"""Seconds between the optimiser steps of whatever loop runs in this process, and what the processor spent on them."""

from __future__ import annotations

import itertools
import time
from typing import Any

import psutil
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


class StepTimes:
    """Listens to every torch optimiser from its making on: the same measurement for every training loop."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.processor: list[float] = []
        self.parameters = 0
        self.process = psutil.Process()
        register_optimizer_step_post_hook(self._note)

    def _note(self, optimiser: torch.optim.Optimizer, *_: Any) -> None:
        self.parameters = self.parameters or sum(p.numel() for group in optimiser.param_groups for p in group["params"])
        self.wall.append(time.perf_counter())
        self.processor.append(sum(self._spent(p) for p in [self.process, *self.process.children(recursive=True)]))

    @staticmethod
    def _spent(process: psutil.Process) -> float:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            return 0.0
        return times.user + times.system

    def found(self) -> dict[str, list[float]]:
        """Seconds from each step to the next, and processor seconds of this process and its workers."""
        columns = {"seconds": self.wall, "cpu_seconds": self.processor}
        return {name: [round(b - a, 5) for a, b in itertools.pairwise(values)] for name, values in columns.items()}
