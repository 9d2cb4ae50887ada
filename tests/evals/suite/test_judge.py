"""The first lines of the report: paired gaps by the bootstrap, and no gain claimed that the intervals do not show."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from clipling.evals.intervals import interval
from clipling.evals.results import CLASSIFICATION, RETRIEVAL, Result, write_result
from clipling.evals.suite import judge
from clipling.evals.suite.compared import ModelResults
from clipling.evals.suite.found import Found
from clipling.evals.suite.items import ITEMS, lengths, save_items


@pytest.fixture
def make(tmp_path):
    """Writes a classification result with per-picture hits and returns its model."""

    def one(label, hits, *, role="model", dataset="cats", budget=None, data_hash="d", owner="hash of a", inputs="i", units=None, **changes):
        model, _, tag = label.partition(" ")
        hits = np.asarray(hits, dtype=np.float64)
        result = Result(
            dataset=dataset,
            model=model,
            pretrained=tag,
            task=CLASSIFICATION,
            metrics={"acc1": float(hits.mean())},
            data_hash=data_hash,
            budget=budget or {"samples_seen": 100, "parameters": 10},
            model_hash=f"hash of {label}",
            **changes,
        )
        found = Found(metrics={}, items={"acc1": hits}, units={} if units is None else {"acc1": units})
        result.made = {"inputs": inputs, "items": lengths(found), **({"start_of": [owner]} if role == "untrained" else {})}
        write_result(result, tmp_path)
        save_items(tmp_path / ITEMS / f"{result.filename().removesuffix('.json')}.npz", found)
        return ModelResults(label, 0, [result], role, {(dataset, CLASSIFICATION): tmp_path})

    return one


def hits(share, n=400, seed=0):
    return np.random.default_rng(seed).random(n) < share


def test_gaps_are_paired_bootstrap_differences(make):
    a, b = hits(0.6), hits(0.4, seed=1)
    found = judge.compare([make("a", a), make("b", b)])
    (gap,) = found.gaps
    assert gap.mean == pytest.approx(a.mean() - b.mean())
    assert (gap.low, gap.high) == interval(a.astype(float) - b)
    assert (gap.a, gap.b, gap.metric, gap.items) == ("a", "b", "acc1", 400)
    assert (found.title, found.tone) == ("Better everywhere", "gain")
    back = judge.compare([make("b", b), make("a", a)])
    assert back.gaps[0].mean == pytest.approx(-gap.mean)
    assert (back.title, back.tone) == ("Worse", "loss")


def test_noise_is_no_difference(make):
    a, b = hits(0.5), hits(0.5, seed=2)
    low, high = interval(a.astype(float) - b)
    assert low < 0 < high
    found = judge.compare([make("a", a), make("b", b)])
    assert found.title == "No difference shown"
    assert "cannot be told apart" in found.text


def test_pairing_is_what_makes_a_small_gain_visible(make):
    base = hits(0.5)
    better = base.copy()
    better[np.flatnonzero(~base)[:8]] = True  # 2 points, on the same pictures
    assert judge.compare([make("a", better), make("b", base)]).title == "Better everywhere"


def test_training_that_does_not_beat_its_start_says_so_first(make):
    found = judge.compare([make("a", hits(0.30)), make("s", hits(0.29, seed=3), role="untrained")])
    assert found.tone == "loss"
    assert found.text.startswith("a does not beat its untrained start beyond the 95 % interval in acc1 of cats")


def test_a_ready_model_that_is_as_good_is_said_first(make):
    models = [make("a", hits(0.5)), make("s", hits(0.1, seed=3), role="untrained"), make("clip", hits(0.8, seed=4), role="ready")]
    found = judge.compare(models)
    assert (found.title, found.tone) == ("A ready model is no worse", "loss")
    assert found.text.startswith("a does not beat the ready-made clip")
    assert any(line.startswith("a beats its untrained start") for line in found.points)


def test_a_start_of_another_model_decides_nothing(make):
    models = [make("a", hits(0.30)), make("s", hits(0.99, seed=3), role="untrained", owner="hash of b")]
    found = judge.compare(models)
    assert found == judge.compare(models[:1])


def test_a_start_without_an_owner_is_not_compared(make):
    start = make("s", hits(0.99, seed=3), role="untrained")
    start.results[0].made.pop("start_of")
    found = judge.compare([make("a", hits(0.30)), start])
    assert (found.tone, found.gaps) == ("plain", [])
    assert any("s do not say which model's start it is" in line for line in found.warnings)


@pytest.mark.parametrize("role", ["untrained", "ready", "model"])
@pytest.mark.parametrize("whose", ["a", "s"])
def test_missing_items_are_said_first_and_are_never_neutral(make, tmp_path, role, whose):
    models = [make("a", hits(0.30)), make("s", hits(0.99, seed=3), role=role)]
    (path,) = (tmp_path / ITEMS).glob(f"*_{whose}_*")
    path.unlink()
    found = judge.compare(models)
    assert (found.title, found.tone, found.gaps) == ("Could not be compared", "loss", [])
    assert found.text.startswith("a and s could not be compared in acc1 of cats: per-item values are missing")


def test_the_title_is_decided_by_roles_and_not_by_words(make):
    """The ready model's name occurs in the sentence about the start; it is beaten, and the title must not blame it."""
    models = [
        make("a", hits(0.5)),
        make("start", hits(0.5, seed=3), role="untrained"),
        make("start ready", hits(0.1, seed=4), role="ready"),
    ]
    models[2] = dataclasses.replace(models[2], label="untrained start")
    found = judge.compare(models)
    assert found.title == "Training did not help everywhere"


def test_intervals_of_differences_draw_units_together(make):
    a, b = np.repeat(hits(0.6, 100), 4).astype(float), np.repeat(hits(0.5, 100, 1), 4).astype(float)
    unit = np.repeat(np.arange(100), 4)
    (gap,) = judge.compare([make("a", a, units=unit), make("b", b, units=unit)]).gaps
    assert (gap.low, gap.high) == interval(a - b, unit)
    assert gap.high - gap.low > 1.5 * np.ptp(interval(a - b))


@pytest.mark.parametrize(
    ("change", "why"), [({"prompts": ["the {c}"]}, "other prompts"), ({"inputs": "j"}, "other templates or files beside the data")]
)
def test_what_was_asked_otherwise_is_not_compared(make, change, why):
    found = judge.compare([make("a", hits(0.6)), make("b", hits(0.4, seed=1), **change)])
    assert found.gaps == []
    assert f"b on cats (zeroshot_classification) was measured with {why}: not compared." in found.warnings


def test_other_queries_are_not_compared(make):
    models = [make("a", hits(0.6)), make("b", hits(0.4, seed=1), inputs="j")]
    for model in models:
        result = model.results[0]
        result.task, result.metrics = "queries", {"ndcg@10": 0.5}
    assert "b on cats (queries) was measured with other queries: not compared." in judge.compare(models).warnings


def test_a_result_without_the_metric_is_no_traceback(make):
    model = make("a", hits(0.6))
    model.results[0].metrics.clear()
    assert judge.compare([model]).title == "Measured"


@pytest.mark.parametrize(("seen", "differs"), [(100.5, False), (103, True)])
def test_budgets_may_differ_by_one_percent(make, seen, differs):
    other = make("b", hits(0.4, seed=1), budget={"samples_seen": seen, "parameters": 10})
    found = judge.compare([make("a", hits(0.6)), other])
    assert any("budgets" in line for line in found.warnings) == differs


def test_budgets_that_differ_are_warned_of(make):
    rich = {"samples_seen": 300, "parameters": 10}
    found = judge.compare([make("a", hits(0.6)), make("b", hits(0.4, seed=1), budget=rich)])
    assert "The budgets of a and b differ: 100 samples seen against 300." in found.warnings
    same = judge.compare([make("a", hits(0.6)), make("c", hits(0.4, seed=1))])
    assert not [w for w in same.warnings if "budget" in w]


def test_other_data_is_not_compared(make):
    found = judge.compare([make("a", hits(0.6)), make("b", hits(0.4, seed=1), data_hash="other")])
    assert found.gaps == []
    assert found.title == "Not comparable"
    assert "b on cats (zeroshot_classification) was measured with other data: not compared." in found.warnings


def test_seeds_are_paired(make):
    a = [make(f"ping seed{s}-x", hits(0.5 + 0.01 * s, seed=s)) for s in range(3)]
    b = [make(f"clip seed{s}-x", hits(0.4 + 0.01 * s, seed=s)) for s in range(3)]
    found = judge.compare([*a, *b])
    (line,) = [p for p in found.points if p.startswith("Over 3 seeds, ping − clip")]
    apart = [x.results[0].metrics["acc1"] - y.results[0].metrics["acc1"] for x, y in zip(a, b)]
    assert f"{100 * np.mean(apart):+.1f} ± {100 * np.std(apart, ddof=1):.1f}" in line


def test_recall_is_judged_where_chance_is_low():
    def result(pairs):
        metrics = {f"{way}_recall@{k}": 0.5 for way in ("i2t", "t2i") for k in (1, 5, 10)}
        return Result(dataset="d", model="m", task=RETRIEVAL, metrics=metrics, size={"pairs": pairs})

    assert judge.main_metrics(result(1000)) == ["i2t_recall@10", "t2i_recall@10"]
    assert judge.main_metrics(result(30)) == ["i2t_recall@5", "t2i_recall@5"]
    assert judge.main_metrics(result(2)) == []
