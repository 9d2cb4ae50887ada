"""Photos without captions and texts without photos: what is kept, what is dropped, and that nothing is ever paired."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from clipling.data.loader import TrainBatches
from clipling.data.pairs import Pairs, hash_bytes
from clipling.data.photos import open_photos, read_texts, with_texts
from clipling.data.pixels import Pixels
from clipling.data.source import open_pairs
from clipling.data.split import split
from clipling.data.views import Augment
from clipling.data.workers import loader
from clipling.errors import UserError
from tests.data.making import picture, pictures, put, tar

pytestmark = pytest.mark.usefixtures("fresh_cache")


def captioned(folder, words) -> str:
    """A folder with picture n beside a caption of `words[n]`."""
    for n, word in enumerate(words):
        put(folder / f"{n:02d}.jpg", picture(n))
        put(folder / f"{n:02d}.txt", f"caption {word}")
    return str(folder)


def test_a_folder_of_pictures_at_any_depth(tmp_path):
    pictures(tmp_path, 3)
    put(tmp_path / "2020" / "may" / "a.PNG", picture(7, "PNG"))
    put(tmp_path / ".hidden" / "b.jpg", picture(8))
    put(tmp_path / "notes.txt", b"\xff\xfe not a caption")
    put(tmp_path / "0.txt", b"\xff")
    photos = open_photos(str(tmp_path), max_bad=0)
    assert photos.keys == ["0.jpg", "1.jpg", "2.jpg", "2020/may/a.PNG"]
    assert photos.hashes == [hash_bytes(picture(n)) for n in range(3)] + [hash_bytes(picture(7, "PNG"))]
    assert photos.image_bytes(3) == picture(7, "PNG")
    assert photos.image(0).size == (12, 9)
    assert photos.groups == [""] * 4
    assert photos.name == str(tmp_path)
    assert len(photos.problems) == 0


def test_nothing_is_said_of_a_photo(tmp_path):
    photos = open_photos(captioned(tmp_path / "a", "abcd"))
    assert isinstance(photos, Pairs)
    assert photos.unpaired
    assert (photos.captions, photos.offsets.tolist()) == ([""], [0] * 5)
    assert all(photos.captions_of(i) == [] for i in range(4))
    assert photos.links() == [[], [], [], []], "no two photos are the same because neither has a caption"
    assert "caption" not in repr(photos).replace("captions=", "")


def test_captions_of_a_source_play_no_part(tmp_path):
    """Two folders of the same pictures under other captions are the same photos."""
    one, other = (open_photos(captioned(tmp_path / str(n) / "p", words)) for n, words in enumerate(("abcdef", "xyzuvw")))
    assert one.fingerprint == other.fingerprint
    pairs = open_pairs(str(tmp_path / "0" / "p"))
    assert pairs.captions == [f"caption {word}" for word in "abcdef"]
    assert not pairs.unpaired
    texts = ["red", "green", "blue"]
    drawn = [batches(with_texts(photos, texts)).captions(3, np.arange(6)).tolist() for photos in (one, other)]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("form", ["csv", "jsonl", "tar", "bare tar"])
def test_every_kind_of_source(tmp_path, form):
    names = pictures(tmp_path, 3)
    if form == "csv":
        spec = put(tmp_path / "a.csv", "filepath,title,kind\n" + "".join(f"{name},a caption,k\n" for name in names))
    elif form == "jsonl":
        spec = put(tmp_path / "a.jsonl", "".join(f'{{"image": "{name}", "kind": "k"}}\n' for name in names))
    else:
        members = [(name, picture(n)) for n, name in enumerate(names)]
        members += [(f"{n}.txt", "a caption") for n in range(3)] if form == "tar" else []
        spec = tar(tmp_path / "a.tar", members)
    photos = open_photos(str(spec))
    assert photos.hashes == [hash_bytes(picture(n)) for n in range(3)]
    assert (photos.captions, photos.unpaired) == ([""], True)
    assert photos.extras == ([{"kind": "k"}] * 3 if form in ("csv", "jsonl") else [{}] * 3)


def test_several_sources_and_options(tmp_path):
    pictures(tmp_path / "a", 2)
    put(tmp_path / "b.csv", "img;product\n" + "".join(f"{put(tmp_path / f'{n}.png', picture(n, 'PNG')).name};p\n" for n in (5, 6)))
    photos = open_photos(f"{tmp_path / 'a'}::{tmp_path / 'b.csv'}", group="product")
    assert photos.keys == ["0.jpg", "1.jpg", "5.png", "6.png"]
    assert photos.groups == ["", "", "p", "p"]
    assert photos.links() == [[], [], [0], [0]]


def test_equal_bytes_are_one_photo(tmp_path):
    rows = [("a.jpg", 1, "", ""), ("b.jpg", 2, "g", "train"), ("copy.jpg", 1, "h", "val"), ("again.jpg", 1, "i", "test")]
    for name, seed, _, _ in rows:
        put(tmp_path / name, picture(seed))
    put(tmp_path / "a.csv", "filepath,group,split\n" + "".join(f"{name},{group},{part}\n" for name, _, group, part in rows))
    photos = open_photos(str(tmp_path / "a.csv"), group="group")
    assert photos.keys == ["a.jpg", "b.jpg"]
    assert photos.hashes == [hash_bytes(picture(1)), hash_bytes(picture(2))]
    assert photos.groups == ["h", "g"], "the first group that a copy has"
    assert photos.extras == [{"split": "val"}, {"split": "train"}]


def test_broken_pictures_are_left_out_and_listed(tmp_path):
    pictures(tmp_path, 9)
    put(tmp_path / "broken.jpg", picture(30)[:200])
    photos = open_photos(str(tmp_path))
    assert len(photos) == 9
    assert photos.problems.counts() == {"broken image": 1}
    assert "broken.jpg" in photos.problems.list_file().read_text()
    with pytest.raises(UserError, match="1 of 10 rows cannot be used"):
        open_photos(str(tmp_path), max_bad=0.05)


def test_sources_that_cannot_be_opened(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        open_photos(str(tmp_path / "empty"))
    with pytest.raises(UserError, match="does not exist"):
        open_photos(str(tmp_path / "nothing"))
    pictures(tmp_path / "p", 3)
    with pytest.raises(UserError, match=r"3 images and no captions[^$]*clipling distill"):
        open_pairs(str(tmp_path / "p"))


def test_splits_and_subsets_stay_photos(tmp_path):
    photos = with_texts(open_photos(captioned(tmp_path / "a", "abcdefghij")), ["red", "green"])
    rows, val = split(photos, fraction=0.3)
    assert len(rows) == 7
    assert sorted([*rows, *val]) == list(range(10))
    part = photos.subset(val)
    assert (part.unpaired, part.captions, part.offsets.tolist()) == (True, ["red", "green"], [0] * 4)
    assert part.keys == [photos.keys[i] for i in val]
    assert part.fingerprint != photos.fingerprint


def test_the_fingerprint_knows_the_texts(tmp_path):
    photos = open_photos(captioned(tmp_path / "a", "ab"))
    prints = [photos.fingerprint] + [with_texts(photos, texts).fingerprint for texts in (["a", "b"], ["b", "a"], ["ab"])]
    assert len(set(prints)) == 4
    assert photos.captions == [""], "with_texts leaves what it is given alone"


def batches(photos: Pairs, **changes) -> TrainBatches:
    """Token row t holds t everywhere."""
    tokens = torch.arange(len(photos.captions), dtype=torch.int32)[:, None].repeat(1, 5)
    settings = {"augment": Augment(), "size": 8, "batch": 4, "seed": 2, **changes}
    return TrainBatches(np.arange(len(photos)), photos, Pixels.open(photos, 8), tokens, **settings)


def test_batches_draw_from_all_texts_for_every_photo(tmp_path):
    photos = with_texts(open_photos(captioned(tmp_path / "a", "abcdef")), [f"text {n}" for n in range(5)])
    made = batches(photos)
    epochs = 2000
    drawn = np.stack([made.captions(epoch, np.arange(6)) for epoch in range(epochs)])
    assert drawn.dtype == np.int64
    for photo in range(6):
        counts = Counter(drawn[:, photo].tolist())
        assert set(counts) == set(range(5))
        # 400 expected of each; a standard deviation is 18.
        assert all(abs(count - epochs / 5) < 90 for count in counts.values())
    together = np.corrcoef(drawn.T)[~np.eye(6, dtype=bool)]
    assert np.abs(together).max() < 0.1, "photos draw independently of each other"


def test_batches_are_a_function_of_seed_epoch_and_pair(tmp_path):
    photos = with_texts(open_photos(captioned(tmp_path / "a", "abcdefgh")), ["a", "b", "c"])
    whole = batches(photos)[3]
    assert whole.tokens[:, 0].tolist() == whole.caption_all.tolist()
    parts = [batches(photos, rank=rank, world=2)[3] for rank in range(2)]
    assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
    (worked,) = loader(batches(photos), 3, 4, workers=1)
    assert np.array_equal(worked.caption_all, whole.caption_all)
    again = batches(photos).captions(1, np.array([5, 2]))
    assert again.tolist() == batches(photos).captions(1, np.arange(8))[[5, 2]].tolist()
    assert batches(photos).captions(0, np.arange(8)).tolist() != batches(photos, seed=9).captions(0, np.arange(8)).tolist()


def test_batches_of_bare_photos(tmp_path):
    photos = open_photos(captioned(tmp_path / "a", "abcdef"))
    batch = batches(photos)[0]
    assert batch.caption_all.tolist() == [0] * 4
    assert batch.images.shape == (4, 3, 8, 8)
    photos.captions = []
    with pytest.raises(ValueError, match="6 pictures, 0 texts"):
        batches(photos)


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.txt", "a dog\r\n\n  two cats  \n\t\na dog", ["a dog", "two cats", "a dog"]),
        ("a.txt", b"\xef\xbb\xbfein Hund\nz\xc3\xbcrich", ["ein Hund", "zürich"]),
        ("a.jsonl", '{"text": "a"}\n\n{"captions": ["b", " ", "c"]}\n{"caption": "d", "image": "x.jpg"}\n', ["a", "b", "c", "d"]),
        ("a.csv", 'title\n"a, b"\n\nc\n', ["a, b", "c"]),
        ("a.csv", "id;caption\n1;a, b\n2; \n3;c\n", ["a, b", "c"]),
        ("a.tsv", "caption\timage\na, b\tx.jpg\n", ["a, b"]),
    ],
)
def test_lists_of_texts(tmp_path, name, content, texts):
    assert read_texts(put(tmp_path / name, content)) == texts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "\n \n", "holds no text"),
        ("a.txt", "", "holds no text"),
        ("a.txt", b"good\nb\xe4d\n", "line 2 is not UTF-8"),
        ("a.parquet", "x", "is not a list of texts"),
        ("a.jsonl", '{"text": "a"}\nnot json\n', "line 2 is not JSON"),
        ("a.jsonl", '{"text": "a"}\n{"other": 1}\n', "line 2 has no text"),
        ("a.jsonl", '"a"\n', "line 1 has no text"),
        ("a.csv", "a dog\na cat\n", "no column of texts"),
        ("a.csv", "title\na, b\n", "line 2: 2 fields where the header has 1"),
    ],
)
def test_lists_that_cannot_be_read(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        read_texts(put(tmp_path / name, content))


def test_missing_lists_and_empty_ones(tmp_path):
    for path in (tmp_path / "no.txt", tmp_path):
        with pytest.raises(UserError, match="is not a file"):
            read_texts(path)
    with pytest.raises(UserError, match="list of texts is empty"):
        with_texts(open_photos(captioned(tmp_path / "a", "ab")), [])
