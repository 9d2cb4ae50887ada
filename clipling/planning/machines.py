"""Machines that a plan can be made for, with the source of each rate."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from clipling.errors import UserError, near

# Share of a GPU's peak that training of small two-tower models reaches. An assumption, not a measurement: large language models report
# 0.3 to 0.5 (Chowdhery et al. 2022, arXiv 2204.02311, table 3), small convolutions are bound by memory and far below. A plan says so.
UTILISATION = 0.2


@dataclass(frozen=True)
class Machine:
    """What one machine has. Rates of "this" are measured; those of the others are stated.

    peak: FLOP/s of dense bf16 (fp16 for a T4) matrix products of one device; None: measured. memory: bytes of RAM; device_memory: of one
    device, 0 for a CPU; disk: free bytes; cores: for decoding pictures; devices: that train together.
    """

    name: str
    source: str
    cores: int
    memory: float
    disk: float
    peak: float | None = None
    device_memory: float = 0
    devices: int = 1


TB, GB = 1e12, 1e9
# Peaks and memory: the makers' data sheets of the device named. Cores, RAM and disk: a common cloud size around it, an assumption.
STATED = {
    "t4": Machine("t4", "NVIDIA T4 data sheet: 65 TFLOP/s fp16, 16 GB", 8, 52 * GB, 1 * TB, 65e12, 16 * GB),
    "l4": Machine("l4", "NVIDIA L4 data sheet: 121 TFLOP/s bf16 dense, 24 GB", 12, 48 * GB, 2 * TB, 121e12, 24 * GB),
    "rtx4090": Machine("rtx4090", "NVIDIA Ada white paper: 165 TFLOP/s bf16 dense, 24 GB", 16, 64 * GB, 2 * TB, 165e12, 24 * GB),
    "a100": Machine("a100", "NVIDIA A100 data sheet: 312 TFLOP/s bf16 dense, 80 GB", 16, 170 * GB, 4 * TB, 312e12, 80 * GB),
    "h100": Machine("h100", "NVIDIA H100 SXM data sheet: 989 TFLOP/s bf16 dense, 80 GB", 26, 200 * GB, 4 * TB, 989e12, 80 * GB),
    "8xa100": Machine(
        "8xa100", "NVIDIA A100 data sheet: 312 TFLOP/s bf16 dense, 80 GB, each", 96, 1360 * GB, 30 * TB, 312e12, 80 * GB, devices=8
    ),
    "8xh100": Machine(
        "8xh100", "NVIDIA H100 SXM data sheet: 989 TFLOP/s bf16 dense, 80 GB, each", 208, 2000 * GB, 30 * TB, 989e12, 80 * GB, devices=8
    ),
}


def machine(name: str, disk: float | None = None, memory: float | None = None) -> Machine:
    """A machine by name; `this` is the one we run on. disk, memory: what is free there, in bytes, where somebody knows better."""
    if name == "this":
        found = this_machine()
    elif name in STATED:
        found = STATED[name]
    else:
        raise UserError(f"--machine {name!r}. {near(name, ['this', *STATED])}")
    return Machine(**{**vars(found), "disk": disk or found.disk, "memory": memory or found.memory})


def this_machine() -> Machine:
    """This machine: its cores that we may use, its RAM and the free disk under the current folder."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    disk = shutil.disk_usage(Path.cwd()).free
    return Machine("this", "measured now", cores, float(psutil.virtual_memory().total), float(disk))
