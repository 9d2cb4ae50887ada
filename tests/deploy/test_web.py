"""What is in a web folder, and what is refused. Without npm: the packages are stood in for."""

from __future__ import annotations

import re
import shutil

import pytest

import clipling
from clipling.deploy import web
from clipling.errors import UserError
from clipling.runtime.manifest import read_manifest
from clipling.store import read_json
from tests.deploy import handmade


@pytest.fixture
def exported(tmp_path, monkeypatch):
    monkeypatch.setattr(web, "contents", lambda package, runtime=None: {name: name.encode() for name in package.files})
    return handmade.folder(tmp_path / "exported")


def test_everything_that_the_page_asks_for_is_there(exported, tmp_path):
    out = tmp_path / "site"
    made = clipling.export(str(exported), out=out, to="web")
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    asked = set()
    for path in (*out.glob("*.js"), out / "index.html"):
        text = path.read_text("utf-8")
        asked |= set(re.findall(r'(?:from "|import\("|new URL\(")\.?/?([\w./-]+)"', text)) | set(
            re.findall(r'(?:href|src)="([\w./-]+)"', text)
        )
    sizes = read_json(out / "folder.json")["files"]
    assert {"app.js", "worker.js", "style.css", "vendor/tokenizers.min.js", "vendor/ort.wasm.bundle.min.js"} <= asked
    assert asked | set(sizes) <= files
    assert sizes == {name: (out / name).stat().st_size for name in sizes}
    assert made["bytes_loaded"] == sum(sizes.values())
    assert made["precisions"] == {"image": "fp32", "text": "fp32"}


def test_the_page_names_no_other_place(exported, tmp_path):
    web.write_web(exported, tmp_path / "site")
    for path in (*(tmp_path / "site").glob("*.js"), *(tmp_path / "site").glob("*.css"), tmp_path / "site" / "index.html"):
        found = re.findall(r"https?://[^\s\"'>]+", path.read_text("utf-8"))
        assert not [url for url in found if "www.w3.org/2000/svg" not in url], path.name


def test_int8_where_there_is_one_and_another_store_for_another_model(exported, tmp_path):
    first = web.write_web(exported, tmp_path / "first")
    shutil.copy(exported / "image.onnx", exported / "image.int8.onnx")
    read_manifest(exported).with_file("image", "int8", "image.int8.onnx").write(exported)
    second = web.write_web(exported, tmp_path / "second")
    assert (first["precisions"]["image"], second["precisions"]) == ("fp32", {"image": "int8", "text": "fp32"})
    assert not (tmp_path / "second" / "model" / "image.onnx").exists()
    assert read_manifest(tmp_path / "second" / "model").image.files == {"int8": "image.int8.onnx"}
    assert read_json(tmp_path / "first" / "folder.json")["key"] != read_json(tmp_path / "second" / "folder.json")["key"]


def test_what_is_refused(exported, tmp_path):
    out = tmp_path / "site"
    web.write_web(exported, out)
    with pytest.raises(UserError, match="overwrite"):
        clipling.export(str(exported), out=out, to="web")
    clipling.export(str(exported), out=out, to="web", overwrite=True)
    with pytest.raises(UserError, match="is no exported folder"):
        clipling.export(str(exported), out=exported, to="web", overwrite=True)
    with pytest.raises(UserError, match="--web-runtime is for --to web"):
        clipling.export(str(exported), out=tmp_path / "x", web_runtime=tmp_path)
    with pytest.raises(UserError, match="exported already"):
        clipling.export(str(exported), out=tmp_path / "x", to="web", precision=("int8",))
    with pytest.raises(UserError, match="no kernels"):
        clipling.export("anything", out=tmp_path / "x", to="web", precision=("fp16",))
    text = (exported / "clipling.json").read_text().replace('"fp32"', '"fp16"')
    (exported / "clipling.json").write_text(text)
    with pytest.raises(UserError, match="fp16 does not run in browsers"):
        web.write_web(exported, tmp_path / "x")
    assert not (tmp_path / "x").exists()
