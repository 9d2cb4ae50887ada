"""What a reinforced source takes: bytes of a pair by storage format, and the time of the teachers that make it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from clipling.build import needs
from clipling.data.packing import Storage
from clipling.data.reinforced import Sample, TeacherInfo, members
from clipling.data.replay import Record, draw_records, replay
from clipling.data.shard_files import MANIFEST
from clipling.data.views import Augment
from clipling.errors import UserError
from clipling.guides.stored_teacher import StoredTeacher
from clipling.models.dual import Student
from clipling.recipe import Recipe
from clipling.store import read_json

DATACOMPDR = {"teacher": 768, "teacher2": 768}  # the sizes of its two teachers, ViT-L/14, called as `clipling reinforce` calls two
AUGMENTATIONS, SYNTHETIC = 10, 5  # `clipling reinforce` by default; captions that DataCompDR has, and the rules make at most
PICTURE, TAR_BLOCK, PICTURES = 256, 512, 16
WORDS = "a small brown dog runs over the wet sand of a wide beach"
Rate = Callable[[Callable[[], object], int, float], float]


@dataclass(frozen=True)
class StoredPlan:
    """A reinforced source that is planned.

    dims: sizes of the teachers' embeddings; assumed: nobody said which. captions, synthetic: of a pair. teacher_seconds: what all teachers
    take here for one pair (0: not measured), teacher_flop their work; replay_seconds: of making the crops that they see.
    """

    dims: Mapping[str, int]
    captions: float = 1.0
    synthetic: float = SYNTHETIC
    augmentations: int = AUGMENTATIONS
    storage: Storage = "fp16"
    assumed: bool = False
    teacher_seconds: float = 0.0
    teacher_flop: float = 0.0
    replay_seconds: float = 0.0

    def bytes_a_pair(self, storage: Storage) -> float:
        """Beside the picture and its captions, with the tar's own headers: those of a made-up pair as the generator writes it."""
        low, high = math.floor(self.captions), math.ceil(self.captions)
        some, more = (math.floor(self.synthetic), math.ceil(self.synthetic))
        base = _bytes(self.dims, self.augmentations, low, some, storage)
        of_captions = _bytes(self.dims, self.augmentations, high, some, storage) - base
        of_synthetic = _bytes(self.dims, self.augmentations, low, more, storage) - base
        return base + (self.captions - low) * of_captions + (self.synthetic - some) * of_synthetic

    def described(self) -> dict[str, Any]:
        by_storage = {storage: round(self.bytes_a_pair(storage)) for storage in get_args(Storage)}
        return {**dataclasses.asdict(self), "bytes_a_pair": by_storage}


def stored_plan(
    recipe: Recipe,
    captions: float = 1.0,
    models: Mapping[str, Student] | None = None,
    augmentations: int | None = None,
    synthetic: float | None = None,
    storage: Storage | None = None,
) -> StoredPlan | None:
    """What a recipe's source would be; None for a recipe without `reinforced`. models: its teachers, where they are known.

    Raises UserError for numbers that no source has.
    """
    if recipe.reinforced is None:
        return None
    if augmentations is not None and augmentations < 1:
        raise UserError(f"--augmentations {augmentations}: expected at least 1")
    if synthetic is not None and not 0 <= synthetic < 1000:
        raise UserError(f"--synthetic {synthetic:g}: expected 0 or more captions of a pair")
    if models and recipe.reinforced.teachers:
        raise UserError("reinforced.teachers would be ignored: --teacher says which sizes there are. Leave one of them out.")
    seen = any(name.endswith((":syn", ":mix")) for name in needs(recipe))
    return StoredPlan(
        dims={name: model.embed_dim for name, model in models.items()} if models else sizes_of_teachers(recipe),
        captions=captions,
        synthetic=(SYNTHETIC if seen else 0) if synthetic is None else synthetic,
        augmentations=augmentations or AUGMENTATIONS,
        storage=storage or "fp16",
        assumed=not models and not recipe.reinforced.teachers,
    )


def sizes_of_teachers(recipe: Recipe) -> dict[str, int]:
    """Those that the recipe names, or the manifest of its source; otherwise DataCompDR's."""
    manifest = Path(recipe.data.source) / MANIFEST
    said = read_json(manifest) if recipe.data.source and manifest.is_file() else {}
    of_source = {str(one["name"]): int(one["dim"]) for one in said.get("teachers", ())}
    return dict((recipe.reinforced and recipe.reinforced.teachers) or of_source or DATACOMPDR)


def made_up_teachers(recipe: Recipe) -> list[StoredTeacher]:
    """Stored teachers of the right sizes, for a step that is measured; none for a recipe without `reinforced`."""
    if recipe.reinforced is None:
        return []
    sizes = sizes_of_teachers(recipe)
    first = np.cumsum([0, *sizes.values()]).tolist()
    return [StoredTeacher(name, at, dim, 100.0) for (name, dim), at in zip(sizes.items(), first)]


def measured(plan: StoredPlan, models: Mapping[str, Student], rate: Rate, seconds: float) -> StoredPlan:
    """The plan with what the teachers and the making of their crops take for one pair, measured for `seconds` each."""
    spent = flop = made = 0.0
    texts = plan.captions + plan.synthetic
    picture = np.random.default_rng(0).integers(0, 256, (PICTURE, PICTURE, 3), dtype=np.uint8)
    drawn = _records(PICTURES)
    for size in {model.image_size for model in models.values()}:
        made += plan.augmentations / rate(lambda size=size: [replay(picture, one, size) for one in drawn], PICTURES, min(seconds, 1.0))
    for model in models.values():
        for count, of_each, call in (
            (PICTURES, plan.augmentations, _picture_call(model)),
            (4 * PICTURES, texts, lambda model=model: model.encode_texts_in_batches([f"{WORDS} {i}" for i in range(4 * PICTURES)])),
        ):
            with FlopCounterMode(display=False) as counted:
                call()
            flop += of_each * counted.get_total_flops() / count
            spent += of_each / rate(call, count, seconds)
    return dataclasses.replace(plan, teacher_seconds=spent, teacher_flop=flop, replay_seconds=made)


def _picture_call(model: Student) -> Callable[[], object]:
    noise = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (PICTURES, 3, model.image_size, model.image_size), dtype=torch.uint8, generator=noise)

    def call() -> object:
        with model.evaluating():
            return model.encode_image(model.normalise(pictures))

    return call


def _records(count: int) -> list[Record]:
    augment, pair = Augment(scale=(0.08, 1.0)), np.zeros(1, dtype=np.int64)
    return [draw_records(augment, True, 0, view, pair, [(PICTURE, PICTURE)])[0] for view in range(count)]


def _bytes(dims: Mapping[str, int], augmentations: int, captions: int, synthetic: int, storage: Storage) -> int:
    rows = {"image": augmentations, "text": captions, **({"rules": synthetic} if synthetic else {})}
    sample = Sample(
        records=_records(augmentations),
        size=(PICTURE, PICTURE),
        hash="0" * 32,
        teachers=[TeacherInfo(name, dim, 14.285714, "0" * 16) for name, dim in dims.items()],
        synthetic={"rules": [WORDS] * synthetic} if synthetic else {},
        embeddings={name: np.zeros((count, sum(dims.values())), np.float32) for name, count in rows.items()},
        digests={name: "0" * 16 for name in rows if name != "image"},
    )
    return sum(TAR_BLOCK * (1 + -(-len(data) // TAR_BLOCK)) for data in members(sample, storage, False).values())
