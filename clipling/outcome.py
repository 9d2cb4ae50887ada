"""What a run leaves: the trained model with its card, and the summary that says the run is done."""

from __future__ import annotations

import sys
from typing import Any

import torch

from clipling.adapt.wise_ft import Interpolated
from clipling.announce import sizes_of_watched, texts_held_out
from clipling.batchsize import unit
from clipling.card import model_card
from clipling.card_rows import before_training, short
from clipling.engine.trainer import Job, State
from clipling.models.hub import save_student
from clipling.models.licences import UNKNOWN, licences_of, licences_of_tower, read
from clipling.store import write_json


def finish(job: Job, state: State, interpolated: Interpolated | None = None) -> dict[str, Any]:
    """Saves the model and the summary; the summary is the sign that the run is done."""
    opened = job.opened
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
        "about": about(job),
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


def about(job: Job) -> dict[str, Any]:
    """What the numbers of a summary are of. Keys without a meaning for the run are left out.

    unit: pairs or photos; latest_within_noise: the kept checkpoint is the latest within one standard error of the highest; before: what
    the values at step 0 are called; best_by, patience: of the evaluation; watch: the sizes of watched sets; texts: how many texts
    agreement is measured on, and whether they were kept away from training; teachers: parameters without token rows by the recipe's names;
    stored_teachers: names of those whose answers lie beside the pairs; stored: what lies there (see `Knowledge.describe`).
    """
    recipe, opened = job.recipe, job.opened
    found: dict[str, Any] = {"unit": unit(recipe), "before": before_training(recipe), "best_by": recipe.evaluation.best}
    found["steps_per_epoch"] = job.batches.steps_per_epoch
    found["latest_within_noise"] = job.margin(0.5) > 0
    if recipe.evaluation.patience is not None:
        found["patience"] = recipe.evaluation.patience
    if watch := sizes_of_watched(job.evaluators):
        found["watch"] = watch
    if recipe.data.bare and recipe.data.texts:
        texts = {"count": len(set(opened.val.captions)), "held_out": texts_held_out(opened.train, opened.val)}
        found["texts"] = {**texts, "trained_on": len(set(opened.train.captions))}
    if opened.knowledge is not None:
        found["stored_teachers"] = [teacher.name for teacher in opened.knowledge.teachers]
        found["stored"] = opened.knowledge.describe()
    if job.teacher_sizes:
        found["teachers"] = dict(job.teacher_sizes)
    return found


def licences_of_run(job: Job) -> tuple[dict[str, str], list[str]]:
    """Licences of everything that taught the student or that its weights started from, and the names of those that restrict its use."""
    licences: dict[str, str] = {}
    restricted: list[str] = []
    for guide in job.make_batch.guides:
        licences |= guide.licences  # type: ignore[attr-defined]
        restricted += [name for name, text in guide.licences.items() if read(text).restricted]  # type: ignore[attr-defined]
    student, inherit = job.recipe.student, job.recipe.student.inherit
    models = [teacher.model for teacher in job.recipe.teachers.values()]
    models += [spec for spec in (inherit.source, inherit.text_source) if spec and spec not in job.recipe.teachers] if inherit else []
    models += [student.init["model"]] if student.init.get("model", "") not in ("", *job.recipe.teachers) else []
    found = [licences_of(spec) for spec in dict.fromkeys(models)]
    found += [licences_of_tower(spec) for part, spec in student.init.items() if part != "model"]
    for name, licence in (one for of_one in found for one in of_one.items()):
        licences[short(name)] = licence.text
        restricted += [short(name)] if licence.restricted else []
    if job.opened.knowledge is not None:
        stored = job.opened.knowledge
        named = [stored.named.get(teacher.name, f"stored teacher {teacher.name}") for teacher in stored.teachers]
        kept = {**(dict.fromkeys(named, UNKNOWN) if stored.unlicensed else {}), **stored.licences}
        licences |= kept
        restricted += [name for name, text in kept.items() if read(text).restricted]
    return licences, list(dict.fromkeys(restricted))
