"""`clipling distill TEACHER --data PHOTOS`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction

from clipling.errors import UserError


def distill(
    teacher: Positional[str],
    /,
    data: str,
    out: Path | None = None,
    val: str | None = None,
    student: str | None = None,
    text: Literal["keep", "prune", "distill"] = "keep",
    text_size: str | None = None,
    texts: str | None = None,
    captions: Literal["auto", "use", "ignore"] = "auto",
    epochs: float | None = None,
    batch: int | None = None,
    lr: float | None = None,
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
    """Trains a small image tower into a teacher's space from your photos. Captions are not needed.

    Args:
        teacher: The model to learn from: a run, a folder of a model, a transformers CLIP, or NAME@TAG of open_clip.
        data: Photos (a folder or .tar files), or pairs as in `clipling train`.
        out: The run folder that is made (default: runs/distill).
        val: Photos or pairs for validation. Default: a fixed split of --data is held out.
        student: A student of the zoo whose image tower is trained, or a JSON file.
        text: keep the teacher's text tower, prune it, or distill the student's own; both of these learn from captions or --texts.
        text_size: Size of a pruned text tower, a share of the teacher's such as 50%.
        texts: A list of texts that belong to no photo: a .txt with one a line, .jsonl or .csv.
        captions: auto uses captions where nearly all photos have some; ignore treats the source as bare photos.
        epochs: Passes over the photos.
        batch: Photos of a step, over all processes (default: 256; of fewer photos, what makes at least 4 steps an epoch).
        lr: Peak learning rate.
        seed: Seed of weights, order and crops.
        image_column: Column of the picture's path, when it cannot be guessed.
        caption_column: Column of the caption, when it cannot be guessed.
        group: Column that names a product; its photos stay on one side of the split.
        set: Settings of the recipe, for example --set data.crop=[0.3,1.0] (may be repeated).
        smoke: One step, to see that everything fits together.
        resume: Continue the run in --out where it stopped.
        overwrite: Replace the run in --out.
        threads: Threads of torch (default: OMP_NUM_THREADS, or all cores).
        json: Print the summary as JSON.
    """
    from clipling.distillation import check_settings, distillation
    from clipling.recipe import load_recipe, with_settings
    from clipling.run import threads as set_threads
    from clipling.run import train as run
    from clipling.verbs.train import settings_given

    out = out or Path("runs") / "distill"
    if text_size is not None and text != "prune":
        raise UserError(f"--text-size {text_size} is for --text prune: --text {text} would ignore it")
    columns = {"image_column": image_column, "caption_column": caption_column, "group": group}
    settings: dict[str, Any] = {
        "data.val": val,
        "student.config": student,
        "stages.0.epochs": epochs,
        "stages.0.learning_rate": lr,
        "optimiser.batch": batch,
        "seed": seed,
    }
    given = {k: v for k, v in settings.items() if v is not None}
    recipe, chosen = load_recipe("distill", smoke=smoke), settings_given(set)
    check_settings(recipe, given | chosen)  # before the source is read
    made = distillation(
        recipe, teacher, data, text=text, text_size=text_size or "50%", texts=texts, captions=captions, columns=columns, quiet=json
    )
    made = with_settings(with_settings(made, given), chosen)
    set_threads(threads)
    fit = batch is None and "optimiser.batch" not in chosen
    return {**run(made, out, resume=resume, overwrite=overwrite, quiet=json, fit_batch=fit), "model": str(out / "model")}
