"""Run folders read back: seeds gathered, kinds told apart, broken folders explained."""

from __future__ import annotations

import pytest

from clipling.errors import UserError
from clipling.evals.measure import budget
from clipling.evals.runs import arms, baseline_of, read_events, read_run
from tests.evals.folders import make_run

GUIDE = {"control": "none"}


def test_seeds_of_one_name_are_one_arm_sorted(tmp_path):
    runs = [read_run(make_run(tmp_path / f"r{s}", name="clip", seed=s)) for s in (2, 0)]
    (arm,) = arms(runs)
    assert (arm.label, arm.seeds) == ("clip", [0, 2])


def test_runs_of_one_name_and_seed_are_told_apart_by_their_folders(tmp_path):
    runs = [read_run(make_run(tmp_path / p / "ping", name="ping")) for p in ("small", "large")]
    assert [a.label for a in arms(runs)] == ["small/ping", "large/ping"]
    with pytest.raises(UserError, match="more than once"):
        arms([runs[0], runs[0]])


def test_runs_with_other_settings_are_no_seeds_of_each_other(tmp_path):
    """One name, different seeds, and something else that differs: never one row with a spread."""
    slow, quick = {"optimiser": {"lr": 1e-3}}, {"optimiser": {"lr": 2e-3}}
    runs = [read_run(make_run(tmp_path / f, seed=s, recipe=r)) for f, s, r in (("slow", 0, slow), ("quick", 1, quick))]
    assert [(a.label, a.seeds) for a in arms(runs)] == [("slow", [0]), ("quick", [1])]
    places = [(f, s) for f in ("slow", "quick") for s in (0, 1)]
    runs = [read_run(make_run(tmp_path / "b" / f / f"seed-{s}", seed=s, recipe=slow if f == "slow" else quick)) for f, s in places]
    assert [(a.label, a.seeds) for a in arms(runs)] == [("slow", [0, 1]), ("quick", [0, 1])]
    apart = [read_run(make_run(tmp_path / "c" / f"{i}", seed=i, recipe=slow if i < 2 else quick)) for i in range(3)]
    assert [a.label for a in arms(apart)] == ["0 and 1 more", "2"], "folders that lie side by side"


def test_runs_of_another_budget_are_no_seeds_of_each_other(tmp_path):
    runs = [read_run(make_run(tmp_path / str(n), seed=i, samples=n)) for i, n in enumerate((6400, 64))]
    found = arms(runs)
    assert [a.label for a in found] == ["6400", "64"]
    assert [budget(a)["samples_seen"] for a in found] == [6400, 64]


@pytest.mark.parametrize(
    ("guide", "recipe", "kind"),
    [
        (None, {}, "plain"),
        (GUIDE, {}, "guided"),
        ({"control": "random"}, {}, "control"),
        (None, {"student": {"init": {"image": "efficientnet_lite0"}}}, "other"),
        (None, {"stages": [{"freeze": []}, {"freeze": ["image"]}]}, "other"),
    ],
)
def test_kind_is_read_from_the_recipe(tmp_path, guide, recipe, kind):
    assert read_run(make_run(tmp_path / "r", guide=guide, recipe=recipe)).kind == kind


def test_baseline_is_plain_clip_unless_named(tmp_path):
    names = {"lit": {"recipe": {"student": {"init": {"image": "x"}}}}, "siglip": {}, "clip": {}, "ping": {"guide": GUIDE}}
    found = arms([read_run(make_run(tmp_path / n, name=n, **more)) for n, more in names.items()])
    assert baseline_of(found).label == "clip"
    assert baseline_of(found[:2]).label == "siglip"
    assert baseline_of(found[3:]) is None
    assert baseline_of(found, "ping").label == "ping"
    with pytest.raises(UserError, match="lit, siglip, clip, ping"):
        baseline_of(found, "clap")


def test_a_log_cut_by_a_kill_and_resumed_is_read(tmp_path):
    lines = [
        '{"kind": "train", "step": 1, "loss": 3.0}',
        '{"kind": "train", "step": 0, "loss": 4.0}',
        '{"kind": "train", "step": 1, "loss": 2.5}',
        '{"kind": "val", "step": 1, "metrics": {}}',
        '{"kind": "train", "st',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    events = read_events(tmp_path / "metrics.jsonl")
    assert [(e["kind"], e["step"], e.get("loss")) for e in events] == [("train", 0, 4.0), ("train", 1, 2.5), ("val", 1, None)]


def test_folders_that_are_no_finished_runs_are_explained(tmp_path):
    with pytest.raises(UserError, match="not a folder"):
        read_run(tmp_path / "missing")
    with pytest.raises(UserError, match=r"no summary\.json and no recipe\.yaml"):
        read_run(tmp_path)
    (tmp_path / "recipe.yaml").write_text("name: clip")
    with pytest.raises(UserError, match="has not finished"):
        read_run(tmp_path)
    (tmp_path / "summary.json").write_text('{"name": "clip"}')
    with pytest.raises(UserError, match="lacks seed, samples_seen"):
        read_run(tmp_path)
