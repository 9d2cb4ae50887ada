"""The loss of reinforced training: the golden number of core.md, and what has to hold whatever the features."""

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
from clipling.objectives.reinforced import Reinforced
from clipling.objectives.term import Objective, TeacherView, View
from tests.objectives import golden
from tests.objectives.golden import part_of, taught_by, unit


def both() -> Reinforced:
    return Reinforced()


def mixed() -> Reinforced:
    return Reinforced("mix")


def view(rows: int, size: int, seed: int, scale: float) -> TeacherView:
    image, text, syn = (unit(rows, size, seed + n) for n in range(3))
    return TeacherView(scale, image, text, image, text, {"syn": (syn, syn)})


def batch_of(rows: int = 6, seed: int = 0, teachers: int = 2, same: torch.Tensor | None = None):
    """Student and teachers with a synthetic caption beside the real one."""
    batch = taught_by(
        unit(rows, 5, seed + 1), unit(rows, 5, seed + 2), 9.0, *(view(rows, 4 + t, seed + 10 * t + 3, 20.0 + t) for t in range(teachers))
    )
    batch.views["syn"] = View(batch.main.image, unit(rows, 5, seed + 50), batch.main.image_all, unit(rows, 5, seed + 50))
    batch.same = same
    return batch


def value(batch, part: str = "distill", **options) -> float:
    return Reinforced(**options, parts=(part,))(batch)[part].item()


def test_the_golden_number():
    batch = taught_by(golden.image(), golden.text(), 20.0, golden.teacher(1.0), golden.second_teacher(1.0))
    assert value(batch, captions="real", scales=[70.0, 60.0]) == pytest.approx(7.0435069226175155, abs=1e-9)
    batch = taught_by(golden.image(), golden.text(), 20.0, golden.teacher(70.0), golden.second_teacher(60.0))
    assert value(batch, captions="real") == pytest.approx(7.0435069226175155, abs=1e-9)


def test_real_captions_alone_are_the_affinity_of_the_teachers():
    batch = batch_of()
    assert value(batch, captions="real") == pytest.approx(Affinity()(batch)["affinity"].item(), abs=1e-12)
    assert value(batch, "clip", captions="real") == pytest.approx(Clip()(batch)["clip"].item(), abs=1e-12)


def test_two_equal_teachers_equal_one():
    batch = batch_of(teachers=1)
    once = value(batch)
    batch.teachers["again"] = next(iter(batch.teachers.values()))
    assert value(batch) == pytest.approx(once, abs=1e-12)


def test_weights_one_and_zero_are_plain_clip():
    """Bit for bit, and no teacher is asked for."""
    batch = batch_of()
    term = Reinforced("real", parts=("clip",))
    assert term.needs == {"student.image", "student.text"}
    loss, _ = Objective({"reinforced": term}, {"reinforced": {"clip": 1.0, "distill": 0.0}})(batch)
    plain, _ = Objective({"clip": Clip()}, {"clip": 1.0})(batch)
    assert torch.equal(loss, plain)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), teachers=st.integers(1, 3))
def test_equals_the_formula_in_loops(seed, teachers):
    batch = batch_of(5, seed, teachers)
    total = 0.0
    for name in ("main", "syn"):
        image, text = batch.main.image, batch.views[name].text
        for rows, columns, side in ((image, text, "image"), (text, image, "text")):
            for i in range(5):
                target = [0.0] * 5
                for teacher in batch.teachers.values():
                    its_text = teacher.texts_of(name)[0]
                    own, other = (teacher.image, its_text) if side == "image" else (its_text, teacher.image)
                    shares = [math.exp(teacher.scale * float(own[i] @ other[j])) for j in range(5)]
                    target = [t + s / sum(shares) / teachers for t, s in zip(target, shares)]
                assert sum(target) == pytest.approx(1)
                logits = [9.0 * float(rows[i] @ columns[j]) for j in range(5)]
                log_sum = math.log(sum(map(math.exp, logits)))
                total += sum(p * (log_sum - x) for p, x in zip(target, logits)) / 10
    assert value(batch) == pytest.approx(total, abs=1e-9)


def test_synthetic_captions_that_are_the_real_ones_double_the_loss():
    batch = batch_of()
    batch.views["syn"] = batch.main
    for teacher in batch.teachers.values():
        teacher.texts["syn"] = (teacher.text, teacher.text_all)
    for part in ("clip", "distill"):
        assert value(batch, part) == pytest.approx(2 * value(batch, part, captions="real"), abs=1e-12)


def test_mixed_captions_are_one_loss_on_their_own_view():
    batch = batch_of()
    batch.views["mix"] = batch.views["syn"]
    for teacher in batch.teachers.values():
        teacher.texts["mix"] = teacher.texts["syn"]
    for part in ("clip", "distill"):
        assert value(batch, part, captions="mix") == pytest.approx(value(batch, part) - value(batch, part, captions="real"), abs=1e-12)
    assert Reinforced("mix").needs == {"student.image", "student.text:mix", "teacher.image", "teacher.text:mix"}


def test_a_certain_teacher_makes_distillation_clip():
    batch = batch_of(teachers=1)
    (teacher,) = batch.teachers.values()
    teacher.text = teacher.text_all = teacher.image
    teacher.texts["syn"] = (teacher.image, teacher.image)
    assert value(batch, scales=1e6) == pytest.approx(value(batch, "clip"), abs=1e-9)


def test_the_divergence_has_the_same_gradient_and_is_not_negative():
    batch = batch_of()
    batch.main.image.requires_grad_()
    entropy, divergence = (Reinforced(kl=kl, parts=("distill",))(batch)["distill"] for kl in (False, True))
    assert 0 <= divergence.item() < entropy.item()
    one, other = (torch.autograd.grad(loss, batch.main.image)[0] for loss in (entropy, divergence))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_the_divergence_of_a_student_that_is_the_teacher_is_none_on_either_side():
    batch = batch_of(teachers=1)
    (teacher,) = batch.teachers.values()
    batch = taught_by(teacher.image, teacher.text, teacher.scale, teacher)
    assert value(batch, captions="real") > 0.1
    assert value(batch, captions="real", kl=True) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("same", ["ignore", "positive"])
def test_pairs_that_are_not_negatives_are_what_they_are_for_clip(same):
    cells = torch.zeros(6, 6, dtype=torch.bool)
    cells[1, 2] = cells[2, 1] = cells[4, 0] = cells[0, 4] = True
    batch = batch_of(same=cells)
    assert value(batch, "clip", captions="real", same=same) == pytest.approx(Clip(same=same)(batch)["clip"].item(), abs=1e-12)
    assert value(batch, "clip", same="ignore") != pytest.approx(value(batch, "clip", same="positive"), abs=1e-3)


def test_pairs_that_are_not_negatives_count_for_clip_alone():
    same = torch.zeros(6, 6, dtype=torch.bool)
    same[1, 2] = same[2, 1] = True
    plain, masked = batch_of(), batch_of(same=same)
    assert value(masked) == value(plain)
    assert value(masked, "clip") < value(plain, "clip")


def test_parts_of_the_batch_average_to_the_whole():
    batch = batch_of()
    for part in ("clip", "distill"):
        parts = []
        for at in (0, 2, 4):
            local = slice(at, at + 2)
            piece = part_of(batch, local)
            for name, teacher in piece.teachers.items():
                rows = batch.teachers[name].texts["syn"][1]
                teacher.texts["syn"] = (rows[local], rows)
            parts.append(value(piece, part))
        assert sum(parts) / 3 == pytest.approx(value(batch, part), abs=1e-12)
        assert max(parts) - min(parts) > 1e-3


def test_no_gradient_reaches_a_teacher():
    batch = batch_of(teachers=1)
    (teacher,) = batch.teachers.values()
    teacher.image.requires_grad_()
    batch.main.image.requires_grad_()
    Reinforced()(batch)["distill"].backward()
    assert teacher.image.grad is None
    assert batch.main.image.grad is not None


@pytest.mark.parametrize("name", ["both", "mixed"])
def test_the_checker_knows_synthetic_captions(name):
    findings = check_term(f"{__file__}:{name}", processes=name == "both")
    assert all(finding.ok for finding in findings), findings


def test_mistakes_are_named():
    with pytest.raises(UserError, match="'both', 'mix', 'real'"):
        Reinforced("all")
    with pytest.raises(UserError, match="positive number"):
        Reinforced(scales=[70.0, 0.0])
    for scales in (True, float("inf"), [70.0, float("nan")]):
        with pytest.raises(UserError, match="positive number"):
            Reinforced(scales=scales)
    with pytest.raises(UserError, match="2 numbers for the teacher one"):
        Reinforced(scales=[70.0, 60.0]).setup({"student": 4, "teacher.one": 4})
    with pytest.raises(UserError, match="1 number for the 2 teachers one, two"):
        Reinforced(scales=[70.0]).setup({"student": 4, "teacher.one": 4, "teacher.two": 4})
    with pytest.raises(UserError, match="there is none"):
        Reinforced().setup({"student": 4})
    Reinforced(parts=("clip",)).setup({"student": 4})  # which asks no teacher
