"""`clipling show recipes|students|encoders`."""

from __future__ import annotations

from typing import Any, Literal

from tyro.conf import Positional

from clipling.errors import UserError


def show(
    what: Positional[Literal["recipes", "students", "encoders"]], name: Positional[str | None] = None, /, json: bool = False
) -> dict[str, Any]:
    """Lists what can be named.

    Args:
        what: recipes, students or encoders.
        name: With recipes: one of them, whole, as the YAML file that `clipling train` takes.
        json: Print as JSON.
    """
    if name is not None:
        if what != "recipes":
            raise UserError(f"{name} would be ignored: only recipes are shown one by one (clipling show recipes {name})")
        from clipling.recipe import load_recipe, to_yaml

        return {"text": to_yaml(load_recipe(name))}
    if what == "recipes":
        from clipling.recipe import recipe_help

        return recipe_help()
    if what == "students":
        from clipling.models.hub import zoo_table

        return zoo_table()
    from clipling.guides.encoders import encoder_table

    return encoder_table()
