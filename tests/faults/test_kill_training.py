"""Training killed with SIGKILL at random instants and resumed ends in the same bits."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch

from clipling.engine import trainer
from clipling.recipe import load_recipe, with_settings
from clipling.run import train
from tests.faults.killing import kill_by_progress, run_in_child
from tests.toy import toy_folder

pytestmark = [pytest.mark.faults, pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")]
WALL_CLOCK = ("seconds",)


def content(run):
    """What must be equal: weights, and every metric that is not a time."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((run / "summary.json").read_text())
    for found in [*lines, summary]:
        for key in WALL_CLOCK:
            found.pop(key, None)
    return (run / "model" / "open_clip_model.safetensors").read_bytes(), lines, summary


def test_a_killed_and_resumed_run_ends_in_the_same_bits(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    toy, val = toy_folder(tmp_path / "toy", count=96), toy_folder(tmp_path / "val", count=40, seed=1)
    recipe = with_settings(
        load_recipe("clip"),
        {
            "student.config": "tiny_vit_32",
            "data.source": str(toy),
            "data.val": str(val),
            "data.workers": 0,
            "optimiser.batch": 24,
            "optimiser.ema": 0.9,
            "stages.0.epochs": 8,
            "evaluation.log_every": 1,
        },
    )
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)  # a checkpoint after every step

    def whole():
        train(recipe, tmp_path / "whole", quiet=True)

    def again():
        train(recipe, tmp_path / "killed", resume=True, quiet=True)

    assert run_in_child(whole, None)
    kills = 0
    for seed in range(8):
        shutil.rmtree(tmp_path / "killed", ignore_errors=True)
        kills += kill_by_progress(again, tmp_path / "killed" / "checkpoints", kills=12 - kills, seed=seed)
        assert content(tmp_path / "killed") == content(tmp_path / "whole")
        if kills == 12:
            break
    assert kills == 12
