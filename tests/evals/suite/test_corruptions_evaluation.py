"""Corruptions as an evaluator: numbers from features that are written down, and a real student over pictures on disk."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from clipling.data.classes import open_labelled
from clipling.data.source import open_pairs
from clipling.errors import UserError
from clipling.evals.corruptions import CORRUPTIONS, FAMILY, corrupt
from clipling.evals.suite import corruptions as module
from clipling.evals.suite.catalogue import evaluation
from clipling.evals.suite.corruptions import Corrupted, Corruptions, Resized, at_size
from clipling.evals.suite.dataset import Dataset
from clipling.evals.suite.subject import Subject
from clipling.models.hub import new_student
from tests.evals.suite.fakes import FakeSubject, labelled_dataset, pairs_dataset
from tests.models.making import tiny
from tests.toy import toy_folder

NAMES, LEVELS = ("fog", "contrast", "pixelate"), (1, 4)


def wrong_from(change, rows, classes: int):
    """Which of `rows` are misclassified: more with the severity, and other ones by corruption; none when clean."""
    if change.corruption is None:
        return np.zeros(len(rows), bool)
    return (rows + NAMES.index(change.corruption)) % 6 < change.severity


def features(dataset, rows, change):
    label = rows % 3
    return np.eye(3)[np.where(wrong_from(change, rows, 3), (label + 1) % 3, label)]


def test_accuracy_over_corruptions_and_severities():
    dataset = labelled_dataset(40, 3)
    subject = FakeSubject(features, class_features=np.eye(3))
    found = Corruptions(corruptions=NAMES, severities=LEVELS)(subject, dataset)
    rows = np.arange(40)
    right = {(n, s): 1.0 - wrong_from(Corrupted(n, s, 224), rows, 3) for n in NAMES for s in LEVELS}
    assert found.metrics["clean"] == 1
    assert found.metrics["corrupted"] == pytest.approx(np.mean(list(right.values())))
    assert found.metrics["kept"] == found.metrics["corrupted"]
    for s in LEVELS:
        assert found.metrics[f"severity_{s}"] == pytest.approx(np.mean([right[n, s] for n in NAMES]))
    for n in NAMES:
        assert found.metrics[f"corrupted/{n}"] == pytest.approx(np.mean([right[n, s] for s in LEVELS]))
        assert np.allclose(found.items[f"corrupted/{n}"], np.mean([right[n, s] for s in LEVELS], axis=0))
        assert found.details["curves"][n] == pytest.approx([right[n, s].mean() for s in LEVELS])
    assert found.details["measure"] == "acc1"
    assert found.details["pictures"] == 40
    assert found.details["severities"] == [1, 4]
    assert found.details["families"] == {n: FAMILY[n] for n in NAMES}
    assert set(found.metrics) == {"clean", "corrupted", "kept", "severity_1", "severity_4", *(f"corrupted/{n}" for n in NAMES)}
    assert set(found.items) == set(found.metrics) - {"kept"}
    assert not found.units
    for name, values in found.items.items():
        assert values.shape == (40,)
        assert values.dtype == np.float64
        assert values.mean() == pytest.approx(found.metrics[name])
    json.dumps(found.details, allow_nan=False)
    json.dumps(found.metrics, allow_nan=False)


def test_everything_is_asked_for_once_and_on_the_sample():
    dataset = labelled_dataset(50, 3)
    subject = FakeSubject(features_of_chance, class_features=np.eye(3))
    found = Corruptions(sample=20)(subject, dataset)
    asked = [(rows, change.name) for _, _, rows, change in subject.asked]
    assert len(asked) == 76 == len({name for _, name in asked})
    assert all(rows == dataset.sample(20).tolist() for rows, _ in asked)
    assert found.metrics["corrupted"] == pytest.approx(1 / 3)
    assert found.metrics["clean"] == pytest.approx(1 / 3)
    assert found.metrics["kept"] == pytest.approx(1)
    assert any("20 of 50 pictures" in note for note in found.notes)
    assert any("Frost" in note for note in found.notes)
    assert {name for name, values in found.details["curves"].items() if len(values) == 5} == set(CORRUPTIONS)


def features_of_chance(dataset, rows, change):
    return np.ones((len(rows), 3))


def test_nothing_right_on_clean_pictures_keeps_no_share():
    subject = FakeSubject(lambda d, rows, change: np.eye(3)[(rows + 1) % 3], class_features=np.eye(3))
    found = Corruptions(corruptions=("fog",), severities=(1,))(subject, labelled_dataset(9, 3))
    assert "kept" not in found.metrics
    assert any("Nothing is right" in note for note in found.notes)


def uneven_pairs(count: int, groups=None) -> Dataset:
    return pairs_dataset([[f"{i} caption {n}" for n in range(i % 4)] for i in range(count)], groups=groups)


@pytest.mark.parametrize(("count", "k"), [(90, 1), (160, 10)])
def test_recall_is_the_mean_of_both_directions(count, k):
    dataset = uneven_pairs(count)
    rng = np.random.default_rng(0)
    image = rng.normal(size=(count, 8))
    noise = {text: image[int(text.split()[0])] + rng.normal(size=8) for text in dataset.pairs.captions}
    subject = FakeSubject(lambda d, rows, change: image[rows if change.corruption else rows // 2], text_features=noise)
    found = Corruptions(corruptions=("snow",), severities=(2,))(subject, dataset)
    # By brute force: cosines of all pictures, those without captions too, and all captions.
    text = np.array([noise[t] for t in dataset.pairs.captions])
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text)]
    cosine, owner = unit[0] @ unit[1].T, np.array([int(t.split()[0]) for t in dataset.pairs.captions])
    by_text = [owner[t] in np.argsort(-cosine[:, t])[:k] for t in range(len(owner))]
    by_image = [i in owner[np.argsort(-cosine[i])[:k]] for i in range(count) if i % 4]
    assert found.metrics["corrupted"] == pytest.approx((np.mean(by_text) + np.mean(by_image)) / 2)
    assert found.details["measure"] == f"recall@{k}"
    assert any(f"recall@{k}" in note for note in found.notes)
    assert found.metrics["clean"] < found.metrics["corrupted"]
    assert len(found.items["corrupted"]) == len(by_image)
    assert found.items["corrupted"].mean() == pytest.approx(found.metrics["corrupted"])
    assert found.metrics["kept"] == pytest.approx(found.metrics["corrupted"] / found.metrics["clean"])


def test_groups_are_units_and_right_answers():
    # Pictures 2 i and 2 i + 1 are a group; each is given the other's caption: right within the group only.
    count = 20
    captions, groups = [str(i) for i in range(count)], [f"g{i // 2}" for i in range(count)]
    image = np.eye(count)
    subject = FakeSubject(lambda d, rows, change: image[rows], text_features={str(i): image[i ^ 1] for i in range(count)})
    settings = Corruptions(corruptions=("fog",), severities=(1,))
    assert settings(subject, pairs_dataset(captions)).metrics["corrupted"] == 0
    found = settings(subject, pairs_dataset(captions, groups=groups))
    assert found.metrics["corrupted"] == 1
    assert found.units["corrupted"].tolist() == [i - i % 2 for i in range(count)]
    assert set(found.units) == set(found.items)


def test_only_the_sample_s_captions_are_candidates():
    dataset = pairs_dataset([str(i) for i in range(60)])
    subject = FakeSubject(lambda d, rows, change: np.eye(60)[rows], text_features=lambda texts: np.eye(60)[[int(t) for t in texts]])
    Corruptions(corruptions=("fog",), severities=(1,), sample=12)(subject, dataset)
    assert subject.asked[0] == ("texts", [str(i) for i in dataset.sample(12)])


def test_without_captions():
    pairs = pairs_dataset([[], []])
    assert Corruptions().skipped(pairs) == "it has no captions"
    assert Corruptions().skipped(uneven_pairs(4)) is None
    assert Corruptions().skipped(labelled_dataset(3)) is None
    with pytest.raises(UserError, match="none of the 2 sampled pictures"):
        Corruptions(sample=2)(FakeSubject(features), pairs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corruptions": ["frog"]}, "corruptions has 'frog'"),
        ({"corruptions": []}, "at least one name"),
        ({"corruptions": ["fog", "fog"]}, "each once"),
        ({"severities": [0, 1]}, r"severities is \[0, 1\]"),
        ({"severities": []}, "severities"),
        ({"sample": 0}, "sample is 0"),
        ({"size": 31}, "size is 31"),
        ({"sized": 31}, "no setting 'sized'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        evaluation("corruptions", settings)


def test_settings_from_a_suite_file():
    made = evaluation("corruptions", {"corruptions": ["fog", "snow"], "severities": [3], "sample": None, "size": 64})
    assert made == Corruptions(("fog", "snow"), (3,), None, 64)


# Real pictures


def spied(student):
    """The student, and a list that grows by the pixels of every batch of pictures that it encodes."""
    seen, encode = [], student.encode_images_in_batches

    def encode_and_tell(images, batch=256):
        seen.append(np.asarray(images[np.arange(len(images))]))
        return encode(images, batch)

    student.encode_images_in_batches = encode_and_tell
    return student, seen


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return toy_folder(tmp_path_factory.mktemp("toy") / "photos", count=10)


def test_a_second_call_encodes_nothing_and_is_equal(photos, tmp_path):
    dataset = Dataset("toy", open_pairs(str(photos)))
    settings = Corruptions(corruptions=("gaussian_noise", "pixelate"), severities=(1, 5), size=48)
    student, seen = spied(new_student(tiny(), seed=0))

    def run(settings=settings):
        seen.clear()
        return settings(Subject(student, "tiny", model_hash="abc", cache=tmp_path), dataset)

    first = run()
    assert len(seen) == 5
    assert all(pixels.shape == (10, 32, 32, 3) for pixels in seen)
    clean, light, heavy, *_ = (pixels.astype(float) for pixels in seen)
    assert 5 < np.abs(light - clean).mean() < np.abs(heavy - clean).mean()
    second = run()
    assert seen == []
    assert second.metrics == first.metrics
    assert all(np.array_equal(first.items[name], second.items[name]) for name in first.items)
    run(replace(settings, severities=(1, 2, 5)))  # a further severity costs that severity alone
    assert len(seen) == 2
    run(replace(settings, size=64))  # another size is another corruption
    assert len(seen) == 5


def test_a_killed_run_goes_on_where_it_was(photos, tmp_path):
    dataset = Dataset("toy", open_pairs(str(photos)))
    settings = Corruptions(corruptions=("fog",), severities=(1, 2, 3), size=32)
    student, seen = spied(new_student(tiny(), seed=0))
    subject = Subject(student, "tiny", model_hash="abc", cache=tmp_path)
    cells = 0

    def killed(what, done, count):
        nonlocal cells
        cells += what.startswith("toy")
        if cells > 2:
            raise KeyboardInterrupt

    subject.progress = killed
    with pytest.raises(KeyboardInterrupt):
        settings(subject, dataset)
    assert len(seen) == 2
    seen.clear()
    settings(Subject(student, "tiny", model_hash="abc", cache=tmp_path), dataset)
    assert len(seen) == 2


def test_labelled_pictures_of_a_folder(photos, tmp_path):
    for i, path in enumerate(sorted(photos.glob("*.png"))):
        target = tmp_path / "classes" / ("disc", "square")[i % 2] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    labelled = open_labelled(str(tmp_path / "classes"))
    labelled.hashes = []  # as some readers leave them
    found = Corruptions(corruptions=("jpeg_compression",), severities=(1,))(
        Subject(new_student(tiny(), seed=0), "tiny", cache=tmp_path), Dataset("classes", labelled)
    )
    assert found.details["measure"] == "acc1"
    assert len(found.items["clean"]) == 10


def test_the_change_is_the_corruption_of_the_resized_picture_by_key(photos):
    picture = Image.open(sorted(photos.glob("*.png"))[0]).convert("RGB").resize((60, 90))
    change = Corrupted("gaussian_noise", 3, 64)
    found = np.asarray(change(picture, "a"))
    base = np.asarray(picture.resize((64, 96), Image.Resampling.BICUBIC))
    assert found.shape == (96, 64, 3)
    assert np.array_equal(found, np.asarray(change(picture, "a")))
    assert np.array_equal(found, np.asarray(change(at_size(picture, 64), "a")))
    others = [Corrupted("gaussian_noise", 3, 64)(picture, "b"), Corrupted("gaussian_noise", 4, 64)(picture, "a")]
    assert all(not np.array_equal(found, np.asarray(other)) for other in others)
    noise = found.astype(float) - base
    other = np.asarray(others[0]).astype(float) - base
    assert abs(np.corrcoef(noise.ravel(), other.ravel())[0, 1]) < 0.5  # draws of their own (clipping is common to both)
    assert np.array_equal(np.asarray(Corrupted(None, 0, 64)(picture, "a")), base)
    quality = np.asarray(Corrupted("jpeg_compression", 2, 64)(picture, "a"))
    assert np.array_equal(quality, corrupt(base, "jpeg_compression", 2, 0))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ((40, 40), (64, 64)),
        ((640, 480), (85, 64)),
        ((64, 300), (64, 300)),
        ((5000, 10), (512, 64)),
        ((1, 1), (64, 64)),
        ((65, 64), (65, 64)),
    ],
)
def test_at_size(given, wanted):
    picture = Image.new("RGB", given, (200, 30, 70))
    found = at_size(picture, 64)
    assert found.size == wanted
    assert at_size(found, 64) is found
    assert found.getpixel((0, 0)) == (200, 30, 70)


def test_of_a_very_long_picture_the_middle_is_seen():
    pixels = np.zeros((10, 1000, 3), np.uint8)
    pixels[:, 460:540] = 255
    found = np.asarray(at_size(Image.fromarray(pixels), 64))
    assert found[:, 8:-8].min() == 255  # at the ends, bicubic looks over the border
    assert found[:, [0, -1]].min() > 100


def test_pictures_are_decoded_once_and_memory_is_bounded(photos, monkeypatch):
    source = open_pairs(str(photos))
    decoded, image = [], source.image
    monkeypatch.setattr(source, "image", lambda i: decoded.append(i) or image(i))
    bytes_each = 64 * 64 * 3
    monkeypatch.setattr(module, "MEMORY", 4 * bytes_each)
    resized = Resized(Dataset("toy", source), 64)
    first = [np.asarray(resized.image(i)) for i in range(10)]
    again = [np.asarray(resized.image(i)) for i in range(10)]
    assert decoded == [*range(10), *range(4, 10)]  # four stay
    assert all(np.array_equal(a, b) and a.shape == (64, 64, 3) for a, b in zip(first, again))
    assert len(resized) == 10
    assert resized.keys == source.keys
    assert resized.hashes == source.hashes
