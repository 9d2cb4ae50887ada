"""Augmentation records: drawn as torchvision draws, done again bit for bit, and what is not a record."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import RandAugment, _apply_op

from clipling.data.replay import CANVAS, OPERATIONS, SIGNED, Record, draw_records, magnitude, operated, replay
from clipling.data.views import Augment, render

SPACE = RandAugment()._augmentation_space(31, (CANVAS, CANVAS))


def picture(width: int = 90, height: int = 70, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def records(count: int, **augment) -> list[Record]:
    return draw_records(Augment(**{"scale": (0.08, 1.0), **augment}), True, 0, 0, np.arange(count), [(90, 70)] * count)


def test_operations_and_magnitudes_are_torchvisions():
    assert tuple(SPACE) == OPERATIONS
    for name, (values, signed) in SPACE.items():
        assert magnitude(name) == pytest.approx(float(values[9]) if values.ndim else 0.0, rel=1e-6)
        assert signed == (name in SIGNED)


@pytest.mark.parametrize("size", [CANVAS, 64, 97])
@pytest.mark.parametrize("number", range(len(OPERATIONS)), ids=OPERATIONS)
def test_an_operation_does_what_torchvisions_does(number, size):
    crop, name = (picture(size, size) * 0.6 + 30).astype(np.uint8), OPERATIONS[number]
    for sign in (1, -1) if name in SIGNED else (1,):
        strength = sign * magnitude(name)
        # torchvision translates by pixels of the crop that it has; a record by pixels of a crop of CANVAS
        its = strength * size / CANVAS if name.startswith("Translate") else strength
        expected = _apply_op(Image.fromarray(crop), name, its, InterpolationMode.BILINEAR, None)
        found = operated(crop, [(number, strength)])
        np.testing.assert_array_equal(found, np.asarray(expected))
        assert name == "Identity" or (found != crop).any()


def test_the_draw_is_what_torchvision_would_draw():
    found = records(4000)
    numbers = np.array([[n for n, _ in r.operations] for r in found])
    assert numbers.shape == (4000, 2)
    counts = np.bincount(numbers.ravel(), minlength=14)
    assert np.abs(counts - 8000 / 14).max() < 5 * (8000 / 14) ** 0.5
    signs = [m > 0 for r in found for n, m in r.operations if OPERATIONS[n] == "Rotate"]
    assert 0.4 < np.mean(signs) < 0.6
    areas = [r.box[2] * r.box[3] / 6300 for r in found]
    assert min(areas) < 0.1
    assert max(areas) > 0.95
    assert all(r.fits(90, 70) and not r.flip for r in found)
    assert len({r.box for r in found}) > 3000


def test_a_record_survives_its_json_and_gives_the_same_pixels():
    """Bit for bit, mirrors included; DataCompDR's own form where no mirror is possible."""
    source = picture()
    for flip in (0.0, 0.5):
        for record in records(40, flip=flip):
            text = json.dumps(record.to_json(flips=flip > 0))
            again = Record.from_json(json.loads(text))
            assert again == record
            np.testing.assert_array_equal(replay(source, again, 48), replay(source, record, 48))
    assert Record((10, 6, 112, 90), False, ((6, 0.27), (11, 178.5))).to_json(False) == [[10, 6, 112, 90], [[6, 0.27], [11, 178.5]]]
    assert Record.from_json([[10, 6, 112, 90], None]) == Record((10, 6, 112, 90))
    assert {r.flip for r in records(40, flip=0.5)} == {True, False}


def test_what_a_record_shows():
    source = picture()
    plain = replay(source, Record((5, 10, 40, 30)), 32)
    np.testing.assert_array_equal(plain, render(source[5:45, 10:40], np.array([0.0, 0, 1, 1]), False, 32))
    np.testing.assert_array_equal(replay(source, Record((5, 10, 40, 30), True), 32), plain[:, ::-1])
    both = replay(source, Record((5, 10, 40, 30), True, ((6, 0.27), (11, 178.5))), 32)
    np.testing.assert_array_equal(both, operated(operated(plain[:, ::-1], [(6, 0.27)]), [(11, 178.5)]))
    with pytest.raises(ValueError, match="does not lie inside"):
        replay(source, Record((5, 10, 66, 30)), 32)


def test_a_crop_in_unit_coordinates_is_the_same_crop():
    source = picture()
    for record in records(200):
        expected = replay(source, Record(record.box), 24)
        np.testing.assert_array_equal(render(source, np.array(record.unit_box(90, 70)), False, 24), expected)


def test_a_crop_of_a_picture_that_was_resized():
    record = Record((7, 9, 35, 45), True, ((5, 9.0),))
    assert record.rescaled((90, 70), (180, 140)) == Record((14, 18, 70, 90), True, ((5, 9.0),))
    assert record.rescaled((90, 70), (90, 70)) is record
    for found in records(100):
        small = found.rescaled((90, 70), (45, 35))
        assert small.fits(45, 35)
        np.testing.assert_allclose(np.array(small.box) * 2, found.box, atol=3)


@hypothesis_settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=4),
        max_leaves=12,
    )
)
def test_anything_else_is_refused_or_read(content):
    try:
        record = Record.from_json(content)
    except ValueError:
        return
    assert Record.from_json(json.loads(json.dumps(record.to_json(True)))) == record


@pytest.mark.parametrize(
    "content",
    [{}, [[1, 2, 3]], [[1, 2, 0, 4]], [[-1, 2, 3, 4]], [[[14, 1.0]]], [[[3, "x"]]], ["x"], [[[3, float("nan")]]], [[[3, 10**400]]]],
)
def test_mistakes(content):
    with pytest.raises(ValueError):
        Record.from_json(content)


@pytest.mark.parametrize(
    "operation",
    [[10, 9.0], [10, -1.0], [10, 1e5], [11, 300], [11, -1], [5, 1e5], [1, 99.0], [3, 300.0], [6, -50.0], [10, True]],
)
def test_magnitudes_that_no_operation_takes(operation):
    with pytest.raises(ValueError, match=r"RandAugment|takes a magnitude from"):
        Record.from_json([[0, 0, 5, 5], [operation]])


@hypothesis_settings(max_examples=300, deadline=None)
@given(st.integers(0, len(OPERATIONS) - 1), st.floats(-400, 400) | st.floats(-12, 12) | st.integers(-12, 300))
def test_what_is_read_can_be_done(number, strength):
    """A record that opening takes does not break a training at its ten thousandth step."""
    try:
        record = Record.from_json([[1, 2, 30, 40], [[number, strength]]])
    except ValueError:
        return
    made = replay(picture(), record, 24)
    assert made.shape == (24, 24, 3)
    assert made.dtype == np.uint8


def test_all_that_torchvision_draws_is_taken():
    """At any of its bins, not only at the one that DataCompDR drew from."""
    for number, name in enumerate(OPERATIONS):
        magnitudes, signed = SPACE.get(name, (np.zeros(1), False))
        for strength in np.atleast_1d(np.asarray(magnitudes, dtype=float)).tolist():
            for sign in (1, -1) if signed else (1,):
                assert Record.from_json([[0, 0, 5, 5], [[number, sign * strength]]]).operations == ((number, sign * strength),)
