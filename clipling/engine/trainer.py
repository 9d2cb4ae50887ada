"""The training loop. There is one."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from clipling.data.loader import TrainBatches
from clipling.data.workers import loader
from clipling.engine import checkpoint
from clipling.engine.batch import BatchMaker
from clipling.engine.compute import bf16_is_native, prepare
from clipling.engine.ema import Ema
from clipling.engine.log import Metrics, Progress
from clipling.engine.memory import freed_memory_kept
from clipling.engine.optim import build_optimiser, learning_rate, set_rate, trained
from clipling.engine.runtime import Runtime
from clipling.engine.signals import stop_signals
from clipling.engine.stages import Span, spans
from clipling.engine.step import Stepper, StepResult
from clipling.errors import UserError
from clipling.models.dual import Student
from clipling.objectives.term import Objective
from clipling.recipe import Recipe
from clipling.store import atomic_produce
from clipling.surgery.prune import what_was_cut

Evaluator = Callable[[Student], Iterable[tuple[str, float]]]
Surgery = Callable[[Student, Objective], Student]
CHECKPOINT_SECONDS = 300.0


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM; the state was saved first."""

    def __init__(self, folder: Path, step: int) -> None:
        super().__init__(f"The state of step {step} is saved in {folder}: the same command with --resume goes on from there.")


@dataclass
class Job:
    """Everything that a run needs, made by the recipe."""

    recipe: Recipe
    student: Student
    objective: Objective
    batches: TrainBatches
    make_batch: BatchMaker
    evaluators: list[Evaluator]
    folder: Path
    runtime: Runtime
    quiet: bool = False
    surgeries: dict[int, Surgery] = field(default_factory=dict)
    """What is done to the student before a stage, by the stage's number."""
    tells: Callable[[str], bool] = lambda name: name.endswith(("@10", "acc1", "teacher_cosine", "match@1"))
    """Which metrics belong into a line of progress."""
    opened: Any = None
    """The pairs of the run (clipling.run.OpenedPairs), for what is written about them."""
    margin: Callable[[float], float] = lambda best: 0.0
    """How far below the best value on val a later checkpoint may be and still take its place: where val is small, its noise."""
    teacher_sizes: dict[str, int] = field(default_factory=dict)
    """Parameters of the teachers without token rows, by name."""


@dataclass
class State:
    """What changes while training, apart from weights."""

    step: int = 0
    seconds: float = 0.0
    nonfinite: int = 0
    skipped: int = 0
    best_step: int = 0
    best_value: float = -math.inf
    without_gain: int = 0
    """Evaluations in a row that were not better than the best."""
    stopped_early: bool = False
    best: dict[str, float] = field(default_factory=dict)
    untrained: dict[str, float] = field(default_factory=dict)


class Trainer:
    """Trains a job to its end, from its newest checkpoint if there is one."""

    def __init__(self, job: Job):
        self.job, self.state = job, State()
        recipe = job.recipe
        self.per_epoch = job.batches.steps_per_epoch
        self.spans = spans(recipe.stages, self.per_epoch, recipe.max_steps)
        self.last = self.spans[-1].end
        self.every = max(1, round(recipe.evaluation.every * self.per_epoch))
        self.optimiser: torch.optim.Optimizer | None = None
        self.stage = self.spans[0].stage.name
        job.runtime.same_start(job.student)
        job.runtime.same_start(job.objective)
        self.stepper, self.ema = self._stepper(), self._average()

    def _stepper(self) -> Stepper:
        """Steps of student and objective as they are now."""
        job, settings = self.job, self.job.recipe.optimiser
        prepare(job.student, job.objective, job.recipe.compute)
        micro = local_micro(settings.micro_batch, job.runtime.world)
        return Stepper(job.student, job.objective, job.make_batch, job.runtime, job.recipe.seed, micro, settings.autocast)

    def _average(self) -> Ema | None:
        decay = self.job.recipe.optimiser.ema
        return Ema(self.job.student, decay) if decay else None

    def run(self) -> State:
        """Trains; afterwards the student holds the best (or last) weights. Raises Interrupted after saving on Ctrl-C."""
        saved = self._resume()
        self.metrics = Metrics(self.job.folder / "metrics.jsonl", self.state.step if saved else None) if self.job.runtime.first else None
        self.progress = Progress(self.last, self.state.step, self.job.recipe.name, self.job.quiet or not self.job.runtime.first)
        if saved:
            self.progress.line(f"{self.job.recipe.name}: goes on from step {self.state.step} of {self.last}")
        if self.job.recipe.optimiser.autocast == "bf16" and not bf16_is_native(self.job.runtime.device):
            self.progress.line("note: this processor has no bf16 instructions: optimiser.autocast=none is quicker here")
        self.saved_at = time.monotonic()
        try:
            with freed_memory_kept(), stop_signals() as stopped:
                if not saved:
                    self.state.untrained = self._evaluate()
                for span in self.spans:
                    if self.state.step < span.end and not self.state.stopped_early:
                        self._train(span, saved, stopped)
                        saved = None
        finally:
            self.progress.close()
            if self.metrics:
                self.metrics.close()
        self._take_best()
        return self.state

    def _train(self, span: Span, saved: dict | None, stopped: threading.Event) -> None:
        self.stage = span.stage.name
        if self.state.step == span.begin:
            self._begin(span)
        student, recipe, frozen = self.job.student, self.job.recipe, span.stage.freeze
        student.freeze(image="image" in frozen, text="text" in frozen, projections=span.stage.freeze_projections)
        self.optimiser = build_optimiser(student, self.job.objective, recipe.optimiser)
        if saved and self.state.step > span.begin:
            self.optimiser.load_state_dict(saved["optimiser"])
        student.train()
        self.job.objective.train()
        for host in loader(self.job.batches, self.state.step, span.end, recipe.data.workers):
            began = time.perf_counter()
            set_rate(self.optimiser, learning_rate(span, self.state.step, self.per_epoch))
            log = host.step % recipe.evaluation.log_every == 0 or host.step + 1 == self.last
            result, norm = self._step(host, log)
            self.state.step += 1
            self.state.seconds += time.perf_counter() - began
            if self.state.step == 1:
                self._warn_of_few_negatives(result, host)
            if log:
                self._log(result, norm, host.epoch)
            self.progress.step(f"loss {float(result.loss):.3f}")
            self._after(span, stopped)
            if self.state.stopped_early:
                return

    def _begin(self, span: Span) -> None:
        """Changes student and objective as the stage asks. What they were is kept, so that a resumed run can do the same again."""
        surgery, drop = self.job.surgeries.get(span.number), span.stage.drop
        if surgery is None and not drop:
            return
        if self.job.runtime.first:
            before = {"student": self.job.student.state_dict(), "objective": self.job.objective.state_dict()}
            atomic_produce(self._before(span), lambda path: torch.save(before, path))
        before_surgery = self.job.student
        self._change(span)
        if surgery is not None:  # weights of other shapes cannot be compared with those of now, nor loaded into the student
            self.state.best_value, self.state.best_step, self.state.without_gain, self.state.best = -math.inf, 0, 0, {}
            sizes = self.job.student.sizes()["total_without_token_rows"]
            self.progress.line(f"{self.job.recipe.name}: stage {span.stage.name}: the student has {sizes:,} parameters without token rows")
            for line in what_was_cut(before_surgery, self.job.student):
                self.progress.line(f"         {line}")
            self._best_path.unlink(missing_ok=True)
            self._evaluate("surgery")

    def _change(self, span: Span) -> None:
        job = self.job
        surgery = job.surgeries.get(span.number)
        if surgery is not None:
            job.student = surgery(job.student, job.objective)
            self.ema = self._average()
        if span.stage.drop:
            job.objective = job.objective.without(span.stage.drop)
        self.stepper = self._stepper()

    def _before(self, span: Span) -> Path:
        return self.job.folder / "checkpoints" / f"before-stage-{span.number}.pt"

    def _step(self, host: Any, log: bool) -> tuple[StepResult, float]:
        assert self.optimiser is not None
        settings, runtime = self.job.recipe.optimiser, self.job.runtime
        try:
            result = self.stepper(host, log)
        except ValueError as error:
            if self.state.step > 0:
                raise
            raise UserError(f"the objective does not fit together: {error}") from error
        parameters = trained(self.optimiser)
        runtime.average_gradients(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm or math.inf)
        # The norm is taken after averaging: one process with a NaN makes it NaN on all, so all skip together.
        if not math.isfinite(float(norm)) or not math.isfinite(float(runtime.average(result.loss))):
            self._nonfinite(settings.stop_after_nonfinite)
        else:
            self.state.nonfinite = 0
            self.optimiser.step()
            with torch.no_grad():
                self.job.student.logit_scale.clamp_(0, math.log(100))
            self.job.objective.after_step(host.step)
            if self.ema:
                self.ema.update(self.job.student, host.step)
        self.optimiser.zero_grad(set_to_none=True)
        return result, float(norm)

    def _warn_of_few_negatives(self, result: StepResult, host: Any) -> None:
        """Pairs that share a caption, picture or group are no negatives: a source of little else teaches nothing."""
        share = result.masked / max(1, len(host.pair) * (len(host.pair_all) - 1))
        if share == 1:
            raise UserError(
                "every pair of a batch shares its caption, picture or group with every other, so there is nothing to tell apart. "
                "Check the captions with `clipling data inspect`."
            )
        if share > 0.5:
            self.progress.line(f"note: {100 * share:.0f} % of the pairs of a batch share a caption, picture or group and are not negatives")

    def _nonfinite(self, limit: int) -> None:
        self.state.nonfinite += 1
        self.state.skipped += 1
        if self.state.nonfinite >= limit:
            raise UserError(
                f"{limit} steps in a row had a loss or gradient that is not finite (step {self.state.step}). "
                "Lower stages.0.learning_rate or set optimiser.clip_norm; the last good checkpoint is kept."
            )

    def _after(self, span: Span, stopped: threading.Event) -> None:
        """Evaluation and checkpoint, in that order, so that a checkpoint knows the best value so far."""
        step = self.state.step
        if step % self.every == 0 or step == span.end:
            self._evaluate()
            self._stop_early()
        done = step == span.end or self.state.stopped_early
        late = time.monotonic() - self.saved_at > CHECKPOINT_SECONDS
        stop = self.job.runtime.any(stopped.is_set())
        if step % self.per_epoch == 0 or done or stop or self.job.runtime.any(late):
            self._save()
        if stop and step < self.last and not self.state.stopped_early:
            raise Interrupted(self.job.folder, step)

    def _stop_early(self) -> None:
        """All processes stop when the first one sees no gain for `evaluation.patience` evaluations."""
        patience = self.job.recipe.evaluation.patience
        if patience is not None and self.job.runtime.any(self.job.runtime.first and self.state.without_gain >= patience):
            self.state.stopped_early = True
            self.progress.line(f"{self.job.recipe.name}: no better for {patience} evaluations: stops at step {self.state.step}")

    def _evaluate(self, kind: str = "val") -> dict[str, float]:
        """Metrics on val of the weights that would be shipped; the best weights are kept beside the checkpoints.

        kind: `val`, or `surgery` right after one, before the student has learned anything in its new shape.
        """
        student, state = self.job.student, self.state
        if self.job.runtime.first and self.job.evaluators:
            masks = self.job.objective.masks(None)
            with self.ema.in_place_of(student) if self.ema else contextlib.nullcontext(), student.masked(masks):
                metrics = {name: float(value) for run in self.job.evaluators for name, value in run(student)}
                value = state.step if self.job.recipe.evaluation.best == "last" else best_value(metrics, self.job.recipe.evaluation.best)
                state.without_gain = 0 if value > state.best_value else state.without_gain + 1
                # Of equals the later: it has seen more. While masks are learned, the student is not yet what it will be.
                if kind == "val" and not masks and state.step > 0 and value >= state.best_value - self._margin():
                    state.best_value, state.best_step, state.best = max(value, state.best_value), state.step, metrics
                    atomic_produce(self._best_path, lambda path: torch.save(student.state_dict(), path))
            assert self.metrics is not None
            self.metrics.write(kind=kind, **self._where(), metrics=metrics)
            shown = ", ".join(f"{n} {100 * v:.1f}" for n, v in metrics.items() if self.job.tells(n))
            self.progress.line(f"{self.job.recipe.name}{self._stage_named(kind)}: epoch {state.step / self.per_epoch:.1f}: {shown}")
        else:
            metrics = {}
        student.train()
        self.job.runtime.wait()
        return metrics

    def _margin(self) -> float:
        return self.job.margin(self.state.best_value) if math.isfinite(self.state.best_value) else 0.0

    def _stage_named(self, kind: str) -> str:
        """Which of several stages a line of progress is about."""
        if len(self.spans) == 1:
            return ""
        return f", {self.stage}" + (" begins" if kind == "surgery" else "")

    @property
    def _best_path(self) -> Path:
        return self.job.folder / "checkpoints" / "best.pt"

    def _where(self) -> dict[str, Any]:
        step = self.state.step
        return {
            "step": step,
            "epoch": round(step / self.per_epoch, 6),
            "samples_seen": step * self.job.recipe.optimiser.batch,
            "seconds": round(self.state.seconds, 3),
        }

    def _log(self, result: StepResult, norm: float, epoch: int) -> None:
        average = self.job.runtime.average
        loss, terms = float(average(result.loss)), {n: float(average(v)) for n, v in result.values.items()}
        if self.metrics and self.optimiser:
            self.metrics.write(
                kind="train",
                **self._where(),
                loss=loss,
                terms=terms,
                gradient=result.gradients,
                gradient_norm=norm,
                learning_rate=self.optimiser.param_groups[0]["lr"],
                logit_scale=float(self.job.student.logit_scale.detach().exp()),
                skipped=self.state.skipped,
                not_negatives=result.masked,
                **{name: report for name, report in self._reports().items() if report},
            )

    def _reports(self) -> dict[str, dict[str, float]]:
        """What terms tell about themselves beside their values (`Term.report`)."""
        return {f"report/{name}": term.report() for name, term in self.job.objective.terms.items()}

    def _save(self) -> None:
        if self.job.runtime.first and self.optimiser:
            state = {
                "student": self.job.student.state_dict(),
                "objective": self.job.objective.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "ema": self.ema.average if self.ema else None,
                "state": vars(self.state),
                "world": self.job.runtime.world,
            }
            checkpoint.save(self.job.folder / "checkpoints", self.state.step, state)
        self.saved_at = time.monotonic()
        self.job.runtime.wait()

    def _resume(self) -> dict | None:
        saved = checkpoint.load_newest(self.job.folder / "checkpoints")
        if saved is None:
            return None
        if not saved.keys() >= {"student", "objective", "optimiser", "ema", "state", "world"}:
            raise UserError(f"the checkpoints in {self.job.folder / 'checkpoints'} are not of a run. Start again with --overwrite.")
        if saved["world"] != self.job.runtime.world:
            raise UserError(
                f"the run was made with {saved['world']} processes and is resumed with {self.job.runtime.world}. Use the same number."
            )
        try:
            for span in self.spans:
                if span.begin < saved["state"]["step"]:
                    self._change_again(span)
            self.job.student.load_state_dict(saved["student"])
            self.job.objective.load_state_dict(saved["objective"])
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"the checkpoint does not fit the recipe and the pairs: {reason}. Start again with --overwrite.") from error
        if self.ema:
            self.ema.average = saved["ema"]
        self.state = State(**saved["state"])
        return saved

    def _change_again(self, span: Span) -> None:
        """The change at a stage's beginning, from what student and objective were then."""
        if self.job.surgeries.get(span.number) is None and not span.stage.drop:
            return
        path = self._before(span)
        try:
            before = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises whatever a broken file makes it raise
            raise UserError(f"the state before a stage in {path} cannot be read. Start again with --overwrite.") from error
        self.job.student.load_state_dict(before["student"])
        self.job.objective.load_state_dict(before["objective"])
        self._change(span)

    def _best_weights(self) -> dict[str, torch.Tensor]:
        try:
            return torch.load(self._best_path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises whatever a broken file makes it raise
            raise UserError(f"the best weights in {self._best_path} cannot be read. Start again with --overwrite.") from error

    def _take_best(self) -> None:
        if self._best_path.is_file():
            self.job.student.load_state_dict(self._best_weights())
        elif self.ema:
            self.job.student.load_state_dict(self.ema.average)


def local_micro(micro_batch: int | None, world: int) -> int | None:
    return None if micro_batch is None else max(1, micro_batch // world)


def best_value(metrics: dict[str, float], name: str) -> float:
    """A metric by name, the mean of both directions of `recall@k`, or `mean_recall`: the mean of all recalls."""
    if name in metrics:
        return metrics[name]
    both = (f"i2t_{name}", f"t2i_{name}")
    chosen = [v for n, v in metrics.items() if n in both or (name == "mean_recall" and n.startswith(("i2t_recall@", "t2i_recall@")))]
    if chosen:
        return sum(chosen) / len(chosen)
    raise UserError(f"evaluation.best = {name!r}: this run measures {', '.join(metrics)}")
