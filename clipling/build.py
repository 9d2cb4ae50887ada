"""Makes the parts of a run from its recipe: student, guide, objective, evaluators."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any

import torch

from clipling.data.pairs import Pairs
from clipling.data.views import Augment
from clipling.errors import UserError, near
from clipling.evals.evaluators import Retrieval
from clipling.guides.bank import Bank, bank_for
from clipling.guides.guidance import BankGuide
from clipling.guides.open import open_guide
from clipling.guides.progress import Progress, ShowProgress, silent
from clipling.models.dual import Student
from clipling.models.hub import new_student, open_student, zoo_config
from clipling.objectives.load import load_object
from clipling.objectives.term import Objective, Term
from clipling.recipe import GuideSpec, Recipe, TermSpec


def make_student(recipe: Recipe, pairs: Pairs) -> Student:
    spec = recipe.student
    config: Any = spec.config
    if spec.config == "init":
        if "model" not in spec.init:
            raise UserError("student.config = 'init' means the config of the model that training starts from: set student.init.model too")
        config = open_student(spec.init["model"]).config
    captions = pairs.captions if spec.vocabulary == "restricted" else None
    student = new_student(config, seed=recipe.seed, init=spec.init or None, vocabulary=captions)
    student.set_norm(spec.norm)
    return student


def check_names(recipe: Recipe) -> None:
    """Refuses a student that does not exist before any data is read."""
    name = recipe.student.config
    if name != "init" and not name.endswith(".json"):
        zoo_config(name)


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


def make_objective(recipe: Recipe, student: Student, guide: Any | None) -> Objective:
    """The sum of terms. Heads start from the recipe's seed, whatever ran before."""
    dims = {"student": student.embed_dim, **(guide.dims if guide else {})}
    terms: dict[str, Term] = {}
    weights: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        for name, spec in active_terms(recipe).items():
            torch.manual_seed(recipe.seed)
            terms[name] = make_term(name, spec)
            terms[name].setup(dims)
            weights[name] = spec.weight
    return Objective(terms, weights)


def make_guide(recipe: Recipe, source: Pairs, train: Pairs, augment: Augment, quiet: bool) -> BankGuide | None:
    """The bank (built when absent), its tables over the training pairs only, and the look-up."""
    spec = recipe.guide
    if spec is None:
        return None
    progress = silent if quiet else ShowProgress()
    folder = bank_folder(recipe, source, train, augment, progress)
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
    )


def bank_folder(recipe: Recipe, source: Pairs, train: Pairs, augment: Augment, progress: Progress) -> Path:
    """The bank that was given, or the cached one. Crops (`active: views`) belong to the training pairs in their order."""
    spec = recipe.guide
    assert spec is not None
    if spec.bank != "auto":
        check_bank(spec)
        return Path(spec.bank)
    views = {"views": spec.views, "augment": augment, "seed": recipe.seed} if spec.active == "views" else {}
    over = train if views else source
    return bank_for(over, spec.image_encoder, spec.text_encoder, spec.image_size, progress=progress, **views)


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


def make_evaluators(recipe: Recipe, val: Pairs, student: Student) -> list:
    return [Retrieval(val)]
