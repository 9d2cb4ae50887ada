"""The pilots on a toy source: run through the one training loop, continued where they stopped, and judged."""

from __future__ import annotations

import json

import numpy as np
import pytest

from clipling.errors import UserError
from clipling.planning import pilot as piloting
from clipling.planning.pilot import Done, run_pilot, seconds, verdict
from clipling.printing import text
from clipling.recipe import load_recipe, with_settings
from tests.toy import toy_folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    train, val = toy_folder(folder / "pairs", count=150), toy_folder(folder / "val", count=60, seed=1)
    small = {"student.config": "tiny_vit_32", "optimiser.batch": 8, "stages.0.epochs": 4, "data.workers": 0}
    return with_settings(load_recipe("clip"), {**small, "data.source": str(train), "data.val": str(val)})


def test_a_pilot_runs_its_ladder_once_and_forecasts(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(piloting, "_speed", lambda recipe: 1000.0)
    made = run_pilot(recipe, tmp_path / "pilot", 60, targets=[100_000], larger="tiny_vit_32")
    assert [p["pairs"] for p in made["pilots"]] == [8, 16, 40, 40, 40]
    assert max(p["pairs"] for p in made["pilots"]) <= 0.3 * 150
    assert [f["what"] for f in made["forecasts"]] == [
        *("all pairs, the recipe", "twice the time", "twice the pairs", "100000 pairs", "larger student, all pairs"),
    ]
    for found in (*made["forecasts"], *made["pilots"]):
        assert 0 <= found["low"] <= found["recall"] <= found["high"] <= 1
    assert json.loads((tmp_path / "pilot" / "pilot.json").read_text())["verdict"] == made["verdict"]
    for pilot in made["pilots"]:
        lines = (tmp_path / "pilot" / pilot["name"] / "metrics.jsonl").read_text().splitlines()
        assert sum('"kind": "val"' in line for line in lines) == 2, "measured before and after, not while"
    printed = text("plan", made)
    assert "larger student" in printed
    assert made["verdict"] in printed
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "pilot").rglob("summary.json")}
    # The ladder does not move when the machine is quicker today, and finished pilots are not run again.
    monkeypatch.setattr(piloting, "_speed", lambda recipe: 5.0)
    again = run_pilot(recipe, tmp_path / "pilot", 60, larger="tiny_vit_32", against=[str(tmp_path / "pilot" / made["pilots"][-1]["name"])])
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "pilot").rglob("summary.json")} == before
    assert again["pilots"] == made["pilots"]
    (ready,) = again["against"].values()
    assert ready["recall"] == pytest.approx(made["pilots"][-1]["recall"]), "the model that was saved is the one that was measured"


def test_a_pilot_that_was_stopped_goes_on_to_the_same_forecast(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(piloting, "_speed", lambda recipe: 1000.0)
    whole = run_pilot(recipe, tmp_path / "whole", 60, quiet=True)
    real, runs = piloting.train, []

    def stops(*arguments, **options):
        runs.append(arguments[1])
        if len(runs) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(piloting, "train", stops)
    with pytest.raises(KeyboardInterrupt):
        run_pilot(recipe, tmp_path / "stopped", 60, quiet=True)
    monkeypatch.setattr(piloting, "train", real)
    assert run_pilot(recipe, tmp_path / "stopped", 60, quiet=True)["forecasts"] == whole["forecasts"]


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"data.limit": 20}, {}, "data.limit would be ignored"),
        ({}, {"guidance": "ping"}, "guided already"),
        ({"optimiser.batch": 64}, {}, "--batch"),
    ],
)
def test_what_cannot_be_piloted_is_refused(recipe, tmp_path, changes, options, message, monkeypatch):
    monkeypatch.setattr(piloting, "_speed", lambda recipe: 1000.0)
    changed = with_settings(recipe, changes)
    if options:
        changed = with_settings(load_recipe("ping"), {"data.source": recipe.data.source})
    with pytest.raises(UserError, match=message):
        run_pilot(changed, tmp_path / "pilot", 60, guidance=bool(options))


def test_guidance_is_the_recipe_and_ping_beside_it(recipe):
    made = piloting._variants(recipe, None, True)["guidance"]
    assert made.guide is not None
    assert list(made.objective) == ["clip", "ping"]
    assert made.student == recipe.student
    assert made.optimiser == recipe.optimiser


def of(low, value, high, **more):
    return {"what": "all pairs", "recall": value, "low": low, "high": high, **more}


@pytest.mark.parametrize(
    ("best", "ready", "expected"),
    [
        (of(0.1, 0.2, 0.3), None, "forecast to reach 10.0 to 30.0 %"),
        (of(0.1, 0.2, 0.3), of(0.4, 0.5, 0.6), "do not train this"),
        (of(0.5, 0.6, 0.7), of(0.2, 0.3, 0.4), "train: 50.0 to 70.0"),
        (of(0.2, 0.3, 0.5), of(0.3, 0.35, 0.4), "open: "),
        (of(0.1, 0.2, 0.9, why_not="the interval is wide"), of(0.3, 0.35, 0.4), "cannot forecast: the interval is wide"),
    ],
)
def test_should_i_train_at_all(best, ready, expected):
    made = {"forecasts": [best], "against": {"M": ready} if ready else {}, "chance": 0.01}
    assert verdict(made).startswith(expected) or expected in verdict(made)


def test_times():
    assert [seconds(t) for t in ("90s", "10m", "1.5h")] == [90, 600, 5400]
    for wrong in ("10", "m", "-1m", ""):
        with pytest.raises(UserError):
            seconds(wrong)


def test_forecasts_use_the_samples_that_were_really_seen(recipe):
    pilots = [piloting.Planned(str(n), n, 4.0) for n in (8, 16, 40, 80)]
    done = [Done(4 * n // 8 * 8, np.full(101, 0.05 * n**0.3)) for n in (8, 16, 40, 80)]
    rows = piloting._forecasts(recipe, done, {}, pilots, 1000, None, 1000)["forecasts"]
    assert rows[0]["recall"] == pytest.approx(0.05 * 1000**0.3, rel=0.3)
    assert rows[2]["recall"] > rows[0]["recall"]
    few = piloting._forecasts(recipe, done, {}, pilots, 1000, None, 12)["forecasts"]
    assert all("of 12 held-out pairs chance alone finds 83 %" in row["why_not"] for row in few)


@pytest.mark.slow
def test_a_longer_pilot_with_variants_goes_into_the_same_folder(recipe, tmp_path, monkeypatch):
    """What the verdict advises: "a longer pilot narrows the interval"."""
    monkeypatch.setattr(piloting, "_speed", lambda recipe: 1000.0)
    ran = []
    monkeypatch.setattr(piloting, "_run", lambda recipe, folder, val, quiet: ran.append(folder) or Done(160, np.full(2001, 0.3)))
    for budget, larger in ((0.8, "tiny_vit_32"), (60, "tiny_vit_32"), (60, "mobilenetv3_small_64")):
        run_pilot(recipe, tmp_path / "pilot", budget, larger=larger, guidance=True)
    beside = [folder.name for folder in ran if not folder.name.startswith("pairs-")]
    assert len(beside) == 6
    assert len(set(beside)) == 5, "another time, or another student, is another run; the same guided one is not run again"


@pytest.mark.parametrize("count", [1, 10])
def test_a_pilot_on_so_few_held_out_pairs_that_any_model_finds_them_is_refused(recipe, tmp_path, count, monkeypatch):
    monkeypatch.setattr(piloting, "train", lambda *a, **k: pytest.fail("no pilot need be run"))
    few = with_settings(recipe, {"data.val": str(toy_folder(tmp_path / "few", count=count, seed=2))})
    with pytest.raises(UserError, match=f"of {count} held-out pairs chance alone finds 100 %: give more by --val"):
        run_pilot(few, tmp_path / "out", 60)
