"""Pictures and texts by which an exported model is checked, here and on any device: made by us, the same every time."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

from clipling.data.images import decode
from clipling.data.toyworld_draw import draw
from clipling.data.toyworld_world import World

TEXTS = (
    "a red circle above a blue square",
    "A dog runs through the snow.",
    "two children play with a ball in the park while their parents watch them from a bench",
    "café &amp; crème — £5 🐕",
    "",
)
_ORIENTATION = 0x0112
_QUARTER = 6  # EXIF: shown upright when turned by 90 degrees clockwise


@dataclass(frozen=True)
class Photo:
    """A picture file. `lossless`: every decoder gives the same pixels (PNG); those of JPEG differ a little."""

    name: str
    data: bytes
    lossless: bool

    @property
    def image(self) -> Image.Image:
        """Upright RGB, as the runtime decodes it."""
        return decode(self.data)


def photos(size: int) -> list[Photo]:
    """Five scenes of ToyWorld: of the model's own `size` (which no resize changes), larger, of odd size, as JPEG, and turned by EXIF."""
    world = World(pairs=5, seed=20, size=224)
    scenes = [draw(world.scene(i)) for i in range(5)]
    exif = Image.Exif()
    exif[_ORIENTATION] = _QUARTER
    return [
        Photo("exact.png", _png(scenes[0].resize((size, size))), True),
        Photo("large.png", _png(scenes[1]), True),
        Photo("odd.png", _png(scenes[2].crop((20, 40, 177, 141))), True),
        Photo("tall.jpg", _jpeg(scenes[3].crop((30, 0, 190, 224))), False),
        Photo("turned.jpg", _jpeg(scenes[4].crop((0, 20, 200, 140)), exif), False),
    ]


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _jpeg(image: Image.Image, exif: Image.Exif | None = None) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92, subsampling=0, **({"exif": exif} if exif else {}))
    return buffer.getvalue()
