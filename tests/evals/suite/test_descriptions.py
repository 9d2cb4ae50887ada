"""Classification via description: its identities, scores by hand, the rules of its sentences, and the file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from sklearn.metrics import balanced_accuracy_score

from clipling.errors import UserError
from clipling.evals.suite.descriptions import Descriptions, checked, read_descriptions, sentence
from clipling.evals.suite.zeroshot_classification import ZeroShotClassification
from tests.evals.suite.fakes import FakeSubject, labelled_dataset, unit

NAMES = ["hen", "cat", "fish", "car"]
NONE: dict[str, list[str]] = {name: [] for name in NAMES}
GIVEN = {
    "hen": ["two legs", "a beak", "feathers"],
    "cat": ["has whiskers"],
    "fish": ["fins", "often silver"],
    "car": ["used for driving", "wheels"],
}


def drawn(texts: list[str]) -> np.ndarray:
    """A vector for every text, the same each time."""
    return np.stack([np.random.default_rng(list(text.encode())).standard_normal(6) for text in texts])


def problem(given=None, n: int = 80, templates=("a photo of a {c}.",)):
    rng = np.random.default_rng(2)
    labels = rng.choice(4, size=n, p=[0.4, 0.3, 0.2, 0.1])
    dataset = labelled_dataset(n, NAMES, labels, templates=list(templates), descriptions=GIVEN if given is None else given)
    prompt = drawn([f"a photo of a {name}." for name in NAMES])
    return dataset, FakeSubject(0.6 * prompt[labels] + rng.standard_normal((n, 6)), drawn)


def vectors(given: dict[str, list[str]]) -> list[np.ndarray]:
    return [unit(drawn([sentence(name, clause) for clause in given[name]])).astype(np.float64) for name in NAMES]


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_scores_are_means_of_cosines(pooling):
    dataset, subject = problem()
    found = Descriptions(pooling=pooling)(subject, dataset)
    image, labels = subject.images(dataset).astype(np.float64), dataset.labelled.labels
    cosines = [[image @ v for v in some] for some in vectors(GIVEN)]
    scores = np.stack([np.mean(some, axis=0) if pooling == "mean" else np.max(some, axis=0) for some in cosines], axis=1)
    means = unit([some.mean(0) for some in vectors(GIVEN)])
    plain = ZeroShotClassification()(subject, dataset)
    guess = scores.argmax(1)
    assert found.metrics == pytest.approx(
        {
            "acc1": (guess == labels).mean(),
            "mean_per_class_recall": balanced_accuracy_score(labels, guess),
            "acc1_names": plain.metrics["acc1"],
            "acc1_normalised_mean": ((image @ means.T).argmax(1) == labels).mean(),
        }
    )
    assert len({round(value, 6) for value in found.metrics.values()}) >= 3, "the classifiers must differ"
    np.testing.assert_allclose(found.items["acc1"], guess == labels)
    for c, row in enumerate(found.details["classes"]):
        assert row == {
            "name": NAMES[c],
            "accuracy": pytest.approx((guess == labels)[labels == c].mean()),
            "by_name": pytest.approx(plain.items["acc1"][labels == c].mean()),
        }


def test_one_description_that_yields_the_plain_prompt_is_zero_shot():
    given = {name: ["two legs"] for name in NAMES}
    dataset, subject = problem(given, templates=["{c}, which has two legs"])
    found = Descriptions()(subject, dataset)
    zero_shot = ZeroShotClassification()(subject, dataset)
    np.testing.assert_array_equal(found.items["acc1"], zero_shot.items["acc1"])
    np.testing.assert_array_equal(found.items["acc1"], found.items["acc1_names"])
    assert found.metrics["mean_per_class_recall"] == pytest.approx(zero_shot.metrics["mean_per_class_recall"])


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_saying_everything_twice_changes_nothing(pooling):
    dataset, subject = problem()
    twice, _ = problem({name: texts * 2 for name, texts in GIVEN.items()})
    once, again = Descriptions(pooling=pooling)(subject, dataset), Descriptions(pooling=pooling)(subject, twice)
    assert once.metrics == pytest.approx(again.metrics)
    np.testing.assert_allclose(once.items["acc1"], again.items["acc1"])
    # Saying one of them twice does change a mean.
    more, _ = problem({**GIVEN, "hen": [*GIVEN["hen"], "feathers", "feathers", "feathers"]})
    if pooling == "mean":
        assert (Descriptions()(subject, more).items["acc1"] != once.items["acc1"]).any()


def test_an_empty_list_is_the_plain_prompt():
    dataset, subject = problem({**GIVEN, "cat": []})
    found = Descriptions()(subject, dataset)
    image = subject.images(dataset).astype(np.float64)
    means = [some.mean(0) if len(some) else None for some in vectors({**GIVEN, "cat": ["x"]})]
    means[1] = unit(drawn(["a photo of a cat."]))[0]
    np.testing.assert_allclose(found.items["acc1"], (image @ np.stack(means).T).argmax(1) == dataset.labelled.labels)
    assert found.notes == ["1 of 4 classes have no descriptions and stand by their plain prompts."]
    only, _ = problem({**NONE, "car": ["wheels"]})
    Descriptions()(subject, only)
    assert Descriptions().skipped(problem(NONE)[0]) == "its descriptions are all empty"
    assert Descriptions().skipped(labelled_dataset(4, 2)) == "it has no descriptions"
    assert Descriptions().skipped(dataset) is None


def test_a_template_goes_around_the_sentence_and_a_sample_is_all_that_is_encoded():
    dataset, subject = problem()
    found = Descriptions(template="a photo of a {c}.", sample=30)(subject, dataset)
    texts = next(asked[1] for asked in subject.asked if asked[0] == "texts" and len(asked[1]) == 8)
    assert texts[0] == "a photo of a hen, which has two legs."
    assert subject.asked[0][2] == dataset.sample(30).tolist()
    assert {len(values) for values in found.items.values()} == {30}


def test_a_nonsense_name_is_known_by_its_description():
    """A model that hears attributes only: right descriptions classify, swapped ones do not, names say nothing."""
    attributes = ["stripes", "spots", "scales"]
    names = ["blicket", "dax", "wug"]

    def hear(texts):
        return np.array([[0.1, *(float(a in text) for a in attributes)] for text in texts])

    labels = np.arange(60) % 3
    subject = FakeSubject(np.hstack([np.full((60, 1), 0.1), np.eye(3)[labels]]), hear)
    right = {name: [attribute] for name, attribute in zip(names, attributes)}
    swapped = {name: [attribute] for name, attribute in zip(names, attributes[1:] + attributes[:1])}
    found = Descriptions()(subject, labelled_dataset(60, names, labels, descriptions=right))
    assert found.metrics["acc1"] == 1.0
    assert found.metrics["acc1_names"] == pytest.approx(1 / 3)
    assert Descriptions()(subject, labelled_dataset(60, names, labels, descriptions=swapped)).metrics["acc1"] == 0.0


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_a_model_that_knows_nothing_scores_chance(pooling):
    dataset, _ = problem()
    same = FakeSubject(np.ones((80, 3)), lambda texts: np.ones((len(texts), 3)))
    assert Descriptions(pooling=pooling)(same, dataset).metrics == pytest.approx(
        dict.fromkeys(("acc1", "acc1_names", "acc1_normalised_mean", "mean_per_class_recall"), 0.25)
    )


def test_explanations_are_the_sorted_cosines_of_the_chosen_class():
    dataset, subject = problem()
    found = Descriptions()(subject, dataset)
    image, some = subject.images(dataset).astype(np.float64), vectors(GIVEN)
    explained = found.details["explained"]
    assert sorted(row["true"] for row in explained) == sorted(NAMES), "a picture of each class"
    for row in explained:
        c = int(np.argmax([(v @ image[row["row"]]).mean() for v in some]))
        assert row["class"] == NAMES[c]
        assert row["true"] == NAMES[dataset.labelled.labels[row["row"]]]
        expected = dict(zip([sentence(NAMES[c], clause) for clause in GIVEN[NAMES[c]]], some[c] @ image[row["row"]]))
        assert dict(row["descriptions"]) == pytest.approx(expected)
        assert [s for _, s in row["descriptions"]] == sorted((s for _, s in row["descriptions"]), reverse=True)
    json.dumps(found.details, allow_nan=False)


@pytest.mark.parametrize(
    ("clause", "expected"),
    [
        ("a long tail", "hen, which is a long tail"),
        ("an orange beak", "hen, which is an orange beak"),
        ("has spots", "hen, which has spots"),
        ("Often brown", "hen, which Often brown"),
        ("typically small", "hen, which typically small"),
        ("may fly", "hen, which may fly"),
        ("can swim", "hen, which can swim"),
        ("used for eggs", "hen, which is used for eggs"),
        ("antlers", "hen, which has antlers"),
        ("  two   legs ", "hen, which has two legs"),
    ],
)
def test_sentences_follow_the_first_word(clause, expected):
    assert sentence("hen", clause) == expected


words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(lambda t: t.strip())


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(words, st.lists(words, max_size=4), min_size=1, max_size=5), st.booleans())
def test_what_was_written_is_read(tmp_path_factory, given, ascii_only):
    path = tmp_path_factory.mktemp("described") / "d.json"
    path.write_text(json.dumps(given, ensure_ascii=ascii_only), encoding="utf-8")
    assert read_descriptions(path, list(given)) == {name: [text.strip() for text in texts] for name, texts in given.items()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"hen": ["a"], "cat": []', "not valid JSON"),
        ("[1]", "must be a JSON object"),
        ('{"hen": ["a"], "cat": [], "hen": ["b"]}', "names 'hen' twice"),
        ('{"hen": ["a"]}', "lacks 1 of 2 classes, first 'cat'"),
        ('{"hen": ["a"], "cat": [], "hem": []}', "1 unknown classes, first 'hem'. Did you mean 'hen'"),
        ('{"hen": "a beak", "cat": []}', "descriptions of 'hen' are 'a beak'"),
        ('{"hen": ["a", 1], "cat": []}', "descriptions of 'hen'"),
        ('{"hen": null, "cat": []}', "descriptions of 'hen'"),
        ('{"hen": {"a": 1}, "cat": []}', "descriptions of 'hen'"),
        ('{"hen": [" "], "cat": []}', "description of 'hen' is blank"),
        (None, "cannot be read: No such file"),
    ],
)
def test_files_that_are_none(tmp_path, content, message):
    path = tmp_path / "d.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_descriptions(path, ["hen", "cat"])
    assert "d.json" in str(error.value)


def test_descriptions_of_a_dataset_are_checked_too():
    dataset, subject = problem({"hen": ["a beak"]})
    with pytest.raises(UserError, match="toy lacks 3 of 4 classes"):
        Descriptions()(subject, dataset)
    assert checked({"crane": ("a neck",)}, ["crane", "crane"], "x") == {"crane": ["a neck"]}, "two classes of one name"


@pytest.mark.parametrize(
    ("given", "message"), [({"template": "a photo"}, "no place"), ({"sample": 0}, "sample is"), ({"pooling": "sum"}, "pooling is")]
)
def test_bad_settings_are_named(given, message):
    with pytest.raises(UserError, match=message):
        Descriptions(**given)


def test_settings_come_from_a_mapping():
    assert TypeAdapter(Descriptions).validate_python({"pooling": "max"}) == Descriptions(pooling="max")
    with pytest.raises(ValidationError):
        TypeAdapter(Descriptions).validate_python({"pooling": "sum"})
