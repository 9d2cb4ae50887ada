"""The generator: killed, shared, damaged and begun again, it makes the same bytes; what it cannot do it says."""

from __future__ import annotations

import json
import os
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from clipling.data.knowledge import Knowledge
from clipling.data.pairs import Location, Pairs
from clipling.data.source import open_pairs
from clipling.errors import UserError
from clipling.guides import reinforce as driver
from clipling.guides import reinforce_shard as module
from clipling.guides.captions import Captions
from clipling.guides.reinforce_plan import Plan, described
from clipling.guides.shard_locks import ShardLocks
from clipling.models.hub import new_student
from tests.faults.killing import kill_until_done, run_in_child
from tests.guides.making import files_of
from tests.guides.test_kills import until_rename
from tests.reinforcing import made, pictures, settings, teachers

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


def slow_texts(monkeypatch, seconds, made):
    """A tar takes at least so long, and writes a line into the file `made` when its texts are encoded."""
    plain = module.Maker._texts

    def slowly(self, texts):
        time.sleep(seconds)
        with open(made, "a") as file:
            file.write("1\n")
        return plain(self, texts)

    monkeypatch.setattr(module.Maker, "_texts", slowly)


@pytest.mark.faults
@fork
def test_killed_and_started_again(pairs, models, whole, tmp_path, monkeypatch):
    """SIGKILL at random instants: no pair is lost, none is there twice, every byte is the same."""
    slow_texts(monkeypatch, 0.25, tmp_path / "made")
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
    with pytest.raises(UserError, match=r"other settings: --seed 0 \(now 1\)"):
        work(pairs, whole, models, seed=1)
    with pytest.raises(UserError, match=r"other settings: teachers first, second \(now first\)"):
        work(pairs, whole, {"first": models["second"]})
    with pytest.raises(UserError, match=r"other pairs: those of 00001\.tar, 00002\.tar, 00003\.tar are no longer"):
        work(pairs.subset(range(5)), whole, models)
    with pytest.raises(UserError, match="other settings: --captions "):
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


@pytest.mark.parametrize("augmentations", [2, 8])
def test_no_batch_is_larger_than_a_teacher_takes(pairs, models, tmp_path, monkeypatch, augmentations):
    """Whole pictures together where they fit; of a picture with more augmentations than that, some at a time."""
    some, sizes = pairs.subset(range(3)), []
    made(some, tmp_path / "whole", (), models, augmentations=augmentations, storage="fp32")
    monkeypatch.setattr(module, "BATCH", 5)
    plain = type(models["first"]).encode_image
    monkeypatch.setattr(type(models["first"]), "encode_image", lambda self, images: sizes.append(len(images)) or plain(self, images))
    made(some, tmp_path / "parts", (), models, augmentations=augmentations, storage="fp32")
    assert sizes == ([4, 4, 2, 2] if augmentations == 2 else [5] * 8 + [4, 4])
    one, other = (Knowledge(open_pairs(str(tmp_path / name))) for name in ("whole", "parts"))
    assert len(one.records) == len(other.records) == 3 * augmentations
    np.testing.assert_allclose(one.image(np.arange(len(one.records))), other.image(np.arange(len(one.records))), atol=1e-5)


# A source that grows, or is edited, between two starts


def times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}


def test_a_source_that_grew_makes_only_what_is_new(pairs, models, whole, tmp_path):
    work(pairs.subset(range(10)), tmp_path / "out", models)
    before = times(tmp_path / "out")
    assert set(before) == {"00000.tar", "00001.tar", "00002.tar"}
    said = work(pairs, tmp_path / "out", models)  # the third tar was short of two pairs
    assert (said["made"], said["shards_there"], said["pairs"]) == (2, 4, 13)
    after = times(tmp_path / "out")
    assert [after[name] == before[name] for name in sorted(before)] == [True, True, False]
    assert files_of(tmp_path / "out") == files_of(whole)  # as if it had been one source from the start, the manifest included
    with pytest.raises(UserError, match="other pairs"):
        work(pairs.subset(range(10)), tmp_path / "out", models)
    with pytest.raises(UserError, match=r"other pairs: those of 00000\.tar, 00001"):
        work(pairs.subset([12, *range(12)]), tmp_path / "out", models)


@pytest.fixture
def german(pairs) -> Pairs:
    some = pairs.subset(range(13))
    some.extras = [{**extras, "lang": {"de": f"Bild {i}"}} for i, extras in enumerate(some.extras)]
    return some


def in_german(pairs, out, models, **changes):
    return made(pairs, out, ("field:lang.de",), models, shard=4, augmentations=2, **changes)


def edited(pairs: Pairs, i: int) -> Pairs:
    made = pairs.subset(range(13))
    made.extras = [dict(extras) for extras in pairs.extras]
    made.extras[i] = {"lang": {"de": "ein anderes Bild"}}
    return made


def test_a_field_that_was_edited_between_a_kill_and_the_resume(german, models, tmp_path):
    """Where a tar was made of it, it is named; where none was, the edited one is what is made."""
    in_german(german, tmp_path / "out", models, rank=0, world=2)
    assert set(times(tmp_path / "out")) == {"00000.tar", "00002.tar"}
    with pytest.raises(UserError, match=r"other pairs: those of 00002\.tar are no longer"):
        in_german(edited(german, 9), tmp_path / "out", models)
    assert in_german(edited(german, 5), tmp_path / "out", models)["made"] == 2
    in_german(edited(german, 5), tmp_path / "fresh", models)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")
    assert "ein anderes Bild" in Knowledge(open_pairs(str(tmp_path / "out"))).texts
    for end in ("tar", "json"):  # what the message says
        (tmp_path / "out" / f"00000.{end}").unlink()
    assert in_german(edited(edited(german, 5), 1), tmp_path / "out", models)["made"] == 1


def test_a_short_tar_that_was_edited_is_not_taken_for_one_that_grew(german, models, tmp_path):
    in_german(german.subset(range(10)), tmp_path / "out", models)
    with pytest.raises(UserError, match=r"other pairs: those of 00002\.tar are no longer"):
        in_german(edited(german, 9), tmp_path / "out", models)


def test_tars_of_another_folder_are_not_taken_for_this_ones(pairs, models, tmp_path):
    work(pairs, tmp_path / "out", models)
    other = {"first": models["first"], "second": new_student("tiny_vit_32", seed=5).eval()}
    work(pairs, tmp_path / "other", other)
    for end in ("tar", "json"):
        (tmp_path / "other" / f"00001.{end}").replace(tmp_path / "out" / f"00001.{end}")
    with pytest.raises(UserError, match=r"00001\.tar"):
        work(pairs, tmp_path / "out", models)


def test_the_identity_of_a_teacher(models, monkeypatch):
    """Weights, mean and deviation, tokenizer: with any of them changed it is another teacher, opened again it is the same."""
    model = new_student("tiny_vit_32", seed=1).eval()
    one = described("x", model)["identity"]
    assert one == described("y", models["second"])["identity"]
    cfg = dict(model.preprocess_cfg)
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "preprocess_cfg", {**cfg, "mean": (0.1, 0.2, 0.3)})
        assert described("x", model)["identity"] != one
    plain = type(model).tokenise
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "tokenise", lambda self, texts: plain(self, [text.upper()[::-1] for text in texts]))
        assert described("x", model)["identity"] != one
    assert described("x", new_student("tiny_vit_32", seed=2).eval())["identity"] != one


def as_format_1(out: Path) -> None:
    """What clipling wrote before there were identities and digests."""
    manifest = json.loads((out / "reinforced.json").read_text())
    manifest["format"] = 1
    for teacher in manifest["teachers"]:
        del teacher["identity"]
    manifest["captions"] = [{**one, "made_by": one["made_by"].partition(", version")[0]} for one in manifest["captions"]]
    (out / "reinforced.json").write_text(json.dumps(manifest))
    for path in out.glob("0*.json"):
        path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "made_from"}))


def test_a_folder_of_an_earlier_clipling(pairs, models, tmp_path):
    """Whole: there is nothing to do. Otherwise it is not continued in another form."""
    work(pairs, tmp_path / "out", models)
    as_format_1(tmp_path / "out")
    before = files_of(tmp_path / "out")
    said = work(pairs, tmp_path / "out", models, check=True)
    assert (said["made"], said["pairs"]) == (0, 13)
    assert files_of(tmp_path / "out") == before
    with pytest.raises(UserError, match=r"other settings: --seed 0 \(now 1\)"):
        work(pairs, tmp_path / "out", models, seed=1)
    with pytest.raises(UserError, match=r"other settings: teachers: 'second' is another one \(weights\)"):
        work(pairs, tmp_path / "out", {**models, "second": new_student("tiny_vit_32", seed=5).eval()})
    (tmp_path / "out" / "00001.tar").unlink()
    with pytest.raises(UserError, match="earlier clipling"):
        work(pairs, tmp_path / "out", models)


# Two processes that do not know of each other


@pytest.mark.faults
@fork
def test_what_another_process_is_making_is_left_to_it(pairs, models, whole, tmp_path):
    out = tmp_path / "out"
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(done[1])  # so that it ends with its parent, however that ends
        with ShardLocks(out) as locks, locks.shard(1) as own:
            (out / ".00001.tar.abcd.tmp").write_bytes(b"half a tar")
            os.write(ready[1], b"1" if own else b"0")
            os.read(done[0], 1)
        os._exit(0)
    assert os.read(ready[0], 1) == b"1"
    said = work(pairs, out, models)
    there = (out / ".00001.tar.abcd.tmp").is_file()
    os.close(done[1])
    assert os.waitpid(child, 0)[1] == 0
    assert (said["made"], said["shards_there"]) == (3, 3)
    assert there  # not a leftover
    assert work(pairs, out, models)["made"] == 1  # now it is one
    assert files_of(out) == files_of(whole)


@pytest.mark.faults
@fork
def test_two_terminals_on_one_folder(pairs, models, whole, tmp_path, monkeypatch):
    """Begun at the same time: no tar is made twice, none is missing, no one stumbles."""
    slow_texts(monkeypatch, 0.15, tmp_path / "made")
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            try:
                work(pairs, tmp_path / "out", models)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert files_of(tmp_path / "out") == files_of(whole)
    assert (tmp_path / "made").read_text() == "1\n" * 4


def test_leftovers_of_the_manifest_and_of_tars_go(pairs, models, whole, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("reinforced.json", "00002.tar", "00002.json"):
        (out / f".{name}.abcd.tmp").write_bytes(b"{")
    work(pairs, out, models)
    assert files_of(out) == files_of(whole)


def test_damaged_shards_are_forgotten_before_the_first_is_made_anew(pairs, models, tmp_path, monkeypatch):
    """Killed then, the next start without --check still makes all of them."""
    out = tmp_path / "out"
    work(pairs, out, models)
    for name in ("00001.tar", "00003.tar"):
        data = bytearray((out / name).read_bytes())
        data[data.index(b"NUMPY") + 200] ^= 1
        (out / name).write_bytes(data)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(driver.Maker, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            work(pairs, out, models, check=True)
    assert work(pairs, out, models)["made"] == 2


@pytest.mark.parametrize("when", ["_records", "_texts"])
def test_a_picture_that_changes_while_teachers_look_at_it(models, tmp_path, monkeypatch, when):
    """Before its crops are made, or after: the tar would hold another picture than the one that the embeddings are of."""
    source = open_pairs(str(pictures(tmp_path / "pictures", 6)))
    plain = getattr(module.Maker, when)

    def changed(self, asked):
        Path(source.locations[1].path).write_bytes(Path(source.locations[3].path).read_bytes())
        return plain(self, asked)

    monkeypatch.setattr(module.Maker, when, changed)
    with pytest.raises(UserError, match=r"the picture of '001.jpg' was changed since the source was opened"):
        work(source, tmp_path / "out", models)
    assert not list((tmp_path / "out").glob("*.tar"))
    monkeypatch.undo()
    assert work(open_pairs(str(tmp_path / "pictures")), tmp_path / "out", models)["pairs"] == 6


@pytest.mark.parametrize(("tower", "value"), [("visual", float("nan")), ("text", 0.0)])
def test_a_teacher_with_damaged_weights_is_not_stored(pairs, tmp_path, tower, value):
    models = teachers()
    damaged = models["second"].model.visual.proj if tower == "visual" else models["second"].model.text.text_projection
    damaged.data.fill_(value)
    with pytest.raises(UserError, match="the teacher 'second' makes embeddings that are not finite, or zeros"):
        work(pairs, tmp_path / "out", models, storage="int8")
    assert not list((tmp_path / "out").glob("*.tar"))


def test_a_process_that_opened_an_older_source_makes_way(pairs, models, whole, tmp_path, monkeypatch):
    """The source grew, and another launch made the longer tar, while this one was at work."""
    out, plain = tmp_path / "out", driver.begin

    def overtaken(folder, plan):
        found = plain(folder, plan)
        monkeypatch.setattr(driver, "begin", plain)
        work(pairs, out, models)
        return found

    monkeypatch.setattr(driver, "begin", overtaken)
    with pytest.raises(UserError, match=r"00001\.tar in .* was made meanwhile by another process, of a source that was changed"):
        work(pairs.subset(range(6)), out, models)
    assert files_of(out) == files_of(whole)


@fork
@pytest.mark.faults
def test_a_short_tar_that_somebody_has_is_not_there_yet(pairs, models, tmp_path):
    out = tmp_path / "out"
    work(pairs.subset(range(6)), out, models)
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(done[1])
        with ShardLocks(out) as locks, locks.shard(1):
            os.write(ready[1], b"1")
            os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    said = work(pairs, out, models)
    os.close(done[1])
    assert os.waitpid(child, 0)[1] == 0
    assert (said["made"], said["shards_there"], said["pairs"]) == (2, 3, 9)  # of 4 tars and 13 pairs


@pytest.mark.parametrize("what", ["keys", "hashes", "groups", "captions", "extras"])
def test_a_tar_is_made_from_every_field_of_its_pairs_and_of_no_others(pairs, models, what):
    def digest(some: Pairs, number: int) -> str:
        return Plan(some, models, Captions(), settings(shard=4), {}).made_from(number)

    other = pairs.subset(range(13))
    assert digest(other, 1) == digest(pairs, 1)
    getattr(other, what)[int(pairs.offsets[5]) if what == "captions" else 5] = {"n": 1} if what == "extras" else "another"
    assert digest(other, 1) != digest(pairs, 1)
    assert digest(other, 0) == digest(pairs, 0)
