"""What pydantic says of a user's file, in our words."""

from __future__ import annotations

import typing
from typing import Any

_MANY = {str: "texts", int: "whole numbers", float: "numbers"}
_WORDS = {"dict_type": "expected a mapping", "string_type": "expected text", "finite_number": "expected a finite number"}


def mistake(kind: Any, error: Any) -> str:
    """`PLACE is GIVEN: what was expected`, of the first mistake that a ValidationError of the dataclass `kind` names."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"])) or "the whole"
    return f"{place} is {repr(first.get('input'))[:200]}: {_expected(kind, first)}"


def _expected(kind: Any, first: dict[str, Any]) -> str:
    if first["type"] not in ("tuple_type", "list_type"):
        return _WORDS.get(first["type"], str(first["msg"]))
    hint = typing.get_type_hints(kind).get(str(first["loc"][0])) if first["loc"] else None
    listed = next((h for h in (hint, *typing.get_args(hint)) if typing.get_origin(h) in (tuple, list)), None)
    of = _MANY.get(typing.get_args(listed)[0]) if listed is not None and len(first["loc"]) == 1 else None
    return f"expected a list of {of}" if of else "expected a list"
