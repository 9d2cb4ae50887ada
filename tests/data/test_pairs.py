"""Pairs, their links, keys and problems."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipling.data.pairs import Location, Pairs, Row, clean_caption, hash_bytes, normalise_caption
from clipling.data.problems import Problems
from clipling.data.reading import Reading, combine, merge
from clipling.errors import UserError
from tests.data.making import picture, put


def pairs_of(*rows: tuple[str, list[str], str, str]) -> Pairs:
    """Pairs of (key, captions, hash, group)."""
    made = [Row(key, captions, Location(key), group) for key, captions, _, group in rows]
    return Pairs.from_rows("test", made, [digest for _, _, digest, _ in rows])


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("A dog .", "a  dog", True),
        ("A\tdog!\n", "a dog", True),
        ("STRASSE", "straße", True),
        ("ﬁne café", "fine cafe\u0301", True),
        ("a dog", "a dogs", False),
        ("a-b", "a b", False),
        ("!!!", "???", False),
        ("10 %", "10", True),
    ],
)
def test_normalised_captions(one, other, same):
    assert (normalise_caption(one) == normalise_caption(other)) is same


@given(st.text())
def test_normalising_twice_changes_nothing(text):
    once = normalise_caption(text)
    assert normalise_caption(once) == once
    assert unicodedata.is_normalized("NFKC", once)


@given(st.text(st.characters()))  # lone surrogates too
def test_captions_can_be_written(text):
    cleaned = clean_caption(text)
    assert cleaned.encode("utf-8").decode("utf-8") == cleaned


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(["a dog", "A dog.", "a cat", "cat"]), min_size=1, max_size=3, unique=True),
            st.sampled_from(["h1", "h2", "h3", "h4"]),
            st.sampled_from(["", "", "g1", "g2"]),
        ),
        max_size=8,
    )
)
def test_links_are_the_definition_applied_to_all_couples(rows):
    pairs = pairs_of(*((f"k{n}", captions, digest, group) for n, (captions, digest, group) in enumerate(rows)))
    links = pairs.links()
    for i, j in combinations(range(len(rows)), 2):
        (one, hash_one, group_one), (two, hash_two, group_two) = rows[i], rows[j]
        alike = any(normalise_caption(a) == normalise_caption(b) for a in one for b in two)
        same = alike or hash_one == hash_two or (group_one == group_two != "")
        assert bool(set(links[i]) & set(links[j])) is same
    for found in links:  # a class of one pair has no id
        assert len(found) == len(set(found))
        assert all(sum(number in other for other in links) > 1 for number in found)


def test_access(tmp_path):
    path = put(tmp_path / "two", b"xx" + picture(1) + picture(2))
    one, two = len(picture(1)), len(picture(2))
    rows = [
        Row("a", ["1", "2"], Location(str(path), 2, one), "g", {"split": "train"}),
        Row("b", [], Location(str(path), 2 + one, two)),
        Row("c", ["3"], Location(str(path), 2 + one, two + 1)),
    ]
    pairs = Pairs.from_rows("p", rows, [hash_bytes(picture(1)), hash_bytes(picture(2)), "?"])
    assert (len(pairs), pairs.offsets.tolist(), pairs.captions) == (3, [0, 2, 2, 3], ["1", "2", "3"])
    assert [list(pairs.caption_rows(i)) for i in range(3)] == [[0, 1], [], [2]]
    assert pairs.image_bytes(1) == picture(2)
    assert pairs.image(0).size == (12, 9)
    with pytest.raises(UserError, match="'c' can no longer be read"):
        pairs.image_bytes(2)
    back = pairs.subset([2, 0])
    assert (back.keys, back.captions, back.offsets.tolist(), back.groups) == (["c", "a"], ["3", "1", "2"], [0, 1, 3], ["", "g"])
    assert back.extras[1] == {"split": "train"}


def test_fingerprint_feels_every_change():
    base = [("a", ["x", "y"], "h", "g"), ("b", ["z"], "i", "")]
    variants = [
        base,
        base[::-1],
        [("aa", *base[0][1:]), base[1]],
        [("a", ["xy"], "h", "g"), base[1]],
        [("a", ["x"], "h", "g"), ("b", ["y", "z"], "i", "")],
        [("a", ["x", "y"], "j", "g"), base[1]],
        [("a", ["x", "y"], "h", ""), base[1]],
        base[:1],
    ]
    found = [pairs_of(*rows).fingerprint for rows in variants]
    assert len(set(found)) == len(found)
    assert pairs_of(*base).fingerprint == found[0]


def reading(origin: str, *rows: Row) -> Reading:
    return Reading(origin, list(rows))


def test_rows_of_one_image_become_one_pair():
    a, b = Location("/a"), Location("/b")
    rows = [Row("a", ["1"], a), Row("b", ["2"], b, extras={"x": 1}), Row("./a", ["3", "1"], a, "g", {"y": 2})]
    merged = merge(reading("t.csv", *rows))
    assert merged == [Row("a", ["1", "3"], a, "g", {"y": 2}), Row("b", ["2"], b, "", {"x": 1})]
    assert rows[0].captions == ["1"]  # what was handed in stays as it was


def test_keys_get_as_much_of_their_origin_as_they_need():
    one = reading("/data/x/00.tar", Row("k", ["1"], Location("1")), Row("only", ["1"], Location("2")))
    two = reading("/data/x/01.tar", Row("k", ["1"], Location("3")))
    three = reading("/data/y/01.tar", Row("k", ["1"], Location("4")))
    rows, _ = combine([one, two])
    assert [row.key for row in rows] == ["00/k", "only", "01/k"]
    one, two = replace(one, rows=[Row("k", ["1"], Location("1"))]), replace(two, rows=[Row("k", ["1"], Location("3"))])
    for order in ([one, two, three], [three, two, one]):
        fresh = [replace(part, rows=[Row("k", ["1"], part.rows[0].location)]) for part in order]
        rows, _ = combine(fresh)
        assert {row.location.path: row.key for row in rows} == {"1": "00/k", "3": "x/01/k", "4": "y/01/k"}


def test_one_image_in_two_sources_is_one_pair():
    rows, _ = combine([reading("a.csv", Row("k", ["1"], Location("1"))), reading("b.csv", Row("j", ["2"], Location("1")))])
    assert rows == [Row("k", ["1", "2"], Location("1"))]


@given(st.lists(st.tuples(st.sampled_from("ab#2"), st.sampled_from(["/x/1.tar", "/x/1.csv", "/1.tar", "/"])), max_size=9))
def test_keys_are_always_unique(rows):
    readings = [reading(origin, Row(key, ["1"], Location(str(n)))) for n, (key, origin) in enumerate(rows)]
    found, _ = combine(readings)
    assert len({row.key for row in found}) == len(found) == len(rows)


def test_problems(tmp_path, fresh_cache):
    problems = Problems("src")
    problems.check(0, 0.0)
    for n in range(6):
        problems.add("missing image" if n else "no caption", f"line {n}", "tab\there\nand \ud800 there")
    assert problems.counts() == {"missing image": 5, "no caption": 1}
    assert len(problems) == 6
    problems.check(60, 0.1)
    with pytest.raises(UserError) as raised:
        problems.check(59, 0.1)
    message = str(raised.value)
    assert "6 of 59" in message
    assert "5 missing image, 1 no caption" in message
    assert "line 4" in message
    assert "line 5" not in message
    lines = problems.path.read_text(encoding="utf-8").splitlines()
    assert str(problems.path) in message
    assert len(lines) == 7
    assert all(line.count("\t") == 2 for line in lines)
    with pytest.raises(UserError, match="between 0 and 1"):
        problems.check(60, 10)
