"""Banks: what is in them, whose they are, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys

import numpy as np
import pytest
import torch

from clipling.data.views import Augment, crops_of_view, eval_pixels, render
from clipling.errors import UserError
from clipling.guides import bank as bank_module
from clipling.guides.bank import Bank, bank_for, build_bank
from tests.guides.making import ToyImages, ToyTexts, files_of, source


def build(pairs, out, **options):
    return build_bank(pairs, out, **{"image_encoder": ToyImages(), "text_encoder": ToyTexts(), "block": 8, **options})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A source with two broken pictures, and its bank."""
    torch.set_num_threads(1)  # as in the tests, before whose own fixture this one runs: the last bits depend on it
    folder = tmp_path_factory.mktemp("bank")
    pairs = source(folder / "pictures", 40, broken=(5, 17))
    return pairs, build(pairs, folder / "bank")


def test_features_are_those_of_the_encoders(made):
    pairs, bank = made
    encoder = ToyImages()
    assert bank.image.shape == (40, 24)
    assert bank.text.shape == (len(pairs.captions), 16)
    assert bank.keys == pairs.keys
    assert bank.image_hashes == pairs.hashes
    assert np.array_equal(bank.offsets, pairs.offsets)
    whole = list(range(8, 16))  # one block
    pixels = np.stack([eval_pixels(pairs.image(i), encoder.preprocess) for i in whole])
    expected = encoder.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy().astype(np.float16)
    assert np.array_equal(bank.image[whole], expected)
    texts = ToyTexts().encode(pairs.captions)  # one block
    assert np.array_equal(bank.text[:], texts.astype(np.float16))
    np.testing.assert_allclose(np.linalg.norm(bank.image[whole].astype(float), axis=1), 1, atol=1e-3)


def test_pictures_that_fail_are_zeros_and_not_valid(made):
    _, bank = made
    assert np.flatnonzero(~bank.valid).tolist() == [5, 17]
    assert not bank.image[[5, 17]].any()
    assert bank.image[[4]].any()
    assert bank.manifest["invalid"] == {"count": 2, "first": ["005.png", "017.png"]}


def test_features_that_are_not_finite_make_the_pair_invalid(tmp_path):
    class Failing(ToyTexts):
        def encode(self, texts):
            rows = super().encode(texts)
            rows[[i for i, text in enumerate(texts) if "1 of picture 4" in text]] = np.nan
            return rows

    pairs = source(tmp_path / "p", 9)
    bank = build(pairs, tmp_path / "b", text_encoder=Failing())
    assert np.flatnonzero(~bank.valid).tolist() == [4]
    assert np.isfinite(bank.text[:]).all()


def test_the_manifest_says_what_made_it(made):
    pairs, bank = made
    manifest = json.loads((bank.folder / "manifest.json").read_text())
    assert manifest["image"]["encoder"] == "toy images"
    assert manifest["image"]["preprocess"]["resize_mode"] == "squash"
    assert manifest["text"]["licence"] == "toy"
    assert manifest["licences"] == {"toy images": "toy", "toy texts": "toy"}
    assert manifest["pairs_fingerprint"] == pairs.fingerprint
    assert manifest["views"] is None
    assert sorted(p.name for p in bank.folder.iterdir()) == [
        "image-00000.npy", "manifest.json", "pairs.parquet", "text-00000.npy", "valid.npy",
    ]  # fmt: skip


def test_building_again_opens_and_another_bank_is_refused(made, tmp_path):
    pairs, bank = made
    said = []
    again = build(pairs, bank.folder, progress=lambda *seen: said.append(seen))
    assert not said
    assert np.array_equal(again.image[:], bank.image[:])
    with pytest.raises(UserError, match="another pairs, captions, pairs_fingerprint"):
        build(pairs.subset(range(3)), bank.folder)
    with pytest.raises(UserError, match="finished bank with another image"):
        build(pairs, bank.folder, image_encoder=ToyImages(size=12))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.txt").write_text("keep")
    with pytest.raises(UserError, match="is not a bank"):
        build(pairs, tmp_path / "mine")
    with pytest.raises(ValueError, match="go together"):
        build(pairs, tmp_path / "x", views=2)
    with pytest.raises(ValueError, match="sees 8 pixels"):
        build(pairs, tmp_path / "x", image_size=64)


def test_several_shards_hold_the_same(made, tmp_path, monkeypatch):
    pairs, bank = made
    monkeypatch.setattr(bank_module, "SHARD_ROWS", 16)
    monkeypatch.setattr(bank_module, "TEXT_BLOCKS", 3)
    small = build(pairs, tmp_path / "b")
    assert small.manifest["shards"] == {"image": 3, "text": 4, "views": 0}
    assert np.array_equal(small.image[:], bank.image[:])
    assert np.array_equal(small.valid, bank.valid)
    monkeypatch.setattr(bank_module, "SHARD_ROWS", 65_536)
    one = build(pairs, tmp_path / "c")
    assert np.array_equal(small.text[:], one.text[:])
    assert one.manifest["shards"]["text"] == 1


def test_a_part_of_the_source_joins_in_its_own_order(made):
    pairs, bank = made
    order = np.random.default_rng(0).permutation(40)[:25]
    part = pairs.subset(order)
    rows = bank.join(part)
    assert np.array_equal(rows.image[:], bank.image[order])
    assert np.array_equal(rows.valid, bank.valid[order])
    assert np.array_equal(rows.offsets, part.offsets)
    assert not rows.as_built
    captions = [int(c) for i in order for c in pairs.caption_rows(i)]
    assert np.array_equal(rows.text[:], bank.text[captions])
    whole = bank.join(pairs)
    assert whole.as_built
    assert np.array_equal(whole.image[:], bank.image[:])


def test_a_bank_of_another_source_is_refused_with_numbers_and_keys(made, tmp_path):
    pairs, bank = made
    other = pairs.subset(range(40))
    other.keys = [f"new-{key}" if i < 7 else key for i, key in enumerate(pairs.keys)]
    other.hashes = [("0" * 32) if i in (10, 11) else h for i, h in enumerate(pairs.hashes)]
    other.captions = [c.replace("picture 20", "picture xx") for c in pairs.captions]
    with pytest.raises(UserError) as refused:
        bank.join(other)
    message = str(refused.value)
    assert "of 40 pairs 7 missing, 2 with another picture, 1 with other captions" in message
    first = ", ".join(f"new-{key}" for key in pairs.keys[:5])
    assert f"(first: {first})" in message
    assert "new-005" not in message


def test_opening_what_is_no_bank(tmp_path, made):
    with pytest.raises(UserError, match="there is no bank"):
        Bank.open(tmp_path / "absent")
    with pytest.raises(UserError, match="not a finished bank"):
        Bank.open(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(made[1].folder, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(UserError, match="format 99"):
        Bank.open(copy)


def cut(share):
    return lambda path: os.truncate(path, int(path.stat().st_size * share))


def other(array):
    return lambda path: np.save(path, array)


DAMAGES = [
    *[(name, cut(share)) for name in ("valid.npy", "pairs.parquet", "image-00000.npy", "text-00000.npy") for share in (0, 0.1, 0.9)],
    *[(name, lambda path: path.unlink()) for name in ("valid.npy", "pairs.parquet", "image-00000.npy")],
    *[(name, lambda path: path.write_bytes(bytes(path.stat().st_size))) for name in ("valid.npy", "pairs.parquet", "text-00000.npy")],
    *[("manifest.json", lambda path, text=text: path.write_text(text)) for text in ("", "[]", "3", "{", '{"format": 1}')],
    ("valid.npy", other(np.ones(39, bool))),
    ("valid.npy", other(np.ones(40))),
    ("image-00000.npy", other(np.ones((39, 24), np.float16))),
    ("image-00000.npy", other(np.ones((40, 23), np.float16))),
    ("text-00000.npy", other(np.ones(40, np.float16))),
    ("text-00000.npy", other(np.ones((79, 16)))),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_damaged_bank_is_named_with_its_file(made, tmp_path, name, damage):
    pairs, bank = made
    copy = tmp_path / "copy"
    shutil.copytree(bank.folder, copy)
    damage(copy / name)
    for opened in (lambda: Bank.open(copy), lambda: build(pairs, copy)):
        with pytest.raises(UserError) as refused:
            opened()
        message = str(refused.value)
        assert str(copy) in message
        assert name in message
        assert "Remove the folder and build the bank again" in message


@pytest.mark.parametrize("change", [{"pairs": 41}, {"captions": 3}, {"views": {}}, {"views": 2}, {"image": []}, {"text": {"dim": 16}},
                                    {"shards": {"image": 0, "text": 1, "views": 0}}, {"shards": {"image": 2, "text": 1, "views": 0}},
                                    {"shards": {"image": "1", "text": 1, "views": 0}}])  # fmt: skip
def test_a_manifest_that_its_files_contradict(made, tmp_path, change):
    copy = tmp_path / "copy"
    shutil.copytree(made[1].folder, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(UserError, match=r"copy is damaged: .* Remove the folder and build the bank again"):
        Bank.open(copy)


def test_any_wrong_byte_of_a_small_file_is_an_error_of_ours_or_harmless(made, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(made[1].folder, copy)
    rng, refused = np.random.default_rng(0), 0
    for name, upto in (("valid.npy", 128), ("manifest.json", None), ("image-00000.npy", 128), ("pairs.parquet", None)):
        whole = (copy / name).read_bytes()
        for place in rng.permutation(len(whole[:upto]))[:50].tolist():
            (copy / name).write_bytes(whole[:place] + bytes([whole[place] ^ int(rng.integers(1, 256))]) + whole[place + 1 :])
            try:
                Bank.open(copy)
            except UserError:
                refused += 1
        (copy / name).write_bytes(whole)
    assert refused > 70
    Bank.open(copy)


@pytest.mark.parametrize("text", ["[]", "", "{", "3"])
def test_a_damaged_plan_of_a_half_built_bank(made, tmp_path, text):
    (tmp_path / "b" / "building").mkdir(parents=True)
    (tmp_path / "b" / "building" / "plan.json").write_text(text)
    with pytest.raises(UserError, match=r"plan.json|half-built"):
        build(made[0], tmp_path / "b")


def test_views_are_the_students_crops(tmp_path):
    pairs, encoder = source(tmp_path / "p", 9, broken=(3,)), ToyImages()
    augment = Augment(scale=(0.3, 0.9), flip=0.5, views=3)
    bank = build(pairs, tmp_path / "b", views=3, augment=augment, seed=7, block=6)  # blocks of two pairs
    assert bank.views.shape == (27, 24)
    assert not bank.views[9:12].any()
    for i in (2, 8):
        image = pairs.image(i)
        boxes, flips = crops_of_view(augment, 7, np.arange(3), np.full(3, i), np.full(3, image.width / image.height))
        crops = np.stack([render(np.asarray(image), box, flip, 8) for box, flip in zip(boxes, flips)])
        expected = encoder.encode(torch.from_numpy(crops).permute(0, 3, 1, 2)).numpy()
        # the toy's rows depend a little on their company, which is a block of two pairs here
        np.testing.assert_allclose(bank.views[3 * i : 3 * i + 3].astype(float), expected, atol=2e-2)
    part = bank.join(pairs.subset([8, 2]))
    assert np.array_equal(part.views[:], bank.views[[24, 25, 26, 6, 7, 8]])
    assert np.array_equal(bank.image[:], build(pairs, tmp_path / "plain", block=6).image[:])


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@pytest.mark.parametrize("world", [2, 5])
def test_several_processes_build_the_same_bank(made, tmp_path, world):
    pairs, bank = made
    augment = Augment(views=2)
    alone = build(pairs, tmp_path / "alone", views=2, augment=augment)
    assert np.array_equal(alone.image[:], bank.image[:])
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            build(pairs, tmp_path / "shared", views=2, augment=augment, rank=rank, world=world)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * world
    assert files_of(tmp_path / "shared") == files_of(tmp_path / "alone")


def test_the_cache_keeps_banks_apart(fresh_cache, tmp_path, monkeypatch):
    pairs = source(tmp_path / "p", 12)
    opened = []

    def open_image(name, image_size=None):
        opened.append(name)
        return ToyImages(size=image_size or 8)

    monkeypatch.setattr(bank_module, "open_image_encoder", open_image)
    monkeypatch.setattr(bank_module, "open_text_encoder", lambda name: ToyTexts())
    first = bank_for(pairs, "one", "texts")
    assert first.is_relative_to(fresh_cache)
    assert bank_for(pairs, "one", "texts") == first
    assert opened == ["one"]
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"1")
    others = [bank_for(pairs, "two", "texts"), bank_for(pairs, "one", "other"), bank_for(pairs, "one", "texts", image_size=16)]
    others += [bank_for(pairs.subset(range(11)), "one", "texts"), bank_for(pairs, f"timm:x@{weights}", "texts")]
    others += [bank_for(pairs, "one", "texts", views=2, augment=Augment(views=2), seed=seed) for seed in (0, 1)]
    weights.write_bytes(b"2")
    others += [bank_for(pairs, f"timm:x@{weights}", "texts")]
    assert len({first, *others}) == 9


def test_a_source_without_captions_has_no_bank(tmp_path):
    pairs = source(tmp_path / "p", 3)
    with pytest.raises(UserError, match="0 pictures"):
        build(pairs.subset([]), tmp_path / "b")


def test_a_full_disk_is_explained_and_the_build_continues(tmp_path, monkeypatch):
    pairs = source(tmp_path / "p", 20)
    whole = build(pairs, tmp_path / "whole")
    replace, left = os.replace, [5]

    def full(*names):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(*names)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="no space left on the disk"):
        build(pairs, tmp_path / "b")
    monkeypatch.setattr(os, "replace", replace)
    build(pairs, tmp_path / "b")
    assert files_of(tmp_path / "b") == files_of(whole.folder)
