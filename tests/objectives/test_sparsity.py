"""Learned masks: golden numbers of core.md 1.3, loops, sampling, and the Lagrangian at work."""

from __future__ import annotations

import io
import math

import pytest
import torch

from clipling.errors import UserError
from clipling.models.masked import alive_masks, mask_shapes, tower_shapes
from clipling.objectives.check import check_term
from clipling.objectives.hard_concrete import draw_gates, gates, open_probability, settled_gates
from clipling.objectives.sparsity import Sparsity
from clipling.objectives.term import Batch
from clipling.surgery.prune import prune
from tests.models import making_masks

VIT_B = {"image.layers": 12, "image.width": 768, "image.heads": 12, "image.mlp": 3072}
VIT_B |= {"text.layers": 12, "text.width": 512, "text.heads": 8, "text.mlp": 2048}
SMALL = {"image.layers": 2, "image.width": 12, "image.heads": 3, "image.mlp": 20}
SMALL |= {"text.layers": 3, "text.width": 8, "text.heads": 2, "text.mlp": 16}
LOG_ALPHA = torch.tensor([-10, -math.log(100), -2, -1, 0, 1, 2, math.log(100), 10], dtype=torch.float64)
SCORES = (0.0002245, 0.0471298, 0.4009753, 0.6453352, 0.8318222, 0.9307713, 0.9733667, 0.9979823, 0.9999908)
SETTLED = (6.14e-6, 0.0039653, 0.0831727, 0.2314752, 0.5, 0.7685248, 0.9168273, 0.9960347, 0.9999938)


def made(dims=SMALL, **options) -> Sparsity:
    term = Sparsity(**({"target": 0.5, "warmup": 10} | options))
    term.setup(dims)
    return term.double()


def at(step: int) -> Batch:
    return Batch({}, torch.tensor(1.0), torch.arange(2), torch.arange(2), step=step)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scatter(term: Sparsity, seed: int = 0, spread: float = 2.0) -> Sparsity:
    """Gates all different, some nearly closed."""
    rng = seeded(seed)
    with torch.no_grad():
        for gate in term.log_alpha.values():
            gate.copy_(spread * torch.randn(gate.shape, generator=rng, dtype=gate.dtype))
    return term


# Gates


def test_golden_numbers_of_gates():
    torch.testing.assert_close(open_probability(LOG_ALPHA), torch.tensor(SCORES, dtype=torch.float64), rtol=0, atol=1e-7)
    exact = 1 - torch.sigmoid(2 / 3 * math.log(0.1 / 1.1) - LOG_ALPHA)
    torch.testing.assert_close(open_probability(LOG_ALPHA), exact, rtol=0, atol=1e-12)
    settled = settled_gates(LOG_ALPHA, torch.ones(9, dtype=torch.float64))
    assert settled[:3].tolist() == [0, 0, 0]
    torch.testing.assert_close(settled[3:], torch.tensor(SETTLED[3:], dtype=torch.float64), rtol=0, atol=1e-7)
    torch.testing.assert_close(torch.sigmoid(1.2 * LOG_ALPHA), torch.tensor(SETTLED, dtype=torch.float64), rtol=0, atol=1e-7)
    uniform = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    drawn = [gates(torch.tensor(a, dtype=torch.float64), uniform).tolist() for a in (-2.0, 0.0, 2.0)]
    for found, expected in zip(drawn, ((0, 0, 0.5881093), (0, 0.5, 1), (0.4118907, 1, 1))):
        assert found == pytest.approx(expected, abs=1e-7)


def test_gates_are_open_as_often_as_the_probability_says():
    for log_alpha in (-2.0, -0.5, 1.0):
        drawn = draw_gates(torch.full((100_000,), log_alpha), seeded(1))
        share = (drawn > 0).double().mean().item()
        assert share == pytest.approx(open_probability(torch.tensor(log_alpha)).item(), abs=3e-3)
        assert 0 <= drawn.min() < drawn.max() <= 1


def test_every_row_closes_its_own_smallest():
    rng = seeded(0)
    log_alpha = 3 * torch.randn(5, 9, generator=rng, dtype=torch.float64)
    alive = torch.ones(5, 9, dtype=torch.float64)
    alive[2, :4] = 0
    found = settled_gates(log_alpha, alive)
    for row, gate, living in zip(found.tolist(), log_alpha.tolist(), alive.tolist()):
        soft = [(1 / (1 + math.exp(-1.2 * a)) if on else 0.0) for a, on in zip(gate, living)]
        kept = sum(1 - 1 / (1 + math.exp(1.598597 + a)) for a, on in zip(gate, living) if on)
        closed = sorted(range(9), key=lambda i: soft[i])[: round(9 - kept)]
        assert row == pytest.approx([0 if i in closed else x for i, x in enumerate(soft)], abs=1e-9)


# Counting


def test_golden_numbers_of_vit_b():
    term = made(VIT_B)
    assert term.prunable() == {"image": 85_017_600, "text": 37_804_032, "all": 85_017_600 + 37_804_032}
    before = term.expected_sparsity()
    assert before["image"].item() == pytest.approx(0.00056, abs=5e-6)
    assert before["text"].item() == pytest.approx(0.00083, abs=5e-6)
    term.after_step(0)
    after = term.expected_sparsity()
    assert after["image"].item() == pytest.approx(0.00457, abs=5e-6)
    assert after["text"].item() == pytest.approx(0.00484, abs=5e-6)
    assert sum(gate.numel() for name, gate in term.log_alpha.items() if name.startswith("image")) == 768 + 144 + 36_864


@pytest.mark.parametrize(
    ("tower", "expected", "single"),
    [
        ("image", (0, 1.3493190764758227, 3.056641100205665), (0, 1.349327, 3.056651)),
        ("text", (0, 1.3459755004879144, 3.0526237357181234), (0, 1.345972, 3.052620)),
    ],
)
def test_golden_numbers_of_the_lagrangian(tower, expected, single):
    """`single` is core.md's, of TinyCLIP's l0module.py in fp32; `expected` is the same module run in fp64."""
    term = made(VIT_B, target=0.25, warmup=1000, towers=[tower])
    term.after_step(0)
    values = [term(at(step))["sparsity"].item() for step in (0, 500, 1000)]
    assert values == pytest.approx(expected, abs=1e-9)
    assert values == pytest.approx(single, abs=1e-5)
    assert term(at(5000))["sparsity"].item() == values[2]


def by_loops(term: Sparsity, kept) -> dict[str, float]:
    """Every weight of attention and MLP maps counted one by one as the product of what its ends keep."""
    left, whole = {}, {}
    for tower in term.towers:
        layers, width, heads, mlp = (SMALL[f"{tower}.{key}"] for key in ("layers", "width", "heads", "mlp"))
        hidden = [kept(tower, "hidden")[c].item() for c in range(width)]
        total, per_head = 0.0, width // heads
        for layer in range(layers):
            for c in range(width):
                for h in range(heads):  # four maps, and as many biases, shared over the width
                    total += hidden[c] * kept(tower, "heads")[layer, h].item() * (4 * per_head + 4 * per_head / width)
                for f in range(mlp):
                    total += 2 * hidden[c] * kept(tower, "intermediate")[layer, f].item()
        left[tower] = total
        whole[tower] = layers * (4 * width * width + 4 * width + 2 * width * mlp + width + mlp)
    left["all"], whole["all"] = sum(left.values()), sum(whole.values())
    return {name: 1 - left[name] / whole[name] for name in left}


@pytest.mark.parametrize("dead", [False, True])
def test_expected_and_realised_sparsity_equal_loops(dead):
    term = scatter(made())
    if dead:
        rng = seeded(4)
        shapes = {name.replace("_", "."): gate.shape for name, gate in term.log_alpha.items()}
        term.set_alive({name: (torch.rand(shape, generator=rng) > 0.3).float() for name, shape in shapes.items()})

    def expected(tower, group):
        share = open_probability(term.log_alpha[f"{tower}_{group}"].detach())
        return share * term.get_buffer(f"alive_{tower}_{group}")

    for name, value in term.expected_sparsity().items():
        assert value.item() == pytest.approx(by_loops(term, expected)[name], abs=1e-12)
    masks = term.masks(None)
    realised = by_loops(term, lambda tower, group: (masks[f"{tower}.{group}"] > 0).double())
    assert term.realised_sparsity() == pytest.approx(realised, abs=1e-12)
    assert abs(term.realised_sparsity()["all"] - term.expected_sparsity()["all"].item()) < 0.1


def test_heads_of_another_width_than_the_tower_over_its_heads():
    """A pruned tower: 3 heads of 4 units in a width of 10."""
    dims = {"image.layers": 1, "image.width": 10, "image.heads": 3, "image.head_width": 4, "image.mlp": 7}
    term = made(dims, towers=["image"], target=0.3)
    assert term.prunable()["image"] == (3 * 12 * 10 + 3 * 12) + (12 * 10 + 12) + 2 * 70 + 17


# Masks


def test_masks_are_drawn_alike_from_one_seed_and_carry_gradient():
    term = scatter(made())
    one, two, other = (term.masks(seeded(seed)) for seed in (1, 1, 2))
    shapes = {name: tuple(mask.shape) for name, mask in one.items()}
    assert shapes == {
        "image.hidden": (12,), "image.heads": (2, 3), "image.intermediate": (2, 20),
        "text.hidden": (8,), "text.heads": (3, 2), "text.intermediate": (3, 16),
    }  # fmt: skip
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    assert all(mask.min() >= 0 and mask.max() <= 1 for mask in one.values())
    sum(mask.sum() for mask in one.values()).backward()
    assert all(bool(gate.grad.any()) and (gate.grad >= 0).all() for gate in term.log_alpha.values())


def test_masks_of_evaluation_are_fixed_and_leave_everything_on_at_the_start():
    term = Sparsity(0.5, 10)
    term.setup(SMALL)
    masks = term.masks(None)
    assert all(mask.dtype == torch.float32 and not mask.requires_grad for mask in masks.values())
    assert all((mask > 0.9999).all() for mask in masks.values())
    torch.manual_seed(1)
    assert all(torch.equal(mask, term.masks(None)[name]) for name, mask in masks.items())
    drawn = term.masks(seeded(0))
    assert all((mask == 1).all() for mask in drawn.values())


def test_the_dead_stay_dead():
    """Also after their gates were opened wide, and in drawn masks, where the reference draws them open now and then."""
    term = scatter(made())
    before = term.expected_sparsity()["image"].item()
    alive = torch.ones(2, 20)
    alive[0, 3:] = 0
    term.set_alive({"image.intermediate": alive})
    with torch.no_grad():
        term.log_alpha["image_intermediate"].fill_(10.0)
    for masks in (term.masks(None), *(term.masks(seeded(seed)) for seed in range(5))):
        assert not masks["image.intermediate"][0, 3:].any()
        assert masks["image.intermediate"][0, :3].all()
    assert term.expected_sparsity()["image"].item() != before
    (grad,) = torch.autograd.grad(term.expected_sparsity()["all"], term.log_alpha["image_intermediate"])
    assert not grad[0, 3:].any()
    assert grad[0, :3].all()


def test_the_dead_of_groups_that_are_not_learned_stay_dead_too():
    term = made(groups=["intermediate"], target=0.2)
    assert set(term.masks(None)) == {"image.intermediate", "text.intermediate"}
    full = term.expected_sparsity()["image"].item()
    heads = torch.tensor([[1.0, 0, 1], [1, 1, 1]])
    term.set_alive({"image.heads": heads})
    for masks in (term.masks(None), term.masks(seeded(0))):
        assert set(masks) == {"image.intermediate", "image.heads", "text.intermediate"}
        assert torch.equal(masks["image.heads"].float(), heads)
    share = 4 * 4 * 13 / (2 * (4 * 12 * 13 + 2 * 12 * 20 + 32))  # one head of the tower's parameters
    assert term.expected_sparsity()["image"].item() == pytest.approx(full + share, abs=1e-12)


# The Lagrangian


@pytest.mark.parametrize("shared", [True, False])
def test_it_is_zero_once_the_target_is_met_and_grows_with_what_is_missing(shared):
    term = scatter(made(shared=shared), spread=0.5)
    found = {name: value.item() for name, value in term.expected_sparsity().items()}
    names = ["all"] if shared else ["image", "text"]
    for target in (0.1, 0.4, 0.9):
        term.target = target
        missing = [max(0.0, target - found[name]) for name in names]
        assert term(at(10))["sparsity"].item() == pytest.approx(sum(10 * m + 10 * m * m for m in missing), abs=1e-12)
        assert term(at(5))["sparsity"].item() <= term(at(10))["sparsity"].item()
    assert term(at(0))["sparsity"].item() == 0


def test_start_is_where_the_target_begins():
    term = made(start=0.25, target=0.5, warmup=4)
    assert [term.target_at(step) for step in (0, 1, 2, 4, 9)] == [0.25, 0.3125, 0.375, 0.5, 0.5]
    assert made(start=0.25, target=0.5, warmup=0).target_at(0) == 0.5


@pytest.mark.parametrize("shared", [True, False])
def test_multipliers_grow_while_the_target_is_missed_until_it_is_met(shared):
    """Gates pulled open, as a loss that wants the units would: it takes growing multipliers to close them."""
    term = scatter(made(shared=shared, target=0.4, warmup=50))
    with torch.no_grad():
        for gate in term.log_alpha.values():
            gate.add_(2.0)
    groups = [{**group, "lr": group["fixed_lr"]} for group in term.parameter_groups()]
    assert [(group["lr"], group["weight_decay"], group.get("maximize", False)) for group in groups] == [(0.02, 0, False), (0.02, 0, True)]
    assert sum(len(group["params"]) for group in groups) == len(list(term.parameters()))
    optimiser, missed = torch.optim.AdamW(groups), 0
    for step in range(250):
        before = {name: (of.first.item(), of.second.item()) for name, of in term.multipliers.items()}
        missing = {name: term.target_at(step) - value.item() for name, value in term.expected_sparsity().items()}
        wanted = sum(gate.sigmoid().sum() for gate in term.log_alpha.values())
        optimiser.zero_grad()
        (term(at(step))["sparsity"] - 1e-4 * wanted).backward()
        optimiser.step()
        term.after_step(step)
        for name, of in term.multipliers.items():
            more = (of.first.item() - before[name][0], of.second.item() - before[name][1])
            assert min(more) > 0 if missing[name] > 0 else min(more) >= 0
            missed += missing[name] > 0
        assert all(gate.abs().max() <= math.log(100) + 1e-12 for gate in term.log_alpha.values())
    assert missed > 50
    for name in term.multipliers:
        assert 0.38 < term.expected_sparsity()[name].item() < 0.5  # Adam's momentum carries the gates a little too far
        assert 0.35 < term.realised_sparsity()[name] < 0.53


def test_the_report():
    term = scatter(made())
    term(at(5))
    report = term.report()
    assert report["target"] == 0.25
    assert report["expected"] == pytest.approx(term.expected_sparsity()["all"].item())
    assert report["realised.text"] == pytest.approx(term.realised_sparsity()["text"])
    assert report["lambda1"] == report["lambda2"] == 10
    assert {"expected.image", "expected.text", "realised", "realised.image"} < set(report)
    assert all(type(value) is float for value in report.values())
    assert {"lambda1.image", "lambda2.text"} < set(made(shared=False).report())


def test_it_is_saved_and_restored_dead_units_and_all():
    term, fresh = scatter(made()), made()
    term.set_alive({"image.heads": torch.tensor([[1.0, 0, 1], [1, 1, 0]])})
    kept = io.BytesIO()
    torch.save(term.state_dict(), kept)
    kept.seek(0)
    fresh.load_state_dict(torch.load(kept, weights_only=True))
    assert torch.equal(term(at(10))["sparsity"], fresh(at(10))["sparsity"])
    for draw in (None, 3):
        one, other = (t.masks(draw and seeded(draw)) for t in (term, fresh))
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_real_student_is_masked_pruned_and_masked_again():
    """Names, shapes and counts are those of models/masked.py and surgery/prune.py; a second stage starts from the first's result."""
    student = making_masks.vit()
    term = Sparsity(0.5, 10)
    term.setup(mask_shapes(student))
    scatter(term)
    images, tokens = making_masks.inputs(student, rows=4)
    with student.masked(term.masks(seeded(1))):
        loss = student.encode_image(images)[:, 0].sum() + student.encode_text(tokens)[:, 0].sum()
    loss.backward()
    assert all(gate.grad is not None and gate.grad.any() for gate in term.log_alpha.values())

    pruned = prune(student, term.masks(None))
    left = {}
    for tower, shape in tower_shapes(pruned).items():
        head = term.shapes[tower].head / term.shapes[tower].width
        left[tower] = shape.width * (sum(shape.heads) * head + 2 * sum(shape.mlp))
        assert 1 - left[tower] / term.prunable()[tower] == pytest.approx(term.realised_sparsity()[tower], abs=1e-6)
    assert 0.2 < term.realised_sparsity()["all"] < 0.8

    again = Sparsity(0.5, 10)
    again.setup(mask_shapes(pruned))
    again.set_alive(alive_masks(pruned))
    for name, mask in again.masks(seeded(1)).items():
        assert torch.equal(mask, alive_masks(pruned)[name])
    with pruned.masked(again.masks(None)), torch.no_grad():
        masked = pruned.encode_image(images)
    torch.testing.assert_close(masked, pruned.encode_image(images), rtol=0, atol=1e-3)  # masks of 0.99999
    for tower, shape in tower_shapes(pruned).items():
        kept = shape.width * (sum(shape.heads) * again.shapes[tower].head / shape.width + 2 * sum(shape.mlp))
        assert again.expected_sparsity()[tower].item() == pytest.approx(1 - kept / again.prunable()[tower], abs=1e-4)


def halves() -> Sparsity:
    return Sparsity(target=0.5, warmup=100)


def test_the_checker_passes_it():
    findings = check_term(halves, processes=False)
    assert all(finding.ok for finding in findings), findings


def test_mistakes_are_named():
    for options in ({"target": 1.0}, {"target": 0.5, "start": 0.6}, {"target": 0.5, "start": -0.1}):
        with pytest.raises(UserError, match="0 <= start <= target < 1"):
            Sparsity(warmup=10, **options)
    with pytest.raises(UserError, match="warmup=-1"):
        Sparsity(0.5, -1)
    with pytest.raises(UserError, match="lr=0"):
        Sparsity(0.5, 10, lr=0)
    with pytest.raises(UserError, match="expected a list of some of 'hidden', 'heads', 'intermediate'"):
        Sparsity(0.5, 10, groups=["layers"])
    with pytest.raises(UserError, match=r"masks need a ViT image tower and a transformer text tower; of this student image\.layers"):
        Sparsity(0.5, 10).setup({"student": 16})
    with pytest.raises(UserError, match=r"target=0\.9 is out of reach with groups=\['heads'\]: at most 0\.3"):
        Sparsity(0.9, 10, groups=["heads"]).setup(VIT_B)
    term = made()
    with pytest.raises(UserError, match=r"there is no mask 'image.head'\. Did you mean 'image.heads'"):
        term.set_alive({"image.head": torch.ones(2, 3)})
    with pytest.raises(UserError, match=r"'image.heads' is \[3, 2\], but this student needs \[2, 3\]"):
        term.set_alive({"image.heads": torch.ones(3, 2)})


@pytest.mark.parametrize("target", [0.1, 0.5, 0.85])
@pytest.mark.parametrize("start", [10.0, 0.0, -3.0])
def test_settling_meets_the_target_and_keeps_the_order(target, start):
    torch.manual_seed(0)
    term = Sparsity(target, 10)
    dims = {"layers": 3, "width": 64, "heads": 4, "mlp": 256, "head_width": 16}
    term.setup({f"{tower}.{name}": value for tower in ("image", "text") for name, value in dims.items()})
    with torch.no_grad():
        for gate in term.log_alpha.values():
            gate.copy_(start + torch.randn(gate.shape))
    before = {name: gate.detach().clone() for name, gate in term.log_alpha.items()}
    shift = term.settle()
    assert term.realised_sparsity()["all"] == pytest.approx(target, abs=0.02)
    for name, gate in term.log_alpha.items():
        torch.testing.assert_close(gate.detach(), before[name] + shift)
    assert term.settle() == pytest.approx(0.0, abs=0.2)
