"""What differs between a source that was begun and one that is asked for, in the words of the flags."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

FLAGS = {
    "settings.operations": "--operations",
    "settings.augment.scale": "--crop",
    "settings.augment.flip": "--flip",
    "captions": "--captions",
}
# Digests, which say nothing to a person.
DIGESTS = {
    "pairs_fingerprint": "the pairs (their pictures, captions or order)",
    "weights": "weights",
    "identity": "identity (weights, preprocessing or tokenizer)",
}
LONGEST = 100  # characters of a value


def differences(before: Mapping[str, Any], now: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """`--augmentations 10 (now 5)` for each of `keys` that has another value now."""
    return [said for key in sorted(keys) if before.get(key) != now.get(key) for said in _of(key, before.get(key), now.get(key))]


def _of(key: str, before: Any, now: Any) -> list[str]:
    """Of one key and what is below it."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        below = {f"{key}.{name}": (before.get(name), now.get(name)) for name in sorted({*before, *now})}
        return [said for name, (old, new) in below.items() if old != new for said in _of(name, old, new)]
    if key == "teachers" and isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        # What only one of them has was not written by an earlier version.
        changed = [(new["name"], differences(old, new, {*old} & {*new})) for old, new in zip(before, now)]
        return [f"teachers: {name!r} is another one ({', '.join(said)})" for name, said in changed if said]
    if key in DIGESTS:
        return [DIGESTS[key]]
    return [f"{FLAGS.get(key, key.replace('settings.', '--', 1))} {_short(before)} (now {_short(now)})"]


def _short(value: Any) -> str:
    """A value as one would type it; of teachers and captioners their names or what made them."""
    if isinstance(value, list):
        value = ", ".join(map(_short, value)) or "none"
    if isinstance(value, Mapping):
        value = value.get("made_by") or value.get("name") or dict(value)
    text = {True: "rand-augment", False: "none"}[value] if isinstance(value, bool) else str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
