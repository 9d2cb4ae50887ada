"""Hugging Face datasets as they lie on a disk, and what img2dataset leaves."""

from __future__ import annotations

import json
import os

import pytest

from clipling.data.arrow import ArrowFile, saved_dataset
from clipling.data.pack import pack
from clipling.data.reading import Options
from clipling.data.remote import Fetch
from clipling.data.source import open_pairs
from clipling.data.split import published_split
from clipling.errors import UserError
from tests.data.making import picture, put, tar

pytestmark = pytest.mark.usefixtures("fresh_cache")


def rows(first: int, count: int) -> dict[str, list]:
    numbers = range(first, first + count)
    return {
        "image": [{"bytes": picture(n, "PNG"), "path": f"{n}.png"} for n in numbers],
        "caption": [[f"a {n}", f"b {n}"] for n in numbers],
        "sku": [f"s{n // 2}" for n in numbers],
    }


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets")


def made(datasets, first, count):
    features = datasets.Features(
        {"image": datasets.Image(), "caption": datasets.Sequence(datasets.Value("string")), "sku": datasets.Value("string")}
    )
    return datasets.Dataset.from_dict(rows(first, count), features=features)


def check(pairs, count):
    assert len(pairs) == count
    for i in range(count):
        n = int(pairs.captions_of(i)[0].split()[1])
        assert pairs.captions_of(i) == [f"a {n}", f"b {n}"]
        assert pairs.image_bytes(i) == picture(n, "PNG")
        assert pairs.groups[i] == f"s{n // 2}"
        assert pairs.keys[i] == f"{n}.png"


def test_a_saved_dataset(datasets, tmp_path):
    made(datasets, 0, 30).save_to_disk(tmp_path / "saved", num_shards=3)
    pairs = open_pairs(str(tmp_path / "saved"), group="sku")
    check(pairs, 30)
    assert published_split(pairs) is None
    made(datasets, 0, 30).select([7, 3, 21]).save_to_disk(tmp_path / "chosen")
    assert open_pairs(str(tmp_path / "chosen")).keys == ["7.png", "3.png", "21.png"]
    settings = {"size": None, "quality": 90, "shard": 8, "fetch": Fetch(), "at_once": 2}
    pack(str(tmp_path / "saved"), tmp_path / "packed", Options(group="sku"), **settings)
    check(open_pairs(str(tmp_path / "packed")), 30)


def test_splits_of_a_saved_dataset_are_kept(datasets, tmp_path):
    both = datasets.DatasetDict({"train": made(datasets, 0, 12), "test": made(datasets, 12, 5)})
    both.save_to_disk(tmp_path / "saved")
    pairs = open_pairs(str(tmp_path / "saved"), group="sku")
    check(pairs, 17)
    found = published_split(pairs)
    assert {name: len(part) for name, part in found.items()} == {"train": 12, "val": 0, "test": 5}
    assert published_split(open_pairs(str(tmp_path / "saved" / "test"))) is None, "one split alone is a source like any other"
    (tmp_path / "saved" / "test" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(UserError, match="is missing"):
        open_pairs(str(tmp_path / "saved"))


def test_parquet_files_as_the_hub_keeps_them(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, first, count in (("train-00000-of-00002", 0, 4), ("train-00001-of-00002", 4, 4), ("validation-00000-of-00001", 8, 3)):
        (tmp_path / "hub" / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(rows(first, count)), tmp_path / "hub" / "data" / f"{name}.parquet")
    pairs = open_pairs(str(tmp_path / "hub"), group="sku")
    check(pairs, 11)
    assert len(published_split(pairs)["val"]) == 3


def test_damaged_arrow_files(datasets, tmp_path):
    path = put(tmp_path / "x.arrow", b"ARROW1 no")
    with pytest.raises(UserError, match="cannot be read as arrow"):
        open_pairs(str(path))
    made(datasets, 0, 30).save_to_disk(tmp_path / "saved")
    path = next((tmp_path / "saved").glob("*.arrow"))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match="cannot be read as arrow"):
        open_pairs(str(tmp_path / "saved"))


def test_img2dataset_webdataset_output(tmp_path):
    """As img2dataset 1.47 writes it: a tar, a parquet and statistics for each shard; failed rows are in the parquet alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for shard in range(2):
        members, table = {}, []
        for n in range(shard * 10, shard * 10 + 5):
            key, good = f"{shard:05d}{n % 10:04d}", n % 10 != 2
            about = {
                "caption": f"number {n}",
                "url": f"https://x.org/{n}.jpg",
                "key": key,
                "status": "success" if good else "failed_to_download",
            }
            about |= {
                "error_message": None,
                "width": 12,
                "height": 9,
                "original_width": 99,
                "original_height": 99,
                "exif": "{}",
                "sha256": "ab",
            }
            table.append({**about, "similarity": 0.5})
            if good:
                members |= {f"{key}.jpg": picture(n), f"{key}.txt": about["caption"], f"{key}.json": {**about, "similarity": 0.5}}
        tar(tmp_path / "out" / f"{shard:05d}.tar", members)
        pq.write_table(pa.Table.from_pylist(table), tmp_path / "out" / f"{shard:05d}.parquet")
        put(tmp_path / "out" / f"{shard:05d}_stats.json", json.dumps({"count": 5, "successes": 4}))
    pairs = open_pairs(str(tmp_path / "out"))
    assert pairs.captions == [f"number {n}" for n in (0, 1, 3, 4, 10, 11, 13, 14)]
    assert pairs.extras[0] == {"similarity": 0.5}
    assert [pairs.image_bytes(i) for i in range(8)] == [picture(n) for n in (0, 1, 3, 4, 10, 11, 13, 14)]
    pack(str(tmp_path / "out"), tmp_path / "packed", Options(), size=64, quality=90, shard=3, fetch=Fetch(), at_once=2)
    again = open_pairs(str(tmp_path / "packed"))
    assert (again.keys, again.captions, again.hashes) == (pairs.keys, pairs.captions, pairs.hashes)


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_all_batches_of_an_arrow_file_come_in_parts(tmp_path, kind):
    import pyarrow as pa

    table = pa.table({"n": list(range(25)), "other": ["x"] * 25, "text": [str(n) for n in range(25)]})
    path = tmp_path / "t.arrow"
    with pa.OSFile(str(path), "wb") as out, (pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file)(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=10)
    batches = list(ArrowFile(path).iter_batches(4, ["text", "n"]))
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2, 4, 1]
    assert [row for batch in batches for row in batch.to_pylist()] == [{"text": str(n), "n": n} for n in range(25)]


def test_rows_that_were_chosen_by_an_index_are_not_read_as_all_rows(tmp_path):
    put(tmp_path / "data.arrow", b"")
    put(tmp_path / "dataset_info.json", "{}")
    state = {"_data_files": [{"filename": "data.arrow"}], "_indices_data_files": None}
    put(tmp_path / "state.json", json.dumps(state))
    assert saved_dataset(tmp_path) == [tmp_path / "data.arrow"]
    put(tmp_path / "state.json", json.dumps({**state, "_indices_data_files": [{"filename": "indices.arrow"}]}))
    with pytest.raises(UserError, match="flatten_indices"):
        saved_dataset(tmp_path)


def test_copied_pictures_are_those_of_the_column_and_of_the_present_file(tmp_path):
    """Pictures of one file are copied into the cache: another column, or a file of the same size in its place, has other pictures."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, shown = tmp_path / "t.parquet", [picture(n, "BMP") for n in range(4)]  # of one size

    def written(first, second):
        pq.write_table(pa.table({"one": [first], "two": [second], "caption": ["a"]}), path, compression="none", use_dictionary=False)

    def read(column):
        return open_pairs(str(path), image_column=column).image_bytes(0)

    written(shown[0], shown[1])
    size = path.stat().st_size
    assert (read("one"), read("two")) == (shown[0], shown[1])
    written(shown[2], shown[3])
    assert path.stat().st_size == size
    os.utime(path, ns=(10**18, 10**18))
    assert (read("one"), read("two")) == (shown[2], shown[3])
