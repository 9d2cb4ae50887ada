"""The page of a suite: one file that parses, loads nothing, escapes what others wrote, and shows the numbers it was given."""

from __future__ import annotations

import base64
import html as html_module
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clipling.data.classes import open_labelled
from clipling.data.source import open_pairs
from clipling.evals.plots import Whisker
from clipling.evals.results import SUITE_TASKS, Result
from clipling.evals.suite.catalogue import EVALUATIONS, evaluation
from clipling.evals.suite.compared import Comparison, Gap, ModelResults
from clipling.evals.suite.drawings import MOST_LETTERS, Series, Spot, bars, differences, dots, reliability, scatter, short, steps, trend
from clipling.evals.suite.page import write_page
from clipling.evals.suite.tables import best_of
from clipling.evals.suite.wording import SECTIONS, direction, is_fraction, metric_name, value
from tests.evals.suite.page_fakes import CORRUPTIONS, EVIL, LONG, suite
from tests.evals.test_report import Page, read

SAID = Comparison("plain", "Measured", "a reaches 60.0 % acc1.")
MINUS = "\u2212"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("suite")


@pytest.fixture(scope="module")
def made(folder):
    return suite(folder)


@pytest.fixture(scope="module")
def html(folder, made):
    path = folder / "page.html"
    write_page(path, *made, credits="Pictures: drawn here.\nSecond line.")
    return path


@pytest.fixture(scope="module")
def page(html) -> Page:
    return read(html)


def result(task: str = "zeroshot_classification", dataset: str = "d", **more) -> Result:
    given = {"metrics": {"acc1": 0.6}, "size": {"images": 10, "classes": 2}, **more}
    return Result(dataset=dataset, model="m", task=task, **given)


def write(path, *results: Result | list[Result], comparison: Comparison = SAID, roles: tuple[str, ...] = (), **how) -> str:
    """The page of models a, b, ... with these results; checked as every page is."""
    models = [
        ModelResults("abcdef"[i], i + 1, each if isinstance(each, list) else [each], roles[i] if roles else "model")  # type: ignore[arg-type]
        for i, each in enumerate(results)
    ]
    write_page(path / "page.html", models, comparison, **how)
    return read_text(path / "page.html")


def read_text(path) -> str:
    read(path)
    return path.read_text(encoding="utf-8")


def images(text: str) -> list[Image.Image]:
    found = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"', text)
    assert len(found) == text.count("<img"), "every picture is in the page"
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def section(text: str, name: str) -> str:
    found = re.search(rf'<section id="{re.escape(name)}">.*?</section>', text, re.S)
    return found.group() if found else ""


# The whole page


def test_page_parses_loads_nothing_and_escapes(page, html):
    text = html.read_text(encoding="utf-8")
    assert EVIL in page.text, "captions of others are there, as text"
    assert "<script" not in text
    assert "Second line." in page.text


def test_ids_differ_and_links_lead_somewhere(page):
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(set(ids)) == len(ids), "plots share no id, or one would draw with the clip of another"
    targets = [value[1:] for tag, name, value in page.attributes if name == "href" and tag == "a"]
    assert targets
    assert set(targets) <= set(ids)


def test_every_task_has_its_section(html):
    text = html.read_text(encoding="utf-8")
    ids = set(re.findall(r'<section id="([^"]+)"', text))
    pairs = {"zeroshot_retrieval", "compositionality", "geometry", "queries"}
    labelled = set(SUITE_TASKS) - pairs - {"cost"} | {"geometry"}
    expected = {f"dataset-1-{task}" for task in pairs} | {f"dataset-2-{task}" for task in labelled}
    assert ids == expected | {"headlines", "differences", "cost", "again"}


def test_every_picture_opens(html):
    found = images(html.read_text(encoding="utf-8"))
    assert len(found) > 50
    assert all(min(picture.size) > 0 for picture in found)


def test_sections_appear_only_when_their_data_is_there(tmp_path):
    text = write(tmp_path, result())
    assert set(re.findall(r'<section id="([^"]+)"', text)) == {"headlines", "dataset-1-zeroshot_classification", "again"}
    assert "<svg" not in text
    assert "Differences" not in text


def test_page_without_results_of_details_is_written(tmp_path):
    """Every task with its metrics alone, as a file of another tool has them."""
    kinds = {"size": {"pairs": 10, "captions": 20}}
    each = [result(task, metrics={"some_metric": 0.5}, **kinds) for task in SUITE_TASKS]
    assert "some metric" in write(tmp_path, each)


def test_labels_must_differ(tmp_path):
    with pytest.raises(ValueError, match="labels that differ"):
        write_page(tmp_path / "page.html", [ModelResults("a", 0, [result()]), ModelResults("a", 1, [result()])], SAID)
    with pytest.raises(ValueError, match="at least one"):
        write_page(tmp_path / "page.html", [], SAID)


def test_texts_that_utf8_or_svg_cannot_hold(tmp_path):
    bad = "half \ud800 pair \x07 bell \u2028 line"
    classes = [{"name": bad + str(i), "accuracy": 0.5, "count": 1} for i in range(3)]
    failures = [{"row": 0, "key": bad, "true": bad, "guesses": [[bad, 0.9]]}]
    text = write(tmp_path, result(details={"classes": classes, "failures": failures}))
    drawn = re.findall(r"<svg.*?</svg>", text, re.S)
    assert drawn
    assert not any("\x07" in svg or "\u2028" in svg for svg in drawn)


def test_long_verdicts_are_a_heading_and_a_paragraph(tmp_path):
    first, rest = "a is no better than its start by 3.5 points.", "It was measured on " + "many, " * 40 + "pictures."
    text = write(tmp_path, result(), comparison=replace(SAID, text=f"{first} {rest}"))
    assert f"<h1>{first}</h1>" in text
    assert f'<p class="lead">{rest}</p>' in text
    assert f"<h1>{SAID.text}</h1>" in write(tmp_path, result())


# Numbers


def test_headline_shows_values_intervals_and_directions(page):
    for said in ("61.0", "57.0–65.0", "ECE,\u00a0%\u00a0↓", "image → text, recall@10,\u00a0%\u00a0↑", "modality gap"):
        assert said in page.text, said


def marked(text: str) -> list[str]:
    return re.findall(r'<td class="best">([^<]+)<', text)


@pytest.mark.parametrize(
    ("ends", "best"),
    [
        ([(0.5, 0.7), (0.2, 0.4)], ["60.0"]),
        ([(0.5, 0.7), (0.2, 0.5)], []),  # they touch
        ([(0.5, 0.7), None], []),  # one is not known
        ([(0.2, 0.3), (0.5, 0.7), (0.65, 0.9)], []),
        ([(0.2, 0.3), (0.1, 0.2), (0.65, 0.9)], ["77.5"]),
        ([(0.5, 0.7)], []),  # alone
    ],
)
def test_best_is_marked_where_its_interval_overlaps_with_no_other(tmp_path, ends, best):
    found = [result(metrics={"acc1": sum(e) / 2 if e else 0.1}, intervals={"acc1": e} if e else {}) for e in ends]
    assert marked(section(write(tmp_path, *found), "headlines")) == best


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.none() | st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted), max_size=4), st.sampled_from(["up", "down", "none"])
)
def test_best_against_its_definition(ends, which):
    """By definition: the one interval that lies wholly above (or below) every other; none where one is not known."""
    found = [result(metrics={"acc1": sum(e) / 2 if e else 5}, intervals={"acc1": tuple(e)} if e else {}) for e in ends]
    clear = []
    if None not in ends and len(ends) > 1 and which != "none":
        for i, (low, high) in enumerate(ends):
            others = [e for j, e in enumerate(ends) if j != i]
            if all(low > e[1] for e in others) if which == "up" else all(high < e[0] for e in others):
                clear.append(i)
    assert best_of(found, "acc1", which) == (clear[0] if clear else None)
    assert best_of([*found, None], "acc1", which) == (clear[0] if clear else None), "a model that was not measured does not count"


def test_differences_say_which_way_is_better(tmp_path):
    gaps = [
        Gap("d", "zeroshot_classification", "acc1", "a", "b", 0.1, 0.05, 0.15, 100),
        Gap("d", "calibration", "ece", "a", "b", 0.1, 0.05, 0.15, 100),
        Gap("d", "calibration", "ece", "a", "b", -0.1, -0.15, 0.05, 100),
    ]
    found = section(write(tmp_path, result(), result(), comparison=replace(SAID, gaps=gaps)), "differences")
    looks = re.findall(r'<td class="(better|worse|unclear)">([^<]+)<', found)
    assert looks == [("better", "+10.0"), ("worse", "+10.0"), ("unclear", f"{MINUS}10.0")]
    assert f"{MINUS}15.0 to +5.0" in found


def test_notes_stand_by_their_numbers_once_with_their_models(tmp_path):
    text = write(tmp_path, result(notes=["shared", "only a"]), result(notes=["shared"], warnings=["seen in training"]))
    found = section(text, "dataset-1-zeroshot_classification")
    assert found.count("shared") == 1
    assert re.search(r"<li class=\"\">\s*<b>.*?a</b> only a</li>", found.replace("\n", ""))
    assert re.search(r'<li class="warned"><b>[^b]*<span[^>]*></span>b</b> seen in training</li>', found)
    assert "seen in training" not in section(text, "headlines")


@pytest.mark.parametrize(
    ("change", "words"),
    [({"data_hash": "2"}, "pictures or captions"), ({"settings": {"sample": 2}}, "settings"), ({"prompts": ["{c}"]}, "prompts")],
)
def test_what_was_not_measured_alike_is_said(tmp_path, change, words):
    first = {"data_hash": "1", "settings": {"sample": 1}, "prompts": ["a {c}"]}
    alike = write(tmp_path, result(**first), result(**first))
    assert "cannot be compared" not in alike
    found = write(tmp_path, result(**first), result(**first | change))
    assert f"measured with other {words} than a: the numbers cannot be compared." in found


def test_cost_takes_parameters_from_budgets_where_nothing_was_timed(tmp_path):
    found = [result(budget={"parameters": n}) for n in (1e6, 9e6)]
    text = section(write(tmp_path, *found), "cost")
    assert "By size, d" in text
    assert "By time" not in text


def test_reproduction_says_common_facts_once(html, made):
    text = section(html.read_text(encoding="utf-8"), "again")
    for model in made[0]:
        assert text.count(model.results[0].model_hash) == 1, "the same for all results of a model"
    assert text.count("<dt>data, hash</dt>") == sum(len(model.results) for model in made[0])
    assert "settings.sample" in text
    assert "a drawing of {c}" in text
    assert ">acc1</dt><dd>0.64 (0.6 to 0.68)</dd>" in text.replace("\n", "")


# Pictures


def zero_shot(model: ModelResults) -> list[Result]:
    return [r for r in model.results if r.task.startswith("zeroshot")]


def test_pictures_are_those_of_the_rows(made, tmp_path):
    model = made[0][0]
    found = next(r for r in model.results if r.task == "zeroshot_classification")
    few = replace(found, details={"failures": found.details["failures"][:4], "classes": found.details["classes"]})
    write_page(tmp_path / "page.html", [replace(model, results=[few])], SAID)
    source = open_labelled(found.spec)
    shown = images((tmp_path / "page.html").read_text())
    assert len(shown) == 4
    for picture, failure in zip(shown, few.details["failures"]):
        right = np.asarray(source.image(failure["row"]).resize(picture.size), float)
        assert abs(np.asarray(picture, float) - right).mean() < 6, "JPEG changes little"


def test_found_pictures_are_framed(made, tmp_path):
    model = made[0][0]
    found = next(r for r in model.results if r.task == "zeroshot_retrieval")
    entry = {"caption": "x", "row": 3, "rank": 2.0, "found": [5, 3, 1, 0, 2], "scores": [1.0] * 5}
    few = replace(found, details={"gallery": [entry]})
    write_page(tmp_path / "page.html", [replace(model, results=[few])], SAID)
    tiles = re.findall(r'<figure class="tile( right)?">', (tmp_path / "page.html").read_text())
    assert tiles == ["", "", " right", "", "", ""], "the caption's own picture, then five answers of which the second is right"


def test_no_pictures_when_they_are_not_wanted(made, tmp_path):
    write_page(tmp_path / "page.html", [replace(m, results=zero_shot(m)) for m in made[0]], SAID, pictures=False)
    text = read_text(tmp_path / "page.html")
    assert "<img" not in text
    assert text.count("Pictures were left out of this page, and with them all that is about single ones") == 2, "once a dataset"


def test_a_private_page_says_nothing_of_single_pictures(made, tmp_path):
    """Neither captions nor queries nor keys nor folders: what the public page says of them is gone."""
    models, _ = made
    kept = [(open_pairs if r.task == "zeroshot_retrieval" else open_labelled)(r.spec) for r in zero_shot(models[0])]
    private = {text for source in kept for text in (*source.keys, *getattr(source, "captions", ()))}
    private |= {e["query"] for m in models for r in m.results for e in r.details.get("worst", []) if "query" in e}
    private |= {e["negative"] for m in models for r in m.results for k in r.details.get("kinds", []) for e in k.get("examples", [])}
    private |= {str(Path(r.spec).parent) for r in models[0].results}
    found = {}
    for pictures in (True, False):
        write_page(tmp_path / "page.html", models, SAID, pictures=pictures)
        text = html_module.unescape((tmp_path / "page.html").read_text())
        found[pictures] = [each for each in private if each in text]
    assert len(found[True]) > 10
    assert found[False] == []


def test_rows_that_could_not_be_used_are_counted(tmp_path):
    size = {"images": 60, "classes": 3, "bad_rows": 7}
    assert "60 pictures of 3 classes; 7 rows could not be used" in write(tmp_path, result(size=size))


def test_languages_of_one_family_stand_side_by_side(tmp_path):
    def one(language, share):
        metrics = {f"{way}_recall@10": share for way in ("i2t", "t2i")}
        return result("zeroshot_retrieval", f"shop [{language}]", metrics=metrics, language=language, family="shop")

    text = write(tmp_path, [one("en", 0.625), one("de", 0.375)], [one("en", 0.5)])
    block = text[text.index("By language") : text.index("How to make it again", text.index("By language"))]
    for shown in ("62.5", "37.5", "50.0", "–"):
        assert shown in block
    assert "By language" not in write(tmp_path, result())


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"spec": "nowhere/at/all"}, "No pictures: all cannot be opened here."),
        ({"spec": ""}, "do not say which source"),
        ({"data_hash": "0" * 32}, "is not what it was when this was measured"),
    ],
)
def test_a_source_that_is_not_there_costs_the_pictures_only(made, tmp_path, change, note):
    models = [replace(m, results=[replace(r, **change) for r in zero_shot(m) if r.dataset == LONG]) for m in made[0]]
    write_page(tmp_path / "page.html", models, SAID)
    text = read_text(tmp_path / "page.html")
    assert "<img" not in text
    assert text.count(note) == 1
    assert "The most confident mistakes of ping-small" in text


def test_no_pictures_when_models_saw_different_data(made, tmp_path):
    """Row 3 of one source is not row 3 of another."""
    models = [replace(m, results=[replace(r, data_hash=m.label) for r in zero_shot(m) if r.dataset == LONG]) for m in made[0]]
    write_page(tmp_path / "page.html", models, SAID)
    text = read_text(tmp_path / "page.html")
    assert "<img" not in text
    assert "not measured on the same pictures" in text


def test_class_names_of_a_file_are_taken_from_the_results(made, tmp_path):
    """A source is recognised, and its tiles named, though the names are not in its folders."""
    found = next(r for r in made[0][0].results if r.task == "zeroshot_classification")
    source = open_labelled(found.spec)
    names = [f"number {i}" for i in range(len(source.classnames))]
    renamed = replace(source, classnames=names)
    details = {"classes": [{"name": n, "accuracy": 0.5, "count": 1} for n in names], "failures": found.details["failures"][:1]}
    changed = replace(found, details=details, data_hash=renamed.fingerprint)
    write_page(tmp_path / "page.html", [replace(made[0][0], results=[changed])], SAID)
    text = (tmp_path / "page.html").read_text()
    assert len(images(text)) == 1
    assert re.search(r'alt="number \d+"', text)


# Figures


def test_of_many_classes_the_worst_and_the_best_are_shown(tmp_path):
    classes = [{"name": f"class{i:03d}", "accuracy": i / 100, "count": 1} for i in range(100)]
    svg = re.search(r"<svg.*?</svg>", write(tmp_path, result(details={"classes": classes})), re.S).group()
    assert re.findall(r"class\d{3}", svg) == [f"class{i:03d}" for i in [*range(99, 79, -1), *range(19, -1, -1)]]


def test_classes_of_one_name_are_kept_apart(tmp_path):
    classes = [{"name": "crane", "accuracy": a, "count": 1} for a in (0.2, 0.9)]
    svg = re.search(r"<svg.*?</svg>", write(tmp_path, result(details={"classes": classes})), re.S).group()
    assert set(re.findall(r"crane[^<]*", svg)) == {"crane", "crane (2)"}


def test_corruptions_by_family_and_the_severities_that_were_measured(tmp_path):
    curves = {name: [0.4, 0.1] for name in reversed(CORRUPTIONS)}
    details = {"measure": "acc1", "curves": curves, "families": dict(CORRUPTIONS), "severities": [2, 4]}
    metrics = {"clean": 0.6, "corrupted": 0.25, "severity_2": 0.4, "severity_4": 0.1}
    found = section(write(tmp_path, result("corruptions", metrics=metrics, details=details)), "dataset-1-corruptions")
    assert re.findall(r'<th scope="col">([^<]*)</th>', found)[-4:] == ["corruption", "2", "4", "mean"]
    families = re.findall(r"<small>(noise|blur|weather|digital)</small>", found)
    assert families == sorted(families, key=["noise", "blur", "weather", "digital"].index)
    assert found.count(">25.0<") == len(CORRUPTIONS) + 1, "the mean of every corruption, and of all"


def marks(svg: str, colour: int) -> np.ndarray:
    """[n, 2] places of the dots of a colour, in the order in which they were drawn."""
    found = re.findall(rf'<use xlink:href="[^"]*" x="([0-9.-]+)" y="([0-9.-]+)" style="fill: var\(--arm-{colour}\)', svg)
    return np.array(found, dtype=float)


def test_dots_lie_where_their_values_are():
    """Places along x are one affine function of the values, whatever the series; places along y are of the rows, downwards."""
    a, b = [10.0, 35.0, 20.0, None], [50.0, 15.0, 30.0, 40.0]
    svg = dots(["p", "q", "r", "s"], [Series(a, 1), Series(b, 2)], name="places", x="x")
    places = np.concatenate([marks(svg, 1), marks(svg, 2)])
    values = np.array([v for v in a + b if v is not None])
    rows = np.array([0, 1, 2, 0, 1, 2, 3])
    assert len(places) == 7
    for column, known, sign in ((places[:, 0], values, 1), (places[:, 1], rows, 1)):
        slope, start = np.polyfit(known, column, 1)
        assert sign * slope > 0
        assert np.abs(slope * known + start - column).max() < 0.01


def test_trends_lie_where_their_values_are():
    """On a logarithmic axis, places are an affine function of the logarithm."""
    at, values = [0.01, 1.0, 10.0], [20.0, 60.0, 35.0]
    places = marks(trend(at, [Series(values, 3)], name="places", x="x", log="x"), 3)
    for column, known, sign in ((places[:, 0], np.log(at), 1), (places[:, 1], np.array(values), -1)):
        slope, start = np.polyfit(known, column, 1)
        assert sign * slope > 0
        assert np.abs(slope * known + start - column).max() < 0.01


@pytest.mark.parametrize(
    "svg",
    [
        lambda: trend([0, 1, 2], [Series([50, None, 20], 1), Series([3, 2, 1], 2, "dashed")], name="t", x="x"),
        lambda: trend([0.01, 1, 100], [Series([0.1, 1, 10], 1)], name="l", x="x", log="xy", zero=False),
        lambda: trend([1, 10], [Series([5, 5], -1, "hollow")], name="k", x="x", ticks=False),
        lambda: bars(["k"], [Series([70], 1), Series([None], 2)], name="b", x="x", line=50, marks=Series([60], -1)),
        lambda: reliability([], [{"confidence": 0.5, "accuracy": 0.4, "low": 0.3, "high": 0.5}], 1, name="r"),
        lambda: steps([0, 0.5, 1], [Series([0, 0], 1), Series([1, 3], -1, "dashed")], name="s", x="x"),
        lambda: scatter([Spot("a", 1, 2, 1), Spot("b" * 60, 100, 3, 2)], name="c", x="x"),
        lambda: scatter([Spot("a", 0, 2, 1), Spot("b", 0, 2, 2)], name="c", x="x"),
        lambda: differences([Whisker(EVIL, 1, None, None, [], 1), Whisker("b", 1, 0, 2, [], 2)], name="w", x="x"),
        lambda: dots([EVIL, "語"], [Series([None, None], 1)], name="d", x="x", joined=True),
    ],
)
def test_drawings_are_inline_escaped_and_of_the_page_colours(svg, recwarn):
    found = svg()
    Page(f"<div>{found}</div>")
    assert found.startswith('<svg class="plot"')
    assert "<script" not in found
    assert not re.search(r"#0[a1]0[b2]", found), "every stand-in became a variable"
    assert "mathdefault" not in found, "no TeX on logarithmic axes"
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_short_labels():
    assert short("a" * 40) == "a" * (MOST_LETTERS - 1) + "…"
    assert short("a\x00b\nc\ud800") == "a b c "
    assert short("語" * 5) == "語" * 5


# Words


@pytest.mark.parametrize(
    ("name", "number", "said"),
    [
        ("acc1", 0.6349, "63.5"),
        ("gap", -0.031, f"{MINUS}3.1"),
        ("kept", 1.3, "130.0"),
        ("auroc@emoji", 0.5, "50.0"),
        ("temperature", 1.7, "1.7"),
        ("nll_scaled", 2.7061, "2.71"),
        ("uniformity_text", -1.9, f"{MINUS}1.9"),
        ("parameters", 8.4e6, "8.40 M"),
        ("parameters", 1200, "1.2 k"),
        ("image_ms", 4.237, "4.24"),
        ("k", 10.0, "10"),
    ],
)
def test_values_are_written_in_their_unit(name, number, said):
    assert value(name, number) == said


def test_names_of_metrics():
    assert metric_name("i2t_recall@5") == "image → text, recall@5"
    assert metric_name("pgd@0.5") == "PGD, ε 0.5/255"
    assert metric_name("auroc@emoji set") == "AUROC, emoji set"
    assert metric_name("corrupted/gaussian_noise") == "corrupted, gaussian noise"
    assert not is_fraction("hubness_skew_image")
    assert is_fraction("hub_share_image")


def test_every_evaluator_has_a_section_and_its_directions():
    """Directions are those of the evaluators; only what describes has none."""
    assert set(SECTIONS) == set(EVALUATIONS)
    for task in EVALUATIONS:
        kind = type(evaluation(task))
        for name in {*kind.headline, *kind.lower}:
            found = direction(task, name)
            if found == "none":
                assert task == "geometry" or name in ("temperature", "C", "k")
            else:
                assert found == ("down" if name in kind.lower else "up"), name
