"""Importance of units: magnitude and first order."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clipling.errors import UserError
from clipling.surgery.importance import first_order, magnitude
from clipling.surgery.inherit import inherit
from tests.surgery.small import changed, config, images, source, words

SOURCE = config(vision={"layers": 1}, text={"layers": 1})
SMALLER = changed(SOURCE, vision={"width": 16}, text={"width": 16, "heads": 2})


def test_magnitude_chooses_by_formula():
    """Heads: squares of their rows of q, k, v and of their columns of the output map. MLP units: of a row and a column."""
    teacher = source(SOURCE)
    _, report = inherit(teacher, SMALLER, width="magnitude")
    block = teacher.model.visual.transformer.resblocks[0].requires_grad_(False)
    heads = [
        sum(float(block.attn.in_proj_weight[32 * part + 8 * h : 32 * part + 8 * h + 8].square().sum()) for part in range(3))
        + float(block.attn.out_proj.weight[:, 8 * h : 8 * h + 8].square().sum())
        for h in range(4)
    ]
    assert report.image.units["transformer.resblocks.0.heads"].tolist() == sorted(sorted(range(4), key=lambda h: -heads[h])[:2])
    units = block.mlp.c_fc.weight.square().sum(1) + block.mlp.c_proj.weight.square().sum(0)
    assert torch.equal(report.image.units["transformer.resblocks.0.mlp"], units.topk(32).indices.sort().values)
    assert not any(value.ndim < 2 for value in magnitude(teacher, {}).values())


def test_first_order_is_weight_times_gradient_of_the_clip_loss():
    teacher = source(SOURCE)
    teacher.freeze(text=True)
    teacher.train()
    batches = [(images(4), words(4)), (images(3) * 0.5, words(3))]
    found = first_order(teacher, iter(batches))
    assert teacher.training
    assert not teacher.model.text.ln_final.weight.requires_grad
    assert all(p.grad is None for p in teacher.parameters())

    teacher.freeze()
    expected = torch.zeros(32, 32)
    for image, text in batches:
        logits = (
            teacher.logit_scale.exp() * F.normalize(teacher.model.visual(image), dim=-1) @ F.normalize(teacher.model.text(text), dim=-1).T
        )
        loss = (F.cross_entropy(logits, torch.arange(len(image))) + F.cross_entropy(logits.T, torch.arange(len(image)))) / 2
        weight = teacher.model.visual.transformer.resblocks[0].attn.out_proj.weight
        expected += (weight * torch.autograd.grad(loss, weight)[0]).abs().detach()
    torch.testing.assert_close(found["visual.transformer.resblocks.0.attn.out_proj.weight"], expected, rtol=1e-3, atol=1e-7)


def test_first_order_keeps_what_the_loss_needs():
    """A unit whose output is never used has no gradient, and is dropped although its weights are large."""
    teacher = source(SOURCE)
    mlp = teacher.model.visual.transformer.resblocks[0].mlp
    with torch.no_grad():
        mlp.c_fc.weight[5] = 100.0
        mlp.c_proj.weight[:, 5] = 0.0
    importance = first_order(teacher, [(images(4), words(4))])
    name = "transformer.resblocks.0.mlp"
    assert 5 not in inherit(teacher, SMALLER, width="first_order", importance=importance)[1].image.units[name]
    assert 5 in inherit(teacher, SMALLER, width="magnitude")[1].image.units[name]


def test_pixels_are_normalised_first():
    teacher = source(SOURCE)
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    one, other = first_order(teacher, [(pixels, words())]), first_order(teacher, [(teacher.normalise(pixels), words())])
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_first_order_cannot_work_with():
    teacher = source(SOURCE)
    with pytest.raises(UserError, match="at least one batch"):
        first_order(teacher, [])
    with pytest.raises(UserError, match="at least 2 pairs"):
        first_order(teacher, [(images(1), words(1))])
    importance = {name: value for name, value in first_order(teacher, [(images(), words())]).items() if name.startswith("visual")}
    with pytest.raises(UserError, match="no entries for the text tower"):
        inherit(teacher, SMALLER, width="first_order", importance=importance)
