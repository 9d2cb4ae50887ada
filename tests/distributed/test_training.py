"""Two gloo processes train like one: same loss at every step, same weights to rounding (a student without batch statistics)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clipling.models.hub import open_student
from tests.toy import toy_folder

ROOT = Path(__file__).resolve().parents[2]


def clipling(tmp_path: Path, out: str, world: int, *extra: str) -> None:
    launcher = (
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)] if world > 1 else [sys.executable]
    )
    command = [*launcher, "-m", "clipling", "train", "clip", "--data", str(tmp_path / "toy"), "--val", str(tmp_path / "val")]
    settings = ["--set", "data.workers=0", "evaluation.log_every=1", "student.config=tiny_vit_32", *extra]
    call = [*command, "--out", str(tmp_path / out), "--epochs", "3", "--batch", "32", "--threads", "1", "--json", *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(call, capture_output=True, text=True, timeout=240, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_equal_one(tmp_path):
    toy_folder(tmp_path / "toy", count=110)
    toy_folder(tmp_path / "val", count=30, seed=1)
    clipling(tmp_path, "one", 1)
    clipling(tmp_path, "two", 2)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 9
    assert two == pytest.approx(one, rel=1e-5)
    a, b = (open_student(str(tmp_path / name)).state_dict() for name in ("one", "two"))
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=1e-3, atol=1e-4)
