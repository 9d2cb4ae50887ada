"""Packed sources: the same pairs, by index and without; resumed after kills with the same bytes; links with all their failures."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import threading
import time

import numpy as np
import pytest
from PIL import Image, ImageFile

from clipling.cli import main
from clipling.data import images, index, remote
from clipling.data import pack as pack_module
from clipling.data import pack_shard as pack_shard_module
from clipling.data.images import decode
from clipling.data.pack import pack
from clipling.data.pack_picture import packed_picture
from clipling.data.packed import index_of, read_index
from clipling.data.pairs import hash_bytes
from clipling.data.reading import Options
from clipling.data.remote import Fetch
from clipling.data.source import open_pairs
from clipling.errors import UserError
from clipling.store import alone
from tests.data.making import encode, pixels, put, tar
from tests.data.serving import Site, flaky, serving, slow
from tests.faults.killing import kill_until_done

pytestmark = pytest.mark.usefixtures("fresh_cache")
QUICK = Fetch(timeout=0.6, retries=1, most_bytes=100_000)


def run(spec, out, options=None, **changes):
    settings = {"size": 32, "quality": 90, "shard": 4, "fetch": QUICK, "at_once": 4, **changes}
    return pack(str(spec), out, options or Options(), **settings)


def photo(seed: int, width: int, height: int, form: str = "JPEG", **how) -> bytes:
    return encode(Image.fromarray(pixels(seed, width, height)), form, **how)


def source(folder, count=11):
    """Keys with dots, blanks and folders; groups, nested extras, several captions, one caption of two lines."""
    names = ["a.b", "c d/e", "日本", "x" * 120, "row-000000003", "plain", "p/q.r/s"]
    members = []
    for n in range(count):
        name = f"{names[n % len(names)].replace('.', '·')}-{n}" if n >= len(names) else names[n].replace(".", "·")
        members.append((f"{name}.jpg", photo(n, 64, 48) if n % 2 else photo(n, 20, 30)))
        about = {
            "caption": [f"caption {n}", f"zwei {n}"][: 1 + n % 2],
            "group": "g" if n > 8 else "",
            "lang": {"de": [f"bild {n}"]},
            "n": n,
        }
        members.append((f"{name}.json", about))
    return tar(folder / "src.tar", members)


def same_pairs(a, b):
    for name in ("keys", "captions", "groups", "extras"):
        assert getattr(a, name) == getattr(b, name), name
    assert a.offsets.tolist() == b.offsets.tolist()


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "pack.json"}


def test_the_packed_source_has_the_same_pairs_by_index_and_without(tmp_path, monkeypatch):
    original = open_pairs(str(source(tmp_path)))
    made = run(tmp_path / "src.tar", tmp_path / "out")
    assert (made["pairs"], made["captions"], made["shards"], made["failed"]) == (11, 16, 3, 0)
    assert (made["kept"], made["resized"]) == (6, 5)
    looked = []
    monkeypatch.setattr(index, "verify", looked.append)
    packed = open_pairs(str(tmp_path / "out"))
    assert not looked, "an index spares the look at every picture"
    same_pairs(original, packed)
    for i in range(11):
        data = packed.image_bytes(i)
        assert packed.hashes[i] == hash_bytes(data)
        if i % 2 == 0:
            assert data == original.image_bytes(i), "small enough: bit for bit"
        else:
            assert packed.image(i).size == (43, 32)
            squeezed = np.asarray(original.image(i).resize((43, 32), Image.Resampling.BICUBIC), np.float64)
            assert np.abs(np.asarray(packed.image(i), np.float64) - squeezed).mean() < 16  # noise is the hardest case of JPEG
    for path in (tmp_path / "out").glob("*.index.jsonl"):
        path.unlink()
    bare = open_pairs(str(tmp_path / "out"))
    assert looked
    same_pairs(original, bare)
    assert bare.hashes == packed.hashes


def test_other_loaders_read_the_tars(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    source(tmp_path)
    run(tmp_path / "src.tar", tmp_path / "out")
    samples = list(webdataset.WebDataset([str(p) for p in sorted((tmp_path / "out").glob("*.tar"))], shardshuffle=False))
    assert len(samples) == 11
    for n, sample in enumerate(samples):
        assert sample["txt"].decode() == f"caption {n}"
        assert json.loads(sample["json"])["n"] == n
        assert decode(sample["jpg"]).size[0] > 0


def test_options_name_fields_of_a_packed_source(tmp_path):
    original = source(tmp_path)
    run(original, tmp_path / "out")
    for options in ({"caption_column": "lang.de"}, {"group": "n"}, {"caption_column": "lang.de", "group": "n"}):
        a, b = open_pairs(str(original), **options), open_pairs(str(tmp_path / "out"), **options)
        assert (a.keys, a.captions, a.groups) == (b.keys, b.captions, b.groups)
    with pytest.raises(UserError, match=r"lang\.xx"):
        open_pairs(str(tmp_path / "out"), caption_column="lang.xx")


def test_bytes_unchanged(tmp_path):
    members = []
    for n, form in enumerate(("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")):
        put(tmp_path / "in" / f"{n}.{form.lower()}", photo(n, 70, 50, form))
        members.append(f"{n}.{form.lower()},c{n}")
    table = put(tmp_path / "in" / "t.csv", "filepath,title\n" + "\n".join(members))
    run(table, tmp_path / "out", size=None)
    a, b = open_pairs(str(table)), open_pairs(str(tmp_path / "out"))
    same_pairs(a, b)
    assert a.hashes == b.hashes, "a bank and a split stay what they were"
    for path in (tmp_path / "out").glob("*.index.jsonl"):
        path.unlink()
    assert open_pairs(str(tmp_path / "out")).hashes == a.hashes


def test_pictures_as_users_have_them():
    turned = Image.Exif()
    turned[0x0112] = 6
    upright = decode(packed_picture(photo(1, 90, 60, exif=turned), 30, 90)[0])
    assert upright.size == (30, 45)
    _, suffix, kept = packed_picture(photo(2, 40, 400, "PNG"), 64, 90)
    assert (suffix, kept) == ("png", True)
    assert packed_picture(photo(2, 40, 40, "GIF"), 64, 90)[1:] == ("jpg", False)
    smooth = Image.fromarray(np.linspace(0, 255, 900 * 600 * 3).reshape(600, 900, 3).astype(np.uint8))
    small = decode(packed_picture(encode(smooth, "JPEG", quality=95), 64, 95)[0])
    expected = np.asarray(smooth.resize((96, 64), Image.Resampling.BICUBIC), np.float64)
    assert small.size == (96, 64)
    assert np.abs(np.asarray(small, np.float64) - expected).mean() < 2


@pytest.mark.parametrize("size", [32, None])
def test_huge_pictures_are_worked_on_one_at_a_time(tmp_path, monkeypatch, size):
    """Half a megabyte of PNG may be half a gigabyte of pixels: at any time one thread alone may hold such a picture."""
    monkeypatch.setattr(images, "LARGE_PIXELS", 100 * 100)
    plain, holding, most = ImageFile.ImageFile.load, [], []

    def load(self):
        holding.append(threading.get_ident())
        time.sleep(0.005)
        most.append(len(set(holding)))
        try:
            return plain(self)
        finally:
            holding.remove(threading.get_ident())

    rows = [f"{n}.{'png' if n % 2 else 'tif'},picture {n}" for n in range(8)]
    for n in range(8):
        put(tmp_path / rows[n].partition(",")[0], photo(n, 120, 100, "PNG" if n % 2 else "TIFF"))
    table = put(tmp_path / "t.csv", "filepath,title\n" + "\n".join(rows))
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    assert run(table, tmp_path / "out", size=size, at_once=8)["pairs"] == 8
    open_pairs(str(table))
    assert len(most) >= 16
    assert set(most) == {1}


def test_broken_rows_are_left_out_and_shift_nothing(tmp_path):
    rows = []
    for n in range(20):
        colour = (n * 12, 255 - n * 12, 100)
        data = encode(Image.new("RGB", (40, 40), colour), "PNG")
        put(tmp_path / f"{n}.png", b"broken" if n in (0, 7) else data[:60] if n == 12 else data)
        rows.append(f"{n}.png,picture {n}")
    rows.insert(5, "gone.png,picture gone")
    table = put(tmp_path / "t.csv", "filepath,title\n" + "\n".join(rows))
    made = run(table, tmp_path / "out", shard=6)
    assert made["left_out"] == {"broken image": 3, "missing image": 1}
    listed = (tmp_path / "out" / "problems.tsv").read_text()
    assert all(name in listed for name in ("0.png", "7.png", "12.png", "gone.png"))
    for options in ({}, {"without": True}):
        if options:
            for path in (tmp_path / "out").glob("*.index.jsonl"):
                path.unlink()
        pairs = open_pairs(str(tmp_path / "out"))
        assert len(pairs) == 17
        for i in range(len(pairs)):
            n = int(pairs.captions_of(i)[0].split()[1])
            assert pairs.keys[i] == f"{n}.png"
            colour = np.asarray(pairs.image(i), np.int64).reshape(-1, 3).mean(0)
            assert np.abs(colour - (n * 12, 255 - n * 12, 100)).max() < 4


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_killed_and_resumed_it_makes_the_same_bytes(tmp_path, monkeypatch):
    plain = pack_shard_module._make

    def slowly(row, packing):  # however quick the machine, a shard takes longer than the time between two kills
        time.sleep(0.02)
        return plain(row, packing)

    rows = []
    for n in range(60):
        put(tmp_path / f"{n}.jpg", b"broken" if n == 31 else photo(n, 160, 120))
        rows.append(f"{n}.jpg,picture {n}")
    table = put(tmp_path / "t.csv", "filepath,title\n" + "\n".join(rows))
    run(table, tmp_path / "whole", shard=5)
    with monkeypatch.context() as slow_rows:
        slow_rows.setattr(pack_shard_module, "_make", slowly)
        again = lambda: run(table, tmp_path / "killed", shard=5, at_once=1)  # noqa: E731
        kills = kill_until_done(again, kills=12, shortest=0.03, longest=0.3)
    assert kills >= 5  # all of it takes 1.2 seconds at least
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert not list((tmp_path / "killed").glob(".*"))
    assert run(table, tmp_path / "killed", shard=5)["made_now"] == 0
    put(tmp_path / "17.jpg", photo(99, 160, 120))
    assert run(table, tmp_path / "killed", shard=5)["made_now"] == 0, "a picture behind the same path is not looked at again"
    put(table, table.read_text().replace("picture 17", "another 17") + "\n0.jpg,again")
    assert run(table, tmp_path / "killed", shard=5)["made_now"] == 2, "shards of changed rows are made again"


def test_an_index_that_does_not_fit_is_not_used(tmp_path, capsys):
    source(tmp_path)
    run(tmp_path / "src.tar", tmp_path / "out")
    expected = open_pairs(str(tmp_path / "out"))
    tars = sorted((tmp_path / "out").glob("*.tar"))
    first, second = tars[0].read_bytes(), tars[1].read_bytes()
    longest = max(len(first), len(second))
    tars[0].write_bytes(second.ljust(longest, b"\0"))
    tars[1].write_bytes(first.ljust(longest, b"\0"))
    assert read_index(tars[0]) is None
    swapped = open_pairs(str(tmp_path / "out"))
    assert "does not fit" in capsys.readouterr().err
    assert sorted(swapped.captions) == sorted(expected.captions)
    captions = dict(zip(expected.hashes, map(expected.captions_of, range(len(expected)))))
    assert all(swapped.captions_of(i) == captions[swapped.hashes[i]] for i in range(len(swapped)))
    lines = index_of(tars[2]).read_text().split("\n")
    index_of(tars[2]).write_text("\n".join(lines[:2]) + "\n")
    assert read_index(tars[2]) is None, "a line is missing"
    index_of(tars[2]).write_text("\n".join(lines))
    assert read_index(tars[2]) is not None
    tars[2].write_bytes(tars[2].read_bytes() + bytes(512))
    assert read_index(tars[2]) is None, "the tar has grown"
    index_of(tars[2]).write_text("{}")
    assert read_index(tars[2]) is None


def test_bytes_that_rotted_are_not_taken_over(tmp_path):
    """`--retry` makes a shard again of what it holds, where that is what was written."""
    for n in range(3):
        put(tmp_path / f"{n}.jpg", photo(n, 40, 30))
    table = put(tmp_path / "t.csv", "filepath,title\n0.jpg,a\n1.jpg,b\ngone.jpg,c\n2.jpg,d")
    run(table, tmp_path / "out")
    (made,) = (tmp_path / "out").glob("*.tar")
    whole, entry = made.read_bytes(), read_index(made).entries[1]
    rotten = bytearray(whole)
    rotten[entry.offset + 300] ^= 255
    made.write_bytes(rotten)
    assert read_index(made) is not None
    run(table, tmp_path / "out", retry=True)
    assert made.read_bytes() == whole


def test_line_breaks_that_json_leaves_alone(tmp_path):
    """U+2028 and U+0085 end a line for str.splitlines, and for nobody else."""
    texts = ["a\u2028b", "c\x85d", "e\u2029f", "plain"]
    members = {f"k{n}\u2028x.jpg": photo(n, 40, 40) for n in range(4)} | {f"k{n}\u2028x.json": {"caption": c} for n, c in enumerate(texts)}
    path = tar(tmp_path / "src.tar", members)
    run(path, tmp_path / "out")
    found = read_index(tmp_path / "out" / "00000.tar")
    assert [entry.captions for entry in found.entries] == [[text] for text in texts]
    assert run(path, tmp_path / "out")["made_now"] == 0
    same_pairs(open_pairs(str(path)), open_pairs(str(tmp_path / "out")))


def test_a_finished_pack_that_is_made_anew_is_a_part_until_it_is_whole(tmp_path, monkeypatch, capsys):
    """Half of the shards are then of the rows of before: a pair is in none of them, and the reader must hear of it."""
    rows = [f"{n}.jpg,picture {n}" for n in range(8)]
    for n in range(9):
        put(tmp_path / f"{n}.jpg", photo(n, 40, 30))
    table = put(tmp_path / "t.csv", "filepath,title\n" + "\n".join(rows))
    run(table, tmp_path / "out")
    open_pairs(str(tmp_path / "out"))
    assert "holds a part" not in capsys.readouterr().err
    put(table, "filepath,title\n8.jpg,new\n" + "\n".join(rows))
    plain, made = pack_module.pack_shard, []

    def stopped(*args, **how):
        if made:
            raise KeyboardInterrupt
        made.append(plain(*args, **how))
        return made[0]

    with monkeypatch.context() as once:
        once.setattr(pack_module, "pack_shard", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(table, tmp_path / "out")
    assert "3.jpg" not in open_pairs(str(tmp_path / "out")).keys
    assert "holds a part" in capsys.readouterr().err
    run(table, tmp_path / "out")
    assert sorted(open_pairs(str(tmp_path / "out")).keys) == [f"{n}.jpg" for n in range(9)]
    assert "holds a part" not in capsys.readouterr().err


def test_two_that_pack_into_one_folder(tmp_path):
    path = source(tmp_path)
    with alone(tmp_path / "out", "packing into"), pytest.raises(UserError, match="another process is packing into"):
        run(path, tmp_path / "out")
    assert run(path, tmp_path / "out")["pairs"] == 11


def test_a_mistyped_source_does_not_claim_the_folder(tmp_path):
    path = source(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        run(tmp_path / "scr.tar", tmp_path / "out")
    assert run(path, tmp_path / "out")["pairs"] == 11


def test_a_source_that_does_not_open_leaves_nothing(tmp_path):
    put(tmp_path / "bad.csv", "a,b\n1,2\n")
    (tmp_path / "mine").mkdir()
    for spec, out in (("scr.tar", "new/deep"), ("bad.csv", "new"), ("scr.tar", "mine")):
        with pytest.raises(UserError):
            run(tmp_path / spec, tmp_path / out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.csv", "mine"]
    assert not any((tmp_path / "mine").iterdir())
    path = source(tmp_path)
    run(path, tmp_path / "out")
    before = files(tmp_path / "out")
    path.unlink()
    with pytest.raises(UserError, match="does not exist"):
        run(path, tmp_path / "out")
    assert files(tmp_path / "out") == before, "what was packed stays"
    assert (tmp_path / "out" / "pack.json").is_file()


@pytest.mark.parametrize(("bad", "code"), [(1, 0), (2, 1)])
def test_the_exit_code_tells_of_more_than_a_tenth_left_out(tmp_path, capsys, bad, code):
    """Of 10 rows one is a tenth, which is allowed; two are more."""
    rows = [f"{n}.jpg,caption {n}" for n in range(10)]
    for n in range(10 - bad):
        put(tmp_path / f"{n}.jpg", photo(n, 20, 30))
    table = put(tmp_path / "pairs.csv", "\n".join(["filepath,title", *rows]) + "\n")
    assert main(["data", "pack", str(table), str(tmp_path / "out")]) == code
    said = capsys.readouterr().out
    assert f"left out: {bad} " in said
    assert ("exit code 1" in said) == bool(code)
    assert "next:" in said
    assert len(open_pairs(str(tmp_path / "out"))) == 10 - bad


def test_folders_that_hold_something_else(tmp_path):
    path = source(tmp_path)
    put(tmp_path / "mine" / "letter.txt", "dear")
    with pytest.raises(UserError, match="no pack of clipling"):
        run(path, tmp_path / "mine")
    run(path, tmp_path / "out")
    with pytest.raises(UserError, match="size was 32 and is 48"):
        run(path, tmp_path / "out", size=48)
    for wrong in ({"size": 3}, {"quality": 5}, {"shard": 0}, {"at_once": 0}):
        with pytest.raises(UserError, match="expected"):
            run(path, tmp_path / "other", **wrong)


def links(site: Site, count: int) -> str:
    lines = ["url,caption,sku"]
    for n in range(count):
        site.pages[f"{n}.jpg"] = encode(Image.new("RGB", (50, 40), (n * 20, 0, 0)), "JPEG")
        lines.append(f"{site.url(f'{n}.jpg')},number {n},s{n}")
    return "\n".join(lines)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_links_are_downloaded_and_their_failures_listed(tmp_path, form):
    with serving(Site()) as site:
        text = links(site, 12)
        site.pages |= {"1.jpg": 404, "2.jpg": 500, "3.jpg": b"<html>", "4.jpg": b"x" * 200_000}
        site.pages |= {"5.jpg": slow(0.02, b"y" * 5000), "6.jpg": flaky(1, site.pages["6.jpg"])}
        path = put(tmp_path / "t.csv", text)
        records = [dict(zip(("url", "caption", "sku"), line.split(","))) for line in text.split("\n")[1:]]
        if form == "jsonl":
            path = put(tmp_path / "t.jsonl", "\n".join(map(json.dumps, records)))
        elif form == "parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist(records), tmp_path / "t.parquet")
            path = tmp_path / "t.parquet"
        with pytest.raises(UserError, match=r"clipling data pack .*t\."):
            open_pairs(str(path))
        made = run(path, tmp_path / "out", Options(group="sku"))
        assert made["left_out"] == {"not there": 1, "not fetched": 1, "broken image": 1, "too large": 1, "timed out": 1}
        pairs = open_pairs(str(tmp_path / "out"))
        assert pairs.keys == [site.url(f"{n}.jpg") for n in (0, 6, 7, 8, 9, 10, 11)]
        for i in range(len(pairs)):
            n = int(pairs.captions_of(i)[0].split()[1])
            assert pairs.groups[i] == f"s{n}"
            assert abs(pairs.image(i).getpixel((20, 20))[0] - 20 * n) < 4
        asked = len(site.asked)
        assert run(path, tmp_path / "out", Options(group="sku"))["made_now"] == 0
        assert len(site.asked) == asked, "what was packed is not asked for again"
        site.pages |= {name: encode(Image.new("RGB", (50, 40), (20 * int(name[0]), 0, 0)), "JPEG") for name in ("1.jpg", "2.jpg", "5.jpg")}
        again = run(path, tmp_path / "out", Options(group="sku"), retry=True)
        assert again["left_out"] == {"broken image": 1, "too large": 1}
        assert {page for _, page, _ in site.asked[asked:]} <= {f"{n}.jpg" for n in range(1, 6)}, "only what failed is asked for again"
        run(path, tmp_path / "fresh", Options(group="sku"))
        assert files(tmp_path / "out") == files(tmp_path / "fresh"), "as if nothing had failed before"


def test_a_network_that_is_down_stops_early(tmp_path):
    path = put(tmp_path / "t.csv", "url,caption\n" + "\n".join(f"http://127.0.0.1:9/{n}.jpg,a" for n in range(300)))
    with pytest.raises(UserError, match=r"none of the first 50 .*\n.*127\.0\.0\.1:9"):
        run(path, tmp_path / "out", shard=300, fetch=Fetch(timeout=1, retries=0))
    path = put(tmp_path / "few.csv", "url,caption\nnohost://x/1.jpg,a")
    with pytest.raises(UserError, match="Protocol not known: nohost"):
        run(path, tmp_path / "out2")


@pytest.mark.parametrize("ranges", [True, False])
def test_tars_behind_links_are_copied_once_and_resumed(tmp_path, ranges):
    first = source(tmp_path / "one").read_bytes()
    second = tar(tmp_path / "two" / "b.tar", {"plain.jpg": photo(50, 40, 40), "plain.txt": "another plain"}).read_bytes()
    with serving(Site(ranges)) as site:
        site.pages |= {"x/a.tar": first, "y/b.tar": second}
        spec = f"{site.url('x/a.tar')}::{site.url('y/b.tar')}"
        with pytest.raises(UserError, match="clipling data pack"):
            open_pairs(spec)
        run(spec, tmp_path / "out")
        a = open_pairs(f"{tmp_path / 'one' / 'src.tar'}::{tmp_path / 'two' / 'b.tar'}")
        b = open_pairs(str(tmp_path / "out"))
        assert a.captions == b.captions
        assert [key.rpartition("/")[2] for key in b.keys] == [key.rpartition("/")[2] for key in a.keys]
        assert {"a/plain", "b/plain"} <= set(b.keys), "a key of two tars has their names before it"
        assert not (tmp_path / "out" / "incoming").exists()


def test_a_remote_file_whose_shards_are_made_is_not_copied_again(tmp_path):
    bad = {"bad.jpg": b"broken", "bad.txt": "x", "none.json": {"n": 1}}
    first = tar(tmp_path / "a.tar", {"one.jpg": photo(1, 40, 40), "one.txt": "one", **bad}).read_bytes()
    second = tar(tmp_path / "b.tar", {"two.jpg": photo(2, 40, 40), "two.txt": "two"}).read_bytes()
    with serving(Site()) as site:
        site.pages |= {"a.tar": first, "b.tar": second}
        spec = f"{site.url('a.tar')}::{site.url('b.tar')}"
        got = lambda: {page for method, page, _ in site.asked if method == "GET"}  # noqa: E731
        made = run(spec, tmp_path / "out")
        assert made["left_out"] == {"no image": 1, "broken image": 1}
        before = files(tmp_path / "out")
        site.asked.clear()
        again = run(spec, tmp_path / "out")
        assert (got(), again["made_now"], again["left_out"]) == (set(), 0, made["left_out"])
        assert files(tmp_path / "out") == before
        run(spec, tmp_path / "out", retry=True)
        assert got() == {"a.tar"}, "what failed is looked at again"
        # a newer version lies there, and of the older one a copy that a kill left
        site.asked.clear()
        site.pages["b.tar"] = tar(tmp_path / "c.tar", {"new.jpg": photo(3, 60, 40), "new.txt": "longer " * 3000}).read_bytes()
        put(tmp_path / "out" / "incoming" / "00001" / "b.tar", second)
        assert run(spec, tmp_path / "out")["pairs"] == 2
        assert got() == {"b.tar"}
        assert open_pairs(str(tmp_path / "out")).keys == ["one", "new"]
        assert not (tmp_path / "out" / "incoming").exists()
        index_of(tmp_path / "out" / "00001-00000.tar").unlink()
        site.asked.clear()
        run(spec, tmp_path / "out")
        assert got() == {"b.tar"}, "a shard that is missing is made again"


def test_servers_that_hang_or_are_overloaded(tmp_path):
    data = source(tmp_path).read_bytes()
    with serving(Site()) as site:
        site.pages |= {"slow.tar": lambda handler: time.sleep(1.5), "a.tar": flaky(2, data), "gone.tar": 404}
        with pytest.raises(UserError, match="cannot be copied: no answer in time"):
            run(site.url("slow.tar"), tmp_path / "slow", fetch=Fetch(timeout=0.2, retries=0))
        assert run(site.url("a.tar"), tmp_path / "out", fetch=Fetch(timeout=5, retries=1))["pairs"] == 11
        site.asked.clear()
        with pytest.raises(UserError, match="not there"):
            run(site.url("gone.tar"), tmp_path / "gone")
        assert len(site.asked) <= 2, "what is not there is not asked for again"
        site.pages["b.tar"] = data
        assert run(f"{site.url('b.tar')}::{site.url('b.tar')}", tmp_path / "twice")["pairs"] == 11, (
            "a source given twice is one, as of files"
        )


def test_a_copy_goes_on_where_it_was_stopped(tmp_path):
    data = np.random.default_rng(0).bytes(20 * 2**20)
    with serving(Site()) as site:
        site.pages["big.bin"] = data
        fetch = Fetch(timeout=5, retries=0)

        def stop(done: int, total: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fetch.copy(site.url("big.bin"), tmp_path / "big.bin", stop)
        (tmp_path / "big.bin.part").write_bytes(data[: 9 * 2**20])
        site.asked.clear()
        assert fetch.copy(site.url("big.bin"), tmp_path / "big.bin").read_bytes() == data
        assert next(asked for method, _, asked in site.asked if method == "GET" and asked).startswith(f"bytes={9 * 2**20}-")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["big.bin"]
        site.pages["big.bin"] = data[::-1][:-5]  # another version: nothing of the old one is used
        (tmp_path / "other.bin.part").write_bytes(data[:100])
        put(tmp_path / "other.bin.part.json", json.dumps({"url": site.url("big.bin"), "size": len(data)}))
        assert fetch.copy(site.url("big.bin"), tmp_path / "other.bin").read_bytes() == data[::-1][:-5]


def test_other_file_systems(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    path = source(tmp_path)
    memory.pipe("/bucket/train/00000.tar", path.read_bytes())
    for spec in ("memory://bucket/train", "memory://bucket/train/*.tar", "memory://bucket/train/{00000..00000}.tar", path.as_uri()):
        out = tmp_path / hash_bytes(spec.encode())
        assert run(spec, out)["pairs"] == 11
        same_pairs(open_pairs(str(path)), open_pairs(str(out)))
    with pytest.raises(UserError, match="no file is found"):
        run("memory://bucket/nothing", tmp_path / "none")
    with pytest.raises(UserError, match="is not a source"):
        run("memory://bucket/letter.docx", tmp_path / "none2")
    with pytest.raises(UserError, match="cannot be copied"):
        run("memory://bucket/gone.tar", tmp_path / "none3", fetch=Fetch(retries=0))


def test_tars_are_the_same_for_any_number_of_threads(tmp_path):
    path = source(tmp_path)
    run(path, tmp_path / "a", at_once=1)
    run(path, tmp_path / "b", at_once=9)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "a" / "00000.tar").read_bytes())) as found:
        assert {member.mtime for member in found} == {0}


@pytest.mark.parametrize("ranges", [True, False])
def test_a_long_file_is_copied_in_parts_also_from_a_server_that_knows_none(tmp_path, monkeypatch, ranges):
    monkeypatch.setattr(remote, "CHUNK", 100)
    data = bytes(range(256)) * 9
    with serving(Site(ranges)) as site:
        site.pages["long.tar"] = data
        fetch = Fetch(retries=0)
        assert fetch.copy(site.url("long.tar"), tmp_path / "long.tar").read_bytes() == data
        (tmp_path / "again.tar.part").write_bytes(data[:1000])
        (tmp_path / "again.tar.part.json").write_text(json.dumps(fetch.state(site.url("long.tar"))))
        assert fetch.copy(site.url("long.tar"), tmp_path / "again.tar").read_bytes() == data


def test_a_file_of_unknown_length_begins_anew_when_its_stream_broke(tmp_path, monkeypatch):
    data = bytes(range(256)) * 9

    class Breaks(io.BytesIO):
        def read(self, count: int = -1) -> bytes:
            if self.tell():
                raise OSError("gone")
            return super().read(1000)

    class Place:
        streams = [Breaks(data), io.BytesIO(data)]  # noqa: RUF012

        def open(self, name: str, mode: str) -> io.BytesIO:
            return self.streams.pop(0)

    monkeypatch.setattr(remote, "filesystem", lambda url, timeout=0.0: (Place(), "x"))
    monkeypatch.setattr(remote, "_pause", lambda failed: None)
    made = Fetch().copy("s3://a/x.tar", tmp_path / "x.tar", state={"url": "x", "size": None})
    assert made.read_bytes() == data
    assert not Place.streams
