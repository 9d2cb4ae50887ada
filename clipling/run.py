"""From a recipe to a run folder: opens the pairs, makes student, guide, objective and evaluators, trains, saves.

A run folder holds `recipe.yaml`, `inputs.json`, `environment.json`, `problems.tsv`, `metrics.jsonl`, `checkpoints/`, `model/` and
`summary.json`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipling.adapt.wise_ft import Interpolated, wise_ft
from clipling.build import make_evaluators, make_guide, make_objective, make_surgeries, make_teachers, needs_guide, open_teachers
from clipling.card import model_card, short
from clipling.data import draw
from clipling.data.loader import TrainBatches
from clipling.data.pairs import Pairs, hash_bytes
from clipling.data.photos import open_photos, read_texts, with_texts
from clipling.data.pixels import Pixels
from clipling.data.source import fitting_options, open_pairs
from clipling.data.split import split
from clipling.data.views import Augment
from clipling.engine.batch import BatchMaker
from clipling.engine.runtime import Runtime, start
from clipling.engine.stages import spans
from clipling.engine.trainer import Interrupted, Job, State, Trainer, best_value
from clipling.environment import environment
from clipling.errors import UserError
from clipling.guides.teacher import Teacher
from clipling.models.dual import Student
from clipling.models.hub import save_student
from clipling.models.licences import licences_of
from clipling.recipe import Data, Recipe, to_yaml
from clipling.runfolder import clear, inputs_of, keep_apart, models_of, run_folder, same_inputs
from clipling.starts import check_names, make_student
from clipling.store import atomic_write, read_json, write_json

HELD_OUT_TEXTS = 20
FEWEST_TEXTS = 20


@dataclass(frozen=True)
class OpenedPairs:
    """Training pairs, validation pairs, and the whole source that banks are built over."""

    source: Pairs
    train: Pairs
    val: Pairs
    left_out: int = 0
    """Pairs that are not trained on, because their picture or group is also in the validation source."""


def train(recipe: Recipe, out: Path, *, resume: bool = False, overwrite: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Trains a recipe into the folder `out` and returns its summary.

    A finished run that is resumed is returned as it is. Raises UserError for an existing folder (without `resume` or `overwrite`), and
    Interrupted after Ctrl-C, when the state was saved.
    """
    with start() as runtime, contextlib.ExitStack() as held:
        if runtime.first:
            keep_apart(out, *models_of(recipe))
            held.enter_context(run_folder(out, recipe, resume=resume, overwrite=overwrite))
        runtime.wait()
        if resume and (out / "summary.json").is_file():
            return read_json(out / "summary.json")
        job = make_job(recipe, out, runtime, quiet, resume=resume)
        if runtime.first:
            clear(out, resume=resume, overwrite=overwrite)  # only now, when nothing of the new run can be refused any more
            write_inputs(job, out)
            announce(job)
        runtime.wait()  # no process may look for checkpoints before the old ones are gone
        state = Trainer(job).run()
        if runtime.first:
            summary = finish(job, state, interpolate(job, state))
        runtime.wait()
        return summary if runtime.first else read_json(out / "summary.json")


def open_data(data: Data) -> OpenedPairs:
    """Pairs for training and validation. Without a val source a fixed split by the hash of the pictures is held out."""
    if not data.source:
        raise UserError("no data: give --data with a folder, .csv, .tsv, .jsonl, .tar files, or demo:emoji")
    columns = {"image_column": data.image_column, "caption_column": data.caption_column, "separator": data.separator, "group": data.group}
    if data.bare:
        if data.caption_column is not None:
            raise UserError("data.caption_column would be ignored: captions of bare photos are not read. Leave it out.")
        source = bare_photos(data, data.source)
    else:
        source = open_pairs(data.source, **columns, max_bad=data.max_bad)
    left_out = 0
    if data.val is None:
        rows, val_rows = split(source)
        val = source.subset(val_rows)
    else:
        val = (
            bare_photos(data, data.val)
            if data.bare
            else open_pairs(data.val, **fitting_options(data.val, columns, data.source), max_bad=data.max_bad)
        )
        rows = without_held_out(source, val)
        left_out = len(source) - len(rows)
    if data.limit is not None:
        if data.limit > len(rows):
            raise UserError(f"data.limit = {data.limit}: there are only {len(rows)} pairs for training")
        rows = np.sort(rows[draw.order(0, 0, len(rows))[: data.limit]])
    return with_own_texts(OpenedPairs(source, source.subset(rows), val, left_out))


def bare_photos(data: Data, spec: str) -> Pairs:
    """Photos without captions; with `data.texts`, beside texts that belong to none of them."""
    photos = open_photos(spec, image_column=data.image_column, group=data.group, separator=data.separator, max_bad=data.max_bad)
    return with_texts(photos, read_texts(data.texts)) if data.texts else photos


def with_own_texts(opened: OpenedPairs) -> OpenedPairs:
    """Of texts that belong to no photo a twentieth is kept away from training, by their hash, where there are enough of them."""
    if not opened.train.unpaired:
        return opened
    texts = list(dict.fromkeys(opened.source.captions))
    held = [text for text in texts if int(hash_bytes(text.encode("utf-8", "surrogatepass"))[:8], 16) % HELD_OUT_TEXTS == 0]
    if len(held) < FEWEST_TEXTS:
        return opened
    kept_away = set(held)
    rest = [text for text in opened.source.captions if text not in kept_away]
    return replace(opened, train=with_texts(opened.train, rest), val=with_texts(opened.val, held))


def without_held_out(source: Pairs, val: Pairs) -> np.ndarray:
    """Training rows of which neither the picture nor the group is also in the validation source."""
    held, groups = set(val.hashes), set(val.groups) - {""}
    both = enumerate(zip(source.hashes, source.groups, strict=True))
    rows = np.array([i for i, (image, group) in both if image not in held and group not in groups], dtype=np.int64)
    if len(rows) == 0:
        raise UserError(
            "every training pair has its picture or group also in the validation source. Give --val pairs of their own, or leave it out."
        )
    return rows


def check_batch(batch: int, pairs: int, world: int) -> None:
    """Refuses a batch that cannot be drawn or divided; the one that is proposed instead always can."""
    if batch % world:
        raise UserError(f"optimiser.batch = {batch} cannot be divided among {world} processes")
    if batch <= pairs:
        return
    smallest = max(2, world)
    proposed = max(smallest, pairs // 4 // world * world)
    if proposed > pairs:
        raise UserError(f"training pairs: {pairs}; a step needs at least {smallest}, and learning many more. Give more pairs.")
    raise UserError(f"optimiser.batch = {batch} is larger than the {pairs} training pairs. Use --batch {proposed} or give more pairs.")


def make_job(recipe: Recipe, out: Path, runtime: Runtime, quiet: bool = False, *, resume: bool = False) -> Job:
    """Everything the trainer needs; nothing is written to `out`. The first process prepares what is cached, the others then find it.

    Raises UserError when `out` is resumed with other pairs than those that began it.
    """
    needs_guide(recipe)
    check_names(recipe)
    surgeries = make_surgeries(recipe)
    models = open_teachers(recipe)
    if not runtime.first:
        runtime.wait()
    opened = open_data(recipe.data)
    if resume and runtime.first:
        same_inputs(out, inputs_of(opened.train, opened.val))
    check_batch(recipe.optimiser.batch, len(opened.train), runtime.world)
    evaluators = make_evaluators(recipe, opened.val, models)  # before what takes long: a watched source may be mistyped
    student = make_student(recipe, opened.train, models).to(runtime.device)
    augment = Augment(scale=recipe.data.crop, flip=recipe.data.flip, views=view_count(recipe))
    guide = make_guide(recipe, opened.source, opened.train, augment, quiet or not runtime.first)
    teachers = make_teachers(recipe, models, opened.train, augment, runtime, quiet or not runtime.first)
    objective = make_objective(recipe, student, guide, teachers).to(runtime.device)
    batches = make_batches(recipe, opened.train, student, augment, runtime, teachers)
    if runtime.first:
        runtime.wait()
    links = opened.train.links() if recipe.data.mask_false_negatives else None
    maker = BatchMaker(links, [guide] if guide else [], runtime, teachers)
    job = Job(recipe, student, objective, batches, maker, evaluators, out, runtime, quiet, surgeries)
    job.opened = opened  # type: ignore[attr-defined]
    return job


def view_count(recipe: Recipe) -> int:
    return recipe.guide.views if recipe.guide and recipe.guide.active == "views" else 0


def make_batches(
    recipe: Recipe, pairs: Pairs, student: Student, augment: Augment, runtime: Runtime, teachers: Sequence[Teacher] = ()
) -> TrainBatches:
    def pixels(size: int) -> Pixels:
        # Pictures are held a little larger than they are seen, so that a crop of half the area is not blown up.
        return Pixels.open(pairs, round(size * 1.25) if augment.crops else size, "squash")

    size, batch = student.image_size, recipe.optimiser.batch
    tokens = student.tokenise(pairs.captions)
    rows = np.arange(len(pairs), dtype=np.int64)
    more = {seen: pixels(seen) for seen in {teacher.sees for teacher in teachers} if seen is not None}
    return TrainBatches(rows, pairs, pixels(size), tokens, augment, size, batch, runtime.rank, runtime.world, recipe.seed, more)


def write_inputs(job: Job, out: Path) -> None:
    """What the run is made from, written before the first step."""
    opened: OpenedPairs = job.opened  # type: ignore[attr-defined]
    atomic_write(out / "recipe.yaml", to_yaml(job.recipe))
    write_json(out / "inputs.json", inputs_of(opened.train, opened.val))
    write_json(out / "environment.json", environment())
    opened.source.problems.write(out / "problems.tsv")
    guide = job.make_batch.guides[0] if job.make_batch.guides else None
    if guide is not None:
        write_json(out / "guides.json", guide.describe(opened.train))  # type: ignore[attr-defined]


def announce(job: Job) -> None:
    """What is about to happen, in a few lines, before the first step."""
    if job.quiet:
        return
    opened: OpenedPairs = job.opened  # type: ignore[attr-defined]
    recipe, sizes = job.recipe, job.student.sizes()
    steps = spans(recipe.stages, job.batches.steps_per_epoch, recipe.max_steps)[-1].end
    lines = [
        f"{what_there_is(opened.train)}, {len(opened.val):,} held out",
        f"student  {recipe.student.init.get('model', recipe.student.config)}: {sizes['total_without_token_rows'] / 1e6:.2f} M parameters"
        f" and {sizes['token_rows'] / 1e6:.2f} M in token rows",
        f"budget   {steps:,} steps of {recipe.optimiser.batch} pairs = {steps * recipe.optimiser.batch:,} samples seen",
    ]
    if len(opened.source.problems):
        lines.append(f"skipped  {opened.source.problems.summary()}; listed in {job.folder / 'problems.tsv'}")
    skipped = recipe.stages[len(spans(recipe.stages, job.batches.steps_per_epoch, recipe.max_steps)) :]
    if any(stage.surgery for stage in skipped):
        lines.append(f"note     max_steps ends before stage {skipped[0].name!r}: the student keeps the size that it starts with")
    if opened.left_out:
        lines.append(f"         {opened.left_out:,} training pairs left out: also in the validation source (picture or group)")
    print("\n".join(lines), file=sys.stderr, flush=True)


def interpolate(job: Job, state: State) -> Interpolated | None:
    """Leaves the student at the share of its tuned weights that val chooses; the metrics of that share become the run's."""
    recipe = job.recipe
    if not recipe.evaluation.interpolate:
        return None
    start = make_student(recipe, job.opened.train, open_teachers(recipe)).state_dict()  # type: ignore[attr-defined]
    measure = lambda student: {name: float(value) for run in job.evaluators for name, value in run(student)}  # noqa: E731
    score = lambda metrics: best_value(metrics, "mean_recall" if recipe.evaluation.best == "last" else recipe.evaluation.best)  # noqa: E731
    found = wise_ft(job.student, start, recipe.evaluation.interpolate, measure, score, len(job.opened.val))  # type: ignore[attr-defined]
    row = next(row for row in found.rows if row["share"] == found.chosen)
    state.best = {name: value for name, value in row.items() if name not in ("share", "score")}
    return found


def what_there_is(pairs: Pairs) -> str:
    """`pairs    5,786 for training (5.0 captions each)`, or photos, with or without texts."""
    if not pairs.unpaired:
        return f"pairs    {len(pairs):,} for training ({len(pairs.captions) / len(pairs):.1f} captions each)"
    texts = f"beside {len(pairs.captions):,} texts" if any(pairs.captions) else "without captions"
    return f"photos   {len(pairs):,} for training, {texts}"


def finish(job: Job, state: State, interpolated: Interpolated | None = None) -> dict[str, Any]:
    """Saves the model and the summary; the summary is the sign that the run is done."""
    opened: OpenedPairs = job.opened  # type: ignore[attr-defined]
    summary = {
        "name": job.recipe.name,
        "seed": job.recipe.seed,
        "data": job.recipe.data.source,
        "train_pairs": len(opened.train),
        "val_pairs": len(opened.val),
        "steps": state.step,
        "samples_seen": state.step * job.recipe.optimiser.batch,
        "seconds": round(state.seconds, 1),
        "threads": torch.get_num_threads(),
        "processes": job.runtime.world,
        "skipped_steps": state.skipped,
        "best_step": state.best_step,
        "val": state.best,
        "untrained": state.untrained,
        "parameters": job.student.sizes(),
        "stopped_early": state.stopped_early,
    }
    if interpolated is not None:
        summary["interpolation"] = {"share": interpolated.chosen, "reason": interpolated.reason, "rows": interpolated.rows}
    licences, restricted = licences_of_run(job)
    summary["licences"] = licences
    if restricted:
        print(f"warning: the weights of {', '.join(restricted)} may not be used commercially, nor what is made from them", file=sys.stderr)
    save_student(job.student, job.folder / "model", card=model_card(summary, job.recipe, licences, restricted, job.student.config))
    write_json(job.folder / "summary.json", summary)
    return summary


def licences_of_run(job: Job) -> tuple[dict[str, str], list[str]]:
    """Licences of everything that taught the student or that its weights started from, and the names of those that restrict its use."""
    licences: dict[str, str] = {}
    restricted: list[str] = []
    for guide in job.make_batch.guides:
        licences |= guide.licences  # type: ignore[attr-defined]
    student, inherit = job.recipe.student, job.recipe.student.inherit
    models = [teacher.model for teacher in job.recipe.teachers.values()]
    models += [spec for spec in (inherit.source, inherit.text_source) if spec and spec not in job.recipe.teachers] if inherit else []
    models += [student.init["model"]] if student.init.get("model", "") not in ("", *job.recipe.teachers) else []
    for spec in dict.fromkeys(models):
        for name, licence in licences_of(spec).items():
            licences[short(name)] = licence.text
            restricted += [short(name)] if licence.restricted else []
    return licences, list(dict.fromkeys(restricted))


def threads(count: int | None) -> None:
    """Number of threads of torch; by default one a core that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    torch.set_num_threads(count or allowed)


__all__ = ["Interrupted", "train"]
