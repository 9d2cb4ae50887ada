"""The layout of reinforced pairs: what is written, what of others is read, what is refused by name."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipling.data import stored_arrays
from clipling.data.packing import SCALE, error, packed, unpacked
from clipling.data.reinforced import Sample, TeacherInfo, array_name, members, read_sample, texts_digest
from clipling.data.replay import Record
from clipling.data.stored_arrays import FormatError, npz_bytes, read_npz, read_pickle
from clipling.errors import UserError
from tests.objectives.golden import unit

TEACHERS = [TeacherInfo("a", 5, 70.0), TeacherInfo("b", 3, None)]


def rows(count: int, seed: int = 0) -> np.ndarray:
    """Unit rows of both teachers beside each other."""
    return np.concatenate([unit(count, 5, seed).numpy(), unit(count, 3, seed + 100).numpy()], axis=1).astype(np.float32)


def sample() -> Sample:
    records = [Record((1, 2, 30, 40), True, ((6, 0.27), (11, 178.5))), Record((0, 0, 50, 60))]
    embeddings = {"image": rows(2, 1), "text": rows(3, 2), "rules": rows(2, 3), "lang.de": rows(1, 4)}
    return Sample(records, (60, 50), "abc", TEACHERS, {"rules": ["one", "two"], "lang.de": ["drei"]}, embeddings)


@pytest.mark.parametrize(("storage", "tolerance"), [("fp32", 1e-6), ("fp16", 5e-4), ("int8", 1e-2)])
def test_what_was_written_is_read(storage, tolerance):
    one = sample()
    found = members(one, storage, flips=True)
    assert found == members(one, storage, flips=True)  # byte for byte, whatever the time of day
    back = read_sample(found, 3)
    assert (back.records, back.size, back.hash, back.teachers) == (one.records, one.size, one.hash, one.teachers)
    assert back.synthetic == one.synthetic
    for name, expected in one.embeddings.items():
        made = unpacked(back.embeddings[name], [5, 3], back.scales.get(name))
        np.testing.assert_allclose(made, expected, atol=tolerance, rtol=0)
        assert np.linalg.norm(made[:, :5], axis=1) == pytest.approx(1, abs=1e-6)
        assert np.linalg.norm(made[:, 5:], axis=1) == pytest.approx(1, abs=1e-6)


def test_the_layout_is_datacompdrs():
    found = members(sample(), "fp32", flips=False)
    paug, syn = json.loads(found["paug.json"]), json.loads(found["syn.json"])
    assert paug["param_aug"] == [[[1, 2, 30, 40], [[6, 0.27], [11, 178.5]]], [[0, 0, 50, 60], None]]
    assert syn == {"syn_text_rules": ["one", "two"], "syn_text_lang.de": ["drei"]}
    with np.load(io.BytesIO(found["npz"]), allow_pickle=False) as arrays:
        assert set(arrays.files) == {"image_emb", "text_emb", "syn_text_rules_emb", "syn_text_lang.de_emb"}
        np.testing.assert_array_equal(arrays["image_emb"], rows(2, 1))


def apples(form: str) -> tuple[dict[str, bytes], np.ndarray]:
    """One pair as DataCompDR publishes it: one real and two synthetic captions in one `text_emb`, no word on teachers or size."""
    image, text = rows(2, 1), rows(3, 2)
    found = {
        "paug.json": json.dumps({"param_aug": [[[1, 2, 30, 40], [[6, 0.27], [11, 178.5]]], [[0, 0, 50, 60], None]]}).encode(),
        "syn.json": json.dumps({"syn_text": ["one", "two"]}).encode(),
    }
    if form == "npz":
        held = io.BytesIO()
        np.savez_compressed(held, image_emb=image, text_emb=text)
        return found | {"npz": held.getvalue()}, text
    held = io.BytesIO()
    torch.save({"image_emb": torch.from_numpy(image).bfloat16(), "text_emb": torch.from_numpy(text).bfloat16()}, held)
    return found | {"pth.gz": gzip.compress(held.getvalue())}, text


@pytest.mark.parametrize(("form", "tolerance"), [("npz", 0), ("pth.gz", 8e-3)])
def test_apples_files(form, tolerance):
    found, text = apples(form)
    one = read_sample(found, 1, TEACHERS)
    assert (one.size, one.hash, one.teachers, one.synthetic) == (None, "", TEACHERS, {"": ["one", "two"]})
    np.testing.assert_allclose(one.embeddings["text"], text[:1], atol=tolerance)
    np.testing.assert_allclose(one.embeddings[""], text[1:], atol=tolerance)
    assert len(one.records) == 2


def test_a_pickle_with_anything_but_tensors_is_not_loaded(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "was here"), "w"))

    for content in (pickle.dumps({"image_emb": Evil()}), b"no pickle at all"):
        with pytest.raises(FormatError, match="tensors alone"):
            read_pickle(gzip.compress(content))
    held = io.BytesIO()
    torch.save({"image_emb": Evil()}, held)
    with pytest.raises(FormatError, match="tensors alone"):
        read_pickle(gzip.compress(held.getvalue()))
    assert not (tmp_path / "was here").exists()
    with pytest.raises(FormatError, match="tensors alone"):
        read_pickle(b"not packed")


def test_what_unpacks_to_too_much_is_refused():
    with pytest.raises(FormatError, match="more than 64 MB"):
        read_pickle(gzip.compress(bytes(65 * 2**20)))
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("image_emb.npy", bytes(65 * 2**20))
    with pytest.raises(FormatError, match="more than 64 MB"):
        read_npz(held.getvalue())


def broken(**changes: bytes | None) -> dict[str, bytes]:
    found = members(sample(), "fp16", flips=True) | {name.replace("_", "."): data for name, data in changes.items() if data is not None}
    return {name: data for name, data in found.items() if changes.get(name.replace(".", "_"), b"") is not None}


def arrays(**changes: np.ndarray) -> bytes:
    return npz_bytes({array_name(name): value.astype(np.float16) for name, value in (sample().embeddings | changes).items()})


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (broken(paug_json=None), "no paug.json"),
        (broken(paug_json=b"{"), "paug.json is not JSON"),
        (broken(paug_json=b"[]"), "not a JSON object"),
        (broken(paug_json=b'{"param_aug": [[[1, 2]]]}'), "paug.json: .* no part of an augmentation"),
        (broken(syn_json=b'{"syn_text_rules": "one"}'), "syn_text_rules is not a list of texts"),
        (broken(npz=None), "lack image_emb"),
        (broken(npz=b"PK broken"), "npz:"),
        (broken(npz=arrays(image=rows(3))), r"image_emb is float16 \[3, 8\]"),
        (broken(npz=arrays(rules=rows(1))), "syn_text_rules_emb is"),
        (broken(npz=arrays(text=np.zeros((3, 7)))), "image_emb|text_emb has rows of 7, its teachers 8"),
        (broken(npz=npz_bytes({array_name(n): np.zeros((2, 8), np.int8) for n in ("image", "text", "rules")})), "int8 without"),
    ],
)
def test_what_is_wrong_is_named(found, reason):
    with pytest.raises(FormatError, match=reason):
        read_sample(found, 3)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400), st.sampled_from(["paug.json", "syn.json", "npz", "pth.gz"]))
def test_noise_is_refused_by_its_own_error(noise, member):
    found = members(sample(), "fp16", flips=True)
    if member == "pth.gz":
        del found["npz"]
    with pytest.raises(FormatError):
        read_sample(found | {member: noise}, 3)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["fp32", "fp16", "int8"]))
def test_the_stated_error_is_the_error(seed, storage):
    given_rows = rows(6, seed)
    made = packed("image_emb", given_rows, [5, 3], storage)
    said = error(given_rows, made, "image_emb", [5, 3])
    back = unpacked(made["image_emb"], [5, 3], made.get("image_emb" + SCALE))
    assert said["largest"] == pytest.approx(max(abs(float(a) - float(b)) for a, b in zip(back.ravel(), given_rows.ravel())))
    assert said["largest"] <= {"fp32": 1e-6, "fp16": 5e-4, "int8": 1.2e-2}[storage]
    cosines = [float(np.dot(a, b)) for columns in (slice(0, 5), slice(5, 8)) for a, b in zip(back[:, columns], given_rows[:, columns])]
    assert said["lowest_cosine"] == pytest.approx(min(cosines), abs=1e-6)


def test_rows_of_no_features_stay_zeros():
    made = packed("x", np.zeros((2, 8), np.float32), [5, 3], "int8")
    assert not unpacked(made["x"], [5, 3], made["x" + SCALE]).any()
    with pytest.raises(UserError, match="fp32, fp16, int8"):
        members(sample(), "fp8", flips=False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"teachers": [["t", 64, float("inf")]]}, "scale inf"),
        ({"teachers": [["t", 64, -3.0]]}, "scale -3"),
        ({"teachers": [["t", 64, "big"]]}, "teachers are"),
        ({"teachers": [["t", 32, 1.0], ["t", 32, 1.0]]}, "called alike"),
        ({"teachers": [["t", 64]]}, "teachers are"),
        ({"size": ["a"]}, "size is"),
        ({"size": 5}, "size is"),
        ({"size": [0, 0]}, None),
    ],
)
def test_an_edited_record_is_named_and_not_stumbled_over(edit, message):
    found = {"paug.json": json.dumps({"param_aug": [], "teachers": [["t", 64, 1.0]], **edit}).encode()}
    with pytest.raises(FormatError, match=message):
        read_sample(found, 1)


def test_embeddings_that_are_no_directions_are_refused():
    for bad in (np.nan, np.inf, 0.0):
        rows = np.full((1, 4), bad, dtype=np.float32)
        found = {
            "paug.json": json.dumps({"param_aug": [], "teachers": [["t", 4, 1.0]]}).encode(),
            "npz": npz_bytes({"image_emb": np.zeros((0, 4), np.float32), "text_emb": rows}),
        }
        with pytest.raises(FormatError, match="text_emb holds numbers that are not finite, or rows of zeros"):
            read_sample(found, 1)


def zipped(tensors: dict[str, torch.Tensor], **how) -> bytes:
    held = io.BytesIO()
    torch.save(tensors, held, **how)
    return held.getvalue()


def test_tensors_that_say_they_are_huge_are_refused():
    """In a few bytes each: a zip whose parts are packed once more, a number that claims to repeat itself, a form that lists no parts."""
    held = io.BytesIO()
    content = zipped({"image_emb": torch.zeros(17 * 2**20)[:1]})  # one number, out of 68 MB that come with it
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as after:
        for info in before.infolist():
            after.writestr(info.filename, before.read(info))
    repeated = zipped({"image_emb": torch.zeros(1).expand(2**20, 2**20)})
    halves = zipped({"image_emb": torch.zeros(1, dtype=torch.bfloat16).expand(9 * 2**20, 2)})  # 36 MB, and 72 MB once float32
    shared = zipped(dict.fromkeys(map(str, range(9)), torch.zeros(2 * 2**20)))  # 8 MB nine times
    for packed_again in (held.getvalue(), repeated, halves, shared):
        compressed = gzip.compress(packed_again)
        assert len(packed_again) < 2**24
        with pytest.raises(FormatError, match="more than 64 MB"):
            read_pickle(compressed)
    with pytest.raises(FormatError, match="tensors alone"):
        read_pickle(gzip.compress(zipped({"image_emb": torch.zeros(3)}, _use_new_zipfile_serialization=False)))
    assert read_pickle(gzip.compress(zipped({"image_emb": torch.ones(2, 3).bfloat16()})))["image_emb"].tolist() == [[1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize("more", [-1, 1])
def test_one_array_of_all_captions_has_to_have_as_many_rows(more):
    """DataCompDR's layout: one real and two synthetic captions in `text_emb`. With more or fewer rows nobody knows whose they are."""
    found, _ = apples("npz")
    held = io.BytesIO()
    np.savez_compressed(held, image_emb=rows(2, 1), text_emb=rows(3 + more, 2))
    with pytest.raises(FormatError, match="lack syn_text_emb"):
        read_sample(found | {"npz": held.getvalue()}, 1, TEACHERS)


def test_texts_have_digests_that_any_change_changes():
    said = texts_digest(["a dog", "two cats"])
    assert said == texts_digest([" a dog", "two cats", "a dog"])  # as readers clean them
    others = [["two cats", "a dog"], ["a dog"], ["a dogtwo cats"], ["a do", "gtwo cats"], ["a dog", "two Cats"], []]
    assert len({said, *map(texts_digest, others)}) == 7
    one = sample()
    one.digests = {"text": said, "rules": texts_digest(["one", "two"])}
    back = read_sample(members(one, "fp32", flips=True), 3)
    assert back.digests == one.digests
    one.synthetic["rules"] = ["one", "tvo"]
    with pytest.raises(FormatError, match="syn_text_rules were changed"):
        read_sample(members(one, "fp32", flips=True), 3)


def test_a_teachers_identity_goes_through_a_file():
    one = sample()
    one.teachers = [TeacherInfo("a", 5, 70.0, "abc"), TeacherInfo("b", 3)]
    assert read_sample(members(one, "fp32", flips=True), 3).teachers == one.teachers


@pytest.mark.parametrize("edit", [{"texts": ["a"]}, {"texts": {"text": 3}}, {"teachers": [["t", 4, 1.0, "x", "y"]]}, {"size": [1e999, 2]}])
def test_more_edits_that_are_named(edit):
    found = {"paug.json": json.dumps({"param_aug": [], "teachers": [["t", 4, 1.0]], **edit}).encode()}
    with pytest.raises(FormatError, match=r"paug.json: (texts|teachers|size)"):
        read_sample(found, 1)


def test_zeros_of_one_teacher_are_refused():
    """Its softmax would be flat, whatever the picture."""
    made = rows(2)
    made[1, 5:] = 0
    for storage in ("fp32", "fp16"):
        with pytest.raises(FormatError, match="text_emb holds numbers that are not finite, or rows of zeros"):
            read_sample(of_text(packed("text_emb", made, [5, 3], storage)), 2)
    with pytest.raises(FormatError, match="rows of zeros"):
        read_sample(of_text({"text_emb": made[:1] * np.float32(1e-20)}), 1)


@pytest.mark.parametrize("scale", [0.0, -0.01, np.nan, np.inf])
def test_scales_of_int8_are_positive_numbers(scale):
    arrays = packed("text_emb", rows(2), [5, 3], "int8")
    assert read_sample(of_text(arrays), 2).scales["text"].shape == (2, 2)
    arrays["text_emb" + SCALE][1, 0] = scale
    with pytest.raises(FormatError, match="text_emb holds numbers that are not finite, or rows of zeros"):
        read_sample(of_text(arrays), 2)


def of_text(arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    """Members of a pair of which only captions matter."""
    empty = packed("image_emb", np.zeros((0, 8), np.float32), [5, 3], "int8" if arrays["text_emb"].dtype == np.int8 else "fp32")
    paug = {"param_aug": [], "teachers": [["a", 5, 70.0], ["b", 3, 60.0]]}
    return {"paug.json": json.dumps(paug).encode(), "npz": npz_bytes(empty | arrays)}


def test_an_npz_with_a_pickle_or_with_many_arrays_of_half_the_limit(monkeypatch):
    held = io.BytesIO()
    np.savez(held, text_emb=np.array([{"a": 1}], dtype=object))
    with pytest.raises(FormatError, match="npz: Object arrays cannot be loaded"):
        read_npz(held.getvalue())
    monkeypatch.setattr(stored_arrays, "LARGEST", 1000)
    half = np.zeros((1, 100), np.float32)
    assert read_npz(npz_bytes({"a": half})).keys() == {"a"}
    with pytest.raises(FormatError, match="more than 0 MB once unpacked"):
        read_npz(npz_bytes({"a": half, "b": half}))
