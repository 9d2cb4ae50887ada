"""clipling.json: written, read, and every mistake in it named."""

from __future__ import annotations

import json

import pytest

from clipling.errors import UserError
from clipling.runtime.manifest import ImageSide, Manifest, TextSide, read_manifest

IMAGE = ImageSide(32, [0.5, 0.5, 0.5], [0.5, 0.5, 0.5], "bicubic", "squash", 0, {"fp32": "image.onnx"})
TEXT = TextSide(77, "tokenizer.json", "lower", 49406, None, 0, False, {"fp32": "text.onnx"})
MANIFEST = Manifest("tiny", 64, 14.3, None, IMAGE, TEXT, {"clipling": "0"})


@pytest.fixture
def folder(tmp_path):
    for name in ("image.onnx", "text.onnx", "tokenizer.json"):
        (tmp_path / name).write_text("")
    MANIFEST.write(tmp_path)
    return tmp_path


def test_written_and_read(folder):
    assert read_manifest(folder) == MANIFEST
    (folder / "image.int8.onnx").write_text("")
    changed = MANIFEST.with_file("image", "int8", "image.int8.onnx")
    changed.write(folder)
    assert read_manifest(folder) == changed
    assert changed.image.files == {"fp32": "image.onnx", "int8": "image.int8.onnx"}
    assert MANIFEST.image.files == {"fp32": "image.onnx"}


def _set(content, path, value):
    *parents, last = path.split(".")
    for name in parents:
        content = content[name]
    if value is None and last.startswith("-"):
        del content[last[1:]]
    else:
        content[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", 2, "format 2; this version of clipling reads format 1"),
        ("embed_dim", "64", "embed_dim must be int, not '64'"),
        ("embed_dim", True, "embed_dim must be int"),
        ("embed_dim", 0, "embed_dim is 0"),
        ("logit_scale", float("nan"), "logit_scale must be float"),
        ("logit_bias", "x", "logit_bias must be float | None"),
        ("-name", None, "lacks name"),
        ("image", 3, "image must be a mapping"),
        ("image.sise", 3, "unknown key image.sise. Did you mean 'size'"),
        ("image.mean", [0.5], "3 numbers each"),
        ("image.std", [0.5], "3 numbers each"),
        ("logit_scale", -5.0, "logit_scale is -5.0; expected a multiplier"),
        ("logit_scale", 1e308, "logit_scale is 1e"),
        ("embed_dim", 10**12, "expected 1 to 65,536"),
        ("text.context_length", 10**12, "expected 1 to 8,192"),
        ("text.pad", -1, "text.pad is -1"),
        ("image.resize_mode", "crop", "image.resize_mode has 'crop'"),
        ("image.files", {"fp64": "image.onnx"}, "image.files has 'fp64'"),
        ("image.files", {"fp32": "gone.onnx"}, "lacks gone.onnx"),
        ("image.files", {"fp32": "../image.onnx"}, "not a plain name"),
        ("text.tokenizer", "/etc/passwd", "not a plain name"),
        ("text.clean", "clip", "text.clean has 'clip'"),
        ("text.start", "a", "text.start must be int | None"),
    ],
)
def test_every_mistake_is_named(folder, path, value, message):
    content = json.loads((folder / "clipling.json").read_text())
    _set(content, path, value)
    (folder / "clipling.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        read_manifest(folder)
    assert message in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("content", ["{", "[]", "3"])
def test_what_is_no_manifest(folder, content):
    (folder / "clipling.json").write_text(content)
    with pytest.raises(UserError, match=r"clipling\.json"):
        read_manifest(folder)
