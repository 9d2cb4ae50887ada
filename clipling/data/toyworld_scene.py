"""Scenes of ToyWorld: what is in a picture, drawn from knobs, every choice a pure function of (seed, pair, name of the choice).

Lengths are shares of the picture's side, x to the right and y downwards, so a scene is the same at every resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TypeVar

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart", "moon", "hexagon")
COLOURS = {
    "red": (205, 30, 35),
    "green": (20, 140, 50),
    "blue": (35, 65, 215),
    "yellow": (250, 215, 20),
    "black": (12, 12, 14),
    "white": (255, 255, 255),
    "purple": (130, 30, 160),
    "pink": (255, 110, 190),
    "brown": (115, 65, 25),
    "teal": (0, 120, 130),
}
SIZES = ("small", "large")
BACKGROUNDS = ("plain", "stripes", "dots", "checks", "gradient", "noise", "grid", "waves", "bricks", "rays")
RELATIONS = ("left of", "right of", "above", "below", "inside", "around")
OPPOSITE = dict(zip(RELATIONS, ("right of", "left of", "below", "above", "around", "inside")))
PLACES = ("upper left", "top", "upper right", "left", "centre", "right", "lower left", "bottom", "lower right")
TONES = 6  # pairs of muted greys that a background may be painted in
HOSTS = ("circle", "square")  # shapes with room for another inside

RADIUS = {"small": 0.10, "large": 0.19}  # half the side of an object's square
INNER = 0.085  # radius of what lies inside another
GAP = 0.02  # between the squares of two objects, and between a square and the edge
INSIDE = 0.4  # how often the second object lies inside the main one, where that has room
TURN = 15.0  # degrees to either side
_TRIES = 40

T = TypeVar("T")


@dataclass(frozen=True)
class Chance:
    """Uniform numbers by name: blake2b of (seed, pair, draw, name), the same on every machine. `draw` numbers whole repeats."""

    seed: int
    pair: int
    draw: int = 0

    def uniform(self, name: str) -> float:
        """In [0, 1)."""
        return (self.bits(name) >> 11) * 2.0**-53

    def bits(self, name: str) -> int:
        """64 random bits."""
        text = f"{self.seed} {self.pair} {self.draw} {name}".encode()
        return int.from_bytes(blake2b(text, digest_size=8, person=b"toyworld").digest(), "little")

    def below(self, name: str, count: int) -> int:
        """A whole number in [0, count)."""
        return int(self.uniform(name) * count)

    def pick(self, name: str, choices: Sequence[T]) -> T:
        return choices[self.below(name, len(choices))]


@dataclass(frozen=True)
class Thing:
    """One object: its square is centred at (x, y) with half side `radius`, and the turned shape fills it in one direction at least."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    turn: float = 0.0

    @property
    def place(self) -> str:
        """The ninth of the picture that the centre lies in."""
        return PLACES[3 * min(int(3 * self.y), 2) + min(int(3 * self.x), 2)]


@dataclass(frozen=True)
class Scene:
    """What a picture shows. No two objects share a shape or a colour, so either names one of them.

    size: pixels of the side.
    objects: the main one first: where there are several, it alone is large. One that lies inside it comes second.
    background: one of BACKGROUNDS; `tone` says in which pair of greys, `phase` (0 ... 2^16 - 1) where its pattern starts,
        `grain` is the key of its noise.
    label: number of the main object's shape among SHAPES.
    """

    size: int
    objects: tuple[Thing, ...]
    background: str
    label: int
    tone: int = 0
    phase: tuple[int, int] = (0, 0)
    grain: int = 0

    @property
    def triples(self) -> tuple[tuple[int, str, int], ...]:
        """(subject, relation, object) for every two objects, the subject being the earlier."""
        return tuple((i, relation(a, b), j) for i, a in enumerate(self.objects) for j, b in enumerate(self.objects) if i < j)


@dataclass(frozen=True)
class Knobs:
    """What decides a scene beside its chance; see `World` for what they mean."""

    size: int
    objects: tuple[int, int]
    correlation: float
    long_tail: float
    swapped: bool


def sample(chance: Chance, knobs: Knobs) -> Scene:
    """One scene. Each choice has a name of its own, so a knob changes what it is about and what follows from that."""
    label = _class(chance, knobs.long_tail)
    background = _background(chance, label, knobs)
    least, most = knobs.objects
    objects = _objects(chance, label, least + chance.below("count", most - least + 1))
    phase = (chance.below("phase x", 2**16), chance.below("phase y", 2**16))
    return Scene(knobs.size, objects, background, label, chance.below("tone", TONES), phase, chance.bits("grain"))


def class_shares(long_tail: float) -> list[float]:
    """[classes] the chance of each class: proportional to rank ** -long_tail, ranks 1, 2, ... in the order of SHAPES."""
    weights = [(rank + 1) ** -long_tail for rank in range(len(SHAPES))]
    return [weight / sum(weights) for weight in weights]


def own_background(label: int, swapped: bool = False) -> str:
    """The background that goes with a class: another for each class. Swapped, it is that of the class half way round."""
    return BACKGROUNDS[(label + (len(BACKGROUNDS) // 2 if swapped else 0)) % len(BACKGROUNDS)]


def _class(chance: Chance, long_tail: float) -> int:
    u, total = chance.uniform("class"), 0.0
    for label, share in enumerate(class_shares(long_tail)):
        total += share
        if u < total:
            return label
    return 0  # u beyond a total that rounding left below 1


def _background(chance: Chance, label: int, knobs: Knobs) -> str:
    if chance.uniform("own background") < knobs.correlation:
        return own_background(label, knobs.swapped)
    return chance.pick("background", BACKGROUNDS)


def _objects(chance: Chance, label: int, count: int) -> tuple[Thing, ...]:
    shapes, colours = [SHAPES[label]], []
    for k in range(count):
        if k:
            shapes.append(chance.pick(f"shape {k}", [shape for shape in SHAPES if shape not in shapes]))
        colours.append(chance.pick(f"colour {k}", [colour for colour in COLOURS if colour not in colours]))
    sizes = ["large" if count > 1 else chance.pick("size", SIZES)] + ["small"] * (count - 1)
    turns = [TURN * (2 * chance.uniform(f"turn {k}") - 1) for k in range(count)]
    inside = count > 1 and shapes[0] in HOSTS and chance.uniform("inside") < INSIDE
    places = _places(chance, count, RADIUS[sizes[0]], inside)
    return tuple(Thing(*parts, *place, turn) for *parts, place, turn in zip(shapes, colours, sizes, places, turns))


def _places(chance: Chance, count: int, radius: float, inside: bool) -> list[tuple[float, float, float]]:
    """(x, y, radius) of each object, their squares apart (or one inside the other) and in the picture."""
    # A small main object is kept where a large one would fit: how many objects there are does not move it.
    x, y = (_within(chance.uniform(f"{axis} 0"), RADIUS["large"] + GAP) for axis in "xy")
    placed = [(x, y, radius)]
    if inside:
        dx, dy = (GAP * (2 * chance.uniform(f"{axis} inside") - 1) for axis in "xy")
        placed.append((x + dx, y + dy, INNER))
    for k in range(len(placed), count):
        placed.append(free_place(chance, k, placed))
    return placed


def free_place(chance: Chance, k: int, placed: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    """(x, y, radius) of a small object k, apart from at most three that are placed."""
    radius = RADIUS["small"]
    for attempt in range(_TRIES):
        found = (*(_within(chance.uniform(f"{axis} {k} {attempt}"), radius + GAP) for axis in "xy"), radius)
        if all(apart(found, other) for other in placed):
            return found
    # No room but in slivers. A corner is always left: no object reaches into two of the four, what lies inside the main one
    # reaches no further than that, and at most three are placed before.
    corners = [(a, b, radius) for a in (radius + GAP, 1 - radius - GAP) for b in (radius + GAP, 1 - radius - GAP)]
    return next(corner for corner in corners if all(apart(corner, other) for other in placed))


def _within(u: float, margin: float) -> float:
    return margin + u * (1 - 2 * margin)


def apart(a: tuple[float, float, float], b: tuple[float, float, float]) -> bool:
    """Whether two squares (x, y, radius) have a gap between them."""
    return max(abs(a[0] - b[0]), abs(a[1] - b[1])) >= a[2] + b[2] + GAP


def square_of(thing: Thing) -> tuple[float, float, float]:
    return thing.x, thing.y, thing.radius


def within(inner: Thing, outer: Thing) -> bool:
    """Whether one square lies in another."""
    return max(abs(inner.x - outer.x), abs(inner.y - outer.y)) + inner.radius <= outer.radius


def relation(a: Thing, b: Thing) -> str:
    """How a lies to b: inside, around, or by the axis on which their centres are further apart (the horizontal one of two)."""
    if within(a, b):
        return "inside"
    if within(b, a):
        return "around"
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"
