"""The runtime against the torch student it was exported from, and what it says to wrong input."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import clipling
from clipling.data.views import eval_pixels
from clipling.errors import UserError
from clipling.runtime import pictures
from clipling.runtime.model import Runtime
from tests.deploy.making import tiny_export
from tests.models.making import CAPTIONS, ODD

SIZES = ((32, 32), (50, 70), (333, 40), (32, 32), (1, 1), (31, 33), (50, 70), (40, 333))


@pytest.fixture(scope="module")
def student():
    return tiny_export()[0]


@pytest.fixture(scope="module")
def model() -> Runtime:
    return clipling.load(tiny_export()[1], threads=1)


@pytest.fixture(scope="module")
def arrays() -> list[np.ndarray]:
    """Smooth pictures of many sizes."""
    rng = np.random.default_rng(0)
    coarse = [Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)) for _ in SIZES]
    return [np.asarray(image.resize((width, height))) for image, (height, width) in zip(coarse, SIZES)]


@pytest.fixture(scope="module")
def expected(student, arrays) -> np.ndarray:
    return student.encode_images_in_batches(np.stack([eval_pixels(Image.fromarray(a), student.preprocess_cfg) for a in arrays]))


def test_pictures_of_many_sizes_in_their_order(model, arrays, expected):
    got = model.encode_image(arrays)
    assert got.dtype == np.float32
    assert np.abs(np.linalg.norm(got, axis=1) - 1).max() < 1e-6
    assert np.abs(got - expected).max() < 5e-3
    exact = [i for i, size in enumerate(SIZES) if size == (32, 32)]
    assert np.abs(got - expected)[exact].max() < 1e-5
    one_by_one = np.concatenate([model.encode_image(array) for array in arrays])
    assert np.abs(one_by_one - got).max() < 1e-6


def test_every_kind_of_picture_is_the_same(model, arrays, tmp_path):
    array = arrays[1]
    path, buffer = tmp_path / "picture.png", io.BytesIO()
    Image.fromarray(array).save(path)
    Image.fromarray(array).save(buffer, "PNG")
    kinds = [array, path, str(path), buffer.getvalue(), bytearray(buffer.getvalue()), Image.fromarray(array), Image.open(path)]
    got = model.encode_image(kinds)
    assert np.abs(got - model.encode_image(array)).max() < 1e-6
    assert np.array_equal(model.encode_image(np.stack([array, array])), model.encode_image([array, array]))


def test_rotation_and_transparency_of_pil_pictures(model, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.arange(40 * 60 * 3, dtype=np.uint32).reshape(40, 60, 3).astype(np.uint8)).save(tmp_path / "t.png", exif=exif)
    opened = Image.open(tmp_path / "t.png")
    assert pictures.pixels_of(opened).shape == (60, 40, 3)
    assert np.array_equal(pictures.pixels_of(opened), pictures.pixels_of(tmp_path / "t.png"))
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert np.array_equal(pictures.pixels_of(clear), np.full((8, 8, 3), 255))


def test_texts(model, student):
    texts = [*CAPTIONS, *(text for text in ODD if text), ""] * 8
    got = model.encode_text(texts)
    assert np.abs(got - student.encode_texts_in_batches(texts)).max() < 1e-5
    assert np.abs(model.encode_text(texts[3]) - got[3]).max() < 1e-6


def test_nothing_gives_nothing(model):
    assert model.encode_image([]).shape == model.encode_text([]).shape == (0, model.embed_dim)
    assert model.predict([], ["a", "b"]) == []


def test_prediction_is_the_softmax_of_scaled_cosines(model, student, arrays):
    names, templates = ["dog", "snow", "red ball", "window"], ["a {c}", "there is a {c}."]
    found = model.predict(arrays[:2], names, templates, top=4)
    image = torch.from_numpy(model.encode_image(arrays[:2]))
    rows = [student.encode_texts_in_batches([t.replace("{c}", name) for t in templates]).mean(0) for name in names]
    text = torch.nn.functional.normalize(torch.from_numpy(np.stack(rows)), dim=-1)
    for said, wanted in zip(found, (student.logit_scale.exp() * image @ text.T).softmax(1)):
        assert [name for name, _ in said] == [names[i] for i in wanted.argsort(descending=True)]
        assert [p for _, p in said] == pytest.approx(sorted(wanted.tolist(), reverse=True), abs=1e-5)
    assert [len(row) for row in model.predict(arrays[0], names)] == [3]


def test_what_it_is(model, student):
    assert model.embed_dim == 64
    assert model.logit_scale == pytest.approx(1 / 0.07, rel=1e-4)
    assert model.manifest.logit_bias is None
    assert model.precisions == {"image": "fp32", "text": "fp32"}


def test_deterministic_calls(arrays):
    model = clipling.load(tiny_export()[1], threads=1, deterministic=True)
    assert np.array_equal(model.encode_image(arrays), model.encode_image(arrays))


def test_batches_hold_every_picture_once_and_few_pixels(monkeypatch):
    monkeypatch.setattr(pictures, "PIXELS", 20_000)
    rng = np.random.default_rng(1)
    sizes = [(int(h), int(w)) for h, w in rng.choice([40, 50, 60], (300, 2))]
    seen = []
    for places, stacked in pictures.batches([np.full((*size, 3), i % 256, np.uint8) for i, size in enumerate(sizes)]):
        assert len(places) <= pictures.BATCH
        assert stacked[..., 0].size <= 20_000 + 3600
        assert [int(picture[0, 0, 0]) for picture in stacked] == [place % 256 for place in places]
        seen += places
    assert sorted(seen) == list(range(300))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([b"no picture"], "picture 0 cannot be read"),
        (["missing.png"], "missing.png cannot be read: No such file"),
        ([np.zeros((4, 4, 3), np.float32)], r"picture 0 is an array float32 \[4, 4, 3\]; expected uint8"),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 4), np.uint8)], "picture 1 is an array"),
        (np.zeros((4, 4), np.uint8), "is no picture"),
        (np.zeros((0, 4, 3), np.uint8), "picture 0 is an array"),
        ([3.5], "picture 0 is of the kind float"),
        (3, "expected a picture or a sequence of pictures, not int"),
    ],
)
def test_what_is_no_picture(model, given, message):
    with pytest.raises(UserError, match=message):
        model.encode_image(given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": "dog"}, "expected a sequence of names"),
        ({"classes": ["dog"]}, "at least two classes"),
        ({"classes": ["dog", "dog"]}, "different names"),
        ({"classes": ["a", "b"], "top": 0}, "top is 0"),
        ({"classes": ["a", "b"], "templates": ["no place"]}, "lacks {c}"),
        ({"classes": ["a", "b"], "templates": []}, "no template"),
    ],
)
def test_mistakes_in_classes(model, arrays, options, message):
    with pytest.raises(UserError, match=message):
        model.predict(arrays[0], **options)


def test_mistakes_in_opening(tmp_path):
    folder = tiny_export()[1]
    with pytest.raises(UserError, match="is not a folder"):
        clipling.load(tmp_path / "nothing")
    with pytest.raises(UserError, match="no exported model"):
        clipling.load(tmp_path)
    with pytest.raises(UserError, match="has no int8 graph of the image tower"):
        clipling.load(folder, precision="int8")
    with pytest.raises(UserError, match="precision is 'int9'"):
        clipling.load(folder, precision="int9")
    with pytest.raises(UserError, match="threads is 0"):
        clipling.load(folder, threads=0)
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "text.onnx").write_bytes(b"not a graph")
    with pytest.raises(UserError, match=r"text\.onnx is not a graph that onnxruntime"):
        clipling.load(tmp_path / "copy")


def copied(tmp_path):
    return shutil.copytree(tiny_export()[1], tmp_path / "copy")


def edited(folder, **changes):
    path = folder / "clipling.json"
    content = json.loads(path.read_text())
    for place, value in changes.items():
        side, _, key = place.rpartition("__")
        (content[side] if side else content)[key] = value
    path.write_text(json.dumps(content))
    return folder


def test_a_manifest_that_does_not_fit_its_graphs_is_refused_when_it_is_opened(tmp_path):
    folder = copied(tmp_path)
    files = {side: json.loads((folder / "clipling.json").read_text())[side]["files"] for side in ("image", "text")}
    with pytest.raises(UserError, match=r"the image graph of .* reads tokens; expected pixels"):
        clipling.load(edited(folder, image__files=files["text"], text__files=files["image"]))
    shutil.rmtree(folder)
    with pytest.raises(UserError, match=r"gives \d+ numbers; clipling.json says 63"):
        clipling.load(edited(copied(tmp_path), embed_dim=63))


def test_a_graph_that_fails_or_gives_no_numbers_is_a_mistake_with_a_name(tmp_path, arrays):
    folder = edited(copied(tmp_path), text__pad=1_000_000)
    with pytest.raises(UserError, match=r"the text graph of .* cannot be run"):
        clipling.load(folder, threads=1).encode_text(["a dog", "a dog that runs over the wet sand of a beach"])
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(folder / "image.onnx")
    for weight in graph.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype == np.float32 and values.ndim > 1:
            weight.CopyFrom(numpy_helper.from_array(np.full_like(values, np.nan), weight.name))
    onnx.save(graph, folder / "image.onnx")
    with pytest.raises(UserError, match="embeddings that are not finite"):
        clipling.load(folder, threads=1).encode_image(arrays[:1])


def test_a_number_of_threads_that_cannot_be(tmp_path):
    with pytest.raises(UserError, match="threads is 100000; expected at most 256"):
        clipling.load(tiny_export()[1], threads=100_000)
