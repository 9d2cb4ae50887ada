"""The loop on a toy source: what is written, weight 0, gradient caching, stages, non-finite steps."""

from __future__ import annotations

import json
import math

import pytest
import torch

from clipling.engine.batch import BatchMaker
from clipling.engine.runtime import Runtime
from clipling.engine.step import Stepper
from clipling.engine.trainer import Trainer, best_value
from clipling.errors import UserError
from clipling.models.hub import open_student
from clipling.objectives.term import Term
from clipling.recipe import TermSpec, validated, with_settings
from clipling.run import make_job, noise_of_few, train


def weights(run):
    return open_student(str(run)).state_dict()


def same_weights(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_folder_holds_everything_and_training_learns(tiny_recipe, tmp_path):
    recipe = with_settings(tiny_recipe, {"stages.0.epochs": 12})
    summary = train(recipe, tmp_path / "run", quiet=True)
    run = tmp_path / "run"
    for name in ("recipe.yaml", "environment.json", "problems.tsv", "metrics.jsonl", "summary.json", "model/open_clip_config.json"):
        assert (run / name).is_file(), name
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train_lines = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in train_lines] == list(range(1, summary["steps"] + 1))
    assert train_lines[-1]["loss"] < 0.8 * train_lines[0]["loss"]
    assert train_lines[0]["loss"] == pytest.approx(math.log(32), rel=0.25)
    assert train_lines[0]["gradient"]["clip"]["cosine"] == pytest.approx(1.0, abs=1e-6)
    assert summary["samples_seen"] == summary["steps"] * 32
    assert (summary["train_pairs"], summary["val_pairs"]) == (120, 60)
    assert summary["val"]["i2t_recall@10"] > summary["untrained"]["i2t_recall@10"]
    card = (run / "model" / "README.md").read_text()
    assert f"{100 * summary['val']['i2t_recall@1']:.1f}" in card
    assert str(tmp_path) not in card


def test_the_same_recipe_gives_the_same_weights_and_another_seed_does_not(tiny_recipe, tmp_path):
    runs = [(tiny_recipe, "a"), (tiny_recipe, "b"), (with_settings(tiny_recipe, {"seed": 1}), "c")]
    for recipe, name in runs:
        train(recipe, tmp_path / name, quiet=True)
    assert same_weights(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same_weights(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_a_term_of_weight_zero_changes_nothing_bit_for_bit(tiny_recipe, tmp_path):
    train(tiny_recipe, tmp_path / "plain", quiet=True)
    recipe = with_settings(tiny_recipe, {})
    recipe.objective["other"] = TermSpec(use="clipling.objectives.contrastive:SigLip", weight=0.0)
    train(recipe, tmp_path / "zero", quiet=True)
    assert same_weights(weights(tmp_path / "plain"), weights(tmp_path / "zero"))


def test_gradient_caching_equals_the_whole_batch(tiny_recipe, tmp_path):
    job = make_job(tiny_recipe, tmp_path / "run", Runtime(), quiet=True)
    host = job.batches[0]
    grads = []
    for micro in (None, 8, 5):
        job.student.zero_grad(set_to_none=True)
        stepper = Stepper(job.student, job.objective, job.make_batch, Runtime(), 0, micro)
        job.student.train()
        loss = stepper(host, measure=False).loss
        grads.append((float(loss), {n: p.grad.clone() for n, p in job.student.named_parameters() if p.grad is not None}))
    for loss, found in grads[1:]:
        assert loss == pytest.approx(grads[0][0], rel=1e-6)
        assert found.keys() == grads[0][1].keys()
        for name, grad in found.items():
            torch.testing.assert_close(grad, grads[0][1][name], rtol=1e-4, atol=1e-5)


def test_a_frozen_image_tower_stays_as_it_is(tiny_recipe, tmp_path):
    recipe = with_settings(tiny_recipe, {"stages.0.freeze": ["image"], "optimiser.micro_batch": 16})
    before = make_job(recipe, tmp_path / "x", Runtime(), quiet=True).student.state_dict()
    train(recipe, tmp_path / "run", quiet=True)
    after = weights(tmp_path / "run")
    # The projection into the shared space stays trainable: it is random in a tower that starts from unimodal weights.
    image = [k for k in after if ".visual." in k and not k.endswith(".proj")]
    assert image
    assert all(torch.equal(before[k], after[k]) for k in image)
    assert any(not torch.equal(before[k], after[k]) for k in after if ".text." in k and k in before and before[k].shape == after[k].shape)


def test_two_stages_run_one_after_the_other(tiny_recipe, tmp_path):
    stage = {"epochs": 1.0, "learning_rate": 1e-3, "warmup": 0.0}
    recipe = with_settings(tiny_recipe, {"stages": [{"name": "one", **stage, "freeze": ["image"]}, {"name": "two", **stage}]})
    summary = train(recipe, tmp_path / "run", quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in lines if line["kind"] == "train"]
    half = summary["steps"] // 2
    assert rates[0] == rates[half] == 1e-3
    assert rates[half - 1] < 1e-3


class Poison(Term):
    """Not finite from step 2 on."""

    def forward(self, batch):
        value = batch.main.image.sum() * 0
        return {"poison": value + (float("nan") if batch.step >= 2 else 0.0)}


def test_a_run_stops_after_so_many_steps_that_are_not_finite_and_keeps_good_weights(tiny_recipe, tmp_path):
    recipe = with_settings(tiny_recipe, {"optimiser.stop_after_nonfinite": 3})
    recipe.objective["poison"] = TermSpec(use="tests.engine.test_training:Poison")
    with pytest.raises(UserError, match="3 steps in a row"):
        train(recipe, tmp_path / "run", quiet=True)
    job = make_job(recipe, tmp_path / "other", Runtime(), quiet=True)
    trainer = Trainer(job)
    job.objective.terms["poison"].forward = lambda batch: {"poison": batch.main.image.sum() * float("inf")}
    before = {k: v.clone() for k, v in job.student.state_dict().items()}
    trainer.job.folder.mkdir(parents=True)
    with pytest.raises(UserError, match="not finite"):
        trainer.run()
    assert same_weights(before, job.student.state_dict())


def test_masking_false_negatives_changes_the_loss_only_where_there_are_some(tiny_recipe, tmp_path):
    job = make_job(tiny_recipe, tmp_path / "run", Runtime(), quiet=True)
    host = job.batches[0]
    links = [[] for _ in range(200)]
    plain = Stepper(job.student, job.objective, BatchMaker(links, [], Runtime()), Runtime(), 0)(host, False).loss
    off = Stepper(job.student, job.objective, BatchMaker(None, [], Runtime()), Runtime(), 0)(host, False).loss
    links[host.pair_all[0]] = links[host.pair_all[1]] = [7]
    masked = Stepper(job.student, job.objective, BatchMaker(links, [], Runtime()), Runtime(), 0)(host, False).loss
    assert float(plain) == float(off)
    assert float(masked) < float(plain)


def test_best_metric_names():
    metrics = {"i2t_recall@10": 0.2, "t2i_recall@10": 0.4, "i2t_recall@1": 0.0, "acc1": 0.1}
    assert best_value(metrics, "mean_recall") == pytest.approx(0.2)
    assert best_value(metrics, "recall@10") == pytest.approx(0.3)
    assert best_value(metrics, "acc1") == 0.1
    with pytest.raises(UserError, match="acc5"):
        best_value(metrics, "acc5")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimiser.btach": 3}, "Did you mean 'batch'"),
        ({"optimiser.batch": 1}, "at least 2"),
        ({"data.crop": [0.9, 0.1]}, "low <= high"),
        ({"stages.0.epochs": "many"}, "stages.0.epochs"),
        ({"stages.3.epochs": 1}, "positions 0 to 0"),
        ({"student.norm": "batch"}, "student.norm"),
    ],
)
def test_mistakes_of_a_recipe_are_named(tiny_recipe, settings, message):
    with pytest.raises(UserError, match=message):
        with_settings(tiny_recipe, settings)


def test_a_missing_name_is_named():
    with pytest.raises(UserError, match="name"):
        validated({"seed": 1}, "here")


def scripted(values):
    """An evaluator whose recalls are given, evaluation by evaluation."""
    left = iter(values)
    return lambda student: [(f"{way}_recall@{k}", value) for value in [next(left)] for way in ("i2t", "t2i") for k in (1, 5, 10)]


@pytest.mark.parametrize(("pairs", "kept"), [(15, 9), (1000, 3)])
def test_of_few_held_out_pairs_the_latest_within_their_noise_is_kept(tiny_recipe, tmp_path, pairs, kept):
    """After epochs 1, 2, 3: 60 %, 40 %, 55 %. One standard error of 60 % is 12.6 points over 15 pairs and 1.5 over 1,000."""
    job = make_job(tiny_recipe, tmp_path / "run", Runtime(), quiet=True)
    per_epoch = job.batches.steps_per_epoch
    job.evaluators, job.margin = [scripted([0.1, 0.6, 0.4, 0.55])], noise_of_few("mean_recall", pairs)
    state = Trainer(job).run()
    assert state.best_step == kept // 3 * per_epoch
    assert state.best_value == 0.6


def test_what_is_no_recall_has_no_such_margin():
    assert noise_of_few("teacher_cosine", 15)(0.5) == noise_of_few("last", 15)(0.5) == 0
    assert noise_of_few("recall@5", 15)(0.6) == pytest.approx((0.6 * 0.4 / 15) ** 0.5)
    assert noise_of_few("recall@5", 100)(0.6) == 0
