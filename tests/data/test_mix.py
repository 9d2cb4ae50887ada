"""Sources mixed by weight: shares, no pair twice in an epoch, all pairs in the end, a pure function of (seed, epoch)."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipling.data.mix import Mix
from clipling.data.source import open_pairs
from clipling.engine import trainer
from clipling.errors import UserError
from clipling.recipe import load_recipe, with_settings
from clipling.run import train
from tests.data.making import picture, put
from tests.faults.killing import kill_by_progress, run_in_child
from tests.faults.test_kill_training import content
from tests.toy import toy_folder


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.floats(0.05, 20)), min_size=1, max_size=4), st.integers(0, 2**40))
def test_the_definition(parts, seed):
    sizes, weights = [size for size, _ in parts], [weight for _, weight in parts]
    numbers = np.repeat(np.arange(len(sizes)), sizes)
    np.random.default_rng(seed).shuffle(numbers)
    mix = Mix(numbers, weights)
    share = np.array(weights) / sum(weights)
    longest = min(size / s for size, s in zip(sizes, share))
    for part, (count, size) in enumerate(zip(mix.counts, sizes)):
        assert 1 <= count <= size
        assert count == 1 or abs(count - longest * share[part]) < 1 + 1e-3
    for epoch in (0, 1, 7):
        order = mix.order(seed, epoch)
        assert len(order) == mix.length == len(set(order.tolist()))
        assert np.bincount(numbers[order], minlength=len(sizes)).tolist() == mix.counts.tolist()
        assert np.array_equal(order, Mix(numbers, [10 * weight for weight in weights]).order(seed, epoch))
    assert mix.length < 6 or not np.array_equal(mix.order(seed, 0), mix.order(seed, 1))


def test_every_pair_has_its_turn_equally_often():
    numbers = np.array([0] * 10 + [1] * 95)
    mix = Mix(numbers, [1, 3])
    assert mix.counts.tolist() == [10, 30]
    seen = np.zeros(105, dtype=int)
    for epoch in range(300):
        seen[mix.order(3, epoch)] += 1
    assert (seen[:10] == 300).all(), "the source that is used up first is seen whole in every epoch"
    assert abs(seen[10:].mean() - 300 * 30 / 95) < 1e-9
    assert seen[10:].std() < 5
    window = np.concatenate([mix.order(3, epoch) for epoch in range(3)])
    assert len(set(window[numbers[window] == 1].tolist())) == 90, "epochs go on with what was not seen"


def test_the_mixture_is_spread_over_the_epoch():
    mix = Mix(np.repeat([0, 1], [1000, 1000]), [1, 1])
    first = mix.order(0, 0)[:200]
    assert 70 < (first < 1000).sum() < 130


@pytest.mark.filterwarnings("error")
def test_weights_at_the_edge_of_what_floats_hold():
    numbers = [0] * 10 + [1] * 30
    for weights, counts in (
        ([1e308, 1e308], [10, 10]),
        ([5e-324, 5e-324], [10, 10]),
        ([1e-300, 1e300], [1, 30]),
        ([1e300, 1e-300], [10, 1]),
    ):
        mix = Mix(numbers, weights)
        assert mix.counts.tolist() == counts
        assert len(mix.order(0, 5)) == sum(counts)


def test_mistakes():
    for weights in ([1, 0], [1, float("nan")], [], [-1, 2]):
        with pytest.raises(UserError, match="positive number"):
            Mix([0, 1], weights)
    with pytest.raises(UserError, match="there are 2 sources"):
        Mix([0, 1], [1])
    with pytest.raises(UserError, match="number 2 has no training pairs"):
        Mix([0, 0], [1, 1])
    recipe = with_settings(load_recipe("clip"), {"data.source": "a::b"})
    for weights in ([1], [1, 2, 3], [1, -1]):
        with pytest.raises(UserError, match=r"data\.weights"):
            with_settings(recipe, {"data.weights": weights})
    with pytest.raises(UserError, match=r"data\.decode"):
        with_settings(load_recipe("a_ping"), {"data.decode": "fast"})


def test_pairs_know_their_part(tmp_path, fresh_cache):
    for name, count in (("a", 3), ("b", 4)):
        for n in range(count):
            put(tmp_path / name / f"{n}.jpg", picture(10 * count + n))
            put(tmp_path / name / f"{n}.txt", f"{name} {n}")
    for _ in range(2):  # read, and from the kept index
        pairs = open_pairs(f"{tmp_path / 'a'}::{tmp_path / 'b'}")
        assert pairs.parts == [0, 0, 0, 1, 1, 1, 1]
        assert pairs.subset([5, 1]).parts == [1, 0]


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_a_mixed_run_that_is_killed_in_an_epoch_ends_in_the_same_bits(tmp_path, fresh_cache, monkeypatch):
    a, b = toy_folder(tmp_path / "a", count=16), toy_folder(tmp_path / "b", count=64, seed=1)
    val = toy_folder(tmp_path / "val", count=24, seed=2)
    own = {"data.source": f"{a}::{b}", "data.val": str(val), "data.weights": [1, 1], "data.workers": 0, "optimiser.batch": 8}
    own |= {"max_steps": None, "stages.0.epochs": 2.0, "evaluation.log_every": 1}
    recipe = with_settings(load_recipe("clip", smoke=True), own)
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)  # a checkpoint after every step
    assert run_in_child(lambda: train(recipe, tmp_path / "whole", quiet=True), None)
    kill_by_progress(lambda: train(recipe, tmp_path / "killed", resume=True, quiet=True), tmp_path / "killed" / "checkpoints", 4)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert content(tmp_path / "whole")[2]["steps"] == 2 * (32 // 8)
