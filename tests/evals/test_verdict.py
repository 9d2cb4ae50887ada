"""The first line of a report is honest: every way in which a comparison can fail to show a gain is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipling.evals.compare import compare
from tests.evals.folders import METRICS, make_run

GUIDE = {"control": "none"}


@pytest.fixture(autouse=True)
def _no_page(monkeypatch):
    """These tests are about what is said, not about how it looks."""
    monkeypatch.setattr("clipling.evals.compare.write_report", lambda *_: None)


def compared(tmp_path: Path, *runs: dict, **options) -> dict:
    folders = [make_run(tmp_path / f"run{i}", **run) for i, run in enumerate(runs)]
    return compare(folders, tmp_path / "report.html", **options)


def seeds(name: str, levels: list[float], **more) -> list[dict]:
    return [{"name": name, "seed": s, "level": level, **more} for s, level in enumerate(levels)]


def test_a_gain_beyond_twice_the_spread_is_one(tmp_path):
    made = compared(tmp_path, *seeds("clip", [0.2, 0.22, 0.18]), *seeds("ping", [0.25, 0.275, 0.235], guide=GUIDE))
    assert made["tone"] == "gain"
    assert made["verdict"].startswith("ping beats plain CLIP at the same budget: 28.8 % recall@10 against 23.5 %.")
    difference = made["rows"][1]["difference"]["recall@10"]["seeds"]
    assert difference["values"] == pytest.approx([0.05, 0.055, 0.055])
    assert "+5.3 points" in made["verdict"]


def test_a_gain_within_the_spread_is_none(tmp_path):
    made = compared(tmp_path, *seeds("clip", [0.20, 0.22, 0.18]), *seeds("ping", [0.22, 0.20, 0.21], guide=GUIDE))
    assert made["tone"] == "unclear"
    assert made["verdict"].startswith("No difference is shown between ping and plain CLIP")
    assert "not more than twice its spread over 3 seeds" in made["verdict"]


def test_seeds_that_only_one_arm_has_are_left_out_of_the_first_line(tmp_path):
    made = compared(tmp_path, *seeds("clip", [0.20, 0.21, 0.9]), *seeds("ping", [0.30, 0.311], guide=GUIDE))
    assert made["verdict"].startswith("ping beats plain CLIP at the same budget: 34.0 % recall@10 against 24.0 %.")
    assert "the seeds that both have (0, 1)" in made["verdict"]
    assert made["rows"][0]["metrics"]["recall@10"]["value"] == pytest.approx((0.20 + 0.21 + 0.9) / 3 + 0.035)


def test_a_loss_is_said(tmp_path):
    made = compared(tmp_path, *seeds("clip", [0.30, 0.31]), *seeds("ping", [0.20, 0.211], guide=GUIDE))
    assert made["tone"] == "loss"
    assert "ping is worse than plain CLIP" in made["verdict"]


def test_one_seed_without_interval_is_no_result(tmp_path):
    made = compared(tmp_path, {"level": 0.2}, {"name": "ping", "level": 0.4, "guide": GUIDE})
    assert made["tone"] == "unclear"
    assert "not a result yet" in made["verdict"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"samples": 12_800}, "12,800 samples seen against 6,400"),
        ({"summary": {"train_pairs": 320}}, "320 training pairs against 640"),
        ({"summary": {"parameters": {"total": 9_000_000, "total_without_token_rows": 1}}}, "9,000,000 parameters"),
    ],
)
def test_unequal_budgets_forbid_a_gain(tmp_path, change, words):
    made = compared(tmp_path, *seeds("clip", [0.2, 0.21]), *seeds("ping", [0.4, 0.411], guide=GUIDE, **change))
    assert made["tone"] == "unequal"
    assert "does not show what guidance is worth" in made["verdict"]
    assert any(words in warning for warning in made["warnings"])


def test_seconds_are_stated_with_the_budget(tmp_path):
    made = compared(tmp_path, {}, {"name": "ping", "guide": GUIDE, "summary": {"seconds": 90.0}})
    assert "ping took 1.50 times the seconds of clip" in made["verdict"]


def test_a_run_that_learned_nothing_is_the_first_thing_said(tmp_path):
    start = dict.fromkeys(METRICS, 0.2)
    made = compared(tmp_path, {"level": 0.2, "summary": {"untrained": start}}, {"name": "ping", "guide": GUIDE, "level": 0.3})
    assert made["verdict"].startswith("clip (seed 0) does not beat its untrained start on val: 23.5 % recall@10 against 20.0 %")


def test_without_a_baseline_nothing_is_claimed(tmp_path):
    made = compared(tmp_path, {"name": "ping", "guide": GUIDE})
    assert made["tone"] == "alone"
    assert "cannot be said" in made["verdict"]


def test_controls_are_not_the_winner(tmp_path):
    made = compared(
        tmp_path,
        *seeds("clip", [0.2, 0.21]),
        *seeds("random", [0.4, 0.41], guide={"control": "random"}),
        *seeds("ping", [0.3, 0.311], guide=GUIDE),
    )
    assert made["verdict"].startswith("ping beats")
    assert "With random neighbours (random) it is 44.0 %, no less than ping" in made["warnings"][0]


def test_the_best_of_several_is_called_that(tmp_path):
    arms = [run for i, n in enumerate("abc") for run in seeds(n, [0.3 + i / 50, 0.31 + i / 50], guide=GUIDE)]
    made = compared(tmp_path, *seeds("clip", [0.2, 0.211]), *arms)
    assert made["verdict"].startswith("c beats")
    assert "best of 3 guided arms" in made["verdict"]


def test_runs_on_different_data_are_warned_about(tmp_path):
    made = compared(tmp_path, {"source": "photos"}, {"name": "ping", "guide": GUIDE, "source": "other"})
    assert any("different data" in warning for warning in made["warnings"])


@pytest.mark.parametrize(("pairs", "metric"), [(50, "recall@10"), (49, "recall@5"), (24, "recall@1")])
def test_a_recall_that_chance_reaches_does_not_judge(tmp_path, pairs, metric):
    """recall@k judges only where k / pairs is at most 20 %."""
    small = {"summary": {"val_pairs": pairs}}
    made = compared(tmp_path, *seeds("clip", [0.2, 0.21], **small), *seeds("ping", [0.4, 0.411], guide=GUIDE, **small))
    assert made["judged_by"] == metric
    assert f"{metric} against" in made["verdict"].splitlines()[0]
    plain = {"recall@10": "24.0", "recall@5": "23.0", "recall@1": "22.0"}[metric]  # level 0.205 + 0.015 + 0.01 each
    assert f"against {plain} %" in made["verdict"]
    assert ("so this is judged by" in made["verdict"]) == (metric != "recall@10")
    assert f"chance, {pairs} pairs" in made["table"]
    assert f"{100 * 10 / pairs:.1f}" in made["table"]


def test_too_few_pairs_judge_nothing(tmp_path):
    small = {"summary": {"val_pairs": 4, "untrained": dict.fromkeys(METRICS, 0.9)}}
    made = compared(tmp_path, *seeds("clip", [0.2, 0.21], **small), *seeds("ping", [0.9, 0.911], guide=GUIDE, **small))
    assert made["verdict"].startswith("Only 4 held-out pairs: too few to judge; give --val.")
    assert "beat" not in made["verdict"]
    assert made["tone"] == "unclear"


def test_the_start_is_judged_by_what_chance_does_not_reach(tmp_path):
    """recall@10 of 12 pairs is high before training; recall@1 shows what was learned, or that nothing was."""
    saturated = {"i2t_recall@1": 0.02, "t2i_recall@1": 0.02} | {f"{d}_recall@{k}": 0.9 for d in ("i2t", "t2i") for k in (5, 10)}
    made = compared(tmp_path, {"level": 0.7, "summary": {"untrained": saturated, "val_pairs": 12}})
    assert "does not beat its untrained start" not in made["verdict"]
    made = compared(tmp_path / "b", {"level": 0.02, "summary": {"untrained": saturated, "val_pairs": 12}})
    assert "does not beat its untrained start on val: 3.5 % recall@1 against 2.0 %" in made["verdict"]


@pytest.mark.parametrize(("best", "said"), [("mean_recall", True), ("recall@10", True), ("last", False)])
def test_checkpoints_chosen_on_val_are_said(tmp_path, best, said):
    made = compared(tmp_path, {"recipe": {"evaluation": {"best": best}}})
    lines = [w for w in made["warnings"] if f"chosen on these val pairs (by {best})" in w]
    assert len(lines) == said
