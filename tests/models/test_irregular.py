"""Irregular towers: built, trained, saved and opened."""

from __future__ import annotations

import copy
import json

import open_clip
import pytest
import torch

from clipling.errors import UserError
from clipling.models import masked, towers
from clipling.models.hub import CONFIG, IRREGULAR_CONFIG, new_student, open_student, save_student
from clipling.models.masked import alive_masks, mask_shapes, tower_shapes
from clipling.surgery.prune import prune
from tests.models import making
from tests.models.making_masks import embeddings, inputs, random_masks, vit

PRUNED = {
    "image": {"width": 50, "heads": [3, 0, 1], "mlp": [7, 256, 0]},
    "text": {"width": 33, "heads": [1, 2], "mlp": [0, 100]},
}


def irregular(**changes) -> dict:
    return {**making.tiny(), "pruned": copy.deepcopy(PRUNED), **changes}


@pytest.mark.parametrize("vocabulary", [None, making.CAPTIONS])
def test_saved_and_opened_again(tmp_path, vocabulary):
    student = vit(vocabulary=vocabulary)
    pruned = prune(student, random_masks(student, "soft"))
    save_student(pruned, tmp_path / "model", card="# A card")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["README.md", IRREGULAR_CONFIG, "open_clip_model.safetensors"]
    for spec in (tmp_path, tmp_path / "model", f"local-dir:{tmp_path / 'model'}"):
        opened = open_student(spec)
        assert opened.config == pruned.config
        torch.testing.assert_close(embeddings(opened), embeddings(pruned), atol=1e-6, rtol=0)
    with pytest.raises(FileNotFoundError, match=CONFIG):  # stock open_clip says what is missing, and not that shapes are wrong
        open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'model'}")
    again = new_student(str(tmp_path / "model" / IRREGULAR_CONFIG), init={"model": str(tmp_path / "model")})
    torch.testing.assert_close(embeddings(again.eval()), embeddings(pruned), atol=1e-6, rtol=0)


def test_a_folder_holds_one_config(tmp_path):
    student = vit()
    pruned = prune(student, random_masks(student, "soft"))
    for saved, name in ((student, CONFIG), (pruned, IRREGULAR_CONFIG), (student, CONFIG)):
        save_student(saved, tmp_path)
        assert [p.name for p in tmp_path.glob("*.json")] == [name]
        torch.testing.assert_close(embeddings(open_student(tmp_path)), embeddings(saved), atol=1e-6, rtol=0)


def test_weights_of_other_shapes_are_named(tmp_path):
    student = vit()
    save_student(prune(student, random_masks(student, "soft")), tmp_path)
    config = json.loads((tmp_path / IRREGULAR_CONFIG).read_text())
    config["pruned"]["image"]["heads"][0] += 1
    (tmp_path / IRREGULAR_CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"resblocks\.0\.attn\.in_proj_weight is"):
        open_student(tmp_path)


def test_built_from_a_config():
    student = new_student(irregular(), seed=3).eval()
    shapes = tower_shapes(student)
    assert (shapes["image"].width, shapes["image"].heads, shapes["image"].mlp) == (50, (3, 0, 1), (7, 256, 0))
    assert (shapes["text"].width, shapes["text"].heads, shapes["text"].mlp) == (33, (1, 2), (0, 100))
    assert shapes["image"].head_width == shapes["text"].head_width == 32
    dims = {"image.layers": 3, "image.width": 50, "image.heads": 3, "image.mlp": 256, "image.head_width": 32}
    assert {name: value for name, value in mask_shapes(student).items() if name.startswith("image.")} == dims
    assert alive_masks(student)["image.heads"].tolist() == [[1, 1, 1], [0, 0, 0], [1, 0, 0]]
    assert alive_masks(student)["text.intermediate"].sum(1).tolist() == [0, 100]
    sizes = student.sizes()
    assert sizes["token_rows"] == 49408 * 33
    assert sizes["total"] == sum(p.numel() for p in student.parameters())
    torch.testing.assert_close(embeddings(student), embeddings(new_student(irregular(), seed=3).eval()), atol=0, rtol=0)
    assert set(student.stock_state()) == set(student.model.state_dict())
    # Start values as in stock towers: nothing is zero, or of another scale, that is random there.
    spread = {name: float(p.detach().std()) for name, p in student.model.text.named_parameters() if p.ndim == 2}
    assert spread["transformer.resblocks.1.attn.in_proj_weight"] == pytest.approx(33**-0.5, rel=0.1)
    assert spread["transformer.resblocks.1.mlp.c_fc.weight"] == pytest.approx(66**-0.5, rel=0.1)


def test_one_tower_alone_and_none():
    config = irregular(pruned={"text": PRUNED["text"]})
    student = new_student(config)
    assert student.model.visual.transformer.width == 128
    assert not masked.is_irregular(student.model.visual)
    assert masked.is_irregular(student.model.text)
    assert "pruned" not in new_student(irregular(pruned={})).config


def test_its_text_is_cut_and_the_towers_own_forward_agrees():
    student = new_student(irregular()).eval()
    images, ids = inputs(student, rows=70)
    with torch.no_grad():
        stock = student.model.encode_text(ids, normalize=True)
        torch.testing.assert_close(student.encode_text(ids), stock, atol=1e-6, rtol=0)
        torch.testing.assert_close(student.encode_text(ids[:, :30]), stock, atol=1e-6, rtol=0)
        cut = torch.nn.functional.normalize(towers.text_features(student.model.text, ids), dim=-1)
        torch.testing.assert_close(cut, stock, atol=1e-6, rtol=0)
        with student.masked(alive_masks(student)):
            torch.testing.assert_close(student.encode_image(images), student.model.encode_image(images, normalize=True), atol=1e-6, rtol=0)
    assert int(towers.needed_lengths(student.model.text, ids).max()) <= 22


def test_it_trains_and_freezes():
    student = new_student(irregular(), vocabulary=making.CAPTIONS).train()
    student.freeze(image=True)
    assert {name for name, p in student.model.visual.named_parameters() if p.requires_grad} == {"proj"}
    student.freeze()
    images, _ = inputs(student)
    ids = student.tokenise(making.CAPTIONS)
    (student.encode_image(images) @ student.encode_text(ids).T).diagonal().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for name, p in student.named_parameters() if "logit" not in name)


@pytest.mark.parametrize(
    ("pruned", "message"),
    [
        ([1], "pruned of the student's config must be a mapping"),
        ({"images": PRUNED["image"]}, "unknown key 'images' in pruned"),
        ({"text": {"width": 3, "heads": [1, 1]}}, "pruned.text of the student's config needs width, heads, mlp"),
        ({"text": {**PRUNED["text"], "width": 0}}, "pruned.text.width .* must be a positive number, not 0"),
        ({"text": {**PRUNED["text"], "heads": [1]}}, "pruned.text.heads .* must be 2 numbers"),
        ({"text": {**PRUNED["text"], "mlp": [1, -1]}}, "pruned.text.mlp .* must be 2 numbers"),
    ],
)
def test_mistakes_in_the_config(pruned, message):
    with pytest.raises(UserError, match=message):
        new_student(irregular(pruned=pruned))


def test_towers_that_cannot_be_irregular():
    with pytest.raises(UserError, match=r"pruned.image .* needs a transformer tower of open_clip's own"):
        new_student({**making.small_conv(), "pruned": {"image": PRUNED["image"]}})
    with pytest.raises(UserError, match=r"pruned.text .* custom blocks"):
        new_student({**making.tiny(qk_norm=True), "pruned": {"text": PRUNED["text"]}})
