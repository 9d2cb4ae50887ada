"""The page: one file that parses, loads nothing, escapes what others wrote, and shows the numbers of the runs."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from clipling.data.source import open_pairs
from clipling.data.split import split
from clipling.errors import UserError
from clipling.evals.compare import compare
from clipling.evals.evaluators import Retrieval
from clipling.evals.plots import Line, Whisker, curves, mean_line, smooth, whiskers
from clipling.evals.report import clock, flat
from clipling.evals.results import CLASSIFICATION, RETRIEVAL, Result, write_result
from clipling.models.hub import new_student, open_student
from tests.evals.folders import make_run
from tests.toy import toy_folder

EVIL = "<script>alert('x')</script> & \"quoted\" $x_1$"
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Tags in balance, every attribute, and the text that a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


def read(path) -> Page:
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert value.startswith(("data:", "#")), f"<{tag} {name}={value[:60]}> loads something"
        assert not name.startswith("on"), f"<{tag}> has a handler"
    assert "<script" not in html
    assert not re.search(r"url\((?!#)|@import", html), "styles load nothing"
    return page


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = toy_folder(tmp_path_factory.mktemp("toy") / "pairs", count=60)
    for path in folder.glob("*.txt"):
        path.write_text(path.read_text() + EVIL + path.stem + "\n")
    return folder


@pytest.fixture(scope="module")
def made(toy, tmp_path_factory):
    """A report over two arms with two seeds each, real tiny students, neighbours and a zero-shot result."""
    root = tmp_path_factory.mktemp("runs")
    pairs = open_pairs(str(toy))
    val = len(split(pairs)[1])
    sample = [{"pair": pairs.keys[0], "image_neighbours": pairs.keys[1:4], "text_neighbours": [*pairs.keys[4:6], EVIL]}]
    runs = []
    for name, guide in (("clip", None), (f"ping{EVIL}", {"control": "none"})):
        for seed in (0, 1):
            student = new_student("tiny_vit_32", seed=seed + len(name))
            summary = {"val_pairs": val}
            run = make_run(
                root / f"{len(name)}-{seed}", name=name, seed=seed, guide=guide, source=str(toy), student=student, summary=summary
            )
            if guide:
                content = {"bank": "b", "neighbours_sample": sample, "hubness": {"image": {"largest": 4321, "mean": 5, "never": 0.017}}}
                (run / "guides.json").write_text(json.dumps(content))
            write_result(
                Result(dataset="shapes", model=name, task=CLASSIFICATION, metrics={"acc1": 0.4217}, size={"images": 9, "classes": 3}),
                run / "eval",
            )
            runs.append(run)
    result = compare(runs, root / "page.html", test=pairs)
    return root, runs, result, pairs


def test_page_parses_loads_nothing_and_escapes(made):
    root, _, result, _ = made
    page = read(root / "page.html")
    assert result["report"] == str(root / "page.html")
    assert "<script>alert('x')</script>" in page.text, "the caption is shown as it was written"
    assert not [a for a in page.attributes if "alert" in a[2] and a[1] not in ("alt", "title", "aria-label")]
    assert [p.name for p in root.iterdir() if p.name.startswith(".")] == []


def test_page_shows_the_numbers_of_the_runs(made):
    root, runs, result, pairs = made
    text = read(root / "page.html").text
    evaluator = Retrieval(pairs)
    values = [dict(evaluator(open_student(run)))["t2i_recall@10"] for run in runs]
    for row, (a, b) in zip(result["rows"], (values[:2], values[2:])):
        cell = row["metrics"]["t2i_recall@10"]
        assert cell["value"] == pytest.approx((a + b) / 2)
        assert cell["low"] < cell["value"] < cell["high"]
        assert f"{100 * cell['value']:.1f}" in text
        assert f"{100 * cell['low']:.1f}–{100 * cell['high']:.1f}" in text
    difference = result["rows"][1]["difference"]["t2i_recall@10"]["seeds"]["values"]
    assert difference == pytest.approx([values[2] - values[0], values[3] - values[1]])
    for shown in (
        "6,400",
        "1.23 M",
        "0.35 M",
        "42.2",
        "4,321 others",
        "1.7 % are nobody",
        "2.99.1",
        pairs.fingerprint,
        result["verdict"].splitlines()[0],
    ):
        assert shown in text


def test_page_has_pictures_plots_and_both_galleries(made):
    root, *_ = made
    page = read(root / "page.html")
    pictures = [v for tag, name, v in page.attributes if tag == "img" and name == "src"]
    assert len(pictures) > 30
    assert all(v.startswith("data:image/jpeg;base64,") for v in pictures)
    assert sum(name == "class" and v == "plot" for _, name, v in page.attributes) >= 7
    assert {"results", "differences", "starts", "curves", "neighbours", "by-caption", "by-picture", "zero-shot", "again"} == {
        v for tag, name, v in page.attributes if tag == "section" and name == "id"
    }


def test_val_is_found_again_and_pictures_can_be_left_out(made, tmp_path):
    _, runs, _, _ = made
    result = compare(runs, tmp_path / "out", pictures=False)
    page = read(tmp_path / "out" / "report.html")
    assert result["split"] == "val"
    assert result["rows"][0]["metrics"]["recall@10"]["low"] is not None
    assert not [a for a in page.attributes if a[0] == "img"]
    assert any("gives" in warning and "its run reported" in warning for warning in result["warnings"]), "made-up summaries"


def test_one_run_without_a_source_still_has_a_page(tmp_path):
    run = make_run(tmp_path / "run")
    result = compare([run], tmp_path / "report.html")
    text = read(tmp_path / "report.html").text
    assert result["tone"] == "alone"
    assert "photos does not exist" in text
    assert "20.0" in text


def test_references_are_rows_and_a_better_one_is_said_first(made, tmp_path):
    _, runs, _, pairs = made
    metrics = {f"{d}_recall@{k}": 0.99 for d in ("i2t", "t2i") for k in (1, 5, 10)}
    ready = Result(dataset="toy", model="ready-model", task=RETRIEVAL, metrics=metrics, data_hash=pairs.fingerprint)
    path = write_result(ready, tmp_path)
    result = compare(runs[:1], tmp_path / "a.html", test=pairs, references=[path])
    assert result["verdict"].startswith("ready-model reaches 99.0 % recall@10 without this training")
    assert "ready-made" in read(tmp_path / "a.html").text
    ready.data_hash = "other"
    with pytest.raises(UserError, match="measured on other pairs"):
        compare(runs[:1], tmp_path / "a.html", test=pairs, references=[write_result(ready, tmp_path)])


def test_no_runs():
    with pytest.raises(UserError, match="at least one run"):
        compare([], "out")


def test_plots_are_themed_and_the_same_every_time():
    def draw() -> str:
        return curves([Line([0, 1, 2], [1, 4, 2], 1)], name="a <b> plot", x="x")

    svg = draw()
    assert svg == draw()
    assert "var(--arm-1)" in svg
    assert 'aria-label="a &lt;b&gt; plot"' in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg), "every colour is a variable"
    forest = whiskers([Whisker(EVIL, 1.0, 0.5, 1.5, [0.9, 1.1], 2)], name="f", x="points")
    assert "&lt;script&gt;" in forest
    assert "$x_1$" in forest, "labels are not mathematics"


def test_smoothing_and_mean_lines():
    assert smooth([1.0, float("nan"), 3.0], 3) == [1.0, 2.0, 3.0]
    assert smooth([4.0, 2.0], 1) == [4.0, 2.0]
    assert mean_line([([0, 1, 2], [1, 2, 3]), ([0, 2], [3, 5])]) == ([0, 2], [2.0, 4.0])


def test_small_words():
    assert [clock(s) for s in (4.21, 59, 61, 3725)] == ["4.2 s", "59 s", "1 min 01 s", "1 h 02 min"]
    assert flat({"a": {"b": 1, "c": None}, "d": ["x", 2]}) == [("a.b", "1"), ("d", "x 2")]
