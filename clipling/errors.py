"""The one kind of error that is the user's to mend, and near matches for names that were mistyped."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST = 40  # names that are listed in a message


class UserError(Exception):
    """A user's mistake.

    The message says what was given, what was expected and what to do. The command line prints it without a
    traceback and exits with code 2.
    """


def near(name: str, allowed: Iterable[str], otherwise: str = "Allowed") -> str:
    """A sentence that helps with a mistyped `name`: close matches first, otherwise what is allowed (of many the first, and how many).

    otherwise: how that list begins.
    """
    allowed = sorted(set(allowed))
    close = difflib.get_close_matches(name, allowed, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(repr(c) for c in close)}?"
    more = f" and {len(allowed) - MOST} more" if len(allowed) > MOST else ""
    return f"{otherwise}: {', '.join(allowed[:MOST])}{more}."


def missing_extra(what: str, extra: str) -> UserError:
    """The error for an optional dependency that is not installed."""
    return UserError(f"{what} is not installed. Install it with: pip install 'clipling[{extra}]'")
