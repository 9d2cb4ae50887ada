"""`clipling train RECIPE --data SRC --out RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, UseAppendAction

from clipling.errors import UserError


def train(
    recipe: Positional[str],
    /,
    data: str | None = None,
    out: Path | None = None,
    val: str | None = None,
    guide: str | None = None,
    teacher: tuple[str, ...] = (),
    student: str | None = None,
    epochs: float | None = None,
    batch: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    seeds: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    group: str | None = None,
    set: Annotated[tuple[tuple[str, ...], ...], UseAppendAction] = (),
    scale: str = "cpu",
    smoke: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """Trains a small CLIP model on your image-text pairs.

    Args:
        recipe: A recipe by name (`clipling show recipes`), a .yaml file, or ./file.py:function.
        data: Pairs: a folder, .csv/.tsv, .jsonl, .tar files (braces allowed), or demo:emoji.
        out: The run folder that is made (default: runs/<recipe>).
        val: Pairs for validation. Default: a fixed split of --data is held out.
        guide: A bank folder made by `clipling bank`. Default: built from --data and cached.
        teacher: A model to learn from (a run, a folder of a model, NAME@TAG of open_clip); several are an ensemble.
        student: A student of the zoo, or a JSON file (`clipling show students`).
        epochs: Passes over the training pairs.
        batch: Pairs of a step, over all processes.
        lr: Peak learning rate.
        seed: Seed of weights, order, crops, captions and neighbours.
        seeds: Several seeds, for example 0,1,2: one run each below --out.
        image_column: Column of the picture's path, when it cannot be guessed.
        caption_column: Column of the caption, when it cannot be guessed.
        group: Column that names a product; its pairs stay on one side of the split.
        set: Settings of the recipe, for example --set objective.ping.weight.nn=0.5 optimiser.ema=0.99 (may be repeated).
        scale: cpu (minutes on two cores) or paper.
        smoke: One step of a tiny student, to see that everything fits together.
        resume: Continue the run in --out where it stopped.
        overwrite: Replace the run in --out.
        threads: Threads of torch (default: OMP_NUM_THREADS, or all cores).
        json: Print the summary as JSON.
    """
    from clipling.recipe import load_recipe, with_settings
    from clipling.run import threads as set_threads
    from clipling.run import train as run

    if seed is not None and seeds is not None:
        raise UserError("give --seed or --seeds, not both")
    settings: dict[str, Any] = {
        "data.source": data,
        "data.val": val,
        "data.image_column": image_column,
        "data.caption_column": caption_column,
        "data.group": group,
        "student.config": student,
        "stages.0.epochs": epochs,
        "optimiser.batch": batch,
        "stages.0.learning_rate": lr,
        "seed": seed,
    }
    made = load_recipe(recipe, smoke=smoke, scale=scale)
    if guide is not None:
        if made.guide is None:
            raise UserError(f"--guide {guide}: the recipe {made.name!r} has no guide. Use the recipe ping or a_ping, or leave --guide out.")
        settings |= {"guide.bank": guide, "guide.image_size": None, **bank_encoders(guide)}
    if teacher:
        settings["teachers"] = taught_by(teacher, made.teachers)
    if epochs is not None and len(made.stages) > 1:
        raise UserError("--epochs: the recipe has several stages. Use --set stages.0.epochs=...")
    made = with_settings(made, {k: v for k, v in settings.items() if v is not None or k == "guide.image_size"})
    chosen = settings_given(set)
    if seeds is not None and "seed" in chosen:
        raise UserError("give --seeds or --set seed=..., not both")
    made = with_settings(made, chosen)
    if made.student.config == "init" and "model" not in made.student.init:
        raise UserError(f"the recipe {made.name!r} starts from a model. Use `clipling finetune MODEL`, or --set student.init.model=MODEL.")
    out = out or Path("runs") / made.name
    set_threads(threads)
    if seeds is None:
        return {**run(made, out, resume=resume, overwrite=overwrite, quiet=json), "model": str(out / "model")}
    summaries = {}
    for number in parse_seeds(seeds):
        each = with_settings(made, {"seed": number})
        summaries[number] = run(each, out / f"seed-{number}", resume=resume, overwrite=overwrite, quiet=json)
    return {"name": made.name, "seeds": summaries}


def bank_encoders(folder: str) -> dict[str, str]:
    """The encoders that made a bank, so that the recipe says the truth."""
    from clipling.guides.stored import Bank

    manifest = Bank.open(folder).manifest
    return {f"guide.{side}_encoder": manifest[side]["encoder"] for side in ("image", "text")}


def taught_by(models: tuple[str, ...], known: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Teachers by name: those of the recipe in their order, whose other settings stay, then `teacher2`, ..."""
    from dataclasses import asdict

    if len(models) < len(known):
        raise UserError(f"the recipe has the teachers {', '.join(known)}: give --teacher as many models, or --set teachers.NAME.model=...")
    numbered = (f"teacher{n}" if n > 1 else "teacher" for n in range(1, len(models) + len(known) + 1))
    names = [*known, *(name for name in numbered if name not in known)][: len(models)]
    return {name: {**(asdict(known[name]) if name in known else {}), "model": model} for name, model in zip(names, models, strict=True)}


def settings_given(set: tuple[tuple[str, ...] | str, ...]) -> dict[str, Any]:
    """What `--set` says: values by dotted key."""
    from clipling.recipe import parse_setting

    return dict(parse_setting(s) for s in flat(set))


def flat(settings: tuple[tuple[str, ...] | str, ...]) -> list[str]:
    """`--set a=1 b=2 --set c=3`, and from Python set=("a=1", "b=2")."""
    return [s for group in settings for s in ((group,) if isinstance(group, str) else group)]


def parse_seeds(text: str) -> list[int]:
    try:
        numbers = [int(s) for s in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds {text!r}: expected whole numbers with commas, for example 0,1,2") from None
    if len(numbers) != len(dict.fromkeys(numbers)):
        raise UserError(f"--seeds {text!r}: a seed is given twice")
    return numbers
