"""Runs under a teacher, with inherited weights or with masks and a surgery, killed with SIGKILL at random instants: the same bits."""

from __future__ import annotations

import shutil
import sys

import pytest
import torch

from clipling.engine import trainer
from clipling.recipe import load_recipe, with_settings
from clipling.run import train
from tests.engine.test_stages import content
from tests.faults.killing import kill_by_progress, run_in_child
from tests.teaching import teacher_config, teacher_folder
from tests.toy import toy_folder

pytestmark = [pytest.mark.faults, pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")]
KILLS = 8
SHARED = {"data.workers": 0, "optimiser.batch": 16, "optimiser.ema": 0.9, "max_steps": None, "evaluation.every": 1.0}
AUTO = {"objective.sparsity.options": {"target": 0.4, "warmup": 3, "lr": 0.3}, "stages.1.epochs": 1.0}


@pytest.mark.parametrize(
    ("name", "own"), [("tinyclip_auto", AUTO), pytest.param("tinyclip_manual", {"student.inherit.to": "60%"}, marks=pytest.mark.slow)]
)
def test_a_killed_and_resumed_run_ends_in_the_same_bits(tmp_path, monkeypatch, name, own):
    torch.set_num_threads(1)
    toy, val = toy_folder(tmp_path / "toy", count=64), toy_folder(tmp_path / "val", count=24, seed=1)
    # Eight steps: two stages of an epoch, or one of two.
    own = {"stages.0.epochs": 1.0 if name == "tinyclip_auto" else 2.0, **own}
    taught = {"teachers.teacher.model": teacher_folder(tmp_path / "teacher", teacher_config(32, 24, 64)), "teachers.teacher.gate": False}
    settings = {**SHARED, **taught, **own, "data.source": str(toy), "data.val": str(val), "student.vocabulary": "restricted"}
    recipe = with_settings(load_recipe(name, smoke=True), settings)
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)  # a checkpoint after every step
    assert run_in_child(lambda: train(recipe, tmp_path / "whole", quiet=True), None)
    kills = 0
    for seed in range(4):
        shutil.rmtree(tmp_path / "killed", ignore_errors=True)
        again = lambda: train(recipe, tmp_path / "killed", resume=True, quiet=True)  # noqa: E731
        kills += kill_by_progress(again, tmp_path / "killed" / "checkpoints", kills=KILLS - kills, seed=seed)
        assert content(tmp_path / "killed") == content(tmp_path / "whole")
        if kills == KILLS:
            break
    assert kills == KILLS
