"""Gloo processes train like one: same loss at every step, same weights to rounding (a student without batch statistics)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clipling.data.source import open_pairs
from clipling.models.hub import new_student, open_student, save_student
from tests.reinforcing import made
from tests.toy import toy_folder

ROOT = Path(__file__).resolve().parents[2]


def clipling(tmp_path: Path, recipe: str, out: str, world: int, *extra: str) -> None:
    launcher = (
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)] if world > 1 else [sys.executable]
    )
    command = [*launcher, "-m", "clipling", "train", recipe, "--data", str(tmp_path / "toy"), "--val", str(tmp_path / "val")]
    settings = ["--set", "data.workers=0", "evaluation.log_every=1", *extra]
    call = [*command, "--out", str(tmp_path / out), "--batch", "32", "--threads", "1", "--json", *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(call, capture_output=True, text=True, timeout=240, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr, done.stderr[-3000:]


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


TINY = ("student.config=tiny_vit_32",)
TAUGHT = ("teachers.teacher.model=teacher", "teachers.teacher.gate=false")
LENGTHS = ("stages.0.epochs=2", "stages.1.epochs=1", "objective.sparsity.options.warmup=2")
RECIPES = {
    "clip": (*TINY, "stages.0.epochs=3"),
    "clip_kd": (*TINY, *TAUGHT, "stages.0.epochs=3"),  # heads, and a teacher that every process asks for its own rows
    "mobileclip": (*TINY, "stages.0.epochs=3", "data.source=stored"),  # what is stored of the rows of each process, gathered
    "tinyclip_auto": (*TAUGHT, *LENGTHS),  # masks that all processes draw alike, and a surgery that all do
}


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
# What a teacher adds to two processes is in tinyclip_auto too.
@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=pytest.mark.slow) if name in ("clip_kd", "mobileclip") else name for name in RECIPES]
)
def test_two_processes_equal_one(recipe, tmp_path):
    toy_folder(tmp_path / "toy", count=110)
    toy_folder(tmp_path / "val", count=30, seed=1)
    save_student(new_student("tiny_vit_32", seed=5), tmp_path / "teacher")
    if recipe == "mobileclip":
        made(open_pairs(str(tmp_path / "toy")), tmp_path / "stored", ("rules",), shard=50)
    clipling(tmp_path, recipe, "one", 1, *RECIPES[recipe])
    clipling(tmp_path, recipe, "two", 2, *RECIPES[recipe])
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 9
    assert two == pytest.approx(one, rel=1e-5)
    a, b = (open_student(str(tmp_path / name)).state_dict() for name in ("one", "two"))
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_one_two_and_four_processes_agree_over_50_steps(tmp_path):
    """About 60 s."""
    toy_folder(tmp_path / "toy", count=330)
    toy_folder(tmp_path / "val", count=30, seed=1)
    for world in (1, 2, 4):
        clipling(tmp_path, "clip", str(world), world, *TINY, "stages.0.epochs=5", "evaluation.every=5")
    one, two, four = (losses(tmp_path / str(world)) for world in (1, 2, 4))
    assert len(one) == 50
    assert one[-1] < 0.9 * one[0]
    assert two == pytest.approx(one, rel=1e-5)
    assert four == pytest.approx(one, rel=1e-5)
