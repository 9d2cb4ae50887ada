"""What is kept of earlier results, and what makes them be measured again."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from clipling.errors import UserError
from clipling.evals.intervals import interval
from clipling.evals.results import Result, read_result
from clipling.evals.suite import run
from clipling.evals.suite.catalogue import evaluation
from clipling.evals.suite.found import Found
from clipling.evals.suite.items import read_items
from clipling.evals.suite.plan import DatasetSpec, Plan
from clipling.evals.suite.run import inputs, run_plan, weaknesses
from clipling.evals.suite.subject import Subject
from clipling.models.hub import new_student
from clipling.subjects import model_hash
from tests.evals.suite.fakes import labelled_dataset, pairs_dataset
from tests.toy import toy_folder


@pytest.fixture
def subject(fresh_cache):
    student = new_student("tiny_vit_32", seed=0).eval()
    return Subject(student, "toy", pretrained="seed0", model_hash=model_hash(student))


@pytest.fixture
def plan(tmp_path):
    toy_folder(tmp_path / "photos", count=12)
    return Plan({"photos": DatasetSpec(data=str(tmp_path / "photos"))}, (evaluation("zeroshot_retrieval"),))


@pytest.mark.parametrize("change", ["gone", "damaged", "other length", "not finite", "nothing"])
def test_results_without_their_items_are_made_again(subject, plan, tmp_path, change):
    before = run_plan(subject, plan, tmp_path / "out").results[0]
    (path,) = (tmp_path / "out" / "items").glob("*.npz")
    with np.load(path) as file:
        arrays = dict(file)
    if change == "gone":
        path.unlink()
    elif change == "damaged":
        path.write_bytes(path.read_bytes()[:100])
    elif change == "other length":
        np.savez(path, **{name: values[:-1] for name, values in arrays.items()})
    elif change == "not finite":
        np.savez(path, **arrays | {"value:i2t_recall@1": np.full(12, np.nan)})
    made = run_plan(subject, plan, tmp_path / "out")
    assert made.kept == (change == "nothing")
    items = read_items(tmp_path / "out", made.results[0])
    assert {name: len(values) for name, (values, _) in items.items()} == before.made["items"]


def test_other_preprocessing_is_another_result(subject, plan, tmp_path):
    run_plan(subject, plan, tmp_path / "out")
    subject.student.preprocess_cfg["mean"] = [0.1, 0.2, 0.3]
    assert run_plan(subject, plan, tmp_path / "out").kept == 0


def test_costs_of_another_machine_are_measured_again(subject, plan, tmp_path, monkeypatch):
    plan = Plan(plan.datasets, (*plan.evaluations, evaluation("cost", {"repeats": 1} if hasattr(evaluation("cost"), "repeats") else None)))
    run_plan(subject, plan, tmp_path / "out")
    assert run_plan(subject, plan, tmp_path / "out").kept == 2
    here = run.environment()
    monkeypatch.setattr(run, "environment", lambda: {**here, "machine": {"name": "another"}})
    assert run_plan(subject, plan, tmp_path / "out").kept == 1, "recall is the same everywhere"


def test_what_changed_beside_the_numbers_is_saved(subject, plan, tmp_path):
    run_plan(subject, plan, tmp_path / "out", start_of="one")
    (path,) = (tmp_path / "out").glob("*.json")
    made = run_plan(subject, plan, tmp_path / "out", warnings=lambda dataset: ["seen before"], start_of="two")
    assert made.kept == 1
    kept = read_result(path)
    assert kept.warnings == made.results[0].warnings == ["seen before"]
    assert kept.made["start_of"] == ["one", "two"]
    stamp = path.stat().st_mtime_ns
    run_plan(subject, plan, tmp_path / "out", warnings=lambda dataset: ["seen before"], start_of="two")
    assert path.stat().st_mtime_ns == stamp, "written when something changed, and not otherwise"


def test_groups_are_inputs_of_what_reads_them():
    one = labelled_dataset(6, groups=["snow"] * 6)
    other = replace(one, groups=["grass"] * 6)
    assert inputs(one, evaluation("backgrounds")) != inputs(other, evaluation("backgrounds"))
    assert inputs(one, evaluation("zeroshot_classification")) == inputs(other, evaluation("zeroshot_classification"))


@pytest.mark.parametrize(
    ("task", "given"),
    [("descriptions", {"descriptions": {"class 0": ["a"]}}), ("outside", {"outside": (labelled_dataset(3, name="far"),)})],
)
def test_descriptions_and_foreign_pictures_are_inputs(task, given):
    one = labelled_dataset(6)
    assert inputs(one, evaluation(task)) != inputs(replace(one, **given), evaluation(task))


def test_the_content_of_a_query_file_is_an_input(tmp_path):
    path = tmp_path / "queries.csv"
    dataset = pairs_dataset(["a", "b"], queries=path)
    path.write_text("query,key\na,00000.png\n")
    before = inputs(dataset, evaluation("queries"))
    path.write_text("query,key\na,00001.png\n")
    assert inputs(dataset, evaluation("queries")) != before


def test_intervals_draw_captions_of_one_picture_together():
    """Captions of a picture that are right or wrong together are one observation, so the interval is twice as wide for four."""
    hits, unit = np.repeat(np.random.default_rng(0).random(50) < 0.5, 4).astype(float), np.repeat(np.arange(50), 4)
    result = Result(dataset="d", model="m", task="zeroshot_retrieval", metrics={})
    run._fill(result, Found(metrics={"t2i_recall@1": hits.mean()}, items={"t2i_recall@1": hits}, units={"t2i_recall@1": unit}))
    low, high = result.intervals["t2i_recall@1"]
    assert (low, high) == interval(hits, unit)
    alone = interval(hits)
    assert (high - low) / (alone[1] - alone[0]) == pytest.approx(2, rel=0.1)


def test_weaknesses_of_labelled_pictures():
    assert weaknesses(labelled_dataset(6, 3)) == []
    assert weaknesses(labelled_dataset(6, ["cat", "dog", "elk"], [0] * 6)) == ["2 of 3 classes have no picture here: dog, elk."]
    assert weaknesses(labelled_dataset(6, ["cat", "cat"])) == ["Several classes have one name, so they cannot be told apart: cat."]


@pytest.mark.parametrize("change", [{"metrics": []}, {"made": []}, {"size": []}, {"intervals": [1]}])
def test_a_damaged_result_is_made_again(subject, plan, tmp_path, change):
    metrics = run_plan(subject, plan, tmp_path / "out").results[0].metrics
    (path,) = (tmp_path / "out").glob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match="is damaged"):
        read_result(path)
    made = run_plan(subject, plan, tmp_path / "out")
    assert (made.kept, made.results[0].metrics) == (0, metrics)


def test_results_hold_no_path(subject, plan, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["/usr/bin/clipling", "eval", "runs/secret/toy", f"--data={tmp_path}/photos", "--out", f"{tmp_path}/out"]
    )
    run_plan(subject, plan, tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*.json")
    assert str(tmp_path) not in path.read_text()
    found = read_result(path)
    assert found.spec == "photos"
    assert found.made["command"] == "clipling eval toy --data=photos --out out"
