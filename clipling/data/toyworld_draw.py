"""ToyWorld's scenes as pictures: textured backgrounds, objects with smooth edges, and the exact mask of each object."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from clipling.data.draw import mix
from clipling.data.toyworld_scene import COLOURS, TONES, Scene, Thing

FINE = 4  # subpixels of a pixel's side
CELLS = 6  # repeats of a pattern across the picture
# The lighter and the darker grey of each tone: muted, so that every colour of an object stands out from all of them.
_LIGHT = ((206, 198, 190), (190, 200, 206), (194, 205, 190), (204, 192, 202), (200, 200, 186), (198, 198, 202))
_DEPTH = 46
assert len(_LIGHT) == TONES

Polygon = list[tuple[float, float]]


def draw(scene: Scene) -> Image.Image:
    """The RGB picture [size, size]. A pixel is the background but for the share of it that objects cover."""
    light = np.array(_LIGHT[scene.tone], dtype=np.float64)
    pattern = background(scene.background, scene.size, scene.phase, scene.grain)[..., None]
    pixels = np.rint(light - _DEPTH * pattern).astype(np.uint8)
    image = Image.fromarray(pixels)
    for thing in scene.objects:
        image.paste(COLOURS[thing.colour], (0, 0, scene.size, scene.size), Image.fromarray(cover(thing, scene.size)))
    return image


def masks(scene: Scene) -> np.ndarray:
    """bool [objects, size, size]: the pixels of which an object covers more than half and no later object does."""
    found = np.array([cover(thing, scene.size) >= 128 for thing in scene.objects])
    for k in range(len(found) - 1):
        found[k] &= ~found[k + 1 :].any(axis=0)
    return found


def boxes(scene: Scene) -> list[tuple[int, int, int, int]]:
    """(left, top, right, bottom) of each mask in pixels, right and bottom being the first beyond it."""
    found = []
    for mask in masks(scene):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        found.append((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    return found


def cover(thing: Thing, size: int) -> np.ndarray:
    """uint8 [size, size]: the share of each pixel that the whole object covers, in 255ths."""
    side = FINE * size
    canvas = Image.new("L", (side, side))
    pen = ImageDraw.Draw(canvas)
    for polygon, filled in _outline(thing.shape, thing.turn):
        # PIL fills up to and with the subpixels that its whole-numbered corners name.
        pen.polygon(
            [((thing.x + thing.radius * x) * side - 0.5, (thing.y + thing.radius * y) * side - 0.5) for x, y in polygon], 255 * filled
        )
    return np.asarray(canvas.reduce(FINE))


@lru_cache(maxsize=64)
def _outline(shape: str, turn: float) -> list[tuple[Polygon, bool]]:
    """Polygons of a turned shape, moved and scaled into the square from -1 to 1, with whether each is filled or cut out."""
    cosine, sine = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    turned = [([(x * cosine - y * sine, x * sine + y * cosine) for x, y in polygon], filled) for polygon, filled in _SHAPES[shape]]
    xs, ys = zip(*(point for polygon, _ in turned for point in polygon))
    x0, y0 = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
    scale = 2 / max(max(xs) - min(xs), max(ys) - min(ys))
    return [([((x - x0) * scale, (y - y0) * scale) for x, y in polygon], filled) for polygon, filled in turned]


def _arc(start: float, end: float, radius: float = 1.0, count: int = 48, x: float = 0.0) -> Polygon:
    """Points on a circle about (x, 0), angles in degrees, clockwise from the right."""
    angles = [math.radians(start + (end - start) * k / count) for k in range(count + 1)]
    return [(x + radius * math.cos(a), radius * math.sin(a)) for a in angles]


def _regular(corners: int, start: float = -90.0) -> Polygon:
    return _arc(start, start + 360, count=corners)[:-1]


def _star() -> Polygon:
    radii = (1.0, 0.42) * 5
    return [(r * x, r * y) for r, (x, y) in zip(radii, _regular(10))]


def _heart() -> Polygon:
    points = [2 * math.pi * k / 64 for k in range(64)]
    return [(16 * math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t))) for t in points]


def _moon() -> Polygon:
    """A disc without another about (0.45, 0) whose edge meets its own at 50 degrees above and below."""
    x, y = math.cos(math.radians(50)) - 0.45, math.sin(math.radians(50))
    meet = math.degrees(math.atan2(y, x))
    return _arc(50, 310) + _arc(360 - meet, meet, math.hypot(x, y), x=0.45)


_THIN = 0.34  # half the width of a cross's bars
_CROSS = [(_THIN, -1.0), (_THIN, -_THIN), (1.0, -_THIN), (1.0, _THIN), (_THIN, _THIN), (_THIN, 1.0)]
_SHAPES: dict[str, list[tuple[Polygon, bool]]] = {
    "circle": [(_arc(0, 360), True)],
    "square": [([(-1, -1), (1, -1), (1, 1), (-1, 1)], True)],
    "triangle": [(_regular(3), True)],
    "diamond": [([(0, -1), (0.75, 0), (0, 1), (-0.75, 0)], True)],
    "star": [(_star(), True)],
    "cross": [(_CROSS + [(-x, -y) for x, y in _CROSS], True)],
    "ring": [(_arc(0, 360), True), (_arc(0, 360, 0.5), False)],
    "heart": [(_heart(), True)],
    "moon": [(_moon(), True)],
    "hexagon": [(_regular(6, 0.0), True)],
}


def background(name: str, size: int, phase: tuple[int, int], grain: int) -> np.ndarray:
    """float64 [size, size] from 0 (light) to 1 (dark): the pattern `name`, moved by `phase` 65536ths of the picture's side."""
    if name == "noise":
        with np.errstate(over="ignore"):
            bits = mix(np.arange(size * size, dtype=np.uint64) + np.uint64(grain))
        return (bits >> np.uint64(11)).astype(np.float64).reshape(size, size) * 2.0**-53
    steps = (np.arange(FINE * size) + 0.5) / (FINE * size)
    x, y = (steps + phase[0] / 2**16)[None, :], (steps + phase[1] / 2**16)[:, None]
    fine = np.broadcast_to(_PATTERNS[name](x, y), (FINE * size, FINE * size)).astype(np.float64)
    return fine.reshape(size, FINE, size, FINE).mean(axis=(1, 3))


def _part(values: np.ndarray, count: float = CELLS) -> np.ndarray:
    """Where values lie in their cell, in [0, 1)."""
    return (values * count) % 1.0


def _bricks(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    shift = 0.5 * (np.floor(y * CELLS) % 2)
    return (_part(y) < 0.22) | ((x * CELLS / 2 + shift) % 1.0 < 0.12)


def _rays(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # The phase moves the centre by up to a quarter of the side.
    dx, dy = x - x[0, 0] / 2 - 0.375, y - y[0, 0] / 2 - 0.375
    return np.floor(np.arctan2(dy, dx) * (CELLS / math.pi)) % 2


_PATTERNS = {
    "plain": lambda x, y: np.float64(0.5),
    "stripes": lambda x, y: _part(x) < 0.5,
    "dots": lambda x, y: (_part(x) - 0.5) ** 2 + (_part(y) - 0.5) ** 2 < 0.3**2,
    "checks": lambda x, y: (np.floor(x * CELLS) + np.floor(y * CELLS)) % 2,
    "gradient": lambda x, y: (y - y[0, 0]) + 0 * x,  # darker downwards; it has no phase
    "grid": lambda x, y: (_part(x) < 0.25) | (_part(y) < 0.25),
    "waves": lambda x, y: _part(y + 0.04 * np.sin(6 * math.pi * x)) < 0.5,
    "bricks": _bricks,
    "rays": _rays,
}
