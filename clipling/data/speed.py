"""How quickly the pictures of a source are decoded, and whether training would wait for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from shlex import quote
from typing import Any

import numpy as np

from clipling.data.images import ImageError, decode
from clipling.data.pack_picture import QUALITY, packed_picture
from clipling.data.pairs import Pairs
from clipling.data.views import WHOLE, eval_pixels
from clipling.errors import UserError

MARGIN = 1.25  # pictures are held so much larger than they are seen (see run.make_batches)
CACHE_GB = 16.0
_MOST = 64
_SECONDS = 1.0
_WORTH = 1.5  # times faster: less is not worth a copy of the source


def loading(pairs: Pairs, size: int, rate: float | None = None, workers: int = 1, cache_gb: float = CACHE_GB) -> dict[str, Any]:
    """What loading costs for a student that sees `size` pixels, measured on up to 64 pictures with one thread, fit for JSON.

    rate: pairs a second that training takes (`samples_seen` over `seconds` of a run's summary); None: unknown.
    Values are pairs a second of one process: `exact` as pixels are decoded by default, `fast` by data.decode=fast, `packed` both packed
    and fast. `starves` is None where no rate is given. Raises UserError for sizes and rates that make no sense.
    """
    if size < 8 or (rate is not None and not rate > 0) or workers < 1:
        raise UserError(
            f"--size {size}, --rate {rate}, --workers {workers}: expected at least 8 pixels, a positive rate, 1 or more workers"
        )
    held = round(size * MARGIN)
    pack_size = max(16, -(-held // 16) * 16)
    pictures = _sample(pairs)
    found: dict[str, Any] = {
        "size": size,
        "pictures": len(pictures),
        "exact": _speed(pictures, lambda data: _exact(data, held)),
        "fast": _speed(pictures, lambda data: _fast(data, held)) if _has_torch() else None,
        "kilobytes": round(float(np.mean([len(data) for data in pictures])) / 1000, 1) if pictures else 0.0,
    }
    packed = [packed_picture(data, pack_size, QUALITY)[0] for data in pictures]
    found["packed"] = _speed(packed, lambda data: _fast(data, held)) if found["fast"] else None
    found["packed_kilobytes"] = round(float(np.mean([len(data) for data in packed])) / 1000, 1) if packed else 0.0
    gigabytes = len(pairs) * held * held * 3 / 2**30
    found |= {"pixels_gb": round(gigabytes, 3), "cached": gigabytes <= cache_gb, "rate": rate, "workers": workers, "pack_size": pack_size}
    return {**found, **_verdict(pairs, found)}


def _verdict(pairs: Pairs, found: dict[str, Any]) -> dict[str, Any]:
    """`starves`, `said` (a sentence), and `command` where packing mends it."""
    exact, fast, packed = (found[name] or 0.0 for name in ("exact", "fast", "packed"))
    if not exact:
        return {"starves": None, "said": "there is nothing to measure", "command": None}
    command = f"clipling data pack {quote(pairs.name)} PACKED --size {found['pack_size']}"
    pays = packed >= _WORTH * max(exact, fast)
    if found["cached"]:
        once = len(pairs) / exact / 60
        spent = f"about {once:.0f} min" if once >= 1 else "less than a minute"
        said = f"their pixels ({found['pixels_gb']:.1f} GB) are decoded once, in {spent} of one core, and kept: "
        said += "training does not wait"
        return {"starves": None if found["rate"] is None else False, "said": said, "command": command if pays and once > 10 else None}
    have, best = found["workers"] * exact, found["workers"] * max(fast, exact)
    before = f"their pixels ({found['pixels_gb']:.1f} GB) are too many to keep, so pictures are decoded at every step: "
    if found["rate"] is None:
        said = before + f"a student that takes more than {have:,.0f} pairs a second will wait (--rate says whether yours does)"
        return {"starves": None, "said": said, "command": command if pays else None}
    if have >= found["rate"]:
        return {"starves": False, "said": before + f"{have:,.0f} a second are enough for {found['rate']:,.0f}", "command": None}
    said = before + f"{have:,.0f} a second starve a device that takes {found['rate']:,.0f}"
    mends = []
    if best >= found["rate"]:
        mends.append(f"--set data.decode=fast ({best:,.0f} a second)")
    mends.append(f"--set data.workers={int(np.ceil(found['rate'] / max(fast, exact)))} data.decode=fast, on as many cores")
    return {"starves": True, "said": f"{said}. What mends it: {', or '.join(mends)}", "command": command if pays else None}


def lines(found: dict[str, Any]) -> list[str]:
    """The result of `loading` as lines for a terminal."""
    if not found["exact"]:
        return []
    names = {"exact": "as they are", "fast": "with data.decode=fast", "packed": f"packed at {found['pack_size']} px"}
    speeds = ", ".join(f"{found[name]:,.0f} {said}" for name, said in names.items() if found[name])
    student = found.get("student")  # the verb knows it
    default = f"; {student['name']}, the default student, sees {student['size']} px" if student else ""
    made = [
        f"loading at {found['size']} px (--size){default}",
        f"  pairs a second      {speeds} (one process, {found['pictures']} pictures measured)",
    ]
    made.append(f"  {found['said']}")
    if found["command"]:
        gain = f"{found['packed'] / max(found['fast'] or 0.0, found['exact']):.1f} times as fast"
        made.append(f"  {gain} ({found['packed_kilobytes']:g} instead of {found['kilobytes']:g} kB a picture), once packed:")
        made.append(f"  {found['command']}")
    return made


def _sample(pairs: Pairs) -> list[bytes]:
    """The bytes of up to 64 readable pictures, evenly spread."""
    found = []
    for i in sorted({int(i) for i in np.linspace(0, len(pairs) - 1, min(len(pairs), _MOST))}) if len(pairs) else ():
        try:
            data = pairs.image_bytes(i)
            decode(data, least=16)
        except (ImageError, UserError):
            continue
        found.append(data)
    return found


def _speed(pictures: Sequence[bytes], work: Callable[[bytes], Any]) -> float:
    """Pictures a second, of as many as fit into a second; the first is not counted."""
    if not pictures:
        return 0.0
    work(pictures[0])
    began, done = time.perf_counter(), 0
    while done < len(pictures) and (not done or time.perf_counter() - began < _SECONDS):
        work(pictures[done])
        done += 1
    return round(done / (time.perf_counter() - began), 1)


def _exact(data: bytes, held: int) -> np.ndarray:
    return eval_pixels(decode(data), {"size": held, "resize_mode": "squash"})


def _fast(data: bytes, held: int) -> np.ndarray:
    from clipling.data.images import decode_fast
    from clipling.data.views import render

    return render(decode_fast(data, held)[0], np.array(WHOLE), False, held)


def _has_torch() -> bool:
    try:
        import torch  # noqa: F401
    except ImportError:
        return False
    return True
