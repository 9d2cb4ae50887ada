"""The generator: killed, shared, damaged and begun again, it makes the same bytes; what it cannot do it says."""

from __future__ import annotations

import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from clipling.data.knowledge import Knowledge
from clipling.data.pairs import Location, Pairs
from clipling.data.source import open_pairs
from clipling.errors import UserError
from clipling.guides import reinforce_shard as module
from tests.faults.killing import kill_until_done, run_in_child
from tests.guides.making import files_of
from tests.guides.test_kills import until_rename
from tests.reinforcing import made, pictures, teachers

fork = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("reinforced")


@pytest.fixture(scope="module")
def pairs(folder) -> Pairs:
    return open_pairs(str(pictures(folder / "pictures", 13)))


@pytest.fixture(scope="module")
def models():
    return teachers()


def work(pairs, out, models, **changes):
    return made(pairs, out, asked=models, shard=4, augmentations=2, **changes)


@pytest.fixture(scope="module")
def whole(folder, pairs, models) -> Path:
    said = work(pairs, folder / "whole", models)
    assert (said["shards"], said["shards_there"], said["made"], said["pairs"]) == (4, 4, 4, 13)
    return folder / "whole"


def test_every_pair_is_there_once(whole, pairs):
    names = []
    for path in sorted(whole.glob("*.tar")):
        with tarfile.open(path) as tar:
            names += tar.getnames()
    assert len(names) == len(set(names)) == 13 * 6
    assert len(open_pairs(str(whole))) == 13


def test_the_last_shard_is_a_short_one_and_rows_are_its_own(whole, models):
    """More augmentations than a teacher's batch holds, and shards that do not end with a batch: no row goes astray."""
    knowledge = Knowledge(open_pairs(str(whole)))
    assert np.diff(knowledge.record_offsets).tolist() == [2] * 13


def test_batches_do_not_decide_what_is_stored(pairs, models, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 3)
    work(pairs, tmp_path / "out", models, storage="fp32")
    one, other = (Knowledge(open_pairs(str(out))) for out in (tmp_path / "out", whole))
    np.testing.assert_allclose(one.image(np.arange(26)), other.image(np.arange(26)), atol=1e-3)


@pytest.mark.faults
@fork
def test_killed_and_started_again(pairs, models, whole, tmp_path, monkeypatch):
    """SIGKILL at random instants: no pair is lost, none is there twice, every byte is the same."""
    plain = module.Maker._texts

    def slowly(self, texts):
        import time

        time.sleep(0.25)
        return plain(self, texts)

    monkeypatch.setattr(module.Maker, "_texts", slowly)
    kills = kill_until_done(lambda: work(pairs, tmp_path / "out", models), kills=12, shortest=0.05, longest=0.45)
    assert kills >= 4
    assert files_of(tmp_path / "out") == files_of(whole)


@pytest.mark.faults
@fork
def test_killed_before_every_rename(pairs, models, whole, tmp_path):
    expected, number = files_of(whole), 0
    while True:
        out = tmp_path / str(number)
        child = os.fork()
        if child == 0:
            until_rename(number, lambda out=out: work(pairs, out, models))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        if number == 2:  # a tar whose own file is missing is no shard: training must not take it
            assert (out / "00000.tar").is_file()
            assert not (out / "00000.json").is_file()
        assert run_in_child(lambda out=out: work(pairs, out, models), None)
        assert files_of(out) == expected, f"killed before rename {number}"
        number += 1
    assert number == 9  # the manifest, and two files a shard


def test_shared_by_three_processes(pairs, models, whole, tmp_path):
    for rank in (2, 0, 1):
        said = work(pairs, tmp_path / "out", models, rank=rank, world=3)
        assert said["made"] == (2 if rank == 0 else 1)
    assert files_of(tmp_path / "out") == files_of(whole)
    assert work(pairs, tmp_path / "out", models)["made"] == 0


def test_a_damaged_shard_is_made_again_alone(pairs, models, whole, tmp_path):
    work(pairs, tmp_path / "out", models)
    damaged, others = tmp_path / "out" / "00002.tar", [tmp_path / "out" / f"0000{n}.tar" for n in (0, 1, 3)]
    data = bytearray(damaged.read_bytes())
    data[data.index(b"NUMPY") + 200] ^= 1
    damaged.write_bytes(data)
    before = [path.stat().st_mtime_ns for path in others]
    assert work(pairs, tmp_path / "out", models)["made"] == 0  # of the same length: only reading it shows
    said = work(pairs, tmp_path / "out", models, check=True)
    assert (said["made"], said["damaged"]) == (1, ["00002.tar"])
    assert files_of(tmp_path / "out") == files_of(whole)
    assert [path.stat().st_mtime_ns for path in others] == before
    damaged.write_bytes(bytes(data[:1000]))  # cut short: seen without reading
    assert work(pairs, tmp_path / "out", models)["made"] == 1
    assert files_of(tmp_path / "out") == files_of(whole)


def test_another_source_teacher_or_setting_is_refused(pairs, models, whole, tmp_path):
    with pytest.raises(UserError, match="other settings"):
        work(pairs, whole, models, seed=1)
    with pytest.raises(UserError, match="other teachers"):
        work(pairs, whole, {"first": models["second"]})
    with pytest.raises(UserError, match=r"other pairs: those of 00001\.tar, 00002\.tar, 00003\.tar are no longer"):
        work(pairs.subset(range(5)), whole, models)
    with pytest.raises(UserError, match="other captions"):
        made(pairs, whole, ("rules",), models, shard=4, augmentations=2)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        work(pairs, tmp_path, models)
    with pytest.raises(UserError, match="--augmentations 0"):
        made(pairs, tmp_path, augmentations=0)


def test_a_picture_that_no_longer_opens_is_left_out_and_named(pairs, models, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(pairs.locations[5].path).read_bytes()[:60])
    some = pairs.subset(range(13))
    some.locations[5] = Location(str(broken))
    said = work(some, tmp_path / "out", models)
    assert said["pairs"] == 12
    assert [key for key, _ in said["left_out"]] == [pairs.keys[5]]
    found = open_pairs(str(tmp_path / "out"))
    assert len(Knowledge(found).records) == 24
    assert not any("005" in key for key in found.keys)


def test_every_format_of_pictures(models, tmp_path):
    """What tars do not know is kept as a PNG of the same pixels, upright."""
    from PIL import Image

    source = tmp_path / "pictures"
    source.mkdir()
    image = Image.open(pictures(tmp_path / "other", 1) / "000.png").convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6
    for name, options in (("a.jpg", {"exif": turned}), ("b.webp", {}), ("c.bmp", {}), ("d.tif", {}), ("e.png", {})):
        image.save(source / name, **options)
        (source / name).with_suffix(".txt").write_text(f"picture {name[0]}")
    pairs = open_pairs(str(source))
    made(pairs, tmp_path / "out", (), models)
    found = open_pairs(str(tmp_path / "out"))
    assert [Path(k.replace("%2E", ".")).name for k in found.keys] == pairs.keys
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        assert sorted(n.rsplit(".", 1)[1] for n in tar.getnames() if n.endswith(("jpg", "png", "webp"))) == [
            "jpg",
            "png",
            "png",
            "png",
            "webp",
        ]
    for i in range(5):
        np.testing.assert_array_equal(np.asarray(found.image(i)), np.asarray(pairs.image(i)))
    assert found.image(0).size == image.size[::-1]
    Knowledge(found)
