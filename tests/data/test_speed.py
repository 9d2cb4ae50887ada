"""What `data inspect` says of loading: measured speeds, and a verdict that follows from them."""

from __future__ import annotations

import json

import pytest

from clipling.cli import main
from clipling.data import speed
from clipling.data.speed import lines, loading
from clipling.errors import UserError
from tests.data.making import encode, pixels, put, tar


@pytest.fixture
def pairs(tmp_path, fresh_cache):
    from PIL import Image

    from clipling.data.source import open_pairs

    members = {}
    for n in range(12):
        members |= {f"{n}.jpg": encode(Image.fromarray(pixels(n, 900, 700)), "JPEG"), f"{n}.txt": f"c {n}"}
    return open_pairs(str(tar(tmp_path / "large pictures.tar", members)))


def test_large_pictures_are_worth_packing(pairs):
    found = loading(pairs, 64, rate=1e6, cache_gb=0)
    assert json.loads(json.dumps(found)) == found
    assert found["fast"] > 1.5 * found["exact"], "large JPEGs are read at a fraction of their size"
    assert found["packed"] > 3 * found["fast"]
    assert found["packed_kilobytes"] < found["kilobytes"] / 10
    assert found["starves"]
    assert found["command"].startswith("clipling data pack '")
    assert found["command"].endswith("--size 80")
    assert found["command"] in "\n".join(lines(found))


def verdict(pairs, monkeypatch, speeds, **how):
    given = iter(speeds)
    monkeypatch.setattr(speed, "_speed", lambda *_: next(given))
    return loading(pairs, 64, **how)


def test_the_verdict_follows_from_the_numbers(pairs, monkeypatch):
    found = verdict(pairs, monkeypatch, (100.0, 300.0, 310.0), rate=150.0, cache_gb=0)
    assert found["starves"]
    assert "data.decode=fast (300 a second)" in found["said"]
    assert found["command"] is None, "a copy that gains nothing is not recommended"
    found = verdict(pairs, monkeypatch, (100.0, 300.0, 900.0), rate=1000.0, cache_gb=0)
    assert "data.workers=4" in found["said"]
    assert found["command"]
    assert verdict(pairs, monkeypatch, (100.0, 300.0, 310.0), rate=90.0, cache_gb=0)["starves"] is False
    assert verdict(pairs, monkeypatch, (100.0, 300.0, 310.0), rate=190.0, workers=2, cache_gb=0)["starves"] is False
    unknown = verdict(pairs, monkeypatch, (100.0, 300.0, 310.0), cache_gb=0)
    assert unknown["starves"] is None
    assert "more than 100 pairs a second will wait" in unknown["said"]
    assert "does not wait" in verdict(pairs, monkeypatch, (100.0, 300.0, 310.0), rate=1e9)["said"]


def test_sources_without_readable_pictures(pairs, tmp_path):
    assert lines(loading(pairs.subset([]), 64)) == []
    for wrong in ({"size": 2}, {"size": 64, "rate": 0.0}, {"size": 64, "workers": 0}):
        with pytest.raises(UserError, match="expected"):
            loading(pairs, **wrong)


def test_the_command(pairs, capsys, tmp_path):
    assert main(["data", "inspect", pairs.name, "--size", "64", "--rate", "500"]) == 0
    said = capsys.readouterr().out
    assert "loading at 64 px (--size); mobilenetv3_small_64, the default student, sees 64 px" in said
    assert "decoded once" in said
    table = put(tmp_path / "t.csv", "url,caption\nhttps://x.org/1.jpg,a\n")
    assert main(["data", "inspect", str(table)]) == 2
    assert "clipling data pack" in capsys.readouterr().err
    assert main(["data", "pack", pairs.name, str(tmp_path / "out"), "--size", "64"]) == 0
    assert "12 pairs, 12 captions in 1 tars" in capsys.readouterr().out
