"""What comes from npm is checked and taken apart safely. Without npm and without a network."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile

import pytest

from clipling.deploy.web_packages import ONNXRUNTIME, TOKENIZERS, Package, contents, unpack
from clipling.errors import UserError

WANTED = b"export const answer = 42;\n"


def packed(path, members, kind=tarfile.REGTYPE) -> Package:
    """A packed file with members [(name, data)] and the Package that it is."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = (len(data) if kind == tarfile.REGTYPE else 0), kind, "/etc/passwd"
            tar.addfile(info, io.BytesIO(data) if kind == tarfile.REGTYPE else None)
    path.write_bytes(buffer.getvalue())
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(buffer.getvalue()).digest()).decode()
    return Package("@some/thing", "1.2.3", integrity, {"dist/a.mjs": hashlib.sha256(WANTED).hexdigest()})


def test_only_what_is_wanted_is_read_and_nothing_is_written(tmp_path):
    evil = [("../../evil.js", b"x"), ("/evil.js", b"x"), ("package/../../evil.js", b"x"), ("dist/a.mjs", b"not this one")]
    path = tmp_path / "inside" / "deep" / "some-thing-1.2.3.tgz"
    path.parent.mkdir(parents=True)
    package = packed(path, [*evil, ("package/dist/a.mjs", WANTED), ("package/other.js", b"y")])
    assert package.packed == path.name
    assert unpack(path, package) == {"dist/a.mjs": WANTED}
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [path.name]
    assert contents(package, path.parent) == {"dist/a.mjs": WANTED}


def test_one_changed_byte_is_refused(tmp_path):
    path = tmp_path / "some-thing-1.2.3.tgz"
    package = packed(path, [("package/dist/a.mjs", WANTED)])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"is not @some/thing 1\.2\.3: its sha512 differs"):
        unpack(path, package)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_links_and_the_like_in_place_of_a_file(tmp_path, kind):
    path = tmp_path / "some-thing-1.2.3.tgz"
    package = packed(path, [("package/dist/a.mjs", WANTED)], kind)
    with pytest.raises(UserError, match="no plain file"):
        unpack(path, package)


def test_twice_missing_and_damaged(tmp_path):
    path = tmp_path / "some-thing-1.2.3.tgz"
    with pytest.raises(UserError, match="twice"):
        unpack(path, packed(path, [("package/dist/a.mjs", b"other"), ("package/dist/a.mjs", WANTED)]))
    with pytest.raises(UserError, match=r"lacks dist/a\.mjs"):
        unpack(path, packed(path, [("package/b.mjs", WANTED)]))
    path.write_bytes(b"no archive")
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(b"no archive").digest()).decode()
    with pytest.raises(UserError, match="damaged"):
        unpack(path, Package("@some/thing", "1.2.3", integrity, {"dist/a.mjs": ""}))


def test_an_unpacked_folder_is_checked_file_by_file(tmp_path):
    package = packed(tmp_path / "x.tgz", [("package/dist/a.mjs", WANTED)])
    place = tmp_path / "given" / "node_modules" / "@some" / "thing" / "dist"
    place.mkdir(parents=True)
    with pytest.raises(UserError, match="lacks"):
        contents(package, tmp_path / "given")
    (place / "a.mjs").write_bytes(WANTED)
    assert contents(package, tmp_path / "given") == {"dist/a.mjs": WANTED}
    (place / "a.mjs").write_bytes(WANTED + b" ")
    with pytest.raises(UserError, match=r"differs from the one in version 1\.2\.3"):
        contents(package, tmp_path / "given")
    with pytest.raises(UserError, match=r"npm pack @some/thing@1\.2\.3"):
        contents(package, tmp_path / "nothing")


def test_without_npm_there_is_one_clear_message(fresh_cache, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"npm is not installed.*onnxruntime-web@1\.30\.0.*--web-runtime"):
        contents(ONNXRUNTIME)
    assert not [path for path in fresh_cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize("says", ["exit 1", "echo something else > \"$6/onnxruntime-web-1.30.0.tgz\""])  # fmt: skip
def test_what_npm_brings_is_checked_before_it_is_kept(fresh_cache, tmp_path, monkeypatch, says):
    npm = tmp_path / "npm"
    npm.write_text(f"#!/bin/sh\n{says}\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(UserError, match=r"could not fetch|sha512 differs"):
        contents(ONNXRUNTIME)
    assert not [path for path in fresh_cache.rglob("*") if path.is_file()]


def test_packages_are_pinned():
    for package in (ONNXRUNTIME, TOKENIZERS):
        assert len(base64.b64decode(package.integrity.removeprefix("sha512-"))) == 64
        assert all(len(digest) == 64 for digest in package.files.values())
