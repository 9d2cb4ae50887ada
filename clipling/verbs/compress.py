"""`clipling compress TEACHER --to 50% --data SRC`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction

from clipling.errors import UserError


def compress(
    teacher: Positional[str],
    /,
    to: str,
    data: str,
    out: Path | None = None,
    method: Literal["manual", "auto"] = "manual",
    stages: int = 1,
    width: Literal["position", "magnitude", "first_order"] | None = None,
    depth: Literal["interval_front", "uniform", "first"] | None = None,
    val: str | None = None,
    epochs: float | None = None,
    batch: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    group: str | None = None,
    set: Annotated[tuple[tuple[str, ...], ...], UseAppendAction] = (),
    resume: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """Shrinks a trained model: the small one inherits its weights and learns to mimic it (TinyCLIP).

    Args:
        teacher: The model to shrink: a run, a folder of a model, a transformers CLIP, or NAME@TAG of open_clip.
        to: Size without token rows: a share such as 50%, or parameters such as 20M.
        data: Pairs as in `clipling train`.
        out: The folder that is made (default: runs/compress): a run a stage, a table, and the last student in model/.
        method: manual cuts by a rule; auto learns which units to keep (ViT image towers with a transformer text tower).
        stages: Steps of size; the original teacher teaches in all of them.
        width: Manual: which units are kept, by position (TinyCLIP's), magnitude, or first_order (weight times gradient).
        depth: Manual: which layers are kept: interval_front (TinyCLIP's), uniform, or first.
        val: Pairs for validation. Default: a fixed split of --data is held out.
        epochs: Passes over the pairs in each stage (auto: half of them learn masks).
        batch: Pairs of a step (default: 128; of fewer pairs, what makes at least 4 steps an epoch).
        lr: Peak learning rate.
        seed: Seed of order, crops, captions and masks.
        image_column: Column of the picture's path, when it cannot be guessed.
        caption_column: Column of the caption, when it cannot be guessed.
        group: Column that names a product; its pairs stay on one side of the split.
        set: Settings of every stage's recipe, for example --set optimiser.weight_decay=0.1 (may be repeated).
        resume: Continue the compression in --out where it stopped.
        overwrite: Replace the compression in --out.
        threads: Threads of torch (default: OMP_NUM_THREADS, or all cores).
        json: Print the table as JSON.
    """
    from clipling.compression import compress as run
    from clipling.compression import plan
    from clipling.run import threads as set_threads
    from clipling.runfolder import keep_apart
    from clipling.verbs.train import settings_given

    out = out or Path("runs") / "compress"
    keep_apart(out, teacher)
    ignored = [f"--{name}" for name, value in (("width", width), ("depth", depth)) if value is not None and method == "auto"]
    if ignored:
        raise UserError(
            f"{' and '.join(ignored)} would be ignored: --method auto learns what to keep. Leave it out, or use --method manual."
        )
    settings: dict[str, Any] = {
        "data.source": data,
        "data.val": val,
        "data.image_column": image_column,
        "data.caption_column": caption_column,
        "data.group": group,
        "student.inherit.width": width,
        "student.inherit.depth": depth,
        "optimiser.batch": batch,
        "seed": seed,
        **schedule(method, epochs, lr),
    }
    made = plan(teacher, to, method, stages, {k: v for k, v in settings.items() if v is not None} | settings_given(set))
    set_threads(threads)
    return run(made, out, resume=resume, overwrite=overwrite, quiet=json)


def schedule(method: str, epochs: float | None, lr: float | None) -> dict[str, Any]:
    """Lengths and rates of the stages of a recipe: one, or (auto) masks and recovery, half of the epochs each."""
    if method == "manual":
        return {"stages.0.epochs": epochs, "stages.0.learning_rate": lr}
    half = None if epochs is None else epochs / 2
    found = {f"stages.{n}.{key}": value for n in (0, 1) for key, value in (("epochs", half), ("learning_rate", lr))}
    return {**found, "stages.0.warmup": half}
