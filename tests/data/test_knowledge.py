"""Stored knowledge joined to pairs: rows found again after repacking, pictures that changed refused or scaled, damage named."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from clipling.data import stored_rows
from clipling.data.knowledge import Knowledge
from clipling.data.packing import packed
from clipling.data.pairs import Pairs
from clipling.data.reinforced import TeacherInfo
from clipling.data.replay import replay
from clipling.data.source import open_pairs
from clipling.data.stored_arrays import npz_bytes, read_npz
from clipling.data.stored_rows import StoredRows
from clipling.errors import UserError
from clipling.models.hub import new_student
from tests.reinforcing import in_json, made, pictures, reinforced, repacked, teachers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("source")


@pytest.fixture(scope="module")
def pairs(folder):
    return reinforced(folder, storage="fp32")


@pytest.fixture(scope="module")
def knowledge(pairs):
    return Knowledge(pairs)


def crops(pairs, knowledge, size: int = 32) -> dict[tuple[str, int], np.ndarray]:
    """Every augmentation of every picture."""
    found = {}
    for i, key in enumerate(pairs.keys):
        first, last = knowledge.record_offsets[i : i + 2]
        picture = np.asarray(pairs.image(i))
        found |= {(key, int(k - first)): replay(picture, knowledge.records[k], size) for k in range(first, last)}
    return found


def by_key(pairs, knowledge) -> dict[str, list]:
    """What is stored of every pair."""
    found = {}
    for i, key in enumerate(pairs.keys):
        (a, b), (c, d) = knowledge.record_offsets[i : i + 2], knowledge.text_offsets[i : i + 2]
        own = [knowledge.records[a:b], pairs.captions_of(i), knowledge.texts[c:d], knowledge.origins[c:d]]
        rows = [knowledge.image(np.arange(a, b)), knowledge.text(np.array(pairs.caption_rows(i))), knowledge.synthetic(np.arange(c, d))]
        found[key] = own + [row.tolist() for row in rows]
    return found


def test_it_reads_as_plain_pairs(folder, pairs):
    plain = open_pairs(str(folder / "pictures"))
    assert len(pairs) == len(plain) == 24
    assert pairs.captions == plain.captions
    assert pairs.hashes == plain.hashes  # so the split by the pictures is the same
    assert pairs.offsets.tolist() == plain.offsets.tolist()
    assert not len(pairs.problems)
    assert [key.replace("%2E", ".") for key in pairs.keys] == plain.keys


@pytest.mark.parametrize(("storage", "tolerance"), [("fp32", 1e-5), ("fp16", 2e-3), ("int8", 2e-2)])
def test_stored_embeddings_equal_those_made_now(tmp_path, storage, tolerance):
    """Of every augmentation, every caption, every synthetic caption, by each teacher at its own size."""
    pairs = reinforced(tmp_path, 8, storage=storage)
    knowledge = Knowledge(pairs)
    assert [t.dim for t in knowledge.teachers] == [48, 64]
    at = 0
    for model in teachers().values():
        columns = slice(at, at := at + model.embed_dim)
        views = torch.from_numpy(np.stack(list(crops(pairs, knowledge, model.image_size).values()))).permute(0, 3, 1, 2)
        with torch.no_grad():
            images = model.encode_image(model.normalise(views)).numpy()
        found = knowledge.image(np.arange(len(knowledge.records)))[:, columns]
        np.testing.assert_allclose(found, images, atol=tolerance, rtol=0)
        assert np.abs(images[1:] - images[:-1]).max() > 0.05, "crops that are alike would show nothing"
        texts = model.encode_texts_in_batches(pairs.captions)
        np.testing.assert_allclose(knowledge.text(np.arange(len(pairs.captions)))[:, columns], texts, atol=tolerance, rtol=0)
        texts = model.encode_texts_in_batches(knowledge.texts)
        np.testing.assert_allclose(knowledge.synthetic(np.arange(len(texts)))[:, columns], texts, atol=tolerance, rtol=0)


def test_captions_keep_their_origin(pairs, knowledge):
    assert set(knowledge.origins) == {"rules", "others"}
    others = [t for t, o in zip(knowledge.texts, knowledge.origins) if o == "others"]
    assert others == [c for i in range(len(pairs)) for c in pairs.captions_of(i)[1:]]
    only = Knowledge(pairs, origins="rul.*")
    assert set(only.origins) == {"rules"}
    assert len(only.texts) == knowledge.origins.count("rules")
    rows = [i for i, o in enumerate(knowledge.origins) if o == "rules"]
    np.testing.assert_array_equal(only.synthetic(np.arange(len(rows))), knowledge.synthetic(np.array(rows)))
    assert not Knowledge(pairs, origins="rul").texts  # the whole origin, not its beginning
    with pytest.raises(UserError, match="regular expression"):
        Knowledge(pairs, origins="(")


def test_replay_is_the_same_to_the_bit_after_repacking(folder, pairs, knowledge, tmp_path):
    """All K records of all pictures, all embeddings: in one tar of another form, in another order, opened under another name."""
    other = open_pairs(str(repacked(folder / "out", tmp_path / "one.tar")))
    again = Knowledge(other)
    assert other.keys != pairs.keys
    before, after = crops(pairs, knowledge), crops(other, again)
    assert before.keys() == after.keys()
    assert len(before) == 3 * 24
    for place, crop in before.items():
        np.testing.assert_array_equal(after[place], crop)
    assert by_key(other, again) == by_key(pairs, knowledge)


def test_a_part_of_the_pairs(pairs, knowledge):
    part = pairs.subset([17, 3, 11])
    some, whole = by_key(part, Knowledge(part)), by_key(pairs, knowledge)
    assert some == {key: whole[key] for key in part.keys}


def resized(name: str, data: bytes) -> tuple[str, bytes]:
    if not name.endswith((".png", ".jpg")):
        return name, data
    image = Image.open(io.BytesIO(data)).convert("RGB")
    held = io.BytesIO()
    image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC).save(held, "PNG")
    return name, held.getvalue()


def test_pictures_that_were_resized_are_refused_or_scaled(folder, knowledge, tmp_path):
    larger = open_pairs(str(repacked(folder / "out", tmp_path / "large.tar", resized)))
    with pytest.raises(UserError, match=r"24 of 24 pairs .*\n.* was 81 x 60 .* is 162 x 120 now.*reinforced.changed=rescale"):
        Knowledge(larger)
    scaled = Knowledge(larger, changed="rescale")
    assert scaled.describe()["rescaled_pairs"] == 24
    assert {r.box for r in scaled.records} == {tuple(2 * n for n in r.box) for r in knowledge.records}
    before = crops(open_pairs(str(folder / "out")), knowledge)
    far = [np.abs(crop.astype(int) - before[place]).mean() for place, crop in crops(larger, scaled).items()]
    assert max(far) < 12  # the same part of the picture, give or take its operations
    with pytest.raises(UserError, match="refuse or rescale"):
        Knowledge(larger, changed="ignore")


def test_pictures_without_a_hash_are_checked_by_their_size(folder, tmp_path):
    def nameless(name, data):
        return name, in_json(data, hash="", size=None) if name.endswith("paug.json") else data

    pairs = open_pairs(str(repacked(folder / "out", tmp_path / "a.tar", nameless)))
    assert Knowledge(pairs).describe()["pairs_without_a_hash"] == 24

    def smaller(name, data):
        if not name.endswith((".png", ".jpg")):
            return nameless(name, data)
        held = io.BytesIO()
        Image.open(io.BytesIO(data)).convert("RGB").resize((16, 16)).save(held, "PNG")
        return name, held.getvalue()

    pairs = open_pairs(str(repacked(folder / "out", tmp_path / "b.tar", smaller)))
    with pytest.raises(UserError, match="does not lie inside of the picture of 16 x 16"):
        Knowledge(pairs)


def test_datacompdrs_own_layout(folder, pairs, knowledge, tmp_path):
    """bf16 tensors in a pth.gz, all captions in one array, no teachers named; one caption a picture as theirs have."""

    def apples(name, data):
        if name.endswith("paug.json"):
            return name, in_json(data, hash="", size=None, teachers=None)
        if name.endswith(".npz"):
            arrays = read_npz(data)
            texts = np.concatenate([arrays["text_emb"], *(v for n, v in arrays.items() if n.startswith("syn_text"))])
            held = io.BytesIO()
            found = {"image_emb": torch.from_numpy(arrays["image_emb"]).bfloat16(), "text_emb": torch.from_numpy(texts).bfloat16()}
            torch.save(found, held)
            return name.replace(".npz", ".pth.gz"), gzip.compress(held.getvalue())
        return name, data

    theirs = open_pairs(str(repacked(folder / "out", tmp_path / "apple.tar", apples)))
    with pytest.raises(UserError, match=r"reinforced\.teachers"):
        Knowledge(theirs)
    found, expected = by_key(theirs, Knowledge(theirs, [TeacherInfo("x", 48), TeacherInfo("y", 64)])), by_key(pairs, knowledge)
    for key, (*said, image, text, synthetic) in expected.items():
        assert found[key][:4] == said
        for rows, its in zip((image, text, synthetic), found[key][4:]):
            np.testing.assert_allclose(np.array(its), np.array(rows), atol=8e-3)


def test_packed_arrays_are_read_too(folder, pairs, knowledge, tmp_path):
    def deflated(name, data):
        if not name.endswith(".npz"):
            return name, data
        held = io.BytesIO()
        np.savez_compressed(held, **read_npz(data))
        return name, held.getvalue()

    other = open_pairs(str(repacked(folder / "out", tmp_path / "packed.tar", deflated)))
    assert by_key(other, Knowledge(other)) == by_key(pairs, knowledge)


def test_arrays_in_columns_are_read_too(folder, pairs, knowledge, tmp_path):
    """Numpy writes what was transposed column by column: no row of it lies at one place."""

    def turned(name, data):
        if not name.endswith(".npz"):
            return name, data
        held = io.BytesIO()
        np.savez(held, **{key: np.asfortranarray(rows) for key, rows in read_npz(data).items()})
        return name, held.getvalue()

    other = open_pairs(str(repacked(folder / "out", tmp_path / "turned.tar", turned)))
    assert by_key(other, Knowledge(other)) == by_key(pairs, knowledge)


def test_a_damaged_shard_is_named(folder, tmp_path):
    shutil.copytree(folder / "out", tmp_path / "out")
    path = tmp_path / "out" / "00001.tar"
    data = bytearray(path.read_bytes())
    place = data.index(b"NUMPY") + 200  # inside of an array: nothing but the checksum can tell
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"shard 00001.tar .* checksum .* --check"):
        Knowledge(open_pairs(str(tmp_path / "out")))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda name, data: None if name.endswith("paug.json") else (name, data),
            "24 of 24 pairs of .* have no stored knowledge beside them",
        ),
        (lambda name, data: None if name.endswith("npz") else (name, data), "lack image_emb"),
        (lambda name, data: (name, data + b"\nanother") if name.endswith(".txt") else (name, data), None),
        (lambda name, data: (name, in_json(data, captions=["one"] * 9)) if name.endswith("g.json") else (name, data), None),
        (
            lambda name, data: (name, in_json(data, captions=["a", "b", "c", "d"])) if name[-8:-5] == "png" else (name, data),
            "of 4 captions",
        ),
        (
            lambda name, data: (
                (name, in_json(data, teachers=[["first", 112, 1.0]])) if name.startswith("003") and "paug" in name else (name, data)
            ),
            "its teachers are first",
        ),
    ],
)
def test_what_does_not_fit_is_named(folder, tmp_path, change, reason):
    pairs = open_pairs(str(repacked(folder / "out", tmp_path / "x.tar", change)))
    if reason is None:
        return  # what plain readers take captions from is the json, first
    with pytest.raises(UserError, match=reason):
        Knowledge(pairs)


def test_a_source_without_knowledge(folder):
    with pytest.raises(UserError, match=r"not in a tar .*(\n.*)*clipling reinforce"):
        Knowledge(open_pairs(str(folder / "pictures")))


def test_draws_are_uniform_and_depend_on_nothing_but_seed_epoch_and_pair(knowledge):
    pairs = np.arange(24)
    drawn = np.stack([knowledge.draw(0, epoch, pairs) - knowledge.record_offsets[:-1] for epoch in range(300)])
    assert set(np.unique(drawn)) == {0, 1, 2}
    assert np.abs(np.bincount(drawn.ravel()) / drawn.size - 1 / 3).max() < 0.02
    np.testing.assert_array_equal(knowledge.draw(0, 7, pairs[5:9]), knowledge.draw(0, 7, pairs)[5:9])
    texts = np.stack([knowledge.draw_texts(0, epoch, pairs) for epoch in range(200)])
    for i in range(24):
        assert set(texts[:, i]) == set(range(knowledge.text_offsets[i], knowledge.text_offsets[i + 1]))


def test_links_know_synthetic_captions(pairs, tmp_path):
    knowledge = Knowledge(pairs.subset(range(24)))
    assert knowledge.links(pairs) == pairs.links() or knowledge.links(pairs)
    knowledge.texts[int(knowledge.text_offsets[2])] = pairs.captions_of(9)[0].upper()
    links = knowledge.links(pairs)
    assert set(links[2]) & set(links[9])
    assert not set(links[2]) & set(links[10])


def test_it_goes_to_worker_processes(knowledge):
    rows = np.array([0, 5, 9])
    expected = knowledge.image(rows)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(knowledge)).image(rows), expected)


def test_storages_by_size(tmp_path):
    """The same pairs: half and a quarter of the embeddings' bytes."""
    source = open_pairs(str(pictures(tmp_path / "pictures", 4)))
    sizes = {}
    for storage in ("fp32", "fp16", "int8"):
        made(source, tmp_path / storage, storage=storage)
        from tarfile import open as tar

        with tar(tmp_path / storage / "00000.tar") as file:
            sizes[storage] = sum(
                len(v.tobytes()) for m in file if m.name.endswith("npz") for v in read_npz(file.extractfile(m).read()).values()
            )
    assert sizes["fp32"] == 2 * sizes["fp16"]
    assert sizes["fp32"] / 4 < sizes["int8"] < sizes["fp32"] / 3.5
    assert set(read_npz(npz_bytes(packed("x", np.ones((1, 2), np.float32), [2], "int8")))) == {"x", "x_scale"}


# What belongs together: teachers, captions, pictures, crops


def without(*names: str):
    """A change for `repacked`: paug.json as it was before it had these."""

    def change(name, data):
        if not name.endswith("paug.json"):
            return name, data
        found = {key: value for key, value in json.loads(data).items() if key not in names}
        if "identity" in names:
            found["teachers"] = [row[:3] for row in found["teachers"]]
        return name, json.dumps(found).encode()

    return change


@pytest.fixture(scope="module")
def others(folder):
    """The same pairs by other teachers, which are called alike and have rows of the same sizes."""
    models = {**teachers(), "second": new_student("tiny_vit_32", seed=17).eval()}
    made(open_pairs(str(folder / "pictures")), folder / "others", asked=models, storage="fp32")
    return folder / "others"


def test_tars_of_different_teachers_in_one_folder_are_refused(folder, others, pairs, tmp_path):
    shutil.copytree(folder / "out", tmp_path / "mixed")
    for end in ("tar", "json"):
        shutil.copy(others / f"00002.{end}", tmp_path / "mixed" / f"00002.{end}")
    with pytest.raises(UserError, match=r"4 of 24 pairs .*: 4 other teachers(.*\n)*.*its second is another model .* keep them apart"):
        Knowledge(open_pairs(str(tmp_path / "mixed")))
    with pytest.raises(UserError, match="24 other teachers"):
        Knowledge(open_pairs(f"{folder / 'out'}::{others}"))
    assert not Knowledge(open_pairs(str(others))).unchecked()
    seen = Knowledge(pairs).describe()["teachers"]
    assert len({teacher["identity"] for teacher in seen} | {None}) == 3


def test_files_that_do_not_say_their_teachers_open_and_that_is_said(folder, pairs, knowledge, tmp_path):
    older = open_pairs(str(repacked(folder / "out", tmp_path / "a.tar", without("identity", "texts"))))
    found = Knowledge(older)
    assert by_key(older, found) == by_key(pairs, knowledge)
    (said,) = found.unchecked()
    assert "which teachers they are of (all), whether captions are those that the teachers read (all)" in said
    assert found.describe()["pairs_without_teachers_identities"] == found.describe()["pairs_without_digests_of_texts"] == 24
    few = repacked(
        folder / "out", tmp_path / "b.tar", lambda n, d: without("identity")(n, d) if n.startswith("00") and n < "003" else (n, d)
    )
    (said,) = Knowledge(open_pairs(str(few))).unchecked()
    assert "which teachers they are of (3)" in said
    assert "captions" not in said
    assert knowledge.unchecked() == []


def test_captions_that_were_changed_after_the_teachers_read_them_are_refused(folder, tmp_path):
    """As many as before: the embeddings would belong to other words."""

    def swapped(name, data):  # the last of a pair's captions first
        is_pair = name.startswith("005") and name.endswith(".json") and not name.endswith(("paug.json", "syn.json"))
        return name, in_json(data, captions=json.loads(data)["captions"][::-1]) if is_pair else data

    with pytest.raises(UserError, match=r"1 of 24 pairs .*: 1 changed captions(.*\n)*.*005%2Ejpg: its captions were changed after"):
        Knowledge(open_pairs(str(repacked(folder / "out", tmp_path / "a.tar", swapped))))

    def rewritten(name, data):
        if not (name.startswith("007") and name.endswith("syn.json")):
            return name, data
        found = json.loads(data)
        return name, in_json(data, syn_text_rules=["nothing of the kind", *found["syn_text_rules"][1:]])

    changed = open_pairs(str(repacked(folder / "out", tmp_path / "b.tar", rewritten)))
    with pytest.raises(UserError, match=r"1 changed captions(.*\n)*.*007%2Ejpg: the texts of syn_text_rules were changed"):
        Knowledge(changed)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"size": [4000, 4000], "param_aug": [[[3000, 0, 10, 10], None]] * 3}, "says that the picture is 4000 x 4000, and it is 60 x 50"),
        ({"size": None, "param_aug": [[[45, 0, 10, 10], None]] * 3}, "a crop does not lie inside of the picture of 60 x 50"),
        ({"param_aug": [[[0, 0, 10, 10], [[10, 12.0]]]] * 3}, "Posterize takes a magnitude from 0 to 8"),
    ],
)
def test_what_would_break_in_training_is_refused_at_opening(folder, tmp_path, changes, reason):
    """Of the very picture that is named by its hash."""

    def change(name, data):
        return name, in_json(data, **changes) if name == "000%2Epng.paug.json" else data

    with pytest.raises(UserError, match=rf"1 of 24 pairs .*(.*\n)*.*000%2Epng: .*{reason}"):
        Knowledge(open_pairs(str(repacked(folder / "out", tmp_path / "x.tar", change))))


def test_a_member_that_is_too_large_is_not_read(folder, tmp_path, monkeypatch):
    path = repacked(folder / "out", tmp_path / "x.tar")
    monkeypatch.setattr("clipling.data.knowledge.LARGEST", 1000)
    with pytest.raises(UserError, match=r"24 of 24 pairs .*\n.*npz has 0 MB; no more than"):
        Knowledge(open_pairs(str(path)))


def test_few_files_are_open_at_once(pairs, knowledge, monkeypatch):
    """Rows of many tars in any order: the file that was opened first is closed for the next."""
    monkeypatch.setattr(stored_rows, "OPEN_FILES", 2)
    rows = StoredRows()
    rows.dims = [48, 64]
    expected = knowledge.image(np.arange(72))
    by_tar = knowledge._image
    for i in range(72):
        rows.add(expected[i : i + 1], f"{i % 5}/{by_tar.files[by_tar._file[i]]}", by_tar._at[i], None)
    rows.files = [path.partition("/")[2] for path in rows.files]  # 72 entries: each is opened as a file of its own
    opened = []
    plain = stored_rows.open if hasattr(stored_rows, "open") else open
    monkeypatch.setattr(stored_rows, "open", lambda *a, **k: opened.append(plain(*a, **k)) or opened[-1], raising=False)
    order = np.random.default_rng(0).permutation(72)
    np.testing.assert_allclose(rows[order], expected[order], atol=1e-6)
    assert len(rows._open) == 2
    assert sum(not file.closed for file in opened) == 2


def test_teachers_that_differ_in_their_scale_are_different_ones(folder, pairs, tmp_path):
    """Of files without identities too; and a scale that the tars say is not lost by naming their teachers."""

    def other(name, data):
        name, data = without("identity")(name, data)
        if not name.startswith("007") or not name.endswith("paug.json"):
            return name, data
        return name, in_json(data, teachers=[[*row[:2], 55.0] for row in json.loads(data)["teachers"]])

    with pytest.raises(UserError, match=r"1 other teachers(.*\n)*.*its teachers are first \(48, scale 55\).*first \(48, scale 14\.28"):
        Knowledge(open_pairs(str(repacked(folder / "out", tmp_path / "a.tar", other))))
    with pytest.raises(
        UserError, match=r"24 other teachers.*\n.*scale 14\.28.*for tars that do not say it, has first \(48\), second \(64\)"
    ):
        Knowledge(pairs, [TeacherInfo("first", 48), TeacherInfo("second", 64)])


def test_another_size_without_a_hash_is_scaled_only_when_that_was_asked_for(folder, pairs, tmp_path):
    def larger(name, data):
        return resized(name, in_json(data, hash="") if name.endswith("paug.json") else data)

    other = open_pairs(str(repacked(folder / "out", tmp_path / "a.tar", larger)))
    with pytest.raises(UserError, match=r"24 changed pictures.*\n.*was 81 x 60 .* is 162 x 120 now; crops are scaled to it with --set"):
        Knowledge(other)
    assert Knowledge(other, changed="rescale").describe()["rescaled_pairs"] == 24


@pytest.mark.skipif(not hasattr(os, "pread"), reason="Windows, which does not fork")
def test_processes_that_were_forked_do_not_move_each_others_place(knowledge):
    knowledge.image(np.arange(20))
    assert {file.tell() for file in knowledge._image._open.values()} == {0}


def test_tars_of_different_storages_in_one_folder_are_refused(folder, pairs, tmp_path):
    """Rows are read by one number of bytes: those of the other tars would be noise."""
    made(open_pairs(str(folder / "pictures")), tmp_path / "half", storage="fp16")
    shutil.copytree(folder / "out", tmp_path / "mixed")
    for end in ("tar", "json"):
        shutil.copy(tmp_path / "half" / f"00002.{end}", tmp_path / "mixed" / f"00002.{end}")
    with pytest.raises(UserError, match=r"4 of 24 pairs(.*\n)*.*the embeddings image are float16, others float32"):
        Knowledge(open_pairs(str(tmp_path / "mixed")))


def test_crops_and_synthetic_captions_are_drawn_apart(knowledge):
    """Of every pair each crop is shown with each text; by one number for both, some would never meet."""
    pair = np.array([i for i in range(24) if knowledge.text_offsets[i + 1] - knowledge.text_offsets[i] > 2][:1])
    crops_texts = {(int(knowledge.draw(0, epoch, pair)[0]), int(knowledge.draw_texts(0, epoch, pair)[0])) for epoch in range(300)}
    assert len(crops_texts) == 3 * int(np.diff(knowledge.text_offsets)[pair[0]])


def test_links_of_synthetic_captions_are_classes_of_their_own():
    """Pairs 0 and 1 have one caption, 2 and 3 one synthetic one, 4 and 5 one group. No other two are the same."""
    groups = ["", "", "", "", "g", "g"]
    pairs = Pairs("made", list("abcdef"), ["x", "x", "y", "z", "v", "w"], np.arange(7), [], [""] * 6, groups, [{}] * 6)
    found = Knowledge.__new__(Knowledge)
    found.texts, found.text_offsets = ["s", "S."], np.array([0, 0, 0, 1, 2, 2, 2])
    links = [set(own) for own in found.links(pairs)]
    assert [[bool(a & b) for b in links] for a in links] == [[i // 2 == j // 2 for j in range(6)] for i in range(6)]
