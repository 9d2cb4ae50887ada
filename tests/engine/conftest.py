"""A warm job over the toy source."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipling.recipe import Recipe, load_recipe, with_settings
from tests.toy import toy_folder

TINY = {
    "student.config": "tiny_vit_32",
    "optimiser.batch": 32,
    "stages.0.epochs": 3,
    "data.workers": 0,
    "evaluation.log_every": 1,
}


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> Path:
    return toy_folder(tmp_path_factory.mktemp("toy") / "pairs")


@pytest.fixture(scope="session")
def toy_val(tmp_path_factory) -> Path:
    return toy_folder(tmp_path_factory.mktemp("toy") / "val", count=60, seed=1)


@pytest.fixture
def tiny_recipe(toy, toy_val) -> Recipe:
    return with_settings(load_recipe("clip"), {**TINY, "data.source": str(toy), "data.val": str(toy_val)})
