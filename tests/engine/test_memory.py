"""malloc keeps what a step frees while training, gives it back afterwards, and leaves a user's own settings alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from clipling.engine.memory import freed_memory_kept, glibc, user_decided

needs_glibc = pytest.mark.skipif(glibc() is None, reason="not glibc")

FAULTS = """
import resource
from clipling.engine.memory import freed_memory_kept
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        b"x" * (40 * 2**20)  # 40 MiB: above glibc's largest threshold
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
