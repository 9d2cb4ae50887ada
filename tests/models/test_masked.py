"""The masked forward against the plain towers, an explicit reference and finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clipling.errors import UserError
from clipling.models import masked, towers
from clipling.models.hub import new_student
from clipling.models.masked import TowerMasks, alive_masks, mask_shapes
from tests.models import making
from tests.models.making_masks import embeddings, inputs, random_masks, vit

KINDS = {
    "plain": {},
    "quick gelu": {"quick_gelu": True},
    "layer scale": {"vision": {"ls_init_value": 0.3}, "text": {"ls_init_value": 0.3}},
    "average pool": {"vision": {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True}},
    "eos pool": {"text": {"pool_type": "eos", "eos_id": 49407, "proj_bias": True}},
    "last pool": {"text": {"pool_type": "last"}},
    "both ways": {"text": {"no_causal_mask": True}},
    "eps": {"vision": {"norm_kwargs": {"eps": 0.1}}, "text": {"norm_kwargs": {"eps": 0.1}}},
    "restricted vocabulary": {"vocabulary": making.CAPTIONS},
}


@pytest.mark.parametrize("kind", KINDS)
def test_ones_are_the_unmasked_student(kind):
    student = vit(**KINDS[kind])
    plain = embeddings(student)
    with student.masked({name: torch.ones_like(alive) for name, alive in alive_masks(student).items()}):
        assert student._masks
        torch.testing.assert_close(embeddings(student), plain, atol=1e-6, rtol=0)
    with student.masked({}):
        assert torch.equal(embeddings(student), plain)
    assert torch.equal(embeddings(student), plain)


def reference(tower, x, hidden, heads, units, causal, act):
    """The blocks of spec 1.3 without any shortcut: norms of selected units, softmax written out."""
    alive = hidden.nonzero()[:, 0]

    def norm(ln, x):
        kept = x.index_select(-1, alive)
        mean, var = kept.mean(-1, keepdim=True), kept.var(-1, keepdim=True, correction=0)
        out = torch.zeros_like(x)
        out[..., alive] = (kept - mean) / (var + ln.eps).sqrt() * ln.weight[alive] + ln.bias[alive]
        return out

    x = x * hidden
    if hasattr(tower, "ln_pre"):
        x = norm(tower.ln_pre, x)
    for layer, block in enumerate(tower.transformer.resblocks):
        before, count = norm(block.ln_1, x), block.attn.num_heads
        q, k, v = (p.unflatten(-1, (count, -1)) for p in F.linear(before, block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, -1))
        logits = torch.einsum("nqhd,nkhd->nhqk", q, k) * q.shape[-1] ** -0.5
        if causal:
            logits = logits + torch.full(logits.shape[-2:], float("-inf")).triu(1)
        mixed = torch.einsum("nhqk,nkhd->nqhd", logits.softmax(-1), v) * heads[layer][:, None]
        x = x + block.attn.out_proj(mixed.flatten(2)) * hidden
        inside = act(block.mlp.c_fc(norm(block.ln_2, x))) * units[layer]
        x = x + block.mlp.c_proj(inside) * hidden
    return norm(tower.ln_post if hasattr(tower, "ln_post") else tower.ln_final, x)


@pytest.mark.parametrize("kind", ["soft", "binary"])
@pytest.mark.parametrize("quick", [False, True])
def test_masks_multiply_where_the_paper_says(kind, quick):
    student = vit(quick_gelu=quick).double()
    act = (lambda x: x * torch.sigmoid(1.702 * x)) if quick else F.gelu
    masks = {name: mask.double() for name, mask in random_masks(student, kind).items()}
    images, ids = inputs(student, rows=5)
    with torch.no_grad():
        tower = student.model.visual
        patches = tower.conv1(images.double()).flatten(2).transpose(1, 2)
        x = torch.cat([tower.class_embedding.expand(len(images), 1, -1), patches], 1) + tower.positional_embedding
        groups = [masks[f"image.{group}"] for group in masked.GROUPS]
        expected = reference(tower, x, *groups, False, act)[:, 0] @ tower.proj
        torch.testing.assert_close(masked.image_features(tower, images.double(), TowerMasks(*groups)), expected, atol=1e-11, rtol=0)

        tower = student.model.text
        groups = [masks[f"text.{group}"] for group in masked.GROUPS]
        x = tower.token_embedding(ids) + tower.positional_embedding
        last = reference(tower, x, *groups, True, act)[torch.arange(len(ids)), ids.argmax(-1)]
        torch.testing.assert_close(masked.text_features(tower, ids, TowerMasks(*groups)), last @ tower.text_projection, atol=1e-11, rtol=0)


def test_masked_norm_is_the_norm_of_the_living_units():
    norm = torch.nn.LayerNorm(50, eps=1e-3)
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    hidden = torch.rand(50) * (torch.rand(50) < 0.6)
    x = (3 * torch.randn(7, 4, 50) + 1).requires_grad_()
    alive = hidden.nonzero()[:, 0]
    got = TowerMasks(hidden).norm(norm, x)
    expected = F.layer_norm(x[..., alive], (len(alive),), norm.weight[alive], norm.bias[alive], norm.eps)
    torch.testing.assert_close(got[..., alive], expected, atol=2e-6, rtol=1e-5)
    assert not got[..., hidden == 0].any()
    (gradient,) = torch.autograd.grad((got[..., alive] * expected.detach().cos()).sum(), x)
    (wanted,) = torch.autograd.grad((expected * expected.detach().cos()).sum(), x)
    torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-4)


def test_gradients_of_masks_are_finite_differences():
    student = vit().double()
    masks = {name: mask.double().requires_grad_() for name, mask in random_masks(student, "soft").items()}
    images, ids = inputs(student, rows=4)
    images = images.double()

    def loss(masks):
        total = 0.0
        for name, features, tower, x in (
            ("image", masked.image_features, student.model.visual, images),
            ("text", masked.text_features, student.model.text, ids),
        ):
            out = features(tower, x, TowerMasks(*(masks[f"{name}.{group}"] for group in masked.GROUPS)))
            total = total + (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum()
        return total

    gradients = dict(zip(masks, torch.autograd.grad(loss(masks), list(masks.values()))))
    with torch.no_grad():
        for name, mask in masks.items():
            assert torch.isfinite(gradients[name]).all()
            assert gradients[name].abs().max() > 1e-4, name
            for place in mask.nonzero()[:: max(1, len(mask.nonzero()) // 3)]:
                step = torch.zeros_like(mask)
                step[tuple(place)] = 1e-5
                difference = (loss({**masks, name: mask + step}) - loss({**masks, name: mask - step})) / 2e-5
                torch.testing.assert_close(gradients[name][tuple(place)], difference, atol=1e-7, rtol=1e-5)


def test_gradients_reach_masks_through_the_student_in_fp32():
    student = vit().train()
    masks = {name: mask.requires_grad_() for name, mask in random_masks(student, "soft").items()}
    images, ids = inputs(student)
    with student.masked(masks):
        (student.encode_image(images) @ student.encode_text(ids).T).square().sum().backward()
    assert not student._masks
    for name, mask in masks.items():
        assert torch.isfinite(mask.grad).all(), name
        assert mask.grad.abs().max() > 0, name


def test_padding_costs_nothing(monkeypatch):
    student = vit()
    seen = []
    real = masked._text
    monkeypatch.setattr(masked, "_text", lambda tower, ids, *more: seen.append(tuple(ids.shape)) or real(tower, ids, *more))
    ids = making.tokens(128, longest=60)
    with torch.no_grad(), student.masked(random_masks(student, "soft")):
        grouped = student.encode_text(ids)
        ends = (ids.argmax(-1) + 1).sort().values.chunk(4)
        assert seen == [(32, int(end[-1])) for end in ends]
        monkeypatch.setattr(towers, "needed_lengths", lambda tower, tokens: None)
        torch.testing.assert_close(student.encode_text(ids), grouped, atol=2e-6, rtol=0)


def test_one_tower_alone_and_groups_alone():
    student = vit()
    images, ids = inputs(student)
    masks = random_masks(student, "soft")
    with torch.no_grad():
        plain = student.encode_image(images), student.encode_text(ids)
        with student.masked({"text.heads": masks["text.heads"]}):
            assert torch.equal(student.encode_image(images), plain[0])
            assert not torch.allclose(student.encode_text(ids), plain[1], atol=1e-3)
        with pytest.raises(RuntimeError, match="inside"), student.masked(masks):
            raise RuntimeError("inside")
        assert torch.equal(student.encode_text(ids), plain[1])


def test_shapes_that_a_term_is_told():
    student = vit()
    image = {"image.layers": 3, "image.width": 128, "image.heads": 4, "image.mlp": 256, "image.head_width": 32}
    text = {"text.layers": 2, "text.width": 64, "text.heads": 2, "text.mlp": 128, "text.head_width": 32}
    assert mask_shapes(student) == image | text
    alive = alive_masks(student)
    assert {name: list(mask.shape) for name, mask in alive.items()} == {
        "image.hidden": [128], "image.heads": [3, 4], "image.intermediate": [3, 256],
        "text.hidden": [64], "text.heads": [2, 2], "text.intermediate": [2, 128],
    }  # fmt: skip
    assert all(bool((mask == 1).all()) for mask in alive.values())


def test_mistakes():
    student = vit()
    with pytest.raises(UserError, match=r"no mask 'image.head'.*'image.heads'"), student.masked({"image.head": torch.ones(3, 4)}):
        pass
    with pytest.raises(UserError, match=r"'text.heads' is \[2, 3\], but this student needs \[2, 2\]"):
        student.masked({"text.heads": torch.ones(2, 3)}).__enter__()
    needs = "automatic inheritance needs a ViT image tower and an open_clip transformer text tower; this student has "
    for other, what in (
        (new_student(making.small_conv()), "an image tower of timm's"),
        (new_student(making.tiny(qk_norm=True)), "a text tower with blocks that"),
        (new_student(making.tiny(embed_cls=True)), "a text tower with a class token"),
        (new_student(making.tiny(proj_type="none")), "a text tower without a projection"),
    ):
        with pytest.raises(UserError, match=needs + what + ".*use --method manual"):
            mask_shapes(other)
