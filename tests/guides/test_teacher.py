"""Live teachers: what they see, what is computed once, who passes the gate, and that they never change."""

from __future__ import annotations

from itertools import chain

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image, ImageOps

import clipling.build
from clipling.build import make_teachers
from clipling.data.loader import TrainBatches
from clipling.data.pairs import Pairs
from clipling.data.pixels import Pixels
from clipling.data.views import Augment
from clipling.engine.runtime import Runtime
from clipling.engine.step import Stepper
from clipling.errors import UserError
from clipling.guides import remembered
from clipling.guides.remembered import remember
from clipling.guides.teacher import Teacher, gate, remember_sides
from clipling.models.hub import new_student, open_student
from clipling.recipe import Recipe, TeacherSpec, TermSpec, load_recipe, with_settings
from clipling.run import make_job, train
from tests.faults.killing import kill_until_done, run_in_child
from tests.guides.making import ToyTexts, source
from tests.models.making import tiny
from tests.teaching import batch_norm_config, learned, teacher_config, teacher_folder
from tests.toy import toy_folder

BOTH = frozenset({"image", "text"})
CPU = torch.device("cpu")
TERMS = "clipling.objectives"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Pairs:
    made = source(tmp_path_factory.mktemp("pictures"), 32)
    made.captions[1] = "far more words than a context of twenty-four tokens can hold " * 4
    return made


@pytest.fixture(scope="module")
def model():
    return new_student(teacher_config(), seed=3).eval()


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return toy_folder(tmp_path_factory.mktemp("toy") / "pairs", count=64)


def batches_of(pairs, augment: Augment, rank: int = 0, world: int = 1, more: dict | None = None) -> TrainBatches:
    student = new_student(tiny())
    size = 40 if augment.crops else 32
    tokens = student.tokenise(pairs.captions)
    return TrainBatches(np.arange(len(pairs)), pairs, Pixels.open(pairs, size, "squash"), tokens, augment, 32, 8, rank, world, 0, more)


# What it sees


def test_pictures_are_the_students_crops_at_the_teachers_size(pairs, model):
    held = Pixels.open(pairs, 60, "squash")
    host = batches_of(pairs, Augment(scale=(0.3, 0.8), flip=0.5), more={48: held})[5]
    teacher = Teacher("t", model, pairs, BOTH)
    assert (teacher.sees, host.images.shape[-1], model.embed_dim, teacher.dims) == (48, 32, 48, {"teacher.t": 48})
    assert host.flips.any()
    assert not host.flips.all()
    crops = []
    for pair, (x, y, w, h), flip in zip(host.pair, host.boxes, host.flips):
        box = tuple(int(60 * edge + 0.5) for edge in (x, y, x + w, y + h))
        crop = Image.fromarray(held[np.array([pair])][0]).crop(box).resize((48, 48), Image.Resampling.BICUBIC)
        crops.append(torch.from_numpy(np.array(ImageOps.mirror(crop) if flip else crop)).permute(2, 0, 1))
    with torch.no_grad():
        expected = model.encode_image(model.normalise(torch.stack(crops)))
    found = teacher.image(host, CPU)
    torch.testing.assert_close(found, expected, atol=3e-4, rtol=0)  # Pillow and torch round some pixels otherwise
    mirrored = model.encode_image(model.normalise(torch.stack(crops).flip(-1)))
    assert float((expected - mirrored).abs().amax(1).min()) > 3e-3, "crops that are alike would show nothing"


@pytest.mark.parametrize("rank", [0, 1])
def test_captions_are_cut_by_its_own_tokenizer(pairs, model, rank):
    batches, local = batches_of(pairs, Augment(), rank, world=2), slice(4 * rank, 4 * rank + 4)
    host = next(batch for batch in map(batches.__getitem__, range(100)) if 1 in batch.caption_all[local])
    drawn = [pairs.captions[row] for row in host.caption_all[local]]
    with torch.no_grad():
        expected = model.encode_text(open_clip.SimpleTokenizer(context_length=24)(drawn))
    found = Teacher("t", model, pairs, BOTH).text(host, CPU)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_model_that_is_still_in_training_is_frozen_by_becoming_a_teacher(pairs):
    student = new_student(batch_norm_config())
    before = {name: value.clone() for name, value in student.state_dict().items()}
    teacher = Teacher("t", student, pairs, BOTH)
    host = batches_of(pairs, Augment(scale=(1.0, 1.0)), more={32: Pixels.open(pairs, 32, "squash")})[0]
    assert not teacher.image(host, CPU).requires_grad
    assert not teacher.text(host, CPU).requires_grad
    assert not any(module.training for module in student.modules())
    assert not any(p.requires_grad for p in student.parameters())
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


def test_its_scale_is_its_own_or_a_fixed_one(pairs, model):
    assert Teacher("t", model, pairs, BOTH).scale == pytest.approx(float(model.logit_scale.detach().exp()))
    assert Teacher("t", model, pairs, BOTH, scale=50.0).scale == 50.0


def test_a_side_that_nobody_needs_is_never_computed(pairs, model, monkeypatch):
    def refuse(*_):
        raise AssertionError("computed")

    host = batches_of(pairs, Augment(), more={48: Pixels.open(pairs, 60, "squash")})[0]
    whole = Augment(scale=(1.0, 1.0))
    with monkeypatch.context() as patched:
        patched.setattr(model, "encode_text", refuse)
        patched.setattr(model, "tokenise", refuse)
        teacher = Teacher("t", model, pairs, frozenset({"image"}))
        assert teacher.text(host, CPU) is None
        assert teacher.image(host, CPU).shape == (8, 48)
        assert remember_sides(model, pairs, whole, frozenset({"image"}), 10).keys() == {"images"}
    monkeypatch.setattr(model, "encode_image", refuse)
    teacher = Teacher("t", model, pairs, frozenset({"text"}))
    assert teacher.image(host, CPU) is None
    assert teacher.sees is None
    assert remember_sides(model, pairs, whole, frozenset({"text"}), 10).keys() == {"texts"}


# What is computed once


def test_what_never_varies_is_remembered_and_equals_what_a_step_computes(pairs, model, fresh_cache, monkeypatch):
    whole = Augment(scale=(1.0, 1.0))
    host = batches_of(pairs, whole, more={48: Pixels.open(pairs, 48, "squash")})[2]
    live = Teacher("t", model, pairs, BOTH)
    kept = remember_sides(model, pairs, whole, BOTH, epochs=3)
    cached = Teacher("t", model, pairs, BOTH, **kept)
    assert cached.sees is None, "the loader has nothing to render for it"
    for side in ("image", "text"):
        expected = getattr(live, side)(host, CPU)
        monkeypatch.setattr(model, f"encode_{side}", None)
        torch.testing.assert_close(getattr(cached, side)(host, CPU), expected, atol=1e-5, rtol=0)
        again = remember_sides(model, pairs, whole, BOTH, epochs=3)[f"{side}s"]
        assert np.array_equal(again[np.arange(len(again))], kept[f"{side}s"][np.arange(len(again))])


def test_only_what_never_varies_is_remembered(pairs, model, fresh_cache):
    assert remember_sides(model, pairs, Augment(scale=(0.5, 1.0)), BOTH, epochs=3).keys() == {"texts"}
    assert remember_sides(model, pairs, Augment(scale=(1.0, 1.0), flip=0.5), BOTH, epochs=3).keys() == {"texts"}
    assert len(pairs.captions) > len(pairs)
    assert remember_sides(model, pairs, Augment(), BOTH, epochs=1) == {}, "one epoch asks for fewer captions than there are"


def test_other_weights_or_other_captions_are_other_features(pairs, model, fresh_cache):
    first = remember_sides(model, pairs, Augment(), frozenset({"text"}), epochs=3)["texts"]
    other = remember_sides(new_student(teacher_config(), seed=4).eval(), pairs, Augment(), frozenset({"text"}), epochs=3)["texts"]
    fewer = remember_sides(model, pairs.subset(range(9, 17)), Augment(), frozenset({"text"}), epochs=3)["texts"]
    rows = np.arange(4)
    assert not np.allclose(first[rows], other[rows], atol=1e-3)
    assert not np.allclose(first[rows], fewer[rows], atol=1e-3)


class Counted:
    """Encodes numbers by an encoder whose rows depend on what else is in the batch; may fail at a call."""

    def __init__(self, fail_at: int | None = None, pause: float = 0.0) -> None:
        self.calls: list[list[int]] = []
        self.fail_at, self.encoder = fail_at, ToyTexts(8, pause)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        self.calls.append(rows.tolist())
        return self.encoder.encode([f"word {i}" for i in rows.tolist()])


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(remembered, "SHARD", 12)
    monkeypatch.setattr(remembered, "BLOCK", 5)


def rows_in(found) -> np.ndarray:
    return found[np.arange(len(found))]


@pytest.mark.usefixtures("small_shards")
def test_blocks_are_fixed_so_that_an_interrupted_making_gives_the_same_bits(tmp_path):
    whole = remember(tmp_path / "whole", 31, Counted())
    assert rows_in(whole).dtype == np.float32
    assert len(whole) == 31
    for fail_at in range(8):
        encode = Counted(fail_at)
        with pytest.raises(KeyboardInterrupt):
            remember(tmp_path / str(fail_at), 31, encode)
        after = Counted()
        assert np.array_equal(rows_in(remember(tmp_path / str(fail_at), 31, after)), rows_in(whole))
        finished = 12 * (fail_at // 3)
        assert list(chain(*after.calls)) == list(range(finished, 31)), "a finished shard is not made again"
    mixed = np.array([30, 0, 13, 12, 11, 30])
    assert np.array_equal(whole[mixed], rows_in(whole)[mixed])


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("damage", ["cut", "empty", "rows", "kind", "none"])
def test_a_damaged_shard_is_made_again_and_no_other(tmp_path, damage):
    whole = rows_in(remember(tmp_path, 31, Counted()))
    path = tmp_path / "rows-00001.npy"
    content = np.load(path)
    if damage == "rows":
        np.save(path, content[:-1])
    elif damage == "kind":
        np.save(path, content.astype(np.float64))
    elif damage != "none":
        path.write_bytes(path.read_bytes()[:200] if damage == "cut" else b"")
    encode = Counted()
    assert np.array_equal(rows_in(remember(tmp_path, 31, encode)), whole)
    assert list(chain(*encode.calls)) == ([] if damage == "none" else list(range(12, 24)))


@pytest.mark.faults
@pytest.mark.usefixtures("small_shards")
def test_killed_making_ends_in_the_same_bits(tmp_path):
    whole = rows_in(remember(tmp_path / "whole", 31, Counted()))
    kills = kill_until_done(lambda: remember(tmp_path / "killed", 31, Counted(pause=0.06)), kills=6, shortest=0.02, longest=0.2)
    assert kills >= 3
    assert run_in_child(lambda: remember(tmp_path / "killed", 31, None), None), "everything is there: nothing is encoded"
    assert np.array_equal(rows_in(remember(tmp_path / "killed", 31, None)), whole)


# The gate


@pytest.fixture(scope="module")
def knowing(pairs):
    return learned(new_student(teacher_config(), vocabulary=pairs.captions), pairs, 40)


def test_a_teacher_that_knows_the_pairs_passes_and_is_measured(pairs, knowing):
    found = gate("t", knowing, pairs, "runs/teacher")
    rows = np.arange(len(pairs))
    image = knowing.encode_images_in_batches(Pixels.open(pairs, 48, knowing.preprocess_cfg)[rows])
    text = knowing.encode_texts_in_batches([pairs.captions[i] for i in pairs.offsets[:-1]])
    assert found == {
        "image_to_text": pytest.approx((np.argmax(image @ text.T, 1) == rows).mean()),
        "text_to_image": pytest.approx((np.argmax(text @ image.T, 1) == rows).mean()),
        "chance": 1 / 32,
        "pairs": 32,
    }
    assert found["image_to_text"] > 0.3


def test_repeated_pairs_do_not_speak_against_a_teacher(pairs, knowing):
    """Of two equal captions no teacher can say which is the picture's: only pairs that differ are asked for."""
    twice = pairs.subset([*range(32), *range(32)])
    assert gate("t", knowing, twice, "x") == pytest.approx(gate("t", knowing, pairs, "x"))


@pytest.mark.parametrize("kind", ["untrained", "constant", "one-sided"])
def test_a_teacher_that_knows_nothing_is_refused(pairs, model, knowing, kind, monkeypatch):
    poor = model
    if kind != "untrained":
        poor = new_student(teacher_config(), vocabulary=pairs.captions).eval()
        poor.load_state_dict(knowing.state_dict())
        sides = ("image", "text") if kind == "constant" else ("text",)
        for side in sides:
            monkeypatch.setattr(poor, f"encode_{side}", lambda rows: torch.nn.functional.normalize(torch.ones(len(rows), 48), dim=1))
    with pytest.raises(UserError, match=r"runs/teacher .*chance is 3\.1 %.*teachers\.big\.gate=false") as refused:
        gate("big", poor, pairs, "runs/teacher")
    assert "\n" not in str(refused.value)


def test_weights_that_are_not_numbers_are_refused(pairs):
    broken = new_student(teacher_config()).eval()
    with torch.no_grad():
        broken.model.visual.proj[0, 0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        gate("t", broken, pairs, "x")


def test_too_few_different_pairs_say_nothing(pairs, model):
    assert gate("t", model, pairs.subset([*range(7), *range(7)]), "x")["chance"] == 1 / 7
    with pytest.raises(UserError, match="of 8 training pairs"):
        gate("t", model, pairs.subset([*range(8), *range(8)]), "x")


# In training


def taught(toy, teachers: dict[str, TeacherSpec], terms: dict[str, TermSpec], **settings) -> Recipe:
    fixed = {"student.config": "tiny_vit_32", "data.source": str(toy), "data.workers": 0, "optimiser.batch": 16, "stages.0.epochs": 1}
    recipe = load_recipe("clip")
    recipe.teachers, recipe.objective = teachers, terms
    return with_settings(recipe, fixed | {"evaluation.log_every": 1} | settings)


AFFINITY = TermSpec(use=f"{TERMS}.affinity:Affinity")


def test_the_gate_of_a_run_comes_first_and_can_be_switched_off(pairs, tmp_path, toy, fresh_cache, monkeypatch):
    spec = teacher_folder(tmp_path / "teacher")
    recipe = taught(toy, {"big": TeacherSpec(model=spec)}, {"affinity": AFFINITY}, **{"stages.0.epochs": 3})
    monkeypatch.setattr("clipling.build.remember_sides", None)
    with pytest.raises(UserError, match=r"teachers\.big\.gate=false"):
        make_job(recipe, tmp_path / "run", Runtime(), quiet=True)
    monkeypatch.undo()
    recipe = with_settings(recipe, {"teachers.big.gate": False})
    (teacher,) = make_teachers(recipe, {"big": open_student(spec)}, pairs, Augment(), Runtime(), quiet=True)
    assert teacher.name == "big"
    assert not (tmp_path / "run").exists()


def test_several_teachers_of_other_sizes_teach_one_step(tmp_path, toy):
    """The affinity of a real step against its formula, from features that are made here."""
    specs = {"vit": teacher_folder(tmp_path / "a"), "norm": teacher_folder(tmp_path / "b", batch_norm_config())}
    teachers = {name: TeacherSpec(model=spec, gate=False) for name, spec in specs.items()}
    teachers["norm"].scale = 20.0
    job = make_job(taught(toy, teachers, {"affinity": AFFINITY}), tmp_path / "run", Runtime(), quiet=True)
    host, train_pairs, student = job.batches[1], job.opened.train, job.student
    assert host.at_size.keys() == {32, 48}
    targets = []
    with torch.no_grad():
        for name, scale in (("vit", 1 / 0.07), ("norm", 20.0)):
            model = open_student(specs[name])
            image = model.encode_image(model.normalise(host.at_size[model.image_size]))
            text = model.encode_text(model.tokenise([train_pairs.captions[row] for row in host.caption_all]))
            targets.append(scale * image @ text.T)
        student.eval()
        own = student.encode_image(student.normalise(host.images)) @ student.encode_text(host.tokens).T / 0.07
        student.train()
    loss = 0.0
    for logits, soft in ((own, targets), (own.T, [t.T for t in targets])):
        p = sum(t.softmax(1) for t in soft) / 2
        loss -= float((p * logits.log_softmax(1)).sum(1).mean()) / 2
    student.model.text.token_embedding.eval()  # no word is dropped
    result = Stepper(student, job.objective, job.make_batch, Runtime(), 0)(host, measure=True)
    assert float(result.values["affinity"]) == pytest.approx(loss, rel=1e-4)
    assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)


def test_a_step_of_one_side_leaves_the_other_alone(tmp_path, toy, monkeypatch):
    spec = teacher_folder(tmp_path / "t")
    fd = TermSpec(use=f"{TERMS}.clip_kd:FD", options={"sides": ["image"]})
    job = make_job(taught(toy, {"t": TeacherSpec(model=spec, gate=False)}, {"fd": fd}), tmp_path / "run", Runtime(), quiet=True)
    for model in (job.student, job.make_batch.teachers[0].model):
        monkeypatch.setattr(model, "encode_text", None)
    job.student.train()
    result = Stepper(job.student, job.objective, job.make_batch, Runtime(), 0)(job.batches[0], measure=True)
    # Unit rows in 48 dimensions that know nothing of each other: 2 (1 - 0) / 48.
    assert float(result.values["fd"]) == pytest.approx(2 / 48, rel=0.5)


def test_teachers_never_change_nor_hold_gradients(tmp_path, toy, monkeypatch):
    specs = {"vit": teacher_folder(tmp_path / "a"), "norm": teacher_folder(tmp_path / "b", batch_norm_config())}
    opened = {}

    def recording(spec):
        opened[spec] = open_student(spec)
        return opened[spec]

    monkeypatch.setattr(clipling.build, "open_student", recording)
    terms = {
        "clip": TermSpec(use=f"{TERMS}.contrastive:Clip"),
        "affinity": AFFINITY,
        "fd": TermSpec(use=f"{TERMS}.clip_kd:FD", weight=100.0, options={"teacher": "norm"}),
        "icl": TermSpec(use=f"{TERMS}.clip_kd:ICL", options={"teacher": "vit"}),
    }
    recipe = taught(toy, {name: TeacherSpec(model=spec, gate=False) for name, spec in specs.items()}, terms, max_steps=2)
    summary = train(recipe, tmp_path / "run", quiet=True)
    assert summary["steps"] == 2
    assert opened.keys() == set(specs.values())
    for spec, model in opened.items():
        before, after = open_student(spec).state_dict(), model.state_dict()
        assert all(torch.equal(before[name], value) for name, value in after.items())
        assert not any(module.training for module in model.modules())
        assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert any("running_mean" in name for name in opened[specs["norm"]].state_dict())
    saved = open_student(str(tmp_path / "run")).state_dict()
    assert not any("head" in name or "fusion" in name for name in saved), "heads of terms are no part of the model"
