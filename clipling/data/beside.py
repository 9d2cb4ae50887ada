"""The `.json` and `.txt` beside a picture, in a tar or in a folder: one set of rules for both."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from clipling.data.reading import Options, clean_captions, field_of, text_of, texts_of

PACKED_KEY = "clipling_key"  # the field of .json that holds a key which is no good name of a member
# What img2dataset writes into each JSON: where a picture came from and how it was resized, nothing about its content.
_DOWNLOAD_FIELDS = {
    *("key", "url", "status", "error_message", "sha256", "md5", "exif", "shard_id"),
    *("width", "height", "original_width", "original_height"),
}


def record_of(data: bytes) -> dict[str, Any]:
    """The object of a `.json`. Raises ValueError that says why it is none."""
    try:
        record = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}"[:300]) from error
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    return record


def captions_of(record: dict[str, Any], text: Callable[[], str | None], options: Options) -> list[str]:
    """The field `caption` or `captions`, or the one that `caption_column` names alone; without captions there, the lines of the `.txt`.

    text: reads the `.txt` (None: there is none), and is called where it is needed.
    """
    if options.caption_column is not None:
        return clean_captions(texts_of(field_of(record, options.caption_column)) or [])
    for name in ("caption", "captions"):
        captions = clean_captions(texts_of(record.get(name)) or [])
        if captions:
            return captions
    content = text()
    return clean_captions(content.split("\n")) if content is not None else []


def group_and_extras(record: dict[str, Any], options: Options) -> tuple[str, dict[str, Any]]:
    """The field `group`, or the one that is named, and all fields that are used for nothing else."""
    group = options.group or "group"
    used = {"caption", "captions", PACKED_KEY, group, options.caption_column, *_DOWNLOAD_FIELDS}
    extras = {name: value for name, value in record.items() if name not in used and value is not None}
    return text_of(field_of(record, group)), extras
