"""Tables, JSON lines, parquet and folders: what is read, and what a user is told when it cannot be."""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
from functools import cache

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from clipling.data.pairs import clean_caption
from clipling.data.source import open_pairs
from clipling.errors import UserError
from tests.data.making import picture, pictures, put, tar

pytestmark = pytest.mark.usefixtures("fresh_cache")


def table(folder, rows, name="t.csv", separator=",", **how):
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=separator, **how).writerows(rows)
    return put(folder / name, out.getvalue())


# --- tables


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
@pytest.mark.parametrize("end", ["\r\n", "\n", "\r"])
def test_separators(tmp_path, separator, end):
    pictures(tmp_path / "p", 3)
    odd = 'a, "quoted";\ttwo\nlines | ü'
    rows = [["Title", "other", "FilePath"], [odd, "x", "p/0.jpg"], ["b", "", "p/1.jpg"], ["c", "y", "./p/0.jpg"], ["c", "", "p/2.jpg"]]
    path = table(tmp_path, rows, separator=separator, lineterminator=end)
    for stated in (None, separator):
        pairs = open_pairs(str(path), separator=stated)
        assert pairs.keys == ["p/0.jpg", "p/1.jpg", "p/2.jpg"]
        assert [pairs.captions_of(i) for i in range(3)] == [[odd, "c"], ["b"], ["c"]]
        assert pairs.image_bytes(2) == picture(2)
        assert pairs.extras == [{"other": "x"}, {}, {}]
        assert not len(pairs.problems)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(tmp_path, encoding):
    pictures(tmp_path, 1)
    path = put(tmp_path / "t.tsv", "image\tcaption\n0.jpg\tÄpfel, 苹果\n".encode(encoding))
    assert open_pairs(str(path)).captions == ["Äpfel, 苹果"]


def test_paths(tmp_path, monkeypatch):
    pictures(tmp_path / "p", 4)
    (tmp_path / "t").mkdir()
    try:
        os.symlink(tmp_path / "p", tmp_path / "t" / "link", target_is_directory=True)
        os.symlink(tmp_path / "p" / "0.jpg", tmp_path / "t" / "zero.jpg")
    except OSError:
        pytest.skip("no symbolic links here")
    monkeypatch.chdir(tmp_path / "p")
    here = put(tmp_path / "t" / "1.jpg", picture(9))
    written = ["../p/0.jpg", "link/0.jpg", "zero.jpg", "link\\1.jpg", "1.jpg", "3.jpg", str(here), str(tmp_path / "p" / "2.jpg")]
    path = table(tmp_path / "t", [["img", "text"], *([name, f"c{n}"] for n, name in enumerate(written))])
    pairs = open_pairs(str(path))
    # zero.jpg is another name of 0.jpg: a pair of its own, linked by its hash. 3.jpg lies in the current folder only.
    assert pairs.keys == ["../p/0.jpg", "zero.jpg", "link/1.jpg", "1.jpg", "3.jpg", (tmp_path / "p" / "2.jpg").as_posix()]
    assert [pairs.captions_of(i) for i in range(6)] == [["c0", "c1"], ["c2"], ["c3"], ["c4", "c6"], ["c5"], ["c7"]]
    assert set(pairs.links()[0]) & set(pairs.links()[1])
    assert [pairs.image_bytes(i) for i in (2, 3, 4)] == [picture(1), picture(9), picture(3)]


def test_a_description_is_a_caption(tmp_path):
    pictures(tmp_path, 2)
    assert open_pairs(str(table(tmp_path, [["filename", "description"], ["0.jpg", "a"], ["1.jpg", "b"]]))).captions == ["a", "b"]
    both = table(tmp_path, [["description", "filename", "title"], ["long", "0.jpg", "short"]], name="both.csv")
    assert open_pairs(str(both)).captions == ["short"], "the title comes first, as before"
    with pytest.raises(UserError, match=r"no image column\. .*--image-column 'bild'"):
        open_pairs(str(table(tmp_path, [["description", "bild"], ["a", "0.jpg"]], name="no.csv")))


def test_named_columns_and_groups(tmp_path):
    pictures(tmp_path, 3)
    rows = [["photo", "beschreibung", "sku"], ["0.jpg", "a", "p1"], ["1.jpg", "b", "p1"], ["2.jpg", "c", ""]]
    path = table(tmp_path, rows)
    pairs = open_pairs(str(path), image_column="photo", caption_column="beschreibung", group="sku")
    assert (pairs.groups, pairs.extras) == (["p1", "p1", ""], [{}, {}, {}])
    assert len({tuple(found) for found in pairs.links()}) == 2
    for how, message in [
        (
            {},
            "no image column and no caption column.*'photo', 'besch.*filepath.*title.*--image-column 'photo' --caption-column 'b",
        ),
        ({"image_column": "photo"}, "no caption column.*title, caption, text.*--caption-column 'beschreibung'"),
        ({"image_column": "foto"}, "no column 'foto'.*Did you mean 'photo'"),
        ({"image_column": "photo", "caption_column": "beschreibung", "group": "skus"}, "no column 'skus'.*'sku'"),
    ]:
        with pytest.raises(UserError, match=message):
            open_pairs(str(path), **how)


def test_separator_that_does_not_fit(tmp_path):
    pictures(tmp_path, 1)
    path = table(tmp_path, [["filepath", "title"], ["0.jpg", "a"]], separator="\t")
    with pytest.raises(UserError, match=r"not separated by 'comma'.*looks separated by tab"):
        open_pairs(str(path), separator="comma")
    with pytest.raises(UserError, match="one character"):
        open_pairs(str(path), separator="::")


def test_table_without_header(tmp_path):
    pictures(tmp_path, 2)
    with pytest.raises(UserError, match="first line must name the columns"):
        open_pairs(str(table(tmp_path, [["0.jpg", "a"], ["1.jpg", "b"]])))
    for empty in ("", "\n \n"):
        with pytest.raises(UserError, match="is empty"):
            open_pairs(str(put(tmp_path / "t.csv", empty)))


def test_links_are_explained(tmp_path):
    pictures(tmp_path, 1)
    rows = [["image", "title"], ["https://x.org/1.jpg", "a"]]
    for name, text in [
        ("a.csv", "url,caption\nhttp://x/1.jpg,a\n"),
        ("b.csv", "image,title\nhttps://x/1.jpg,a\n"),
        ("c.tsv", "image_url\ttext\nhttp://x/1.jpg\ta\n"),
        ("d.jsonl", '{"url": "http://x/1.jpg", "caption": "a"}\n'),
        ("e.jsonl", '{"image": "http://x/1.jpg", "caption": "a"}\n'),
    ]:
        with pytest.raises(UserError, match=f"clipling data pack .*{name} pictures"):
            open_pairs(str(put(tmp_path / name, text)))
    rows.insert(1, ["0.jpg", "b"])
    pairs = open_pairs(str(table(tmp_path, rows)), max_bad=0.5)
    assert pairs.problems.counts() == {"link": 1}


def test_bad_rows_of_a_table(tmp_path):
    pictures(tmp_path, 6)
    put(tmp_path / "4.jpg", b"no picture")
    text = (
        b"filepath,title\n"
        b"0.jpg,a\n"
        b"1.jpg,a dog, running\n"  # line 3
        b"2.jpg\n"
        b"3.jpg,\n"
        b",b\n"
        b"4.jpg,b\n"
        b"nothere.jpg,b\n"
        b'1.jpg,"open quote\n'
        b"2.jpg,c,,\n"
        b"3.jpg,\xff\xfe\n"
        b'5.jpg,"say ""hi"""\n'
        b"bad\0name.jpg,d\n"
    )
    pairs = open_pairs(str(put(tmp_path / "t.csv", text)), max_bad=0.9)
    assert dict(zip(pairs.keys, pairs.captions)) == {"0.jpg": "a", "2.jpg": "c", "5.jpg": 'say "hi"'}
    found = [(problem.kind, problem.where) for problem in pairs.problems]
    assert found == [
        ("unparsable line", "t.csv line 3"),
        ("unparsable line", "t.csv line 4"),
        ("empty caption", "t.csv line 5"),
        ("no image", "t.csv line 6"),
        ("unparsable line", "t.csv line 9"),
        ("not UTF-8", "t.csv line 11"),
        ("broken image", "4.jpg"),
        ("missing image", "nothere.jpg"),
        ("unreadable image", "bad\0name.jpg"),
    ]
    with pytest.raises(UserError, match=r"9 of 12 rows.*\n[^$]*data\.max_bad"):
        open_pairs(str(tmp_path / "t.csv"))
    with pytest.raises(UserError, match="cannot be used"):
        open_pairs(str(put(tmp_path / "u.csv", b"filepath,title\nnothere.jpg,b\n")))
    with pytest.raises(UserError, match=r"no usable pair: 1 missing image"):
        open_pairs(str(tmp_path / "u.csv"), max_bad=1)


def test_stray_quotes_swallow_no_rows(tmp_path):
    names = pictures(tmp_path, 6)
    captions = ['"Hello" he said', "b", '"opens only', "d", 'closes only"', '5" tape']
    lines = "".join(f"{name}\t{caption}\n" for name, caption in zip(names, captions))
    pairs = open_pairs(str(put(tmp_path / "t.tsv", "filepath\ttitle\n" + lines)))
    assert dict(zip(pairs.keys, pairs.captions)) == dict(zip(names, captions))
    # The same with commas is damage, for CSV is quoted; it costs the line and nothing else.
    pairs = open_pairs(str(put(tmp_path / "t.csv", "filepath,title\n" + lines.replace("\t", ","))), max_bad=0.5)
    assert pairs.keys == ["1.jpg", "3.jpg", "4.jpg", "5.jpg"]
    assert [problem.where for problem in pairs.problems] == ["t.csv line 2", "t.csv line 4"]


@cache
def shared_pictures(folder):
    return pictures(folder, 8)


captions = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(str.strip) | st.text(
    st.sampled_from('ab,;|\t"\n\r\u2028 \x85'), max_size=12
).filter(str.strip)
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def by_image(rows):
    expected = {}
    for name, caption in rows:
        known = expected.setdefault(name, [])
        if clean_caption(caption) not in known:
            known.append(clean_caption(caption))
    return expected


@quick
@given(
    st.lists(st.tuples(st.integers(0, 7), captions), min_size=1, max_size=8),
    st.sampled_from(",\t;|"),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    st.sampled_from(["\r\n", "\n"]),
    st.booleans(),
)
@example([(0, '"'), (1, '"a\n"')], ",", csv.QUOTE_MINIMAL, "\n", False)
def test_round_trip_of_csv(tmp_path_factory, rows, separator, quoting, end, caption_first):
    folder = tmp_path_factory.getbasetemp() / "round"
    shared_pictures(folder)
    if quoting == csv.QUOTE_MINIMAL and end == "\n":
        # Python's writer leaves a lone carriage return bare here, which every CSV reader takes for the end of a line.
        rows = [(n, caption.replace("\r", " ")) for n, caption in rows]
        assume(all(caption.strip() for _, caption in rows))
    rows = [(f"{n}.jpg", caption) for n, caption in rows]
    written = [("image", "caption"), *rows]
    path = table(
        folder,
        [row[::-1] if caption_first else row for row in written],
        separator=separator,
        quoting=quoting,
        lineterminator=end,
    )
    pairs = open_pairs(str(path))
    assert {key: pairs.captions_of(i) for i, key in enumerate(pairs.keys)} == by_image(rows)
    assert not len(pairs.problems)


@quick
@given(st.binary(max_size=300), st.sampled_from([b"", b"filepath,title\n", b"filepath\ttitle\n0.jpg\ta\n", b"\xff\xfe"]))
def test_random_bytes_as_csv(tmp_path_factory, data, start):
    folder = tmp_path_factory.getbasetemp() / "round"
    shared_pictures(folder)
    path = put(folder / "random.csv", start + data)
    try:
        pairs = open_pairs(str(path), max_bad=1.0)
    except UserError:
        return
    assert set(pairs.keys) <= {f"{n}.jpg" for n in range(8)}
    assert all(pairs.captions_of(i) for i in range(len(pairs)))


# --- JSON lines


def test_jsonl(tmp_path):
    pictures(tmp_path / "p", 4)
    lines = [
        {"image": "p/0.jpg", "caption": "a", "sku": 1, "lang": {"de": "x"}},
        {"file_name": "p/1.jpg", "captions": ["b", "c", "b"], "sku": 1.0, "lang": {"de": ["y", "z"]}},
        {"filepath": "p/2.jpg", "text": "d", "none": None},
        {"path": "p/3.jpg", "title": "e"},
        {"image": "./p/0.jpg", "captions": ["f"]},
    ]
    path = put(tmp_path / "t.jsonl", "\ufeff" + "\n\n".join(map(json.dumps, lines)))
    pairs = open_pairs(str(path))
    assert pairs.keys == [f"p/{n}.jpg" for n in range(4)]
    assert [pairs.captions_of(i) for i in range(4)] == [["a", "f"], ["b", "c"], ["d"], ["e"]]
    assert pairs.extras == [{"sku": 1, "lang": {"de": "x"}}, {"sku": 1.0, "lang": {"de": ["y", "z"]}}, {}, {}]
    german = open_pairs(str(path), caption_column="lang.de", group="sku", max_bad=0.7)
    assert (german.captions, german.groups) == (["x", "y", "z"], ["1", "1"])
    for how in ({"caption_column": "lang.fr"}, {"group": "shop"}, {"image_column": "foto"}):
        with pytest.raises(UserError, match="no line has the field"):
            open_pairs(str(path), **how)


def test_bad_lines_of_jsonl(tmp_path):
    pictures(tmp_path, 2)
    text = (
        b'{"image": "0.jpg", "caption": "a"}\n{"image": "0.jpg"\n[1]\n{"image": "1.jpg", "caption": 3}\n'
        b'{"image": "1.jpg", "caption": " "}\n{"caption": "x"}\n\xff\n' + b"[" * 100_000 + b"\n"
        b'{"image": "\\ud800", "caption": "\\ud800"}\n{"image": ["1.jpg"], "caption": "x"}\n'
    )
    pairs = open_pairs(str(put(tmp_path / "t.jsonl", text)), max_bad=0.95)
    assert (pairs.keys, pairs.captions) == (["0.jpg"], ["a"])
    assert pairs.problems.counts() == {
        "unparsable line": 5,
        "no image": 2,
        "empty caption": 1,
        "missing image": 1,
    } or pairs.problems.counts() == {"unparsable line": 5, "no image": 2, "empty caption": 1, "unreadable image": 1}
    for text, message in [
        ("", "holds no JSON object"),
        ('{"bild": "0.jpg", "caption": "a"}', "no image column.*'bild'.*--image-column"),
        ('{"image": "0.jpg", "satz": "a"}', "no caption column.*--caption-column 'satz'"),
    ]:
        with pytest.raises(UserError, match=message):
            open_pairs(str(put(tmp_path / "u.jsonl", text)))


@quick
@given(st.lists(st.tuples(st.integers(0, 7), captions), min_size=1, max_size=8), st.booleans())
def test_round_trip_of_jsonl(tmp_path_factory, rows, ascii_only):
    folder = tmp_path_factory.getbasetemp() / "round"
    shared_pictures(folder)
    lines = [json.dumps({"image": f"{n}.jpg", "caption": caption}, ensure_ascii=ascii_only) for n, caption in rows]
    pairs = open_pairs(str(put(folder / "t.jsonl", "\n".join(lines))))
    expected = by_image([(f"{n}.jpg", caption) for n, caption in rows])
    assert {key: pairs.captions_of(i) for i, key in enumerate(pairs.keys)} == expected


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.sampled_from(["image", "caption", "a.b", "a"]), part),
    max_leaves=8,
)


@quick
@given(st.lists(st.binary(max_size=40) | values.map(lambda value: json.dumps(value).encode()), max_size=5))
def test_random_lines_as_jsonl(tmp_path_factory, lines):
    path = put(tmp_path_factory.getbasetemp() / "round" / "random.jsonl", b"\n".join(lines))
    for how in ({}, {"caption_column": "a.b"}):
        with pytest.raises(UserError, match=r"random\.jsonl"):
            open_pairs(str(path), max_bad=1.0, **how)


# --- folders


def test_folder(tmp_path):
    pictures(tmp_path, 2)
    pictures(tmp_path / "sub", 2)
    put(tmp_path / "10.PNG", picture(5, "PNG"))
    for name, text in [("0", "a\n\n b \r\na\n"), ("1", "\ufeffc"), ("sub/0", "d"), ("sub/1", "e"), ("10", "f"), ("sub/.hid", "x")]:
        put(tmp_path / f"{name}.txt", text)
    put(tmp_path / ".thumbs" / "0.jpg", picture(1))
    pairs = open_pairs(str(tmp_path))
    assert pairs.keys == ["0.jpg", "1.jpg", "10.PNG", "sub/0.jpg", "sub/1.jpg"]
    assert pairs.captions == ["a", "b", "c", "f", "d", "e"]
    assert pairs.image_bytes(3) == picture(0)
    put(tmp_path / "sub" / "1.txt", b"\xff")
    put(tmp_path / "1.txt", " \n")
    (tmp_path / "10.txt").unlink()
    put(tmp_path / "lost.txt", "x")
    pairs = open_pairs(str(tmp_path), max_bad=0.7)
    assert pairs.keys == ["0.jpg", "sub/0.jpg"]
    counts = {"no image": 1, "empty caption": 1, "no caption": 1, "unreadable caption": 1}
    assert pairs.problems.counts() == counts


def test_an_unpacked_tar_reads_as_the_tar(tmp_path):
    """Captions of .json before those of .txt, group, extras and the key of a packed tar: whatever a tar's reader makes of them."""
    about = [
        {"caption": ["a 0", "b 0"], "group": "g", "n": 1, "url": "https://x/0.jpg"},
        {"captions": "a 1"},
        {"caption": "", "lang": {"de": "zwei"}},  # then the .txt counts
        {"caption": ["a 3"], "clipling_key": "p/q.r"},
    ]
    members = {}
    for n, record in enumerate(about):
        members |= {f"{n}.jpg": picture(n), f"{n}.txt": f"text {n}\nmore {n}", f"{n}.json": record}
    members |= {"4.jpg": picture(4), "4.json": {"caption": "a 4"}, "5.jpg": picture(5), "5.txt": "text 5"}
    from_tar = open_pairs(str(tar(tmp_path / "t.tar", members)))
    with tarfile.open(tmp_path / "t.tar") as packed:
        packed.extractall(tmp_path / "out", filter="data")
    from_folder = open_pairs(str(tmp_path / "out"))

    def rows(pairs):
        found = zip(pairs.keys, pairs.groups, pairs.extras, pairs.hashes, strict=True)
        return {key.removesuffix(".jpg"): (pairs.captions_of(i), *rest) for i, (key, *rest) in enumerate(found)}

    assert rows(from_folder) == rows(from_tar)
    assert from_folder.keys == ["0.jpg", "1.jpg", "2.jpg", "4.jpg", "5.jpg", "p/q.r"]
    assert from_folder.captions_of(2) == ["text 2", "more 2"]
    put(tmp_path / "out" / "1.json", '{"caption": "changed"}')
    assert open_pairs(str(tmp_path / "out")).captions_of(1) == ["changed"], "the kept index knows of the .json"


def test_a_json_beside_a_picture_that_is_none(tmp_path):
    pictures(tmp_path, 4)
    for n in range(4):
        put(tmp_path / f"{n}.txt", f"text {n}")
    put(tmp_path / "0.json", "[1]")
    put(tmp_path / "1.json", b"\xff{")
    put(tmp_path / "2.json", "{}")
    (tmp_path / "2.txt").unlink()
    put(tmp_path / "other.json", "[]")
    pairs = open_pairs(str(tmp_path), max_bad=0.9)
    assert pairs.captions == ["text 3"]
    assert pairs.problems.counts() == {"unparsable json": 2, "no caption": 1}
    assert "0.json: not a JSON object" in pairs.problems.first()
    assert len(open_pairs(str(tmp_path), captions_optional=True)) == 4


def test_folder_without_captions(tmp_path):
    pictures(tmp_path / "p", 3)
    with pytest.raises(UserError, match=r"3 images and no captions[^$]*dog\.txt[^$]*captions\.csv[^$]*zero-shot"):
        open_pairs(str(tmp_path / "p"))
    bare = open_pairs(str(tmp_path / "p"), captions_optional=True)
    assert (len(bare), bare.captions, bare.offsets.tolist()) == (3, [], [0, 0, 0, 0])
    put(tmp_path / "p" / "labels.csv", "filepath,title\n0.jpg,a\n")
    with pytest.raises(UserError, match=r"Did you mean .*labels\.csv"):
        open_pairs(str(tmp_path / "p"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        open_pairs(str(tmp_path / "empty"))


def test_folder_with_a_table_in_it(tmp_path):
    pictures(tmp_path / "train", 2)
    put(tmp_path / "train" / "metadata.jsonl", '{"file_name": "0.jpg", "text": "a"}\n{"file_name": "1.jpg", "text": "b"}')
    assert open_pairs(str(tmp_path / "train")).captions == ["a", "b"]
    with pytest.raises(UserError, match=r"Did you mean .*metadata\.jsonl"):
        open_pairs(str(tmp_path))
    put(tmp_path / "train" / "captions.csv", "filepath,title\n1.jpg,c\n")
    assert open_pairs(str(tmp_path / "train")).captions == ["c"]


# --- parquet


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    pictures(tmp_path, 3)
    columns = {"filepath": ["0.jpg", "1.jpg", "0.jpg", None], "title": ["a", "b", "c", "d"], "sku": [1, 2, 1, None]}
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    pairs = open_pairs(str(tmp_path / "t.parquet"), group="sku", max_bad=0.5)
    assert (pairs.keys, pairs.captions, pairs.groups) == (["0.jpg", "1.jpg"], ["a", "c", "b"], ["1", "2"])
    assert pairs.problems.counts() == {"no image": 1}
    lists = {"image": ["0.jpg", "2.jpg"], "captions": [["a", "b"], ["c"]], "seen": [1.5, None]}
    parquet.write_table(pa.table(lists), tmp_path / "l.parquet")
    pairs = open_pairs(str(tmp_path / "l.parquet"))
    assert (pairs.captions, pairs.extras) == (["a", "b", "c"], [{"seen": 1.5}, {}])
    parquet.write_table(pa.table({"url": ["http://x/1.jpg"], "caption": ["a"]}), tmp_path / "u.parquet")
    with pytest.raises(UserError, match="img2dataset"):
        open_pairs(str(tmp_path / "u.parquet"))
    for data in (b"", b"PAR1", os.urandom(500), (tmp_path / "t.parquet").read_bytes()[:-50]):
        with pytest.raises(UserError, match="cannot be read as parquet"):
            open_pairs(str(put(tmp_path / "bad.parquet", data)))


@pytest.mark.parametrize("names", [["x/0.jpg", "x/0.jpg", "x/1.jpg"], ["image.jpg"] * 3, [None] * 3])
def test_parquet_with_images_inside(tmp_path, names):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    images = [{"bytes": picture(n), "path": name} for n, name in zip((0, 0, 1), names)]
    parquet.write_table(pa.table({"image": [*images, {"bytes": b"broken", "path": "z"}], "text": list("abcd")}), tmp_path / "h.parquet")
    for _ in range(2):
        pairs = open_pairs(str(tmp_path / "h.parquet"), max_bad=0.5)
        assert pairs.keys == (["x/0.jpg", "x/1.jpg"] if names[0] == "x/0.jpg" else ["h/00000000", "h/00000002"])
        assert pairs.captions == ["a", "b", "c"]
        assert [pairs.image_bytes(i) for i in range(2)] == [picture(0), picture(1)]
        assert pairs.problems.counts() == {"broken image": 1}
    parquet.write_table(pa.table({"jpg": [picture(3)], "caption": ["a"], "png": [b"other"]}), tmp_path / "i.parquet")
    assert open_pairs(str(tmp_path / "i.parquet")).image_bytes(0) == picture(3)
