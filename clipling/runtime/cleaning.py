"""What is done to a text before its tokenizer sees it: open_clip's cleaning, without open_clip."""

from __future__ import annotations

import html
import string
from collections.abc import Callable

from clipling.errors import missing_extra

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def cleaner(rule: str) -> Callable[[str], str]:
    """The cleaning of a rule of `manifest.CLEANING`.

    `whitespace`: encodings mended (ftfy), HTML entities resolved twice, blanks folded; `lower`: the same in lower case (CLIP);
    `canonicalize`: mended, resolved, without punctuation, lower case, blanks folded (SigLIP); `none`: the text as it is.
    """
    return {"whitespace": _whitespace, "lower": _lower, "canonicalize": _canonicalize, "none": str}[rule]


def _whitespace(text: str) -> str:
    # Mending changes nothing in plain printable ASCII without entities, and costs ten times as much as the rest.
    plain = text.isascii() and text.isprintable() and "&" not in text
    return " ".join((text if plain else _mended(text)).split())


def _lower(text: str) -> str:
    return _whitespace(text).lower()


def _canonicalize(text: str) -> str:
    return " ".join(_mended(text).replace("_", " ").translate(_NO_PUNCTUATION).lower().split())


def _mended(text: str) -> str:
    try:
        import ftfy
    except ImportError as error:
        raise missing_extra("ftfy, which mends texts,", "runtime") from error
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()
