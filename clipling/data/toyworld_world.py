"""The settings of a ToyWorld, what they make of each pair, and how they are written as `demo:toyworld?pairs=2000&seed=3`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from itertools import count
from typing import Any

from clipling.data.source import TOYWORLD, is_toyworld
from clipling.data.toyworld_edit import Twin, twins
from clipling.data.toyworld_scene import BACKGROUNDS, SHAPES, Chance, Knobs, Scene, sample
from clipling.data.toyworld_text import Captions, Claim, Phrase, captions, holds
from clipling.errors import UserError, near

VIEWS = ("usual", "swapped")


@dataclass(frozen=True)
class World:
    """A generator of pairs. Pair i depends on the settings and i alone, not on `pairs`: a longer world begins with the shorter.

    Args:
        pairs: 1 to 1,000,000.
        seed: 0 to 2^63 - 1. Other seeds give other pairs: a test set is the same world with another seed.
        size: pixels of the side, 32 to 224.
        objects: (least, most) in a picture, 1 to 4, each number as likely. The main one is the largest where there are several.
        correlation: rho, 0 to 1, of the main object's shape (the class) and the background. With probability rho the background
            is the class's own (one for each class), otherwise it is drawn uniformly from ALL backgrounds, the own among them:
            P(own) = rho + (1 - rho) / B, every other (1 - rho) / B. At 0 the two are independent, at 1 one tells the other.
        caption_noise: the probability that a pair's captions describe another scene, and are all false: no object of the picture
            has both the colour and the shape of that scene's main object, which every caption names.
        long_tail: the exponent s >= 0 (at most 10) of Zipf's law over classes: P(class of rank r) is proportional to r^-s.
        duplicates: the probability, below 1, that a pair's picture repeats that of an earlier one (uniformly drawn), byte by byte,
            with captions that differ from all of that pair's. Of n pairs (n - 1) x duplicates are expected to be repeats.
        view: `swapped` gives a class, with probability rho, the own background of another class (half way round the list): for tests
            of a model that learnt the usual one. Everything else in the pictures stays, so pairs of the two worlds can be compared.

    Raises UserError for values out of range, and for a view that would change nothing.
    """

    pairs: int = 1000
    seed: int = 0
    size: int = 64
    objects: tuple[int, int] = (1, 3)
    correlation: float = 0.0
    caption_noise: float = 0.0
    long_tail: float = 0.0
    duplicates: float = 0.0
    view: str = "usual"

    def __post_init__(self) -> None:
        _whole("pairs", self.pairs, 1, 1_000_000)
        _whole("seed", self.seed, 0, 2**63 - 1)
        _whole("size", self.size, 32, 224)
        ok = isinstance(self.objects, tuple | list) and len(self.objects) == 2
        if not ok or not all(isinstance(n, int) and not isinstance(n, bool) for n in self.objects):
            raise _wrong("objects", self.objects, "the least and the most in a picture, such as (1, 3)")
        if not 1 <= self.objects[0] <= self.objects[1] <= 4:
            raise _wrong("objects", tuple(self.objects), "1 to 4, the least first")
        object.__setattr__(self, "objects", tuple(self.objects))
        for name, most in (("correlation", 1), ("caption_noise", 1), ("long_tail", 10), ("duplicates", 1)):
            _number(self, name, most)
        if self.duplicates == 1:
            raise _wrong("duplicates", self.duplicates, "a number from 0 to below 1: some picture must be new")
        if self.view not in VIEWS:
            raise UserError(f"{TOYWORLD}: view is {self.view!r}. {near(str(self.view), VIEWS)}")
        if self.view == "swapped" and not self.correlation:
            raise UserError(f"{TOYWORLD}: view 'swapped' changes nothing without a correlation. Set correlation, or leave view out.")

    @property
    def spec(self) -> str:
        """The source that opens this world, without what has its default."""
        given = [(f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default]
        texts = [f"{name}={value[0]}-{value[1]}" if isinstance(value, tuple) else f"{name}={value}" for name, value in given]
        return TOYWORLD + "?" * bool(texts) + "&".join(texts)

    @property
    def own_probability(self) -> float:
        """P(a picture's background is its class's own)."""
        usual = self.correlation if self.view == "usual" else 0.0
        return usual + (1 - self.correlation) / len(BACKGROUNDS)

    def settings(self) -> dict[str, Any]:
        """As JSON holds them."""
        return {**asdict(self), "objects": list(self.objects)}

    def key(self, i: int) -> str:
        return f"{i:08d}"

    def origin(self, i: int) -> int:
        """The pair whose picture pair i shows: i itself, or an earlier one."""
        if not 0 <= i < self.pairs:
            raise IndexError(f"pair {i} of {self.pairs}")
        while i and self._chance(i).uniform("duplicate") < self.duplicates:
            i = self._chance(i).below("repeats", i)
        return i

    def scene(self, i: int) -> Scene:
        """What the picture of pair i shows."""
        return sample(self._chance(self.origin(i)), self._knobs)

    def noisy(self, i: int) -> bool:
        """Whether the captions of pair i describe another scene."""
        return self._chance(i).uniform("noise") < self.caption_noise

    def told(self, i: int) -> Scene:
        """What the captions of pair i describe: its picture, or another scene of which they are false there."""
        scene = self.scene(i)
        if not self.noisy(i):
            return scene
        others = (sample(Chance(self.seed, i, draw), self._knobs) for draw in count(1))
        return next(other for other in others if not holds(_main(other), scene))

    def captions(self, i: int) -> Captions:
        """What is said of pair i. Negatives are false of its picture as well as of the scene that its captions describe."""
        origin = self.origin(i)
        without = () if origin == i else self.captions(origin).true
        return captions(self.told(i), self.wording(i), without=without, picture=self.scene(i))

    def twins(self, i: int) -> dict[str, Twin]:
        """Edited twins of the picture of pair i, by edit."""
        return twins(self.scene(i), self.wording(i))

    def wording(self, i: int) -> int:
        """What chooses among phrasings and edits."""
        return self._chance(i).bits("wording")

    def _chance(self, i: int) -> Chance:
        return Chance(self.seed, i)

    @property
    def _knobs(self) -> Knobs:
        return Knobs(self.size, self.objects, self.correlation, self.long_tail, self.view == "swapped")


def _main(scene: Scene) -> Claim:
    """That there is an object of the main one's colour and shape: part of whatever is said of the scene."""
    return Claim((Phrase(scene.objects[0].shape, scene.objects[0].colour),))


def parse_world(spec: str) -> World:
    """The world of `demo:toyworld?pairs=2000&objects=1-2`. Raises UserError for what is not a knob, or is out of range."""
    if not is_toyworld(spec):
        raise UserError(f"{spec!r} is not {TOYWORLD}, or {TOYWORLD}?KNOB=VALUE&...")
    _, query, text = spec.partition("?")
    given: dict[str, Any] = {}
    for part in text.split("&") if query else ():
        name, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"{spec}: {part!r} is not KNOB=VALUE. Knobs are {', '.join(_READ)}, joined by '&'.")
        if name not in _READ:
            raise UserError(f"{spec}: {TOYWORLD} has no knob {name!r}. {near(name, _READ)}")
        if name in given:
            raise UserError(f"{spec}: {name} is given twice. Give it once.")
        read, what = _READ[name]
        try:
            given[name] = read(value)
        except ValueError as error:
            raise UserError(f"{spec}: {name} is {value!r}; expected {what}") from error
    return World(**given)


def _range(text: str) -> tuple[int, int]:
    least, dash, most = text.partition("-")
    return int(least), int(most if dash else least)


_WHOLE, _SHARE = (int, "a whole number"), (float, "a number")
_READ: dict[str, tuple[Callable[[str], Any], str]] = {
    **dict.fromkeys(("pairs", "seed", "size"), _WHOLE),
    "objects": (_range, "how many objects a picture has, such as 2 or 1-3"),
    **dict.fromkeys(("correlation", "caption_noise", "long_tail", "duplicates"), _SHARE),
    "view": (str, f"one of {', '.join(VIEWS)}"),
}


def _wrong(name: str, value: object, expected: str) -> UserError:
    return UserError(f"{TOYWORLD}: {name} is {value!r}; expected {expected}")


def _whole(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise _wrong(name, value, f"a whole number from {least} to {most}")


def _number(world: World, name: str, most: int) -> None:
    value = getattr(world, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and 0 <= value <= most):
        raise _wrong(name, value, f"a number from 0 to {most}")
    object.__setattr__(world, name, float(value))  # 1 and 1.0 are one setting


assert len(SHAPES) == len(BACKGROUNDS), "each class has a background of its own"
