"""What a caption of ToyWorld means, read from its words and judged by pixels: knows nothing of how captions are made."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

SHAPES = {
    **{"circle": "disc", "square": "box", "triangle": "wedge", "diamond": "rhombus", "star": "pentagram", "cross": "plus"},
    **{"ring": "hoop", "heart": "valentine", "moon": "crescent", "hexagon": "honeycomb"},
}
COLOURS = {
    **{"red": "scarlet", "green": "jade", "blue": "cobalt", "yellow": "golden", "black": "jet", "white": "snowy"},
    **{"purple": "violet", "pink": "rosy", "brown": "chestnut", "teal": "turquoise"},
}
SIZES = {"small": "tiny", "large": "big"}
BACKGROUNDS = {
    **{"plain": "plain", "striped": "stripes", "dotted": "dots", "checked": "checks", "shaded": "gradient"},
    **{"noisy": "noise", "gridded": "grid", "wavy": "waves", "bricked": "bricks", "rayed": "rays"},
}
RELATIONS = {
    **{"to the left of": "left", "on the left side of": "left", "to the right of": "right", "on the right side of": "right"},
    **{"above": "above", "over": "above", "below": "below", "under": "below", "inside": "inside", "within": "inside"},
    **{"around": "around", "surrounding": "around"},
}
PLACES = {
    "in the upper left": (0, 0),
    "at the top": (1, 0),
    "in the upper right": (2, 0),
    "on the left": (0, 1),
    "in the centre": (1, 1),
    "on the right": (2, 1),
    "in the lower left": (0, 2),
    "at the bottom": (1, 2),
    "in the lower right": (2, 2),
}
NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4}


def _words(table) -> str:
    return "|".join(sorted({*table, *table.values()} if isinstance(table, dict) else table, key=len, reverse=True))


def _plain(word: str | None, table: dict[str, str]) -> str | None:
    return {new: old for old, new in table.items()}.get(word, word)


NOUN = re.compile(rf"a (?:({_words(SIZES)}) )?(?:({_words(COLOURS)}) )?({_words(SHAPES)})\b")
GROUND = re.compile(rf",? ?\bon a ({_words(list(BACKGROUNDS))}) (?:background|backdrop),?")
COUNT = re.compile(rf"\b({_words(list(NUMBERS))}) shapes?\b")
RELATION = re.compile(rf"X (?:is )?({_words(list(RELATIONS))}) X")
PLACE = re.compile(rf"X ({_words(list(PLACES))})$")


@dataclass
class Seen:
    """What is in a picture. boxes [objects] of (left, top, right, bottom) in pixels."""

    names: list[tuple[str, str, str]]  # size, colour, shape
    boxes: list[tuple[int, int, int, int]]
    background: str
    size: int

    def centre(self, k: int) -> np.ndarray:
        left, top, right, bottom = self.boxes[k]
        return np.array([(left + right) / 2, (top + bottom) / 2])


def seen(scene, boxes) -> Seen:
    return Seen([(t.size, t.colour, t.shape) for t in scene.objects], boxes, scene.background, scene.size)


def related(what: Seen, name: str, a: int, b: int, strict: bool) -> bool:
    """strict: one box ends before the other begins. Otherwise: one centre is further that way, by half a pixel."""
    p, q = np.array(what.boxes[a]), np.array(what.boxes[b])
    if name in ("inside", "around"):
        p, q = (p, q) if name == "inside" else (q, p)
        return bool((p[:2] >= q[:2]).all() and (p[2:] <= q[2:]).all())
    axis, sign = (0 if name in ("left", "right") else 1), (1 if name in ("left", "above") else -1)
    first, second = (a, b) if sign > 0 else (b, a)
    if strict:
        return what.boxes[first][axis + 2] <= what.boxes[second][axis]
    return bool(what.centre(first)[axis] < what.centre(second)[axis] - 0.5)


def placed(what: Seen, name: str, k: int, slack: float) -> bool:
    cell = np.array(PLACES[name]) * what.size / 3
    return bool((what.centre(k) >= cell - slack).all() and (what.centre(k) <= cell + what.size / 3 + slack).all())


def true_of(caption: str, what: Seen, strict: bool) -> bool:
    """Whether a caption is true; strict in what counts as true, or generous. Raises ValueError for what is no caption."""
    if caption.endswith("."):
        return _long(caption, what, strict)
    ground, number, nouns = GROUND.search(caption), COUNT.search(caption), NOUN.findall(caption)
    rest = NOUN.sub("X", COUNT.sub("N", GROUND.sub("", caption))).strip()
    relation, place = RELATION.search(rest), PLACE.search(rest)
    rest = PLACE.sub("X", RELATION.sub("X", rest))
    if not nouns or not re.fullmatch(r"(N: )?(there is |a picture of )?X((, X)* and X)?", rest):
        raise ValueError(f"{caption!r} is no caption: {rest!r}")
    if (ground and BACKGROUNDS[ground[1]] != what.background) or (number and NUMBERS[number[1]] != len(what.names)):
        return False
    wanted = [(_plain(size, SIZES), _plain(colour, COLOURS), _plain(shape, SHAPES)) for size, colour, shape in nouns]
    found = []
    for name in wanted:  # no two objects share a shape, so a noun means one object or none
        fits = [k for k, have in enumerate(what.names) if all(not part or part == own for part, own in zip(name, have))]
        if not fits:
            return False
        found.append(fits[0])
    assert len(set(found)) == len(found)
    if relation and not related(what, RELATIONS[relation[1]], found[0], found[1], strict):
        return False
    return not place or placed(what, place[1], found[0], 0.75 if strict else -0.75)


def _long(caption: str, what: Seen, strict: bool) -> bool:
    first, *others = caption.removesuffix(".").lower().split(". ")
    start = re.fullmatch(r"there (?:is|are) (.*)", first)
    if start is None or len(others) != (1 if len(what.names) == 1 else 2):
        raise ValueError(f"{caption!r} is no long caption")
    if not true_of(start[1], what, strict) or len(NOUN.findall(start[1])) != len(what.names):
        return False
    if not COUNT.search(start[1]) or not GROUND.search(start[1]) or any(not (s and c) for s, c, _ in NOUN.findall(start[1])):
        return False
    shapes = [shape for _, _, shape in what.names]
    facts = []
    for sentence in others:
        for clause in re.split(r", | and (?=the )", sentence):
            match = re.fullmatch(rf"the ({_words(SHAPES)}) is (.*?)(?: the ({_words(SHAPES)}))?", clause)
            a = shapes.index(match[1])
            if match[3]:
                facts.append((a, shapes.index(match[3])))
                if not related(what, RELATIONS[match[2]], *facts[-1], strict):
                    return False
            elif not placed(what, match[2], a, 0.75):
                return False
            else:
                facts.append(a)
    n = len(shapes)
    return len(facts) == len(set(facts)) == n + n * (n - 1) // 2
