"""Pairs, and a small teacher that knows them, for the verbs that start from a model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from clipling.data.source import open_pairs
from clipling.models.hub import new_student, save_student
from tests.teaching import learned, teacher_config, teacher_folder
from tests.toy import toy_folder


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> Path:
    return toy_folder(tmp_path_factory.mktemp("learning") / "pairs", count=48)


@pytest.fixture(scope="session")
def val(tmp_path_factory) -> Path:
    return toy_folder(tmp_path_factory.mktemp("held-out") / "val", count=20, seed=1)


@pytest.fixture(scope="session")
def photos(pairs, tmp_path_factory) -> Path:
    """The pictures of the pairs without their captions."""
    folder = tmp_path_factory.mktemp("bare") / "photos"
    shutil.copytree(pairs, folder, ignore=shutil.ignore_patterns("*.txt"))
    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("".join(f"a {c} {s} on {g}\n" for c in ("red", "blue", "black") for s in ("disc", "bar") for g in ("white", "pink")))
    return path


def taught(config, pairs: Path, folder: Path, steps: int = 15) -> str:
    torch.set_num_threads(1)
    save_student(learned(new_student(config, seed=0), open_pairs(str(pairs)), steps), folder)
    return str(folder)


@pytest.fixture(scope="session")
def teacher(pairs, tmp_path_factory) -> str:
    """A `tiny_vit_32` that has learned the pairs."""
    return taught("tiny_vit_32", pairs, tmp_path_factory.mktemp("models") / "teacher")


@pytest.fixture(scope="session")
def other_teacher(pairs, tmp_path_factory) -> str:
    """One with another picture size, context length and embedding size than the students', which has learned the pairs."""
    return taught(teacher_config(), pairs, tmp_path_factory.mktemp("models") / "other", steps=40)


@pytest.fixture(scope="session")
def useless(tmp_path_factory) -> str:
    """A teacher that has learned nothing."""
    return teacher_folder(tmp_path_factory.mktemp("models") / "useless")
