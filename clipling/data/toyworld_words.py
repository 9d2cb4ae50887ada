"""The words of ToyWorld: forms of captions, synonyms, and all words there are.

Fields of a form: A and B are objects, `list` is all of them, `rel` is how A lies to B, N how many objects there are, G the
background, `place` the ninth of the picture that A is in.
"""

from __future__ import annotations

import re

from clipling.data.toyworld_scene import BACKGROUNDS, COLOURS, PLACES, RELATIONS, SHAPES, SIZES

SINGLE = ("{A}", "{A} on {G}", "there is {A}", "a picture of {A}", "on {G}, there is {A}", "a picture of {A} on {G}")
RELATED = (
    "{A} {rel} {B}",
    "{A} {rel} {B} on {G}",
    "there is {A} {rel} {B}",
    "{A} is {rel} {B}",
    "on {G}, {A} is {rel} {B}",
    "a picture of {A} {rel} {B}",
)
LISTED = ("{list}", "{list} on {G}", "{N} shapes: {list}", "{N} shapes on {G}: {list}")
PLACED = "{A} {place}"
ONE, SEVERAL = "{N} shape: {list}", "{N} shapes: {list}"

COUNTS = {1: "one", 2: "two", 3: "three", 4: "four"}
RELATION_WORDS = dict(zip(RELATIONS, ("to the left of", "to the right of", "above", "below", "inside", "around")))
PLACE_WORDS = {place: f"in the {place}" for place in PLACES} | {
    "top": "at the top",
    "bottom": "at the bottom",
    "left": "on the left",
    "right": "on the right",
}
ADJECTIVES = dict(zip(BACKGROUNDS, ("plain", "striped", "dotted", "checked", "shaded", "noisy", "gridded", "wavy", "bricked", "rayed")))
# Each stands for one word (or the words of one relation) and is nothing else's synonym or name.
SYNONYMS = {
    **{"circle": "disc", "square": "box", "triangle": "wedge", "diamond": "rhombus", "star": "pentagram", "cross": "plus"},
    **{"ring": "hoop", "heart": "valentine", "moon": "crescent", "hexagon": "honeycomb"},
    **{"red": "scarlet", "green": "jade", "blue": "cobalt", "yellow": "golden", "black": "jet", "white": "snowy"},
    **{"purple": "violet", "pink": "rosy", "brown": "chestnut", "teal": "turquoise"},
    **{"small": "tiny", "large": "big", "background": "backdrop"},
    **{"to the left of": "on the left side of", "to the right of": "on the right side of"},
    **{"above": "over", "below": "under", "inside": "within", "around": "surrounding"},
}


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def vocabulary() -> list[str]:
    """Every word that a caption may hold, sorted."""
    forms = [re.sub(r"\{\w+\}", " ", form) for form in (*SINGLE, *RELATED, *LISTED, PLACED, ONE)]
    spoken = (*PLACE_WORDS.values(), *COUNTS.values(), *RELATION_WORDS.values(), *ADJECTIVES.values(), "background", "and", "are")
    texts = (*forms, *SHAPES, *COLOURS, *SIZES, *spoken, *SYNONYMS, *SYNONYMS.values())
    return sorted({word for text in texts for word in words_of(text)})
