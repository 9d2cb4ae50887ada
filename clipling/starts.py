"""Where a run's student starts: random weights, trained ones, or weights cut out of a larger model."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from clipling.data.pairs import Pairs
from clipling.data.pixels import Pixels
from clipling.errors import UserError
from clipling.models.build import checked_config
from clipling.models.dual import Student
from clipling.models.hub import new_student, open_student, zoo_config
from clipling.models.inits import load_exactly
from clipling.models.vocabulary import CLIPS_TOKENS
from clipling.recipe import Inherit, Recipe
from clipling.store import read_json

IMPORTANCE_BATCHES = 4


def make_student(recipe: Recipe, pairs: Pairs, teachers: Mapping[str, Student], texts: Sequence[str] = ()) -> Student:
    """The student at step 0. `teachers`: the recipe's, opened; weights may be inherited from them. `texts`: captions that are
    trained on beside those of `pairs`."""
    spec = recipe.student
    if spec.inherit is not None:
        student = inherited(recipe, spec.inherit, pairs, teachers)
    elif spec.text != "config":
        teacher = _only(teachers, f"student.text = {spec.text!r}")
        texts = teacher if spec.text == "teacher" else smaller_text(teacher, spec.text, recipe.seed)
        student = with_text_tower_of(student_config(recipe, teachers), texts, recipe.seed, dict(spec.init))
    else:
        student = new_student(student_config(recipe, teachers), seed=recipe.seed, init=real_init(recipe))
    if spec.vocabulary == "restricted" or (spec.vocabulary == "auto" and student.can_restrict_vocabulary):
        trained_rows = spec.inherit is not None or spec.text != "config" or "model" in spec.init or "text" in spec.init
        student.restrict_vocabulary(student.tokenise_all([*pairs.captions, *texts]), frozen_rest=trained_rows)
    student.set_norm(spec.norm)
    return student.train()


def with_vocabulary(recipe: Recipe) -> Recipe:
    """The recipe with `student.vocabulary` = auto replaced where the student's config alone says what it means, so that recipe.yaml does.

    Of towers that come from another model `make_student` decides, by the same rule, when that model is open.
    """
    spec = recipe.student
    if spec.vocabulary != "auto" or spec.config in ("init", "inherit") or spec.text != "config":
        return recipe
    text = checked_config(_named_config(spec.config))["model_cfg"]["text_cfg"]
    ours = "hf_model_name" not in text and text.get("vocab_size", CLIPS_TOKENS) == CLIPS_TOKENS
    return replace(recipe, student=replace(spec, vocabulary="restricted" if ours else "full"))


def real_init(recipe: Recipe) -> dict[str, str] | None:
    """`student.init`, a teacher's name replaced by its model."""
    given = dict(recipe.student.init)
    if given.get("model") in recipe.teachers:
        given["model"] = recipe.teachers[given["model"]].model
    return given or None


def student_config(recipe: Recipe, teachers: Mapping[str, Student]) -> dict[str, Any]:
    """What `student.config` names, as the content of open_clip_config.json."""
    spec = recipe.student
    if spec.config == "inherit":
        raise UserError("student.config = 'inherit' means a config that is made to fit student.inherit.to: set student.inherit too")
    if spec.config == "init":
        if "model" not in spec.init:
            raise UserError("student.config = 'init' means the config of the model that training starts from: set student.init.model too")
        return _source(spec.init["model"], teachers).local_config
    config = _named_config(spec.config)
    if spec.space == "teacher":
        config["model_cfg"]["embed_dim"] = _only(teachers, "student.space = 'teacher'").embed_dim
    return config


def _named_config(name: str) -> dict[str, Any]:
    return read_json(name) if name.endswith(".json") else zoo_config(name)


def check_names(recipe: Recipe) -> None:
    """Refuses a student that does not exist before any data is read."""
    name = recipe.student.config
    if name not in ("init", "inherit") and not name.endswith(".json"):
        zoo_config(name)
    text = recipe.student.text
    if text not in ("config", "teacher"):
        if not text.strip().endswith("%"):
            raise UserError(f"student.text = {text!r}: expected 'config', 'teacher', or a share of the teacher's such as '50%'")
        size_wish(text)
    inherit = recipe.student.inherit
    if inherit is not None and (name == "inherit") != (inherit.to is not None):
        raise UserError(
            f"student.config = {name!r} and student.inherit.to = {inherit.to!r}: give a config of the zoo and no `to`, or "
            "config 'inherit' and a `to` such as 50% or 20M"
        )


def inherited(recipe: Recipe, spec: Inherit, pairs: Pairs, teachers: Mapping[str, Student]) -> Student:
    """A student whose tensors are cut out of `spec.source`; says on stderr what it kept."""
    from clipling.surgery.importance import first_order
    from clipling.surgery.inherit import inherit
    from clipling.surgery.inherit_targets import target_of

    source = _source(spec.source, teachers)
    texts = None if spec.text_source is None else _source(spec.text_source, teachers)
    config = student_config(recipe, teachers) if spec.to is None else target_of(source, **size_wish(spec.to), text_from=texts)
    importance = None
    if spec.width == "first_order":
        importance = first_order(source, _batches(source, pairs, recipe.optimiser.batch))
    student, report = inherit(source, config, depth=spec.depth, width=spec.width, importance=importance, text_from=texts, seed=recipe.seed)
    print("\n".join(["inherits " + report.lines()[0], *("         " + line for line in report.lines()[1:])]), file=sys.stderr, flush=True)
    return student


def size_wish(text: str) -> dict[str, Any]:
    """`50%` -> {"share": 0.5}, `20M` or `750k` or `1200000` -> {"parameters": ...}. Raises UserError for anything else."""
    found = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*(%|[kKmMbB])?\s*", text)
    if not found:
        raise UserError(f"the size {text!r} is not understood: expected a share such as 50%, or parameters without token rows such as 20M")
    number, unit = float(found[1]), (found[2] or "").lower()
    if unit == "%":
        if not 0 < number <= 100:
            raise UserError(f"the size {text!r}: expected a share above 0 %, at most 100 %")
        return {"share": number / 100}
    parameters = round(number * {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}[unit])
    if parameters < 1:
        raise UserError(f"the size {text!r}: expected at least one parameter")
    return {"parameters": parameters}


def with_text_tower_of(config: dict[str, Any], teacher: Student, seed: int, init: dict[str, str]) -> Student:
    """A student with the image tower of `config` and the whole text tower of `teacher`, in the teacher's space."""
    model, theirs = copy.deepcopy(config["model_cfg"]), teacher.local_config["model_cfg"]
    if "model" in init or "text" in init:
        raise UserError(f"student.init = {init}: the text tower is the teacher's; only {{'image': ...}} can be given beside it")
    same_activation = bool(model.get("quick_gelu")) == bool(theirs.get("quick_gelu"))
    if not same_activation and "timm_model_name" not in model["vision_cfg"]:
        raise UserError("the teacher uses QuickGELU and the student's image tower does not (or the other way round). Set quick_gelu alike.")
    model |= {"embed_dim": theirs["embed_dim"], "text_cfg": copy.deepcopy(theirs["text_cfg"]), "quick_gelu": bool(theirs.get("quick_gelu"))}
    pruned = {side: shape for side, shape in teacher.config.get("pruned", {}).items() if side == "text"}
    student = new_student({**config, "model_cfg": model, "pruned": pruned}, seed=seed, init=init or None)
    state = teacher.stock_state()
    load_exactly(student.model.text, {k.removeprefix("text."): v for k, v in state.items() if k.startswith("text.")}, "the teacher's text")
    with torch.no_grad():
        student.logit_scale.copy_(teacher.logit_scale)
    return student


def smaller_text(teacher: Student, wish: str, seed: int) -> Student:
    """The teacher with its text tower cut to a share of its size (`50%`), and its image tower as it is."""
    from clipling.surgery.inherit import inherit
    from clipling.surgery.inherit_targets import text_target_of

    student, report = inherit(teacher, text_target_of(teacher, size_wish(wish)["share"]), seed=seed)
    print(f"text     cut to {report.sizes['text']:,} of {report.source_sizes['text']:,} parameters", file=sys.stderr, flush=True)
    return student


def _source(name: str, teachers: Mapping[str, Student]) -> Student:
    return teachers[name] if name in teachers else open_student(name)


def _only(teachers: Mapping[str, Student], why: str) -> Student:
    if len(teachers) != 1:
        raise UserError(f"{why} needs one teacher; the recipe has {len(teachers)}. Give --teacher MODEL.")
    return next(iter(teachers.values()))


def _batches(student: Student, pairs: Pairs, size: int) -> Any:
    """A few batches of normalised pictures and token ids, spread over the training pairs."""
    pixels = Pixels.open(pairs, student.image_size, student.preprocess_cfg)
    size = min(size, len(pairs), 64)
    order = np.random.default_rng(0).permutation(len(pairs))[: IMPORTANCE_BATCHES * size]
    for start in range(0, len(order), size):
        rows = np.sort(order[start : start + size])
        images = torch.from_numpy(np.ascontiguousarray(pixels[rows])).permute(0, 3, 1, 2)
        yield student.normalise(images), student.tokenise([pairs.captions[pairs.offsets[i]] for i in rows.tolist()])
