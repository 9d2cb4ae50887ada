"""`clipling finetune MODEL --data SRC`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction

from clipling.errors import UserError


def finetune(
    model: Positional[str],
    /,
    data: str,
    out: Path | None = None,
    val: str | None = None,
    watch: tuple[str, ...] = (),
    epochs: float | None = None,
    batch: int | None = None,
    lr: float | None = None,
    layer_decay: float | None = None,
    freeze: tuple[Literal["image", "text"], ...] = (),
    patience: int | None = None,
    wise: bool = True,
    seed: int | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    group: str | None = None,
    set: Annotated[tuple[tuple[str, ...], ...], UseAppendAction] = (),
    smoke: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """Fine-tunes a trained model on your pairs, and shows what it forgets.

    Args:
        model: What to start from: a run folder, a folder in open_clip layout or of a transformers CLIP, or NAME@TAG of open_clip.
        data: Pairs as in `clipling train`.
        out: The run folder that is made (default: runs/finetune).
        val: Pairs for validation. Default: a fixed split of --data is held out.
        watch: Sources that are not trained on, measured at every evaluation: what is being forgotten. Pairs, or a folder with one
            folder of pictures a class.
        epochs: At most so many passes (fractions are rounded to whole steps); it stops early when val no longer rises.
        batch: Pairs of a step, over all processes (default: 128; of fewer pairs, what makes at least 4 steps an epoch).
        lr: Peak learning rate of the last layers.
        layer_decay: Rate of a layer over that of the next one; 1 for the same rate everywhere.
        freeze: Towers that stay as they are, their projections included.
        patience: Evaluations without a better value after which it stops.
        wise: Default: at the end the start's weights and the least share of the new ones that is as good on val are mixed (WiSE-FT);
            --no-wise keeps the new ones as they are.
        seed: Seed of order, crops and captions.
        image_column: Column of the picture's path, when it cannot be guessed.
        caption_column: Column of the caption, when it cannot be guessed.
        group: Column that names a product; its pairs stay on one side of the split.
        set: Settings of the recipe, for example --set optimiser.weight_decay=0.05 (may be repeated).
        smoke: One step, to see that everything fits together.
        resume: Continue the run in --out where it stopped.
        overwrite: Replace the run in --out.
        threads: Threads of torch (default: OMP_NUM_THREADS, or all cores).
        json: Print the summary as JSON.
    """
    from clipling.models.hub import open_student
    from clipling.recipe import load_recipe, with_settings
    from clipling.run import threads as set_threads
    from clipling.run import train as run
    from clipling.verbs.train import settings_given

    out = out or Path("runs") / "finetune"
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise UserError(f"--layer-decay {layer_decay}: expected a number above 0, at most 1")
    settings: dict[str, Any] = {
        "student.init": {"model": model},
        "data.source": data,
        "data.val": val,
        "data.image_column": image_column,
        "data.caption_column": caption_column,
        "data.group": group,
        "evaluation.watch": list(watch) or None,
        "evaluation.patience": patience,
        "evaluation.interpolate": None if wise else [],
        "stages.0.epochs": epochs,
        "stages.0.learning_rate": lr,
        "stages.0.freeze": list(freeze) or None,
        "stages.0.freeze_projections": True if freeze else None,
        "optimiser.batch": batch,
        "optimiser.layer_decay": layer_decay,
        "seed": seed,
    }
    made = with_settings(load_recipe("finetune", smoke=smoke), {k: v for k, v in settings.items() if v is not None})
    chosen = settings_given(set)
    made = with_settings(made, chosen)
    open_student(model)  # what is wrong with it is said before the pairs are read
    set_threads(threads)
    fit = batch is None and "optimiser.batch" not in chosen
    return {**run(made, out, resume=resume, overwrite=overwrite, quiet=json, fit_batch=fit), "model": str(out / "model")}
