"""Pruned students are the masked ones, to rounding, and hold what the masks leave."""

from __future__ import annotations

import open_clip
import pytest
import torch

from clipling.errors import UserError
from clipling.models import masked
from clipling.models.hub import new_student, save_student
from clipling.models.irregular_config import TowerShape, mlp_ratio
from clipling.models.masked import TowerMasks, alive_masks, tower_shapes
from clipling.models.vocabulary import RestrictedEmbedding
from clipling.surgery.prune import magnitude_masks, prune
from tests.models import making
from tests.models.making_masks import embeddings, inputs, random_masks, vit

KINDS = {
    "plain": {},
    "quick gelu": {"quick_gelu": True},
    "layer scale": {"vision": {"ls_init_value": 0.3}, "text": {"ls_init_value": 0.3}},
    "average pool": {"vision": {"pool_type": "avg", "no_ln_pre": True}, "text": {"proj_bias": True}},
    "fixed positions": {"vision": {"pos_embed_type": "sin_cos_2d"}},
    "both ways": {"text": {"no_causal_mask": True, "pool_type": "last"}},
    "restricted vocabulary": {"vocabulary": making.CAPTIONS},
}


def masked_embeddings(student, masks):
    with student.masked(masks):
        return embeddings(student)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("values", ["soft", "binary"])
def test_pruned_is_masked(kind, values):
    student = vit(**KINDS[kind])
    masks = random_masks(student, values)
    expected = masked_embeddings(student, masks)
    assert not torch.allclose(expected, embeddings(student), atol=1e-2)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    pruned = prune(student, masks)
    torch.testing.assert_close(embeddings(pruned), expected, atol=1e-6, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())  # a new student, the old as it was
    assert not pruned.training
    # The tower's own forward in place of the quick text path: the same function again.
    with torch.no_grad():
        ids = making.tokens(5)
        stock = torch.nn.functional.normalize(pruned.model.text(ids), dim=-1)
        torch.testing.assert_close(pruned.encode_text(ids), stock, atol=1e-6, rtol=0)


@pytest.mark.parametrize("values", ["soft", "binary"])
def test_pruned_is_masked_in_double(values):
    student = vit(vocabulary=making.CAPTIONS).double()
    masks = random_masks(student, values)
    pruned = prune(student, masks)
    images, ids = inputs(student)
    assert pruned.logit_scale.dtype == torch.float64
    with torch.no_grad():
        for part, features, x in (("visual", masked.image_features, images.double()), ("text", masked.text_features, ids)):
            prefix = "image" if part == "visual" else "text"
            groups = TowerMasks(*(masks[f"{prefix}.{group}"].double() for group in masked.GROUPS))
            expected = features(getattr(student.model, part), x, groups)
            torch.testing.assert_close(getattr(pruned.model, part)(x), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("values", ["soft", "binary"])
def test_layers_that_lose_everything(values):
    student = vit(vision={"ls_init_value": 0.3})
    masks = random_masks(student, values)
    masks["image.heads"][1] = 0
    masks["image.intermediate"][0] = 0
    masks["text.heads"][:] = 0
    masks["text.intermediate"][1] = 0
    expected = masked_embeddings(student, masks)
    pruned = prune(student, masks)
    torch.testing.assert_close(embeddings(pruned), expected, atol=1e-6, rtol=0)
    shape = tower_shapes(pruned)
    assert shape["image"].heads[1] == shape["image"].mlp[0] == shape["text"].mlp[1] == 0
    assert shape["text"].heads == (0, 0)
    names = {name for name in pruned.model.state_dict() if name.startswith("text.transformer.resblocks.1.")}
    assert names == {f"text.transformer.resblocks.1.{name}" for name in ("attn.out_proj.bias", "mlp.c_proj.bias")}


def test_a_pruned_student_is_masked_and_pruned_again():
    student = vit(vocabulary=making.CAPTIONS)
    first = prune(student, random_masks(student, "soft"))
    assert len(set(tower_shapes(first)["image"].heads)) > 1
    masks = random_masks(first, "soft", seed=3)
    expected = masked_embeddings(first, masks)
    torch.testing.assert_close(embeddings(prune(first, masks)), expected, atol=1e-6, rtol=0)
    # Entries of units that a layer has not are ignored.
    ones = {name: torch.ones_like(mask) for name, mask in masks.items()}
    torch.testing.assert_close(masked_embeddings(first, ones), embeddings(first), atol=1e-6, rtol=0)
    noise = {name: torch.where(alive_masks(first)[name] == 1, mask, 0.5) for name, mask in masks.items()}
    assert torch.equal(masked_embeddings(first, noise), expected)


def test_pruning_twice_changes_nothing_more():
    student = vit(vocabulary=making.CAPTIONS)
    once = prune(student, random_masks(student, "soft"))
    for masks in (alive_masks(once), {}):
        twice = prune(once, masks)
        assert twice.config == once.config
        states = once.state_dict(), twice.state_dict()
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_parameters_are_those_of_the_formula():
    student = vit()
    masks = random_masks(student, "binary")
    pruned = prune(student, masks)
    for name, tower, head in (("image", pruned.model.visual, 32), ("text", pruned.model.text, 32)):
        width = int(masks[f"{name}.hidden"].sum())
        heads, units = (masks[f"{name}.{group}"].sum(1).int().tolist() for group in ("heads", "intermediate"))
        assert 0 not in units
        matrices = 4 * width * head * sum(heads) + 2 * width * sum(units)
        biases = 3 * head * sum(heads) + width * len(heads) + sum(units) + width * len(units)
        norms = 2 * width * sum(h > 0 for h in heads) + 2 * width * len(units)
        assert sum(p.numel() for p in tower.transformer.parameters()) == matrices + biases + norms
        assert tower_shapes(pruned)[name].prunable == matrices + biases
    assert pruned.model.visual.conv1.weight.shape == (int(masks["image.hidden"].sum()), 3, 8, 8)
    assert pruned.sizes()["token_rows"] == 49408 * int(masks["text.hidden"].sum())


def test_counts_of_vit_b_32():
    """P of both towers of ViT-B/32 [core.md 1.3]."""
    assert TowerShape(768, 64, (12,) * 12, (3072,) * 12).prunable == 85_017_600
    assert TowerShape(512, 64, (8,) * 12, (2048,) * 12).prunable == 37_804_032


def test_a_regular_result_is_a_stock_model(tmp_path):
    student = vit(quick_gelu=True)
    masks = random_masks(student, "soft", zeros=0.0)
    masks["image.hidden"][5:37] = 0  # 96 left
    masks["image.heads"][[0, 1, 2], [1, 0, 3]] = 0  # 3 of 4 in every layer
    masks["image.intermediate"][:, ::2] = 0
    masks["text.hidden"][::2] = 0
    masks["text.heads"][:, 0] = 0
    masks["text.intermediate"][:, :45] = 0
    pruned = prune(student, masks)
    assert "pruned" not in pruned.config
    model = pruned.config["model_cfg"]
    assert [model["vision_cfg"][key] for key in ("width", "head_width", "layers")] == [96, 32, 3]
    assert [model["text_cfg"][key] for key in ("width", "heads", "layers")] == [32, 1, 2]
    torch.testing.assert_close(embeddings(pruned), masked_embeddings(student, masks), atol=1e-6, rtol=0)
    save_student(pruned, tmp_path)
    stock, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    images, ids = inputs(student)
    with torch.no_grad():
        theirs = torch.cat([stock.eval().encode_image(images, normalize=True), stock.encode_text(ids, normalize=True)])
    torch.testing.assert_close(theirs, embeddings(pruned), atol=1e-5, rtol=0)


def test_every_regular_width_of_the_mlp_can_be_said():
    assert all(int(width * mlp_ratio(width, units)) == units for width in range(1, 800, 7) for units in range(1, 3100, 13))


def test_one_tower_alone_beside_a_tower_of_another_kind():
    student = new_student(making.small_conv())
    masks = {"text.hidden": (torch.arange(64) % 3 > 0).float(), "text.heads": torch.tensor([[1.0, 0.0], [0.5, 0.7]])}
    student.set_norm("frozen")
    pruned = prune(student, masks)
    assert "image" not in pruned.config["pruned"]
    torch.testing.assert_close(embeddings(pruned), masked_embeddings(student, masks), atol=1e-6, rtol=0)
    assert pruned.norm == "frozen"
    assert pruned.training
    assert not any(module.training for module in pruned.modules() if isinstance(module, torch.nn.BatchNorm2d))


@pytest.mark.parametrize("init", [False, True])
def test_the_restricted_vocabulary_stays_restricted(tmp_path, init):
    start = None
    if init:
        save_student(vit(), tmp_path)
        start = {"model": str(tmp_path)}
    student = vit(vocabulary=making.CAPTIONS, init=start)
    masks = random_masks(student, "soft")
    pruned = prune(student, masks)
    old, new = student.model.text.token_embedding, pruned.model.text.token_embedding
    assert isinstance(new, RestrictedEmbedding)
    assert (new.rest is not None) == init
    keep = masks["text.hidden"] > 0
    expected = old.expanded()[:, keep] * masks["text.hidden"][keep]
    assert torch.equal(new.expanded(), expected)
    ids = student.tokenise([*making.CAPTIONS, *making.ODD])  # such that were not kept too
    with torch.no_grad(), student.masked(masks):
        torch.testing.assert_close(pruned.encode_text(ids), student.encode_text(ids), atol=1e-6, rtol=0)
        student.train().set_step(4)
        pruned.train().set_step(4)  # the same ids are dropped
        torch.testing.assert_close(pruned.encode_text(ids), student.encode_text(ids), atol=1e-6, rtol=0)


def test_frozen_towers_stay_frozen_and_the_global_generator_is_not_touched():
    student = vit()
    student.train().freeze(text=True)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    pruned = prune(student, {name: mask.requires_grad_() for name, mask in random_masks(student, "soft").items()})
    assert torch.equal(torch.rand(3), expected)
    trainable = {name for name, p in pruned.model.text.named_parameters() if p.requires_grad}
    assert trainable == {"text_projection"}
    assert all(p.requires_grad for p in pruned.model.visual.parameters())
    assert not pruned.model.text.training
    assert pruned.model.visual.training


def test_mistakes():
    student = vit()
    with pytest.raises(UserError, match="remove every hidden unit of the text tower"):
        prune(student, {"text.hidden": torch.zeros(64)})
    with pytest.raises(UserError, match="no mask 'hidden'"):
        prune(student, {"hidden": torch.zeros(64)})
    for share in (0, -0.1, 1.01):
        with pytest.raises(UserError, match="above 0 and at most 1"):
            magnitude_masks(student, share)
    with pytest.raises(UserError, match="use --method manual"):
        magnitude_masks(new_student(making.small_conv()), 0.5)


@pytest.mark.parametrize("share", [1, 0.75, 0.5, 0.25, 0.05])
def test_magnitude_keeps_the_share(share):
    student = vit(vision={"width": 128, "head_width": 16}, text={"heads": 4})
    masks = magnitude_masks(student, share)
    pruned = prune(student, masks)
    for name, shape in tower_shapes(student).items():
        kept = tower_shapes(pruned)[name].prunable / shape.prunable
        assert abs(kept - share) < 0.06
        assert kept == 1 or share < 1
    # Of an irregular student again.
    again = prune(pruned, magnitude_masks(pruned, 0.5))
    kept = tower_shapes(again)["image"].prunable / tower_shapes(pruned)["image"].prunable
    assert abs(kept - 0.5) < 0.1


def test_magnitude_removes_what_is_small():
    """Units whose weights are made small go first, and masking them barely matters."""
    student = vit(vision={"head_width": 16})
    with torch.no_grad():
        for block in student.model.visual.transformer.resblocks:
            block.mlp.c_fc.weight[::4] *= 0.01
            block.mlp.c_fc.bias[::4] *= 0.01
            block.mlp.c_proj.weight[:, ::4] *= 0.01
            block.attn.in_proj_weight.view(3, 8, 16, 128)[:, 2] *= 0.01
            block.attn.in_proj_bias.view(3, 8, 16)[:, 2] *= 0.01
            block.attn.out_proj.weight.view(128, 8, 16)[:, 2] *= 0.01
    masks = magnitude_masks(student, 0.5)
    assert not masks["image.intermediate"][:, ::4].any()
    assert not masks["image.heads"][:, 2].any()
    part = {"image.heads": masks["image.heads"].clone(), "image.intermediate": torch.ones(3, 256)}
    part["image.intermediate"][:, ::4] = 0
    part["image.heads"][:] = 1
    part["image.heads"][:, 2] = 0
    torch.testing.assert_close(masked_embeddings(student, part), embeddings(student), atol=2e-3, rtol=0)
