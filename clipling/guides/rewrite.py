"""Rewrites of English captions by rules: no model, no network, the same every time.

A stand-in for LaCLIP's language models (Fan et al., arXiv 2305.20088) where there is none: other words for common ones, another order of
clauses, another frame around the whole. What it does not know it leaves alone.
"""

from __future__ import annotations

import re

# Words of captions with others that say the same of a picture.
OTHER_WORDS = {
    "picture": "image", "photo": "photograph", "man": "guy", "woman": "lady", "child": "kid", "children": "kids",
    "boy": "young boy", "girl": "young girl", "people": "persons", "dog": "canine", "dogs": "canines", "puppy": "young dog",
    "bike": "bicycle", "bicycle": "bike", "street": "road", "road": "street", "ocean": "sea", "big": "large", "large": "big",
    "little": "small", "small": "little", "running": "racing", "runs": "races", "jumping": "leaping", "jumps": "leaps",
    "walking": "strolling", "walks": "strolls", "holding": "carrying", "holds": "carries", "looking": "gazing", "looks": "gazes",
    "near": "close to", "beside": "next to", "grass": "lawn", "rock": "stone", "rocks": "stones", "shirt": "top",
    "wearing": "dressed in", "wears": "has on", "watching": "observing", "crowd": "group of people", "several": "a few",
    "standing": "posing", "ball": "round ball", "forest": "woods", "woods": "forest", "car": "automobile", "boat": "vessel",
    "climbing": "scaling", "climbs": "scales", "playing": "having fun", "plays": "has fun", "smiling": "grinning",
    "smiles": "grins", "outside": "outdoors", "outdoors": "outside", "two": "a pair of", "snowy": "snow-covered",
}  # fmt: skip
FRAMES = ("a photo of {}", "in this picture, {}", "an image showing {}", "here we see {}", "{}, as seen in a photograph")
# A place at the end of a caption can come first.
_PLACE = re.compile(
    r"^(?P<what>.{8,}?)\s+(?P<place>(?:in|on|at|through|across|along|near|beside|over|under|behind) (?:the|a|an|some) [\w -]+)$"
)
_BEING = re.compile(r"\b(?:is|are) (?=\w+ing\b)")
_WORD = re.compile(r"[A-Za-z]+")


def rewrites(caption: str) -> list[str]:
    """Up to three other wordings of an English caption, none of them the caption itself; none of one that has fewer than three words."""
    plain = caption.strip().rstrip(" .!")
    if len(plain.split()) < 3:
        return []
    found = [_other_words(plain), _other_order(plain), _framed(_BEING.sub("", plain))]
    return [text for text in dict.fromkeys(found) if text and text != plain]


def _other_words(text: str) -> str:
    def other(match: re.Match[str]) -> str:
        word = match[0]
        said = OTHER_WORDS.get(word.lower(), word)
        return said[:1].upper() + said[1:] if word[:1].isupper() else said

    return _WORD.sub(other, text)


def _other_order(text: str) -> str:
    """`in the snow, a dog runs` of `A dog runs in the snow`; the text itself where no place stands at its end."""
    found = _PLACE.match(text)
    return f"{found['place']}, {_lower(found['what'])}" if found else text


def _framed(text: str) -> str:
    # The same caption always gets the same frame, captions of a picture different ones.
    return FRAMES[sum(map(ord, text)) % len(FRAMES)].format(_lower(text))


def _lower(text: str) -> str:
    """Without the capital of a sentence's first word; names and abbreviations keep theirs where they can be told."""
    return text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text
