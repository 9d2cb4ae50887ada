"""From a large model to a small one in stages, each taught by the original teacher: what `clipling compress` does.

TinyCLIP's multi-stage progressive distillation (Wu et al., ICCV 2023, section 3.3): every stage starts from the student before it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from clipling.assess import model_folder
from clipling.batchsize import KEY as BATCH
from clipling.batchsize import check_batch, fitted
from clipling.build import make_evaluators, needs_guide
from clipling.engine.timing import latencies
from clipling.errors import UserError
from clipling.evals.evaluators import Retrieval
from clipling.evals.results import weights_hash
from clipling.guides.teacher import gate
from clipling.models.build import find_text_folder
from clipling.models.dual import Student
from clipling.models.hub import open_student, save_student
from clipling.recipe import Recipe, load_recipe, with_settings
from clipling.run import open_data, train
from clipling.runfolder import begun_names, locked, outside_runs
from clipling.starts import check_names, size_wish
from clipling.store import disk_error, read_json, write_json

Method = Literal["manual", "auto"]
PLAN = "compress.json"
# What --set must not say, and how it is said.
DECIDED = {
    "teachers.teacher.model": "Give the teacher as the first argument.",
    "student.inherit.to": "Give the size as --to.",
    "student.inherit.source": "Every stage starts from the one before it.",
    "student.init": "Every stage starts from the one before it.",
    "student.config": "The size decides it: --to.",
    "max_steps": "Give --epochs.",
}
TABLE = "table.json"


@dataclass(frozen=True)
class Plan:
    """teacher: what is compressed; parameters: the size after each stage, without token rows; settings: of every stage's recipe."""

    teacher: str
    method: Method
    parameters: list[int]
    teacher_parameters: int
    settings: dict[str, Any]
    teacher_weights: str = ""
    """Hash of the teacher's weights: a resumed compression must not mix two teachers."""
    to: str = ""
    """The size as it was asked for, to say it again; plans of before it was kept have none."""

    @property
    def asked(self) -> str:
        """The flags that decide the sizes."""
        return _asked(vars(self))


def plan(teacher: str, to: str, method: Method, stages: int, settings: Mapping[str, Any]) -> Plan:
    """The sizes of all stages, at equal distances. UserError for a size that is not smaller than the teacher's or cannot be reached,
    and for settings that the recipe does not have: before any data is read."""
    if stages < 1:
        raise UserError(f"--stages {stages}: expected at least 1")
    for key, instead in DECIDED.items():
        if any(setting == key or setting.startswith(f"{key}.") for setting in settings):
            raise UserError(f"--set {key}: a compression decides it. {instead}")
    wish = size_wish(to)
    with_settings(load_recipe(f"tinyclip_{method}"), settings)
    model = open_student(teacher)
    size = model.sizes()["total_without_token_rows"]
    target = wish.get("parameters") or round(wish["share"] * size)
    if target >= size:
        raise UserError(f"--to {to}: the teacher has {size:,} parameters without token rows. Give a smaller size.")
    sizes = [round(size - (size - target) * k / stages) for k in range(1, stages + 1)]
    check_sizes = {"manual": _check_cuts, "auto": _check_masks}[method]
    check_sizes(model, to, sizes)
    return Plan(teacher, method, sizes, size, dict(settings), weights_hash(model_folder(teacher)), to)


def _asked(given: Mapping[str, Any]) -> str:
    stages = len(given.get("parameters") or [])
    sizes = ", ".join(f"{size:,}" for size in given.get("parameters") or [])
    return f"--to {given['to']} --stages {stages}" if given.get("to") else f"{sizes} parameters after its {stages} stages"


def _check_cuts(model: Student, to: str, sizes: list[int]) -> None:
    """Refuses sizes for which no config is found, with students that have no weights."""
    from clipling.surgery.inherit_targets import target_of

    for number, size in enumerate(sizes, start=1):
        try:
            config = target_of(model, parameters=min(size, model.sizes()["total_without_token_rows"]))
        except UserError as error:
            where = f" (stage {number} of {len(sizes)})" if len(sizes) > 1 else ""
            raise UserError(f"--to {to}{where}: {error}. Give another size, or use --method auto.") from error
        with torch.device("meta"):
            model = Student(config, find_text_folder(config))


def _check_masks(model: Student, to: str, sizes: list[int]) -> None:
    """Refuses towers that masks do not fit, and a size that they cannot reach."""
    from clipling.models.masked import mask_shapes
    from clipling.objectives.sparsity import Sparsity

    dims = mask_shapes(model)
    start, target = sparsity_of(model, sizes[-1] / model.sizes()["total_without_token_rows"])
    try:
        Sparsity(target=target, start=start, warmup=1).setup(dims)
    except UserError as error:
        raise UserError(f"--to {to}: masks cannot remove so much of this teacher ({error}). Give a larger size.") from error


def compress(made: Plan, out: Path, *, resume: bool = False, overwrite: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Runs every stage into `out/stage-K`, measures teacher and students, and puts the last one into `out/model`.

    A stage that is finished is not done again, one that was killed goes on where it stopped. Returns the table.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"compress runs in one process. Start it without torchrun, or a stage as: clipling train tinyclip_{made.method}")
    say = _silent if quiet else _say
    with _folder(out, made, resume=resume, overwrite=overwrite, quiet=quiet) as made:
        if resume and (out / TABLE).is_file():
            return read_json(out / TABLE)
        before, left = "teacher", made.teacher_parameters
        for number, parameters in enumerate(made.parameters, start=1):
            folder = out / f"stage-{number}"
            say(f"\nstage {number} of {len(made.parameters)}: from {left:,} to about {parameters:,} parameters without token rows")
            if (folder / "summary.json").is_file():
                say("  already done")
            train(stage_recipe(made, before, parameters, left), folder, resume=resume or folder.is_dir(), quiet=quiet)
            before, left = str(folder), read_json(folder / "summary.json")["parameters"]["total_without_token_rows"]
        say("\nmeasures teacher and students")
        return _finish(made, out)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _silent(text: str) -> None: ...


def stage_recipe(made: Plan, before: str, parameters: int, left: int) -> Recipe:
    """The recipe of one stage: `parameters` to reach, from the student `before` (a run, or "teacher") that has `left` of them."""
    common, parameters = {"teachers.teacher.model": made.teacher}, min(parameters, left)  # a stage may have cut more than was asked
    if made.method == "manual":
        recipe = load_recipe("tinyclip_manual")
        return with_settings(recipe, {**common, "student.inherit.source": before, "student.inherit.to": str(parameters), **made.settings})
    recipe = with_settings(load_recipe("tinyclip_auto"), {**common, "student.init": {"model": before}, **made.settings})
    student = open_student(made.teacher if before == "teacher" else before)
    start, target = sparsity_of(student, parameters / left)
    options = {**recipe.objective["sparsity"].options, "start": start, "target": target, "warmup": _half_of_the_masks(recipe)}
    exact = {**asdict(recipe.stages[1].surgery), "options": {"parameters": parameters}}
    return with_settings(recipe, {"objective.sparsity.options": options, "stages.1.surgery": exact, **made.settings})


def sparsity_of(student: Student, keep: float) -> tuple[float, float]:
    """(now, wanted) as the Sparsity term counts: shares of a student's full size, where every layer is as large as the largest, that are
    gone already, and that are gone when the share `keep` of what there is stays."""
    from clipling.models.masked import mask_shapes, tower_shapes
    from clipling.objectives.sparsity import TowerSize

    dims, shapes = mask_shapes(student), tower_shapes(student)
    share = sum(shape.prunable for shape in shapes.values()) / sum(TowerSize.of(name, dims).prunable for name in shapes)
    return round(max(0.0, 1 - share), 6), round(1 - keep * share, 6)


def _half_of_the_masks(recipe: Recipe) -> int:
    """Steps in which the sparsity rises to its target: the first half of the stage that learns masks."""
    per_epoch = len(open_data(recipe.data).train) // recipe.optimiser.batch
    return max(1, round(recipe.stages[0].epochs * per_epoch / 2))


def _finish(made: Plan, out: Path) -> dict[str, Any]:
    """The table over teacher and stages, and the last student where it is looked for."""
    folders = [out / f"stage-{n}" for n in range(1, len(made.parameters) + 1)]
    models = {"teacher": open_student(made.teacher)} | {folder.name: open_student(str(folder)) for folder in folders}
    val = open_data(with_settings(load_recipe(f"tinyclip_{made.method}"), made.settings).data).val
    evaluator, times = Retrieval(val), latencies(models)
    rows = [_row(name, model, dict(evaluator(model)), times[name]) for name, model in models.items()]
    for row, asked in zip(rows, [made.teacher_parameters, *made.parameters], strict=True):
        row |= {"asked": asked, "relative_recall": row["mean_recall"] / max(rows[0]["mean_recall"], 1e-12)}
    card = (folders[-1] / "model" / "README.md").read_text(encoding="utf-8")
    save_student(models[folders[-1].name], out / "model", card=card)
    result = {"method": made.method, "teacher": made.teacher, "val_pairs": len(val), "rows": rows, "model": str(out / "model")}
    result |= {"threads": torch.get_num_threads(), "licences": read_json(folders[-1] / "summary.json")["licences"]}
    write_json(out / TABLE, result)
    return result


def _row(name: str, model: Student, metrics: Mapping[str, float], times: Mapping[str, float]) -> dict[str, Any]:
    sizes = model.sizes()
    recalls = [value for metric, value in metrics.items() if metric.startswith(("i2t_recall@", "t2i_recall@"))]
    return {
        "name": name,
        "parameters": sizes["total_without_token_rows"],
        "parameters_with_token_rows": sizes["total"],
        **{key: round(value, 3) for key, value in times.items()},
        **{metric: float(value) for metric, value in metrics.items()},
        "mean_recall": sum(recalls) / len(recalls),
    }


# The folder


@contextlib.contextmanager
def _folder(out: Path, made: Plan, *, resume: bool, overwrite: bool, quiet: bool) -> Iterator[Plan]:
    """The folder of a compression: never overwritten unasked, resumed with the same plan only. Yields the plan with its batch.

    A start that came to nothing, before any stage had its first checkpoint, may be made again in any way.
    """
    if resume and overwrite:
        raise UserError("--resume and --overwrite contradict each other: give one of them")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out expects a folder")
    outside_runs(out)
    ours = (out / PLAN).is_file()
    held = [p.name for p in out.iterdir() if not p.name.startswith(".")] if out.is_dir() else []
    if held and not ours:
        raise UserError(f"the folder {out} holds other files ({min(held)}{', ...' * (len(held) > 1)}). Choose another --out.")
    begun = ours and any(begun_names(folder) for folder in _stages(out))
    if begun and not (resume or overwrite):
        raise UserError(f"the folder {out} already holds a compression. Use --resume to continue it, --overwrite, or another --out.")
    if begun and resume:
        held = read_json(out / PLAN)
        made = _with_batch(made, held.get("settings", {}).get(BATCH))
        _same_plan(held, made, out)
    else:
        made = _fitted(made, quiet)
    if begun and overwrite:
        _check_first_stage(made)  # before anything is lost
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, out) from error
    with locked(out):
        if not (begun and resume):
            if ours:
                _clear(out)
            write_json(out / PLAN, vars(made))
        yield made


def _fitted(made: Plan, quiet: bool) -> Plan:
    """The plan with a batch that fits where nobody asked for one and the pairs are fewer than the recipe's."""
    if BATCH in made.settings:
        return made
    recipe = with_settings(load_recipe(f"tinyclip_{made.method}"), made.settings)
    batch = fitted(recipe, len(open_data(recipe.data).train), quiet=quiet).optimiser.batch
    return _with_batch(made, batch) if batch != recipe.optimiser.batch else made


def _with_batch(made: Plan, batch: int | None) -> Plan:
    """The plan with the batch that was found when it began, unless another is asked for."""
    return made if batch is None else replace(made, settings={BATCH: batch, **made.settings})


def _stages(out: Path) -> list[Path]:
    return [p for p in out.iterdir() if p.is_dir() and re.fullmatch(r"stage-\d+", p.name)]


def _check_first_stage(made: Plan) -> None:
    """Refuses what the first stage would refuse."""
    recipe = stage_recipe(made, "teacher", made.parameters[0], made.teacher_parameters)
    needs_guide(recipe)
    check_names(recipe)
    opened = open_data(recipe.data)
    check_batch(recipe.optimiser.batch, len(opened.train), 1)  # one that was asked for
    make_evaluators(recipe, opened.val, {})
    for name, spec in recipe.teachers.items():
        if spec.gate:
            gate(name, open_student(spec.model), opened.train, spec.model)


def _same_plan(held: Mapping[str, Any], made: Plan, out: Path) -> None:
    """Refuses to go on with another plan; says which settings differ."""
    if held.get("teacher") == made.teacher and held.get("teacher_weights") != made.teacher_weights:
        raise UserError(f"--resume: the weights of the teacher {made.teacher} are not those that began {out}. Choose another --out.")
    if held.get("teacher") == made.teacher and held.get("parameters", made.parameters) != made.parameters:
        raise UserError(
            f"--resume: the compression in {out} was begun with {_asked(held)}, now it is {made.asked}. "
            "Resume with the same flags, or choose another --out."
        )
    then, now = ({**given, **given.get("settings", {})} for given in (held, vars(made)))
    for key in {**now, **then}:
        if key not in ("settings", "to", "parameters") and then.get(key) != now.get(key):
            raise UserError(
                f"--resume: the compression in {out} was begun with {key} = {then.get(key, 'its default')}, now it is "
                f"{now.get(key, 'its default')}. Resume with the same flags, or choose another --out."
            )


def _clear(out: Path) -> None:
    """Removes an older compression. The table goes first, then what says that a stage is done."""
    (out / TABLE).unlink(missing_ok=True)
    for folder in (*_stages(out), out / "model"):
        (folder / "summary.json").unlink(missing_ok=True)
        if folder.is_dir():
            shutil.rmtree(folder)
