"""From a recipe to a run folder: opens the pairs, makes student, guide, objective and evaluators, trains, saves.

A run folder holds `recipe.yaml`, `inputs.json`, `environment.json`, `problems.tsv`, `metrics.jsonl`, `checkpoints/`, `model/` and
`summary.json`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipling.adapt.wise_ft import Interpolated, standard_error, wise_ft
from clipling.announce import announce, half_made, shown_while_training, sizes_of_watched
from clipling.batchsize import as_begun, check_batch, fitted, unit
from clipling.build import (
    make_evaluators,
    make_guide,
    make_knowledge,
    make_objective,
    make_surgeries,
    make_teachers,
    needs,
    needs_guide,
    open_teachers,
    pass_gates,
)
from clipling.data import draw
from clipling.data.knowledge import Knowledge
from clipling.data.loader import TrainBatches
from clipling.data.mix import Mix
from clipling.data.pairs import Pairs, hash_bytes
from clipling.data.photos import open_photos, read_texts, with_texts
from clipling.data.pixels import Pixels
from clipling.data.source import fitting_options, open_pairs
from clipling.data.split import split
from clipling.data.stored_batches import StoredBatches
from clipling.data.views import Augment
from clipling.engine.batch import BatchMaker, LiveTeacher
from clipling.engine.runtime import Runtime, start
from clipling.engine.trainer import Interrupted, Job, State, Trainer, best_value
from clipling.environment import environment
from clipling.errors import UserError
from clipling.guides.guidance import BankGuide
from clipling.guides.stored_teacher import stored_teachers
from clipling.models.dual import Student
from clipling.outcome import finish
from clipling.recipe import Data, Recipe, to_yaml
from clipling.runfolder import clear, inputs_of, keep_apart, models_of, run_folder, same_command, same_inputs
from clipling.starts import check_names, make_student, with_vocabulary
from clipling.store import atomic_write, read_json, write_json

HELD_OUT_TEXTS = 20
FEWEST_TEXTS = 20
FEW_HELD_OUT = 100


@dataclass(frozen=True)
class OpenedPairs:
    """Training pairs, validation pairs, and the whole source that banks are built over."""

    source: Pairs
    train: Pairs
    val: Pairs
    left_out: int = 0
    """Pairs that are not trained on, because their picture or group is also in the validation source."""
    knowledge: Knowledge | None = None
    """What is stored beside the training pairs."""


def train(
    recipe: Recipe, out: Path, *, resume: bool = False, overwrite: bool = False, quiet: bool = False, fit_batch: bool = False
) -> dict[str, Any]:
    """Trains a recipe into the folder `out` and returns its summary.

    fit_batch: nobody asked for the recipe's batch, so a smaller one is taken where there are fewer pairs; a run that is resumed
    keeps the one that it began with. A finished run that is resumed is returned as it is. Raises UserError for an existing folder
    (without `resume` or `overwrite`), and Interrupted after Ctrl-C, when the state was saved.
    """
    recipe = with_vocabulary(recipe)
    if fit_batch and resume:
        recipe = as_begun(recipe, out)
    with start() as runtime, contextlib.ExitStack() as held:
        same_command(out, recipe, runtime, resume=resume, overwrite=overwrite)
        if runtime.first:
            keep_apart(out, *models_of(recipe))
            held.enter_context(run_folder(out, recipe, resume=resume, overwrite=overwrite))
        runtime.wait()
        if resume and (out / "summary.json").is_file():
            if runtime.first and not quiet:
                print(
                    f"the run {out} was already finished: nothing was trained. Its results are those of then.", file=sys.stderr, flush=True
                )
            return read_json(out / "summary.json")
        job = make_job(recipe, out, runtime, quiet, resume=resume, fit_batch=fit_batch)
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


def make_job(recipe: Recipe, out: Path, runtime: Runtime, quiet: bool = False, *, resume: bool = False, fit_batch: bool = False) -> Job:
    """Everything the trainer needs; nothing is written to `out`. The first process prepares what is cached, the others then find it.

    fit_batch: see `train`; the job's recipe has the batch that was taken.

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
    silent = quiet or not runtime.first
    recipe = with_a_batch(recipe, opened, runtime.world, silent, fit_batch)
    evaluators = make_evaluators(recipe, opened.val, models)  # before what takes long: a watched source may be mistyped
    pass_gates(recipe, models, opened.train, runtime, silent)
    knowledge = make_knowledge(recipe, opened.train)
    opened = replace(opened, knowledge=knowledge)
    student = make_student(recipe, opened.train, models, synthetic_texts(opened)).to(runtime.device)
    augment = Augment(scale=recipe.data.crop, flip=recipe.data.flip, views=view_count(recipe))
    guide = shared_guide(recipe, opened, augment, runtime, silent)
    teachers = [*make_teachers(recipe, models, opened.train, augment, runtime, silent), *(stored_teachers(knowledge) if knowledge else ())]
    objective = make_objective(recipe, student, guide, teachers).to(runtime.device)
    batches = make_batches(recipe, opened.train, student, augment, runtime, teachers, knowledge)
    if runtime.first:
        runtime.wait()
    links = links_of(opened) if recipe.data.mask_false_negatives else None
    maker = BatchMaker(links, [guide] if guide else [], runtime, teachers)
    tells = shown_while_training(len(opened.val), sizes_of_watched(evaluators))
    sizes = {name: model.sizes()["total_without_token_rows"] for name, model in models.items()}
    margin = noise_of_few(recipe.evaluation.best, len(opened.val))
    return Job(recipe, student, objective, batches, maker, evaluators, out, runtime, quiet, surgeries, tells, opened, margin, sizes)


def with_a_batch(recipe: Recipe, opened: OpenedPairs, world: int, silent: bool, fit_batch: bool) -> Recipe:
    """The recipe with a batch that the pairs have; UserError where its own is too large and not to be fitted.

    That the source is half made is said before any word on batches: it explains why there are so few pairs.
    """
    part = half_made(recipe.data.source, len(opened.source))
    taken = fitted(recipe, len(opened.train), world, quiet=True) if fit_batch else recipe
    check_batch(taken.optimiser.batch, len(opened.train), world, unit(recipe), part)
    if not silent:
        print("".join(f"note     {said}\n" for said in part), end="", file=sys.stderr, flush=True)
    return fitted(recipe, len(opened.train), world, silent) if fit_batch else recipe


def noise_of_few(best: str, val_pairs: int) -> Callable[[float], float]:
    """One standard error of a recall on fewer than 100 held-out pairs: there the highest of many evaluations is luck, often an early one,
    so the latest within it is kept. Nothing for other metrics, and from 100 pairs on. Our choice."""
    noisy = val_pairs < FEW_HELD_OUT and (best == "mean_recall" or "recall@" in best)
    return lambda value: standard_error(value, val_pairs) if noisy else 0.0


def shared_guide(recipe: Recipe, opened: OpenedPairs, augment: Augment, runtime: Runtime, quiet: bool) -> BankGuide | None:
    """The guide, whose bank and tables the processes make together: here they do not go one after the other."""
    if recipe.guide is None:
        return None
    if runtime.first:
        runtime.wait()
    guide = make_guide(recipe, opened.source, opened.train, augment, quiet, runtime.rank, runtime.world)
    if not runtime.first:
        runtime.wait()
    return guide


def synthetic_texts(opened: OpenedPairs) -> list[str]:
    """Captions that are trained on beside those of the pairs."""
    return opened.knowledge.texts if opened.knowledge else []


def links_of(opened: OpenedPairs) -> list[list[int]]:
    """Which pairs are no negatives of each other."""
    return opened.knowledge.links(opened.train) if opened.knowledge else opened.train.links()


def view_count(recipe: Recipe) -> int:
    return recipe.guide.views if recipe.guide and recipe.guide.active == "views" else 0


def make_batches(
    recipe: Recipe,
    pairs: Pairs,
    student: Student,
    augment: Augment,
    runtime: Runtime,
    teachers: Sequence[LiveTeacher] = (),
    knowledge: Knowledge | None = None,
) -> TrainBatches:
    def pixels(size: int) -> Pixels:
        # Pictures are held a little larger than they are seen, so that a crop of half the area is not blown up.
        data, held = recipe.data, round(size * 1.25) if augment.crops or knowledge else size
        return Pixels.open(pairs, held, "squash", limit_bytes=int(data.cache_gb * 2**30), decode=data.decode)

    size, batch = student.image_size, recipe.optimiser.batch
    texts = knowledge.texts if knowledge else []
    tokens, text_tokens = student.tokenise_all([*pairs.captions, *texts]).split([len(pairs.captions), len(texts)])  # of one width
    rows = np.arange(len(pairs), dtype=np.int64)
    mix = Mix(pairs.parts, recipe.data.weights) if recipe.data.weights else None
    more = {seen: pixels(seen) for seen in {teacher.sees for teacher in teachers} if seen is not None}
    spec = recipe.reinforced
    if knowledge is not None and spec is not None:
        if mix is not None:
            raise UserError(
                "data.weights would be ignored: pairs with stored knowledge all count alike, of however many sources. Leave it out."
            )
        stored = {"pairs": pairs, "knowledge": knowledge, "wanted": needs(recipe), "text_tokens": text_tokens}
        stored |= {"mix": spec.mix, "exact": spec.pictures == "source"}
        place = {"rank": runtime.rank, "world": runtime.world, "seed": recipe.seed, "more": more}
        return StoredBatches(pixels(size), tokens, augment, size, batch, **stored, **place)
    return TrainBatches(rows, pairs, pixels(size), tokens, augment, size, batch, runtime.rank, runtime.world, recipe.seed, more, mix)


def write_inputs(job: Job, out: Path) -> None:
    """What the run is made from, written before the first step."""
    opened: OpenedPairs = job.opened
    atomic_write(out / "recipe.yaml", to_yaml(job.recipe))
    write_json(out / "inputs.json", inputs_of(opened.train, opened.val))
    write_json(out / "environment.json", environment())
    opened.source.problems.write(out / "problems.tsv")
    guide = job.make_batch.guides[0] if job.make_batch.guides else None
    if guide is not None:
        write_json(out / "guides.json", guide.describe(opened.train))  # type: ignore[attr-defined]
    if opened.knowledge is not None:
        write_json(out / "knowledge.json", opened.knowledge.describe())


def interpolate(job: Job, state: State) -> Interpolated | None:
    """Leaves the student at the share of its tuned weights that val chooses; the metrics of that share become the run's."""
    recipe = job.recipe
    if not recipe.evaluation.interpolate:
        return None
    start = make_student(recipe, job.opened.train, open_teachers(recipe), synthetic_texts(job.opened)).state_dict()
    measure = lambda student: {name: float(value) for run in job.evaluators for name, value in run(student)}  # noqa: E731
    score = lambda metrics: best_value(metrics, "mean_recall" if recipe.evaluation.best == "last" else recipe.evaluation.best)  # noqa: E731
    found = wise_ft(job.student, start, recipe.evaluation.interpolate, measure, score, len(job.opened.val))
    row = next(row for row in found.rows if row["share"] == found.chosen)
    state.best = {name: value for name, value in row.items() if name not in ("share", "score")}
    return found


def threads(count: int | None) -> None:
    """Number of threads of torch; by default what OMP_NUM_THREADS says, or one a core that this process may use.

    Raises UserError for a number below 1.
    """
    if count is not None and count < 1:
        raise UserError(f"--threads is {count}; expected at least 1")
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    wished = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # a list is for nested levels: the first is the outermost
    torch.set_num_threads(count or (int(wished) if wished.isdigit() and int(wished) else allowed))


__all__ = ["Interrupted", "check_batch", "train"]
