"""Stages with a surgery between them: what changes, what is rebuilt, and that a run goes on in the same bits wherever it was stopped."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path

import open_clip
import pytest
import torch

from clipling.engine import trainer
from clipling.engine.runtime import Runtime
from clipling.engine.trainer import Interrupted, Trainer
from clipling.errors import UserError
from clipling.models.hub import open_student
from clipling.models.masked import mask_shapes, tower_shapes
from clipling.objectives.sparsity import TowerSize
from clipling.objectives.term import Batch, Term
from clipling.recipe import Recipe, TermSpec, load_recipe, with_settings
from clipling.run import make_job, train
from clipling.surgery.prune import prune
from tests.engine.conftest import TINY
from tests.teaching import teacher_config, teacher_folder

STEPS = 3  # of each of the two stages


def halve(student, objective, keep: float = 0.5):
    """The first `keep` of all MLP units."""
    dims = mask_shapes(student)
    masks = {}
    for side in ("image", "text"):
        masks[f"{side}.intermediate"] = torch.zeros(dims[f"{side}.layers"], dims[f"{side}.mlp"])
        masks[f"{side}.intermediate"][:, : round(keep * dims[f"{side}.mlp"])] = 1
    return prune(student, masks)


class Head(Term):
    """A term with a head of its own and a report."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(64))

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {"head": 0.01 * (batch.main.image * self.weight).sum(1).square().mean()}

    def report(self) -> dict[str, float]:
        return {"norm": float(self.weight.detach().norm())}


@pytest.fixture(scope="module")
def two_stages(toy, toy_val) -> Recipe:
    stage = {"epochs": 1.0, "learning_rate": 3e-3, "warmup": 0.0}
    surgery = {"use": "tests.engine.test_stages:halve", "options": {"keep": 0.5}}
    stages = [{"name": "first", **stage}, {"name": "second", **stage, "surgery": surgery, "drop": ["head"]}]
    recipe = with_settings(load_recipe("clip"), {**TINY, "data.source": str(toy), "data.val": str(toy_val)})
    recipe.objective["head"] = TermSpec(use="tests.engine.test_stages:Head")
    return with_settings(recipe, {"stages": stages, "optimiser.ema": 0.9, "evaluation.every": 0.34})


@pytest.fixture(scope="module")
def auto(toy, toy_val, tmp_path_factory) -> Recipe:
    """tinyclip_auto, as it comes, in a few steps."""
    recipe = load_recipe("tinyclip_auto", smoke=True)
    options = {"target": 0.4, "warmup": 2, "lr": 0.3}
    stages = {f"stages.{n}.epochs": 1.0 for n in range(2)} | {"stages.0.warmup": 1.0}
    settings = {"data.source": str(toy), "data.val": str(toy_val), "optimiser.batch": 32, "optimiser.ema": 0.9, "max_steps": None}
    spec = teacher_folder(tmp_path_factory.mktemp("teacher") / "model", teacher_config(32, 24, 64))
    taught = {"teachers.teacher.model": spec, "teachers.teacher.gate": False, "objective.sparsity.options": options}
    return with_settings(recipe, settings | stages | taught | {"evaluation.every": 0.34})


@pytest.fixture(scope="module")
def whole(two_stages, auto, tmp_path_factory) -> dict[str, Path]:
    """Runs that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    for name, recipe in (("two_stages", two_stages), ("auto", auto)):
        train(recipe, folder / name, quiet=True)
    return {name: folder / name for name in ("two_stages", "auto")}


def lines_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def content(run: Path):
    """What must be equal: the model's files, every metric and the summary, but for times."""
    lines, summary = lines_of(run), json.loads((run / "summary.json").read_text())
    for found in [*lines, summary]:
        found.pop("seconds", None)
    files = {path.name: path.read_bytes() for path in (run / "model").iterdir() if path.name != "README.md"}
    return files, lines, summary


def trained(recipe: Recipe, folder: Path) -> Trainer:
    folder.mkdir()
    made = Trainer(make_job(recipe, folder, Runtime(), quiet=True))
    made.run()
    return made


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# What a surgery does


def test_the_student_changes_shape_and_a_term_ends(two_stages, whole, tmp_path):
    run = whole["two_stages"]
    lines, summary = lines_of(run), json.loads((run / "summary.json").read_text())
    assert [(line["kind"], line["step"]) for line in lines if line["kind"] != "train"] == [
        *(("val", step) for step in range(STEPS + 1)),
        ("surgery", STEPS),
        *(("val", step) for step in range(STEPS + 1, 2 * STEPS + 1)),
    ]
    steps = [line for line in lines if line["kind"] == "train"]
    assert [line["terms"].keys() for line in steps] == [{"clip", "head"}] * STEPS + [{"clip"}] * STEPS
    assert ["report/head" in line for line in steps] == [True] * STEPS + [False] * STEPS
    assert steps[0]["learning_rate"] == steps[STEPS]["learning_rate"] == 3e-3
    student = open_student(str(run))
    assert [shape.mlp for shape in tower_shapes(student).values()] == [(128,) * 3, (64,) * 2]
    # Both biases' worth and the weights of half of 256 (128) units, 3 (2) layers: 2 C + 1 parameters a unit.
    gone = 3 * 128 * (2 * 128 + 1) + 2 * 64 * (2 * 64 + 1)
    whole = make_job(two_stages, tmp_path / "x", Runtime(), quiet=True).student.sizes()
    assert summary["parameters"]["total_without_token_rows"] == whole["total_without_token_rows"] - gone
    stock, _, _ = open_clip.create_model_and_transforms(f"local-dir:{run / 'model'}")
    assert stock.visual.transformer.resblocks[0].mlp.c_fc.out_features == 128


def test_optimiser_and_average_are_those_of_the_new_student(two_stages, tmp_path, monkeypatch):
    """The average against its recurrence from the weights right after the surgery."""
    seen = []
    step_of = Trainer._step

    def recording(self, host, log):
        if not seen or seen[-1][0] is not self.job.student:
            seen.append((self.job.student, self.job.student.state_dict(), []))
            seen[-1] = (self.job.student, {k: v.clone() for k, v in seen[-1][1].items()}, [])
        result = step_of(self, host, log)
        seen[-1][2].append({k: v.clone() for k, v in self.job.student.state_dict().items()})
        return result

    monkeypatch.setattr(Trainer, "_step", recording)
    monkeypatch.setattr(Trainer, "_take_best", lambda self: None)
    made = trained(two_stages, tmp_path / "run")
    assert [len(states) for _, _, states in seen] == [STEPS, STEPS]
    student, average, states = seen[1]
    assert student is made.job.student
    for number, state in enumerate(states, start=STEPS):
        decay = min(0.9, (1 + number) / (10 + number))
        average = {k: decay * v + (1 - decay) * state[k] if v.is_floating_point() else state[k] for k, v in average.items()}
    assert made.ema.average.keys() == average.keys()
    for name, value in average.items():
        torch.testing.assert_close(made.ema.average[name], value, rtol=1e-5, atol=1e-7)
    held = {id(p): state for p, state in made.optimiser.state.items()}
    assert held.keys() == {id(p) for p in student.parameters() if p.requires_grad}
    assert all(float(state["step"]) == STEPS for state in held.values()), "a new optimiser for a new student"


def test_a_stage_that_only_drops_a_term_keeps_student_and_average(two_stages, tmp_path):
    recipe = with_settings(two_stages, {"stages.1.surgery": None})
    job = make_job(recipe, tmp_path / "run", Runtime(), quiet=True)
    (tmp_path / "run").mkdir()
    made = Trainer(job)
    student, ema = job.student, made.ema
    made.run()
    assert job.student is student
    assert made.ema is ema
    assert list(job.objective.terms) == ["clip"]
    assert made.stepper.objective is job.objective


class Scripted:
    """An evaluator with values to give, one after the other; what the student was, each time."""

    name = "scripted"

    def __init__(self, *values: float) -> None:
        self.values, self.states = list(values), []

    def __call__(self, student):
        self.states.append({k: v.clone() for k, v in student.state_dict().items()})
        yield "score", self.values[len(self.states) - 1]


def test_the_best_weights_are_of_the_last_shape(two_stages, tmp_path):
    recipe = with_settings(two_stages, {"evaluation.best": "score", "optimiser.ema": None})
    evaluator = Scripted(0.5, 0.8, 0.9, 0.7, 0.95, 0.2, 0.3, 0.1)  # untrained, three, after the surgery, three
    (tmp_path / "run").mkdir()
    job = make_job(recipe, tmp_path / "run", Runtime(), quiet=True)
    job.evaluators = [evaluator]
    made = Trainer(job)
    state = made.run()
    assert (state.best_step, state.best_value, state.best) == (STEPS + 2, 0.3, {"score": 0.3})
    assert same(made.job.student.state_dict(), evaluator.states[6])
    assert not same(evaluator.states[6], evaluator.states[7])


def test_weights_of_another_shape_are_never_the_best(two_stages, tmp_path):
    """After the surgery nothing is ever measured that is a number: then the last weights are kept."""
    recipe = with_settings(two_stages, {"evaluation.best": "score", "optimiser.ema": None})
    evaluator = Scripted(0.5, 0.8, 0.9, 0.7, *[math.nan] * 4)
    (tmp_path / "run").mkdir()
    job = make_job(recipe, tmp_path / "run", Runtime(), quiet=True)
    job.evaluators = [evaluator]
    state = Trainer(job).run()
    assert (state.best_step, state.best) == (0, {})
    assert same(job.student.state_dict(), evaluator.states[-1])
    assert tower_shapes(job.student)["image"].mlp == (128,) * 3


def test_what_the_student_was_before_a_surgery_is_what_was_measured_then(two_stages, tmp_path):
    """The surgery of these masks removes units; nothing else of the student moves."""
    recipe = with_settings(two_stages, {"evaluation.best": "score", "optimiser.ema": None})
    evaluator = Scripted(*range(8))
    (tmp_path / "run").mkdir()
    job = make_job(recipe, tmp_path / "run", Runtime(), quiet=True)
    job.evaluators = [evaluator]
    Trainer(job).run()
    before, after = evaluator.states[3], evaluator.states[4]
    block = "model.visual.transformer.resblocks.1."
    assert torch.equal(after[f"{block}mlp.c_fc.weight"], before[f"{block}mlp.c_fc.weight"][:128])
    assert torch.equal(after[f"{block}attn.in_proj_weight"], before[f"{block}attn.in_proj_weight"])
    kept = torch.load(tmp_path / "run" / "checkpoints" / "before-stage-1.pt", weights_only=True)
    assert same(kept["student"], before)


# Stopped and resumed


class StopsAfter:
    """Stands for the event of Ctrl-C: set when it is asked for the n-th time, which is once a step."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def is_set(self) -> bool:
        self.left -= 1
        return self.left <= 0


def stopping(recipe: Recipe, out: Path, monkeypatch) -> int:
    """Trains one step at a time, resuming again and again; how often it was stopped."""
    monkeypatch.setattr(trainer, "stop_signals", lambda: contextlib.nullcontext(StopsAfter(1)))
    stops = 0
    while True:
        try:
            train(recipe, out, resume=True, quiet=True)
            return stops
        except Interrupted:
            assert not (out / "summary.json").exists()
            stops += 1


@pytest.mark.parametrize("kind", ["two_stages", "auto"])
def test_a_run_stopped_after_every_step_ends_in_the_same_bits(kind, request, whole, tmp_path, monkeypatch):
    assert stopping(request.getfixturevalue(kind), tmp_path / "run", monkeypatch) == 2 * STEPS - 1
    assert content(tmp_path / "run") == content(whole[kind])


class Died(BaseException):
    """What stands for a crash: nothing of ours catches it."""


@pytest.mark.parametrize("where", ["before it is kept", "in the surgery", "after it", "measured", "first step"])
def test_a_run_that_dies_around_a_surgery_ends_in_the_same_bits(where, two_stages, whole, tmp_path, monkeypatch):
    def dies(*_, **__):
        raise Died

    evaluate, step, change = Trainer._evaluate, Trainer._step, Trainer._change

    def changed(self, span):
        change(self, span)
        raise Died

    def evaluated(self, kind="val"):
        found = evaluate(self, kind)
        if kind == "surgery":
            raise Died
        return found

    def stepped(self, host, log):
        if self.state.step == STEPS + 1:
            raise Died
        return step(self, host, log)

    with monkeypatch.context() as patched:
        match where:
            case "before it is kept":
                patched.setattr(Trainer, "_begin", lambda self, span: dies() if span.number else None)
            case "in the surgery":
                patched.setattr("tests.engine.test_stages.prune", dies)
            case "after it":
                patched.setattr(Trainer, "_change", changed)
            case "measured":
                patched.setattr(Trainer, "_evaluate", evaluated)
            case "first step":
                patched.setattr(Trainer, "_step", stepped)
        with pytest.raises(Died):
            train(two_stages, tmp_path / "died", quiet=True)
    train(two_stages, tmp_path / "died", resume=True, quiet=True)
    assert content(tmp_path / "died") == content(whole["two_stages"])


def test_a_state_before_a_stage_that_cannot_be_read_is_named(two_stages, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "stop_signals", lambda: contextlib.nullcontext(StopsAfter(STEPS + 1)))
    with pytest.raises(Interrupted, match="--resume"):
        train(two_stages, tmp_path / "run", quiet=True)
    (tmp_path / "run" / "checkpoints" / "before-stage-1.pt").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"before-stage-1\.pt cannot be read"):
        train(two_stages, tmp_path / "run", resume=True, quiet=True)


# Learned masks


def test_masks_thin_the_student_to_the_size_that_was_asked_for(auto, whole):
    run = whole["auto"]
    lines, summary = lines_of(run), json.loads((run / "summary.json").read_text())
    steps = [line for line in lines if line["kind"] == "train"]
    assert [line["terms"].keys() for line in steps] == [{"affinity", "sparsity"}] * STEPS + [{"affinity"}] * STEPS
    reports = [line["report/sparsity"] for line in steps[:STEPS]]
    assert [report["target"] for report in reports] == pytest.approx([0, 0.2, 0.4])
    multipliers = [report["lambda1"] for report in reports]
    assert multipliers[0] == 10.0, "at the target's 0 nothing is missing, so nothing is learned"
    assert multipliers == sorted(multipliers)
    assert multipliers[-1] > 10.2, "learned by ascent, at the term's own rate from the first step of the warm-up"
    start = open_student(auto.teachers["teacher"].model)
    dims, student = mask_shapes(start), open_student(str(run))
    full = sum(TowerSize.of(side, dims).prunable for side in ("image", "text"))
    left = sum(shape.prunable for shape in tower_shapes(student).values())
    assert 1 - left / full == pytest.approx(0.4, abs=0.02)
    assert summary["parameters"]["total_without_token_rows"] < start.sizes()["total_without_token_rows"]
    assert not any("alpha" in name for name in student.state_dict())
    assert math.isfinite(steps[-1]["loss"])
    assert STEPS < summary["best_step"] <= 2 * STEPS, "the student with masks is not what is kept"


@pytest.mark.parametrize("micro", [5, 16])
def test_all_parts_of_a_step_have_the_same_masks(auto, tmp_path, micro):
    from clipling.engine.step import Stepper

    job = make_job(auto, tmp_path / "run", Runtime(), quiet=True)
    job.student.train()
    sparsity = job.objective.terms["sparsity"]
    with torch.no_grad():
        for gate in sparsity.log_alpha.values():
            gate.fill_(0.5)  # gates that are open, closed or between
    found = []
    for size in (None, micro):
        stepper = Stepper(job.student, job.objective, job.make_batch, Runtime(), 0, size)
        parameters = dict([*job.student.named_parameters(), *job.objective.named_parameters()])
        for p in parameters.values():
            p.grad = None
        loss = float(stepper(job.batches[2], measure=False).loss)
        found.append((loss, {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}))
    (loss, grads), (parts_loss, parts) = found
    assert parts_loss == pytest.approx(loss, rel=1e-6)
    assert parts.keys() == grads.keys()
    assert {f"terms.sparsity.log_alpha.{side}_hidden" for side in ("image", "text")} <= grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(parts[name], grad, rtol=1e-3, atol=1e-5 * float(grad.abs().max()) + 1e-7)
    draws = [job.objective.masks(torch.Generator().manual_seed(seed))["image.hidden"] for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


# Early stop


def test_patience_ends_a_run_and_a_resumed_one_stays_ended(tiny_recipe, tmp_path):
    recipe = with_settings(tiny_recipe, {"evaluation.best": "score", "evaluation.every": 0.34, "evaluation.patience": 2})
    (tmp_path / "run").mkdir()
    job = make_job(recipe, tmp_path / "run", Runtime(), quiet=True)
    job.evaluators = [Scripted(0.9, 0.1, 0.3, 0.2, 0.3, 0.9)]  # untrained does not count; equal is no gain
    state = Trainer(job).run()
    assert (state.step, state.best_step, state.stopped_early) == (4, 4, True)
    weights = {k: v.clone() for k, v in job.student.state_dict().items()}
    again = make_job(recipe, tmp_path / "run", Runtime(), quiet=True)
    again.evaluators = [Scripted()]
    state = Trainer(again).run()
    assert (state.step, state.stopped_early) == (4, True)
    assert same(weights, again.student.state_dict())


def test_a_whole_run_stops_early_and_says_so(tiny_recipe, tmp_path):
    recipe = with_settings(tiny_recipe, {"stages.0.learning_rate": 1e-12, "evaluation.every": 0.34, "evaluation.patience": 3})
    summary = train(recipe, tmp_path / "run", quiet=True)
    assert summary["stopped_early"]
    assert summary["steps"] == 4
    whole = content(tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()  # killed between the stop and the end
    assert train(recipe, tmp_path / "run", resume=True, quiet=True)["steps"] == 4
    assert content(tmp_path / "run") == whole


# Mistakes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stages.1.drop": ["heat"]}, r"stages\.1\.drop = \['heat'\].*clip, head"),
        ({"stages.1.drop": ["clip", "head"]}, "at least one term that goes on"),
        ({"stages.0.drop": ["clip"]}, r"stages\.1\.drop.*at least one term that goes on"),
        ({"evaluation.interpolate": [0.0, 1.0]}, "after a surgery"),
        ({"evaluation.patience": 0}, "at least 1"),
        ({"evaluation.patience": 2, "evaluation.best": "last"}, "looks at no value"),
        ({"evaluation.patience": 2}, "end all stages"),
        ({"optimiser.layer_decay": 1.5}, "at most 1"),
    ],
)
def test_mistakes_of_stages_are_named(two_stages, settings, message):
    with pytest.raises(UserError, match=message):
        with_settings(two_stages, settings)


def test_a_mistyped_option_of_a_surgery_is_named_before_any_work(two_stages, tmp_path, monkeypatch):
    recipe = with_settings(two_stages, {"stages.1.surgery.options": {"kep": 0.5}})
    monkeypatch.setattr("clipling.run.open_data", None)
    with pytest.raises(UserError, match=r"stages\.1\.surgery\.options.*takes no 'kep'.*keep"):
        make_job(recipe, tmp_path / "run", Runtime(), quiet=True)
