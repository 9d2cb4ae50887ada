"""The Recipe: a typed description of a run, and the one place where its mistakes are named.

Precedence: the recipe function, then a YAML file, then flags (`--set path.to.key=value`). What a run was made with is written to
its `recipe.yaml`, fully resolved.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from clipling.errors import UserError, near
from clipling.settings import (
    Compute,
    Data,
    Evaluation,
    GuideSpec,
    Inherit,
    Optimiser,
    Recipe,
    ReinforcedSpec,
    Stage,
    StudentSpec,
    SurgerySpec,
    TeacherSpec,
    TermSpec,
)

__all__ = [
    "Compute",
    "Data",
    "Evaluation",
    "GuideSpec",
    "Inherit",
    "Optimiser",
    "Recipe",
    "ReinforcedSpec",
    "Stage",
    "StudentSpec",
    "SurgerySpec",
    "TeacherSpec",
    "TermSpec",
    "from_yaml",
    "load_recipe",
    "parse_setting",
    "recipe_help",
    "recipe_names",
    "to_dict",
    "to_yaml",
    "validated",
    "with_settings",
]


def recipe_names() -> list[str]:
    """The recipes that come with clipling."""
    from clipling import recipes

    return sorted(m.name for m in pkgutil.iter_modules(recipes.__path__) if not m.name.startswith("_"))


def recipe_help() -> dict[str, Any]:
    """The recipes with the first sentence of their file, for `clipling show recipes`."""
    rows = []
    for name in recipe_names():
        module = importlib.import_module(f"clipling.recipes.{name}")
        rows.append([name, (module.__doc__ or "").strip().split("\n")[0]])
    return {"header": ["recipe", "what it is"], "rows": rows}


def load_recipe(spec: str, *, smoke: bool = False, scale: str = "cpu") -> Recipe:
    """A recipe by name (`ping`), from a YAML file, or from a user's file (`./mine.py:recipe`).

    Raises UserError for names that do not exist, files that do not load, and functions that do not return a Recipe.
    """
    path = Path(spec)
    if path.suffix in (".yaml", ".yml"):
        if smoke or scale != "cpu":
            raise UserError("--smoke and --scale choose a variant of a recipe function; a YAML file is already resolved. Leave them out.")
        return from_yaml(path)
    if ".py" in spec:
        return _call(_user_function(spec), spec, smoke=smoke, scale=scale)
    if spec not in recipe_names():
        raise UserError(f"there is no recipe {spec!r}. {near(spec, recipe_names())} Or give a .yaml file or ./file.py:function.")
    return _call(importlib.import_module(f"clipling.recipes.{spec}").recipe, spec, smoke=smoke, scale=scale)


def _user_function(spec: str) -> Callable[..., Recipe]:
    from clipling.objectives.load import load_object

    return load_object(spec if ":" in spec.rsplit(".py", 1)[1] else f"{spec}:recipe")


def _call(function: Callable[..., Recipe], spec: str, *, smoke: bool, scale: str) -> Recipe:
    given = {"smoke": smoke, "scale": scale}
    accepted = inspect.signature(function).parameters
    for name, default in (("smoke", False), ("scale", "cpu")):
        if name not in accepted:
            if given[name] != default:
                raise UserError(f"the recipe {spec} takes no {name!r}. Leave --{name} out or add the parameter to the function.")
            given.pop(name)
    try:
        made = function(**given)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the recipe function {spec} failed: {type(error).__name__}: {error}") from error
    if not isinstance(made, Recipe):
        raise UserError(f"the recipe {spec} returned {type(made).__name__}; expected a clipling.recipe.Recipe")
    return validated(to_dict(made), spec)


def from_yaml(path: Path) -> Recipe:
    """A recipe file; `base: NAME` starts from a named recipe and the other keys override it."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"the recipe file {path} cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {type(content).__name__}; expected keys such as: {', '.join(f.name for f in fields(Recipe))}")
    base = content.pop("base", None)
    if base is not None:
        if str(base).endswith((".yaml", ".yml")):
            raise UserError(f"{path}: base = {base!r}: expected the name of a recipe ({', '.join(recipe_names())}) or ./file.py:function")
        content = _merge(to_dict(load_recipe(str(base))), content)
    return validated(content, str(path))


def to_dict(recipe: Recipe) -> dict[str, Any]:
    return asdict(recipe)


def to_yaml(recipe: Recipe) -> str:
    plain = TypeAdapter(Recipe).dump_python(recipe, mode="json")
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def with_settings(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with dotted keys replaced: {"objective.ping.weight.nn": 0.5, "optimiser.batch": 128, "stages.0.epochs": 3}."""
    content = to_dict(recipe)
    for path, value in settings.items():
        _refuse_absent(content, path)
        _assign(content, path.split("."), value, path)
    return validated(content, "--set")


def _refuse_absent(content: Mapping[str, Any], path: str) -> None:
    """Refuses a setting of a part that this recipe leaves out (`guide.k` of plain clip), and says which recipes have that part."""
    keys = path.split(".")
    for depth in range(1, len(keys)):
        if _part(content, keys[:depth]) is not None:
            continue
        having = [name for name in recipe_names() if isinstance(_part(to_dict(load_recipe(name)), keys[:depth]), dict)]
        if having and keys[0] not in NAMED:
            part = ".".join(keys[:depth])
            raise UserError(f"--set {path}: the recipe {content['name']!r} has no {part}. Recipes that have one: {', '.join(having)}")
        return


def _part(content: Any, keys: list[str]) -> Any:
    """What lies below `keys`; None where there is nothing."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def parse_setting(text: str) -> tuple[str, Any]:
    """`path.to.key=value`, the value as YAML."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UserError(f"--set {text!r}: expected key=value, for example --set optimiser.batch=128")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {text!r}: the value is not valid YAML: {str(error).splitlines()[0]}") from error


# Mappings from names that are the user's own to settings: `--set objective.mine.use=...` adds an entry.
NAMED = ("objective", "teachers")
# Mappings whose keys are the user's own: they are replaced as a whole, so that an entry can be taken away.
OWN_KEYS = ("weight", "options", "init")


def _merge(base: Any, over: Any) -> Any:
    """`over` laid on `base`: sections key by key, stages position by position, everything else replaced."""
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{k: v if k in OWN_KEYS else _merge(base.get(k), v) for k, v in over.items()}}
    if isinstance(base, list) and isinstance(over, list) and all(isinstance(v, dict) for v in [*base, *over]):
        return [_merge(base[n], v) if n < len(base) else v for n, v in enumerate(over)]
    return over


def _assign(content: Any, keys: list[str], value: Any, path: str) -> None:
    head, *rest = keys
    if isinstance(content, list):
        if not head.isdigit() or int(head) >= len(content):
            raise UserError(f"--set {path}: {head!r} is not one of the positions 0 to {len(content) - 1}")
        head = int(head)  # type: ignore[assignment]
    elif not isinstance(content, dict):
        raise UserError(f"--set {path}: there is nothing below {head!r}")
    if not rest:
        known = content[head] if isinstance(content, list) else content.get(head)
        content[head] = value if head in OWN_KEYS else _merge(known, value)
        return
    below = content[head] if isinstance(content, list) else content.get(head)
    if below is None and path.split(".")[0] in NAMED and len(path.split(".")) - len(rest) == 2:
        below = content[head] = {}  # a term or a teacher that the recipe does not have yet
    if below is None or not isinstance(below, dict | list):
        known = [name for name in ([] if isinstance(content, list) else content) if name != head]
        hint = near(str(head), known) if known and head not in content else ""
        raise UserError(f"--set {path}: {head!r} holds no settings here. {hint}".strip())
    _assign(below, rest, value, path)


def validated(content: Mapping[str, Any], where: str) -> Recipe:
    """Checks every key and value; raises one UserError that lists all mistakes."""
    try:
        recipe = TypeAdapter(Recipe).validate_python(dict(content))
    except ValidationError as error:
        lines = [_explain(e) for e in error.errors()]
        raise UserError(f"{where}: " + ("\n  ".join(["", *lines]) if len(lines) > 1 else lines[0])) from None
    _check_values(recipe, where)
    return recipe


def _explain(error: Mapping[str, Any]) -> str:
    path = [str(p) for p in error["loc"] if not str(p).startswith(("function-", "dict[", "float"))]
    name = ".".join(path)
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unknown key {name!r}. {near(path[-1], _keys_at(path[:-1]))}"
    if error["type"] in ("missing", "missing_argument"):
        return f"the key {name!r} is missing"
    return f"{name} = {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


_INSIDE: dict[str, type] = {
    "data": Data,
    "student": StudentSpec,
    "guide": GuideSpec,
    "teachers": TeacherSpec,
    "reinforced": ReinforcedSpec,
    "objective": TermSpec,
    "stages": Stage,
    "optimiser": Optimiser,
    "compute": Compute,
    "evaluation": Evaluation,
}


def _keys_at(path: list[str]) -> list[str]:
    owner = _INSIDE.get(path[0], Recipe) if path else Recipe
    assert is_dataclass(owner)
    return [f.name for f in fields(owner)]


def _check_values(recipe: Recipe, where: str) -> None:
    def need(ok: bool, name: str, given: Any, expected: str) -> None:
        if not ok:
            raise UserError(f"{where}: {name} = {given!r}: expected {expected}")

    o, d = recipe.optimiser, recipe.data
    need(0 <= recipe.seed < 2**62, "seed", recipe.seed, "a whole number from 0 to 2**62")
    need(o.batch >= 2, "optimiser.batch", o.batch, "at least 2 (a contrastive loss needs a negative)")
    need(
        o.micro_batch is None or 1 <= o.micro_batch <= o.batch,
        "optimiser.micro_batch",
        o.micro_batch,
        "1 to optimiser.batch, or null",
    )
    need(o.ema is None or 0 < o.ema < 1, "optimiser.ema", o.ema, "a decay between 0 and 1, or null")
    need(o.clip_norm is None or o.clip_norm > 0, "optimiser.clip_norm", o.clip_norm, "a positive number, or null")
    need(o.stop_after_nonfinite >= 1, "optimiser.stop_after_nonfinite", o.stop_after_nonfinite, "at least 1")
    need(0 < d.crop[0] <= d.crop[1] <= 1, "data.crop", d.crop, "two shares of the picture, 0 < low <= high <= 1")
    need(0 <= d.flip <= 1, "data.flip", d.flip, "a probability")
    need(0 <= d.max_bad <= 1, "data.max_bad", d.max_bad, "a share between 0 and 1")
    sources = len(d.source.split("::"))
    need(
        d.weights is None or (len(d.weights) == sources and all(0 < w < math.inf for w in d.weights)),
        "data.weights",
        d.weights,
        f"a positive number for each of the {sources} sources, which are joined by '::'" if d.source else "null without data.source",
    )
    need(not (d.bare and d.weights), "data.weights", d.weights, "null: bare photos are not mixed by weight")
    exact = bool(recipe.teachers) or recipe.reinforced is not None or (recipe.guide is not None and recipe.guide.active != "none")
    need(
        not (d.decode == "fast" and exact),
        "data.decode",
        d.decode,
        "exact: the teacher or encoder must see the pixels that the student sees",
    )
    need(0 <= d.cache_gb < math.inf, "data.cache_gb", d.cache_gb, "0 or more gigabytes")
    need(d.workers >= 0, "data.workers", d.workers, "0 or more")
    need(d.limit is None or d.limit >= 2, "data.limit", d.limit, "at least 2, or null")
    need(0 < recipe.evaluation.every < math.inf, "evaluation.every", recipe.evaluation.every, "a positive number of epochs")
    need(recipe.evaluation.log_every >= 1, "evaluation.log_every", recipe.evaluation.log_every, "at least 1")
    e = recipe.evaluation
    need(e.patience is None or e.patience >= 1, "evaluation.patience", e.patience, "at least 1, or null")
    need(e.patience is None or e.best != "last", "evaluation.patience", e.patience, "null: evaluation.best = 'last' looks at no value")
    need(e.patience is None or len(recipe.stages) == 1, "evaluation.patience", e.patience, "null: it would end all stages, not one")
    need(all(0 <= a <= 1 for a in e.interpolate), "evaluation.interpolate", e.interpolate, "shares between 0 and 1")
    need(
        not e.interpolate or not recipe.student.inherit,
        "evaluation.interpolate",
        e.interpolate,
        "an empty list: an inherited student has no start worth keeping",
    )
    need(
        not e.interpolate or not any(stage.surgery for stage in recipe.stages),
        "evaluation.interpolate",
        e.interpolate,
        "an empty list: after a surgery the student has another shape than its start",
    )
    s = recipe.student
    need(s.inherit is None or s.text == "config", "student.text", s.text, "'config': with student.inherit the text tower is cut out too")
    need(o.layer_decay is None or 0 < o.layer_decay <= 1, "optimiser.layer_decay", o.layer_decay, "a number above 0, at most 1, or null")
    need(not (recipe.student.inherit and recipe.student.init), "student.init", recipe.student.init, "nothing beside student.inherit")
    need(not (d.bare and recipe.guide), "data.bare", d.bare, "false: a guide's bank needs captions that belong to pictures")
    need(d.texts is None or d.bare, "data.texts", d.texts, "null: texts that belong to no picture are for bare photos (data.bare)")
    if recipe.reinforced is not None:
        r = recipe.reinforced
        need(not d.bare, "data.bare", d.bare, "false: stored knowledge is of captions that belong to pictures")
        need(tuple(d.crop) == (1.0, 1.0), "data.crop", d.crop, "[1, 1]: with `reinforced` the crops are those that are stored")
        need(d.flip == 0, "data.flip", d.flip, "0: with `reinforced` mirrors are those that are stored")
        active = recipe.guide.active if recipe.guide else "none"
        need(active == "none", "guide.active", active, "'none': with `reinforced` the crops are those that are stored")
        need(0 < r.mix <= 1, "reinforced.mix", r.mix, "a share above 0, at most 1")
        need(all(size >= 1 for size in r.teachers.values()), "reinforced.teachers", r.teachers, "sizes of at least 1")
    for name, teacher in recipe.teachers.items():
        need(name.isidentifier(), "teachers", name, "names made of letters, digits and _")
        need(teacher.scale is None or 0 < teacher.scale <= 1000, f"teachers.{name}.scale", teacher.scale, "a positive number, or null")
    dropped: set[str] = set()
    for n, stage in enumerate(recipe.stages):
        unknown = [t for t in stage.drop if t not in recipe.objective]
        need(not unknown, f"stages.{n}.drop", stage.drop, f"terms of the objective: {', '.join(recipe.objective)}")
        dropped |= set(stage.drop)
        need(not dropped or set(recipe.objective) > dropped, f"stages.{n}.drop", stage.drop, "at least one term that goes on")
    need(bool(recipe.stages), "stages", recipe.stages, "at least one stage")
    need(bool(recipe.objective), "objective", recipe.objective, "at least one term")
    need(recipe.max_steps is None or recipe.max_steps >= 1, "max_steps", recipe.max_steps, "at least 1, or null")
    for n, stage in enumerate(recipe.stages):
        need(0 < stage.epochs < math.inf, f"stages.{n}.epochs", stage.epochs, "a positive number")
        need(0 < stage.learning_rate < math.inf, f"stages.{n}.learning_rate", stage.learning_rate, "a positive number")
        need(stage.warmup >= 0, f"stages.{n}.warmup", stage.warmup, "0 or more epochs")
        whole = stage.freeze_projections and {"image", "text"} <= set(stage.freeze)
        need(not whole, f"stages.{n}.freeze", stage.freeze, "at most one tower, with freeze_projections: something has to learn")
    if recipe.guide is not None:
        need(recipe.guide.k >= 1, "guide.k", recipe.guide.k, "at least 1")
        need(recipe.guide.views >= 1, "guide.views", recipe.guide.views, "at least 1")
