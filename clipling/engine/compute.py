"""The compute settings of a recipe, put into effect on a student; a setting that would be ignored is refused."""

from __future__ import annotations

import os
import shutil

import torch

from clipling.errors import UserError
from clipling.models.dual import Student
from clipling.models.masked import is_irregular
from clipling.models.recompute import checkpoint_activations
from clipling.objectives.term import Objective
from clipling.settings import Compute


def prepare(student: Student, objective: Objective, settings: Compute) -> None:
    """Compiles the student's towers or has them make activations again, as asked. Raises UserError where that cannot be."""
    for name in ("compile", "activation_checkpointing"):
        if getattr(settings, name):
            _refuse_other_forwards(student, objective, name)
    if settings.compile and settings.activation_checkpointing:
        raise UserError("compute.compile and compute.activation_checkpointing do not work together: choose one of them")
    if settings.compile:
        _need_compiler(student.device)
        student.compile_towers()
    if settings.activation_checkpointing:
        checkpoint_activations(student.model)


def _refuse_other_forwards(student: Student, objective: Objective, name: str) -> None:
    """Masked and irregular towers run a forward of their own, which neither is compiled nor makes anything again."""
    if "student.masks" in objective.needs or is_irregular(student.model.text) or is_irregular(student.model.visual):
        raise UserError(f"compute.{name}: not for towers with learned masks or pruned layers. Set it to false.")
    if name == "compile" and "student.image:masked" in objective.needs:
        raise UserError("compute.compile: not with a term that sees masked pictures (MFD). Set it to false, or use FD.")


def _need_compiler(device: torch.device) -> None:
    """torch.compile writes C++ for a CPU: without a compiler its own message comes late and is long."""
    named = os.environ.get("CXX", "").split()
    if device.type == "cpu" and not any(shutil.which(program) for program in (*named[:1], "g++", "clang++", "cl")):
        raise UserError("compute.compile needs a C++ compiler on a CPU (g++ or clang++). Install one, or set it to false.")


def bf16_is_native(device: torch.device) -> bool:
    """Whether the device has instructions for bf16; without them autocast works, and is slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return True
    if not hasattr(torch.cpu, "get_capabilities"):
        return True  # older torch cannot tell
    capable = torch.cpu.get_capabilities()
    return any(capable.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
