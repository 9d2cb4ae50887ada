"""Pictures that were uploaded to search by: their embeddings and thumbnails, under a name that nobody can guess."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from typing import NamedTuple

import numpy as np

from clipling.data.images import ImageError, decode, size_and_format
from clipling.deploy.search.index import thumbnail
from clipling.deploy.search.search import NotThere, Search

_LARGE = 16_000_000  # pixels


class Upload(NamedTuple):
    """embedding: unit, [d]. webp: the thumbnail. The picture itself is not kept."""

    name: str
    embedding: np.ndarray
    webp: bytes
    width: int
    height: int


class Uploads:
    """The last so many; the oldest is forgotten for a new one."""

    def __init__(self, search: Search, most: int, pixels: int) -> None:
        self._search, self._most, self._pixels = search, most, pixels
        self._lock = threading.Lock()
        self._held: OrderedDict[str, Upload] = OrderedDict()

    def add(self, data: bytes) -> Upload:
        """Raises ImageError for what is no picture, or has more pixels than allowed."""
        width, height, form = size_and_format(data)
        if form == "ICO":  # its frames are compressed pictures whose size Pillow learns only while it decodes them
            raise ImageError("icons are not searched by")
        if width * height > self._pixels:
            raise ImageError(f"{width} x {height} pixels are more than the limit of {self._pixels:,}")
        image = decode(data, self._pixels)
        # The graph resizes in floats, 12 bytes a pixel and more: halved exactly, a large picture costs a quarter and says the same.
        small = image.reduce(2) if width * height > _LARGE else image
        made = Upload(secrets.token_urlsafe(12), self._search.picture(small), thumbnail(small), *image.size)
        with self._lock:
            self._held[made.name] = made
            while len(self._held) > self._most:
                self._held.popitem(last=False)
        return made

    def get(self, name: str) -> Upload:
        """Raises NotThere for one that was never there or is forgotten."""
        with self._lock:
            if name not in self._held:
                raise NotThere("this upload is no longer there: show the picture again")
            self._held.move_to_end(name)
            return self._held[name]
