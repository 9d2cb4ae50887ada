"""Latency by a clock that is not the wall's."""

from __future__ import annotations

import pytest
import torch

from clipling.engine import timing
from clipling.engine.timing import WARM, latencies
from clipling.models.hub import new_student
from tests.models.making import small_conv, tiny


class Clock:
    """Stands for `time`: it moves on when a model works, and by what the model is said to take."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing, "time", made)
    return made


def slow(student, clock: Clock, log: list, name: str, image: list[float], text: list[float], monkeypatch):
    """The student with calls that take the given seconds in turn, and say that they were made."""
    for side, seconds in (("image", image), ("text", text)):
        inner, left = getattr(student, f"encode_{side}"), list(seconds)

        def call(given, side=side, inner=inner, left=left):
            assert len(given) == 1
            assert not student.training
            assert not torch.is_grad_enabled()
            log.append((name, side))
            clock.now += left.pop(0)
            return inner(given)

        monkeypatch.setattr(student, f"encode_{side}", call)
    return student


def test_the_least_of_rounds_after_warming_up(clock, monkeypatch):
    log: list = []
    rounds = [0.004, 0.002, 0.009, 0.003, 0.001]
    one = slow(new_student(tiny()), clock, log, "one", [5.0] * WARM + rounds, [7.0] * WARM + [2 * s for s in rounds], monkeypatch)
    two = slow(new_student(small_conv()), clock, log, "two", [0.5] * (WARM + 5), [0.25] * (WARM + 5), monkeypatch)
    found = latencies({"one": one, "two": two}, rounds=5)
    least = 1000 * min(rounds)
    assert found["one"] == {"image_ms": pytest.approx(least), "text_ms": pytest.approx(2 * least)}
    assert found["two"] == {"image_ms": pytest.approx(500), "text_ms": pytest.approx(250)}
    turn = [("one", "image"), ("one", "text"), ("two", "image"), ("two", "text")]
    assert log == turn * (WARM + 5), "the models take turns"
    assert one.training, "the mode is as it was"


def test_a_picture_and_a_caption_of_the_models_own_size(clock, monkeypatch):
    student, seen = new_student(tiny()), {}
    for side in ("image", "text"):
        monkeypatch.setattr(student, f"encode_{side}", lambda given, side=side: seen.setdefault(side, given))
    latencies({"student": student}, rounds=1)
    assert seen["image"].shape == (1, 3, 32, 32)
    assert torch.equal(seen["text"], student.tokenise([timing.CAPTION]))
    assert len(timing.CAPTION.split()) == 10
