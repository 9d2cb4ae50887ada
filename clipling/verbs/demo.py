"""`clipling demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def demo(
    out: Path = Path("demo"),
    epochs: float = 20.0,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """The main job on real pictures that pip installs: a bank, CLIP and CLIP-PING, a report. About ten minutes.

    Args:
        out: The folder for both runs and the report.
        epochs: Passes over the training pairs, for both students.
        seed: Seed of both students.
        resume: Keep what is finished in --out and go on from there.
        overwrite: Start again in --out.
        threads: Threads of torch (default: all cores).
        json: Print the result as JSON.
    """
    from clipling.run import threads as set_threads
    from clipling.walkthrough import walk

    set_threads(threads)
    return walk(out, epochs=epochs, seed=seed, resume=resume, overwrite=overwrite, quiet=json)
