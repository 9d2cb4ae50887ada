"""What a student sees of a picture: the random crop and flip of training, and the fixed pixels of evaluation.

A crop is a box in unit coordinates of the source picture (x, y, width, height in [0, 1]), so the student and a frozen
encoder can render the same crop of the same picture, each at its own size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from clipling.data import draw
from clipling.errors import UserError, near

if TYPE_CHECKING:
    import torch

TRIES = 10  # as torchvision's RandomResizedCrop, before it falls back to a central crop
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Augment:
    """How training pictures are varied.

    scale: range of the crop's share of the picture's area; (1, 1) means no crop.
    ratio: range of the crop's width / height, in pixels of the source picture.
    flip: probability of a mirrored picture. 0 by default: a flip turns "left" into "right".
    views: 0 = a new crop every epoch; K > 0 = only K crops of a picture exist, one of them is drawn each epoch (so that
        a bank can hold the features of all of them).
    """

    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (0.75, 1.3333)
    flip: float = 0.0
    views: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(f"augment.scale is {self.scale}; expected two shares of the area, 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(f"augment.ratio is {self.ratio}; expected width / height as 0 < low <= high")
        if not 0 <= self.flip <= 1:
            raise UserError(f"augment.flip is {self.flip}; expected a probability between 0 and 1")
        if self.views < 0:
            raise UserError(f"augment.views is {self.views}; expected 0 (a new crop every epoch) or a number of crops")

    @property
    def crops(self) -> bool:
        """False when every picture is taken whole."""
        return self.scale[0] < 1


def view_number(augment: Augment, seed: int, epoch: draw.Numbers, pairs: np.ndarray) -> np.ndarray:
    """Which of the `augment.views` views of each pair this epoch shows, int64 [n]."""
    if augment.views < 1:
        raise ValueError("view_number() needs augment.views >= 1: without it every epoch has a view of its own")
    return draw.integers(seed, epoch, pairs, "view", augment.views)


def crops(augment: Augment, seed: int, epoch: draw.Numbers, pairs: np.ndarray, aspect: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The crop and flip of each pair in an epoch: boxes float64 [n, 4] and flips bool [n].

    pairs int64 [n]; aspect float64 [n] is width / height of the source pictures. With `augment.views` the result
    depends on the epoch through `view_number` only.
    """
    view = view_number(augment, seed, epoch, pairs) if augment.views else epoch
    return crops_of_view(augment, seed, view, pairs, aspect)


def crops_of_view(augment: Augment, seed: int, view: draw.Numbers, pairs: np.ndarray, aspect: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`crops` of a stated view (one number or [n]): what a bank with `views=K` renders for each view 0 ... K - 1."""
    pairs = np.atleast_1d(np.asarray(pairs, dtype=np.int64))
    aspect = np.broadcast_to(np.asarray(aspect, dtype=np.float64), pairs.shape)
    if augment.crops:
        boxes = _random_boxes(augment, seed, view, pairs, aspect)
    else:
        boxes = np.tile(np.array(WHOLE), (len(pairs), 1))
    if augment.flip > 0:
        flips = draw.uniform(seed, view, pairs, "flip") < augment.flip
    else:
        flips = np.zeros(len(pairs), dtype=bool)
    return boxes, flips


def _random_boxes(augment: Augment, seed: int, view: draw.Numbers, pairs: np.ndarray, aspect: np.ndarray) -> np.ndarray:
    """RandomResizedCrop (Szegedy et al. 2015) as torchvision does it, in unit coordinates. [n, 4]"""
    low, high = augment.scale
    log_low, log_high = math.log(augment.ratio[0]), math.log(augment.ratio[1])
    size = _central_sizes(augment, aspect)
    central = np.ones(len(pairs), dtype=bool)
    for attempt in range(TRIES):
        area = low + (high - low) * draw.uniform(seed, view, pairs, f"crop area {attempt}")
        ratio = np.exp(log_low + (log_high - log_low) * draw.uniform(seed, view, pairs, f"crop ratio {attempt}"))
        # In units where the source is 1 high and `aspect` wide, the crop's area is area * aspect.
        drawn = np.stack([np.sqrt(area * ratio / aspect), np.sqrt(area * aspect / ratio)], axis=1)
        taken = central & (drawn <= 1).all(axis=1)
        size[taken] = drawn[taken]
        central &= ~taken
        if not central.any():
            break
    place = np.stack([draw.uniform(seed, view, pairs, "crop x"), draw.uniform(seed, view, pairs, "crop y")], axis=1)
    place[central] = 0.5
    return np.concatenate([place * (1 - size), size], axis=1)


def _central_sizes(augment: Augment, aspect: np.ndarray) -> np.ndarray:
    """Width and height [n, 2] of the largest central crop whose width / height is within the allowed ratios."""
    width = np.minimum(1.0, augment.ratio[1] / aspect)
    height = np.minimum(1.0, aspect / augment.ratio[0])
    return np.stack([width, height], axis=1)


def render(picture: np.ndarray, box: np.ndarray, flip: bool, size: int, interpolation: str = "bicubic") -> np.ndarray:
    """One crop of one picture: uint8 [h, w, 3] -> uint8 [size, size, 3].

    The box is rounded to whole pixels of the picture, then resized with antialiasing. Needs torch.
    """
    import torch

    # A copy: torch warns about arrays that it may not write. And unsqueezed by torch: of numpy's new axis, which has no stride, torch
    # does not see that the memory is channels-last, and its kernel takes four times as long for the same pixels.
    window = torch.from_numpy(np.ascontiguousarray(picture[_window(box, picture)]).copy()).unsqueeze(0)
    target = torch.empty((1, size, size, 3), dtype=torch.uint8)
    _resize_into(target, window, flip, interpolation)
    return target[0].numpy()


def render_batch(pictures: np.ndarray, boxes: np.ndarray, flips: np.ndarray, size: int, interpolation: str = "bicubic") -> torch.Tensor:
    """`render` of many pictures of one size: uint8 [n, h, w, 3] -> uint8 [n, 3, size, size] in channels-last memory."""
    import torch

    count, height, width, _ = pictures.shape
    source = torch.from_numpy(pictures)
    if height == width == size and not np.any(flips) and np.array_equal(boxes, np.tile(WHOLE, (count, 1))):
        return source.permute(0, 3, 1, 2)
    target = torch.empty((count, size, size, 3), dtype=torch.uint8)
    for i in range(count):
        window = source[i : i + 1][(slice(None), *_window(boxes[i], pictures[i]))]
        _resize_into(target[i : i + 1], window, bool(flips[i]), interpolation)
    return target.permute(0, 3, 1, 2)


def _resize_into(target: torch.Tensor, window: torch.Tensor, flip: bool, interpolation: str) -> None:
    """Writes `window` uint8 [1, h, w, 3], resized and possibly mirrored, into `target` [1, size, size, 3]."""
    # torch's own uint8 kernel on channels-last views: no copy of the crop and no float; 2 to 4 times as quick as Pillow
    # and 1.7 times as quick as torchvision's resized_crop, which calls the same kernel through more layers.
    from torch.nn.functional import interpolate

    if interpolation not in RESAMPLING:
        raise UserError(f"unknown interpolation {interpolation!r}. {near(interpolation, RESAMPLING)}")
    size = target.shape[1]
    if window.shape[1] != size or window.shape[2] != size:
        window = interpolate(window.permute(0, 3, 1, 2), size=(size, size), mode=interpolation, antialias=True)
        window = window.permute(0, 2, 3, 1)
    target.copy_(window.flip(2) if flip else window)


def _window(box: np.ndarray, picture: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of `picture` [h, w, 3] that a box in unit coordinates covers."""
    height, width = picture.shape[:2]
    return slice(*pixel_range(box[1], box[3], height)), slice(*pixel_range(box[0], box[2], width))


def pixel_range(start: float, length: float, pixels: int) -> tuple[int, int]:
    """First and one-past-last pixel of a unit interval: rounded, inside the picture, at least one pixel."""
    first = min(int(start * pixels + 0.5), pixels - 1)
    last = min(max(int((start + length) * pixels + 0.5), first + 1), pixels)
    return first, last


def eval_pixels(image: Image.Image, preprocess_cfg: Mapping[str, Any]) -> np.ndarray:
    """What a model sees of a picture in evaluation, uint8 [s, s, 3], before scaling and normalising.

    Bit for bit what open_clip's `image_transform(is_train=False)` makes of the same `preprocess_cfg` (keys `size`,
    `resize_mode`, `interpolation`, `fill_color`; `mean` and `std` belong to the model).
    """
    size = _square(preprocess_cfg.get("size", 224))
    mode = preprocess_cfg.get("resize_mode") or "shortest"
    interpolation = preprocess_cfg.get("interpolation") or "bicubic"
    if interpolation not in (*RESAMPLING, "random"):
        raise UserError(f"unknown interpolation {interpolation!r} in preprocess_cfg. {near(interpolation, RESAMPLING)}")
    resampling = RESAMPLING.get(interpolation, Image.Resampling.BICUBIC)  # open_clip: "random" evaluates as bicubic
    image = image if image.mode == "RGB" else image.convert("RGB")
    if mode == "squash":
        image = _resize(image, (size, size), resampling)
    elif mode == "shortest":
        width, height = image.size
        short = min(width, height)
        image = _resize(image, (int(size * width / short), int(size * height / short)), resampling)
        image = _centre(image, size, 0)
    elif mode == "longest":
        ratio = max(image.height / size, image.width / size)
        scaled = (max(1, round(image.width / ratio)), max(1, round(image.height / ratio)))
        image = _centre(_resize(image, scaled, resampling), size, preprocess_cfg.get("fill_color") or 0)
    else:
        allowed = ("shortest", "longest", "squash")
        raise UserError(f"unknown resize_mode {mode!r} in preprocess_cfg. {near(str(mode), allowed)}")
    return np.asarray(image)


def _square(size: int | list[int] | tuple[int, int]) -> int:
    if isinstance(size, int):
        return size
    if len(set(size)) != 1:
        raise UserError(f"preprocess_cfg.size is {list(size)}; only square images are supported")
    return int(size[0])


def _resize(image: Image.Image, size: tuple[int, int], resampling: Image.Resampling) -> Image.Image:
    return image if image.size == size else image.resize(size, resampling)


def _centre(image: Image.Image, size: int, fill: int) -> Image.Image:
    """Pads with `fill` where the picture is too small and cuts the centre where it is too large."""
    across, down = max(0, size - image.width), max(0, size - image.height)
    if across or down:
        border = (across // 2, down // 2, (across + 1) // 2, (down + 1) // 2)
        image = ImageOps.expand(image, border=border, fill=(fill,) * 3)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))
