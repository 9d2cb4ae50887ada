"""Several folders of results on one page: what stands beside several models is there once, and each start is its own model's."""

from __future__ import annotations

import json

import pytest

from clipling.errors import UserError
from clipling.evals.suite.catalogue import evaluation
from clipling.evals.suite.plan import DatasetSpec, Plan
from clipling.models import ready
from clipling.models.hub import new_student, save_student
from clipling.suites import Beside, joined, read_models, report, run_suite
from tests.toy import toy_folder


@pytest.fixture
def folder(tmp_path, fresh_cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("start", "one", "two", "ready")):
        save_student(new_student("tiny_vit_32", seed=seed), tmp_path / name)
    toy_folder(tmp_path / "photos", count=20)
    return tmp_path


def plan(*names: str) -> Plan:
    return Plan({name: DatasetSpec(data=name) for name in names}, (evaluation("zeroshot_retrieval"),))


def test_two_models_beside_one_ready_model(folder):
    for name in ("one", "two"):
        run_suite(name, plan("photos"), folder / f"out-{name}", beside=Beside(ready=("ready",)))
    made = report([folder / "out-one", folder / "out-two"], folder / "page.html")
    text = (folder / "page.html").read_text()
    assert "are given twice" not in text
    models = joined([model for name in ("one", "two") for model in read_models(folder / f"out-{name}")])
    assert [model.role for model in models] == ["model", "untrained", "ready", "model"], "both starts have the same weights"
    owners = {next(iter(model.hashes)) for model in models if model.role == "model"}
    assert models[1].start_of == owners
    assert "one does not beat its untrained start" in made["verdict"]
    with pytest.raises(UserError, match="given twice"):
        report([folder / "out-one", folder / "out-one"], folder / "page.html")


def test_results_of_one_model_on_several_datasets_add_up(folder):
    toy_folder(folder / "more", count=20, seed=1)
    for data in ("photos", "more"):
        run_suite("one", plan(data), folder / f"out-{data}", beside=Beside(False, ("ready",)))
    report([folder / "out-photos", folder / "out-more"], folder / "page.html")
    models = joined([*read_models(folder / "out-photos"), *read_models(folder / "out-more")])
    assert [sorted(r.dataset for r in model.results) for model in models] == [["more", "photos"]] * 2
    assert models[0].places.keys() == {("photos", "zeroshot_retrieval"), ("more", "zeroshot_retrieval")}


def test_a_ready_model_that_nobody_asked_for_costs_nothing_when_it_cannot_be_opened(folder, monkeypatch):
    (folder / "broken").mkdir()
    monkeypatch.setattr(ready, "cached", lambda: {"org/broken": "broken", "org/ready": "ready", "org/two": "two"})
    said = []
    run_suite("one", plan("photos"), folder / "out", beside=Beside(untrained=False), say=said.append)
    assert any("org/broken lies in the hub's cache and cannot be measured" in line for line in said)
    assert [m.label.split()[0] for m in read_models(folder / "out") if m.role == "ready"] == ["ready"]


def test_several_languages_from_one_file(folder):
    from clipling.evals.suite.plan_file import read_plan

    rows = [
        {"filepath": str(path), "caption": f"a picture {n}", "lang": {"de": f"ein Bild {n}"}}
        for n, path in enumerate(sorted((folder / "photos").glob("*.png")))
    ]
    (folder / "shop.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "suite.yaml").write_text(
        "tasks: [zeroshot_retrieval]\ndatasets: {shop: {data: shop.jsonl, languages: {en: caption, de: lang.de}}}"
    )
    made = run_suite("one", read_plan(folder / "suite.yaml"), folder / "out", beside=Beside(False, ()))
    assert [r["dataset"] for r in made["results"]] == ["shop [en]", "shop [de]"]
    names = sorted(path.name for path in (folder / "out").glob("*.json"))
    assert [name.split("_")[0] for name in names] == ["shop--de", "shop--en"]
    text = (folder / "out" / "report.html").read_text()
    assert "By language" in text
    assert "ein Bild" in text, "pictures and captions of a column that the source alone does not name"
    assert "<img" in text
    private = run_suite("one", read_plan(folder / "suite.yaml"), folder / "out", beside=Beside(False, ()), pictures=False)
    assert private["kept"] == 2
    assert "ein Bild" not in (folder / "out" / "report.html").read_text()
