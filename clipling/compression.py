"""From a large model to a small one in stages, each taught by the original teacher: what `clipling compress` does.

TinyCLIP's multi-stage progressive distillation (Wu et al., ICCV 2023, section 3.3): every stage starts from the student before it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clipling.engine.timing import latencies
from clipling.errors import UserError
from clipling.evals.evaluators import Retrieval
from clipling.models.dual import Student
from clipling.models.hub import open_student, save_student
from clipling.recipe import Recipe, load_recipe, with_settings
from clipling.run import open_data, train
from clipling.runfolder import locked
from clipling.starts import size_wish
from clipling.store import disk_error, read_json, write_json

Method = Literal["manual", "auto"]
PLAN = "compress.json"
TABLE = "table.json"


@dataclass(frozen=True)
class Plan:
    """teacher: what is compressed; parameters: the size after each stage, without token rows; settings: of every stage's recipe."""

    teacher: str
    method: Method
    parameters: list[int]
    teacher_parameters: int
    settings: dict[str, Any]


def plan(teacher: str, to: str, method: Method, stages: int, settings: Mapping[str, Any]) -> Plan:
    """The sizes of all stages, at equal distances. Raises UserError for a size that is not smaller than the teacher's."""
    if stages < 1:
        raise UserError(f"--stages {stages}: expected at least 1")
    model = open_student(teacher)
    size = model.sizes()["total_without_token_rows"]
    if method == "auto":
        from clipling.models.masked import mask_shapes

        mask_shapes(model)  # refuses towers that masks do not fit, before any work
    wish = size_wish(to)
    target = wish.get("parameters") or round(wish["share"] * size)
    if target >= size:
        raise UserError(f"--to {to}: the teacher has {size:,} parameters without token rows already. Give a smaller size.")
    return Plan(teacher, method, [round(size - (size - target) * k / stages) for k in range(1, stages + 1)], size, dict(settings))


def compress(made: Plan, out: Path, *, resume: bool = False, overwrite: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Runs every stage into `out/stage-K`, measures teacher and students, and puts the last one into `out/model`.

    A stage that is finished is not done again, one that was killed goes on where it stopped. Returns the table.
    """
    with _folder(out, made, resume=resume, overwrite=overwrite):
        before, left = "teacher", made.teacher_parameters
        for number, parameters in enumerate(made.parameters, start=1):
            folder = out / f"stage-{number}"
            recipe = stage_recipe(made, before, parameters, left)
            train(recipe, folder, resume=resume or folder.is_dir(), quiet=quiet)
            before, left = str(folder), read_json(folder / "summary.json")["parameters"]["total_without_token_rows"]
        return _finish(made, out)


def stage_recipe(made: Plan, before: str, parameters: int, left: int) -> Recipe:
    """The recipe of one stage: `parameters` to reach, from the student `before` (a run, or "teacher") that has `left` of them."""
    common = {"teachers.teacher.model": made.teacher}
    if made.method == "manual":
        recipe = load_recipe("tinyclip_manual")
        return with_settings(recipe, {**common, "student.inherit.source": before, "student.inherit.to": str(parameters), **made.settings})
    recipe = with_settings(load_recipe("tinyclip_auto"), {**common, "student.init": {"model": before}, **made.settings})
    student = open_student(made.teacher if before == "teacher" else before)
    start, target = sparsity_of(student, parameters / left)
    options = {**recipe.objective["sparsity"].options, "start": start, "target": target, "warmup": _half_of_the_masks(recipe)}
    return with_settings(recipe, {"objective.sparsity.options": options, **made.settings})


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
    recipe = stage_recipe(made, "teacher", made.parameters[0], made.teacher_parameters)
    val = open_data(recipe.data).val
    evaluator = Retrieval(val)
    times = latencies(models)
    rows = [_row(name, model, dict(evaluator(model)), times[name]) for name, model in models.items()]
    for row in rows:
        row["relative_recall"] = row["mean_recall"] / max(rows[0]["mean_recall"], 1e-12)
    last = models[folders[-1].name]
    save_student(last, out / "model", card=(folders[-1] / "model" / "README.md").read_text(encoding="utf-8"))
    result = {"method": made.method, "teacher": made.teacher, "val_pairs": len(val), "rows": rows, "model": str(out / "model")}
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


@contextlib.contextmanager
def _folder(out: Path, made: Plan, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """The folder of a compression: never overwritten unasked, resumed with the same plan only."""
    if resume and overwrite:
        raise UserError("--resume and --overwrite contradict each other: give one of them")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out expects a folder")
    ours = (out / PLAN).is_file()
    held = [p for p in out.iterdir() if not p.name.startswith(".")] if out.is_dir() else []
    if held and not ours:
        raise UserError(f"the folder {out} holds other files ({held[0].name}, ...). Choose another --out.")
    if ours and not (resume or overwrite):
        raise UserError(f"the folder {out} already holds a compression. Use --resume to continue it, --overwrite, or another --out.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, out) from error
    with locked(out):
        if ours and resume:
            _same_plan(read_json(out / PLAN), made, out)
        elif ours:
            _clear(out)
        write_json(out / PLAN, vars(made))
        yield


def _same_plan(held: Mapping[str, Any], made: Plan, out: Path) -> None:
    for key, value in vars(made).items():
        if held.get(key) != value:
            raise UserError(f"--resume: the compression in {out} was begun with {key} = {held.get(key)!r}, now it is {value!r}.")


def _clear(out: Path) -> None:
    import shutil

    for path in out.iterdir():
        if path.is_dir() and (path.name == "model" or path.name.startswith("stage-")):
            shutil.rmtree(path)
        elif path.name in (PLAN, TABLE):
            path.unlink()
