"""The gate: its arithmetic, what passes, and that nothing is left of what does not."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

import clipling
from clipling.deploy import precisions, quantise
from clipling.deploy.gate import Thresholds, judge
from clipling.deploy.precisions import add_precisions
from clipling.deploy.quality import Cosine, Drop, cosine, drop
from clipling.deploy.samples import FIXTURES, parted, take
from clipling.errors import UserError
from clipling.runtime.manifest import read_manifest
from tests.deploy import handmade
from tests.toy import toy_folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return toy_folder(tmp_path_factory.mktemp("pairs"), count=80, size=48)


@pytest.fixture
def folder(tmp_path):
    return handmade.folder(tmp_path / "exported", handmade.convolutional)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_cosine_against_a_formula_of_its_own():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 7)) + 3, rng.normal(size=(5, 7)) + 3
    by_hand = [sum(x * y for x, y in zip(p, q)) / (sum(x * x for x in p) * sum(y * y for y in q)) ** 0.5 for p, q in zip(a, b)]
    found = cosine(a, b)
    assert found.mean == pytest.approx(sum(by_hand) / 5)
    assert found.least == pytest.approx(min(by_hand))
    shifted = cosine(a - b.mean(0), b - b.mean(0))
    assert found.centred == pytest.approx(shifted.mean)
    assert found.centred < 0.5 < found.mean  # a cone: near to each other, and yet strangers


def test_a_row_that_is_not_finite_is_the_worst():
    rows = np.eye(3)
    broken = rows.copy()
    broken[1] = np.nan
    found = cosine(broken, rows)
    assert found.least == -1
    assert found.mean == pytest.approx(1 / 3)


def test_drop_is_the_difference_of_means_and_its_interval_is_paired():
    reference, here = np.array([1.0] * 80 + [0.0] * 20), np.array([1.0] * 78 + [0.0] * 22)
    found = drop(here, reference)
    assert (found.reference, found.here, found.queries) == (0.8, 0.78, 100)
    assert found.drop == pytest.approx(0.02)
    # The difference is 1 twice in a hundred: a binomial share, whose 95 % quantiles are 0 and 5 of 100.
    assert found.low == pytest.approx(0.0, abs=0.005)
    assert found.high == pytest.approx(0.05, abs=0.011)
    same = drop(reference, reference)
    assert (same.drop, same.low, same.high) == (0, 0, 0)


@pytest.mark.parametrize(
    ("lost", "queries", "passes"), [(0.01, 1000, True), (0.0101, 1000, False), (0.02, 50, True), (0.04, 50, False), (-0.3, 10, True)]
)
def test_what_a_drop_may_be(lost, queries, passes):
    fine = Cosine(0.999, 0.99, 0.99, queries)
    made = {"i2t_recall@10": Drop(0.5, 0.5 - lost, lost, lost - 0.01, lost + 0.01, queries)}
    assert (judge(fine, made, Thresholds(), blind=False) == ()) == passes


def test_what_a_cosine_may_be():
    assert judge(Cosine(0.98, 0.8, 0.1, 9), {}, Thresholds(), blind=False) == ()
    assert len(judge(Cosine(0.98, 0.8, 0.1, 9), {}, Thresholds(), blind=True)) == 1  # nothing else looks at a cone
    assert len(judge(Cosine(0.97, 0.79, 0.1, 9), {}, Thresholds(), blind=False)) == 2
    nan = float("nan")
    assert len(judge(Cosine(nan, nan, nan, 9), {"acc1": Drop(nan, nan, nan, nan, nan, 9)}, Thresholds(), blind=True)) == 4
    with pytest.raises(UserError, match="mean_cosine is 98"):
        Thresholds(mean_cosine=98)


@pytest.mark.parametrize(
    ("reference", "chance", "queries", "units", "tells"),
    [
        (0.5, 0.1, 100, 0, True),
        (0.17, 0.125, 80, 0, False),
        (0.9, 0.5, 8, 0, True),
        (0.0257, 0.0175, 2860, 572, False),
        (0.027, 0.0175, 100_000, 0, False),
        (0.029, 0.0175, 100_000, 0, True),
    ],
)
def test_a_model_at_chance_has_nothing_to_lose(reference, chance, queries, units, tells):
    """Of 80 queries at chance 12.5 % a share above 12.5 + 2 x 4.2 = 20.9 % says something, 17 % does not; the captions of 572 pictures
    count as 572; and what lies less above chance than may be lost judges nothing, however many queries there are."""
    assert Drop(reference, reference, 0.0, 0.0, 0.0, queries, chance, units).tells(0.01) == tells


def test_recall_at_chance_does_not_open_the_gate(folder, pairs, monkeypatch):
    """The centred cosine decides then, and the note says that quality could not be judged."""
    samples = take(read_manifest(folder).image, data=str(pairs))
    lost = {"i2t_recall@10": Drop(0.17, 0.17, 0.0, -0.01, 0.01, 60, 10 / 60)}
    monkeypatch.setattr(precisions, "drops", lambda *_: lost)
    found = add_precisions(folder, ("fp16",), samples)
    assert "cannot judge" in found[0].content()["note"]
    assert "i2t_recall@10 17.0 % (chance 16.7 %)" in found[0].content()["note"]
    near = Cosine(0.999, 0.99, 0.5, 60)
    monkeypatch.setattr(precisions, "cosine", lambda *_: near)
    with pytest.raises(UserError, match=r"centred cosine 0.5000 \(at least 0.9\)"):
        add_precisions(folder, ("fp16",), samples)


def test_the_level_of_chance_is_that_of_what_is_measured(folder, pairs):
    found = add_precisions(folder, ("fp16",), take(read_manifest(folder).image, data=str(pairs)))
    assert {name: drop.chance for name, drop in found[0].drops.items()} == {"i2t_recall@10": 10 / 60, "t2i_recall@10": 10 / 60}


def test_what_calibrates_is_not_measured():
    for count in (8, 100, 5000):
        calibrating, measured = parted(count)
        assert not set(calibrating) & set(measured)
        assert len(calibrating) == min(128, count // 4)
        assert len(measured) == min(1000, count - len(calibrating))
    with pytest.raises(UserError, match="at least 8"):
        parted(7)


def test_int8_and_fp16_pass_and_are_written(folder, pairs):
    before = content(folder)
    samples = take(read_manifest(folder).image, data=str(pairs))
    found = add_precisions(folder, ("int8", "fp16"), samples)
    names = ["image.int8.onnx", "text.int8.onnx", "image.fp16.onnx", "text.fp16.onnx"]
    assert [finding.file for finding in found] == names
    after = content(folder)
    assert {name: after[name] for name in before if name != "clipling.json"} == {n: d for n, d in before.items() if n != "clipling.json"}
    assert set(after) - set(before) == {*names, "gate.json"}
    gate = json.loads(after["gate.json"])
    assert all(gate[name]["passed"] and gate[name]["quality_measured"] for name in names)
    assert gate["image.int8.onnx"]["settings"]["method"] == "static"
    assert gate["text.int8.onnx"]["settings"]["method"] == "dynamic"
    assert gate["text.int8.onnx"]["beside"] == "image.int8.onnx"  # measured as it will be used
    assert gate["image.int8.onnx"]["drops"]["i2t_recall@10"]["queries"] == 60  # 80 less a quarter
    assert gate["text.int8.onnx"]["drops"]["t2i_recall@10"]["queries"] == 120
    assert len(after["text.int8.onnx"]) < 0.4 * len(after["text.onnx"])
    assert len(after["text.fp16.onnx"]) < 0.55 * len(after["text.onnx"])
    # The runtime takes them, and what it gives is what the gate saw.
    model, plain = clipling.load(folder), clipling.load(folder, precision="fp32")
    assert model.precisions == {"image": "int8", "text": "int8"}
    rows = handmade.pictures(8)
    close = (model.encode_image(rows) * plain.encode_image(rows)).sum(1)
    assert 0.97 < close.mean() < 1 - 1e-7


def test_a_planted_layer_is_kept_and_named(tmp_path, pairs):
    folder = handmade.folder(tmp_path / "exported", handmade.matrix_products)
    handmade.plant(folder / "image.onnx", "w0", "w1")
    said: list[str] = []
    # Without the planted layer 0.985 is the best that can be had, with it 0.999.
    found = add_precisions(
        folder, ("int8",), take(read_manifest(folder).image, data=str(pairs)), Thresholds(mean_cosine=0.99), say=said.append
    )
    assert found[0].settings["kept_fp32"] == ["product1"]
    assert next(iter(found[0].settings["sensitivity"])) == "product1"
    assert 0.2 < found[0].settings["kept_share_of_macs"] < 0.4
    assert "kept_fp32" in found[1].settings
    assert not found[1].settings["kept_fp32"]
    assert "attempt 1" in said[0]
    assert "mean cosine" in said[0]


def test_a_graph_that_fails_leaves_nothing(folder, pairs, monkeypatch):
    before = content(folder)

    def broken(model, *_, **__):
        made = quantise._copy(model)
        for tensor in made.graph.initializer:
            if tensor.name == "w0":
                tensor.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(tensor), "w0"))
        return made

    monkeypatch.setattr(precisions.quantise, "dynamic", broken)  # the image graph passes, the text graph does not
    with pytest.raises(UserError, match=r"text.int8.onnx did not pass its gate after \d+ attempts.*mean cosine"):
        add_precisions(folder, ("int8",), take(read_manifest(folder).image, data=str(pairs)))
    assert content(folder) == before
    assert clipling.load(folder).precisions == {"image": "fp32", "text": "fp32"}


def test_a_drop_of_recall_alone_fails(folder, pairs, monkeypatch):
    """Every cosine is fine, the ranking is not: what the gate is for."""
    samples = take(read_manifest(folder).image, data=str(pairs))
    monkeypatch.setattr(precisions, "drops", lambda *_: {"i2t_recall@10": Drop(0.5, 0.4, 0.1, 0.05, 0.15, 1000)})
    with pytest.raises(
        UserError, match=r"i2t_recall@10 50.0 % to 40.0 %: a drop of 10.00 points \(95 % interval 5.0 to 15.0, 1000 queries; at most 1.00\)"
    ):
        add_precisions(folder, ("fp16",), samples)
    assert "gate.json" not in content(folder)


def test_without_data_the_result_says_what_was_not_measured(folder):
    found = add_precisions(folder, ("int8",), take(read_manifest(folder).image))
    gate = json.loads((folder / "gate.json").read_text())["image.int8.onnx"]
    assert gate["quality_measured"] is False
    assert gate["origin"] == FIXTURES
    assert "was not measured" in gate["note"]
    assert found[0].drops == {}


def test_labelled_pictures_give_accuracy(folder, tmp_path):
    from PIL import Image

    for number, pixels in enumerate(handmade.pictures(40)):
        place = tmp_path / "classes" / ("red disc" if number % 2 else "blue bar")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.png")
    found = add_precisions(folder, ("fp16",), take(read_manifest(folder).image, data=str(tmp_path / "classes")))
    assert list(found[0].drops) == ["acc1"]
    assert found[0].drops["acc1"].queries == 30


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), [("tiny_vit_32", "dynamic"), ("mobilenetv3_small_64_text128", "static")])
def test_students_of_the_zoo(tmp_path, pairs, name, method):
    """From torch to int8: a transformer and a convolutional image tower, each with a text transformer."""
    from clipling.deploy.export import export_fp32
    from clipling.models.hub import new_student

    student = new_student(name).eval()
    export_fp32(student, tmp_path, name)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    found = add_precisions(tmp_path, ("int8", "fp16"), take(read_manifest(tmp_path).image, data=str(pairs)), Thresholds(drop=0.2))
    for finding in found:
        assert finding.settings["bytes"] < (0.35 if "int8" in finding.file else 0.55) * sizes[finding.reference]
        assert finding.cosine.mean > (0.98 if "int8" in finding.file else 0.9999)
    assert [finding.settings["method"] for finding in found[:2]] == [method, "dynamic"]
    texts = ["a red disc", "a blue bar on white"]
    assert (clipling.load(tmp_path).encode_text(texts) * student.encode_texts_in_batches(texts)).sum(1).min() > 0.98
