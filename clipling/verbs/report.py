"""`clipling report RESULTS...`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tyro.conf import Positional


def report(
    results: Positional[tuple[Path, ...]],
    /,
    out: Path = Path("report.html"),
    first: str | None = None,
    pictures: bool = True,
    json: bool = False,
) -> dict[str, Any]:
    """One self-contained page for the results of one model or several, made by `clipling eval --suite`.

    Args:
        results: Folders of results.
        out: The page.
        first: The model that the others are compared with, by its name in the table (default: the first folder's).
        pictures: Show pictures (--no-pictures for private data).
        json: Print as JSON.
    """
    from clipling.errors import UserError
    from clipling.suites import report as make

    if not results:
        raise UserError("report: give at least one folder of results, made by: clipling eval MODEL --suite quick --data SRC --out DIR")
    return make(list(results), out, pictures=pictures, first=first)
