"""What a run was made with: packages, machine, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import clipling

PACKAGES = ("clipling", "torch", "torchvision", "timm", "open_clip_torch", "transformers", "sentence-transformers", "numpy", "Pillow")


def environment() -> dict[str, Any]:
    """JSON-able description of this process: no user names, no paths."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := installed(name))},
        "machine": {"system": platform.system(), "processor": processor(), "cores": os.cpu_count()},
    }


def installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of the checkout that runs, with `+` where files differ; None outside a checkout."""
    folder = Path(clipling.__file__).parent
    try:
        run = {"capture_output": True, "text": True, "timeout": 5, "cwd": folder}
        name = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **run)  # type: ignore[call-overload]
        changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no", "."], **run)  # type: ignore[call-overload]
    except (OSError, subprocess.TimeoutExpired):
        return None
    return name.stdout.strip() + ("+" if changed.stdout.strip() else "") if name.returncode == 0 else None


def processor() -> str:
    """The processor's name, and whether it has the int8 instructions (VNNI) and the matrix unit for bf16 (AMX), where that can be read."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine()
    lines = info.read_text(errors="replace").splitlines()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line for line in lines if line.startswith("flags")), "")
    return f"{name} ({'VNNI' if 'vnni' in flags else 'no VNNI'}{', AMX' if 'amx_bf16' in flags else ''})"
