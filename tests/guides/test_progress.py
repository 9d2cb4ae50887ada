"""What a person sees while waiting."""

from __future__ import annotations

import io
import re

from clipling.guides import progress
from clipling.guides.progress import ShowProgress, duration
from tests.guides.making import source
from tests.guides.test_bank import build


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_say_the_device_first_and_the_time_left_next(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    show = ShowProgress(stream, every=30)
    show("pictures (x on cpu, 2 threads)", 100, 1000)
    for done in range(200, 1001, 100):
        now[0] += 10
        show("pictures (x on cpu, 2 threads)", done, 1000)
    assert stream.getvalue().splitlines() == [
        "pictures (x on cpu, 2 threads): 1,000, 100 of them done before",
        "pictures (x on cpu, 2 threads): 200/1,000, 1 min 20 s left",
        "pictures (x on cpu, 2 threads): 500/1,000, 50 s left",
        "pictures (x on cpu, 2 threads): 800/1,000, 20 s left",
        "pictures (x on cpu, 2 threads): 1,000/1,000, 1 min 30 s in all",
    ]


def test_a_bar_on_a_terminal():
    stream = Terminal()
    show = ShowProgress(stream)
    show("captions", 0, 4)
    show("captions", 4, 4)
    show("pictures", 0, 2)
    show("pictures", 2, 2)
    assert "captions: 100%" in stream.getvalue()
    assert "pictures: 100%" in stream.getvalue()


def test_a_bank_shows_its_work(tmp_path):
    stream = io.StringIO()
    build(source(tmp_path / "p", 20), tmp_path / "b", progress=ShowProgress(stream))
    lines = stream.getvalue().splitlines()
    assert re.fullmatch(r"pictures \(toy images at 8 px on cpu, 1 thread\): 20", lines[0])
    assert any(line.startswith("captions (toy texts on cpu, 1 thread): 39/39") for line in lines)


def test_durations():
    assert [duration(s) for s in (5, 70, 3700, 3720)] == ["5 s", "1 min 10 s", "1 h 01 min", "1 h 02 min"]
