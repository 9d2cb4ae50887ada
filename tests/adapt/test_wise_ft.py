"""WiSE-FT: the weights between two models, the rule that chooses among them, and a whole fine-tuning."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import clipling.build
from clipling.adapt.wise_ft import between, choose, standard_error, wise_ft
from clipling.errors import UserError
from clipling.models.hub import new_student, open_student, save_student
from clipling.recipe import Recipe, load_recipe, with_settings
from clipling.run import train
from tests.models.making import small_conv, tiny
from tests.toy import toy_folder

SHARES = [0.0, 0.25, 0.5, 0.75, 1.0]


def moved(student, seed: int = 0):
    """Another state of the same student: every number is another, counters and statistics of batch normalisation too."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in student.state_dict().items():
        noise = torch.rand(value.shape, generator=generator)
        state[name] = value + noise if value.is_floating_point() else value + 7
    return state


# Between two models


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_every_number_is_the_weighted_mean_and_counters_are_the_later(share):
    start = new_student(small_conv()).state_dict()
    tuned = moved(new_student(small_conv(), seed=1))
    made = between(start, tuned, share)
    kinds = set()
    for name, one in start.items():
        kind = name.rpartition(".")[2]
        kinds.add(kind)
        if kind == "num_batches_tracked":
            assert torch.equal(made[name], tuned[name])
        else:
            expected = (1 - share) * one.double() + share * tuned[name].double()
            torch.testing.assert_close(made[name].double(), expected, rtol=1e-5, atol=1e-6)
            assert made[name].dtype == one.dtype
    assert {"running_mean", "running_var", "num_batches_tracked"} <= kinds


def test_the_ends_are_the_very_weights():
    start, tuned = new_student(small_conv()).state_dict(), moved(new_student(small_conv(), seed=1))
    for share, whole in ((0, start), (1, tuned), (0.0, start), (1.0, tuned)):
        made = between(start, tuned, share)
        assert all(made[name] is whole[name] for name in start if start[name].is_floating_point())


def test_models_of_two_shapes_are_refused():
    start = new_student(tiny()).state_dict()
    for other in (new_student(tiny(width=96)), new_student(small_conv())):
        with pytest.raises(UserError, match="one shape"):
            between(start, other.state_dict(), 0.5)


# The rule


def table(*scores: float) -> list[dict[str, float]]:
    return [{"share": share, "score": score} for share, score in zip(SHARES, scores, strict=True)]


@pytest.mark.parametrize(
    ("scores", "pairs", "chosen"),
    [
        # Of 100 pairs a score of 0.5 has a standard error of 0.05, one of 0.9 of 0.03.
        ((0.1, 0.2, 0.4, 0.449, 0.5), 100, 1.0),
        ((0.1, 0.2, 0.4, 0.451, 0.5), 100, 0.75),
        ((0.1, 0.2, 0.451, 0.3, 0.5), 100, 0.5),
        ((0.451, 0.2, 0.3, 0.3, 0.5), 100, 0.0),
        ((0.5, 0.2, 0.3, 0.3, 0.2), 100, 0.0),
        ((0.86, 0.871, 0.88, 0.9, 0.85), 100, 0.25),
        ((0.86, 0.871, 0.88, 0.9, 0.85), 10_000, 0.75),
        ((0.4, 0.4, 0.4, 0.4, 0.4), 100, 0.0),
        ((0.0, 0.0, 0.0, 0.0, 0.0), 100, 0.0),
        ((0.2, 1.0, 0.99, 1.0, 1.0), 100, 0.25),
    ],
)
def test_the_smallest_share_that_val_cannot_tell_from_the_best(scores, pairs, chosen):
    found, reason = choose(table(*scores), pairs)
    assert found == chosen
    assert f"{pairs} pairs" in reason
    assert reason.endswith(f"is {chosen:g}")


def test_of_equals_the_smaller_share_is_called_the_best():
    assert "best on val at share 0.25" in choose(table(0.1, 0.9, 0.2, 0.9, 0.9), 10**9)[1]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=8), st.integers(1, 10**6), st.randoms())
def test_the_rule_in_other_words(numbers, pairs, rng):
    rows = [{"share": n / 10, "score": number / 1000} for n, number in enumerate(numbers)]
    best = max(numbers) / 1000
    error = math.sqrt(best * (1 - best) / pairs)
    expected = next(row["share"] for row in rows if row["score"] >= best - error)
    rng.shuffle(rows)
    assert choose(rows, pairs)[0] == expected
    assert standard_error(best, pairs) == pytest.approx(error)


def test_the_student_is_left_at_the_chosen_share():
    student = new_student(tiny())
    start, tuned = {k: v.clone() for k, v in student.state_dict().items()}, moved(student)
    student.load_state_dict(tuned)
    seen = []

    def measure(given):
        seen.append({k: v.clone() for k, v in given.state_dict().items()})
        return {"val": {0: 0.1, 1: 0.9, 2: 0.5}[len(seen) - 1], "other": 7.0}

    found = wise_ft(student, start, [1.0, 0.5, 0.0, 0.5], measure, lambda metrics: metrics["val"], 1000)
    assert [row["share"] for row in found.rows] == [0.0, 0.5, 1.0]
    assert [row["score"] for row in found.rows] == [0.1, 0.9, 0.5]
    assert all(row["other"] == 7.0 for row in found.rows)
    assert found.chosen == 0.5
    for state, share in zip(seen, (0.0, 0.5, 1.0)):
        assert all(torch.equal(value, between(start, tuned, share)[name]) for name, value in state.items())
    assert all(torch.equal(value, seen[1][name]) for name, value in student.state_dict().items())


# A whole fine-tuning


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    folder = tmp_path_factory.mktemp("finetune")
    save_student(new_student(small_conv(), seed=3).eval(), folder / "start")
    made = load_recipe("finetune", smoke=True)
    where = {"data.source": str(toy_folder(folder / "pairs", 48)), "data.val": str(toy_folder(folder / "val", 24, seed=1))}
    given = {"student.init": {"model": str(folder / "start")}, "evaluation.interpolate": SHARES, "evaluation.every": 1.0}
    watch = {"evaluation.watch": [str(toy_folder(folder / "other", 24, seed=2))]}
    length = {"max_steps": None, "optimiser.batch": 24, "stages.0.epochs": 2.0, "stages.0.learning_rate": 3e-3}
    return with_settings(made, where | given | watch | length)


def summary_of(run) -> dict:
    return json.loads((run / "summary.json").read_text())


def test_a_whole_run_tells_every_share_and_keeps_the_chosen(recipe, tmp_path, monkeypatch):
    # Untrained, two evaluations, then the five shares: of 24 pairs, 0.8 has a standard error of 0.082.
    values = iter([0.1, 0.2, 0.3, 0.1, 0.4, 0.72, 0.79, 0.8])

    class Scripted(clipling.build.Retrieval):
        def __call__(self, student):
            yield "i2t_recall@1", next(values)

    monkeypatch.setattr(clipling.build, "Retrieval", Scripted)
    train(with_settings(recipe, {"evaluation.watch": []}), tmp_path / "run", quiet=True)
    summary = summary_of(tmp_path / "run")
    found = summary["interpolation"]
    assert [(row["share"], row["score"]) for row in found["rows"]] == list(zip(SHARES, [0.1, 0.4, 0.72, 0.79, 0.8]))
    assert found["share"] == 0.5
    assert summary["val"] == {"i2t_recall@1": 0.72}
    start = open_student(recipe.student.init["model"]).state_dict()
    tuned = torch.load(tmp_path / "run" / "checkpoints" / "best.pt", weights_only=True)
    saved = open_student(str(tmp_path / "run")).state_dict()
    for name, value in between(start, tuned, 0.5).items():
        torch.testing.assert_close(saved[name], value, rtol=0, atol=0)
    assert not torch.equal(start["model.visual.trunk.conv_stem.weight"], tuned["model.visual.trunk.conv_stem.weight"])
    assert "72.0 %" in (tmp_path / "run" / "model" / "README.md").read_text()


@pytest.mark.parametrize("liking", ["start", "tuned"])
def test_what_is_only_watched_has_no_say(recipe, tmp_path, monkeypatch, liking):
    """A watched set that is wildly for one end, whatever the model: checkpoint and share stay those that val asks for."""
    train(with_settings(recipe, {"evaluation.watch": []}), tmp_path / "alone", quiet=True)
    calls = []

    class Biased:
        name = "watched"

        def __call__(self, student):
            calls.append(len(calls))
            yield "i2t_recall@1", 1 / (1 + len(calls)) if liking == "start" else len(calls) / 10

    monkeypatch.setattr(clipling.build, "watched", lambda spec: Biased())
    train(recipe, tmp_path / "watching", quiet=True)
    alone, watching = summary_of(tmp_path / "alone"), summary_of(tmp_path / "watching")
    assert len(calls) == 3 + len(SHARES)
    assert watching["interpolation"]["share"] == alone["interpolation"]["share"]
    assert watching["best_step"] == alone["best_step"]
    assert [row["score"] for row in watching["interpolation"]["rows"]] == [row["score"] for row in alone["interpolation"]["rows"]]
    assert all("watch/other/i2t_recall@1" in row for row in watching["interpolation"]["rows"])
    assert "watch/other/i2t_recall@1" in watching["untrained"]
    weights = [(tmp_path / run / "model" / "open_clip_model.safetensors").read_bytes() for run in ("alone", "watching")]
    assert weights[0] == weights[1]


def test_a_set_that_is_watched_is_measured_as_it_is(recipe, tmp_path):
    """Without the script: the watched recall of every share is that of a Retrieval over the watched pairs."""
    from clipling.data.source import open_pairs
    from clipling.evals.evaluators import Retrieval

    train(with_settings(recipe, {"evaluation.interpolate": [0.0, 1.0]}), tmp_path / "run", quiet=True)
    rows = summary_of(tmp_path / "run")["interpolation"]["rows"]
    start = dict(Retrieval(open_pairs(recipe.evaluation.watch[0]))(open_student(recipe.student.init["model"])))
    assert {name: rows[0][f"watch/other/{name}"] for name in start} == pytest.approx(start)
