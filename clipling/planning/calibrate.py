"""Short measurements on this machine: how quick training, frozen encoders, the search of neighbours and decoding are."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from clipling.build import active_terms, make_objective, make_term, needs
from clipling.data.images import decode
from clipling.data.loader import HostBatch
from clipling.data.views import eval_pixels
from clipling.engine.batch import BatchMaker
from clipling.engine.compute import prepare
from clipling.engine.memory import freed_memory_kept
from clipling.engine.optim import build_optimiser, set_rate
from clipling.engine.runtime import Runtime
from clipling.engine.step import Stepper
from clipling.errors import UserError
from clipling.guides.rows import unit
from clipling.guides.search import ExactSearch
from clipling.guides.stored_teacher import StoredTeacher
from clipling.models.dual import Student
from clipling.models.hub import new_student
from clipling.objectives.contrastive import Clip
from clipling.objectives.term import Objective
from clipling.planning.hours import EXACT_UP_TO, Rates
from clipling.planning.sizes import Shape
from clipling.planning.stored import StoredPlan, made_up_teachers, measured, stored_plan
from clipling.recipe import Recipe, with_settings
from clipling.starts import student_config

SECONDS = 2.0  # of each measurement
MOST_AT_ONCE = 64  # pairs of a measured step
SEARCH = (16_384, 2_048, 384)  # rows, queries, features
PICTURE = 256
WORDS = ("a", "small", "brown", "dog", "runs", "over", "the", "wet", "sand", "of", "a", "wide", "beach", "at", "dusk")
FORWARD_AND_BACKWARD = 3  # passes of the forward's cost


@dataclass(frozen=True)
class Calibration:
    """What a plan is made from."""

    shape: Shape
    rates: Rates
    device: str
    threads: int
    stored: StoredPlan | None = None


def calibrate(
    recipe: Recipe,
    captions: float = 1.0,
    seconds: float = SECONDS,
    stored: StoredPlan | None = None,
    teachers: Mapping[str, Student] | None = None,
) -> Calibration:
    """Measures the recipe's student and encoders on made-up pairs, `seconds` each. captions: of a pair. stored: the reinforced source of a
    recipe that reads one; teachers: the models that make it, measured as well.

    Raises UserError for a recipe whose student is cut out of a teacher: there is nothing to measure yet.
    """
    spec = recipe.student
    if spec.inherit is not None or spec.text != "config" or spec.space != "own" or spec.config in ("init", "inherit"):
        raise UserError(
            f"the recipe {recipe.name!r} makes its student from a model that is opened only in training. Plan with a student of its size: "
            "--set student.config=NAME student.inherit=null student.text=config student.space=own"
        )
    stored = stored or stored_plan(recipe, captions)
    if stored is not None:
        recipe = with_settings(recipe, {"reinforced.teachers": dict(stored.dims)})
    runtime = Runtime(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    student = new_student(student_config(recipe, {}), seed=recipe.seed).to(runtime.device).train()
    with freed_memory_kept():
        train, per_sample = training(student, recipe, runtime, seconds)
        image, text, dims, flop = encoders(recipe, seconds)
        if stored is not None and teachers:
            stored = measured(stored, {name: model.to(runtime.device) for name, model in teachers.items()}, rate, seconds)
    shape = Shape(
        parameters=student.sizes()["total"],
        heads=heads(recipe, student, dims),
        image_size=student.image_size,
        context_length=student.context_length,
        batch=recipe.optimiser.batch if recipe.optimiser.micro_batch is None else recipe.optimiser.micro_batch,
        sample_bytes=per_sample,
        captions=captions,
        crops=recipe.data.crop[0] < 1,
        ema=recipe.optimiser.ema is not None,
        image_dim=dims["image"],
        text_dim=dims["text"],
        views=recipe.guide.views if recipe.guide and recipe.guide.active == "views" else 0,
        k=recipe.guide.k if recipe.guide else 0,
        by_caption=bool(recipe.guide and recipe.guide.query == "caption"),
        stored_bytes=stored.bytes_a_pair(stored.storage) if stored else 0.0,
        augmentations=stored.augmentations if stored else 0,
        synthetic=stored.synthetic if stored else 0.0,
    )
    own_flop = train_flop(student, len(texts_of_step(recipe)))
    if recipe.guide is not None and recipe.guide.active == "online":  # the frozen encoder sees every crop
        train, own_flop = 1 / (1 / train + 1 / image), own_flop + flop[0]
    decoded = decoding(student.image_size, seconds)
    making = (stored.teacher_seconds, stored.teacher_flop, stored.replay_seconds + 1 / decoded) if stored else ()
    rates = Rates(train, searching(runtime.device, seconds), decoded, own_flop, image, text, *flop, *making)
    if runtime.device.type == "cuda":
        rates = replace(rates, exact_up_to=EXACT_UP_TO["cuda"], cells_search=searching(torch.device("cpu"), seconds))
    return Calibration(shape, rates, runtime.device.type, torch.get_num_threads(), stored)


def rate(call: Callable[[], object], count: int, seconds: float) -> float:
    """Times a second that `count` things are done: the median of calls for about `seconds`, after one that does not count."""
    call()
    spent: list[float] = []
    began = time.perf_counter()
    while len(spent) < 2 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return count / statistics.median(spent)


def training(student: Student, recipe: Recipe, runtime: Runtime, seconds: float) -> tuple[float, float]:
    """Pairs a second of a training step (loss of `clip`, or of what learns from stored teachers: guidance adds a few percent), and bytes of
    activations of one pair."""
    n = min(MOST_AT_ONCE, recipe.optimiser.batch)
    teachers = made_up_teachers(recipe)
    objective = measured_objective(student, recipe, teachers).to(runtime.device)
    prepare(student, objective, recipe.compute)
    host = made_up(student, n, texts_of_step(recipe), sum(sum(teacher.dims.values()) for teacher in teachers))
    stepper = Stepper(student, objective, BatchMaker(None, [], runtime, teachers), runtime, recipe.seed, None, recipe.optimiser.autocast)
    optimiser = build_optimiser(student, objective, recipe.optimiser)
    set_rate(optimiser, 1e-5)

    def step() -> None:
        stepper(host, measure=False)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return rate(step, n, seconds), activation_bytes(student, host) / n


def activation_bytes(student: Student, host: HostBatch) -> float:
    """Bytes that a forward pass of both towers keeps for the backward pass, weights not counted."""
    weights = {p.untyped_storage().data_ptr() for p in student.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        held = student.encode_image(student.normalise(host.images)), *map(student.encode_text, host.more_tokens.values() or [host.tokens])
    del held
    return float(sum(kept.values()))


def measured_objective(student: Student, recipe: Recipe, teachers: Sequence[StoredTeacher]) -> Objective:
    """The recipe's terms but those that need a bank, where it learns from stored teachers; otherwise CLIP's loss."""
    if not teachers:
        return Objective({"clip": Clip()}, {"clip": 1.0})
    dims = {"student": student.embed_dim}
    for teacher in teachers:
        dims |= teacher.dims
    specs = active_terms(recipe)
    terms = {name: make_term(name, spec) for name, spec in specs.items()}
    terms = {name: term for name, term in terms.items() if not any(n.startswith("neighbours.") for n in term.needs)}
    for term in terms.values():
        term.setup(dims)
    return Objective(terms, {name: specs[name].weight for name in terms})


def texts_of_step(recipe: Recipe) -> list[str]:
    """The views of captions that the student encodes at each step: `main` (the pairs' own), `syn`, `mix`."""
    asked = {name.partition(":")[2] or "main" for name in needs(recipe) if name.partition(":")[0] == "student.text"}
    return sorted(asked) if recipe.reinforced is not None else ["main"]


def train_flop(student: Student, texts: int = 1) -> float:
    """FLOP of one pair, forward and backward; texts: how many captions of it a step encodes."""
    host = made_up(student, 8)
    with FlopCounterMode(display=False) as counted, student.evaluating():
        student.encode_image(student.normalise(host.images))
        for _ in range(texts):
            student.encode_text(host.tokens)
    return FORWARD_AND_BACKWARD * counted.get_total_flops() / 8


def made_up(student: Student, n: int, views: Sequence[str] = ("main",), stored: int = 0) -> HostBatch:
    """A batch of noise with captions of 5 to 15 words. views: of captions; stored: the size of rows that teachers stored, 0 for none."""
    size, rng = student.image_size, np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8)).permute(0, 3, 1, 2)
    tokens = student.tokenise([" ".join(WORDS[: 5 + i % 11]) for i in range(n)])
    numbers = np.arange(n, dtype=np.int64)
    host = HostBatch(0, 0, 0.0, numbers, numbers, numbers, tokens, images, np.zeros((n, 4)), np.zeros(n, dtype=bool))
    if stored:
        host.more_tokens = dict.fromkeys(views, tokens)
        names = ["image", *("text" if view == "main" else f"text:{view}" for view in views)]
        host.stored = {name: torch.nn.functional.normalize(torch.rand(n, stored), dim=1) for name in names}
    return host


def encoders(recipe: Recipe, seconds: float) -> tuple[float, float, dict[str, int], tuple[float, float]]:
    """Pictures and captions a second of the recipe's frozen encoders, their sizes and FLOP of one; zeros without a guide."""
    spec = recipe.guide
    if spec is None:
        return 0.0, 0.0, {"image": 0, "text": 0}, (0.0, 0.0)
    from clipling.guides.encoders import open_image_encoder, open_text_encoder

    image, text = open_image_encoder(spec.image_encoder, spec.image_size), open_text_encoder(spec.text_encoder)
    side = image.preprocess["size"]
    pictures = torch.randint(0, 256, (16, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    texts = [" ".join(WORDS[: 5 + i % 11]) for i in range(64)]
    with FlopCounterMode(display=False) as image_flop:
        image.encode(pictures)
    with FlopCounterMode(display=False) as text_flop:
        text.encode(texts)
    rates = rate(lambda: image.encode(pictures), 16, seconds), rate(lambda: text.encode(texts), 64, seconds)
    return *rates, {"image": image.dim, "text": text.dim}, (image_flop.get_total_flops() / 16, text_flop.get_total_flops() / 64)


def heads(recipe: Recipe, student: Student, dims: dict[str, int]) -> int:
    """Parameters of the terms. Those of terms that need a teacher's sizes are not known before it is opened, and not counted."""
    if recipe.teachers:
        return 0
    guide = SimpleNamespace(dims={side: size for side, size in dims.items() if size}) if recipe.guide else None
    return sum(p.numel() for p in make_objective(recipe, student, guide, made_up_teachers(recipe)).parameters())


def searching(device: torch.device, seconds: float) -> float:
    """FLOP a second of products that the exact search of neighbours reaches, everything else that it does counted in."""
    columns, queries, dim = SEARCH
    rng = np.random.default_rng(0)
    spread = 1 / np.sqrt(np.arange(1, dim + 1, dtype=np.float32))  # features have few dimensions that matter
    rows = unit(rng.standard_normal((columns, dim), dtype=np.float32) * spread).astype(np.float16)
    search = ExactSearch(rows, np.arange(columns), [()] * columns, str(device))
    return rate(lambda: search.of_columns(np.arange(queries), 5), 2 * queries * columns * dim, min(seconds, 1.0))


def decoding(size: int, seconds: float) -> float:
    """Pictures of 256 pixels a second that one core decodes and resizes to the student's size."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((PICTURE, PICTURE), Image.Resampling.BICUBIC)
    held = io.BytesIO()
    smooth.save(held, "JPEG", quality=90)
    cfg = {"size": round(size * 1.25), "resize_mode": "squash"}

    def some() -> None:
        for _ in range(8):
            eval_pixels(decode(held.getvalue()), cfg)

    return rate(some, 8, min(seconds, 1.0))
