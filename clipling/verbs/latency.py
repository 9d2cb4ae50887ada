"""`clipling latency DIR_OR_MODEL...`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tyro.conf import Positional

from clipling.errors import UserError


def latency(
    models: Positional[tuple[str, ...]] = (),
    /,
    reference: str | None = None,
    threads: str = "1",
    batch: str = "1,16",
    rounds: int = 15,
    out: Path | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """Times models on this machine's processor, side by side: pictures and texts a second, milliseconds, memory, file size.

    Args:
        models: Exported folders (every precision that they have is timed) and models (in torch).
        reference: Architectures with random weights to compare with, in torch and ONNX, separated by commas: ViT-B-32,ViT-B-16
        threads: Numbers of threads, separated by commas.
        batch: Batch sizes, separated by commas.
        rounds: How often each is called; the arms take turns.
        out: The result as a .json file.
        json: Print as JSON.
    """
    from clipling.deploy.latency import latency as measure

    names = tuple(name.strip() for name in (reference or "").split(",") if name.strip())
    return measure(models, references=names, threads=_numbers("threads", threads), batches=_numbers("batch", batch), rounds=rounds, out=out)


def _numbers(name: str, given: str) -> list[int]:
    parts = [part.strip() for part in given.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"--{name} is {given!r}; expected numbers separated by commas, such as 1,2")
    return [int(part) for part in parts]
