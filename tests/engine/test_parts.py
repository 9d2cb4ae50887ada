"""Schedule, groups, masks, average, log and checkpoints, each against an independent formula or by breaking it."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from clipling.engine import checkpoint
from clipling.engine.batch import same_mask
from clipling.engine.ema import Ema
from clipling.engine.log import Metrics
from clipling.engine.optim import build_optimiser, learning_rate, parameter_groups, set_rate
from clipling.engine.stages import spans
from clipling.engine.step import step_seed
from clipling.errors import UserError
from clipling.objectives.term import Objective, Term
from clipling.recipe import Optimiser, Stage


class Head(Term):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3, bias=False)
        self.temperature = nn.Parameter(torch.zeros(()))

    def parameter_groups(self):
        return [{"params": [self.temperature], "weight_decay": 0.0, "lr_scale": 10.0}]


def test_rate_follows_warm_up_then_half_cosine():
    stage = Stage(epochs=10, learning_rate=0.5, warmup=2)
    (span,) = spans([stage], steps_per_epoch=7, most=None)
    rates = [learning_rate(span, s, 7) for s in range(70)]
    assert span.end == 70
    assert rates[0] == pytest.approx(0.5 / 14)
    assert rates[13] == pytest.approx(0.5)
    assert rates[14] == pytest.approx(0.5)
    assert rates[42] == pytest.approx(0.5 * 0.5 * (1 + math.cos(math.pi * 28 / 56)))
    assert rates[69] < 0.5 * 1e-2
    assert all(a >= b for a, b in itertools.pairwise(rates[14:]))


def test_spans_follow_each_other_and_stop_at_the_most():
    stages = [Stage(name="a", epochs=2), Stage(name="b", epochs=3), Stage(name="c", epochs=1)]
    assert [(s.begin, s.end) for s in spans(stages, 10, None)] == [(0, 20), (20, 50), (50, 60)]
    assert [(s.stage.name, s.begin, s.end) for s in spans(stages, 10, 25)] == [("a", 0, 20), ("b", 20, 25)]


def test_groups_decay_matrices_only_and_hold_every_parameter_once():
    student = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Embedding(5, 4))
    objective = Objective({"t": Head()}, {"t": {"t": 1.0}})
    groups = parameter_groups(student, objective, 0.2)
    seen = [id(p) for g in groups for p in g["params"]]
    assert sorted(seen) == sorted(id(p) for m in (student, objective) for p in m.parameters())
    for group in groups:
        for p in group["params"]:
            assert group["weight_decay"] == (0.2 if p.ndim >= 2 else 0.0)
    optimiser = build_optimiser(student, objective, Optimiser())
    set_rate(optimiser, 0.1)
    rates = {id(p): g["lr"] for g in optimiser.param_groups for p in g["params"]}
    assert rates[id(objective.terms["t"].temperature)] == pytest.approx(1.0)
    assert rates[id(student[0].weight)] == pytest.approx(0.1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), max_size=3, unique=True), min_size=4, max_size=12), st.data())
def test_same_mask_equals_brute_force(links, data):
    half = len(links) // 2
    pair_all = np.array(data.draw(st.permutations(range(len(links))))[: 2 * half])
    for first in (0, half):
        mask = same_mask(links, pair_all[first : first + half], pair_all, first)
        expected = np.zeros((half, 2 * half), dtype=bool)
        for i in range(half):
            for j in range(2 * half):
                if j != first + i:
                    expected[i, j] = bool(set(links[pair_all[first + i]]) & set(links[pair_all[j]]))
        if mask is None:
            assert not expected.any()
        else:
            assert (mask.numpy() == expected).all()


def test_average_of_weights_and_its_place_in_the_model():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    ema = Ema(model, 0.5)
    expected = 0.0
    for step in range(20):
        with torch.no_grad():
            model.weight.fill_(float(step))
        ema.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    with ema.in_place_of(model):
        assert model.weight.item() == pytest.approx(expected, rel=1e-5)
    assert model.weight.item() == 19.0


def test_metrics_of_later_steps_are_cut_on_resume_and_half_lines_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = Metrics(path, None)
    for step in range(5):
        log.write(kind="train", step=step)
    log.close()
    with path.open("a") as file:
        file.write('{"kind": "train", "st')
    log = Metrics(path, keep_until=2)
    log.write(kind="train", step=3)
    log.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]


def test_checkpoints_keep_two_and_fall_back_to_the_older_when_the_newer_is_broken(tmp_path):
    for step in (3, 6, 9):
        checkpoint.save(tmp_path, step, {"step": step, "tensor": torch.full((3,), float(step))})
    assert checkpoint.list_steps(tmp_path) == [6, 9]
    newest = tmp_path / "step-000000009.pt"
    newest.write_bytes(newest.read_bytes()[:100])
    assert checkpoint.load_newest(tmp_path)["step"] == 6
    (tmp_path / "step-000000006.pt").write_bytes(b"")
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.load_newest(tmp_path)
    assert checkpoint.load_newest(tmp_path / "nothing") is None


def test_a_checkpoint_that_runs_code_is_not_loaded(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    (tmp_path / "step-000000001.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError):
        checkpoint.load_newest(tmp_path)


def test_step_seeds_do_not_repeat():
    seeds = {step_seed(s, t, r, p) for s in range(3) for t in range(200) for r in range(2) for p in (0, 32)}
    assert len(seeds) == 3 * 200 * 2 * 2
