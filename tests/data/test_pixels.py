"""Pixels against Pillow and open_clip's evaluation, stored against on demand, and kills at random points."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipling.data import pixels as module
from clipling.data.classes import LabelledImages
from clipling.data.pairs import Location, Pairs, Row, hash_bytes
from clipling.data.pixels import Pixels
from clipling.data.views import eval_pixels
from clipling.errors import UserError

CFG = {"size": 16, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "shortest"}


def make_pairs(folder: Path, count: int, side: int = 24) -> Pairs:
    """Pictures of noise of all shapes, every third one a JPEG turned by its EXIF block."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows, hashes = [], []
    for i in range(count):
        image = Image.fromarray(rng.integers(0, 256, (side + i % 7, side + i % 11, 3), dtype=np.uint8))
        path = folder / f"{i}.{'jpg' if i % 3 == 0 else 'png'}"
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(path, **({"exif": exif, "quality": 90} if i % 3 == 0 else {}))
        rows.append(Row(path.name, ["a"], Location(str(path))))
        hashes.append(hash_bytes(path.read_bytes()))
    return Pairs.from_rows("made", rows, hashes)


def test_squash_is_pillows_resize(tmp_path, fresh_cache):
    pairs = make_pairs(tmp_path / "in", 23)
    pixels = Pixels.open(pairs, 16, block=5)
    assert pixels.stored
    assert pixels.shape == (23, 16, 16, 3)
    for i in range(23):
        image = pairs.image(i)
        expected = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC))
        assert np.array_equal(pixels[i], expected)
        assert pixels.aspect[i] == image.width / image.height
    assert pixels.aspect[6] == (24 + 6 % 7) / (24 + 6 % 11)  # turned: as it is seen, not as it is stored
    rows = np.array([7, 3, 3, 22])
    assert np.array_equal(pixels[rows], np.stack([pixels[i] for i in rows]))
    assert pixels[np.array([], dtype=np.int64)].shape == (0, 16, 16, 3)


def test_preprocess_cfg_is_eval_pixels(tmp_path, fresh_cache):
    pairs = make_pairs(tmp_path / "in", 9)
    for mode in ("shortest", "longest", "squash"):
        cfg = {**CFG, "resize_mode": mode}
        pixels = Pixels.open(pairs, 16, cfg)
        assert np.array_equal(pixels[:], np.stack([eval_pixels(pairs.image(i), cfg) for i in range(9)]))
        assert pixels.aspect[8] == (32 / 25 if mode == "squash" else 1)


@pytest.mark.parametrize("how", ["squash", CFG, {**CFG, "resize_mode": "squash"}])
def test_on_demand_gives_the_same_values(tmp_path, fresh_cache, how):
    pairs = make_pairs(tmp_path / "in", 11)
    stored = Pixels.open(pairs, 16, how)
    demand = Pixels.open(pairs, 16, how, limit_bytes=11 * 16 * 16 * 3 - 1)
    assert not demand.stored
    for rows in (np.array([4, 0, 10]), slice(2, 9, 3), 5, [1, 2], np.array([], dtype=np.int64)):
        assert np.array_equal(demand[rows], stored[rows])
    (stored.folder / "aspect.npy").rename(tmp_path / "aside")
    assert np.array_equal(Pixels.open(pairs, 16, how, limit_bytes=0).aspect, np.load(tmp_path / "aside"))


def test_built_once_and_shared_by_what_does_not_change_pixels(tmp_path, fresh_cache, monkeypatch):
    pairs = make_pairs(tmp_path / "in", 6)
    first = Pixels.open(pairs, 16, CFG)
    other = Pixels.open(pairs, 16, {**CFG, "resize_mode": "longest"})
    monkeypatch.setattr(module._Build, "run", lambda *_: pytest.fail("built again"))
    again = Pixels.open(pairs, 16, {**CFG, "mean": [0.1, 0.2, 0.3]})
    assert again.folder == first.folder != other.folder
    assert np.array_equal(pickle.loads(pickle.dumps(first))[:], again[:])
    labelled = LabelledImages("l", pairs.keys, pairs.locations, np.zeros(6, np.int64), ["a"])
    assert Pixels.open(labelled, 16, CFG).folder == first.folder


def test_damaged_entries_are_made_again(tmp_path, fresh_cache):
    pairs = make_pairs(tmp_path / "in", 12)
    first = Pixels.open(pairs, 16, block=4)
    expected = first[:]
    with open(first.folder / "pixels.npy", "r+b") as file:
        file.truncate(1000)
    (first.folder / "done").unlink()
    assert np.array_equal(Pixels.open(pairs, 16, block=4)[:], expected)
    (first.folder / "manifest.json").unlink()
    (first.folder / "done").write_text('{"block": 5, "done": "010101"}')  # another division: not to be trusted
    (first.folder / "pixels.npy").write_bytes(b"")
    assert np.array_equal(Pixels.open(pairs, 16, block=4)[:], expected)


def spoil_header(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(bytes(64))


@pytest.mark.parametrize("name", ["pixels.npy", "aspect.npy"])
def test_a_lost_header_or_tail_is_noticed_though_all_is_marked_as_done(tmp_path, fresh_cache, name):
    pairs = make_pairs(tmp_path / "in", 12)
    first = Pixels.open(pairs, 16, block=4)
    expected, aspect = first[:], first.aspect.copy()
    spoil_header(first.folder / name)
    again = Pixels.open(pairs, 16, block=4)
    assert np.array_equal(again[:], expected)
    assert np.array_equal(again.aspect, aspect)
    os.truncate(first.folder / name, 150)  # within the rows: what comes after would be zeros
    again = Pixels.open(pairs, 16, block=4)
    assert np.array_equal(again[:], expected)
    assert np.array_equal(again.aspect, aspect)
    (first.folder / name).unlink()
    assert np.array_equal(Pixels.open(pairs, 16, block=4)[:], expected)
    spoil_header(first.folder / "aspect.npy")
    assert np.array_equal(Pixels.open(pairs, 16, block=4, limit_bytes=0).aspect, aspect)


def test_a_mend_that_is_broken_off_is_no_finished_entry(tmp_path, fresh_cache, monkeypatch):
    pairs = make_pairs(tmp_path / "in", 12)
    first = Pixels.open(pairs, 16, block=4)
    expected = first[:]
    (first.folder / "pixels.npy").write_bytes(bytes((first.folder / "pixels.npy").stat().st_size))  # all of it is lost

    def stops(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Pixels, "decode", stops)
        with pytest.raises(KeyboardInterrupt):
            Pixels.open(pairs, 16, block=4)
    assert np.array_equal(Pixels.open(pairs, 16, block=4)[:], expected)


@pytest.mark.parametrize("marks", ["[]", "{}", '{"done": "0101"}', '{"block": 4, "done": 3}', "", "{"])
def test_marks_that_are_damaged_are_ignored(tmp_path, fresh_cache, marks):
    pairs = make_pairs(tmp_path / "in", 8)
    first = Pixels.open(pairs, 16, block=4)
    expected = first[:]
    (first.folder / "manifest.json").unlink()
    (first.folder / "done").write_text(marks)
    assert np.array_equal(Pixels.open(pairs, 16, block=4)[:], expected)


def test_progress_counts_pictures(tmp_path, fresh_cache):
    seen = []
    Pixels.open(make_pairs(tmp_path / "in", 10), 8, block=4, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 10), (8, 10), (10, 10)]


def test_a_picture_that_went_bad_is_named(tmp_path, fresh_cache):
    pairs = make_pairs(tmp_path / "in", 5)
    (tmp_path / "in" / "4.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"4\.png"):
        Pixels.open(pairs, 8)
    (tmp_path / "in" / "4.png").unlink()
    with pytest.raises(UserError, match=r"4\.png"):
        Pixels.open(pairs, 8)


def test_full_disk_and_contradicting_sizes(tmp_path, fresh_cache, monkeypatch):
    pairs = make_pairs(tmp_path / "in", 5)
    with pytest.raises(ValueError, match="size"):
        Pixels.open(pairs, 32, CFG)
    with pytest.raises(ValueError, match="squash"):
        Pixels.open(pairs, 32, "squish")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module._InPlace, "write", full)
    with pytest.raises(UserError, match="no space left"):
        Pixels.open(pairs, 16)


def marked_blocks(folder: Path) -> list[int]:
    path = folder / "done"
    marks = bytes.fromhex(json.loads(path.read_text())["done"]) if path.exists() else b""
    return [number for number, mark in enumerate(marks) if mark]


def wait_for_blocks(folder: Path, count: int) -> None:
    patience = time.monotonic() + 10
    while len(marked_blocks(folder)) < min(count, 20) and time.monotonic() < patience:
        time.sleep(0.0003)


@pytest.mark.faults
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills_at_random_points_do_not_show(tmp_path, monkeypatch):
    pairs = make_pairs(tmp_path / "in", 80)
    monkeypatch.setenv("CLIPLING_CACHE", str(tmp_path / "whole"))
    whole = Pixels.open(pairs, 16, block=4, threads=2)
    expected, rng, partial = whole[:], random.Random(0), 0
    for attempt in range(5):
        monkeypatch.setenv("CLIPLING_CACHE", str(tmp_path / f"killed {attempt}"))
        folder = tmp_path / f"killed {attempt}" / "pixels" / whole.folder.name
        for _ in range(5):
            child = os.fork()
            if child == 0:
                Pixels.open(pairs, 16, block=4, threads=2)
                os._exit(0)
            wait_for_blocks(folder, len(marked_blocks(folder)) + rng.randrange(5))
            time.sleep(rng.uniform(0, 0.005))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            marked = marked_blocks(folder)
            partial += 0 < len(marked) < 20
            for number in marked:  # what is marked is there, at every moment
                rows = slice(number * 4, number * 4 + 4)
                assert np.array_equal(np.load(folder / "pixels.npy", mmap_mode="r")[rows], expected[rows])
        resumed = Pixels.open(pairs, 16, block=4, threads=2)
        for name in ("pixels.npy", "aspect.npy", "manifest.json", "done"):
            assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert partial >= 5  # many of the kills did come in the middle


@pytest.mark.faults
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_loses_at_most_a_block(tmp_path, fresh_cache, monkeypatch):
    pairs = make_pairs(tmp_path / "in", 40)
    child = os.fork()
    if child == 0:
        decode, seen = Pixels.decode, []

        def dies(self, i):
            seen.append(i)
            if len(seen) == 30:
                os.kill(os.getpid(), signal.SIGKILL)
            return decode(self, i)

        monkeypatch.setattr(Pixels, "decode", dies)
        Pixels.open(pairs, 16, block=4, threads=1)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    asked, decode = [], Pixels.decode
    monkeypatch.setattr(Pixels, "decode", lambda self, i: (asked.append(i), decode(self, i))[1])
    Pixels.open(pairs, 16, block=4, threads=1)
    assert asked == list(range(28, 40))


def test_two_builders_at_once_end_in_one_right_entry(tmp_path, monkeypatch):
    pairs = make_pairs(tmp_path / "in", 40)
    (tmp_path / "pairs.pickle").write_bytes(pickle.dumps(pairs))
    code = "import pickle, sys; from clipling.data.pixels import Pixels; Pixels.open(pickle.load(open(sys.argv[1], 'rb')), 16, block=3)"
    environment = {**os.environ, "CLIPLING_CACHE": str(tmp_path / "both")}
    command = [sys.executable, "-c", code, str(tmp_path / "pairs.pickle")]
    builders = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [one.wait() for one in builders] == [0, 0]
    monkeypatch.setenv("CLIPLING_CACHE", str(tmp_path / "both"))
    monkeypatch.setattr(module._Build, "run", lambda *_: pytest.fail("not finished"))
    found = Pixels.open(pairs, 16, block=3)[:]
    squash = {"size": 16, "resize_mode": "squash"}
    assert np.array_equal(found, np.stack([eval_pixels(pairs.image(i), squash) for i in range(40)]))


def test_the_file_is_plain_npy(tmp_path, fresh_cache):
    pixels = Pixels.open(make_pairs(tmp_path / "in", 3), 8)
    loaded = np.load(io.BytesIO((pixels.folder / "pixels.npy").read_bytes()), allow_pickle=False)
    assert loaded.dtype == np.uint8
    assert np.array_equal(loaded, pixels[:])


def photo(width, height, form="JPEG", mode="RGB", **how):
    """A smooth picture with detail, as photographs have it."""
    across, down = np.meshgrid(np.linspace(0, 9, width), np.linspace(0, 7, height))
    values = np.stack([np.sin(across + down), np.cos(across * 2 - down), np.sin(across * down / 4)], axis=2)
    out = io.BytesIO()
    Image.fromarray(((values + 1) * 127).astype(np.uint8)).convert(mode).save(out, form, **how)
    return out.getvalue()


@pytest.mark.parametrize("sides", [(90, 70), (256, 200), (1000, 700), (33, 512)])
@pytest.mark.parametrize("kind", ["JPEG", "grey", "cmyk", "turned", "PNG", "transparent"])
def test_fast_pixels_are_nearly_the_exact_ones(tmp_path, fresh_cache, sides, kind):
    turned = Image.Exif()
    turned[0x0112] = 6
    made = {
        "grey": {"mode": "L"},
        "cmyk": {"mode": "CMYK"},
        "turned": {"exif": turned},
        "PNG": {"form": "PNG"},
        "transparent": {"form": "PNG", "mode": "RGBA"},
    }.get(kind, {})
    path = tmp_path / "x"
    path.write_bytes(photo(*sides, **made))
    pairs = Pairs.from_rows("x", [Row("x", ["c"], Location(str(path)))], [hash_bytes(path.read_bytes())])
    exact, fast = Pixels.open(pairs, 64), Pixels.open(pairs, 64, decode="fast")
    assert exact.folder != fast.folder
    assert fast.aspect.tolist() == exact.aspect.tolist()
    difference = np.abs(exact[0].astype(int) - fast[0])
    assert difference.mean() < 2.5, "nearly: read at half its size a picture loses a little"
    assert np.array_equal(Pixels.open(pairs, 64, decode="fast", limit_bytes=0)[0], fast[0]), "stored or not, the same values"


def test_fast_decoding_is_refused_where_pixels_must_be_exact(tmp_path):
    with pytest.raises(ValueError, match="exact"):
        Pixels.open(Pairs.from_rows("x", [], []), 64, {"size": 64}, decode="fast")


def test_broken_pictures_fail_alike(tmp_path, fresh_cache):
    for data in (b"", b"no picture", photo(90, 70)[:500]):
        (tmp_path / "x").write_bytes(data)
        pairs = Pairs.from_rows("x", [Row("x", ["c"], Location(str(tmp_path / "x")))], [hash_bytes(data)])
        with pytest.raises(UserError, match="cannot be read now"):
            Pixels.open(pairs, 16, decode="fast")
