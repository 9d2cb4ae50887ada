"""Specs, several sources in one, and the index that makes the second opening quick."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from clipling.data import index
from clipling.data.source import fitting_options, open_pairs
from clipling.errors import UserError
from tests.data.making import picture, pictures, put, tar
from tests.toy import toy_folder

pytestmark = pytest.mark.usefixtures("fresh_cache")


def folder_of(path, count, word="caption"):
    for name in pictures(path, count):
        put(path / name.replace(".jpg", ".txt"), f"{word} {name}")
    return path


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nothere", "does not exist"),
        ("phtos/sub/x", r"does not exist.*In .*: Did you mean 'photos'"),
        ("nothere-{0..3}.tar", "4 of 4 files do not exist"),
        ("*.tar", "no file in"),
        ("demo:emojis", "Did you mean 'demo:emoji'"),
        ("https://example.org/x.tar", "download it first"),
        ("", "empty part"),
        ("photos::", "empty part"),
        ("x.docx", "is not a source"),
        ("x.json", "one object a line"),
        ("x.xlsx", "save the table as CSV"),
        ("a" * 5000, "does not exist"),
        ("a\0b", "does not exist"),
        ("{photos,x.docx}", "is not a source"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, spec, message):
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "photos", 2)
    for name in ("x.docx", "x.json", "x.xlsx"):
        put(tmp_path / name, b"")
    with pytest.raises(UserError, match=message):
        open_pairs(spec)


def test_several_sources(tmp_path):
    folder_of(tmp_path / "a", 2, "first")
    folder_of(tmp_path / "b", 3, "second")
    put(tmp_path / "a" / "more.csv", "filepath,title\n1.jpg,third\n")
    pairs = open_pairs(f"{tmp_path / 'a'}::{tmp_path / 'b'} :: {tmp_path / 'a' / 'more.csv'}")
    assert pairs.keys == ["a/0.jpg", "a/1.jpg", "b/0.jpg", "b/1.jpg", "2.jpg"]
    assert pairs.captions_of(1) == ["first 1.jpg", "third"]
    assert set(pairs.links()[0]) & set(pairs.links()[2])  # equal bytes in two files: two pairs, linked


def test_the_index_saves_looking_again(tmp_path, monkeypatch):
    spec = str(folder_of(tmp_path / "a", 4))
    put(tmp_path / "a" / "0.jpg", b"broken")
    first = open_pairs(spec, max_bad=0.3)
    looked = []
    monkeypatch.setattr(index, "verify", looked.append)
    again = open_pairs(spec, max_bad=0.3)
    assert not looked
    for name in ("keys", "captions", "locations", "hashes", "groups", "extras", "fingerprint"):
        assert getattr(again, name) == getattr(first, name)
    assert again.problems.rows == first.problems.rows
    with pytest.raises(UserError, match="1 of 4"):  # the share is not part of the index
        open_pairs(spec)
    assert not looked


def changes(folder):
    put(folder / "1.txt", "new words")
    yield "caption", lambda pairs: "new words" in pairs.captions
    put(folder / "5.jpg", picture(5))
    put(folder / "5.txt", "added")
    yield "added", lambda pairs: "added" in pairs.captions
    put(folder / "2.jpg", picture(8))
    yield "image", lambda pairs: pairs.image_bytes(pairs.keys.index("2.jpg")) == picture(8) and len(set(pairs.hashes)) == 5
    (folder / "3.jpg").unlink()
    yield "removed", lambda pairs: "3.jpg" not in pairs.keys
    for path in index.cache_dir().glob("index/*.json"):
        path.write_text('{"stamps": [], "rows": 3')
    yield "damaged index", lambda pairs: len(pairs) == 4


def test_the_index_notices_every_change(tmp_path):
    folder = folder_of(tmp_path / "a", 4)
    fingerprints = {open_pairs(str(folder)).fingerprint}
    for name, holds in changes(folder):
        pairs = open_pairs(str(folder), max_bad=0.5)
        assert holds(pairs), name
        fingerprints.add(pairs.fingerprint)
    assert len(fingerprints) == 5


def test_too_many_bad_rows_name_a_setting_that_exists(tmp_path):
    pictures(tmp_path, 1)
    path = str(put(tmp_path / "t.csv", "filepath,title\n0.jpg,a\n7.jpg,b\n"))
    with pytest.raises(UserError, match=r"Mend these rows first.*--set data\.max_bad=") as error:
        open_pairs(path)
    assert "--max-bad" not in str(error.value)


def test_options_are_used_where_they_apply(tmp_path):
    pictures(tmp_path, 1)
    table = str(put(tmp_path / "t.csv", "pic,title,sku\n0.jpg,a,x\n"))
    folder = str(folder_of(tmp_path / "a", 2))
    given = {"image_column": "pic", "caption_column": "words", "group": "sku", "separator": "comma"}
    assert fitting_options(table, given, folder) == {**given, "caption_column": None}
    assert not any(fitting_options(folder, given, table).values())
    assert not any(fitting_options("demo:emoji", given, table).values())
    shards = str(tar(tmp_path / "x.tar", {"a.jpg": picture(1), "a.txt": "a"}))
    assert not any(fitting_options(shards, given, table).values())
    assert fitting_options(shards, given, shards) == {**given, "image_column": None, "separator": None}


def test_a_missing_image_that_comes_back(tmp_path):
    pictures(tmp_path, 1)
    path = str(put(tmp_path / "t.csv", "filepath,title\n0.jpg,a\n7.jpg,b\n"))
    assert open_pairs(path, max_bad=0.5).keys == ["0.jpg"]
    put(tmp_path / "7.jpg", picture(7))
    assert open_pairs(path).keys == ["0.jpg", "7.jpg"]


def test_an_unwritable_cache_costs_time_only(tmp_path, monkeypatch, capsys):
    spec = str(folder_of(tmp_path / "a", 2))
    monkeypatch.setenv("CLIPLING_CACHE", str(put(tmp_path / "file", b"") / "below"))
    assert len(open_pairs(spec)) == 2
    assert "index is not kept" in capsys.readouterr().err


def test_unreadable_files(tmp_path):
    path = tar(tmp_path / "x.tar", {"a.jpg": picture(1), "a.txt": "a"})
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(UserError, match="cannot be read"):
        open_pairs(str(path))


def test_data_imports_nothing_heavy():
    code = (
        "import sys; import clipling.data.source, clipling.data.classes, clipling.data.split, clipling.data.inspect;"
        "heavy = {'torch', 'torchvision', 'timm', 'open_clip', 'transformers', 'pyarrow', 'sklearn', 'matplotlib', 'pandas'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_flickr8k(shared_data):
    train = str(shared_data / "flickr8k" / "train-{00000..00005}.tar")
    pairs = open_pairs(train)
    assert (len(pairs), len(pairs.captions), len(pairs.problems)) == (6091, 30446, 0)
    assert pairs.keys[0] == "1000268201_693b08cb0e"
    assert pairs.captions_of(0)[1] == "A girl going into a wooden building ."
    assert set(pairs.extras[0]["lang"]) == {"zh", "de", "fr", "cs"}
    assert open_pairs(train).fingerprint == pairs.fingerprint


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_among_the_pictures_is_a_problem_and_not_waited_for(tmp_path):
    toy_folder(tmp_path / "pairs", count=20)
    os.mkfifo(tmp_path / "pairs" / "wait.jpg")
    found = open_pairs(str(tmp_path / "pairs"), captions_optional=True)
    assert len(found) == 20
    assert any("no plain file" in detail for _, _, detail in found.problems.rows)
