"""Pilots killed with SIGKILL at random instants and begun again: what is finished is not repeated, and the forecast is the same."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from clipling.planning import pilot as piloting
from clipling.planning.pilot import run_pilot
from clipling.recipe import load_recipe, with_settings
from tests.faults.killing import run_in_child
from tests.toy import toy_folder

pytestmark = [pytest.mark.faults, pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")]
SPEEDS = [1000.0, 700.0, 2000.0]  # as measured by one start and the next: the ladder must not move


def finished(folder) -> dict:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/summary.json")}


@pytest.mark.slow
def test_killed_pilots(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    train, val = toy_folder(tmp_path / "pairs", count=150), toy_folder(tmp_path / "val", count=60, seed=1)
    small = {"student.config": "tiny_vit_32", "optimiser.batch": 8, "stages.0.epochs": 4, "data.workers": 0}
    recipe = with_settings(load_recipe("clip"), {**small, "data.source": str(train), "data.val": str(val)})
    monkeypatch.setattr(piloting, "_speed", lambda recipe: SPEEDS[0])
    assert run_in_child(lambda: run_pilot(recipe, tmp_path / "whole", 60, quiet=True), None)

    seen: dict[str, int] = {}
    pauses = [0.05, 0.3, 0.5, 0.8, 1.1, 1.4]
    for number, pause in enumerate([*pauses, None]):
        monkeypatch.setattr(piloting, "_speed", lambda recipe, number=number: SPEEDS[0 if number < 2 else number % 3])
        done = run_in_child(lambda: run_pilot(recipe, tmp_path / "killed", 60, quiet=True), pause)
        now = finished(tmp_path / "killed")
        assert now | seen == now, "a finished pilot was run again"
        seen = now
        if done:
            break
    assert number >= 3
    whole, again = (json.loads((tmp_path / name / "pilot.json").read_text()) for name in ("whole", "killed"))
    assert again == whole
