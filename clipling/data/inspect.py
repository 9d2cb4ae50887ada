"""What a source holds: what was parsed, caption statistics, duplicates, problems and samples."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from clipling.data import speed
from clipling.data.images import ImageError, size_and_format
from clipling.data.pairs import Pairs, normalise_caption
from clipling.data.problems import heading
from clipling.data.split import published_split, split
from clipling.errors import UserError

_MOST_HEADERS = 2000
_SAMPLES = 5


def inspect(pairs: Pairs) -> dict[str, Any]:
    """Everything that `clipling data inspect` shows, fit for JSON.

    Sizes and formats of images are those of at most 2,000 pairs, evenly spread. Duplicates count the pairs beyond the
    first of each kind.
    """
    counts = np.diff(pairs.offsets)
    words = np.array([len(caption.split()) for caption in pairs.captions])
    return {
        "source": pairs.name,
        "pairs": len(pairs),
        "captions": len(pairs.captions),
        "captions_per_pair": _spread(counts),
        "words_per_caption": _spread(words),
        "duplicate_images": _repeated(pairs.hashes),
        "duplicate_captions": _repeated([normalise_caption(caption) for caption in pairs.captions]),
        "linked_pairs": sum(map(bool, pairs.links())),
        "groups": len(set(pairs.groups) - {""}),
        "extras": dict(Counter(name for extras in pairs.extras for name in extras).most_common(20)),
        "languages": dict(Counter(name for extras in pairs.extras for name in _languages(extras)).most_common(20)),
        "images": _images(pairs),
        "split": _split_sizes(pairs),
        "problems": pairs.problems.counts(),
        "problem_list": str(pairs.problems.path) if pairs.problems.path else None,
        "first_problems": [list(problem) for problem in pairs.problems.rows[:_SAMPLES]],
        "samples": [{"key": pairs.keys[i], "captions": pairs.captions_of(i)} for i in _evenly(len(pairs), _SAMPLES)],
        "fingerprint": pairs.fingerprint,
    }


def render(info: dict[str, Any]) -> str:
    """The dictionary of `inspect` as text for a terminal, without a newline at the end."""
    lines = [
        str(info["source"]),
        f"  pairs               {info['pairs']:,}",
        f"  captions            {info['captions']:,}",
        f"  captions per pair   {_range(info['captions_per_pair'])}",
        f"  words per caption   {_range(info['words_per_caption'])}",
        f"  duplicates          {info['duplicate_images']:,} images, {info['duplicate_captions']:,} captions; "
        f"{info['linked_pairs']:,} pairs share an image, a caption or a group with another",
    ]
    if info["groups"]:
        lines.append(f"  groups              {info['groups']:,}")
    if info["extras"]:
        lines.append(f"  extras              {_counts(info['extras'])}")
    if info["languages"]:
        lines.append(f"  languages           {_counts(info['languages'])}")
    images = info["images"]
    lines.append(f"  images              {_counts(images['formats'])}; of {images['looked_at']:,} looked at")
    for name in ("width", "height"):
        lines.append(f"  {name + ' in pixels':<18}  {_range(images[name])}")
    split_info = info["split"]
    sizes = ", ".join(f"{name} {size:,}" for name, size in split_info["sizes"].items())
    lines.append(f"  split               {split_info['made_by']}: {sizes}" if sizes else f"  split  {split_info['made_by']}")
    if "loading" in info:
        lines.extend(speed.lines(info["loading"]))
    lines.append("samples")
    for sample in info["samples"]:
        lines.append(f"  {sample['key']}")
        lines.extend(f"    {caption[:200]}" for caption in sample["captions"])
    return "\n".join(lines + _problem_lines(info))


def _problem_lines(info: dict[str, Any]) -> list[str]:
    if not info["problems"]:
        return ["no problems"]
    lines = [heading(info["problems"])]
    lines.extend(f"  {where}: {detail[:200]}" for _, where, detail in info["first_problems"])
    if info["problem_list"]:
        lines.append(f"  all are listed in {info['problem_list']}")
    return lines


def _spread(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {"min": 0, "mean": 0.0, "max": 0}
    return {"min": int(values.min()), "mean": round(float(values.mean()), 2), "max": int(values.max())}


def _range(spread: dict[str, float]) -> str:
    return f"{spread['min']:,} to {spread['max']:,}, mean {spread['mean']:,.1f}"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _repeated(values: list[str]) -> int:
    return len(values) - len(set(values))


def _languages(extras: dict) -> list[str]:
    return list(extras["lang"]) if isinstance(extras.get("lang"), dict) else []


def _evenly(count: int, most: int) -> list[int]:
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, most))}) if count else []


def _images(pairs: Pairs) -> dict[str, Any]:
    formats: Counter[str] = Counter()
    sizes = []
    rows = _evenly(len(pairs), _MOST_HEADERS)
    for i in rows:
        try:
            width, height, name = size_and_format(pairs.image_bytes(i))
        except (ImageError, UserError):
            name = "unreadable"
        else:
            sizes.append((width, height))
        formats[name] += 1
    table = np.array(sizes, dtype=np.int64).reshape(-1, 2)
    return {
        "looked_at": len(rows),
        "formats": dict(formats.most_common()),
        "width": _spread(table[:, 0]),
        "height": _spread(table[:, 1]),
    }


def _split_sizes(pairs: Pairs) -> dict[str, Any]:
    published = published_split(pairs)
    try:
        train, val = split(pairs)
    except UserError as error:
        return {"made_by": str(error), "sizes": {}}
    sizes = {"train": len(train), "val": len(val)}
    if published is None:
        return {"made_by": "by hash of the images", "sizes": sizes}
    made_by = "as published" if len(published["val"]) else "train as published, val by hash of the images"
    return {"made_by": made_by, "sizes": {**sizes, "test": len(published["test"])}}
