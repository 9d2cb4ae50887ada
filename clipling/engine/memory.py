"""Memory that a training step frees is kept for the next step.

glibc gives every freed tensor of some size back to the system, and each step asks for it again: the kernel then fills hundreds of
thousands of pages with zeros, about a fifth of the processor's time of a small student (benchmarks/train_throughput.py
measures it). It is the same as MALLOC_MMAP_MAX_=0 with MALLOC_TRIM_THRESHOLD_ and MALLOC_TOP_PAD_ set high, but nobody has to know.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

# The numbers of glibc's malloc.h: mallopt(3).
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
MOST = 2**31 - 1
PAD = 64 * 2**20


def glibc() -> ctypes.CDLL | None:
    """The C library of this process where it is glibc, whose malloc can be told; None elsewhere."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt") else None


def user_decided() -> bool:
    """Whether the environment says how to allocate: what a user set is left alone."""
    return "LD_PRELOAD" in os.environ or "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ)


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[bool]:
    """Meanwhile malloc keeps what is freed; at the end it gives back what is free. Yields whether malloc was told.

    glibc has no way to ask for its former settings, so afterwards they are its documented defaults (128 KiB, 128 KiB, 65,536).
    """
    library = None if user_decided() else glibc()
    if library is None:
        yield False
        return
    told = [library.mallopt(option, value) for option, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, MOST), (TOP_PAD, PAD))]
    try:
        yield all(told)
    finally:
        for option, value in ((MMAP_MAX, 65536), (TRIM_THRESHOLD, 128 * 1024), (TOP_PAD, 128 * 1024)):
            library.mallopt(option, value)
        library.malloc_trim(0)
