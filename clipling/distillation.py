"""What `clipling distill` makes of its arguments: which terms can learn from what there is."""

from __future__ import annotations

from clipling.data.source import open_pairs
from clipling.errors import UserError
from clipling.recipe import Recipe, TermSpec, with_settings

AFFINITY = "clipling.objectives.affinity:Affinity"


def distillation(
    recipe: Recipe, teacher: str, data: str, *, text: str = "keep", text_size: str = "50%", texts: str | None = None, captions: str = "auto"
) -> Recipe:
    """The recipe `distill` for a teacher and a source.

    text: `keep` (the teacher's text tower, frozen), `prune` (cut to `text_size`, then trained) or `distill` (the student's own). A
    text tower that is trained needs texts: captions, or a list of `texts` that belong to no picture; UserError without.
    """
    paired = captioned(data, captions)
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
        "student.text": {"keep": "teacher", "prune": text_size, "distill": "config"}[text],
    }
    if text == "distill":
        settings["student.space"] = "teacher"
    if text != "keep":
        settings |= {"objective.fd.options": {"sides": ["image", "text"]}, "stages.0.freeze": [], "stages.0.freeze_projections": False}
    if paired:
        settings["evaluation.best"] = "mean_recall"
    made = with_settings(recipe, settings)
    if paired or texts:  # similarities of pictures and texts: the teacher knows those of texts that belong to no picture, too
        made.objective["affinity"] = TermSpec(use=AFFINITY)
    return made


def captioned(data: str, captions: str) -> bool:
    """Whether captions are to be used: as asked, or (`auto`) where the source has some."""
    if captions == "ignore":
        return False
    try:
        open_pairs(data)
    except UserError:
        if captions == "use":
            raise
        return False
    return True
