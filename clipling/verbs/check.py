"""`clipling check FILE`."""

from __future__ import annotations

from typing import Any

from tyro.conf import Positional


def check(file: Positional[str], /, json: bool = False) -> dict[str, Any]:
    """Checks a term of your own: shapes, gradients, permutation of the batch, one process against two.

    Args:
        file: ./file.py:Class, or a module:Class.
        json: Print as JSON.
    """
    from clipling.objectives.check import check_file

    return check_file(file)
