"""Makes the parts of a run from its recipe: student, guide, objective, evaluators."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from clipling.data.classes import is_labelled, open_labelled
from clipling.data.knowledge import Knowledge
from clipling.data.pairs import Pairs
from clipling.data.reinforced import TeacherInfo
from clipling.data.source import open_pairs
from clipling.data.views import Augment
from clipling.engine.batch import LiveTeacher
from clipling.engine.runtime import Runtime
from clipling.errors import UserError, near
from clipling.evals.agreement import Agreement
from clipling.evals.evaluators import Retrieval, ZeroShot
from clipling.evals.watch import Watch
from clipling.guides.bank import Bank, bank_for
from clipling.guides.guidance import BankGuide
from clipling.guides.open import open_guide
from clipling.guides.progress import Progress, ShowProgress, silent
from clipling.guides.teacher import Teacher, gate, remember_sides
from clipling.models.dual import Student
from clipling.models.hub import open_student
from clipling.models.masked import alive_masks, mask_shapes
from clipling.objectives.load import load_object
from clipling.objectives.term import Objective, Term
from clipling.recipe import GuideSpec, Recipe, ReinforcedSpec, TermSpec


def needs(recipe: Recipe) -> frozenset[str]:
    """What the active terms want in a batch."""
    return frozenset().union(*(make_term(name, spec).needs for name, spec in active_terms(recipe).items()))


def needs_guide(recipe: Recipe) -> None:
    """Refuses a guide that no term would use, and a term whose guide is missing, before any work is done."""
    needed = sorted(n for n in needs(recipe) if n.startswith("neighbours."))
    if needed and recipe.guide is None:
        raise UserError(f"the objective needs {', '.join(needed)} but the recipe has no guide. Add `guide:` (see the recipe ping).")
    if recipe.guide is not None and not needed:
        raise UserError("the recipe has a guide that no term of the objective uses. Remove `guide`, or give the term a weight.")
    needs_knowledge(recipe)
    taught = sorted(n for n in needs(recipe) if n.startswith("teacher."))
    if taught and not recipe.teachers and recipe.reinforced is None:
        raise UserError(f"the objective needs {', '.join(taught)} but the recipe has no teacher. Give --teacher MODEL.")
    unnamed = [name for name, spec in recipe.teachers.items() if not spec.model]
    if unnamed:
        raise UserError(f"the recipe {recipe.name!r} learns from a teacher: give --teacher MODEL (a run, a folder of a model, or NAME@TAG)")
    inherit = recipe.student.inherit
    sources = {inherit.source, inherit.text_source} if inherit else set()
    idle = [n for n in recipe.teachers if not taught and n not in sources and recipe.student.text == "config"]
    if idle:
        raise UserError(f"no term of the objective uses the teacher {idle[0]!r}. Remove it, or add a term such as the affinity.")


def needs_knowledge(recipe: Recipe) -> None:
    """Refuses stored knowledge that no term would use, and terms whose captions are not stored."""
    more = sorted(n for n in needs(recipe) if n.endswith((":syn", ":mix")))
    spec = recipe.reinforced
    if more and spec is None:
        raise UserError(
            f"the objective needs {', '.join(more)}, synthetic captions, but the recipe has no `reinforced`. Make a source that has them "
            "with `clipling reinforce`, or learn from the pairs' own captions: --set objective.reinforced.options.captions=real"
        )
    if spec is not None and not any(n.startswith("teacher.") or n in more for n in needs(recipe)):
        raise UserError("the recipe has `reinforced` but no term of the objective uses it. Remove it, or add a term such as Reinforced.")
    if more and recipe.teachers and any(n.startswith("teacher.text:") for n in more):
        raise UserError("a live teacher sees no synthetic captions: leave --teacher out (what is stored teaches), or set captions=real")
    if spec is not None and spec.mix != ReinforcedSpec().mix and not any(n.endswith(":mix") for n in more):
        raise UserError(f"reinforced.mix = {spec.mix} would be ignored: no term has captions=mix")


def make_knowledge(recipe: Recipe, train: Pairs) -> Knowledge | None:
    """What is stored beside the training pairs. Raises UserError when it is not there, or lacks what terms need."""
    spec = recipe.reinforced
    if spec is None:
        return None
    teachers = [TeacherInfo(name, dim) for name, dim in spec.teachers.items()]
    made = Knowledge(train, teachers, spec.origins, spec.changed)
    if spec.changed == "rescale" and not made.checks.replaced:
        raise UserError("reinforced.changed = rescale would be ignored: no picture has changed since its crops were drawn. Leave it out.")
    twice = sorted({teacher.name for teacher in made.teachers} & recipe.teachers.keys())
    if twice:
        raise UserError(f"the teacher {twice[0]!r} is stored and live: give the live one another name (teachers.NAME.model=...)")
    more = sorted(n for n in needs(recipe) if n.endswith((":syn", ":mix")))
    if more and not made.texts:
        raise UserError(
            f"the objective needs {', '.join(more)}, but no synthetic caption of an origin that fits {spec.origins!r} is stored. Store "
            "some with `clipling reinforce --captions`, or learn from the pairs' own captions: "
            "--set objective.reinforced.options.captions=real"
        )
    if spec.origins != ReinforcedSpec().origins and not more:
        raise UserError(f"reinforced.origins = {spec.origins!r} would be ignored: no term looks at synthetic captions")
    return made


def active_terms(recipe: Recipe) -> dict[str, TermSpec]:
    """Terms with a weight other than 0. A term of weight 0 is not built, so it costs nothing and changes nothing."""
    found = {}
    for name, spec in recipe.objective.items():
        weights = spec.weight.values() if isinstance(spec.weight, dict) else [spec.weight]
        if any(w != 0 for w in weights):
            found[name] = spec
    if not found:
        raise UserError("every term of the objective has weight 0")
    return found


def make_term(name: str, spec: TermSpec) -> Term:
    """Builds a term from its class and options. Raises UserError for options that the class does not take."""
    made = load_object(spec.use)
    options = dict(spec.options)
    accepted = inspect.signature(made).parameters
    for option in options:
        if option not in accepted:
            raise UserError(f"objective.{name}.options: {spec.use} takes no {option!r}. {near(option, accepted)}")
    if isinstance(spec.weight, dict) and "parts" in accepted and "parts" not in options:
        options["parts"] = tuple(part for part, weight in spec.weight.items() if weight != 0)
    try:
        term = made(**options)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"objective.{name}: {spec.use}({options}) failed: {error}") from error
    if not isinstance(term, Term):
        raise UserError(f"objective.{name}.use = {spec.use!r} is {type(term).__name__}; expected a clipling.objectives.term.Term")
    return term


def make_objective(recipe: Recipe, student: Student, guide: Any | None, teachers: Sequence[LiveTeacher] = ()) -> Objective:
    """The sum of terms. Heads start from the recipe's seed, whatever ran before."""
    dims = {"student": student.embed_dim, **(guide.dims if guide else {})}
    for teacher in teachers:
        dims |= teacher.dims
    if "student.masks" in needs(recipe):
        dims |= mask_shapes(student)
    terms: dict[str, Term] = {}
    weights: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        for name, spec in active_terms(recipe).items():
            torch.manual_seed(recipe.seed)
            terms[name] = make_term(name, spec)
            terms[name].setup(dims)
            if "student.masks" in terms[name].needs:
                terms[name].set_alive(alive_masks(student))  # what an earlier stage removed
            weights[name] = spec.weight
    return Objective(terms, weights)


def make_guide(
    recipe: Recipe, source: Pairs, train: Pairs, augment: Augment, quiet: bool, rank: int = 0, world: int = 1
) -> BankGuide | None:
    """The bank (built when absent), its tables over the training pairs only, and the look-up. rank, world: as for `build_bank`."""
    spec = recipe.guide
    if spec is None:
        return None
    progress = silent if quiet else ShowProgress()
    folder = bank_folder(recipe, source, train, augment, progress, rank, world)
    return open_guide(
        train,
        folder,
        k=spec.k,
        cap=spec.max_in_degree,
        centre=spec.centre,
        query=spec.query,
        caption=spec.caption,
        control=spec.control,
        active=spec.active,
        augment=augment,
        seed=recipe.seed,
        spaces=tuple(sorted(n.removeprefix("neighbours.") for n in needs(recipe) if n.startswith("neighbours."))),
        tables=tables_folder(folder, train, spec),
        progress=progress,
        rank=rank,
        world=world,
    )


def bank_folder(recipe: Recipe, source: Pairs, train: Pairs, augment: Augment, progress: Progress, rank: int = 0, world: int = 1) -> Path:
    """The bank that was given, or the cached one. Crops (`active: views`) belong to the training pairs in their order."""
    spec = recipe.guide
    assert spec is not None
    if spec.bank != "auto":
        check_bank(spec)
        return Path(spec.bank)
    views = {"views": spec.views, "augment": augment, "seed": recipe.seed} if spec.active == "views" else {}
    over = train if views else source
    return bank_for(over, spec.image_encoder, spec.text_encoder, spec.image_size, progress=progress, rank=rank, world=world, **views)


def check_bank(spec: GuideSpec) -> None:
    """Refuses settings that a bank which was given would silently ignore."""
    if spec.image_size is not None:
        raise UserError("guide.image_size is decided by the bank that was given: leave it out, or leave out the bank")
    manifest = Bank.open(spec.bank).manifest
    for side, named in (("image", spec.image_encoder), ("text", spec.text_encoder)):
        made = manifest[side]["encoder"]
        if made != named:
            raise UserError(f"the bank {spec.bank} was made by {made}, the recipe names {named}. Set guide.{side}_encoder={made}.")


def tables_folder(bank: Path, train: Pairs, spec: GuideSpec) -> Path:
    """Beside the bank, by what decides the tables: the training pairs and how their features are compared."""
    name = hashlib.blake2b(f"{train.fingerprint} {spec.centre} {spec.k} {spec.max_in_degree} {spec.query}".encode(), digest_size=8)
    return bank / "tables" / name.hexdigest()


def open_teachers(recipe: Recipe) -> dict[str, Student]:
    """The recipe's teachers, frozen, by name."""
    return {name: open_student(spec.model).eval().requires_grad_(False) for name, spec in recipe.teachers.items()}


def sides_taught(recipe: Recipe) -> frozenset[str]:
    """What terms ask teachers for, of "image" and "text"."""
    return frozenset(n.removeprefix("teacher.") for n in needs(recipe) if n.startswith("teacher.") and ":" not in n)


def pass_gates(recipe: Recipe, models: Mapping[str, Student], train: Pairs, runtime: Runtime, quiet: bool) -> None:
    """Refuses teachers that cannot tell the pairs apart, before a student is cut out of them or their features of all pairs are made."""
    if recipe.data.bare or not runtime.first or not sides_taught(recipe):
        return
    for name, model in models.items():
        spec = recipe.teachers[name]
        if not spec.gate:
            continue
        found = gate(name, model.to(runtime.device), train, spec.model)
        if not quiet:
            texts, pictures = f"{100 * found['image_to_text']:.0f} %", f"{100 * found['text_to_image']:.0f} %"
            print(
                f"teacher  {spec.model}: of {found['pairs']} training pairs it finds the right caption for {texts} of the pictures, the "
                f"right picture for {pictures} of the captions (chance {100 * found['chance']:.1f} %)",
                file=sys.stderr,
                flush=True,
            )


def make_teachers(
    recipe: Recipe, models: Mapping[str, Student], train: Pairs, augment: Augment, runtime: Runtime, quiet: bool
) -> list[Teacher]:
    """Teachers that terms ask for (see `pass_gates`), with what never varies computed before the first step."""
    sides = sides_taught(recipe)
    if not sides:
        return []
    progress = silent if quiet else ShowProgress()
    epochs = sum(stage.epochs for stage in recipe.stages)
    made = []
    for name, model in models.items():
        spec = recipe.teachers[name]
        model.to(runtime.device)
        kept = remember_sides(model, train, augment, sides, epochs, progress)
        made.append(Teacher(name, model, train, sides, spec.scale, **kept, device=runtime.device, autocast=recipe.optimiser.autocast))
    return made


def make_surgeries(recipe: Recipe) -> dict[int, Callable[[Student, Objective], Student]]:
    """What is done to the student before each stage that asks for it."""
    made = {}
    for number, stage in enumerate(recipe.stages):
        if stage.surgery is not None:
            function, options = load_object(stage.surgery.use), dict(stage.surgery.options)
            accepted = inspect.signature(function).parameters
            for option in options:
                if option not in accepted:
                    raise UserError(f"stages.{number}.surgery.options: {stage.surgery.use} takes no {option!r}. {near(option, accepted)}")
            made[number] = functools.partial(function, **options)
    return made


def make_evaluators(recipe: Recipe, val: Pairs, teachers: Mapping[str, Student]) -> list:
    """Recall on val; for bare photos, how well the student agrees with its teacher. And what is only watched."""
    if recipe.data.bare:
        (teacher,) = teachers.values()
        texts = list(dict.fromkeys(val.captions)) if recipe.data.texts else None
        made: list = [Agreement(val, teacher, texts)]
    else:
        made = [Retrieval(val)]
    names = distinct([Path(spec.rstrip("/")).name or spec for spec in recipe.evaluation.watch])
    return made + [Watch(name, watched(spec)) for name, spec in zip(names, recipe.evaluation.watch, strict=True)]


def distinct(names: Sequence[str]) -> list[str]:
    """The names, numbered where two are alike."""
    return [f"{name}-{list(names[: n + 1]).count(name)}" if names.count(name) > 1 else name for n, name in enumerate(names)]


def watched(spec: str) -> Any:
    """The evaluator of a source that is not trained on: zero-shot for labelled pictures, recall for pairs."""
    return ZeroShot(open_labelled(spec)) if is_labelled(spec) else Retrieval(open_pairs(spec))
