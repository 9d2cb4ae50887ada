"""`clipling demo`, small: what it makes, and that a second call keeps it."""

from __future__ import annotations

import json

import pytest

from clipling import walkthrough
from clipling.cli import main


@pytest.mark.slow
def test_the_demo_makes_two_runs_and_a_report_and_keeps_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(walkthrough.COMMON, "student.config", "tiny_vit_32")
    monkeypatch.setitem(walkthrough.COMMON, "data.workers", 0)
    call = ["demo", "--out", str(tmp_path / "demo"), "--epochs", "1", "--threads", "1", "--resume"]
    assert main(call) == 0
    out = capsys.readouterr().out
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert "OpenMoji" in page
    assert "clipling train ping --data YOUR_FOLDER" in out
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "demo").rglob("*.safetensors")}
    assert len(before) == 2
    for run in ("clip", "ping"):
        test = json.loads((tmp_path / "demo" / run / "eval" / "emoji_test_retrieval.json").read_text())
        assert test["size"]["pairs"] == 300
        shown = f"{100 * test['metrics']['i2t_recall@10']:.1f}"
        assert shown in out
        assert shown in page
    assert main(call) == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert "finished and kept" in capsys.readouterr().err
