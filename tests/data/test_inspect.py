"""The report on a source agrees with what was put into it."""

from __future__ import annotations

import json

import pytest

from clipling.data.inspect import inspect, render
from clipling.data.pairs import Pairs
from clipling.data.source import open_pairs
from tests.data.making import picture, put, tar


@pytest.fixture
def pairs(tmp_path, fresh_cache) -> Pairs:
    members = {}
    for n in range(30):
        members[f"s{n}.png"] = picture(n // 2 if n < 4 else n, "PNG")
        members[f"s{n}.json"] = {"caption": ["one", f"caption number {n}"][n % 2 :], "group": "g" if n > 27 else "", "lang": {"de": ["x"]}}
    members["s30.png"], members["s30.txt"] = b"broken", "x"
    return open_pairs(str(tar(tmp_path / "x.tar", members)))


def test_numbers(pairs):
    info = inspect(pairs)
    assert json.loads(json.dumps(info)) == info
    assert (info["pairs"], info["captions"]) == (30, 45)
    assert info["captions_per_pair"] == {"min": 1, "mean": 1.5, "max": 2}
    assert info["words_per_caption"] == {"min": 1, "mean": round((15 + 30 * 3) / 45, 2), "max": 3}
    assert (info["duplicate_images"], info["duplicate_captions"]) == (2, 14)
    assert info["linked_pairs"] == 15 + 2 + 1  # "one" on the even ones, s1 and s3 by their images, s29 by its group
    assert info["groups"] == 1
    assert info["languages"] == {"de": 30}
    assert info["images"] == {
        "looked_at": 30,
        "formats": {"PNG": 30},
        "width": {"min": 12, "mean": 12.0, "max": 12},
        "height": {"min": 9, "mean": 9.0, "max": 9},
    }
    assert info["problems"] == {"broken image": 1}
    assert sum(info["split"]["sizes"].values()) == 30
    assert [sample["key"] for sample in info["samples"]] == ["s0", "s7", "s14", "s21", "s29"]


def test_text(pairs, tmp_path):
    text = render(inspect(pairs))
    for part in ("30", "1 to 2, mean 1.5", "2 images, 14 captions", "1 broken image", str(pairs.problems.path), "caption number 7"):
        assert part in text
    put(tmp_path / "one" / "a.jpg", picture(1))
    put(tmp_path / "one" / "a.txt", "x")
    lonely = render(inspect(open_pairs(str(tmp_path / "one"))))
    assert "nothing can be held out" in lonely
    assert "no problems" in lonely
    bare = open_pairs(str(tmp_path / "one"), captions_optional=True).subset([])
    assert "pairs" in render(inspect(bare))
