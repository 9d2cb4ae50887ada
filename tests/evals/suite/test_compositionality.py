import json
import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from pydantic import TypeAdapter

from clipling.errors import UserError
from clipling.evals.hard_negatives import KINDS, Nouns, negatives
from clipling.evals.suite.compositionality import Compositionality
from tests.evals.suite.fakes import FakeSubject, pairs_dataset

CAPTIONS = [
    ["A red car and a blue house on a hill.", "a car beside the house"],
    ["a big dog in front of a small cat", "Two dogs on a sofa"],
    ["The old man is riding a brown horse", "a man with a horse on a beach", "a rider"],
    ["three boys sit under a tall tree", "boys under the tree"],
    ["a woman holding an orange umbrella above the dog"],
    ["a dog and a man behind a wooden table", "the table"],
    ["A horse near a tree and a black car", "a tree, a horse"],
    ["a sofa inside a white house", "the house on the hill and a beach"],
]


def dataset(captions=CAPTIONS, **beside):
    return pairs_dataset(captions, **beside)


def knowing():
    """Picture i looks along axis i; its own captions have the cosine 0.8 with it, all other texts have 0.1."""
    true = {caption: i for i, some in enumerate(CAPTIONS) for caption in some}

    def texts(asked):
        rows = np.full((len(asked), len(CAPTIONS) + 1), 0.1)
        for n, text in enumerate(asked):
            if text in true:
                rows[n, true[text]] = 0.8
            rows[n, -1] = math.sqrt(1 - (rows[n, :-1] ** 2).sum())
        return rows

    return FakeSubject(np.eye(len(CAPTIONS), len(CAPTIONS) + 1), texts)


def constant():
    return FakeSubject(np.ones((len(CAPTIONS), 3)), lambda texts: np.ones((len(texts), 3)))


def test_a_model_that_knows_the_captions_is_right_everywhere():
    found = Compositionality()(knowing(), dataset())
    assert {kind: found.metrics[kind] for kind in (*KINDS, "mean")} == dict.fromkeys((*KINDS, "mean"), 1.0)


def test_a_constant_model_scores_chance():
    found = Compositionality(captions="all")(constant(), dataset())
    assert {kind: found.metrics[kind] for kind in (*KINDS, "mean")} == dict.fromkeys((*KINDS, "mean"), 0.5)
    assert all((found.items[kind] == 0.5).all() for kind in KINDS)


def random_subject(seed=0, width=12):
    def texts(asked):
        return np.stack([np.random.default_rng([seed, *text.encode()]).normal(size=width) for text in asked])

    return FakeSubject(np.random.default_rng(seed).normal(size=(len(CAPTIONS), width)), texts)


@pytest.mark.parametrize("which", ["one", "all"])
def test_scores_are_those_of_the_shown_pairs(which):
    data, model = dataset(), random_subject()
    found = Compositionality(captions=which)(model, data)
    image = model.images(data).astype(np.float64)
    for entry in found.details["kinds"]:
        kind = entry["kind"]
        assert len(found.items[kind]) == len(found.units[kind]) == entry["count"]
        assert found.items[kind].mean() == pytest.approx(found.metrics[kind])
        assert entry["accuracy"] == found.metrics[kind]
        assert sum(rule["count"] for rule in entry["rules"]) == entry["count"]
        assert sum(rule["count"] * rule["accuracy"] for rule in entry["rules"]) == pytest.approx(entry["count"] * entry["accuracy"])
        for example in entry["examples"]:
            true, false = model.texts([example["caption"], example["negative"]]).astype(np.float64)
            assert example["caption"] in CAPTIONS[example["row"]]
            assert example["margin"] == pytest.approx(float(image[example["row"]] @ (true - false)), abs=1e-9)
        margins = [example["margin"] for example in entry["examples"]]
        assert margins == sorted(margins)
        assert len({(e["row"], e["caption"]) for e in entry["examples"]}) == len(margins) == min(4, entry["count"])
    assert found.metrics["mean"] == pytest.approx(np.mean([found.metrics[kind] for kind in KINDS]))
    json.dumps(found.details, allow_nan=False)


def test_one_caption_a_picture_or_all():
    one, every = (Compositionality(captions=which)(constant(), dataset()) for which in ("one", "all"))
    for kind in KINDS:
        assert len(set(one.units[kind])) == len(one.units[kind])  # a picture once
        assert one.details["kinds"][KINDS.index(kind)]["left_out"] + len(one.units[kind]) == len(CAPTIONS)
        assert every.details["kinds"][KINDS.index(kind)]["left_out"] + len(every.units[kind]) == sum(map(len, CAPTIONS))
        assert set(one.units[kind]) == set(every.units[kind])
    assert max(Counter(every.units["relation"].tolist()).values()) > 1


def test_reordering_pictures_changes_no_number():
    data, turned = dataset(), dataset(CAPTIONS[::-1])
    model = random_subject()
    backwards = FakeSubject(np.asarray(model.image_features)[::-1], model.text_features)
    a, b = Compositionality()(model, data), Compositionality()(backwards, turned)
    assert a.metrics == pytest.approx(b.metrics)


def test_captions_of_a_group_and_of_equal_pictures_are_true_too():
    captions = [["a red car"], ["cars in orange yellow green blue purple pink brown black white and grey"]]
    alone = Compositionality(kinds=("attribute",))
    assert "attribute" in alone(FakeSubject(np.eye(2), lambda t: np.ones((len(t), 2))), dataset(captions)).metrics
    assert 0 not in _rows(alone, dataset(captions, groups=["g", "g"]))
    assert 0 not in _rows(alone, dataset(captions, hashes=["h", "h"]))
    assert 0 in _rows(alone, dataset(captions, groups=["", ""]))


def _rows(evaluation, data):
    if evaluation.skipped(data):
        return []
    found = evaluation(FakeSubject(np.eye(len(data)), lambda t: np.ones((len(t), len(data)))), data)
    return found.units["attribute"].tolist()


def test_the_blind_reader_counts_word_pairs_of_other_pictures():
    # "a brown dog" is what the other pictures say, "a ... dog" of another colour is not.
    captions = [["a brown dog"], ["a brown dog runs"], ["one brown dog sits"], ["the brown dog"]]
    data = dataset(captions)
    found = Compositionality(kinds=("attribute",))(FakeSubject(np.eye(4), lambda t: np.ones((len(t), 4))), data)
    assert found.metrics["blind/attribute"] == 1.0
    assert found.metrics["attribute"] == 0.5
    # Alone in the dataset, its own captions do not count: nothing is known, so it is a tie, but for the words that both texts have.
    lonely = Compositionality(kinds=("attribute",))(
        FakeSubject(np.eye(1), lambda t: np.ones((len(t), 1))), dataset([["a brown dog", "brown dog"]])
    )
    assert lonely.metrics["blind/attribute"] == 0.5


def test_the_blind_score_is_that_of_brute_force():
    data = dataset()
    found = Compositionality()(constant(), data)

    def pairs_of_words(text):
        words = ["<s>", *"".join(c if c.isalnum() else " " for c in text.lower()).split(), "</s>"]
        return list(pairwise(words))

    def score(text, row):
        others = [two for i, some in enumerate(CAPTIONS) if i != row for caption in some for two in pairs_of_words(caption)]
        return sum(math.log(1 + others.count(two)) for two in pairs_of_words(text)) / len(pairs_of_words(text))

    for entry in found.details["kinds"]:
        kind = entry["kind"]
        values = dict(zip(found.units[f"blind/{kind}"].tolist(), found.items[f"blind/{kind}"]))
        for example in entry["examples"]:
            apart = score(example["caption"], example["row"]) - score(example["negative"], example["row"])
            assert values[example["row"]] == (0.5 if abs(apart) < 1e-9 else float(apart > 0))
        assert entry["blind"] == found.metrics[f"blind/{kind}"]


def test_a_sample_of_pictures_is_read_and_said():
    model, data = random_subject(), dataset()
    found = Compositionality(sample=3)(model, data)
    assert model.asked[0][2] == data.sample(3).tolist()
    assert set(found.units["word_order"]) <= set(data.sample(3).tolist())
    assert any("3 of 8 pictures" in note for note in found.notes)
    assert any("50 %" in note for note in found.notes)


def test_pictures_without_captions_are_passed_over():
    captions = [["a red car"], [], ["a red sofa"]]
    for which in ("one", "all"):
        found = Compositionality(kinds=("attribute",), captions=which)(
            FakeSubject(np.eye(3), lambda t: np.ones((len(t), 3))), dataset(captions)
        )
        assert found.units["attribute"].tolist() == [0, 2]


def test_a_kind_without_any_negative_is_left_out_of_the_mean():
    data = dataset([["a red car"], ["a blue sofa"]])
    found = Compositionality(kinds=("attribute", "word_order"))(FakeSubject(np.eye(2), lambda t: np.ones((len(t), 2))), data)
    assert set(found.metrics) == {"attribute", "mean", "blind/attribute", "blind/mean"}
    assert any("word_order" in note and "mean" in note for note in found.notes)


def test_what_cannot_be_measured_is_skipped():
    assert Compositionality().skipped(dataset()) is None
    assert Compositionality().skipped(dataset(language="en-GB")) is None
    assert "German" in Compositionality().skipped(dataset(language="German"))
    assert "de" in Compositionality().skipped(dataset(language="de"))
    assert "no captions" in Compositionality().skipped(dataset([[], []]))
    assert "no caption fits" in Compositionality().skipped(dataset([["chestnut"], ["window"]]))
    assert "attribute" in Compositionality(kinds=("attribute",)).skipped(dataset([["a dog runs on the grass"]]))


def test_bad_settings_are_named():
    for wrong, message in (
        ({"kinds": ()}, "kinds is"),
        ({"kinds": ("object", "object")}, "each once"),
        ({"sample": 0}, "sample is 0"),
        ({"captions": "two"}, "captions is 'two'"),
        ({"kinds": ("objekt",)}, "Did you mean 'object'"),
    ):
        with pytest.raises(UserError, match=message):
            Compositionality(**wrong)
    read = TypeAdapter(Compositionality).validate_python({"kinds": ["object"], "sample": None, "captions": "all"})
    assert read == Compositionality(("object",), None, "all")


def test_the_texts_asked_for_are_captions_and_what_the_rules_make_of_them():
    model = constant()
    Compositionality(kinds=("attribute", "word_order"))(model, dataset())
    (asked,) = (entry[1] for entry in model.asked if entry[0] == "texts")
    assert len(asked) == len(set(asked))
    nouns = Nouns({}, frozenset())
    made = [one for some in CAPTIONS for kind in ("attribute", "word_order") for one in negatives(some, kind, nouns) if one]
    assert set(asked) <= {text for one in made for text in (one.caption, one.negative)}
