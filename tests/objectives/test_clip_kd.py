"""CLIP-KD's terms: golden numbers of core.md, loops, autograd, and what has to hold whatever the features."""

from __future__ import annotations

import dataclasses
import io
import math

import pytest
import torch
import torch.nn.functional as F

from clipling.errors import UserError
from clipling.objectives.check import check_term
from clipling.objectives.clip_kd import AFD, CRD, FD, GD, ICL, MFD
from clipling.objectives.contrastive import Clip
from clipling.objectives.gradient_distillation import contrastive_gradients
from clipling.objectives.term import Batch, TeacherView, View
from tests.objectives import golden
from tests.objectives.golden import taught_by, unit

SAME_SIZE, OTHER_SIZE = {"student": 8, "teacher.t0": 8}, {"student": 8, "teacher.t0": 5}
C = math.log(1 / 0.07)
TERMS = {
    "fd": FD,
    "mfd": MFD,
    "mfd-reference": lambda: MFD(mode="reference"),
    "gd": GD,
    "gd-reference": lambda: GD(mode="reference"),
    "crd": CRD,
    "icl": ICL,
    "icl-reference": lambda: ICL(mode="reference"),
    "afd": AFD,
    "afd-reference": lambda: AFD(mode="reference"),
}


def made(term, dims=SAME_SIZE):
    """The term in float64, its own scale exactly where it starts."""
    torch.manual_seed(0)
    term.setup(dims)
    term.double()
    if hasattr(term, "scale"):
        with torch.no_grad():
            term.scale.value.fill_(C)
    return term


def value(term, batch) -> torch.Tensor:
    (found,) = term(batch).values()
    return found


def golden_batch() -> Batch:
    batch = taught_by(golden.image(), golden.text(), 20.0, golden.teacher())
    batch.views["masked"] = batch.main
    return batch


def random_batch(rows: int = 6, size: int = 5, same=None) -> Batch:
    taught = (unit(rows, size, 3), unit(rows, size, 4))
    image, text = unit(rows, 8, 1).requires_grad_(), unit(rows, 8, 2).requires_grad_()
    batch = taught_by(image, text, 6.0, TeacherView(9.0, *taught, *taught), same=same)
    masked = unit(rows, 8, 5).requires_grad_()
    batch.views["masked"] = View(masked, text, masked, text)
    return batch


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fd", 0.5462859366084557),
        ("mfd", 0.5462859366084557),
        ("mfd-reference", 0.5462859366084557),
        ("gd", 112.20087854614087),
        ("gd-reference", 9.229255408914664e-05),
        ("crd", 5.073259714666075),
        ("icl", 3.1379263816785334),
        ("icl-reference", 1.3826952443217733),
    ],
)
def test_golden_numbers(name, expected):
    term = made(TERMS[name]())
    assert list(term(golden_batch())) == [name.partition("-")[0]]
    assert value(term, golden_batch()).item() == pytest.approx(expected, rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("mode", ["paper", "reference"])
def test_afd_equals_loops(mode):
    batch, term = random_batch(), made(AFD(mode=mode), OTHER_SIZE)
    (taught,) = batch.teachers.values()
    scale = math.exp(C) if mode == "paper" else C

    def fused(side, own, its):
        layer, out = term.fusion[side], []
        for i in range(len(own)):
            row = [*own[i].tolist(), *its[i].tolist()]
            made = [sum(w * x for w, x in zip(weights, row)) + b for weights, b in zip(layer.weight.tolist(), layer.bias.tolist())]
            norm = math.sqrt(sum(x * x for x in made))
            out.append([x / norm for x in made])
        return out

    a, b = fused("image", batch.main.image, taught.image), fused("text", batch.main.text, taught.text)
    total = 0.0
    for rows, columns in ((a, b), (b, a)):
        for i in range(6):
            logits = [scale * sum(x * y for x, y in zip(rows[i], column)) for column in columns]
            total += (math.log(sum(map(math.exp, logits))) - logits[i]) / 12
    assert value(term, batch).item() == pytest.approx(total, abs=1e-9)


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    teacher = golden.teacher()
    image, text = teacher.image.clone().requires_grad_(), teacher.text.clone().requires_grad_()
    batch = taught_by(image, text, 50.0, teacher)
    batch.views["masked"] = batch.main
    for name in ("fd", "mfd", "crd", "gd", "gd-reference"):
        found = value(made(TERMS[name]()), batch)
        assert found.item() == pytest.approx(0, abs=1e-12), name
        assert all(grad.abs().max() < 1e-10 for grad in torch.autograd.grad(found, [image, text])), name
    icl = made(ICL())
    with torch.no_grad():
        icl.scale.value.fill_(math.log(50.0))
    assert value(icl, batch).item() == pytest.approx(Clip()(batch)["clip"].item(), abs=1e-12)


def test_gd_compares_the_gradients_that_autograd_finds():
    """Of both cross-entropies, at the features, for student and teacher; and the value is differentiable once more."""
    batch = random_batch(size=8)
    (taught,) = batch.teachers.values()
    everything = slice(0, 6)

    def by_autograd(image, text, scale):
        leaves = [rows.detach().clone().requires_grad_() for rows in (image, text)]
        target, logits = torch.arange(6), scale * leaves[0] @ leaves[1].T
        both = (F.cross_entropy(logits, target), F.cross_entropy(logits.T, target))
        return [grad for loss in both for grad in torch.autograd.grad(loss, leaves, retain_graph=True)]

    pairs = []
    for image, text, scale in ((batch.main.image, batch.main.text, 6.0), (taught.image, taught.text, 9.0)):
        ours = contrastive_gradients(image, text, torch.tensor(scale, dtype=torch.float64), everything)
        theirs = by_autograd(image, text, scale)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-14)
        pairs.append(theirs)
    expected = sum(F.mse_loss(one, other) for one, other in zip(*pairs))
    assert value(made(GD()), batch).item() == pytest.approx(expected.item(), rel=1e-12)

    def at(image):
        return value(made(GD()), taught_by(image, batch.main.text, 6.0, taught))

    assert torch.autograd.gradcheck(at, (batch.main.image,))


def test_crd_pulls_at_the_logits_by_the_difference_of_the_probabilities():
    """d crd / d logits = (p_s - p_t) / 2N for each direction (core.md 2.5), carried to the image features by hand."""
    batch = random_batch()
    (taught,) = batch.teachers.values()
    image, text = batch.main.image, batch.main.text
    (found,) = torch.autograd.grad(value(made(CRD(), OTHER_SIZE), batch), image)
    own, its = 6.0 * image.detach() @ text.detach().T, 9.0 * taught.image @ taught.text.T
    pull = own.softmax(1) - its.softmax(1) + own.softmax(0) - its.softmax(0)
    torch.testing.assert_close(found, 6.0 / 12 * pull @ text.detach(), rtol=0, atol=1e-12)


def test_fd_is_two_less_cosine_over_size():
    batch, term = random_batch(), made(FD(), OTHER_SIZE)
    (taught,) = batch.teachers.values()
    total = 0.0
    for side in ("image", "text"):
        lifted = F.normalize(F.linear(getattr(batch.main, side), term.heads[side].weight, term.heads[side].bias), dim=1)
        total += (2 * (1 - (lifted * getattr(taught, side)).sum(dim=1)) / 5).mean().item()
    assert value(term, batch).item() == pytest.approx(total, abs=1e-12)


def test_mfd_looks_at_the_masked_pictures_and_the_reference_does_not():
    batch = random_batch()
    fd, paper, reference = (value(made(TERMS[name](), OTHER_SIZE), batch) for name in ("fd", "mfd", "mfd-reference"))
    assert torch.equal(fd, reference)
    assert not torch.equal(fd, paper)
    batch.views["main"], batch.views["masked"] = batch.views["masked"], batch.views["main"]
    assert torch.equal(fd, value(made(MFD(), OTHER_SIZE), batch))


@pytest.mark.parametrize("kind", [FD, MFD])
def test_bare_photos_are_enough(kind):
    view = "" if kind is FD else ":masked"
    term = made(kind(sides=["image"]), OTHER_SIZE)
    assert term.needs == {f"student.image{view}", "teacher.image"}
    assert made(kind(), OTHER_SIZE).needs == {f"student.image{view}", "student.text", "teacher.image", "teacher.text"}
    assert MFD(mode="reference").needs == FD().needs
    assert set(term.heads) == {"image"}
    batch = random_batch()
    for view in batch.views.values():
        view.text = view.text_all = None
    batch.teachers["t0"].text = batch.teachers["t0"].text_all = None
    found = value(term, batch)
    lifted = term.lifted("image", batch.views["main" if kind is FD else "masked"].image)
    assert found.item() == pytest.approx((lifted - batch.teachers["t0"].image).square().mean().item(), abs=1e-14)
    assert value(made(kind(sides=["image"])), golden_batch()) < value(made(kind()), golden_batch())


@pytest.mark.parametrize("name", TERMS)
def test_heads_are_there_where_sizes_differ(name):
    same, other = (list(dict(made(TERMS[name](), dims).named_parameters())) for dims in (SAME_SIZE, OTHER_SIZE))
    scale = ["scale.value"] if name.startswith(("icl", "afd")) else []
    kind = {"crd": "", "afd": "fusion"}.get(name.partition("-")[0], "heads")
    heads = [f"{kind}.{side}.{what}" for side in ("image", "text") for what in ("weight", "bias")] if kind else []
    assert sorted(other) == sorted(scale + heads)
    assert sorted(same) == sorted(scale + (heads if kind == "fusion" else []))


@pytest.mark.parametrize("name", TERMS)
def test_gradients_reach_all_that_learns_and_no_teacher(name):
    batch, term = random_batch(), made(TERMS[name](), OTHER_SIZE)
    (taught,) = batch.teachers.values()
    its = [taught.image.requires_grad_(), taught.text.requires_grad_()]
    value(term, batch).backward()
    picture = batch.views["masked" if name == "mfd" else "main"].image
    assert all(p.grad is not None and p.grad.any() for p in [picture, batch.main.text, *term.parameters()])
    assert all(rows.grad is None for rows in its)


@pytest.mark.parametrize("name", TERMS)
def test_parts_of_the_batch_average_to_the_whole(name):
    batch, term = random_batch(), made(TERMS[name](), OTHER_SIZE)
    wanted = [batch.main.text, *term.parameters()]
    whole = value(term, batch)
    parts = [value(term, golden.part_of(batch, slice(at, at + 2))) for at in (0, 2, 4)]
    assert max(parts) - min(parts) > 1e-7
    mean = sum(parts) / 3
    assert mean.item() == pytest.approx(whole.item(), rel=1e-12)
    for one, other in zip(torch.autograd.grad(whole, wanted), torch.autograd.grad(mean, wanted)):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kind", [ICL, AFD])
def test_scales_and_what_the_modes_make_of_them(kind):
    paper, reference = made(kind(mode="paper")), made(kind(mode="reference"))
    assert paper.report()["scale"] == pytest.approx(1 / 0.07)
    assert reference.report()["scale"] == pytest.approx(2.659260036932778)
    (group,) = paper.parameter_groups()
    assert group["weight_decay"] == 0
    assert group["params"] == [paper.scale.value]
    assert next(iter(reference.parameter_groups()))["weight_decay"] == 0.01
    for start, bounded in ((9.0, math.log(100)), (-1.0, 0.0)):
        for term, after in ((paper, bounded), (reference, start)):
            with torch.no_grad():
                term.scale.value.fill_(start)
            term.after_step(0)
            assert term.scale.value.item() == pytest.approx(after)


@pytest.mark.parametrize("kind", [ICL, AFD])
def test_hard_labels_know_what_is_not_a_negative(kind):
    same = torch.zeros(6, 6, dtype=torch.bool)
    same[1, 2] = same[2, 1] = True
    plain, ignored = (value(made(kind(), OTHER_SIZE), random_batch(same=mask)).item() for mask in (None, same))
    positive = value(made(kind(same="positive"), OTHER_SIZE), random_batch(same=same)).item()
    assert ignored < plain
    assert positive not in (plain, ignored)
    assert value(made(kind(same="positive"), OTHER_SIZE), random_batch()).item() == plain


def test_which_teacher():
    dims = SAME_SIZE | {"teacher.t1": 5}
    with pytest.raises(UserError, match=r"FD learns from one teacher, but there are 2: set its `teacher` to one of t0, t1"):
        FD().setup(dims)
    with pytest.raises(UserError, match="Did you mean 't1' or 't0'"):
        CRD(teacher="t2").setup(dims)
    with pytest.raises(UserError, match="--teacher MODEL"):
        ICL().setup({"student": 8})
    second = golden.second_teacher(60.0)
    for kind in (FD, GD, CRD, ICL, AFD):
        alone, chosen = made(kind()), made(kind(teacher="t1"), SAME_SIZE | {"teacher.t1": 8})
        batch = taught_by(golden.image(), golden.text(), 20.0, golden.teacher(), second)
        only = taught_by(golden.image(), golden.text(), 20.0, second)
        assert torch.equal(value(alone, only), value(chosen, batch)), kind


@pytest.mark.parametrize("name", TERMS)
def test_heads_are_saved_and_restored(name):
    term, fresh = made(TERMS[name](), OTHER_SIZE), TERMS[name]()
    fresh.setup(OTHER_SIZE)
    fresh.double()
    kept = io.BytesIO()
    torch.save(term.state_dict(), kept)
    kept.seek(0)
    fresh.load_state_dict(torch.load(kept, weights_only=True))
    assert torch.equal(value(term, random_batch()), value(fresh, random_batch()))


@pytest.mark.parametrize("name", ["FD", "MFD", "GD", "CRD", "ICL", "AFD"])
def test_the_checker_passes_them(name):
    assert all(finding.ok for finding in check_term(f"clipling.objectives.clip_kd:{name}", processes=False))


def half_precision(teacher: TeacherView) -> TeacherView:
    names = ("image", "text", "image_all", "text_all")
    return dataclasses.replace(teacher, scale=9.0, **{name: getattr(teacher, name).half() for name in names})


def test_half_rows_and_autocast_are_taken_in_fp32():
    for name, make in TERMS.items():
        term, batch = made(make(), OTHER_SIZE).float(), random_batch()
        batch.scale = batch.scale.float()
        batch.views = {key: View(*(rows.detach().float() for rows in vars(view).values())) for key, view in batch.views.items()}
        batch.teachers = {"t0": half_precision(batch.teachers["t0"])}
        plain = value(term, batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(value(term, batch), plain), name
        assert plain.dtype == torch.float32


def test_mistakes_are_named():
    for make in (MFD, GD, ICL, AFD):
        with pytest.raises(UserError, match="mode='papers': expected one of 'paper', 'reference'"):
            make(mode="papers")
    for sides in ("image", [], ["image", "image"], ["sound"]):
        with pytest.raises(UserError, match="expected a list of some of 'image', 'text', each once"):
            FD(sides=sides)
