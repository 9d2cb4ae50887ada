"""Stateless randomness: every random choice about a sample is a pure function of (seed, epoch, pair, stream).

Nothing here has a state that could be lost when a run is killed, or that could differ between loader workers: a number
is the splitmix64 hash (Steele, Lea and Flood 2014) of what it is for. The same call gives the same number on every
machine and for every version of numpy, which its own generators do not promise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15

Numbers = int | Sequence[int] | np.ndarray


def uniform(seed: int, epoch: Numbers, pairs: Numbers, stream: str | int) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 [n], one for each of `pairs` int64 [n].

    epoch is one number or [n]. `stream` names what the number is for, so that the choices about one pair are
    independent of each other.
    """
    return (bits(seed, epoch, pairs, stream) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(seed: int, epoch: Numbers, pairs: Numbers, stream: str | int, high: Numbers) -> np.ndarray:
    """Integers in [0, high), int64 [n]; `high` is one number or [n], at least 1 (else ValueError)."""
    high = np.asarray(high, dtype=np.int64)
    if (high < 1).any():
        raise ValueError("integers() needs high >= 1")
    drawn = np.floor(uniform(seed, epoch, pairs, stream) * high).astype(np.int64)
    return np.minimum(drawn, high - 1)  # the product may round up to high when high is beyond 2^53


def order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of `count` samples in an epoch: a permutation of 0 ... count - 1, int64 [count]."""
    # The hash is a bijection of the pair number, so there are no ties: the order depends on nothing but the hash.
    return np.argsort(bits(seed, epoch, np.arange(count), "order"), kind="stable").astype(np.int64)


def bits(seed: int, epoch: Numbers, pairs: Numbers, stream: str | int) -> np.ndarray:
    """64 random bits for each of `pairs`, uint64 [n]."""
    key = np.array([_key(int(seed), stream)], dtype=np.uint64)
    epochs = np.atleast_1d(np.asarray(epoch, dtype=np.int64)).astype(np.uint64)
    numbers = np.atleast_1d(np.asarray(pairs, dtype=np.int64)).astype(np.uint64)
    step = np.uint64(GOLDEN)
    one = np.uint64(1)
    return mix(mix(key + (epochs + one) * step) + (numbers + one) * step)


def mix(x: np.ndarray) -> np.ndarray:
    """The output function of splitmix64, a bijection of uint64 [n]."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _key(seed: int, stream: str | int) -> int:
    """One 64-bit number for a seed and a stream; the names of streams go through a hash that is the same everywhere."""
    text = f"{seed & MASK}\0{type(stream).__name__}\0{stream}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
