"""malloc keeps what a step frees while training, gives it back afterwards, and leaves a user's own settings alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from clipling.engine import memory
from clipling.engine.memory import freed_memory_kept, glibc, user_decided

needs_glibc = pytest.mark.skipif(glibc() is None, reason="not glibc")

FAULTS = """
import resource
from clipling.engine.memory import freed_memory_kept
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        b"x" * (100 * 2**20)  # 100 MiB: above glibc's largest threshold, and what TOP_PAD alone keeps
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
plain = faults()
with freed_memory_kept() as told:
    faults()
    kept = faults()
after = faults()
print(plain, kept, after, told)
"""


def run(**environment: str) -> list[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, env={**kept, **environment}, check=True)
    return done.stdout.split()


@needs_glibc
def test_freed_memory_is_used_again_and_given_back_afterwards():
    plain, kept, after, told = run()
    assert told == "True"
    assert int(plain) > 20 * 1000, "bytes no longer show what is tested"
    assert int(kept) < int(plain) / 20
    assert int(after) > int(plain) / 2


@needs_glibc
def test_a_user_who_set_malloc_is_left_alone(monkeypatch):
    plain, kept, _, told = run(MALLOC_ARENA_MAX="2")
    assert told == "False"
    assert int(kept) > int(plain) / 2
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    assert user_decided()
    with freed_memory_kept() as told:
        assert told is False


def test_elsewhere_nothing_happens(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with freed_memory_kept() as told:
        assert told is False


@pytest.mark.parametrize("name", ["LD_PRELOAD", "GLIBC_TUNABLES", "MALLOC_TOP_PAD_"])
def test_whatever_a_user_decided_by(monkeypatch, name):
    for other in [other for other in os.environ if other in ("LD_PRELOAD", "GLIBC_TUNABLES") or other.startswith("MALLOC_")]:
        monkeypatch.delenv(other)
    assert not user_decided()
    monkeypatch.setenv(name, "x")
    assert user_decided()


def test_the_documented_defaults_are_put_back_also_after_an_error(monkeypatch):
    class Library:
        settings: dict[int, int] = {}  # noqa: RUF012
        trimmed = 0

        def mallopt(self, option: int, value: int) -> int:
            self.settings[option] = value
            return 1

        def malloc_trim(self, pad: int) -> None:
            self.trimmed += 1

    library = Library()
    monkeypatch.setattr(memory, "glibc", lambda: library)
    monkeypatch.setattr(memory, "user_decided", lambda: False)

    def failing() -> None:
        with freed_memory_kept() as told:
            assert told is True
            assert library.settings == {-4: 0, -1: 2**31 - 1, -2: 2**26}
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert library.settings == {-4: 65536, -1: 131072, -2: 131072}
    assert library.trimmed == 1
