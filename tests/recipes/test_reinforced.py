"""Runs from stored knowledge: whole runs, a live teacher in its place, resumed runs, and settings that do not fit together."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from clipling.engine.runtime import Runtime
from clipling.engine.step import Stepper
from clipling.errors import UserError
from clipling.models.hub import open_student, save_student
from clipling.models.licences import AMLR
from clipling.objectives.contrastive import Clip
from clipling.objectives.reinforced import Reinforced
from clipling.objectives.term import Objective
from clipling.recipe import Recipe, load_recipe, with_settings
from clipling.run import make_job, train
from tests.reinforcing import made, reinforced, teachers
from tests.toy import toy_folder

CLIP_ALONE = {"objective.reinforced.weight": {"clip": 1.0, "distill": 0.0}}
LOOSE = {"data.workers": 0, "evaluation.log_every": 1, "optimiser.batch": 8, "max_steps": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    reinforced(folder, 40, storage="fp32", captions=("rules", "others"))
    return folder


def small(folder, name: str = "mobileclip", **changes) -> Recipe:
    return with_settings(load_recipe(name, smoke=True), {"data.source": str(folder / "out"), **LOOSE, "stages.0.epochs": 2, **changes})


def lines(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_weights_one_and_zero_train_as_plain_clip(folder, tmp_path):
    """The same batches, the same steps: every weight ends in the same bits."""
    states = []
    for options, weight in (({"captions": "real"}, {"clip": 1.0, "distill": 0.0}), (None, 1.0)):
        recipe = small(
            folder, **{"objective.reinforced.weight": {"clip": 1.0, "distill": 1.0}, "objective.reinforced.options": {"captions": "real"}}
        )
        job = make_job(recipe, tmp_path, Runtime(), quiet=True)
        term = Reinforced("real", parts=("clip",)) if options else Clip()
        job.objective = Objective({"reinforced": term}, {"reinforced": weight})
        if not options:
            job.objective = Objective({"clip": term}, {"clip": weight})
        optimiser = torch.optim.SGD(job.student.parameters(), 0.1)
        step = Stepper(job.student, job.objective, job.make_batch, Runtime(), 0)
        for number in range(4):
            step(job.batches[number], measure=False)
            optimiser.step()
            optimiser.zero_grad()
        states.append(job.student.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_stored_teacher_teaches_as_the_live_one(folder, tmp_path):
    """Both of the same crops and captions: the same loss and the same gradients."""
    model = teachers()["second"]
    save_student(model, tmp_path / "second")
    made_by = []
    for live in (False, True):
        changes = {"objective.reinforced.options": {"captions": "real", "scales": 50.0}, "reinforced.pictures": "source"}
        job = make_job(small(folder, **changes), tmp_path, Runtime(), quiet=True)
        (stored,) = [t for t in job.make_batch.teachers if t.name == "second"]
        if live:
            from clipling.guides.teacher import Teacher

            stored = Teacher("second", open_student(str(tmp_path / "second")), job.opened.train, frozenset({"image", "text"}))
            job.batches.more = {32: job.batches.pixels}
        job.make_batch.teachers = [stored]
        result = Stepper(job.student, job.objective, job.make_batch, Runtime(), 0)(job.batches[3], measure=False)
        made_by.append((float(result.loss), {n: p.grad.clone() for n, p in job.student.named_parameters() if p.grad is not None}))
    (loss, gradients), (other, others) = made_by
    assert loss == pytest.approx(other, abs=1e-4)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("captions", ["both", "mix"])
def test_gradient_caching_changes_nothing(folder, tmp_path, captions):
    found = []
    for micro_batch in (None, 3):
        changes = {"objective.reinforced.options": {"captions": captions}, "objective.reinforced.weight": {"clip": 0.5, "distill": 1.0}}
        job = make_job(small(folder, **changes), tmp_path, Runtime(), quiet=True)
        result = Stepper(job.student, job.objective, job.make_batch, Runtime(), 0, micro_batch)(job.batches[2], measure=False)
        found.append((float(result.loss), {n: p.grad for n, p in job.student.named_parameters() if p.grad is not None}))
    (loss, gradients), (other, others) = found
    assert loss == pytest.approx(other, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, atol=1e-5, rtol=1e-3)


def test_a_whole_run_learns_and_a_resumed_one_ends_in_the_same_bits(folder, tmp_path):
    recipe = small(folder, **{"stages.0.epochs": 8, "stages.0.learning_rate": 2e-3})
    train(recipe, tmp_path / "whole", quiet=True)
    losses = [line["loss"] for line in lines(tmp_path / "whole") if line["kind"] == "train"]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])

    from clipling.engine import trainer

    stopped = trainer.Trainer._after

    def after(self, span, event):
        if self.state.step == 9:
            event.set()
        stopped(self, span, event)

    trainer.Trainer._after = after
    try:
        with pytest.raises(trainer.Interrupted):
            train(recipe, tmp_path / "again", quiet=True)
    finally:
        trainer.Trainer._after = stopped
    train(recipe, tmp_path / "again", quiet=True, resume=True)
    one, two = (open_student(str(tmp_path / name)).state_dict() for name in ("whole", "again"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_terms_of_other_papers_learn_from_stored_teachers(folder, tmp_path):
    """TinyCLIP's affinities and CLIP-KD's features: a stored teacher is a teacher."""
    changes = {"objective.affinity": {"use": "clipling.objectives.affinity:Affinity"}, "max_steps": 1}
    changes["objective.fd"] = {"use": "clipling.objectives.clip_kd:FD", "weight": 10.0, "options": {"teacher": "first"}}
    summary = train(small(folder, **changes), tmp_path / "run", quiet=True)
    (step,) = [line for line in lines(tmp_path / "run") if line["kind"] == "train"]
    assert {"reinforced/distill", "affinity", "fd"} == step["terms"].keys()
    assert summary["steps"] == 1


def test_a_live_teacher_in_its_place(tmp_path):
    """MobileCLIP's loss without a stored source: the teacher is asked at every step."""
    toy_folder(tmp_path / "toy", count=48)
    save_student(teachers()["first"], tmp_path / "first")
    changes = {
        "data.source": str(tmp_path / "toy"),
        "reinforced": None,
        "objective.reinforced.options": {"captions": "real"},
        "max_steps": 1,
    }
    changes |= {"teachers": {"teacher": {"model": str(tmp_path / "first"), "gate": False}}, "data.crop": [0.5, 1.0]}
    train(with_settings(load_recipe("mobileclip2", smoke=True), changes), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "knowledge.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.crop": [0.5, 1.0]}, r"data\.crop .* the crops are those that are stored"),
        ({"data.flip": 0.5}, r"data\.flip"),
        ({"reinforced.mix": 0.0}, r"reinforced\.mix"),
        ({"reinforced.mix": 0.3}, r"reinforced\.mix = 0\.3 would be ignored"),
        ({"reinforced": None}, "synthetic captions, but the recipe has no `reinforced`"),
        ({"reinforced.origins": "coca"}, "no synthetic caption of an origin that fits 'coca'"),
        ({"reinforced.origins": "coca", "objective.reinforced.options": {"captions": "real"}}, "would be ignored"),
        ({"objective.reinforced.options": {"captions": "both", "scales": [70.0]}}, "1 number for the 2 teachers first, second"),
        (
            {"objective": {"clip": {"use": "clipling.objectives.contrastive:Clip"}}, "objective.reinforced.weight": 0.0},
            "no term of the objective uses it",
        ),
        ({"objective.reinforced.options": {"captions": "both", "scales": [70.0, 60.0, 50.0]}}, "3 numbers for the 2 teachers"),
        ({"objective.reinforced.options": {"same": "positive"}}, "same='positive' would be ignored: `clip` has weight 0"),
        ({"objective.reinforced.weight": {"clip": 1.0, "distill": 0.0}}, "scales=100.0 would be ignored: `distill` has weight 0"),
        ({**CLIP_ALONE, "objective.reinforced.options": {"kl": True}}, "kl=True would be ignored"),
        ({"objective.reinforced.options": {"scales": True}}, "scales=True: expected a positive number"),
        ({"objective.reinforced.options": {"scales": float("inf")}}, "scales=inf: expected"),
        ({"objective.reinforced.options": {"scales": [70.0, float("nan")]}}, "scales=.*nan.*: expected"),
        ({"reinforced.changed": "rescale"}, "changed = rescale would be ignored: no picture has changed"),
        ({"reinforced.pictures": "both"}, r"reinforced\.pictures"),
        ({"reinforced.teachers": {"a": 3}}, "its teachers are first"),
    ],
)
def test_settings_that_do_not_fit_together(folder, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(small(folder, **changes), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_the_term_that_learns_from_captions_alone_takes_no_scales(folder, tmp_path):
    train(small(folder, **CLIP_ALONE, **{"objective.reinforced.options": {"scales": None}, "max_steps": 1}), tmp_path / "run", quiet=True)
    (step,) = [line for line in lines(tmp_path / "run") if line["kind"] == "train"]
    assert step["terms"].keys() == {"reinforced/clip"}


@pytest.mark.parametrize("with_manifest", [True, False])
def test_licences_of_stored_teachers_are_those_of_live_ones(folder, tmp_path, capsys, with_manifest):
    """A teacher for research only makes a student for research only, and the card and the run say so; without the manifest nobody knows."""
    shutil.copytree(folder / "out", tmp_path / "source")
    manifest = json.loads((tmp_path / "source" / "reinforced.json").read_text())
    manifest |= {"licences": {"ViT-B-16@datacompdr": AMLR, "mine": "mit"}, "named": {"first": "ViT-B-16@datacompdr", "second": "mine"}}
    (tmp_path / "source" / "reinforced.json").write_text(json.dumps(manifest))
    if not with_manifest:
        (tmp_path / "source" / "reinforced.json").unlink()
    train(small(folder, **{"data.source": str(tmp_path / "source"), "max_steps": 1}), tmp_path / "run")
    card, said = (tmp_path / "run" / "model" / "README.md").read_text(), capsys.readouterr().err
    names = "ViT-B-16@datacompdr (48), mine (64)" if with_manifest else "first (48), second (64)"
    assert f"stored   by {names}: 3 augmentations a picture, embeddings as float32; synthetic captions: " in said
    assert ("warning: the weights of ViT-B-16@datacompdr may not be used commercially" in said) == with_manifest
    assert ("**Not for commercial use as it stands:** `ViT-B-16@datacompdr`" in card) == with_manifest
    if with_manifest:
        assert f"- `ViT-B-16@datacompdr`: {AMLR}" in card
        assert "- `mine`: mit" in card
        assert "not stated" not in card
    else:
        assert "- `stored teacher first`: not stated" in card
        assert "- `stored teacher second`: not stated" in card


def test_a_live_teacher_sees_no_synthetic_captions(folder, tmp_path):
    save_student(teachers()["first"], tmp_path / "first")
    changes = {"teachers": {"first": {"model": str(tmp_path / "first"), "gate": False}}}
    with pytest.raises(UserError, match="sees no synthetic captions"):
        train(small(folder, **changes), tmp_path / "run", quiet=True)
    changes["objective.reinforced.options"] = {"captions": "real"}
    with pytest.raises(UserError, match="'first' is stored and live"):
        train(small(folder, **changes), tmp_path / "run", quiet=True)


def test_a_source_without_synthetic_captions(tmp_path):
    from clipling.data.source import open_pairs

    made(open_pairs(str(toy_folder(tmp_path / "toy", count=40))), tmp_path / "out", (), augmentations=1)
    with pytest.raises(UserError, match="clipling reinforce --captions"):
        train(small(tmp_path), tmp_path / "run", quiet=True)
