"""Models of the hub's cache: the stated order, the limit of size, and nothing that is not all there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from clipling.models import ready


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty cache in the hub's layout. Nothing may be asked for from elsewhere."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    return tmp_path / "hub"


def put(hub: Path, name: str, files: dict[str, int | str], branch: str = "main") -> Path:
    """A repository of the cache: files with this content, or of this many bytes."""
    repo = hub / f"models--{name.replace('/', '--')}"
    snapshot = repo / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / branch).write_text("a" * 40)
    for file, content in files.items():
        (snapshot / file).write_bytes(b"\0" * content if isinstance(content, int) else content.encode())
    return snapshot


def config(kind: str) -> str:
    return json.dumps({"model_type": kind})


def test_no_cache_is_no_model(hub):
    assert ready.cached() == {}


def test_listed_models_come_in_the_lists_order_then_the_largest(hub):
    small = put(hub, "me/small-clip", {"config.json": config("clip"), "model.safetensors": 10})
    put(hub, "me/large-siglip", {"config.json": config("siglip"), "model.safetensors": 30})
    put(hub, "me/a-clip", {"config.json": config("clip"), "model.safetensors": 10})
    put(hub, "openai/clip-vit-base-patch32", {"config.json": config("clip"), "model.safetensors": 5})
    put(hub, "google/siglip-base-patch16-224", {"config.json": config("siglip"), "model.safetensors": 5})
    found = ready.cached()
    assert list(found) == [
        "google/siglip-base-patch16-224",
        "openai/clip-vit-base-patch32",
        "me/large-siglip",
        "me/a-clip",
        "me/small-clip",
    ]
    assert found["me/small-clip"] == f"transformers:{small}", "a folder: by its name the hub would be asked"


def test_open_clips_models_are_found_by_their_files(hub, monkeypatch):
    put(hub, "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", {"open_clip_model.safetensors": 5})
    put(hub, "openai/clip-vit-base-patch32", {"config.json": config("clip"), "model.safetensors": 5})
    assert list(ready.cached()) == ["ViT-B-32@laion2b_s34b_b79k", "openai/clip-vit-base-patch32"]


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": config("clip")},
        {"config.json": config("clip"), "pytorch_model.bin": 5},
        {"config.json": config("bert"), "model.safetensors": 5},
        {"config.json": "{", "model.safetensors": 5},
        {"model.safetensors": 5},
        {"config.json": config("clip"), "model.safetensors": 41},
        {"config.json": config("clip"), "model.safetensors.index.json": json.dumps({"weight_map": {"a": "gone.safetensors"}})},
    ],
)
def test_what_is_no_small_model_or_not_all_there_is_passed_over(hub, monkeypatch, files):
    monkeypatch.setattr(ready, "MOST", 40)
    put(hub, "me/model", files)
    assert ready.cached() == {}


def test_a_cached_folder_is_opened(hub, tmp_path):
    """One as transformers writes it, opened by what `cached` says."""
    from clipling.models.hub import open_student
    from tests.models.test_transformers_clip import make

    make(tmp_path / "made")
    files = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    snapshot = put(hub, "me/clip", {})
    for name, content in files.items():
        (snapshot / name).write_bytes(content)
    (spec,) = ready.cached().values()
    assert open_student(spec).config["model_cfg"]["embed_dim"] > 0
