"""The clip-retrieval layout, both ways."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipling.errors import UserError
from clipling.guides import clip_retrieval
from clipling.guides.clip_retrieval import read_clip_retrieval, write_clip_retrieval
from tests.guides.making import source
from tests.guides.test_bank import build


@pytest.mark.parametrize("part_rows", [7, 500_000])
def test_there_and_back(tmp_path, monkeypatch, part_rows):
    monkeypatch.setattr(clip_retrieval, "PART_ROWS", part_rows)
    pairs = source(tmp_path / "p", 20, broken=(4,))
    bank = build(pairs, tmp_path / "bank")
    write_clip_retrieval(bank, pairs, tmp_path / "out")
    files = sorted(p.name for p in (tmp_path / "out" / "img_emb").iterdir())
    assert files == (["img_emb_0.npy"] if part_rows > 100 else [f"img_emb_{i}.npy" for i in range(6)])
    metadata = pq.read_table(tmp_path / "out" / "metadata" / "metadata_0.parquet").to_pydict()
    assert metadata["image_path"][:3] == ["000.png", "001.png", "001.png"]
    assert metadata["caption"][:3] == pairs.captions[:3]
    again = read_clip_retrieval(tmp_path / "out", tmp_path / "again", "toy")
    assert np.array_equal(again.image[:], bank.image[:])
    assert np.array_equal(again.text[:], bank.text[:])
    assert np.array_equal(again.valid, bank.valid)
    assert again.caption_hashes == bank.caption_hashes
    order = [3, 19, 4]
    joined = again.join(pairs.subset(order))
    assert np.array_equal(joined.image[:], bank.image[order])
    assert joined.manifest["licences"] == {"toy": "not stated"}
    other = pairs.subset(order)
    other.captions[-1] = "another"
    with pytest.raises(UserError, match="1 with other captions"):
        again.join(other)
    for call in (
        lambda: write_clip_retrieval(bank, pairs, tmp_path / "out"),
        lambda: read_clip_retrieval(tmp_path / "out", tmp_path / "p"),
    ):
        with pytest.raises(UserError, match="not empty"):
            call()


def written(folder, paths, captions, image, text):
    for kind in ("img_emb", "text_emb", "metadata"):
        (folder / kind).mkdir(parents=True)
    np.save(folder / "img_emb" / "img_emb_0.npy", image)
    np.save(folder / "text_emb" / "text_emb_0.npy", text)
    pq.write_table(pa.table({"image_path": paths, "caption": captions}), folder / "metadata" / "metadata_0.parquet")
    return folder


def test_features_of_another_program(tmp_path):
    """Rows that are not normalised, in fp32, captions of one picture apart from each other, no hashes."""
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(4, 6)).astype(np.float32) * 3, rng.normal(size=(4, 6)).astype(np.float32)
    text[2] = 0
    folder = written(tmp_path / "in", ["b", "a", "b", "c"], ["1", "2", "3", "4"], image, text)
    bank = read_clip_retrieval(folder, tmp_path / "bank")
    assert bank.keys == ["b", "a", "c"]
    assert bank.offsets.tolist() == [0, 2, 3, 4]
    expected = image[[0, 1, 3]] / np.linalg.norm(image[[0, 1, 3]], axis=1, keepdims=True)
    np.testing.assert_allclose(bank.image[:].astype(float), expected, atol=1e-3)
    expected = text[[0, 2, 1, 3]] / np.maximum(np.linalg.norm(text[[0, 2, 1, 3]], axis=1, keepdims=True), 1e-9)
    np.testing.assert_allclose(bank.text[:].astype(float), expected, atol=1e-3)
    assert bank.valid.tolist() == [False, True, True]
    assert bank.image_hashes == ["", "", ""]


def test_what_is_not_of_that_layout(tmp_path):
    rows = np.eye(3, dtype=np.float32)
    with pytest.raises(UserError, match=r"no metadata/metadata_\*"):
        read_clip_retrieval(tmp_path / "absent", tmp_path / "b")
    folder = written(tmp_path / "short", ["a", "b", "c"], ["1", "2", "3"], rows[:2], rows)
    with pytest.raises(UserError, match="its metadata has 3 rows"):
        read_clip_retrieval(folder, tmp_path / "b")
    folder = written(tmp_path / "images", ["a", "b", "c"], ["1", "2", "3"], rows, rows)
    (folder / "text_emb" / "text_emb_0.npy").unlink()
    with pytest.raises(UserError, match="needs image and text features"):
        read_clip_retrieval(folder, tmp_path / "b")
    folder = written(tmp_path / "columns", ["a", "b", "c"], ["1", "2", "3"], rows, rows)
    pq.write_table(pa.table({"url": ["x"] * 3, "caption": ["y"] * 3}), folder / "metadata" / "metadata_0.parquet")
    with pytest.raises(UserError, match="no column image_path"):
        read_clip_retrieval(folder, tmp_path / "b")
    assert not (tmp_path / "b").exists()
