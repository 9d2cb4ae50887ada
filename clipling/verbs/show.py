"""`clipling show recipes|students|encoders`."""

from __future__ import annotations

from typing import Any, Literal

from tyro.conf import Positional


def show(what: Positional[Literal["recipes", "students", "encoders"]], /, json: bool = False) -> dict[str, Any]:
    """Lists what can be named.

    Args:
        what: recipes, students or encoders.
        json: Print as JSON.
    """
    if what == "recipes":
        from clipling.recipe import recipe_help

        return recipe_help()
    if what == "students":
        from clipling.models.hub import zoo_table

        return zoo_table()
    from clipling.guides.encoders import encoder_table

    return encoder_table()
