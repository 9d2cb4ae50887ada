"""FGSM and PGD against a reference implementation, closed forms, and what no attack may do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from clipling.errors import UserError
from clipling.evals.attacks import Attacked, Classifier, draws, fgsm, normalised, pgd, pgd_last, white_box
from clipling.models.hub import new_student
from tests.models.making import pictures, small_conv

# Adversarial pictures of `network` in millionths, by torchattacks 3.5.1: FGSM(eps=0.1), PGD(eps=0.1, alpha=0.04, steps=6,
# random_start=False). They differ in ten pixels.
FGSM = [
    900000, 66862, 543924, 1000000, 0, 641652, 765407, 137934, 1000000, 461991, 333584, 893022, 9438, 427421, 954021, 0, 711153, 484546,
    0, 880209, 383911, 407741, 1000000, 0, 710153, 690299, 103008, 771969, 401325, 226266, 1000000, 111862, 287264, 1000000, 128592,
    589811, 618475, 119060, 822403, 318067, 286778, 1000000, 47854, 369934, 992210, 107426, 664171, 540553, 148535, 861048, 237095,
    356032, 1000000, 0,
]  # fmt: skip
PGD = [
    900000, 66862, 543924, 807863, 112578, 641652, 765407, 137934, 1000000, 461991, 333584, 893022, 209438, 427421, 954021, 0, 711153,
    484546, 0, 880209, 383911, 207741, 1000000, 0, 710153, 890299, 103008, 951969, 401325, 226266, 896695, 111862, 287264, 1000000, 0,
    589811, 618475, 119060, 822403, 498066, 286778, 1000000, 47854, 369934, 992210, 107426, 664171, 540553, 48535, 861048, 237095,
    356032, 1000000, 0,
]  # fmt: skip
LABELS = torch.tensor([1, 2])


def network() -> Classifier:
    """Three classes from 3 x 3 pictures, the same weights everywhere."""
    conv, linear = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(36, 3)
    with torch.no_grad():
        for k, p in enumerate([*conv.parameters(), *linear.parameters()]):
            p.copy_(2 * torch.sin(torch.arange(p.numel(), dtype=torch.float64) * (1.7 + k) + k).view_as(p))
    return Classifier(nn.Sequential(conv, nn.Sigmoid(), nn.Flatten(), linear), torch.eye(3))


def two_pictures() -> torch.Tensor:
    return ((torch.cos(torch.arange(54, dtype=torch.float64) * 2.3).view(2, 3, 3, 3) + 1) / 2).float()


def some(n: int, size: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, size, size, generator=made), torch.randint(0, 3, (n,), generator=made)


def linear(seed: int = 0) -> tuple[Classifier, torch.Tensor]:
    """Two classes whose logits are +-<w, x>/2, so that the margin is linear."""
    w = torch.randn(27, generator=torch.Generator().manual_seed(seed))
    rows = torch.stack([w, -w]) / 2
    return Classifier(lambda x: x.flatten(1) @ rows.T, torch.eye(2)), w.view(3, 3, 3)


def test_equal_to_a_reference_implementation():
    model, images = network(), two_pictures()
    assert (fgsm(model, images, LABELS, 0.1).flatten() - torch.tensor(FGSM) / 1e6).abs().max() < 1e-6
    found = pgd_last(model, images, LABELS, 0.1, steps=6, step_size=0.04)
    assert (found.flatten() - torch.tensor(PGD) / 1e6).abs().max() < 1e-6


def test_a_linear_model_is_beaten_by_the_optimal_perturbation():
    model, w = linear()
    images, labels = some(20)[0], torch.arange(20) % 2
    best = (images - 0.07 * torch.where(labels == 0, 1.0, -1.0)[:, None, None, None] * w.sign()).clamp(0, 1)
    assert torch.equal(fgsm(model, images, labels, 0.07), best)
    start = images + 0.07 * draws([str(i) for i in range(20)], 3, "start")
    found = pgd(model, images, labels, 0.07, starts=[start])
    torch.testing.assert_close(found.images, best, atol=1e-6, rtol=0)
    margin = (2 * (labels == 0) - 1) * (best * w).sum((1, 2, 3))
    assert torch.equal(found.hits, (margin > 0).double())
    torch.testing.assert_close(found.loss, torch.log1p(torch.exp(-margin.double())), atol=1e-5, rtol=0)
    assert 0 < found.hits.mean() < 1


def test_loss_and_hits_are_those_of_torch_and_the_gradient_has_its_signs():
    model = Classifier(network().encode, torch.eye(3), scale=1.7)
    images, labels = some(30)
    moved = images.clone().requires_grad_(True)
    logits = 1.7 * model.encode(moved)
    loss = F.cross_entropy(logits, labels, reduction="none")
    (expected,) = torch.autograd.grad(loss.sum(), moved)
    gradient, found = model.gradient(images, labels)
    torch.testing.assert_close(found.loss, loss.detach().double(), atol=1e-5, rtol=1e-5)
    assert torch.equal(found.hits, (logits.argmax(1) == labels).double())
    assert torch.equal(gradient.sign(), expected.sign())
    judged = model.judge(images, labels)
    assert torch.equal(judged.hits, found.hits)
    assert torch.equal(judged.loss, found.loss)


def test_a_saturated_softmax_does_not_stop_the_attack():
    model, w = linear()
    images, labels = (0.5 + 0.3 * w.sign())[None], torch.tensor([0])
    moved = images.clone().requires_grad_(True)
    (plain,) = torch.autograd.grad(F.cross_entropy(1e5 * model.encode(moved), labels), moved)
    assert not plain.any(), "cross-entropy itself gives no direction here"
    assert torch.equal(fgsm(Classifier(model.encode, model.classes, 1e5), images, labels, 0.1), images - 0.1 * w.sign())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), epsilon=st.floats(0, 1), steps=st.integers(1, 4), size=st.none() | st.floats(0, 1))
def test_changes_stay_within_epsilon_and_pictures_within_the_range(seed, epsilon, steps, size):
    model, (images, labels) = network(), some(4, seed=seed)
    start = images + 2 * draws("abcd", 3, "far")
    for made in (
        fgsm(model, images, labels, epsilon),
        pgd_last(model, images, labels, epsilon, steps=steps, step_size=size, start=start),
        pgd(model, images, labels, epsilon, steps=steps, step_size=size, starts=[start, images]).images,
    ):
        assert (made - images).abs().max() <= epsilon + 1e-6
        assert made.min() >= 0
        assert made.max() <= 1


def test_epsilon_zero_changes_nothing():
    model, (images, labels) = network(), some(10)
    clean = model.judge(images, labels)
    assert torch.equal(fgsm(model, images, labels, 0), images)
    found = pgd(model, images, labels, 0, starts=[images + 1])
    assert torch.equal(found.images, images)
    assert torch.equal(found.loss, clean.loss)


def worse_or_equal(found: Attacked, other: Attacked) -> bool:
    return bool(((found.hits < other.hits) | ((found.hits == other.hits) & (found.loss >= other.loss))).all())


def test_pgd_keeps_the_worst_of_all_that_it_met_and_was_given():
    model, (images, labels) = network(), some(60, seed=1)
    known = model.judge(fgsm(model, images, labels, 0.1), labels)
    given = known.images.clone()
    starts = [images + 0.1 * draws(map(str, range(60)), 3, name) for name in "ab"]
    both = pgd(model, images, labels, 0.1, steps=4, starts=starts, known=known)
    assert worse_or_equal(both, known)
    for start in starts:
        alone = pgd(model, images, labels, 0.1, steps=4, starts=[start])
        assert worse_or_equal(both, alone)
        for steps in range(1, 5):  # every picture on the way
            last = pgd_last(model, images, labels, 0.1, steps=steps, step_size=0.0625, start=start)
            assert worse_or_equal(alone, model.judge(last, labels))
    assert torch.equal(model.judge(both.images, labels).hits, both.hits), "the pictures are those that were judged"
    assert torch.equal(known.images, given), "what was given is not changed"


def test_a_misclassified_picture_is_worse_than_one_of_higher_loss():
    blank = torch.zeros(3, 3, 2, 2)
    kept = Attacked(blank.clone(), torch.tensor([1.0, 0.0, 1.0]).double(), torch.tensor([2.0, 1.0, 1.0]).double())
    other = Attacked(blank + 1, torch.tensor([0.0, 1.0, 1.0]).double(), torch.tensor([1.0, 9.0, 1.5]).double())
    kept.keep_worse(torch.arange(3), other)
    assert kept.images[:, 0, 0, 0].tolist() == [1, 0, 1]
    assert (kept.hits.tolist(), kept.loss.tolist()) == ([0, 0, 1], [1, 1, 1.5])


def test_stopping_at_a_mistake_gives_the_same_accuracy():
    model, (images, labels) = network(), some(80, seed=2)
    starts = [images + 0.03 * draws(map(str, range(80)), 3, "s"), images]
    whole, quick = (pgd(model, images, labels, 0.03, starts=starts, stop=stop) for stop in (False, True))
    assert torch.equal(whole.hits, quick.hits)
    assert 0 < whole.hits.mean() < model.judge(images, labels).hits.mean()
    assert (quick.loss < whole.loss - 1e-6).any(), "it did stop"


def test_draws_depend_on_the_key_alone():
    one, two = draws(["a", "b"], 4, "start 0"), draws(["b", "c"], 4, "start 0")
    assert torch.equal(one[1], two[0])
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one[1], draws(["b"], 4, "start 1")[0])
    many = draws(map(str, range(200)), 4, "x")
    assert many.abs().max() <= 1
    assert abs(float(many.mean())) < 0.02
    assert float(many.var()) == pytest.approx(1 / 3, abs=0.01)


@pytest.fixture
def student():
    return new_student(small_conv(), seed=1)


def test_normalised_equals_the_students_own(student):
    pixels = pictures(3, 32)
    pixels.view(-1)[:256] = torch.arange(256, dtype=torch.uint8)
    torch.testing.assert_close(normalised(student, pixels.float() / 255), student.normalise(pixels), atol=1e-6, rtol=0)


def test_a_student_is_left_as_it_was(student):
    student.freeze(text=True)
    student.train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    modes = [module.training for module in student.modules()]
    images, labels = pictures(6, 32).float() / 255, torch.arange(6) % 3
    classes = F.normalize(torch.randn(3, student.embed_dim, generator=torch.Generator().manual_seed(0)), dim=-1).numpy()
    with torch.no_grad(), white_box(student, classes, 10.0) as model:  # a caller without gradients does not stop the attack
        assert not student.training
        single = pgd(model, images[:1], labels[:1], 0.02, steps=3)
        found = pgd(model, images, labels, 0.02, steps=3)
    assert [module.training for module in student.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items()), "BatchNorm's statistics are buffers"
    assert all(parameter.grad is None for parameter in student.parameters())
    assert found.loss.mean() > 0
    # Statistics of the batch would make a picture's attack depend on the others.
    assert float(single.loss[0]) == pytest.approx(float(found.loss[0]), abs=1e-3)
    with student.evaluating():
        cosines = student.encode_image(normalised(student, images)).numpy() @ classes.T
    clean = F.cross_entropy(10.0 * torch.from_numpy(cosines), labels, reduction="none")
    assert (found.loss > clean + 1e-3).all(), "the attack raises the loss of every picture"


def test_the_mode_is_restored_after_an_error(student):
    with pytest.raises(UserError, match="not finite"), white_box(student, np.full((2, student.embed_dim), 0.1, np.float32), 1.0) as model:
        model.gradient(torch.full((1, 3, 32, 32), torch.nan), torch.tensor([0]))
    assert student.training


def test_a_model_that_cuts_the_graph_has_no_gradient():
    cut = Classifier(lambda x: network().encode(x).detach(), torch.eye(3))
    gradient, _ = cut.gradient(*some(3))
    assert not gradient.any()


def test_arguments_that_make_no_sense():
    model, (images, labels) = network(), some(2)
    with pytest.raises(ValueError, match="0 steps"):
        pgd(model, images, labels, 0.1, steps=0)
    with pytest.raises(ValueError, match="epsilon is 4"):
        fgsm(model, images, labels, 4)
