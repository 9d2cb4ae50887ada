"""Rewrites of English captions by rules: no model, no network, the same every time.

A stand-in for LaCLIP's language models (Fan et al., arXiv 2305.20088) where there is none: other words for common ones, another order of
clauses, another frame around the whole. What it does not know it leaves alone, and it never puts a word beside itself.
"""

from __future__ import annotations

import re
from itertools import pairwise

from clipling.guides.rewrite_words import AFTER_DETERMINERS, DETERMINERS, NOT_BEFORE, ONLY_BEFORE, OTHER_WORDS

VERSION = 2  # part of the manifest: raise it when any caption would be rewritten in another way
FRAMES = ("a photo of {}", "in this picture, {}", "an image showing {}", "here we see {}", "{}, as seen in a photograph")
# A place at the end of a caption can come first.
_PLACE = re.compile(
    r"^(?P<what>.{8,}?)\s+(?P<place>(?:in|on|at|through|across|along|near|beside|over|under|behind) (?:the|a|an|some) [\w -]+)$"
)
_CLAUSE = re.compile(r" (?:is|are|was|were|that|who|which|while|as) ")  # more than a place
_THERE = re.compile(r"^there (?:is|are) ", re.IGNORECASE)
_BEING = re.compile(r"\b(?:is|are) (?=\w+ing\b)")
# Not parts of `T-shirt`, `man-made`, `people's`, `4x4`.
_WORD = re.compile(r"(?<![\w'’-])[A-Za-z]+(?![\w-])(?!['’]\w)")
_TOKEN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_VOWEL = re.compile(r"(?!one\b|uni|use|eu)[aeiou]|hour|honest|heir", re.IGNORECASE)


def rewrites(caption: str) -> list[str]:
    """Up to three other wordings of an English caption, none of them the caption itself; none of one that has fewer than three words."""
    plain = caption.strip().rstrip(" .!")
    if len(plain.split()) < 3:
        return []
    found = [_other_words(plain), _other_order(plain), *_framed(_BEING.sub("", _THERE.sub("", plain)), plain)]
    return [text for text in dict.fromkeys(found) if text and text != plain and doubled(text) <= doubled(plain)]


def doubled(text: str) -> set[str]:
    """Words that stand twice in a row, whatever their case and what is between them."""
    words = [word.lower() for word in _TOKEN.findall(text)]
    return {one for one, other in pairwise(words) if one == other}


def _other_words(text: str) -> str:
    """Word after word, left to right: whether one is replaced depends on what stands before it by then, and what follows it."""
    made, end = "", 0
    for match in _WORD.finditer(text):
        made += text[end : match.start()]
        said = _replacement(match[0], made, text[match.end() :])
        made, end = (_article(made, said) if said != match[0] else made) + said, match.end()
    return made + text[end:]


def _replacement(word: str, before: str, after: str) -> str:
    """The other word, or the word itself where the other would not stand well between `before` and `after`."""
    said = OTHER_WORDS.get(word.lower())
    if said is None:
        return word
    last, following = _last(before), _first(after)
    beside = re.match(r"\s+[^\W_]", after) is not None  # the next word follows at once, without a comma
    next_word = following if beside else ""
    if next_word in NOT_BEFORE.get(word.lower(), ()) or (beside and next_word not in ONLY_BEFORE.get(word.lower(), {next_word})):
        return word
    if word.lower() in AFTER_DETERMINERS and (last in DETERMINERS or not beside):
        return word
    own = _TOKEN.findall(said.lower())
    if own[0] == last or own[-1] == following:  # a word beside itself
        return word
    return said[:1].upper() + said[1:] if word[:1].isupper() else said


def _last(text: str) -> str:
    return next(reversed(_TOKEN.findall(text[-80:].lower())), "")


def _first(text: str) -> str:
    found = _TOKEN.search(text[:80].lower())
    return found[0] if found else ""


def _article(before: str, said: str) -> str:
    """`before` with the `a` or `an` at its end that suits the word that follows now."""
    found = re.search(r"(?<![\w'’-])([Aa])n?(\s+)$", before)
    if found is None:
        return before
    return before[: found.start()] + found[1] + ("n" if _VOWEL.match(said) else "") + found[2]


def _other_order(text: str) -> str:
    """`in the snow, a dog runs` of `A dog runs in the snow`; the text itself where no place stands at its end."""
    found = _PLACE.match(text)
    if found and _CLAUSE.search(found["place"]):
        return text
    return f"{found['place']}, {_lower(found['what'])}" if found else text


def _framed(text: str, plain: str) -> list[str]:
    """The text in a frame; in none where every frame would say a word twice."""
    # The same caption always gets the same frame, captions of a picture different ones.
    first = sum(map(ord, text)) % len(FRAMES)
    found = (frame.format(_lower(text)) for frame in FRAMES[first:] + FRAMES[:first])
    return [text for text in found if doubled(text) <= doubled(plain)][:1]


def _lower(text: str) -> str:
    """Without the capital of a sentence's first word; names and abbreviations keep theirs where they can be told."""
    return text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text
