"""The compute settings: the same loss, gradients and statistics, less memory where that is promised, and none ignored silently."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from clipling.engine import compute
from clipling.engine.compute import bf16_is_native, prepare
from clipling.engine.runtime import Runtime
from clipling.engine.step import Stepper
from clipling.engine.trainer import Trainer
from clipling.errors import UserError
from clipling.models.dual import Student
from clipling.objectives.contrastive import Clip
from clipling.objectives.term import Objective, Term
from clipling.recipe import with_settings
from clipling.run import make_job, train
from clipling.settings import Compute
from tests.models.making import CAPTIONS, pictures, small_conv, tiny

CLIP = Objective({"clip": Clip()}, {"clip": 1.0})


def made(config) -> Student:
    torch.manual_seed(0)
    student = Student(config())
    student.train()
    return student


def loss_of(student: Student) -> torch.Tensor:
    images, ids = pictures(6, student.image_size, seed=1), student.tokenise(CAPTIONS)
    with student.masked({}):
        logits = 20 * student.encode_image(student.normalise(images)) @ student.encode_text(ids).T
    return nn.functional.cross_entropy(logits, torch.arange(6))


def kept_bytes(student: Student) -> tuple[int, torch.Tensor]:
    """Bytes of what the forward pass keeps for the backward pass (weights not counted), and the loss."""
    weights = {p.untyped_storage().data_ptr() for p in student.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage()
        if place.data_ptr() not in weights:
            kept[place.data_ptr()] = place.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = loss_of(student)
    return sum(kept.values()), loss


@pytest.mark.parametrize("config", [tiny, small_conv], ids=["vit", "mobilenet"])
def test_activation_checkpointing_gives_the_same_with_less_memory(config):
    plain, again = made(config), made(config)
    prepare(again, CLIP, Compute(activation_checkpointing=True))
    assert plain.state_dict().keys() == again.state_dict().keys()
    (whole, loss), (less, again_loss) = kept_bytes(plain), kept_bytes(again)
    assert less < 0.6 * whole
    assert torch.equal(loss, again_loss)
    loss.backward()
    again_loss.backward()
    for (name, one), other in zip(plain.named_parameters(), again.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-5, atol=1e-7, msg=name)
    statistics = [name for name in plain.state_dict() if name.endswith(("running_mean", "running_var"))]
    assert bool(statistics) == (config is small_conv)
    for name in statistics:
        assert torch.equal(plain.state_dict()[name], again.state_dict()[name]), name


def test_a_copy_of_a_student_that_makes_activations_again_is_a_student_of_its_own():
    student = made(small_conv)
    prepare(student, CLIP, Compute(activation_checkpointing=True))
    twin = copy.deepcopy(student)
    loss_of(twin).backward()
    assert all(p.grad is None for p in student.parameters())
    assert any(p.grad is not None for p in twin.parameters())


def test_gradient_caching_equals_the_large_batch_to_1e_5(tiny_recipe, tmp_path):
    """Loss and gradient, with the plain recipe and activation checkpointing beside it; a student without batch statistics."""
    found = []
    for micro, again in ((None, False), (8, False), (8, True)):
        recipe = with_settings(tiny_recipe, {"compute.activation_checkpointing": again})
        job = make_job(recipe, tmp_path / "run", Runtime(), quiet=True)
        prepare(job.student, job.objective, recipe.compute)
        job.student.train()
        loss = Stepper(job.student, job.objective, job.make_batch, Runtime(), 0, micro)(job.batches[1], measure=False).loss
        found.append((loss, torch.cat([p.grad.flatten() for p in job.student.parameters() if p.grad is not None])))
    (loss, gradient), *others = found
    for other_loss, other in others:
        assert abs(float(other_loss - loss)) < 1e-5
        assert float((other - gradient).norm() / gradient.norm()) < 1e-5


@pytest.mark.slow
def test_compiled_towers_give_the_same_loss_and_gradients_for_all_lengths_of_text():
    plain, quick = made(tiny), made(tiny)
    prepare(quick, CLIP, Compute(compile=True))
    counted = torch._dynamo.utils.counters
    counted.clear()
    for texts in (CAPTIONS, CAPTIONS[:4], [c[:9] for c in CAPTIONS]):
        results = []
        for student in (plain, quick):
            student.zero_grad()
            logits = student.encode_image(student.normalise(pictures(len(texts), 32))) @ student.encode_text(student.tokenise(texts)).T
            loss = nn.functional.cross_entropy(20 * logits, torch.arange(len(texts)))
            loss.backward()
            results.append((loss, torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])))
        (loss, gradient), (quick_loss, quick_gradient) = results
        assert quick_loss.item() == pytest.approx(loss.item(), abs=1e-5)
        assert float((quick_gradient - gradient).norm() / gradient.norm()) < 1e-4
    assert counted["stats"]["unique_graphs"] >= 2, "nothing was compiled"
    assert not counted["graph_break"]
    assert plain.state_dict().keys() == quick.state_dict().keys()


def test_compiling_without_a_compiler_is_said_at_once(monkeypatch):
    monkeypatch.setattr(compute.shutil, "which", lambda program: None)
    with pytest.raises(UserError, match="C\\+\\+ compiler"):
        prepare(made(tiny), CLIP, Compute(compile=True))


class Masks(Term):
    needs = frozenset({"student.image", "student.text", "student.masks"})


class MaskedPictures(Term):
    needs = frozenset({"student.image:masked"})


@pytest.mark.parametrize(
    ("term", "settings", "message"),
    [
        (Masks, Compute(compile=True), "compute.compile: not for towers with learned masks"),
        (Masks, Compute(activation_checkpointing=True), "compute.activation_checkpointing: not for towers"),
        (MaskedPictures, Compute(compile=True), "masked pictures"),
        (Clip, Compute(compile=True, activation_checkpointing=True), "choose one"),
    ],
)
def test_a_setting_that_would_be_ignored_is_refused(term, settings, message):
    with pytest.raises(UserError, match=message):
        prepare(made(tiny), Objective({"t": term()}, {"t": 1.0}), settings)


def test_a_tower_without_known_blocks_is_refused():
    student = made(small_conv)
    student.model.visual.trunk.blocks = nn.Identity()
    with pytest.raises(UserError, match="has no blocks"):
        prepare(student, CLIP, Compute(activation_checkpointing=True))


def test_bf16_is_near_fp32_and_a_note_says_where_it_is_emulated(tiny_recipe, tmp_path, monkeypatch, capsys):
    losses = []
    for kind in ("none", "bf16"):
        job = make_job(tiny_recipe, tmp_path / "run", Runtime(), quiet=True)
        losses.append(float(Stepper(job.student, job.objective, job.make_batch, Runtime(), 0, None, kind)(job.batches[0], False).loss))
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    recipe = with_settings(tiny_recipe, {"optimiser.autocast": "bf16", "max_steps": 1})
    for native in (True, False):
        monkeypatch.setattr("clipling.engine.trainer.bf16_is_native", lambda device, native=native: native)
        train(recipe, tmp_path / f"native-{native}")
        assert ("no bf16 instructions" in capsys.readouterr().err) is not native


def test_native_bf16_is_read_from_the_processor(monkeypatch):
    for capable, expected in (({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx2": True}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda capable=capable: capable, raising=False)
        assert bf16_is_native(torch.device("cpu")) is expected


def test_the_trainer_puts_the_settings_into_effect(tiny_recipe, tmp_path):
    recipe = with_settings(tiny_recipe, {"compute.activation_checkpointing": True})
    job = make_job(recipe, tmp_path / "run", Runtime(), quiet=True)
    Trainer(job)
    assert job.student.model.visual.transformer.grad_checkpointing
    assert job.student.model.text.transformer.grad_checkpointing


def test_convolutions_run_in_channels_last_and_give_the_same():
    student = made(small_conv).eval()
    images = student.normalise(pictures(3, 32))
    assert images.is_contiguous(memory_format=torch.channels_last)
    weights = [p for p in student.model.visual.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert weights
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    with torch.no_grad():
        quick = student.encode_image(images)
        student.model.visual.to(memory_format=torch.contiguous_format)
        torch.testing.assert_close(student.encode_image(images.contiguous()), quick, rtol=0, atol=1e-5)


def test_the_optimiser_is_fused_and_equals_the_plain_one():
    from clipling.engine.optim import build_optimiser, set_rate
    from clipling.recipe import Optimiser

    students = [made(tiny), made(tiny)]
    for student, fused in zip(students, (True, None)):
        optimiser = build_optimiser(student, CLIP, Optimiser())
        assert all(group["fused"] for group in optimiser.param_groups)
        for group in optimiser.param_groups:
            group["fused"] = fused
        set_rate(optimiser, 1e-3)
        draw = torch.Generator().manual_seed(0)
        for _ in range(3):
            for group in optimiser.param_groups:
                for p in group["params"]:
                    p.grad = torch.randn(p.shape, generator=draw)
            optimiser.step()
            optimiser.zero_grad()
    for (name, one), other in zip(students[0].named_parameters(), students[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("side", ["visual", "text"])
def test_one_pruned_tower_is_enough_to_refuse(monkeypatch, side):
    student = made(tiny)
    monkeypatch.setattr(compute, "is_irregular", lambda tower: tower is getattr(student.model, side))
    with pytest.raises(UserError, match="pruned layers"):
        prepare(student, CLIP, Compute(activation_checkpointing=True))


def test_a_compiler_that_the_user_names_counts(monkeypatch):
    monkeypatch.setattr(compute.shutil, "which", lambda program: "found" if program == "my-compiler" else None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match="needs a C\\+\\+ compiler"):
        compute._need_compiler(torch.device("cpu"))
    monkeypatch.setenv("CXX", "my-compiler -O2")
    assert compute._need_compiler(torch.device("cpu")) is None


def test_batch_statistics_count_every_part_of_a_cached_batch_once(tiny_recipe, tmp_path):
    """The first pass, without gradient, leaves them alone: as if the parts had been run one after the other."""
    job = make_job(tiny_recipe, tmp_path / "run", Runtime(), quiet=True)
    student, by_hand = made(small_conv), made(small_conv)
    host = job.batches[1]
    count = len(host.pair)
    texts = student.tokenise([f"{CAPTIONS[i % len(CAPTIONS)]} {i}" for i in range(count)])
    host = dataclasses.replace(host, images=pictures(count, student.image_size, seed=2), tokens=texts)
    Stepper(student, job.objective, job.make_batch, Runtime(), 0, 8)(host, measure=False)
    for start in range(0, count, 8):
        by_hand.encode_image(by_hand.normalise(host.images[start : start + 8]))
    kept = {
        name: value for name, value in student.state_dict().items() if name.endswith(("running_mean", "running_var", "batches_tracked"))
    }
    assert kept
    assert count > 8
    for name, value in kept.items():
        torch.testing.assert_close(value, by_hand.state_dict()[name], rtol=1e-6, atol=1e-7, msg=name)
