"""How many pairs a step has: what can be drawn and divided, and what is taken where a source is smaller than its recipe's batch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from clipling.errors import UserError
from clipling.recipe import Recipe, from_yaml, with_settings

STEPS = 4  # an epoch of a small source should have at least so many: below that a rate neither warms up nor falls
KEY = "optimiser.batch"


def fitting_batch(pairs: int, world: int = 1) -> int | None:
    """The largest power of two (times the number of processes) that leaves four steps an epoch; None for too few pairs."""
    smallest = 2 if world == 1 else world
    if pairs < smallest:
        return None
    share = max(1, pairs // STEPS // world)
    return max(smallest, world * 2 ** (share.bit_length() - 1))


def check_batch(batch: int, pairs: int, world: int, what: str = "pairs", also: Sequence[str] = ()) -> None:
    """Refuses a batch that cannot be drawn or divided; the one that is proposed instead always can. what: pairs or photos. also: said of
    the source where there are too few of them, such as that it is half made."""
    if batch % world:
        raise UserError(f"{KEY} = {batch} cannot be divided among {world} processes")
    if batch <= pairs:
        return
    proposed = fitting_batch(pairs, world)
    first = "".join(f"{said}.\n" for said in also)
    if proposed is None:
        raise UserError(
            f"{first}training {what}: {pairs}; a step needs at least {max(2, world)}, and learning many more. Give more {what}."
        )
    raise UserError(
        f"{first}{KEY} = {batch} is larger than the {pairs} training {what}. Use --batch {proposed} ({pairs // proposed} steps an epoch) "
        f"or give more {what}."
    )


def fitted(recipe: Recipe, pairs: int, world: int = 1, quiet: bool = False) -> Recipe:
    """The recipe with a batch that fits where its own is larger than the source; says so. For a batch that nobody asked for."""
    own, batch = recipe.optimiser.batch, fitting_batch(pairs, world)
    if own <= pairs or batch is None:
        return recipe
    if not quiet:
        what = unit(recipe)
        why = f"not the recipe's {own}: of {pairs} for training that makes {pairs // batch} steps an epoch (--batch decides)"
        print(f"batch    {batch} {what}, {why}", file=sys.stderr, flush=True)
    return with_settings(recipe, {KEY: batch})


def as_begun(recipe: Recipe, out: Path) -> Recipe:
    """The recipe with the batch of the run in `out`, which began with one that fitted its pairs. Its other settings are not looked at."""
    path = out / "recipe.yaml"
    if not path.is_file():
        return recipe
    try:
        batch = from_yaml(path).optimiser.batch
    except UserError:
        return recipe  # what is wrong with it is said where recipes are compared
    return with_settings(recipe, {KEY: batch}) if batch < recipe.optimiser.batch else recipe


def unit(recipe: Recipe) -> str:
    """What a step is made of."""
    return "photos" if recipe.data.bare else "pairs"
