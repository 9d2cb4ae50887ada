"""Chance levels: against a count by brute force, and as they are printed."""

from __future__ import annotations

import numpy as np
import pytest

from clipling.evals.chance import chance, judged, remark, tells
from clipling.evals.retrieval import recall
from clipling.printing import in_order, text

METRICS = [f"{d}_recall@{k}" for d in ("t2i", "i2t") for k in (10, 5, 1)]


@pytest.mark.parametrize("captions", [1, 2])
def test_chance_is_what_random_features_reach(captions):
    rng, pairs = np.random.default_rng(0), 40
    made = []
    for _ in range(60):
        image, words = rng.normal(size=(pairs, 8)), rng.normal(size=(pairs * captions, 8))
        made.append(recall(image, words, np.arange(pairs + 1) * captions))
    for metric in METRICS:
        level = chance(metric, pairs)
        # Two captions of a picture can both be found, which counts once: a little below k / pairs.
        assert 0.85 * level - 0.005 < np.mean([m[metric] for m in made]) < 1.1 * level + 0.005


def test_the_largest_recall_that_tells_something():
    assert [judged(n) for n in (None, 50, 49, 25, 24, 5, 4, 1)] == [
        *("recall@10", "recall@10", "recall@5", "recall@5", "recall@1", "recall@1", None, None)
    ]
    assert chance("i2t_recall@10", 3) == 1.0
    assert chance("acc1", 3) is None
    assert tells("acc1", 3)
    assert remark(METRICS, 50) == ""
    assert "20 % at recall@5 and recall@10" in remark(METRICS, 24)
    assert remark(METRICS, 1).startswith("Only 1 held-out pair: too few")


def summary(pairs: int) -> dict:
    return {
        "name": "clip",
        "seed": 0,
        "train_pairs": 80,
        "val_pairs": pairs,
        "samples_seen": 640,
        "seconds": 3.0,
        "parameters": {"total_without_token_rows": 1e6},
        "untrained": dict.fromkeys(METRICS, 0.5),
        "val": dict.fromkeys(METRICS, 0.75),
    }


def rows(printed: str) -> list[list[str]]:
    return [line.split() for line in printed.splitlines() if "_recall@" in line or line.startswith("acc")]


def test_train_prints_chance_in_the_usual_order():
    printed = text("train", summary(40))
    assert [r[0] for r in rows(printed)] == [f"{d}_recall@{k}" for d in ("i2t", "t2i") for k in (1, 5, 10)]
    assert rows(printed)[2] == ["i2t_recall@10", "25.0", "50.0", "75.0"]
    assert "above 20 % at recall@10: judge by recall@5" in printed
    assert "too few to judge; give --val" in text("train", summary(4))
    assert "above 20 %" not in text("train", summary(400))
    both = text("train", {"name": "clip", "seeds": {0: summary(40), 1: summary(40)}})
    assert rows(both)[0][:4] == ["i2t_recall@1", "2.5", "75.0", "75.0"]


def test_eval_prints_warnings_first_and_chance():
    result = {"model": "m", "dataset": "d", "metrics": {"acc1": 0.5}, "size": {"images": 9, "classes": 4}, "warnings": ["seen before"]}
    printed = text("eval", result)
    assert printed.startswith("warning: seen before\n")
    assert rows(printed)[0] == ["acc1", "25.0", "50.0"]
    result = {"model": "m", "dataset": "d", "metrics": dict.fromkeys(METRICS, 1.0), "size": {"pairs": 3, "captions": 3}}
    assert rows(text("eval", result))[0] == ["i2t_recall@1", "33.3", "100.0"]
    assert "Only 3 given pairs: too few to judge" in text("eval", result)
    assert in_order(["acc1", "t2i_recall@1", "i2t_recall@10"]) == ["i2t_recall@10", "t2i_recall@1", "acc1"]
