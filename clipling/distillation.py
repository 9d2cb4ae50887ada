"""What `clipling distill` makes of its arguments: which terms can learn from what there is."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from clipling.data.photos import read_texts
from clipling.data.source import open_pairs
from clipling.errors import UserError
from clipling.models.hub import open_student
from clipling.recipe import Recipe, TermSpec, with_settings
from clipling.starts import check_names, size_wish

AFFINITY = "clipling.objectives.affinity:Affinity"


def distillation(
    recipe: Recipe,
    teacher: str,
    data: str,
    *,
    text: str = "keep",
    text_size: str = "50%",
    texts: str | None = None,
    captions: str = "auto",
    columns: Mapping[str, str | None] | None = None,
    quiet: bool = False,
) -> Recipe:
    """The recipe `distill` for a teacher and a source.

    text: `keep` (the teacher's text tower, frozen), `prune` (cut to `text_size`, then trained) or `distill` (the student's own). A
    text tower that is trained needs texts: captions, or a list of `texts` that belong to no picture. columns: `image_column`,
    `caption_column` and `group` of the source. UserError for what does not fit together, a teacher that cannot be opened and a
    size that cannot be reached before the source is read; for the source, and where texts are missing, after.
    """
    columns = {name: value for name, value in (columns or {}).items() if value is not None}
    if captions == "ignore" and "caption_column" in columns:
        raise UserError(
            f"--caption-column {columns['caption_column']} would be ignored: --captions ignore reads none. Leave one of them out."
        )
    if texts:
        read_texts(texts)
    _check_teacher(teacher, text, text_size)
    paired = captioned(data, captions, columns, quiet)
    if paired and texts:
        raise UserError("--texts would be ignored: the source has captions. Add --captions ignore, or leave --texts out.")
    if text != "keep" and not (paired or texts):
        raise UserError(
            f"--text {text}: a text tower cannot be trained without texts. Give --texts LIST, or keep the teacher's (--text keep)."
        )
    settings = {
        "teachers.teacher.model": teacher,
        "data.source": data,
        "data.bare": not paired,
        "data.texts": texts,
        **{f"data.{name}": value for name, value in columns.items()},
        "student.text": {"keep": "teacher", "prune": text_size, "distill": "config"}[text],
    }
    if text == "distill":
        settings["student.space"] = "teacher"
    if text != "keep":
        settings |= {"objective.fd.options": {"sides": ["image", "text"]}, "stages.0.freeze": [], "stages.0.freeze_projections": False}
    if paired:
        settings["evaluation.best"] = "mean_recall"
    made = with_settings(recipe, settings)
    return _with_affinity(made) if paired or texts else made


def check_settings(recipe: Recipe, settings: Mapping[str, Any]) -> None:
    """UserError for settings that no recipe of `distillation` has, and for a student that does not exist."""
    check_names(with_settings(_with_affinity(recipe), settings))


def _with_affinity(recipe: Recipe) -> Recipe:
    """Similarities of pictures and texts are learned too: the teacher knows those of texts that belong to no picture as well."""
    return replace(recipe, objective={**recipe.objective, "affinity": TermSpec(use=AFFINITY)})


def _check_teacher(teacher: str, text: str, text_size: str) -> None:
    """Opens the teacher, and finds a smaller text tower where one is wanted."""
    from clipling.surgery.inherit_targets import text_target_of

    share = size_wish(text_size).get("share")
    if share is None:
        raise UserError(f"--text-size {text_size}: expected a share of the teacher's text tower, such as 50%")
    opened = open_student(teacher)
    if text == "prune":
        try:
            text_target_of(opened, share)
        except UserError as error:
            raise UserError(f"--text-size {text_size}: {error}. Give another share, or use --text keep.") from error


def captioned(data: str, captions: str, columns: Mapping[str, str], quiet: bool = True) -> bool:
    """Whether captions are used: as asked, or (`auto`) where nearly all photos have some; then says which, unless `quiet`.

    A caption column that was named is a wish for captions. Photos are read first, so a source without captions is read once.
    """
    if captions == "ignore":
        return False
    if captions == "use" or "caption_column" in columns:
        open_pairs(data, **columns)
        return True
    photos = open_pairs(data, **columns, captions_optional=True)
    share = float((np.diff(photos.offsets) > 0).mean())
    used = share > 0 and _usable(data, columns)
    if used:
        said = "used (--captions ignore leaves them out)"
    elif share:
        said = f"not used: only {100 * share:.0f} % of the photos have some"
    else:
        said = "none: photos alone are learned from"
    if not quiet:
        print(f"captions {said}", file=sys.stderr, flush=True)
    return used


def _usable(data: str, columns: Mapping[str, str]) -> bool:
    try:
        open_pairs(data, **columns)
    except UserError:
        return False
    return True
