"""Edited twins of ToyWorld's scenes: the same picture but for one object, with a caption that is true of either one only."""

from __future__ import annotations

from dataclasses import dataclass, replace

from clipling.data.toyworld_scene import (
    COLOURS,
    GAP,
    RADIUS,
    SHAPES,
    Chance,
    Scene,
    Thing,
    apart,
    free_place,
    square_of,
)
from clipling.data.toyworld_text import Said, about, holds
from clipling.data.toyworld_words import ONE, PLACED, RELATED, SEVERAL, SINGLE

EDITS = ("colour", "size", "position", "count")
_TRIES = 40
_FAR = 0.15  # what a moved object moves at least


@dataclass(frozen=True)
class Twin:
    """An edit of a scene.

    edit: one of EDITS.
    object: the number of the object that was changed, removed (the last one), or added (one more than there were).
    scene: the edited one. Its background and all its other objects are the same; it may have two large objects, or none.
    caption, twin_caption: true of the scene and not of the twin, and the other way round.
    """

    edit: str
    object: int
    scene: Scene
    caption: str
    twin_caption: str


def twins(scene: Scene, wording: int = 0) -> dict[str, Twin]:
    """A twin by each edit that the scene has room for: colour and count always, size and position nearly always."""
    chance = Chance(wording, 1)
    made = {"colour": _colour, "size": _size, "position": _position, "count": _count}
    found = {edit: make(scene, chance) for edit, make in made.items()}
    return {edit: twin for edit, twin in found.items() if twin is not None}


def _colour(scene: Scene, chance: Chance) -> Twin | None:
    k = chance.below("recoloured", len(scene.objects))
    used = {thing.colour for thing in scene.objects}
    colour = chance.pick("new colour", [colour for colour in COLOURS if colour not in used])
    return _told("colour", k, scene, _with(scene, k, replace(scene.objects[k], colour=colour)))


def _size(scene: Scene, chance: Chance) -> Twin | None:
    found = []
    for k, thing in enumerate(scene.objects):
        size = "small" if thing.size == "large" else "large"
        edited = _with(scene, k, replace(thing, size=size, radius=RADIUS[size]))
        if _free(edited, k):
            found.append((k, edited))
    if not found:
        return None
    k, edited = chance.pick("resized", found)
    return _told("size", k, scene, edited)


def _position(scene: Scene, chance: Chance) -> Twin | None:
    """Moved so that its relation to another object is reversed, or where no such place was found, to another ninth of the picture."""
    first, elsewhere = chance.below("moved", len(scene.objects)), None
    for attempt in range(_TRIES):
        k = (first + attempt) % len(scene.objects)
        old = scene.objects[k]
        x, y = (chance.uniform(f"new {axis} {attempt}") for axis in "xy")
        edited = _with(scene, k, replace(old, x=x, y=y))
        if max(abs(x - old.x), abs(y - old.y)) < _FAR or not _free(edited, k):
            continue
        twin = _told("position", k, scene, edited) if len(scene.objects) > 1 else None
        if twin is not None:
            return twin
        elsewhere = elsewhere or _told("position", k, scene, edited, PLACED)
    return elsewhere


def _count(scene: Scene, chance: Chance) -> Twin | None:
    things, k = scene.objects, len(scene.objects) - 1
    if k:
        return _told("count", k, scene, replace(scene, objects=things[:-1]))
    shape = chance.pick("added shape", [shape for shape in SHAPES if shape != things[0].shape])
    colour = chance.pick("added colour", [colour for colour in COLOURS if colour != things[0].colour])
    added = Thing(shape, colour, "small", *free_place(chance, 1, [square_of(things[0])]))
    return _told("count", 1, scene, replace(scene, objects=(*things, added)))


def _free(scene: Scene, k: int) -> bool:
    """Whether object k lies in the picture and apart from every other object."""
    thing = scene.objects[k]
    if not all(thing.radius + GAP <= place <= 1 - thing.radius - GAP for place in (thing.x, thing.y)):
        return False
    return all(apart(square_of(thing), square_of(other)) for j, other in enumerate(scene.objects) if j != k)


def _with(scene: Scene, k: int, thing: Thing) -> Scene:
    return replace(scene, objects=(*scene.objects[:k], thing, *scene.objects[k + 1 :]))


def _told(edit: str, k: int, scene: Scene, edited: Scene, form: str = "") -> Twin | None:
    """The twin with its captions; None when these do not tell the two apart (a relation that is still true in some reading)."""
    caption, other = _caption(edit, k, scene, form), _caption(edit, k, edited, form)
    if holds(caption.claim, edited) or holds(other.claim, scene):
        return None
    return Twin(edit, k, edited, caption.text(), other.text())


def _caption(edit: str, k: int, scene: Scene, form: str) -> Said:
    """What is said of object k: alone (or where one form is wanted), or with the main object (the main one with the next)."""
    count = len(scene.objects)
    if edit == "count":
        return about(scene, range(count), SEVERAL if count > 1 else ONE)
    if form or count == 1:
        return about(scene, (k,), form or SINGLE[0])
    return about(scene, (k, 0) if k else (0, 1), RELATED[0])
