"""`clipling plan RECIPE --pairs N`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction

from clipling.errors import UserError

MOST_CAPTIONS = 10_000  # of a pair


def plan(
    recipe: Positional[str],
    /,
    pairs: str | None = None,
    machine: str = "this",
    hours: float = 168.0,
    disk: str | None = None,
    memory: str | None = None,
    captions: float = 1.0,
    price: float | None = None,
    student: str | None = None,
    epochs: float | None = None,
    batch: int | None = None,
    set: Annotated[tuple[tuple[str, ...], ...], UseAppendAction] = (),
    scale: str = "cpu",
    pilot: str | None = None,
    data: str | None = None,
    val: str | None = None,
    out: Path | None = None,
    larger: str | None = None,
    guidance: bool = False,
    against: tuple[str, ...] = (),
    teacher: tuple[str, ...] = (),
    augmentations: int | None = None,
    synthetic: float | None = None,
    storage: Literal["fp32", "fp16", "int8"] | None = None,
    threads: int | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """Bytes, hours and the limit that breaks first, before you start; with --pilot, what training would reach.

    Args:
        recipe: A recipe by name (`clipling show recipes`), a .yaml file, or ./file.py:function.
        pairs: How many pairs, or several numbers: 20000, 10k, 1.5M, 10k,1M,5B. With --pilot: what is forecast (default: all of --data).
        machine: this (measured now), or t4, l4, rtx4090, a100, h100, 8xa100, 8xh100 (stated rates).
        hours: More than so many hours of one part count as a limit (default: a week).
        disk: Free disk, for example 2T, instead of the machine's.
        memory: RAM, for example 64G, instead of the machine's.
        captions: Captions of a pair.
        price: Money an hour of one device.
        student: A student of the zoo, or a JSON file (`clipling show students`).
        epochs: Passes over the pairs.
        batch: Pairs of a step.
        set: Settings of the recipe, for example --set guide.k=10 (may be repeated).
        scale: cpu or paper.
        pilot: Time for small pilot runs on --data, for example 10m or 1h.
        data: Pairs for the pilots.
        val: Pairs for validation. Default: a fixed split of --data is held out.
        out: The folder of the pilots (default: runs/pilot-<recipe>); given again, finished pilots are not repeated.
        larger: Another student, for one pilot more: what a larger student would add.
        guidance: One pilot more with the recipe ping: what guidance would add.
        against: Models that exist (a run, a folder, NAME@TAG of open_clip), measured on the same pairs: should I train at all?
        teacher: Of recipes that read a reinforced source: the models that make it, measured (may be repeated).
        augmentations: Of such a source: crops of each picture (default: 10, as `clipling reinforce`).
        synthetic: Of such a source: synthetic captions of a pair (default: 5, or 0 where the recipe looks at none).
        storage: Of such a source: how embeddings are stored (default: fp16); the others are named too.
        threads: Threads of torch (default: OMP_NUM_THREADS, or all cores).
        json: Print as JSON.
    """
    from clipling.models.hub import open_student
    from clipling.planning.calibrate import calibrate
    from clipling.planning.machines import machine as machine_named
    from clipling.planning.plan import counts, make_plan, number
    from clipling.planning.stored import stored_plan
    from clipling.recipe import load_recipe, with_settings
    from clipling.run import threads as set_threads
    from clipling.verbs.train import settings_given

    if not (0 < captions <= MOST_CAPTIONS and 0 < hours < math.inf and 0 <= (price or 0.0) < math.inf):
        raise UserError(
            f"--captions {captions:g}, --hours {hours:g}, --price {price or 0:g}: expected above 0 and at most {MOST_CAPTIONS:,} captions, "
            "hours above 0, and a price of 0 or more"
        )
    settings = {"student.config": student, "stages.0.epochs": epochs, "optimiser.batch": batch, "data.source": data, "data.val": val}
    made = with_settings(load_recipe(recipe, scale=scale), {k: v for k, v in settings.items() if v is not None})
    made = with_settings(made, settings_given(set))
    set_threads(threads)
    reinforcing = {"--teacher": teacher or None, "--augmentations": augmentations, "--synthetic": synthetic, "--storage": storage}
    if pilot is not None:
        _none_of(reinforcing, ": with --pilot. Leave it out")
    elif made.reinforced is None:
        _none_of(reinforcing, f": the recipe {made.name!r} reads no reinforced source (mobileclip2 does). Leave it out")
    if pilot is not None:
        from clipling.planning.pilot import run_pilot, seconds

        if data is None:
            raise UserError("--pilot trains small pilots on your pairs: give --data")
        wanted = None if pairs is None else counts(pairs)
        return run_pilot(
            made,
            out or Path("runs") / f"pilot-{made.name}",
            seconds(pilot),
            targets=wanted,
            larger=larger,
            guidance=guidance,
            against=against,
            quiet=json,
        )
    only = {"--data": data, "--val": val, "--out": out, "--larger": larger, "--guidance": guidance or None, "--against": against or None}
    _none_of(only, " without --pilot. Add --pilot 10m, or leave it out")
    if pairs is None:
        raise UserError("how many pairs? Give --pairs, for example --pairs 1M or --pairs 10k,1M,5B")
    free = None if disk is None else number(disk, "--disk"), None if memory is None else number(memory, "--memory")
    chosen = machine_named(machine, *free)
    wanted = counts(pairs)
    models = {f"teacher{n}" if n > 1 else "teacher": open_student(spec) for n, spec in enumerate(teacher, 1)}
    stored = stored_plan(made, captions, models, augmentations, synthetic, storage)
    return make_plan(made, calibrate(made, captions, stored=stored, teachers=models), chosen, wanted, hours, price)


def _none_of(flags: dict[str, Any], why: str) -> None:
    """UserError when one of the flags, by name, has a value."""
    given = [name for name, value in flags.items() if value is not None]
    if given:
        raise UserError(f"{', '.join(given)} would be ignored{why}.")
