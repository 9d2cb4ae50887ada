"""CLIP and SigLIP: golden numbers, open_clip's own losses, and masks against loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, SigLipLoss

from clipling.objectives.contrastive import Clip, SigLip
from clipling.objectives.infonce import cells_equal
from clipling.objectives.term import Batch, Objective, View


def unit(*shape: int, seed: int, dtype=torch.float32) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


def batch(image, text, scale, *, bias=None, same=None, rows=slice(None)) -> Batch:
    numbers = torch.arange(len(image))
    view = View(image[rows], text[rows], image, text)
    first = rows.start or 0
    return Batch({"main": view}, scale, numbers[rows], numbers, first=first, bias=bias, same=same)


def same_mask(rows: int = 12) -> torch.Tensor:
    mask = torch.zeros(rows, rows, dtype=torch.bool)
    for i, j in ((0, 3), (0, 7), (3, 7), (5, 6)):
        mask[i, j] = mask[j, i] = True
    return mask


def golden(function) -> torch.Tensor:
    return F.normalize(function(torch.arange(32, dtype=torch.float64).reshape(4, 8)), dim=1)


def test_golden_numbers_of_clip():
    image, text = golden(lambda n: torch.sin(1 + n)), golden(lambda n: torch.cos(0.5 * n))
    log_scale = torch.tensor(math.log(20), dtype=torch.float64, requires_grad=True)
    loss = Clip()(batch(image, text, log_scale.exp()))["clip"]
    loss.backward()
    assert loss.item() == pytest.approx(5.51822965900365, abs=1e-9)
    assert log_scale.grad.item() == pytest.approx(5.240388831903704, abs=1e-9)


def peers(term, peer, same, bias):
    """Loss and gradients of ours and of open_clip's on the same numbers."""
    out = []
    for ours in (True, False):
        image, text = (unit(12, 16, seed=seed).requires_grad_() for seed in (1, 2))
        log_scale = torch.tensor(2.3, requires_grad=True)
        wanted = [image, text, log_scale]
        if bias is not None:
            wanted.append(torch.tensor(bias, requires_grad=True))
        shift = wanted[3] if bias is not None else None
        if ours:
            (loss,) = term(batch(image, text, log_scale.exp(), bias=shift, same=same)).values()
        else:
            loss = peer(image, text, log_scale.exp(), shift)
        out.append([loss.detach(), *torch.autograd.grad(loss, wanted)])
    return zip(*out)


@pytest.mark.parametrize("policy", ["ignore", "positive"])
@pytest.mark.parametrize("same", [None, torch.zeros(12, 12, dtype=torch.bool)], ids=["none", "empty"])
@pytest.mark.parametrize(("term", "peer", "bias"), [(Clip, ClipLoss, None), (SigLip, SigLipLoss, -3.0)])
def test_equals_open_clip(term, peer, bias, same, policy):
    for ours, theirs in peers(term(policy), peer(), same, bias):
        assert torch.equal(ours, theirs)


def clip_by_loops(image, text, scale, same, policy) -> float:
    total = 0.0
    for rows, columns in ((image, text), (text, image)):
        for i in range(len(rows)):
            logits = [scale * float(rows[i] @ columns[j]) for j in range(len(columns))]
            more = [j for j in range(len(columns)) if same[i, j]]
            counted = [j for j in range(len(columns)) if policy == "positive" or j not in more]
            log_sum = math.log(sum(math.exp(logits[j]) for j in counted))
            wanted = [i, *more] if policy == "positive" else [i]
            total += sum(log_sum - logits[j] for j in wanted) / len(wanted) / len(rows) / 2
    return total


def siglip_by_loops(image, text, scale, bias, same, policy) -> float:
    total = 0.0
    for i in range(len(image)):
        for j in range(len(text)):
            if same[i, j] and policy == "ignore":
                continue
            label = 1 if i == j or same[i, j] else -1
            total += math.log1p(math.exp(-label * (scale * float(image[i] @ text[j]) + bias))) / len(image)
    return total


@pytest.mark.parametrize("policy", ["ignore", "positive"])
def test_masks_equal_loops(policy):
    image, text = (unit(12, 8, seed=seed, dtype=torch.float64) for seed in (3, 4))
    scale, bias = torch.tensor(7.0, dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64)
    masked = batch(image, text, scale, bias=bias, same=same_mask())
    clip, siglip = Clip(policy)(masked)["clip"], SigLip(policy)(masked)["siglip"]
    assert clip.item() == pytest.approx(clip_by_loops(image, text, 7.0, same_mask(), policy), abs=1e-10)
    assert siglip.item() == pytest.approx(siglip_by_loops(image, text, 7.0, -2.0, same_mask(), policy), abs=1e-10)
    assert clip.item() != pytest.approx(Clip()(batch(image, text, scale))["clip"].item(), abs=1e-3)


@pytest.mark.parametrize("policy", ["ignore", "positive"])
def test_ignored_pairs_push_nothing(policy):
    """The gradient of a similarity is zero where it is ignored, negative (pulled up) where it is a positive."""
    image, text = (unit(12, 8, seed=seed) for seed in (3, 4))
    for term in (Clip(policy), SigLip(policy)):
        # two features in one row each: the image row 5 and the text row 6, which are the same pair twice
        image, text = image.detach().requires_grad_(), text.detach().requires_grad_()
        (loss,) = term(batch(image, text, torch.tensor(5.0), bias=torch.tensor(-2.0), same=same_mask()[5:6], rows=slice(5, 6))).values()
        loss.backward()
        along = float(text.grad[6] @ image.detach()[5])
        assert (along == 0) if policy == "ignore" else (along < 0)


@pytest.mark.parametrize("term", [Clip("ignore"), Clip("positive"), SigLip("ignore"), SigLip("positive")])
def test_parts_of_the_batch_average_to_the_whole(term):
    image, text = (unit(12, 8, seed=seed, dtype=torch.float64) for seed in (5, 6))
    scale, bias, same = torch.tensor(9.0), torch.tensor(-4.0), same_mask()
    (whole,) = term(batch(image, text, scale, bias=bias, same=same)).values()
    parts = [slice(0, 4), slice(4, 8), slice(8, 12)]
    values = [next(iter(term(batch(image, text, scale, bias=bias, same=same[p], rows=p)).values())) for p in parts]
    assert sum(values).item() / 3 == pytest.approx(whole.item(), rel=1e-6)


@pytest.mark.parametrize("term", [Clip("ignore"), Clip("positive"), SigLip("ignore")])
def test_order_of_pairs_means_nothing(term):
    image, text, same = unit(12, 8, seed=7), unit(12, 8, seed=8), same_mask()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    scale, bias = torch.tensor(9.0), torch.tensor(-4.0)
    (one,) = term(batch(image, text, scale, bias=bias, same=same)).values()
    (other,) = term(batch(image[order], text[order], scale, bias=bias, same=same[order][:, order])).values()
    assert one.item() == pytest.approx(other.item(), rel=1e-5)


def test_similarities_are_fp32_under_autocast():
    image, text = unit(12, 64, seed=1), unit(12, 64, seed=2)
    plain = Clip()(batch(image, text, torch.tensor(100.0)))["clip"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(Clip()(batch(image, text, torch.tensor(100.0)))["clip"], plain)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="'ignore', 'positive'"):
        Clip("positives")
    with pytest.raises(ValueError, match="logit_bias"):
        SigLip()(batch(unit(4, 8, seed=1), unit(4, 8, seed=2), torch.tensor(1.0)))


def test_a_term_of_weight_zero_changes_nothing():
    results = []
    for extra in (False, True):
        image, text = unit(12, 8, seed=1).requires_grad_(), unit(12, 8, seed=2)
        terms, weights = {"clip": Clip()}, {"clip": {"clip": 1.0}}
        if extra:
            terms["siglip"], weights["siglip"] = SigLip(), {"siglip": 0.0}
        loss, _ = Objective(terms, weights)(batch(image, text, torch.tensor(20.0), bias=torch.tensor(-1.0)))
        results.append((loss.detach(), *torch.autograd.grad(loss, image)))
    assert all(torch.equal(one, other) for one, other in zip(*results))


def test_cells_equal_finds_what_a_comparison_finds():
    rng = torch.Generator().manual_seed(0)
    for rows, columns, wanted in ((5, 9, 3), (4, 1, 2), (1, 6, 1), (3, 5, 0), (0, 4, 2), (2, 0, 1)):
        a = torch.randint(0, 6, (rows, wanted), generator=rng)
        ids = torch.randint(0, 6, (columns,), generator=rng)
        expected = [(i, j) for i in range(rows) for j in range(columns) for x in a[i].tolist() if x == ids[j]]
        assert sorted(zip(*(part.tolist() for part in cells_equal(a, ids)))) == sorted(expected)
