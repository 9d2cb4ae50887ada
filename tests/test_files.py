"""embed and predict: what is written is what the model says, in the order of the files."""

from __future__ import annotations

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

import clipling
from clipling.data.source import open_pairs
from clipling.errors import UserError
from clipling.files import class_names, embed, predict
from clipling.models.hub import new_student, open_student, save_student
from tests.deploy import handmade
from tests.toy import toy_folder


@pytest.fixture
def model(tmp_path, fresh_cache):
    save_student(new_student("tiny_vit_32", seed=0), tmp_path / "tiny")
    return str(tmp_path / "tiny")


@pytest.fixture
def photos(tmp_path):
    return toy_folder(tmp_path / "photos", count=7)


@pytest.fixture
def truth(model, photos):
    """Keys and features straight from the student, one picture at a time."""
    student, pairs = open_student(model), open_pairs(str(photos))
    from clipling.data.views import eval_pixels

    pixels = np.stack([eval_pixels(pairs.image(i), student.preprocess_cfg) for i in range(len(pairs))])
    return pairs, student, student.encode_images_in_batches(pixels)


def test_embed_to_npy(model, photos, truth, tmp_path):
    pairs, student, image = truth
    made = embed(model, str(photos), tmp_path / "out")
    assert np.load(tmp_path / "out" / "image.npy") == pytest.approx(image, abs=1e-6)
    assert np.load(tmp_path / "out" / "text.npy") == pytest.approx(student.encode_texts_in_batches(pairs.captions), abs=1e-6)
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert [row["key"] for row in rows] == pairs.keys
    assert [c for row in rows for c in row["captions"]] == pairs.captions
    assert (made["pictures"], made["captions"], made["dimensions"], made["bad_rows"]) == (7, 14, image.shape[1], 0)


def test_embed_to_parquet(model, photos, truth, tmp_path):
    pairs, student, image = truth
    embed(model, str(photos), tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet").to_pylist()
    pictures, texts = ([row for row in table if row["kind"] == kind] for kind in ("image", "text"))
    assert [row["key"] for row in pictures] == pairs.keys
    assert np.array([row["embedding"] for row in pictures]) == pytest.approx(image, abs=1e-6)
    assert [row["caption"] for row in texts] == pairs.captions
    assert [row["key"] for row in texts] == [pairs.keys[i] for i in range(7) for _ in range(2)]
    assert np.array([row["embedding"] for row in texts]) == pytest.approx(student.encode_texts_in_batches(pairs.captions), abs=1e-6)


def test_embed_of_bare_photos(model, photos, tmp_path):
    for path in photos.glob("*.txt"):
        path.unlink()
    assert embed(model, str(photos), tmp_path / "out")["captions"] == 0
    assert np.load(tmp_path / "out" / "text.npy").shape[0] == 0
    embed(model, str(photos), tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 7


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_predictions_are_the_softmax(model, photos, truth, tmp_path, suffix):
    pairs, student, image = truth
    names = ["disc", "square", "bar"]
    text = student.encode_texts_in_batches([f"a photo of a {name}." for name in names])
    logits = float(student.logit_scale.detach().exp()) * image.astype(np.float64) @ text.T.astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    out = tmp_path / f"out{suffix}"
    made = predict(model, str(photos), "disc,square,bar", top=2, out=out)
    if suffix == ".csv":
        rows = list(csv.DictReader(out.open()))
    elif suffix == ".jsonl":
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    else:
        rows = pq.read_table(out).to_pylist()
    assert [row["key"] for row in rows] == pairs.keys
    for i, row in enumerate(rows):
        assert row["class_1"] == names[p[i].argmax()]
        assert float(row["probability_1"]) == pytest.approx(p[i].max(), abs=1e-5)
        assert "class_3" not in row
    assert made["classes"] == {name: int((p.argmax(1) == c).sum()) for c, name in enumerate(names)}
    assert made["first"][0]["key"] == pairs.keys[0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"classes": "cat"}, "is no file"),
        ({"classes": "cat,cat"}, "'cat' twice"),
        ({"classes": "cat,"}, "at least two"),
        ({"classes": "cat,dog", "top": 3}, "--top is 3; expected 1 to 2"),
        ({"classes": "cat,dog", "out": "x.xlsx"}, "give a .csv, .jsonl, .parquet file"),
    ],
)
def test_mistakes_of_predict(model, photos, tmp_path, given, said):
    from pathlib import Path

    given = {**given, "out": Path(given["out"])} if "out" in given else given
    with pytest.raises(UserError, match=said):
        predict(model, str(photos), **given)


def test_templates_need_a_place(model, photos, tmp_path):
    (tmp_path / "t.txt").write_text("a photo\n")
    with pytest.raises(UserError, match=r"needs \{c\}"):
        predict(model, str(photos), "a,b", templates=tmp_path / "t.txt")


def test_an_exported_folder_answers_as_the_graphs_do(photos, tmp_path):
    """embed and predict of what is deployed, against clipling.load on the same files."""
    exported = handmade.folder(tmp_path / "exported", handmade.convolutional)
    pairs, runtime = open_pairs(str(photos)), clipling.load(exported)
    image = runtime.encode_image([pairs.image_bytes(i) for i in range(len(pairs))])
    embed(str(exported), str(photos), tmp_path / "out")
    assert np.load(tmp_path / "out" / "image.npy") == pytest.approx(image, abs=1e-6)
    assert np.load(tmp_path / "out" / "text.npy") == pytest.approx(runtime.encode_text(pairs.captions), abs=1e-6)
    made = predict(str(exported), str(photos), "red disc,blue bar,green dot", top=2)
    truth = runtime.predict([pairs.image_bytes(i) for i in range(len(pairs))], ["red disc", "blue bar", "green dot"], top=2)
    for row, (key, guesses) in zip(made["first"], zip(pairs.keys, truth)):
        assert row["key"] == key
        assert [name for name, _ in row["guesses"]] == [name for name, _ in guesses]
        assert [p for _, p in row["guesses"]] == pytest.approx([p for _, p in guesses], abs=1e-6)


def test_names_from_a_file(tmp_path):
    (tmp_path / "names.txt").write_text("red, bright\n\nblue\n")
    assert class_names(str(tmp_path / "names.txt")) == ["red, bright", "blue"]


def test_an_ending_that_means_nothing_is_refused(model, photos, tmp_path):
    with pytest.raises(UserError, match=r"give a \.parquet file, or a folder"):
        embed(model, str(photos), tmp_path / "out.csv")


def test_a_broken_picture_is_left_out_and_counted(model, photos, tmp_path):
    for i in range(20):
        (photos / f"more{i}.png").write_bytes((photos / "0000.png").read_bytes())
    (photos / "0003.png").write_bytes(b"not a picture")
    made = embed(model, str(photos), tmp_path / "out")
    assert made["bad_rows"] >= 1
    assert np.load(tmp_path / "out" / "image.npy").shape[0] == made["pictures"] == 26
