"""`clipling data pack SRC OUT`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from clipling.errors import UserError


def pack(
    source: Positional[str],
    out: Positional[Path],
    /,
    size: str = "256",
    quality: int = 90,
    shard: int = 1000,
    image_column: str | None = None,
    caption_column: str | None = None,
    separator: str | None = None,
    group: str | None = None,
    photos: bool = False,
    at_once: int | None = None,
    timeout: float = 20.0,
    retries: int = 2,
    most_mb: int = 64,
    retry: bool = False,
    json: bool = False,
) -> dict[str, Any]:
    """Copies any source into tars of small pictures that train fast: also tables of links, and tars behind https://, s3:// or gs://.

    Continues where it was stopped. Rows that cannot be used are left out and listed in OUT/problems.tsv.

    Args:
        source: What `clipling data inspect` takes, links of such files, or a table whose image column holds links.
        out: The folder that is made; give it as --data afterwards.
        size: Pixels of the shorter side (larger pictures become JPEGs of this size), or none: all bytes stay as they are.
        quality: Quality of these JPEGs.
        shard: Pairs of one tar.
        image_column: Column of the picture's path or link, when it cannot be guessed.
        caption_column: Column of the caption, when it cannot be guessed.
        separator: Separator of a CSV file, when it cannot be guessed.
        group: Column that names a product.
        photos: Keep pictures without captions too, for `clipling distill`.
        at_once: Pictures that are read, or downloaded, at the same time (default: a few a core; links are waited for, so more is fine).
        timeout: Seconds after which an attempt to download ends.
        retries: Attempts after the first.
        most_mb: Megabytes of one picture behind a link above which it is left out.
        retry: Try again what could not be fetched or read in an earlier call.
        json: Print as JSON.
    """
    from clipling.data.pack import pack as make
    from clipling.data.reading import Options
    from clipling.data.remote import Fetch
    from clipling.guides.progress import ShowProgress, silent

    options = Options(image_column, caption_column, group, separator, captions_optional=photos)
    fetch = Fetch(timeout, retries, most_mb * 2**20)
    at_once = 4 * (os.cpu_count() or 1) if at_once is None else at_once
    progress = silent if json else ShowProgress()
    return make(
        source, out, options, size=pixels(size), quality=quality, shard=shard, fetch=fetch, at_once=at_once, retry=retry, progress=progress
    )


def pixels(size: str | int | None) -> int | None:
    """`256` as a number, `none` as None."""
    if size is None or str(size).lower() == "none":
        return None
    try:
        return int(size)
    except ValueError:
        raise UserError(f"--size {size}: expected a number of pixels, or none") from None
