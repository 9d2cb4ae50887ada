"""What captions asked for by `--captions` are in a source, counted before any teacher is asked: a mistyped field is a mistake, not a 0."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from clipling.data.pairs import Pairs
from clipling.data.reading import clean_captions, text_of, texts_of
from clipling.errors import MOST, UserError
from clipling.guides.captions import Captioner, Captions, Field, Item, Others, Rewriter, Template
from clipling.guides.rewrite import rewrites

LOOKED_AT = 1000  # pairs whose fields are named


def captions_found(pairs: Pairs, asked: Captions) -> list[str]:
    """Counts captions that need no model and no picture; returns a warning for every kind that some of the pairs have none of.

    Raises UserError for a kind that no pair has any of: what was looked for, and which fields there are.
    """
    warnings = []
    for one in asked.captioners:
        if isinstance(one, Others | Field | Template):
            without = _without(pairs, one)
            if without == len(pairs):
                raise UserError(_nothing(pairs, one))
            if without:
                warnings.append(f"{without:,} of {len(pairs):,} pairs have no captions of {one.origin!r} ({one.made_by})")
        elif isinstance(one, Rewriter) and one.function is rewrites and not any(any(made) for made in _of_each(pairs, one)):
            raise UserError(
                f"--captions rules: no caption of the {len(pairs):,} pairs was rewritten. The rules are for English captions of three "
                "words and more; for others give a function: --captions ./mine.py:rewrite"
            )
    return warnings


def _without(pairs: Pairs, one: Captioner) -> int:
    return sum(not any(made) for made in _of_each(pairs, one))


def _of_each(pairs: Pairs, one: Captioner) -> Iterator[Sequence[Sequence[str]]]:
    """The captions of one kind of each pair, as they would be stored."""
    alone = Captions([one])
    for i in range(len(pairs)):
        yield list(alone.of([Item(i, pairs.captions_of(i), pairs.extras[i], lambda i=i: pairs.image(i))])[0].values())


def _nothing(pairs: Pairs, one: Captioner) -> str:
    count = f"the {len(pairs):,} pairs of {pairs.name}"
    if isinstance(one, Others):
        return f"--captions others: {count} have one caption each, so there are no others. Leave it out, or make some: --captions rules"
    assert isinstance(one, Field | Template)
    kind = "field" if isinstance(one, Field) else "template"
    fields = fields_of(pairs, kind)
    if one.name in fields:
        return f"--captions {kind}:{one.name}: what the field {one.name!r} says are the pairs' own captions, no others. Leave it out."
    more = f" and {len(fields) - MOST} more" if len(fields) > MOST else ""
    there = f"There is: {', '.join(fields[:MOST])}{more}." if fields else "They have no such fields besides their captions."
    return f"--captions {kind}:{one.name}: none of {count} has a {'text' if kind == 'field' else 'label'} in a field {one.name!r}. {there}"


def fields_of(pairs: Pairs, kind: str = "field") -> list[str]:
    """Names of fields with texts (kind `template`: with one text) in the first pairs, such as `lang.de`."""
    leaves = (leaf for extras in islice(pairs.extras, LOOKED_AT) for leaf in _leaves(extras))
    return sorted({name for name, value in leaves if _has_text(value, kind)})


def _has_text(value: Any, kind: str) -> bool:
    if kind == "field":
        return bool(clean_captions(texts_of(value) or []))
    return isinstance(value, str | int | float) and bool(text_of(value))


def _leaves(record: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value
