"""`clipling plan RECIPE --pilot 10m --data SRC`: small runs on the user's own pairs, and what they say about larger ones."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipling.data.pairs import Pairs
from clipling.engine.runtime import Runtime
from clipling.errors import UserError
from clipling.evals.chance import chance
from clipling.evals.evaluators import Retrieval
from clipling.models.hub import new_student, open_student
from clipling.planning.calibrate import training
from clipling.planning.forecast import Forecast, Rung, forecast, resampled, shifted
from clipling.planning.ladder import Planned, ladder
from clipling.recipe import Recipe, load_recipe, to_dict, validated, with_settings
from clipling.run import open_data, train
from clipling.starts import student_config
from clipling.store import read_json, write_json

METRICS = ("i2t_recall@10", "t2i_recall@10")
MOST_CHANCE = 0.2  # of recall@10 that guessing reaches: 50 held-out pairs
SHARE = 0.7  # of the measured speed that a whole run reaches, with loading, evaluation and saving
UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds(text: str) -> float:
    """`90s`, `10m`, `1.5h` as seconds."""
    try:
        value = float(text[:-1]) * UNITS[text[-1:]]
    except (ValueError, KeyError):
        value = -1.0
    if not 0 < value < 1e7:
        raise UserError(f"--pilot {text!r}: expected a time such as 90s, 10m or 1h")
    return value


def run_pilot(
    recipe: Recipe,
    out: Path,
    budget: float,
    *,
    targets: Sequence[int] | None = None,
    larger: str | None = None,
    guidance: bool = False,
    against: Sequence[str] = (),
    quiet: bool = False,
) -> dict[str, Any]:
    """Runs the ladder that fits into `budget` seconds and forecasts recall@10, the mean of both directions, on the held-out pairs.

    out holds one run a pilot; those that are finished are not repeated. targets: numbers of pairs to forecast beside the recipe's own.
    Raises UserError for bare photos, recipes of several stages, and too little time.
    """
    _refuse(recipe, guidance)
    opened = open_data(recipe.data)
    if few := too_few(len(opened.val)):  # before anything is trained
        _say(quiet, f"pilot: {few}; nothing will be forecast, the pilots are only compared")
    variants = _variants(recipe, larger, guidance)
    speed = _remembered_speed(recipe, out)
    extra = {name: speed / _remembered_speed(changed, out) if name == "larger student" else 1.1 for name, changed in variants.items()}
    epochs = recipe.stages[0].epochs
    pilots = ladder(len(opened.train), recipe.optimiser.batch, epochs, budget * speed * SHARE, sum(extra.values()))
    _say(
        quiet,
        f"pilots   {len(pilots) + len(variants)} runs of {pilots[0].pairs} to {pilots[-1].pairs} of {len(opened.train)} training pairs",
    )
    done = [_run(_sized(recipe, pilot), out / pilot.name, opened.val, quiet) for pilot in pilots]
    beside = {
        name: _run(_sized(changed, pilots[-1]), out / _beside(name, changed, pilots[-1]), opened.val, quiet)
        for name, changed in variants.items()
    }
    made = _forecasts(recipe, done, beside, pilots, len(opened.train), targets, len(opened.val))
    ready = {spec: measured(open_student(spec), opened.val) for spec in against}
    made["against"] = {spec: _with_interval(recall) for spec, recall in ready.items()}
    made["verdict"] = verdict(made)
    made |= {"recipe": recipe.name, "student": recipe.student.config, "pairs_per_s": speed * SHARE, "val_pairs": len(opened.val)}
    made["pilots"] = [{**vars(pilot), "samples_seen": one.samples, **_with_interval(one.recall)} for pilot, one in zip(pilots, done)]
    write_json(out / "pilot.json", made)
    return made


def _refuse(recipe: Recipe, guidance: bool) -> None:
    if recipe.data.bare:
        raise UserError("--pilot forecasts recall, which bare photos have none of")
    if len(recipe.stages) > 1:
        raise UserError("--pilot: a recipe of several stages cannot be shortened as one. Pilot its first stage as a recipe of its own.")
    if recipe.data.limit is not None:
        raise UserError("data.limit would be ignored: pilots choose how many pairs they train on. Leave it out.")
    if guidance and recipe.guide is not None:
        raise UserError(f"--guidance: the recipe {recipe.name!r} is guided already. Leave it out, or pilot the recipe clip.")


def _variants(recipe: Recipe, larger: str | None, guidance: bool) -> dict[str, Recipe]:
    """Recipes of which one pilot is run beside the largest of the ladder."""
    found = {}
    if guidance:
        ping = to_dict(load_recipe("ping"))
        content = to_dict(recipe)
        content |= {"guide": ping["guide"], "objective": {**content["objective"], "ping": ping["objective"]["ping"]}}
        found["guidance"] = validated(content, "--guidance")
    if larger is not None:
        found["larger student"] = with_settings(recipe, {"student.config": larger})
    return found


def _beside(name: str, changed: Recipe, pilot: Planned) -> str:
    """The folder of a variant: a longer pilot, or another student, is another run beside it."""
    student = re.sub(r"[^\w.-]+", "-", changed.student.config) + "-" if name == "larger student" else ""
    return f"{name.replace(' ', '-')}-{student}{pilot.name}"


def _sized(recipe: Recipe, pilot: Planned) -> Recipe:
    """The recipe at a pilot's size. It is measured at its end alone: that is what is forecast."""
    warmup = min(recipe.stages[0].warmup, pilot.epochs / 4)
    settings = {"data.limit": pilot.pairs, "stages.0.epochs": pilot.epochs, "stages.0.warmup": warmup, "evaluation.every": 1e6}
    return with_settings(recipe, {**settings, "evaluation.best": "last", "evaluation.patience": None, "evaluation.interpolate": []})


def _remembered_speed(recipe: Recipe, out: Path) -> float:
    """Pairs a second of a step, measured once: a pilot that is continued must plan the same ladder."""
    path = out / "speed.json"
    known = read_json(path) if path.is_file() else {}
    about = f"{recipe.student.config}, batch {recipe.optimiser.batch}, autocast {recipe.optimiser.autocast}"
    if about not in known:
        known[about] = _speed(recipe)
        write_json(path, known)
    return float(known[about])


def _speed(recipe: Recipe) -> float:
    spec = recipe.student
    if spec.inherit is not None or spec.text != "config" or spec.config in ("init", "inherit"):
        raise UserError(f"--pilot: the student of the recipe {recipe.name!r} is made from a teacher; give --student NAME")
    runtime = Runtime(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    student = new_student(student_config(recipe, {}), seed=recipe.seed).to(runtime.device).train()
    return training(student, recipe, runtime, 2.0)[0]


@dataclass(frozen=True)
class Done:
    """A finished pilot: samples seen, and recall of each resampling of the held-out pairs."""

    samples: int
    recall: np.ndarray


def _run(recipe: Recipe, folder: Path, val: Pairs, quiet: bool) -> Done:
    began = time.monotonic()
    summary = train(recipe, folder, resume=folder.exists(), quiet=True)
    recall = measured(open_student(folder / "model"), val)
    _say(quiet, f"pilot    {folder.name}: recall@10 {100 * recall[0]:.1f} ({time.monotonic() - began:.0f} s)")
    return Done(summary["samples_seen"], recall)


def measured(student: Any, val: Pairs) -> np.ndarray:
    """Mean recall@10 of both directions, [1 + draws]: see `forecast.resampled`."""
    evaluator = Retrieval(val)
    ranks = evaluator.measure(*evaluator.features(student))
    return resampled({metric: ranks.hits(metric) for metric in METRICS})


def _forecasts(
    recipe: Recipe,
    done: Sequence[Done],
    beside: Mapping[str, Done],
    pilots: Sequence[Planned],
    train_pairs: int,
    targets: Sequence[int] | None,
    val_pairs: int,
) -> dict[str, Any]:
    rungs = [Rung(pilot.pairs, one.samples, one.recall) for pilot, one in zip(pilots, done, strict=True)]
    epochs, batch = recipe.stages[0].epochs, recipe.optimiser.batch
    whole = train_pairs // batch * batch
    wanted = {"all pairs, the recipe": (whole, epochs), "twice the time": (whole, 2 * epochs), "twice the pairs": (2 * whole, epochs)}
    wanted |= {f"{pairs} pairs": (pairs, epochs) for pairs in targets or ()}
    luck, few = _luck(val_pairs), too_few(val_pairs)
    found = {name: forecast(rungs, pairs, pairs * passes, luck) for name, (pairs, passes) in wanted.items()}
    found = {name: Forecast(one.draws, few or one.why) for name, one in found.items()}
    rows = [{"what": name, "pairs": wanted[name][0], "epochs": wanted[name][1], **one.described()} for name, one in found.items()]
    for name, other in beside.items():
        moved, apart = shifted(found["all pairs, the recipe"], done[-1].recall, other.recall)
        rows.append({"what": f"{name}, all pairs", "pairs": whole, "epochs": epochs, **moved.described(), "in_the_pilots": apart})
    return {"forecasts": rows, "chance": luck}


def _luck(val_pairs: int) -> float:
    """Recall@10 of a model that knows nothing, the mean of both directions."""
    return float(np.mean([chance(metric, val_pairs) or 0.0 for metric in METRICS]))


def too_few(val_pairs: int) -> str:
    """Why nothing can be forecast of so few held-out pairs, "" where there are enough.

    Raises UserError where every model finds everything: then pilots need not be run.
    """
    luck = _luck(val_pairs)
    said = f"of {val_pairs} held-out pairs chance alone finds {100 * luck:.0f} %: give more by --val"
    if luck >= 1 or not val_pairs:
        raise UserError(f"--pilot forecasts recall@10, and {said}.")
    return said if luck > MOST_CHANCE else ""


def _with_interval(recall: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(recall[1:], [0.05, 0.95])
    return {"recall": float(recall[0]), "low": float(low), "high": float(high)}


def verdict(made: Mapping[str, Any]) -> str:
    """Should I train at all? In one sentence."""
    best = made["forecasts"][0]
    if why := best.get("why_not"):
        return f"cannot forecast: {why}"
    span = f"{100 * best['low']:.1f} to {100 * best['high']:.1f}"
    if not made["against"]:
        return f"training on all pairs is forecast to reach {span} % (chance {100 * made['chance']:.1f}); --against MODEL says what exists"
    name, ready = max(made["against"].items(), key=lambda item: item[1]["recall"])
    now = f"{name} has {100 * ready['recall']:.1f} % now"
    if best["high"] < ready["low"]:
        return f"do not train this: {now}, and training is forecast to reach {span} %. Fine-tune or compress that model instead."
    if best["low"] > ready["high"]:
        return f"train: {span} % is forecast, and {now}"
    return f"open: {span} % is forecast, and {now}. A longer pilot (--pilot) narrows the interval."


def _say(quiet: bool, line: str) -> None:
    if not quiet:
        print(line, file=sys.stderr, flush=True)
