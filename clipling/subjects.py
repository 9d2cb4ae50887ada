"""Models as subjects of a suite: opened, named, and told apart by a hash; and the starts that they were trained from."""

from __future__ import annotations

from pathlib import Path

from clipling.assess import budget, describe, model_folder
from clipling.engine.runtime import Runtime
from clipling.errors import UserError
from clipling.evals.identity import model_hash
from clipling.evals.results import weights_hash
from clipling.evals.suite.subject import Subject
from clipling.models.dual import Student
from clipling.models.hub import new_student, open_student
from clipling.store import read_json


def subject_of(model: str, name: str | None = None, runtime: Runtime | None = None) -> Subject:
    """The model as a subject: named by its run, its folder or its open_clip name, and by its weights."""
    student = open_student(model)
    shown, tag = describe(model)
    found = model_hash(student, weights_hash(model_folder(model)))
    tag = tag if "@" in model else f"{tag}-{found[:8]}".strip("-")
    about = {"pretrained": tag, "model_hash": found, "spec": model, "budget": budget(model, student)}
    made = Subject(student, name or _telling(model, shown), runtime=runtime, **about)
    _ = made.scale  # what cannot be measured is said before anything is
    return made


def _telling(model: str, shown: str) -> str:
    """A folder that is just called `model` is named by the folder above."""
    parts = Path(model.removeprefix("local-dir:")).parts
    return parts[-2] if shown == "model" and len(parts) > 1 else shown


def start_of(model: str, student: Student, runtime: Runtime | None = None) -> Subject:
    """The weights that training began with, where a run says so; otherwise random ones of the same architecture."""
    config, seed, init = student.local_config, 0, None
    summary, recipe = Path(model) / "summary.json", Path(model) / "recipe.yaml"
    if summary.is_file() and recipe.is_file():
        from clipling.recipe import from_yaml
        from clipling.starts import real_init

        read = from_yaml(recipe)
        seed = int(read_json(summary)["seed"])
        init = None if "pruned" in config else real_init(read)
    try:
        made = new_student(config, seed=seed, init=init)
    except UserError:  # what it began with is gone: random weights then
        made, init = new_student(config, seed=seed), None
    found = model_hash(made)
    name = f"{_telling(model, describe(model)[0])}, {'start' if init else 'random weights'}"
    size = {"parameters": made.sizes()["total"]}
    return Subject(made.eval(), name, pretrained=found[:8], model_hash=found, spec="", budget=size, runtime=runtime)
