"""Crops against torchvision's RandomResizedCrop, rendering against Pillow, evaluation pixels against open_clip."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from clipling.data import draw, views
from clipling.data.views import Augment, crops, crops_of_view, eval_pixels, render, render_batch, view_number
from clipling.errors import UserError


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth picture with every channel different."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def one_crop(augment: Augment, seed: int, view: int, pair: int, aspect: float) -> list[float]:
    """The same crop by a plain loop that follows torchvision's text, on a source of height 1 and width `aspect`."""
    for attempt in range(10):
        area = aspect * np.interp(draw.uniform(seed, view, pair, f"crop area {attempt}")[0], [0, 1], augment.scale)
        log_ratio = np.interp(draw.uniform(seed, view, pair, f"crop ratio {attempt}")[0], [0, 1], np.log(augment.ratio))
        width, height = math.sqrt(area * math.exp(log_ratio)), math.sqrt(area / math.exp(log_ratio))
        if width <= aspect and height <= 1:
            x = draw.uniform(seed, view, pair, "crop x")[0] * (aspect - width)
            y = draw.uniform(seed, view, pair, "crop y")[0] * (1 - height)
            return [x / aspect, y, width / aspect, height]
    width, height = aspect, 1.0
    if aspect < augment.ratio[0]:
        height = aspect / augment.ratio[0]
    elif aspect > augment.ratio[1]:
        width = augment.ratio[1]
    return [(aspect - width) / 2 / aspect, (1 - height) / 2, width / aspect, height]


@settings(deadline=None, max_examples=60)
@given(st.floats(0.05, 1), st.floats(0.05, 1), st.floats(0.3, 1), st.floats(1, 3), st.floats(0.1, 10), st.integers(0, 9999))
def test_crops_equal_the_plain_loop(a, b, low, high, aspect, pair):
    augment = Augment(scale=(min(a, b), max(a, b)), ratio=(low, high))
    boxes, flips = crops(augment, 3, 2, np.array([pair, pair + 1]), np.array([aspect, aspect]))
    expected = one_crop(augment, 3, 2, pair, aspect) if augment.crops else [0, 0, 1, 1]
    assert boxes[0] == pytest.approx(expected, abs=1e-9)
    assert (boxes >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= 1 + 1e-12).all()
    assert not flips.any()


def test_crops_have_torchvisions_distribution():
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    width, height, scale, ratio = 1600, 1000, (0.3, 1.0), (0.75, 1.3333)
    blank = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(blank, scale, ratio) for _ in range(4000)], dtype=float)
    theirs = theirs[:, [1, 0, 3, 2]] / [width, height, width, height]
    ours, _ = crops(Augment(scale, ratio), 0, 0, np.arange(4000), np.full(4000, width / height))
    for quantity in (lambda b: b[:, 0], lambda b: b[:, 1], lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 2] / b[:, 3]):
        mine, other = np.sort(quantity(ours)), np.sort(quantity(theirs))
        grid = np.concatenate([mine, other])
        distance = np.abs(np.searchsorted(mine, grid, "right") - np.searchsorted(other, grid, "right")).max() / 4000
        assert distance < 0.045  # two-sample Kolmogorov-Smirnov, p about 1e-3


def test_views_make_a_fixed_set_of_crops():
    pairs, aspect = np.arange(50), np.full(50, 1.5)
    augment = Augment(scale=(0.3, 0.9), flip=0.5, views=3)
    fixed = [crops_of_view(augment, 9, view, pairs, aspect) for view in range(3)]
    seen = set()
    for epoch in range(20):
        boxes, flips = crops(augment, 9, epoch, pairs, aspect)
        view = view_number(augment, 9, epoch, pairs)
        seen |= set(view.tolist())
        for i in range(50):
            assert np.array_equal(boxes[i], fixed[view[i]][0][i])
            assert flips[i] == fixed[view[i]][1][i]
    assert seen == {0, 1, 2}
    with pytest.raises(ValueError, match="views"):
        view_number(Augment(), 0, 0, pairs)


def test_flips_have_their_probability():
    _, flips = crops(Augment(flip=0.25), 0, 1, np.arange(10_000), np.ones(10_000))
    assert abs(flips.mean() - 0.25) < 0.02


@pytest.mark.parametrize("wrong", [{"scale": (0, 1)}, {"scale": (0.9, 0.5)}, {"ratio": (0, 1)}, {"flip": 1.5}, {"views": -1}])
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(UserError, match=f"augment.{next(iter(wrong))}"):
        Augment(**wrong)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [20, 48, 90])
def test_render_equals_pillow(interpolation, size):
    picture = np.asarray(photo(80, 60))
    box = (0.1, 0.2, 0.61, 0.7)
    window = picture[12:54, 8:57]  # 0.2 * 60 ... 0.9 * 60, 0.1 * 80 ... 0.71 * 80, rounded
    expected = np.asarray(Image.fromarray(window).resize((size, size), views.RESAMPLING[interpolation])).astype(int)
    plain = render(picture, box, False, size, interpolation)
    assert plain.shape == (size, size, 3)
    assert np.abs(plain.astype(int) - expected).max() <= 2
    assert np.array_equal(render(picture, box, True, size, interpolation), plain[:, ::-1])


def test_render_batch_equals_render():
    pictures = np.stack([np.asarray(photo(40, 40, seed)) for seed in range(12)])
    boxes, flips = crops(Augment(scale=(0.2, 1.0), flip=0.5), 1, 0, np.arange(12), np.ones(12))
    batch = render_batch(pictures, boxes, flips, 24)
    assert batch.shape == (12, 3, 24, 24)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    for i in range(12):
        alone = render(pictures[i], boxes[i], flips[i], 24)
        assert np.array_equal(batch[i].permute(1, 2, 0).numpy(), alone)


def test_no_crop_at_the_same_size_is_the_picture():
    pictures = np.stack([np.asarray(photo(24, 24, seed)) for seed in range(3)])
    boxes, flips = crops(Augment(scale=(1, 1)), 0, 0, np.arange(3), np.ones(3))
    assert np.array_equal(render_batch(pictures, boxes, flips, 24).permute(0, 2, 3, 1).numpy(), pictures)
    assert np.array_equal(render(pictures[0], boxes[0], False, 24), pictures[0])


def test_a_tiny_box_still_holds_a_pixel():
    picture = np.asarray(photo(10, 10))
    corner = render(picture, (0.9999, 0.9999, 0.0001, 0.0001), False, 4)
    assert (corner == picture[9, 9]).all()


def test_unknown_interpolation():
    with pytest.raises(UserError, match="bicubic"):
        render(np.asarray(photo(8, 8)), views.WHOLE, False, 4, "bicubik")


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(8, 40),
    st.sampled_from(["shortest", "longest", "squash"]),
    st.sampled_from(["bicubic", "bilinear", "random"]),
    st.sampled_from([0, 255]),
)
@example(19, 16, 16, "shortest", "bicubic", 0)  # 1.5 pixels to the left of the centre
@example(16, 18, 16, "shortest", "bilinear", 0)
def test_eval_pixels_are_open_clips(width, height, size, resize_mode, interpolation, fill):
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from torchvision.transforms import Normalize

    if resize_mode == "longest" and max(width, height) >= 2 * size * min(width, height):
        return  # open_clip fails: its short side rounds to 0 pixels
    cfg = {"size": size, "resize_mode": resize_mode, "interpolation": interpolation, "fill_color": fill}
    transform = image_transform_v2(PreprocessCfg(**cfg), is_train=False)
    transform.transforms = [step for step in transform.transforms if not isinstance(step, Normalize)]
    image = photo(width, height)
    theirs = (transform(image) * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(eval_pixels(image, cfg), theirs)


def test_eval_pixels_defaults_and_mistakes():
    image = photo(50, 40)
    assert eval_pixels(image, {"size": [32, 32]}).shape == (32, 32, 3)
    assert np.array_equal(eval_pixels(image, {"size": 32}), eval_pixels(image, {"size": 32, "resize_mode": "shortest"}))
    assert eval_pixels(photo(200, 1), {"size": 16, "resize_mode": "longest"}).shape == (16, 16, 3)
    with pytest.raises(UserError, match="square"):
        eval_pixels(image, {"size": [32, 16]})
    with pytest.raises(UserError, match="squash"):
        eval_pixels(image, {"size": 32, "resize_mode": "squish"})
    with pytest.raises(UserError, match="bilinear"):
        eval_pixels(image, {"size": 32, "interpolation": "bilinea"})
