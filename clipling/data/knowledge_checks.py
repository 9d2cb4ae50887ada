"""Whether what is stored beside a pair belongs to it: teachers, captions, embeddings, picture. And how often that is not said."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipling.data.images import ImageError, size_and_format
from clipling.data.pairs import Pairs
from clipling.data.reinforced import Sample, TeacherInfo, refuse_changed
from clipling.data.stored_arrays import FormatError
from clipling.errors import UserError

CHANGED = ("refuse", "rescale")


class Checks:
    """All pairs that are joined go through one of these, one after the other: they have to agree with each other too.

    teachers: of all pairs, in the order of their columns. identities: of teachers by name, as far as they are said. dtype: of embeddings.
    pairs: how many there were. rescaled: of how many the picture was resized, and the records with it; replaced: how many have another
    picture than the one that was seen. unverified, unnamed, undigested: how
    many have no hash of their picture, no identity of their teachers, no digest of their captions.
    """

    def __init__(self, teachers: Sequence[TeacherInfo], changed: str) -> None:
        """teachers: where pairs do not say. changed: see Knowledge."""
        if changed not in CHANGED:
            raise UserError(f"reinforced.changed = {changed!r}: expected {' or '.join(CHANGED)}")
        self.teachers, self.changed, self.given = list(teachers), changed, bool(teachers)
        self.identities: dict[str, str] = {}
        self.dtype: np.dtype | None = None
        self.pairs, self.rescaled, self.replaced, self.unverified, self.unnamed, self.undigested = 0, 0, 0, 0, 0, 0

    def check(self, sample: Sample, pairs: Pairs, i: int) -> None:
        """Of one pair its teachers, captions, embeddings and picture. Raises FormatError for what does not belong together.

        Crops of a picture that was resized are scaled where that was asked for; `size` is set to that of the picture.
        """
        self.pairs += 1
        if not sample.teachers:
            raise FormatError("the tars do not say which teachers there were: set reinforced.teachers, such as {first: 768, second: 768}")
        if not self.teachers:
            self.teachers = sample.teachers
        if [(t.name, t.dim, t.scale) for t in sample.teachers] != [(t.name, t.dim, t.scale) for t in self.teachers]:
            said = "reinforced.teachers, which is for tars that do not say it, has" if self.given else "those of other pairs are"
            raise FormatError(f"its teachers are {_named(sample.teachers)}; {said} {_named(self.teachers)}", "other teachers")
        self._identities(sample)
        if len(sample.embeddings["text"]) != len(pairs.captions_of(i)):
            raise FormatError(f"{len(sample.embeddings['text'])} embeddings of {len(pairs.captions_of(i))} captions")
        refuse_changed(sample, "text", pairs.captions_of(i), "its captions")
        self.undigested += "text" not in sample.digests
        if not sample.records:
            raise FormatError("no augmentations")
        for name, rows in sample.embeddings.items():
            self.dtype = self.dtype or rows.dtype
            if rows.dtype != self.dtype:
                raise FormatError(f"the embeddings {name or 'of syn.json'} are {rows.dtype}, others {self.dtype}")
        self._picture(sample, pairs, i)

    def _identities(self, sample: Sample) -> None:
        """Teachers that are called alike and have rows of one size may still be different ones."""
        self.unnamed += not all(teacher.identity for teacher in sample.teachers)
        for teacher in sample.teachers:
            if teacher.identity and self.identities.setdefault(teacher.name, teacher.identity) != teacher.identity:
                raise FormatError(
                    f"its {teacher.name} is another model ({teacher.identity[:8]}) than that of pairs before it "
                    f"({self.identities[teacher.name][:8]}): tars of different teachers lie together, keep them apart",
                    "other teachers",
                )

    def _picture(self, sample: Sample, pairs: Pairs, i: int) -> None:
        """Crops are boxes in pixels of one picture: of another one they would show something else."""
        width, height = _size_of(pairs, i)
        same, was = sample.size in (None, (width, height)), f"{sample.size[0]} x {sample.size[1]}" if sample.size else "of unknown size"
        if sample.hash and sample.hash == pairs.hashes[i]:
            if not same:
                raise FormatError(f"paug.json says that the picture is {was}, and it is {width} x {height}, with the very same bytes")
        elif self.changed == "refuse" and (sample.hash or not same):
            raise FormatError(
                f"the picture was {was} when its crops were drawn and is {width} x {height} now"
                f"{', with other bytes' if sample.hash else ''}; crops are scaled to it with --set reinforced.changed=rescale",
                "changed pictures",
            )
        elif not same:
            sample.records = [record.rescaled(sample.size, (width, height)) for record in sample.records]  # type: ignore[arg-type]
            self.rescaled += 1
        self.unverified += not sample.hash
        self.replaced += not same or (bool(sample.hash) and sample.hash != pairs.hashes[i])
        if not all(record.fits(width, height) for record in sample.records):
            raise FormatError(f"a crop does not lie inside of the picture of {width} x {height}: it is not the one it was drawn for")
        sample.size = (width, height)

    def describe(self) -> dict:
        """For `knowledge.json` of a run."""
        return {
            "teachers": [{"name": t.name, "dim": t.dim, "scale": t.scale, "identity": self.identities.get(t.name)} for t in self.teachers],
            "storage": str(self.dtype),
            "rescaled_pairs": self.rescaled,
            "pairs_without_a_hash": self.unverified,
            "pairs_without_teachers_identities": self.unnamed,
            "pairs_without_digests_of_texts": self.undigested,
        }

    def unchecked(self) -> list[str]:
        """What could not be checked, a line for all of it: of Apple's files, and of those of clipling before it wrote what is needed."""
        counts = {
            "which teachers they are of": self.unnamed,
            "whether captions are those that the teachers read": self.undigested,
            "whether pictures are those that the teachers saw": self.unverified,
        }
        named = [f"{what} ({'all' if count == self.pairs else f'{count:,}'})" for what, count in counts.items() if count]
        return [f"stored knowledge of pairs does not say {', '.join(named)}: that could not be checked"] if named else []


def _named(teachers: Sequence[TeacherInfo]) -> str:
    return ", ".join(f"{t.name} ({t.dim}{f', scale {t.scale:g}' if t.scale is not None else ''})" for t in teachers)


def _size_of(pairs: Pairs, i: int) -> tuple[int, int]:
    try:
        return size_and_format(pairs.image_bytes(i))[:2]
    except ImageError as error:
        raise FormatError(f"the picture cannot be read: {error}") from error
