"""Running a plan: results are complete, kept when nothing changed, made again when something did, and survive kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from clipling.errors import UserError
from clipling.evals.identity import state_hash
from clipling.evals.results import read_result
from clipling.evals.suite.catalogue import evaluation
from clipling.evals.suite.found import LABELLED, PAIRS, Found
from clipling.evals.suite.plan import DatasetSpec, Plan
from clipling.evals.suite.run import read_items, run_plan
from clipling.evals.suite.subject import Subject
from clipling.models.hub import new_student, save_student
from tests.toy import toy_folder


@pytest.fixture
def subject(fresh_cache):
    student = new_student("tiny_vit_32", seed=0).eval()
    return Subject(student, "toy", pretrained="seed0", model_hash=state_hash(student))


@pytest.fixture
def plan(tmp_path):
    toy_folder(tmp_path / "photos", count=24)
    return Plan({"photos": DatasetSpec(data=str(tmp_path / "photos"))}, (evaluation("zeroshot_retrieval"), evaluation("geometry")))


def test_results_hold_what_is_needed_to_repeat_them(subject, plan, tmp_path):
    made = run_plan(subject, plan, tmp_path / "out")
    assert [r.task for r in made.results] == ["zeroshot_retrieval", "geometry"]
    (path,) = (tmp_path / "out").glob("*zeroshot_retrieval.json")
    content = json.loads(path.read_text())
    assert content["settings"] == {"version": 1, "ks": [1, 5, 10]}
    assert content["data_hash"]
    assert content["model_hash"] == subject.model_hash
    assert content["made"].keys() >= {"command", "date", "packages", "machine", "seconds", "commit"}
    assert content["metrics"]["text_retrieval_recall@5"] == content["metrics"]["i2t_recall@5"]
    items = read_items(tmp_path / "out", made.results[0])
    values, unit = items["t2i_recall@1"]
    assert values.mean() == pytest.approx(content["metrics"]["t2i_recall@1"])
    assert len(unit) == len(values) == 48


def test_nothing_is_measured_twice(subject, plan, tmp_path, monkeypatch):
    first = run_plan(subject, plan, tmp_path / "out")
    monkeypatch.setattr(type(plan.evaluations[1]), "__call__", lambda *_: pytest.fail("measured again"))
    again = run_plan(subject, plan, tmp_path / "out")
    assert (first.kept, again.kept) == (0, 2)
    assert [r.metrics for r in again.results] == [r.metrics for r in first.results]


@pytest.mark.parametrize("change", ["weights", "settings", "data", "damage"])
def test_what_changed_is_measured_again(subject, plan, tmp_path, change):
    run_plan(subject, plan, tmp_path / "out")
    if change == "weights":
        subject.model_hash = "other"
    elif change == "settings":
        plan = Plan(plan.datasets, (evaluation("zeroshot_retrieval", {"ks": [1, 5]}), plan.evaluations[1]))
    elif change == "data":
        (tmp_path / "photos" / "0000.txt").write_text("another caption")
    else:
        for path in (tmp_path / "out").glob("*geometry.json"):
            path.write_text(path.read_text()[:100])
    kept = run_plan(subject, plan, tmp_path / "out").kept
    assert kept == {"weights": 0, "settings": 1, "data": 0, "damage": 1}[change]


def test_features_are_made_once(subject, plan, tmp_path, monkeypatch):
    run_plan(subject, plan, tmp_path / "out")
    monkeypatch.setattr(type(subject.student), "encode_image", lambda *_: pytest.fail("pictures encoded again"))
    run_plan(subject, plan, tmp_path / "elsewhere")


def test_features_that_are_not_finite_are_refused(subject, plan, tmp_path):
    subject.student.model.visual.proj.data.fill_(float("nan"))
    subject.model_hash = "damaged"
    with pytest.raises(UserError, match="not finite"):
        run_plan(subject, plan, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.json"))


def test_a_damaged_cache_is_made_again(subject, plan, tmp_path):
    before = run_plan(subject, plan, tmp_path / "a").results[0].metrics
    for path in subject.cache.rglob("*.npy"):
        path.write_bytes(path.read_bytes()[:200])
    assert run_plan(subject, plan, tmp_path / "b").results[0].metrics == before


def test_reasons_are_given_when_nothing_applies(subject, tmp_path):
    toy_folder(tmp_path / "photos", count=4)
    plan = Plan({"photos": DatasetSpec(data=str(tmp_path / "photos"))}, (evaluation("queries"),))
    with pytest.raises(UserError, match="nothing could be measured: queries on photos: "):
        run_plan(subject, plan, tmp_path / "out")


def test_the_sample_of_a_larger_number_holds_the_smaller(tmp_path):
    dataset = DatasetSpec(data=str(toy_folder(tmp_path / "photos", count=30))).open("photos")
    few, more = dataset.sample(5), dataset.sample(12)
    assert set(few) < set(more)
    assert list(more) == sorted(more)
    assert len(dataset.sample(None)) == len(dataset.sample(99)) == 30


@dataclass(frozen=True)
class NotFinite:
    task: ClassVar[str] = "geometry"
    takes: ClassVar[frozenset[str]] = frozenset({PAIRS, LABELLED})
    version: ClassVar[int] = 1
    headline: ClassVar[tuple[str, ...]] = ("x",)
    lower: ClassVar[frozenset[str]] = frozenset()

    def skipped(self, dataset):
        return None

    def __call__(self, subject, dataset):
        return Found(metrics={"x": float("nan")}, items={"x": np.zeros(2)})


def test_a_metric_that_is_not_finite_never_reaches_a_file(subject, plan, tmp_path):
    with pytest.raises(UserError, match="no finite number for x"):
        run_plan(subject, Plan(plan.datasets, (NotFinite(),)), tmp_path / "out")


KILLED = """
import sys
from clipling.suites import Beside, plan_of, run_suite
from clipling.evals.suite.plan import DatasetSpec
from pathlib import Path
import torch
torch.set_num_threads(1)
run_suite(sys.argv[1], plan_of(sys.argv[2], []), Path(sys.argv[3]), beside=Beside(False, ()), say=lambda line: print(line, flush=True))
"""


@pytest.mark.faults
def test_a_killed_suite_goes_on_where_it_was(tmp_path, fresh_cache):
    save_student(new_student("tiny_vit_32", seed=0), tmp_path / "model")
    toy_folder(tmp_path / "photos", count=40)
    (tmp_path / "suite.yaml").write_text(
        "tasks: [zeroshot_retrieval, geometry, corruptions]\ndatasets: {photos: {data: photos}}\n"
        "settings: {corruptions: {corruptions: [gaussian_noise, contrast, snow], sample: 40, size: 64}}\n"
    )

    def start(out):
        command = [sys.executable, "-c", KILLED, str(tmp_path / "model"), str(tmp_path / "suite.yaml"), str(tmp_path / out)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)

    whole = start("whole")
    assert whole.wait(timeout=240) == 0
    for path in (fresh_cache / "features").rglob("*.npy"):
        path.unlink()
    killed = start("cut")
    for line in killed.stdout:
        if "corruptions" in line:
            time.sleep(0.3)
            killed.send_signal(signal.SIGKILL)
            break
    killed.wait()
    finished = sorted(path.name for path in (tmp_path / "cut").glob("*.json"))
    assert any("retrieval" in name for name in finished)
    stamps = {name: (tmp_path / "cut" / name).stat().st_mtime_ns for name in finished}
    again = start("cut")
    assert again.wait(timeout=240) == 0
    for name, stamp in stamps.items():
        assert (tmp_path / "cut" / name).stat().st_mtime_ns == stamp, f"{name} was made again"
    for path in (tmp_path / "whole").glob("*.json"):
        assert read_result(path).metrics == read_result(tmp_path / "cut" / path.name).metrics
