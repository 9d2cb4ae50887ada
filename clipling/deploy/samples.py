"""What graphs are calibrated and measured on: the user's pictures and texts, apart from each other, or drawn scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipling.data.classes import LabelledImages, is_labelled, open_labelled
from clipling.data.pairs import Pairs
from clipling.data.pixels import Pixels
from clipling.data.source import open_pairs
from clipling.data.views import eval_pixels
from clipling.errors import UserError
from clipling.evals.zeroshot import prompts
from clipling.runtime.manifest import ImageSide

CALIBRATION = 128  # pictures; ranges hardly move with more
MEASURED = 1000  # pictures: a drop of recall is then known to about a point either way, and measuring takes a minute or two
FEWEST = 8
SCENES = 32
FIXTURES = "drawn scenes of the kit"


@dataclass(frozen=True)
class Retrieval:
    """Pairs that recall is measured on: pixels [P, s, s, 3], captions [T], caption rows of picture i offsets[i] ... offsets[i + 1]."""

    name: str
    pixels: np.ndarray
    captions: list[str]
    offsets: np.ndarray
    groups: list[str]


@dataclass(frozen=True)
class Labelled:
    """Pictures with a class each: pixels [P, s, s, 3], labels [P], names and templates of the classes."""

    name: str
    pixels: np.ndarray
    labels: np.ndarray
    classnames: list[str]
    templates: list[str]


@dataclass(frozen=True)
class Samples:
    """pixels uint8 [n, s, s, 3] and texts: for calibration and sensitivity. What quality is measured on holds none of them.

    Without the user's data both measured parts are None, and `origin` says what stood in.
    """

    origin: str
    pixels: np.ndarray
    texts: list[str]
    retrieval: Retrieval | None = None
    labelled: Labelled | None = None


def take(image: ImageSide, data: str | None = None, labelled: str | None = None) -> Samples:
    """Samples of the user's sources: pairs, or pictures with classes, or both, at the size and by the preprocessing of `image`.

    Of pairs a quarter, at most 128, calibrates; the others, at most 1,000, are measured. UserError for a source that is too small, or
    that has no captions.
    """
    if data is None and labelled is None:
        return fixtures(image)
    if data is not None and labelled is None and is_labelled(data):
        data, labelled = None, data
    pairs = _pairs(data) if data is not None else None
    classes = open_labelled(labelled) if labelled is not None else None
    source = pairs if pairs is not None else classes
    calibrating, measured = parted(len(source))
    origin = str(data if pairs is not None else labelled)
    pixels = _pixels(_subset(source, calibrating), image)
    texts = _texts(source, calibrating)
    return Samples(
        origin,
        pixels,
        texts,
        retrieval=_retrieval(pairs.subset(measured), image) if pairs is not None else None,
        labelled=_labelled(_subset(classes, parted(len(classes))[1]), image) if classes is not None else None,
    )


def parted(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(rows that calibrate, rows that are measured) of `count`, drawn by `seed`, each sorted. UserError below 8."""
    if count < FEWEST:
        raise UserError(f"--data has {count} pictures; int8 needs at least {FEWEST} to calibrate and measure, and some hundred to say much")
    order = np.random.default_rng(seed).permutation(count)
    cut = min(CALIBRATION, count // 4)
    return np.sort(order[:cut]), np.sort(order[cut : cut + MEASURED])


def fixtures(image: ImageSide) -> Samples:
    """Drawn pictures of the kit's kind, and its texts: enough to see a graph that is broken, not enough to say how good it is."""
    from clipling.data.toyworld_draw import draw
    from clipling.data.toyworld_world import World
    from clipling.deploy.fixtures import TEXTS

    world = World(pairs=SCENES, seed=21, size=224)
    pixels = np.stack([eval_pixels(draw(world.scene(i)), _settings(image)) for i in range(SCENES)])
    return Samples(FIXTURES, pixels, list(TEXTS))


def _pairs(spec: str) -> Pairs:
    pairs = open_pairs(spec)
    if pairs.unpaired or not pairs.captions:
        raise UserError(f"{spec} has no captions: recall needs pairs. Give pairs, or pictures in one folder a class")
    return pairs


def _settings(image: ImageSide) -> dict[str, Any]:
    """open_clip's preprocess_cfg of an exported image tower."""
    return {
        "size": image.size,
        "mode": "RGB",
        "mean": image.mean,
        "std": image.std,
        "interpolation": image.interpolation,
        "resize_mode": image.resize_mode,
        "fill_color": image.fill_color,
    }


def _pixels(source: Any, image: ImageSide) -> np.ndarray:
    return np.asarray(Pixels.open(source, image.size, _settings(image))[:])


def _subset(source: Pairs | LabelledImages, rows: Sequence[int] | np.ndarray) -> Pairs | LabelledImages:
    if isinstance(source, Pairs):
        return source.subset(rows)
    chosen = [int(i) for i in rows]
    return LabelledImages(
        name=source.name,
        keys=[source.keys[i] for i in chosen],
        locations=[source.locations[i] for i in chosen],
        labels=source.labels[chosen],
        classnames=source.classnames,
        templates=source.templates,
        hashes=[source.hashes[i] for i in chosen] if source.hashes else [],
    )


def _texts(source: Pairs | LabelledImages, rows: np.ndarray) -> list[str]:
    if isinstance(source, Pairs):
        return [source.captions_of(int(i))[0] for i in rows if source.captions_of(int(i))]
    return prompts(source.classnames, source.templates)[:CALIBRATION]


def _retrieval(pairs: Pairs, image: ImageSide) -> Retrieval:
    return Retrieval(pairs.name, _pixels(pairs, image), list(pairs.captions), pairs.offsets, list(pairs.groups))


def _labelled(source: LabelledImages, image: ImageSide) -> Labelled:
    return Labelled(source.name, _pixels(source, image), source.labels, source.classnames, source.templates)
