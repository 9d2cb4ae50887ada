"""Affinity mimicking: golden numbers of core.md, loops, and what has to hold whatever the features."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipling.errors import UserError
from clipling.objectives.affinity import Affinity
from clipling.objectives.check import check_term
from clipling.objectives.contrastive import Clip
from clipling.objectives.term import TeacherView
from tests.objectives import golden
from tests.objectives.golden import taught_by, unit

ENTROPIES = (0.2960473058520756, 0.0007723231974889915)


def view(rows: int, size: int, seed: int, scale: float) -> TeacherView:
    image, text = unit(rows, size, seed), unit(rows, size, seed + 1)
    return TeacherView(scale, image, text, image, text)


def test_golden_numbers():
    batch = taught_by(golden.image(), golden.text(), 20.0, golden.teacher())
    value = Affinity()(batch)["affinity"].item()
    assert value == pytest.approx((3.155872939302812 + 7.287466119078903) / 2, abs=1e-9)
    less = Affinity(kl=True)(batch)["affinity"].item()
    assert less == pytest.approx(value - sum(ENTROPIES) / 2, abs=1e-9)


def test_golden_numbers_of_two_teachers():
    """MobileCLIP: the mean of the probabilities, each teacher at its own scale."""
    batch = taught_by(golden.image(), golden.text(), 20.0, golden.teacher(70.0), golden.second_teacher(60.0))
    assert Affinity()(batch)["affinity"].item() == pytest.approx(7.0435069226175155, abs=1e-9)


def test_the_teacher_itself_scores_its_own_entropy_and_gets_no_gradient():
    teacher = golden.teacher()
    image, text = teacher.image.clone().requires_grad_(), teacher.text.clone().requires_grad_()
    batch = taught_by(image, text, 50.0, teacher)
    batch.scale.requires_grad_()
    loss = Affinity()(batch)["affinity"]
    assert loss.item() == pytest.approx(sum(ENTROPIES) / 2, abs=1e-9)
    assert Affinity(kl=True)(batch)["affinity"].item() == pytest.approx(0, abs=1e-12)
    for grad in torch.autograd.grad(loss, [image, text, batch.scale]):
        assert grad.abs().max() < 1e-12
    other = Affinity()(taught_by(image, text, 30.0, teacher))["affinity"]
    assert torch.autograd.grad(other, image)[0].abs().max() > 1e-3


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), average=st.sampled_from(["after_softmax", "logits_concat"]), teachers=st.integers(1, 3))
def test_equals_the_formula_in_loops(seed, average, teachers):
    image, text = unit(5, 4, seed), unit(5, 4, seed + 1)
    taught = [view(5, 3 + t, seed + 10 * t + 2, 8.0 + t) for t in range(teachers)]
    value = Affinity(average=average)(taught_by(image, text, 6.0, *taught))["affinity"].item()
    total = 0.0
    for side, own, other in (("image", image, text), ("text", text, image)):
        back = "text" if side == "image" else "image"
        for i in range(5):
            logits = [[t.scale * float(getattr(t, side)[i] @ getattr(t, back)[j]) for j in range(5)] for t in taught]
            if average == "logits_concat":
                logits = [[sum(column) for column in zip(*logits)]]
            shares = [[math.exp(x) / sum(map(math.exp, row)) for x in row] for row in logits]
            target = [sum(column) / len(column) for column in zip(*shares)]
            assert sum(target) == pytest.approx(1)
            own_logits = [6.0 * float(own[i] @ other[j]) for j in range(5)]
            log_sum = math.log(sum(map(math.exp, own_logits)))
            total += sum(p * (log_sum - x) for p, x in zip(target, own_logits)) / 10
    assert value == pytest.approx(total, abs=1e-9)


def test_concatenated_logits_are_those_of_concatenated_rows():
    taught = [view(6, 3, 1, 9.0), view(6, 5, 3, 4.0)]
    image, text = unit(6, 4, 7), unit(6, 4, 8)
    rows = {side: torch.cat([t.scale**0.5 * getattr(t, side) for t in taught], dim=1) for side in ("image", "text")}
    one = TeacherView(1.0, rows["image"], rows["text"], rows["image"], rows["text"])
    together = Affinity(average="logits_concat")(taught_by(image, text, 6.0, *taught))["affinity"]
    assert together.item() == pytest.approx(Affinity()(taught_by(image, text, 6.0, one))["affinity"].item(), abs=1e-12)


def test_a_teacher_given_twice_is_one_teacher():
    taught, image, text = view(6, 3, 1, 9.0), unit(6, 4, 7), unit(6, 4, 8)
    once, twice = (Affinity()(taught_by(image, text, 6.0, *[taught] * n))["affinity"].item() for n in (1, 2))
    assert twice == pytest.approx(once, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(1, 100), teacher_scale=st.floats(1, 100))
def test_the_divergence_is_never_negative_and_its_gradient_is_that_of_the_cross_entropy(seed, scale, teacher_scale):
    image, text = unit(6, 4, seed).requires_grad_(), unit(6, 4, seed + 1).requires_grad_()
    batch = taught_by(image, text, scale, view(6, 5, seed + 2, teacher_scale))
    entropy, divergence = (Affinity(kl=kl)(batch)["affinity"] for kl in (False, True))
    assert divergence.item() >= -1e-12
    assert entropy.item() >= divergence.item()
    for one, other in zip(torch.autograd.grad(entropy, [image, text]), torch.autograd.grad(divergence, [image, text])):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_certain_teacher_makes_it_clip():
    """At an endless scale the targets are the pairs, if every pair is the teacher's favourite."""
    taught, image, text = unit(6, 9, 1), unit(6, 4, 7), unit(6, 4, 8)
    batch = taught_by(image, text, 6.0, TeacherView(1e6, taught, taught, taught, taught))
    assert Affinity()(batch)["affinity"].item() == pytest.approx(Clip()(batch)["clip"].item(), abs=1e-9)


@pytest.mark.parametrize(
    ("options", "own", "its"),
    [
        ({}, 6.0, 9.0),
        ({"scale": 50.0}, 50.0, 50.0),
        ({"teacher_scale": 70.0}, 6.0, 70.0),
        ({"scale": 20.0, "teacher_scale": 70.0}, 20.0, 70.0),
    ],
)
def test_scales(options, own, its):
    image, text, taught = unit(6, 4, 7), unit(6, 4, 8), view(6, 3, 1, 9.0)
    expected = Affinity()(taught_by(image, text, own, TeacherView(its, *list(vars(taught).values())[1:])))["affinity"].item()
    batch = taught_by(image.requires_grad_(), text, 6.0, taught)
    batch.scale.requires_grad_()
    loss = Affinity(**options)(batch)["affinity"]
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    loss.backward()
    assert (batch.scale.grad is None) == ("scale" in options)


def test_pairs_that_are_not_negatives_are_left_to_the_teacher():
    image, text, taught = unit(6, 4, 7), unit(6, 4, 8), view(6, 3, 1, 9.0)
    same = torch.zeros(6, 6, dtype=torch.bool)
    same[1, 2] = same[2, 1] = True
    masked, plain = (Affinity()(taught_by(image, text, 6.0, taught, same=mask))["affinity"] for mask in (same, None))
    assert torch.equal(masked, plain)


def test_no_gradient_reaches_a_teacher():
    taught = view(6, 3, 1, 9.0)
    for rows in (taught.image, taught.text):
        rows.requires_grad_()
    Affinity()(taught_by(unit(6, 4, 7).requires_grad_(), unit(6, 4, 8), 6.0, taught))["affinity"].backward()
    assert taught.image.grad is None
    assert taught.text.grad is None


def test_similarities_are_fp32_under_autocast_and_for_half_rows():
    image, text, taught = (x.float() for x in (unit(6, 64, 7), unit(6, 64, 8), unit(6, 32, 1)))
    batch = taught_by(image, text, 100.0, TeacherView(100.0, *[taught.half()] * 4))
    plain = Affinity()(batch)["affinity"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(Affinity()(batch)["affinity"], plain)
    assert plain.dtype == torch.float32


def test_parts_of_the_batch_average_to_the_whole():
    batch = taught_by(unit(6, 4, 7), unit(6, 4, 8), 6.0, view(6, 3, 1, 9.0), view(6, 5, 3, 4.0))
    parts = [Affinity()(golden.part_of(batch, slice(at, at + 2)))["affinity"].item() for at in (0, 2, 4)]
    assert sum(parts) / 3 == pytest.approx(Affinity()(batch)["affinity"].item(), abs=1e-12)
    assert max(parts) - min(parts) > 1e-3


def test_the_checker_knows_teachers():
    findings = check_term("clipling.objectives.affinity:Affinity", processes=False)
    assert all(finding.ok for finding in findings), findings
    assert [finding.name for finding in findings] == ["values", "steps", "gradients", "permutation", "state"]


def test_mistakes_are_named():
    with pytest.raises(UserError, match="expected a positive number"):
        Affinity(scale=0.0)
    with pytest.raises(UserError, match="'after_softmax', 'logits_concat'"):
        Affinity(average="mean")
    with pytest.raises(UserError, match="--teacher MODEL"):
        Affinity().setup({"student": 8})
