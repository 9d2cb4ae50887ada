"""Watched sets: the inner evaluator's numbers under names that are never taken for the run's own."""

from __future__ import annotations

import numpy as np
import pytest

from clipling.data.classes import LabelledImages
from clipling.data.source import open_pairs
from clipling.engine.trainer import best_value
from clipling.errors import UserError
from clipling.evals.evaluators import Retrieval, ZeroShot
from clipling.evals.watch import Watch, kept, watched
from clipling.models.hub import new_student
from tests.toy import toy_folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return open_pairs(str(toy_folder(tmp_path_factory.mktemp("toy") / "pairs", count=20)))


@pytest.fixture(scope="module")
def student():
    return new_student("tiny_vit_32", seed=3)


def test_the_numbers_are_the_inner_evaluators(pairs, student):
    labelled = LabelledImages("toy", pairs.keys, pairs.locations, np.arange(20) % 3, ["red", "green", "blue"], ["a {c} thing"])
    for name, inner in (("old pairs", Retrieval(pairs)), ("colours", ZeroShot(labelled))):
        plain = dict(inner(student))
        found = dict(Watch(name, inner)(student))
        assert plain
        assert found == {f"watch/{name}/{metric}": value for metric, value in plain.items()}
        assert watched({**plain, **found}) == {name: plain}


def test_the_best_checkpoint_is_not_chosen_by_a_watched_set():
    own = {"i2t_recall@1": 0.1, "t2i_recall@1": 0.3, "i2t_recall@10": 0.2, "t2i_recall@10": 0.6}
    seen = dict(Watch("old", lambda student: [(name, 1.0) for name in own])(None))
    assert len(seen) == 4
    for name in ("mean_recall", "recall@10", "i2t_recall@1"):
        assert best_value({**own, **seen}, name) == best_value(own, name) < 1
        assert best_value({**seen, **own}, name) == best_value(own, name)
    with pytest.raises(UserError, match=r"evaluation\.best = 'mean_recall'"):
        best_value(seen, "mean_recall")
    assert best_value({**own, **seen}, "watch/old/i2t_recall@1") == 1, "named in full it can be"


def test_what_is_kept():
    before = {"watch/old/acc1": 0.8, "watch/old/acc5": 0.0, "watch/gone/acc1": 0.5, "i2t_recall@1": 0.1}
    now = {"watch/old/acc1": 0.6, "watch/old/acc5": 0.1, "watch/new/acc1": 0.9, "i2t_recall@1": 0.2}
    assert kept(before, now) == {"watch/old/acc1": pytest.approx(0.75)}


@pytest.mark.parametrize("name", ["", "a/b", " a"])
def test_names_that_cannot_be_told_apart(name):
    with pytest.raises(UserError, match="a watched set is called"):
        Watch(name, lambda student: [])
