"""How long a model takes for one picture and one caption."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

from clipling.models.dual import Student

CAPTION = "two dogs run over the wet sand of a beach"
WARM = 3
ROUNDS = 15


def latencies(models: Mapping[str, Student], rounds: int = ROUNDS) -> dict[str, dict[str, float]]:
    """Milliseconds of one picture and of one caption of ten words, for each model, with torch's threads of now.

    The least of all rounds: other work on the machine can only add to it. The models take turns, so that a slow minute is nobody's.
    """
    calls = {name: _calls(model) for name, model in models.items()}
    spent: dict[str, dict[str, list[float]]] = {name: {"image_ms": [], "text_ms": []} for name in models}
    for number in range(WARM + rounds):
        for name, sides in calls.items():
            for side, call in sides.items():
                began = time.perf_counter()
                call()
                if number >= WARM:
                    spent[name][side].append(1000 * (time.perf_counter() - began))
    return {name: {side: min(values) for side, values in sides.items()} for name, sides in spent.items()}


def _calls(model: Student) -> dict[str, Callable[[], None]]:
    size = model.image_size
    pixels = model.normalise(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    tokens = model.tokenise([CAPTION])

    def image() -> None:
        with model.evaluating():
            model.encode_image(pixels)

    def text() -> None:
        with model.evaluating():
            model.encode_text(tokens)

    return {"image_ms": image, "text_ms": text}
