"""Shared fixtures: a cache of its own for the whole test run, one thread, and the shared data where present."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

# Set before anything of ours is imported; kept between runs so that encoders and demo data are prepared once.
os.environ.setdefault("CLIPLING_CACHE", str(Path(tempfile.gettempdir()) / "clipling-test-cache"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; tests that need it are skipped without it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared data folder is not present")
    return folder


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder for one test."""
    monkeypatch.setenv("CLIPLING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
