"""How many steps does a student of half its teacher's size save by inheriting weights, by mimicking affinities, by both?

    python benchmarks/teacher.py                 first: the teacher
    python benchmarks/tinyclip_speedup.py        every arm and seed; finished runs are not done again
    python benchmarks/tinyclip_speedup.py --collect

All arms train the same architecture on Flickr8k train. `steps_to_target`: the first evaluation on val (a fixed 5 % of train, measured every
half epoch) whose recall@10, the mean of both directions, is at least the best that `scratch` reaches with the same seed. Dev is read once
a run, at its end.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import RUNS, in_parallel, load, mean_and_spread, merged, ratio, save
from teacher import DEV, METRICS, TEACHER, TRAIN

import clipling
from clipling.assess import assess
from clipling.evals.results import weights_hash
from clipling.models.hub import open_student
from clipling.store import read_json, write_json
from clipling.surgery.inherit_targets import target_of

FOLDER = RUNS / "tinyclip_speedup"
SHARE = 0.5
SEEDS = (0, 1, 2)
TAUGHT = f"teachers={{teacher: {{model: '{TEACHER}'}}}}"
MIMIC = "objective={affinity: {use: 'clipling.objectives.affinity:Affinity'}}"
FEATURES = "objective.fd={use: 'clipling.objectives.clip_kd:FD', weight: 2000.0}"
COMMON = ("student.vocabulary=full", "data.crop=[0.5, 1.0]", "data.workers=0", "evaluation.best=last", "evaluation.every=0.5")
COMMON += ("optimiser.batch=256", "optimiser.weight_decay=0.2", "optimiser.clip_norm=1.0", "stages.0.warmup=1.0")


def arms() -> dict[str, tuple[str, float, tuple[str, ...]]]:
    """Each arm: a recipe, epochs, settings."""
    cut = f"student.inherit={{source: '{TEACHER}', width: first_order, depth: uniform}}"
    taught = "student.inherit={source: teacher, to: null, width: first_order, depth: uniform}"
    return {
        "scratch": ("clip", 15, ("stages.0.learning_rate=0.001",)),
        "affinity": ("tinyclip_manual", 15, ("stages.0.learning_rate=0.001", "student.inherit=null", TAUGHT)),
        "inherit": ("clip", 8, ("stages.0.learning_rate=0.0005", cut)),
        "inherit+affinity": ("tinyclip_manual", 8, ("stages.0.learning_rate=0.0005", taught, TAUGHT)),
        # How near to its teacher the student comes when it is given time, and the teacher's features as well (CLIP-KD's FD).
        "inherit+affinity+fd, 24 epochs": ("tinyclip_manual", 24, ("stages.0.learning_rate=0.0005", taught, TAUGHT, FEATURES)),
    }


def student_config() -> Path:
    """The architecture of all arms: half of the teacher, as `clipling compress --to 50%` makes it."""
    path = FOLDER / "student.json"
    if not path.is_file():
        write_json(path, target_of(open_student(str(TEACHER)), SHARE))
    return path


def folder_of(arm: str) -> Path:
    return FOLDER / arm.replace("+", "_").replace(",", "").replace(" ", "_")


def run_one(arm: str, seed: int) -> None:
    student = str(student_config())
    recipe, epochs, settings = arms()[arm]
    out = folder_of(arm) / f"seed-{seed}"
    chosen = (f"student.config={student}", *COMMON, *settings)
    clipling.train(recipe, data=TRAIN, epochs=epochs, seed=seed, out=out, set=chosen, resume=True, threads=1, json=True)
    if not (out / "dev.json").is_file():
        write_json(out / "dev.json", assess(str(out), DEV))


def curve(folder: Path) -> list[tuple[int, float, float]]:
    """(step, seconds of steps, recall@10 on val, the mean of both directions) at every evaluation."""
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(e["step"], e["seconds"], fmean(e["metrics"][f"{w}_recall@10"] for w in ("i2t", "t2i"))) for e in events if e["kind"] == "val"]


def collect() -> None:
    """Gathers the finished runs into benchmarks/results/tinyclip_speedup.json.

    What that file holds of seeds of the same teacher stays, so that seeds may be run on different days.
    """
    result = load("tinyclip_speedup")
    weights = weights_hash(TEACHER / "model")
    teacher = read_json(RUNS / "teacher" / "teacher-dev.json")["metrics"]
    earlier = result["arms"] if result.get("teacher", {}).get("weights") == weights else {}
    targets = dict(result.get("targets", {})) if earlier else {}
    result["teacher"] = {**{m: round(100 * teacher[m], 3) for m in METRICS}, "weights": weights}
    runs = {arm: {int(p.parent.name.removeprefix("seed-")): one_run(p.parent) for p in found(arm)} for arm in arms()}
    targets |= {str(seed): round(100 * max(value for _, _, value in run["curve"]), 3) for seed, run in runs["scratch"].items()}
    fresh = {arm: gather(seeds, targets, result["teacher"]) for arm, seeds in runs.items()}
    result["targets"] = targets
    result["arms"] = {arm: rows for arm, rows in merged(earlier, fresh).items() if rows}
    result["curves"] = {**result.get("curves", {}), **{f"{a} {s}": r["curve"] for a, seeds in runs.items() for s, r in seeds.items()}}
    result["ratios"] = speedups(result["arms"])
    result["settings"] = {a: {"recipe": r, "epochs": e, "set": [*map(plain, (*COMMON, *s))]} for a, (r, e, s) in arms().items()}
    save(result)
    for arm, values in result["arms"].items():
        print(arm, {k: values[k] for k in ("steps_to_target", "seconds_to_target", "i2t_recall@10", "t2i_recall@10", "relative_recall")})
    print("targets", targets, "speed-up", result["ratios"])


def found(arm: str) -> list[Path]:
    """The files of an arm's finished runs whose scratch run of the same seed is finished, too: it sets the target."""
    files = sorted(folder_of(arm).glob("seed-*/dev.json"))
    return [path for path in files if (folder_of("scratch") / path.parent.name / "dev.json").is_file()]


def one_run(folder: Path) -> dict[str, Any]:
    """What is kept of a run: dev in percent, seconds, and its curve on val."""
    dev, summary = read_json(folder / "dev.json")["metrics"], read_json(folder / "summary.json")
    points = [[step, round(seconds, 1), round(value, 6)] for step, seconds, value in curve(folder)]
    return {"dev": {m: round(100 * dev[m], 3) for m in METRICS}, "seconds": summary["seconds"], "curve": points}


def plain(setting: str) -> str:
    return setting.replace(str(RUNS), "runs")


def gather(runs: dict[int, dict[str, Any]], targets: dict[str, float], teacher: dict[str, Any]) -> dict[str, list[Any]]:
    """An arm's values, one a seed."""
    values: dict[str, list[Any]] = {}
    ten = [f"{w}_recall@10" for w in ("i2t", "t2i")]
    for seed, run in sorted(runs.items()):
        passed = [(step, seconds) for step, seconds, value in run["curve"] if round(100 * value, 3) >= targets[str(seed)]]
        reached = passed[0] if passed else (None, None)
        relative = 100 * sum(run["dev"][m] for m in ten) / sum(teacher[m] for m in ten)
        row = {"steps_to_target": reached[0], "seconds_to_target": reached[1], **run["dev"], "relative_recall": round(relative, 2)}
        for key, value in {**row, "seconds": run["seconds"], "seed": seed}.items():
            values.setdefault(key, []).append(value)
    return values


def speedups(made: dict[str, dict[str, list[Any]]]) -> dict[str, Any]:
    """Steps (and seconds) of scratch to its best over those of each arm to the same recall, seed by seed. Seeds of an arm that never
    came there have no ratio: `not_reached` says how many those are."""
    ratios = {}
    for unit in ("steps", "seconds"):
        scratch = dict(zip(made["scratch"]["seed"], made["scratch"][f"{unit}_to_target"]))
        for arm, values in made.items():
            pairs = [(scratch[seed], own) for seed, own in zip(values["seed"], values[f"{unit}_to_target"]) if own and seed in scratch]
            if arm != "scratch" and pairs:
                missed = sum(own is None for own in values[f"{unit}_to_target"])
                ratios[f"{unit} {arm}"] = {**ratio([whole / own for whole, own in pairs]), **({"not_reached": missed} if missed else {})}
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default=";".join(arms()), help="separated by ;")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--at-once", type=int, default=2, help="runs that go on at a time, one thread each")
    parser.add_argument("--collect", action="store_true", help="only gather what is finished")
    parser.add_argument("--one", nargs=2, metavar=("ARM", "SEED"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        run_one(given.one[0], int(given.one[1]))
        return
    if not given.collect:
        student_config()
        jobs = [["--one", arm, seed] for seed in given.seeds.split(",") for arm in given.arms.split(";")]
        in_parallel(__file__, jobs, given.at_once)
    collect()
    print({arm: mean_and_spread(v["i2t_recall@10"]) for arm, v in load("tinyclip_speedup")["arms"].items()})


if __name__ == "__main__":
    main()
