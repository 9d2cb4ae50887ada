"""Tova, ToyWorld's second language: invented words, one for each English one, in the opposite order between two stops.

What is said in it is what is said in English and nothing else, so a text encoder must learn both its words and its order:
"a red circle, a blue star" becomes the words for "circle red a, star blue a".
"""

from __future__ import annotations

import re
from functools import cache
from hashlib import blake2b
from itertools import product

from clipling.data.toyworld_words import vocabulary

LANGUAGE = "tova"
_SYLLABLES = ["".join(pair) for pair in product("bdfgklmnprstvz", "aeiou")]
_STOPS = re.compile(r"([,:.] ?)")


@cache
def dictionary() -> dict[str, str]:
    """Tova words of two syllables by English word: a bijection that a further word changes little."""
    free = ["".join(pair) for pair in product(_SYLLABLES, repeat=2)]
    english = vocabulary()
    free = [word for word in free if word not in english]
    found: dict[str, str] = {}
    taken: set[str] = set()
    for word in english:
        place = int.from_bytes(blake2b(word.encode(), digest_size=8, person=b"tova").digest(), "little")
        while free[place % len(free)] in taken:
            place += 1
        found[word] = free[place % len(free)]
        taken.add(found[word])
    return found


def translate(text: str) -> str:
    """A caption in Tova. Raises ValueError for a word that no caption holds."""
    return _translated(text, dictionary())


def translate_back(text: str) -> str:
    """The caption that `translate` made this of. Raises ValueError for a word that is not Tova."""
    return _translated(text, {tova: english for english, tova in dictionary().items()})


def _translated(text: str, words: dict[str, str]) -> str:
    parts = _STOPS.split(text.lower())
    try:
        made = [part if n % 2 else " ".join(words[word] for word in reversed(part.split())) for n, part in enumerate(parts)]
    except KeyError as error:
        raise ValueError(f"{error.args[0]!r} is not a word of ToyWorld's language") from error
    # Sentences begin with a capital in either language; captions that are no sentence hold none.
    return "".join(_capital(part) if "." in text and (not n or "." in parts[n - 1]) else part for n, part in enumerate(made))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
