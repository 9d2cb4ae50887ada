"""`clipling compare RUN...`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tyro.conf import Positional


def compare(
    runs: Positional[tuple[Path, ...]], /, out: Path = Path("report.html"), pictures: bool = True, json: bool = False
) -> dict[str, Any]:
    """Compares runs and writes one self-contained page.

    Args:
        runs: Run folders (several seeds of one recipe count as one row); of what `clipling compress` made, its last stage.
        out: The page.
        pictures: Default: the page shows pictures of the pairs; --no-pictures leaves them out, for private data.
        json: Print the table as JSON.
    """
    from clipling.errors import UserError
    from clipling.evals.compare import compare as make
    from clipling.run import threads

    if not runs:
        raise UserError("compare: give at least one run folder, for example: clipling compare runs/clip runs/ping")
    threads(None)
    return make(list(runs), out, pictures=pictures)
