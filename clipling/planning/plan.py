"""A plan: bytes, hours, the limit that breaks first, for one recipe and one or several numbers of pairs."""

from __future__ import annotations

from typing import Any

from clipling.errors import UserError
from clipling.planning.calibrate import Calibration
from clipling.planning.hours import START_UP, STEP_FLOOR, Rates, hours, starving
from clipling.planning.limits import Limit, limits
from clipling.planning.machines import UTILISATION, Machine
from clipling.planning.sizes import DECODED_LIMIT, Shape, disk, memory, peak_memory, training_memory
from clipling.planning.stored import StoredPlan
from clipling.recipe import Recipe

SUFFIXES = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
FEWEST, MOST = 1_000, 100_000_000_000


def number(text: str, what: str, suffixes: dict[str, float] = SUFFIXES) -> float:
    """`10k`, `5B`, `1.5M`, `20000`. Raises UserError for anything else."""
    cleaned = text.strip().lower().replace("_", "").removesuffix("bytes").rstrip()
    factor = suffixes.get(cleaned[-1:], 1.0)
    digits = cleaned[:-1] if cleaned[-1:] in suffixes else cleaned
    try:
        value = float(digits) * factor
    except ValueError:
        value = -1.0
    if not 0 < value < 1e18:
        raise UserError(f"{what} {text!r}: expected a number above 0 such as 20000, 10k, 1.5M or 5B")
    return value


def counts(text: str) -> list[int]:
    """`10k,1M,5B` as numbers of pairs."""
    found = [round(number(part, "--pairs")) for part in text.split(",")]
    for pairs in found:
        if not FEWEST <= pairs <= MOST:
            raise UserError(f"--pairs {pairs}: a plan is for {FEWEST:,} to {MOST:,} pairs")
    return found


def make_plan(
    recipe: Recipe, measured: Calibration, machine: Machine, pairs: list[int], most_hours: float, price: float | None = None
) -> dict[str, Any]:
    """The plan as a JSON-able mapping: `plans` one for each number of pairs, `limits` in the order in which they break."""
    shape, rates = measured.shape, measured.rates.on(machine)
    epochs = sum(stage.epochs for stage in recipe.stages)
    ordered = broken_first(limits(shape, rates, machine, epochs, most_hours))
    return {
        "recipe": recipe.name,
        "student": recipe.student.config,
        "epochs": epochs,
        "captions": shape.captions,
        "machine": vars(machine),
        "rates": {"train_pairs_per_s": rates.train, "decoded_per_s_and_core": rates.decode, **_encoders(rates)},
        **({"stored": measured.stored.described()} if measured.stored else {}),
        "training_memory": training_memory(shape),
        "plans": [one(shape, rates, machine, count, epochs, ordered, price) for count in pairs],
        "limits": [described(limit, most) for limit, most in ordered],
        "notes": notes(recipe, shape, rates, machine, measured, pairs),
    }


def one(
    shape: Shape, rates: Rates, machine: Machine, pairs: int, epochs: float, ordered: list[tuple[Limit, int | None]], price: float | None
) -> dict[str, Any]:
    """What one number of pairs takes, and what of it there is not enough of."""
    taken = hours(shape, rates, machine.cores, pairs, epochs)
    on_disk, total = disk(shape, pairs), sum(taken.values())
    broken = [limit.name for limit, most in ordered if most is not None and pairs > most and limit.need(pairs) > limit.have]
    return {
        "pairs": pairs,
        "samples_seen": epochs * pairs,
        "bytes": {**on_disk, "all": sum(on_disk.values())},
        "memory": {**memory(shape, pairs), "peak": peak_memory(shape, pairs, machine.device_memory > 0)},
        "hours": {**taken, "all": total},
        "money": None if price is None else price * total * machine.devices,
        "broken": [name for name in broken if name != "exact neighbours"],
        "exact_neighbours": "exact neighbours" not in broken,
    }


def broken_first(found: list[Limit]) -> list[tuple[Limit, int | None]]:
    """Limits with the pairs up to which they hold, the first to break first; those that never break last."""
    most = [(limit, limit.most_pairs()) for limit in found]
    return sorted(most, key=lambda pair: (pair[1] is None, pair[1] or 0))


def described(limit: Limit, most: int | None) -> dict[str, Any]:
    return {"name": limit.name, "most_pairs": most, "have": limit.have, "unit": limit.unit, "advice": limit.advice}


def _encoders(rates: Rates) -> dict[str, float]:
    return {"encoded_pictures_per_s": rates.image, "encoded_captions_per_s": rates.text} if rates.image else {}


def notes(recipe: Recipe, shape: Shape, rates: Rates, machine: Machine, measured: Calibration, pairs: list[int]) -> list[str]:
    """What a reader must know before believing the numbers."""
    found, most = [], max(pairs)
    if recipe.optimiser.batch > min(pairs):
        found.append(
            f"a batch of {recipe.optimiser.batch:,} is more than {min(pairs):,} pairs: training takes a smaller one, or refuses one that "
            "was asked for"
        )
    if machine.peak is None:
        found.append(f"hours from steps measured just now on this machine ({measured.device}, {measured.threads} threads)")
    else:
        found.append(f"hours assume {100 * UTILISATION:.0f} % of the stated peak of {machine.devices} device(s): {machine.source}")
        found.append(
            f"a step takes {1000 * STEP_FLOOR:g} ms at least, and {START_UP:g} s go by before the first one: guesses of ours, not measured"
        )
    if 3 * most * round(shape.image_size * 1.25) ** 2 > DECODED_LIMIT:
        found.append(f"decoded pictures are kept up to {DECODED_LIMIT / 2**30:.0f} GiB; larger sources are decoded at every epoch")
    if starving(shape, rates, machine.cores, most):
        found.append(f"{machine.cores} cores decode fewer pictures a second than the student sees: loading is what takes the time")
    if recipe.teachers:
        found.append("the time of teachers is not counted: features of crops that do not vary are computed once, others at every step")
    if measured.stored is not None:
        found += _notes_on_stored(measured.stored)
    if recipe.guide is not None:
        found.append("guidance adds up to 5 % to a step (benchmarks: ping_cost), which is not counted")
    return found


def _notes_on_stored(stored: StoredPlan) -> list[str]:
    found = ["pictures are those inside of the reinforced tars; the source that these are made from is not counted"]
    if stored.assumed:
        found.append(
            "sizes of embeddings are those of DataCompDR's two teachers (768 + 768): give --teacher MODEL, or --set "
            "'reinforced.teachers={first: 512}'"
        )
    if not stored.teacher_seconds:
        return [*found, "the time of `clipling reinforce` is not known: give --teacher MODEL (repeatable), which is then measured"]
    return [*found, "reinforcing: teachers, decoding and crops; captions by models (coca, transformers) are not counted"]
