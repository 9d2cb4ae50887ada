"""Tars: brace ranges, offsets, groups of members, and every kind of damage."""

from __future__ import annotations

import json
import re
import tarfile
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipling.data.inspect import inspect, render
from clipling.data.problems import OPEN_END
from clipling.data.reading import Options
from clipling.data.shards import expand_braces, read_shard
from clipling.data.source import open_pairs
from clipling.errors import UserError
from tests.data.making import picture, put, tar


def sample(n: int, **fields) -> dict:
    return {f"s{n}.jpg": picture(n), f"s{n}.txt": f"caption {n}", f"s{n}.json": {"caption": [f"a {n}", f"b {n}"], **fields}}


def samples(count: int) -> dict:
    return {name: content for n in range(count) for name, content in sample(n).items()}


@given(st.integers(0, 3000), st.integers(0, 3000), st.integers(1, 6), st.sampled_from(["a-{}.tar", "{}", "x{{y/{}z"]))
def test_brace_range(first, last, width, frame):
    spec = frame.format(f"{{{first:0{width}d}..{last:0{width}d}}}")
    found = expand_braces(spec)
    pattern = re.escape(frame).replace(r"\{\{", r"\{").replace(r"\{\}", r"(\d+)")
    texts = [re.fullmatch(pattern, name)[1] for name in found]
    numbers = list(map(int, texts))
    assert (numbers[0], numbers[-1], len(numbers)) == (first, last, abs(first - last) + 1)
    assert len({b - a for a, b in pairwise(numbers)}) <= 1
    padded = any(len(t) > 1 and t[0] == "0" for t in (f"{first:0{width}d}", f"{last:0{width}d}"))
    assert not padded or len(set(map(len, texts))) == 1
    assert padded or all(text == str(int(text)) for text in texts)


def test_braces():
    assert expand_braces("{08..11}") == ["08", "09", "10", "11"]
    assert expand_braces("{2..0}") == ["2", "1", "0"]
    assert expand_braces("{a,b}/{1..2}.tar") == ["a/1.tar", "a/2.tar", "b/1.tar", "b/2.tar"]
    for plain in ("a.tar", "{a}", "{1..}", "{}", "a{1...3}"):
        assert expand_braces(plain) == [plain]
    with pytest.raises(UserError, match="more than"):
        expand_braces("{0..999}{0..9999}")


def test_members(tmp_path, fresh_cache):
    path = tar(
        tmp_path / "x.tar",
        [
            ("./d/s.0.jpg", picture(0)),
            ("d/s.txt", "one\n\n two \n"),
            ("e/s.PNG", picture(1, "PNG")),
            ("e/s.json", {"captions": ["x", " ", "x", "y"], "group": 7.0, "lang": {"de": ["z"]}, "url": "u", "empty": None}),
            ("e/._s.jpg", b"resource fork"),
            ("t.webp", picture(2, "WEBP")),
            ("t.json", {"caption": None}),
            ("t.txt", "\ufeffdrei"),
            ("t.cls", "3\n"),
            ("d/s.jpg", picture(3)),
        ],
    )
    pairs = open_pairs(str(path), max_bad=1)
    assert pairs.keys == ["d/s", "e/s", "t"]
    assert [pairs.captions_of(i) for i in range(3)] == [["one", "two"], ["x", "y"], ["drei"]]
    assert pairs.image_bytes(0) == picture(3)  # s.0.jpg is no image of its own: its suffix is "0.jpg"
    assert pairs.image_bytes(1) == picture(1, "PNG")
    assert pairs.groups == ["", "7", ""]
    assert pairs.extras == [{}, {"lang": {"de": ["z"]}}, {"cls": "3"}]
    assert not len(pairs.problems)
    # The place is right in the eyes of tarfile as well.
    with tarfile.open(path) as whole:
        assert whole.extractfile("t.webp").read() == pairs.image_bytes(2)


def test_named_fields(tmp_path, fresh_cache):
    path = tar(tmp_path / "x.tar", {**sample(0, lang={"de": "d"}, sku="p1"), **sample(1, lang={"de": ["e", "f"]}, sku="p1")})
    pairs = open_pairs(str(path), caption_column="lang.de", group="sku")
    assert (pairs.captions, pairs.groups) == (["d", "e", "f"], ["p1", "p1"])
    with pytest.raises(UserError, match=r"lang\.fr"):
        open_pairs(str(path), caption_column="lang.fr")
    with pytest.raises(UserError, match="'shop'"):
        open_pairs(str(path), group="shop")
    for flag in ("image_column", "separator"):
        with pytest.raises(UserError, match="says nothing about"):
            open_pairs(str(path), **{flag: "x"})


def test_several_tars(tmp_path, fresh_cache):
    tar(tmp_path / "a" / "s-08.tar", {**sample(0), **sample(1)})
    tar(tmp_path / "a" / "s-09.tar", {**sample(2), "s1.jpg": picture(7), "s1.txt": "another"})
    tar(tmp_path / "a" / "s-10.tar", sample(3))
    spec = str(tmp_path / "a" / "s-{08..10}.tar")
    pairs = open_pairs(spec)
    assert pairs.keys == ["s0", "s-08/s1", "s2", "s-09/s1", "s3"]
    assert open_pairs(str(tmp_path / "a")).keys == pairs.keys
    assert open_pairs(str(tmp_path / "a" / "s-*.tar")).keys == pairs.keys
    joined = open_pairs("::".join(str(tmp_path / "a" / f"s-{n}.tar") for n in ("10", "08")))
    assert joined.keys == ["s3", "s0", "s1"]
    with pytest.raises(UserError, match="2 of 4 files do not exist"):
        open_pairs(str(tmp_path / "a" / "s-{09..12}.tar"))


def test_repeated_key_in_one_tar(tmp_path, fresh_cache):
    again = [("s0.jpg", picture(9)), ("s0.txt", "another")]
    pairs = open_pairs(str(tar(tmp_path / "x.tar", [*sample(0).items(), *again])))
    assert pairs.keys == ["s0", "s0#2"]
    assert pairs.captions == ["a 0", "b 0", "another"]
    assert pairs.image_bytes(1) == picture(9)


@pytest.mark.faults
def test_truncated_anywhere_keeps_exactly_the_whole_samples(tmp_path):
    whole = tar(tmp_path / "whole.tar", samples(5)).read_bytes()
    ends, last = [], 0
    with tarfile.open(tmp_path / "whole.tar") as members:
        for member in members:
            last = member.offset_data + member.size
            if member.name.endswith(".json"):
                ends.append(last)
    end_mark = -(-last // 512) * 512
    boundaries = [-(-end // 512) * 512 for end in ends]
    cuts = {*range(0, len(whole), 509), *(end + by for end in ends for by in (-1, 0, 1)), *boundaries, end_mark, end_mark + 511}
    path = tmp_path / "cut.tar"
    for cut in sorted(cuts):
        path.write_bytes(whole[:cut])
        found = read_shard(path, Options())
        kept = [row.key for row in found.rows]
        # In the first sample nothing tells yet that a .json should have come; its .txt is a whole caption.
        expected = [f"s{n}" for n in range(5) if cut >= ends[n]]
        assert kept == expected or (kept == ["s0"] and found.rows[0].captions == ["caption 0"])
        assert all(row.location.read() == picture(int(row.key[1:])) for row in found.rows)
        assert all(row.captions == [f"a {row.key[1:]}", f"b {row.key[1:]}"] for row in found.rows[: len(expected)])
        told = found.problems.counts()
        assert told.get("truncated tar", 0) + told.get(OPEN_END, 0) == (cut < end_mark + 512), cut
        if cut > boundaries[0]:
            assert (OPEN_END in told) == (cut in boundaries or end_mark <= cut < end_mark + 512), cut


@pytest.mark.faults
def test_a_tar_that_lacks_only_its_end_mark_left_nothing_out(tmp_path, fresh_cache):
    path = tar(tmp_path / "t.tar", {"alone.txt": "no picture", **samples(5)})
    with tarfile.open(path) as members:
        last = members.getmembers()[-1]
    put(path, path.read_bytes()[: -(-(last.offset_data + last.size) // 512) * 512])
    pairs = open_pairs(str(path), max_bad=1.0)
    assert len(pairs) == 5
    said = render(inspect(pairs)).splitlines()
    assert "left out: 1 no image; 1 tar without its end mark" in said
    assert "  t.tar: no end mark; 5 pairs were read, the rest, if any, is lost" in said
    assert pairs.problems.left_out() == 1


@pytest.mark.faults
@pytest.mark.parametrize("damage", [b"\xff" * 512, b"A" * 512])
def test_a_damaged_header_is_told(tmp_path, damage):
    path = tar(tmp_path / "x.tar", samples(5))
    with tarfile.open(path) as members:
        start = members.getmember("s3.jpg").offset
    content = bytearray(path.read_bytes())
    content[start : start + 512] = damage
    found = read_shard(put(path, bytes(content)), Options())
    assert [row.key for row in found.rows] == ["s0", "s1", "s2"]
    assert found.problems.counts() == {"truncated tar": 1}
    assert str(start) in found.problems.rows[0].detail


@pytest.mark.faults
def test_truncated_tar_is_counted_or_stops(tmp_path, fresh_cache):
    whole = tar(tmp_path / "x.tar", samples(20)).read_bytes()
    put(tmp_path / "x.tar", whole[: len(whole) // 2])
    pairs = open_pairs(str(tmp_path / "x.tar"))
    assert 5 < len(pairs) < 15
    assert pairs.problems.counts() == {"truncated tar": 1}
    assert "x.tar" in pairs.problems.path.read_text()
    with pytest.raises(UserError, match="1 truncated tar"):
        open_pairs(str(tmp_path / "x.tar"), max_bad=0.0)


@pytest.mark.faults
def test_one_broken_image(tmp_path, fresh_cache):
    members = samples(20)
    members["s7.jpg"] = members["s7.jpg"][:200]
    members["s8.json"] = "{"
    path = tar(tmp_path / "x.tar", members)
    for _ in range(2):  # read, then from the index
        pairs = open_pairs(str(path))
        assert pairs.keys == [f"s{n}" for n in range(20) if n not in (7, 8)]
        assert pairs.captions_of(7) == ["a 9", "b 9"]  # nothing shifts
        assert pairs.image_bytes(7) == picture(9)
        assert pairs.problems.counts() == {"unparsable json": 1, "broken image": 1}
    with pytest.raises(UserError, match="2 of 20 rows"):
        open_pairs(str(path), max_bad=0.05)


@pytest.mark.faults
@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=1500))
def test_random_bytes(tmp_path_factory, data):
    path = put(tmp_path_factory.mktemp("random") / "x.tar", data)
    with pytest.raises(UserError, match=r"x\.tar"):
        open_pairs(str(path))


@pytest.mark.faults
@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4))
def test_damage_inside(tmp_path_factory, damage):
    folder = tmp_path_factory.mktemp("damage")
    content = bytearray(tar(folder / "x.tar", samples(3)).read_bytes())
    for place, data in damage:
        start = int(place * (len(content) - len(data)))
        content[start : start + len(data)] = data
    found = read_shard(put(folder / "x.tar", bytes(content)), Options())
    json.dumps([row.captions for row in found.rows])
    for row in found.rows:
        row.location.read()
    assert len(found.rows) <= 3


def test_packed_tars_are_explained(tmp_path):
    with pytest.raises(UserError, match="unpack it first"):
        open_pairs(str(put(tmp_path / "x.tar.gz", b"")))
