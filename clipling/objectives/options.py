"""Options of terms that are names: one of some, or several of some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from clipling.errors import UserError


def one_of(name: str, value: str, kind: Any) -> Any:
    """`value` of the option `name`, which has to be one of the strings of the Literal `kind`; otherwise UserError."""
    if value not in get_args(kind):
        raise UserError(f"{name}={value!r}: expected one of {', '.join(map(repr, get_args(kind)))}")
    return value


def some_of(name: str, values: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """`values` of the option `name` in the order of `known`: at least one, each known and once; otherwise UserError."""
    if isinstance(values, str) or not values or len(set(values)) < len(values) or set(values) - set(known):
        raise UserError(f"{name}={values!r}: expected a list of some of {', '.join(map(repr, known))}, each once")
    return tuple(one for one in known if one in values)
