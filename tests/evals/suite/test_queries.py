"""Own queries: the file, the measures against brute force, slices, and what is said when keys or rows are wrong."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from clipling.errors import UserError
from clipling.evals.suite.queries import OwnQueries, Queries, measured, slices, words
from clipling.evals.suite.query_file import read_queries
from tests.evals.suite.fakes import FakeSubject, pairs_dataset, unit

KEYS = [f"{i:05d}.png" for i in range(30)]


def written(path: Path, rows: list[tuple], header: str = "query,key,grade") -> Path:
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


# The file.

text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12).filter(lambda t: t.strip())
judgements = st.dictionaries(st.tuples(text.map(str.strip), text.map(str.strip)), st.integers(0, 1000), min_size=1, max_size=12)


def as_table(rows: list[tuple[str, str, int]], separator: str) -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=separator).writerows([("query", "key", "grade"), *rows])
    return file.getvalue().encode()


def as_lines(rows: list[tuple[str, str, int]]) -> bytes:
    return "\n".join(json.dumps(dict(zip(("query", "key", "grade"), row))) for row in rows).encode()


@settings(max_examples=60, deadline=None)
@given(judgements, st.sampled_from(["a.csv", "a.tsv", "b.csv", "a.jsonl"]))
def test_what_was_written_is_read(tmp_path_factory, judged, name):
    rows = [(query, key, grade) for (query, key), grade in judged.items()]
    path = tmp_path_factory.mktemp("queries") / name
    path.write_bytes(as_lines(rows) if name == "a.jsonl" else as_table(rows, {"a.csv": ",", "a.tsv": "\t", "b.csv": ";"}[name]))
    found = read_queries(path)
    assert {(query, key): grade for query, grades in zip(found.texts, found.grades) for key, grade in grades.items()} == judged
    assert found.texts == list(dict.fromkeys(query for query, _, _ in rows))
    assert (found.rows, len(found.problems), found.unread) == (len(rows), 0, ())
    assert found.keys() == list(dict.fromkeys(k for q in found.texts for query, k, _ in rows if query == q))


@settings(max_examples=80, deadline=None)
@given(
    st.binary(max_size=60) | st.text('query,ky\n\t";1{}[]:', max_size=40).map(str.encode),
    st.sampled_from([".csv", ".tsv", ".jsonl"]),
    st.booleans(),
)
def test_any_bytes_are_read_or_refused_with_a_message(tmp_path_factory, data, suffix, headed):
    path = tmp_path_factory.mktemp("queries") / f"x{suffix}"
    path.write_bytes((b"query,key\n" if headed else b"") + data)
    try:
        found = read_queries(path)
    except UserError as error:
        refused = str(error)
    else:
        assert found.texts
        assert all(text.strip() == text != "" for text in found.texts)
        assert all(0 <= grade <= 1000 for grades in found.grades for grade in grades.values())
        return
    assert path.name in refused


def test_grades_columns_and_blanks(tmp_path):
    path = tmp_path / "q.csv"
    path.write_text(' Query ,KEY,note,Grade\n a red disc ,x.png,hm,2.0\na red disc,x.png,,2\n"two, three",y.png,,\n')
    found = read_queries(path)
    assert (found.texts, found.grades) == (["a red disc", "two, three"], [{"x.png": 2}, {"y.png": 1}])
    assert (found.unread, found.rows) == (("note",), 3)
    path = tmp_path / "q.jsonl"
    path.write_text('{"query": "a", "key": 7}\n\n{"query": "a", "key": "8", "grade": 3.0, "by": "me"}\n')
    found = read_queries(path)
    assert (found.grades, found.unread) == ([{"7": 1, "8": 3}], ("by",))


@pytest.mark.parametrize(
    "row", [("", "k", 1), ("q", " ", 1), ("q", "k", -1), ("q", "k", "1.5"), ("q", "k", "nan"), ("q", "k", 1001), ("q", "k", "1e1"), ("q",)]
)
def test_bad_rows_are_listed_and_too_many_are_refused(tmp_path, row):
    good = [(f"query {i}", KEYS[i], 1) for i in range(9)]
    found = read_queries(written(tmp_path / "few.csv", [*good[:3], row, *good[3:]]))
    assert len(found.texts) == 9
    assert [problem.where for problem in found.problems] == ["line 5"]
    assert found.rows == 10
    with pytest.raises(UserError, match=r"1 of 9 rows cannot be used.*\n  line 2: "):
        read_queries(written(tmp_path / "many.csv", [row, *good[:8]]))


@pytest.mark.parametrize("value", [True, None, [], {"a": 1}, 1.5, "1_0", float("inf"), 10**30])
def test_values_of_other_types_are_bad_rows(tmp_path, value):
    rows = [{"query": f"q{i}", "key": KEYS[i]} for i in range(10)]
    wrong = {"query": "q", "key": "k", "grade": value} if value is not None else {"query": "q", "key": None}
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [*rows, wrong]))
    assert [problem.where for problem in read_queries(path).problems] == ["line 11"]


def test_another_grade_for_the_same_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"'k' has the grades 1 and 2 for 'q' \(line 4\)"):
        read_queries(written(tmp_path / "q.csv", [("q", "k", 1), ("p", "k", 2), ("q ", "k", 2)]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.txt", "query,key\n", "csv, .tsv or .jsonl"),
        ("q.csv", "", "must name"),
        ("q.csv", "query,picture\nq,k\n", "it has 'query', 'picture'"),
        ("q.csv", "query,key\n", "holds no queries"),
        ("q.jsonl", "", "holds no queries"),
        ("q.jsonl", "[1]\n", "not a JSON object"),
        ("q.jsonl", '{"query": "q", "image": "k"}\n', "the key is blank"),
        ("q.csv", None, "cannot be read: No such file"),
    ],
)
def test_files_that_are_none(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_queries(tmp_path / name)
    assert name in str(error.value)


# The measures.


def problem(tmp_path: Path, pictures: int = 30, count: int = 24):
    """(dataset, subject, cosines [Q, P], grades [Q, P]) with a relevant picture for each query."""
    rng = np.random.default_rng(4)
    image, query = unit(rng.standard_normal((pictures, 5))), unit(rng.standard_normal((count, 5)))
    grades = rng.choice([0, 1, 2, 3], p=[0.85, 0.05, 0.05, 0.05], size=(count, pictures))
    grades[np.arange(count), rng.integers(0, pictures, count)] = 2
    names = [f"query number {i}" + " and more" * (i % 3) for i in range(count)]
    rows = [(names[q], KEYS[p], grades[q, p]) for q in range(count) for p in range(pictures) if grades[q, p] or p == 0]
    dataset = pairs_dataset([f"caption of {i}" for i in range(pictures)], queries=written(tmp_path / "queries.csv", rows))
    subject = FakeSubject(image, dict(zip(names, query)))
    return dataset, subject, query.astype(np.float64) @ image.T.astype(np.float64), grades


@pytest.mark.parametrize("gain", ["exponential", "linear"])
def test_measures_equal_brute_force(tmp_path, gain):
    dataset, subject, cosines, grades = problem(tmp_path)
    found = OwnQueries(gain=gain)(subject, dataset)
    worth = (lambda g: 2.0**g - 1) if gain == "exponential" else float
    expected = {name: [] for name in ("ndcg@10", "mrr", "recall@1", "recall@5", "recall@10", "coverage@10")}
    for scores, judged in zip(cosines, grades):
        order = sorted(range(len(scores)), key=lambda p, scores=scores: -scores[p])
        dcg = sum(worth(judged[p]) / math.log2(i + 2) for i, p in enumerate(order[:10]))
        ideal = sum(worth(g) / math.log2(i + 2) for i, g in enumerate(sorted(judged, reverse=True)[:10]))
        first = next(i for i, p in enumerate(order) if judged[p])
        expected["ndcg@10"].append(dcg / ideal)
        expected["mrr"].append(1 / (first + 1))
        expected["coverage@10"].append(sum(judged[p] > 0 for p in order[:10]) / sum(judged > 0))
        for k in (1, 5, 10):
            expected[f"recall@{k}"].append(first < k)
    for name, values in expected.items():
        np.testing.assert_allclose(found.items[name], values, atol=1e-12)
        assert found.metrics[name] == pytest.approx(np.mean(values))
    assert all(found.metrics[name] == pytest.approx(values.mean()) for name, values in found.items.items())
    worst = found.details["worst"]
    assert [row["ndcg"] for row in worst] == pytest.approx(sorted(expected["ndcg@10"])[:12])
    for row in worst:
        q = [f"query number {i}" + " and more" * (i % 3) for i in range(24)].index(row["query"])
        assert row["found"] == np.argsort(-cosines[q])[:5].tolist()
        assert sorted(row["relevant"]) == np.flatnonzero(grades[q]).tolist()
        assert grades[q][row["relevant"]].tolist() == sorted(grades[q][grades[q] > 0], reverse=True)


def test_blocks_change_nothing(tmp_path):
    _, subject, cosines, table = problem(tmp_path)
    query = np.array(list(subject.text_features.values()))
    grades = [{int(p): int(row[p]) for p in np.flatnonzero(row)} for row in table]
    whole = measured(query, subject.image_features, grades, "linear")
    for name, values in measured(query, subject.image_features, grades, "linear", block=5).items():
        np.testing.assert_allclose(values, whole[name], atol=1e-12)
    assert len(whole["mrr"]) == len(cosines)


def test_a_perfect_and_a_constant_model(tmp_path):
    rows = [(f"q{i}", KEYS[i], 1) for i in range(30)]
    dataset = pairs_dataset(["a caption"] * 30, queries=written(tmp_path / "q.csv", rows))
    perfect = OwnQueries()(FakeSubject(np.eye(30), {f"q{i}": np.eye(30)[i] for i in range(30)}), dataset)
    assert {perfect.metrics[m] for m in ("ndcg@10", "mrr", "recall@1", "coverage@10")} == {1.0}
    constant = OwnQueries()(FakeSubject(np.ones((30, 2)), {f"q{i}": [1.0, 0.0] for i in range(30)}), dataset)
    assert constant.metrics["recall@10"] == pytest.approx(10 / 30)
    assert constant.metrics["mrr"] == pytest.approx(sum(1 / i for i in range(1, 31)) / 30)


def test_unknown_keys_and_queries_without_an_answer(tmp_path):
    rows = [(f"q{i}", KEYS[i], 1) for i in range(20)] + [("lost", "gone.png", 1), ("wrong", KEYS[0], 0)]
    dataset = pairs_dataset(["a caption"] * 30, queries=written(tmp_path / "q.csv", rows))
    subject = FakeSubject(np.eye(30), lambda texts: np.ones((len(texts), 30)))
    found = OwnQueries()(subject, dataset)
    assert len(found.items["mrr"]) == 20
    assert subject.asked[0] == ("texts", [f"q{i}" for i in range(20)])
    assert "1 of 21 keys are no pictures of the dataset." in found.notes
    assert "gone.png" in found.details["left_out"]
    assert any(note.startswith("2 of 22 queries have no relevant picture") for note in found.notes)
    more = [(f"m{i}", f"gone{i}.png", 1) for i in range(6)]
    dataset = pairs_dataset(["a caption"] * 30, queries=written(tmp_path / "q.csv", rows + more))
    with pytest.raises(
        UserError, match=r"7 of 27 keys.*'gone.png', 'gone0.png', 'gone1.png', 'gone2.png', 'gone3.png'\. Its keys look like '00000"
    ):
        OwnQueries()(subject, dataset)
    dataset = pairs_dataset(["a caption"] * 30, queries=written(tmp_path / "q.csv", [("wrong", KEYS[0], 0)]))
    with pytest.raises(UserError, match="no query has a relevant picture"):
        OwnQueries()(subject, dataset)


def test_slices_by_words():
    captions = ["a dog", "a dog runs", "a cat", "A bird.", "a dog, a dog"]
    texts = ["a dog", "cat", "a bird on a wire", "dog runs", "zebra"]
    found = slices(texts, captions)
    # Captions that hold the rarest known word: dog 3, cat 1, bird 1, runs 1, none. Their median is 1.
    assert {name: np.flatnonzero(mask).tolist() for name, mask in found.items()} == {
        "head": [0],
        "tail": [1, 2, 3],
        "short": [0, 1, 3, 4],
        "long": [2],
        "unseen_words": [2, 4],
    }
    assert set(slices(texts, [])) == {"short", "long"}
    assert words("Zwei Hunde, Straße_2!") == ["zwei", "hunde", "strasse_2"]


def test_slices_are_means_over_their_queries_and_small_ones_are_left_out(tmp_path):
    dataset, subject, _, _ = problem(tmp_path)
    found = OwnQueries()(subject, dataset)
    names = [f"query number {i}" + " and more" * (i % 3) for i in range(24)]
    masks = slices(names, dataset.pairs.captions)
    table = {row["slice"]: row for row in found.details["slices"]}
    assert set(table) == {name for name, mask in masks.items() if mask.sum() >= 5}
    assert {"short", "long", "unseen_words"} <= set(table)
    for name, row in table.items():
        assert row["queries"] == masks[name].sum()
        for metric in ("ndcg@10", "mrr", "recall@10"):
            assert row[metric] == found.metrics[f"{metric}/{name}"] == pytest.approx(found.items[metric][masks[name]].mean())
        assert f"recall@1/{name}" in found.metrics
    few = written(tmp_path / "few.csv", [(f"query {i}", KEYS[i], 1) for i in range(4)])
    found = OwnQueries()(FakeSubject(np.eye(30), lambda texts: np.eye(30)[: len(texts)]), pairs_dataset(["x"] * 30, queries=few))
    assert found.details["slices"] == []
    assert not any("/" in name for name in found.metrics)
    json.dumps(found.details, allow_nan=False)


def test_skipped_and_settings(tmp_path):
    assert OwnQueries().skipped(pairs_dataset(["x"])) == "it has no queries"
    assert OwnQueries().skipped(pairs_dataset(["x"], queries=tmp_path / "q.csv")) is None
    assert TypeAdapter(OwnQueries).validate_python({"gain": "linear"}).gain == "linear"
    with pytest.raises(ValidationError):
        TypeAdapter(OwnQueries).validate_python({"gain": "square"})
    assert Queries(["a"], [{"k": 1}], 1).keys() == ["k"]
