"""Small pictures, tars and tables for the tests of the readers."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(seed: int, width: int = 12, height: int = 9) -> np.ndarray:
    """Random uint8 [height, width, 3], the same for the same seed."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def picture(seed: int, form: str = "JPEG", **how) -> bytes:
    """An encoded picture of `pixels(seed)`; different seeds give different bytes."""
    return encode(Image.fromarray(pixels(seed)), form, **how)


def encode(image: Image.Image, form: str, **how) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **how)
    return out.getvalue()


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def pictures(folder: Path, count: int) -> list[str]:
    """Writes `0.jpg`, `1.jpg`, ... and gives their names."""
    return [put(folder / f"{n}.jpg", picture(n)).name for n in range(count)]


def tar(path: Path, members: dict[str, bytes | str | dict] | list[tuple[str, bytes | str | dict]]) -> Path:
    """A tar of the given members in order; dictionaries are written as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as out:
        for name, content in members.items() if isinstance(members, dict) else members:
            if isinstance(content, dict):
                content = json.dumps(content)
            data = content if isinstance(content, bytes) else content.encode("utf-8")
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path
