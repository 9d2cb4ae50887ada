"""`clipling eval --suite` and `clipling report` as a user calls them."""

from __future__ import annotations

import json

import pytest

from clipling.cli import main
from clipling.models.hub import new_student, save_student
from tests.toy import toy_folder


@pytest.fixture
def model(tmp_path, fresh_cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_student(new_student("tiny_vit_32", seed=0), tmp_path / "tiny")
    toy_folder(tmp_path / "photos", count=30)
    return "tiny"


def test_a_suite_writes_results_and_a_report(model, tmp_path, capsys):
    assert main(["eval", model, "--data", "photos", "--suite", "quick", "--out", "out"]) == 0
    said = capsys.readouterr().out
    assert "zeroshot_retrieval" in said
    assert "left out: queries on photos: " in said
    assert "does not beat its untrained start" in said, "random weights are no better than random weights"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert len(list((tmp_path / "out" / "untrained").glob("*.json"))) == 1
    assert main(["eval", model, "--data", "photos", "--suite", "quick", "--out", "out"]) == 0
    assert "0 results made" in capsys.readouterr().out


def test_two_models_on_one_page(model, tmp_path, capsys):
    save_student(new_student("tiny_vit_32", seed=1), tmp_path / "other")
    for name in (model, "other"):
        assert main(["eval", name, "--data", "photos", "--suite", "quick", "--no-untrained", "--out", f"out-{name}"]) == 0
    capsys.readouterr()
    assert main(["report", "out-tiny", "out-other", "--out", "page.html", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert "No ready-made model was measured" in made["verdict"]
    page = (tmp_path / "page.html").read_text()
    assert "tiny" in page
    assert "other" in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--suite", "quik", "--data", "photos"], "no suite 'quik'. Did you mean 'quick'"),
        (["--suite", "quick"], "at least one dataset"),
        (["--data", "photos", "--no-untrained"], "--no-untrained would be ignored without --suite"),
        (["--data", "photos", "--suite", "quick", "--groups", "g.csv"], "groups would be ignored"),
        (["--data", "photos", "--suite", "quick", "--out", "x.json"], "a suite writes a folder"),
        (["--suite", "mine.yaml", "--data", "photos"], "names its own datasets"),
        ([], "eval needs --data SRC"),
    ],
)
def test_mistakes(model, arguments, said, capsys):
    assert main(["eval", model, *arguments]) == 2
    assert said in capsys.readouterr().err


def test_report_without_results(model, tmp_path, capsys):
    assert main(["report", "nowhere"]) == 2
    assert "is not a folder of results" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["report", "empty"]) == 2
    assert "no results" in capsys.readouterr().err
    assert main(["report"]) == 2


def test_embed_and_predict(model, tmp_path, capsys):
    assert main(["predict", model, "photos", "--classes", "disc,square,bar", "--out", "guesses.csv"]) == 0
    said = capsys.readouterr().out
    assert "30 pictures" in said
    assert len((tmp_path / "guesses.csv").read_text().splitlines()) == 31
    assert main(["embed", model, "photos", "--out", "rows.parquet"]) == 0
    assert "captions: 60" in capsys.readouterr().out
