"""How many samples does a student from scratch save by learning from what a teacher stored once, and what does a step cost then?

    python benchmarks/teacher.py                      first: the teacher
    python benchmarks/reinforced_efficiency.py        the source, every arm and seed, throughput, bytes; what is finished is not done again
    python benchmarks/reinforced_efficiency.py --small      the same on 400 pairs with one epoch, to see that it runs
    python benchmarks/reinforced_efficiency.py --tune       settings of the reinforced arm, on a part of train
    python benchmarks/reinforced_efficiency.py --collect

All arms train the same student (2.2 M parameters, 64 px) from random weights on Flickr8k train. `samples_to_target`: samples seen at the
first evaluation on val (a fixed 5 % of train, which the teacher was not trained on either) whose recall@10, the mean of both directions, is
at least the best that `clip_40` reaches with the same seed. Dev is read once a run, at its end. `clip` has the settings of
benchmarks/ping_gain.py, `clip_40` twice its epochs; `clip_short` is plain CLIP on the budget, batch and rates of `reinforced`. Throughput:
steps in turn in one process, one thread, loading and replay included, at equal texts a step: with crops of held pictures, and with every
JPEG decoded at every step.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import RUNS, in_parallel, load, merged, ratio, save
from ping_gain import as_yaml
from teacher import DEV, METRICS, TEACHER, TRAIN
from tinyclip_speedup import curve

import clipling
from clipling.assess import assess
from clipling.evals.results import weights_hash
from clipling.models.catalogue import zoo_config
from clipling.models.hub import open_student
from clipling.store import read_json, write_json

STUDENT = "mobilenetv3_small_64_text128"  # with embeddings of the teacher's size, so that its features can be learned without heads
COMMON: dict[str, Any] = {"data.workers": 0, "evaluation.best": "last"}
AUGMENTATIONS = 8
REINFORCE: dict[str, Any] = {"captions": ("rules",), "augmentations": AUGMENTATIONS, "crop": (0.35, 1.0), "operations": "none"}
SEEDS = (0,)
LONGEST = "clip_40"  # the plain CLIP whose best is the target
# Everything that the arms share which learn from the teacher. Reasoned, not tuned: `--tune` tries others on a part of train.
BUDGET: dict[str, Any] = {
    "optimiser.batch": 64,
    "stages.0.epochs": 4.0,
    "stages.0.learning_rate": 2e-3,
    "stages.0.warmup": 0.2,
    "evaluation.every": 0.1,
}
FEATURES = {"use": "clipling.objectives.clip_kd:FD", "weight": 2000.0}
TAUGHT: dict[str, Any] = {"objective.reinforced.weight": {"clip": 0.0, "distill": 1.0}}
TUNING: dict[str, dict[str, Any]] = {
    "rate 1e-3": {"stages.0.learning_rate": 1e-3},
    "rate 2e-3": {},
    "rate 4e-3": {"stages.0.learning_rate": 4e-3},
    "average 0.98": {"optimiser.ema": 0.98},
    "2 epochs": {"stages.0.epochs": 2.0},
    "captions mixed": {"objective.reinforced.options": {"captions": "mix", "scales": None}},
    "batch 32": {"optimiser.batch": 32},
    "batch 128": {"optimiser.batch": 128},
    "no features": {"objective.fd": None},
    "clip 0.25": {"objective.reinforced.weight": {"clip": 0.25, "distill": 0.75}},
}


@dataclasses.dataclass(frozen=True)
class Size:
    """What is run: everything, or a little of it."""

    folder: Path
    train: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    rounds: int = 12
    stored_pairs: int = 500


def size_of(small: bool) -> Size:
    folder = RUNS / "reinforced_efficiency"
    if not small:
        return Size(folder, TRAIN)
    part = folder / "small" / "train.tar"
    if not part.is_file():
        copy_pairs(TRAIN.replace("{00000..00005}", "00000"), part, lambda n: n < 400)
    changes = {"stages.0.epochs": 1.0, "evaluation.every": 0.5, "optimiser.batch": 32}
    return Size(folder / "small", str(part), changes, rounds=2, stored_pairs=60)


def copy_pairs(source: str, target: Path, wanted: Callable[[int], bool]) -> None:
    """The pairs of tars whose number in their order is wanted, in one tar."""
    from clipling.data.source import resolve

    target.parent.mkdir(parents=True, exist_ok=True)
    numbers: dict[str, int] = {}
    with tarfile.open(target, "w") as made:
        for path in resolve(source)[1]:
            with tarfile.open(path) as tar:
                for member in tar:
                    key = member.name.partition(".")[0]
                    if wanted(numbers.setdefault(key, len(numbers))):
                        made.addfile(member, tar.extractfile(member))


def source_of(size: Size) -> str:
    return str(size.folder / "source")


def make_source(size: Size) -> dict[str, Any]:
    """The teacher is asked once; seconds of a run that was stopped and went on are those of its last part."""
    began = time.perf_counter()
    gate = "on" if size.train == TRAIN else "off"
    made = clipling.reinforce(size.train, teacher=(str(TEACHER),), out=Path(source_of(size)), gate=gate, threads=1, json=True, **REINFORCE)
    path = size.folder / "source.json"
    if made["made"] or not path.is_file():
        write_json(path, {**made, "out": "source", "seconds": round(time.perf_counter() - began, 1)})
    return read_json(path)


def arms() -> dict[str, tuple[str, dict[str, Any]]]:
    """Each arm: a recipe and what it changes."""
    live = {"reinforced": None, "data.crop": [0.35, 1.0], "teachers": {"teacher": {"model": str(TEACHER)}}}
    real = {"captions": "real", "scales": None}
    return {
        "clip": ("clip", {"optimiser.batch": 256, "stages.0.epochs": 20.0, "evaluation.every": 0.5}),
        "clip_40": ("clip", {"optimiser.batch": 256, "stages.0.epochs": 40.0, "evaluation.every": 0.5}),
        "clip_short": ("clip", {**BUDGET, "data.crop": [0.35, 1.0]}),
        "live_teacher": ("mobileclip2", {**BUDGET, **TAUGHT, **live, "objective.reinforced.options": real, "objective.fd": FEATURES}),
        "reinforced": ("mobileclip2", {**BUDGET, **TAUGHT, **stored(), "objective.fd": FEATURES}),
    }


def stored() -> dict[str, Any]:
    """The pairs' own captions, as plain CLIP has; rewrites are tried in --tune."""
    return {"objective.reinforced.options": {"captions": "real", "scales": None}}


def student_config() -> str:
    path = RUNS / "reinforced_efficiency" / "student.json"
    if not path.is_file():
        content = zoo_config(STUDENT)
        content["model_cfg"]["embed_dim"] = open_student(str(TEACHER)).embed_dim
        write_json(path, content)
    return str(path)


def train(recipe: str, settings: dict[str, Any], data: str, val: str | None, seed: int, out: Path) -> dict[str, Any]:
    chosen = tuple(f"{key}={as_yaml(value)}" for key, value in all_settings(settings).items())
    return clipling.train(recipe, data=data, val=val, seed=seed, out=out, set=chosen, resume=True, threads=1, json=True)


def all_settings(settings: dict[str, Any]) -> dict[str, Any]:
    made = {"student.config": student_config(), **COMMON, **settings}
    return {key: value for key, value in made.items() if key != "objective.fd" or value is not None}


def run_one(arm: str, seed: int, size: Size) -> None:
    recipe, settings = arms()[arm]
    out = size.folder / arm / f"seed-{seed}"
    data = source_of(size) if arm == "reinforced" else size.train
    train(recipe, {**settings, **size.settings}, data, None, seed, out)
    if not (out / "dev.json").is_file():
        write_json(out / "dev.json", assess(str(out), DEV))


def tune(name: str, size: Size) -> None:
    """One setting of the reinforced arm: on five sixths of the pairs that are not val, measured on the others."""
    folder = size.folder / "tuning"
    parts = {"train": folder / "train.tar", "val": folder / "val.tar"}
    if not parts["val"].is_file():
        from clipling.data.source import open_pairs
        from clipling.data.split import split

        rows = set(split(open_pairs(source_of(size)))[0].tolist())
        copy_pairs(source_of(size), parts["train"], lambda n: n in rows and n % 6 > 0)
        copy_pairs(source_of(size), parts["val"], lambda n: n in rows and n % 6 == 0)
    recipe, settings = arms()["reinforced"]
    out = folder / name.replace(" ", "_")
    train(recipe, {**settings, **TUNING[name], **size.settings}, str(parts["train"]), str(parts["val"]), 0, out)
    print(name, [(step, round(100 * value, 2)) for step, _, value in curve(out)], flush=True)


# Throughput


def stepper(arm: str, size: Size, decode: bool):
    """A training step of an arm as a function of its number, at the batch of plain CLIP and one caption a picture: MobileCLIP's loss alone
    where a teacher teaches, with real and synthetic captions mixed where they are stored."""
    import torch

    from clipling.data.pixels import Pixels
    from clipling.engine.optim import build_optimiser, set_rate, trained
    from clipling.engine.runtime import Runtime
    from clipling.engine.step import Stepper
    from clipling.recipe import load_recipe, with_settings
    from clipling.run import make_job

    torch.set_num_threads(1)
    recipe, settings = arms()[arm]
    source = throughput_source(size)
    changes = {**settings, "objective.fd": None, "optimiser.batch": 256 if size.train == TRAIN else 32}
    changes |= {"data.source": str(source) if arm == "reinforced" else str(size.folder / "few.tar")}
    if arm == "reinforced":
        changes |= {
            "objective.reinforced.options": {"captions": "mix", "scales": None},
            "reinforced.pictures": "source" if decode else "held",
        }
    changes = all_settings(changes)
    made = with_settings(load_recipe(recipe), changes)
    job = make_job(made, Path(tempfile.gettempdir()) / "unused", Runtime(), quiet=True)
    if decode and arm != "reinforced":
        held = job.batches.pixels
        job.batches.pixels = Pixels.open(held.pictures, held.size, "squash", limit_bytes=0)
    run = Stepper(job.student, job.objective, job.make_batch, Runtime(), 0)
    optimiser = build_optimiser(job.student, job.objective, made.optimiser)
    set_rate(optimiser, 1e-4)
    job.student.train()

    def step(number: int) -> None:
        run(job.batches[number], measure=False)
        torch.nn.utils.clip_grad_norm_(trained(optimiser), 1.0)
        optimiser.step()
        job.objective.after_step(number)
        optimiser.zero_grad(set_to_none=True)

    return step


def throughput_source(size: Size) -> Path:
    """Some pairs with RandAugment in their records, as the verb stores them by default: it has to be done again at every step."""
    few = size.folder / "few.tar"
    if not few.is_file():
        copy_pairs(size.train, few, lambda n: n < size.stored_pairs)
    out = size.folder / "few-source"
    clipling.reinforce(str(few), teacher=(str(TEACHER),), out=out, captions=("rules",), augmentations=4, gate="off", threads=1, json=True)
    return out


def throughput(size: Size, names: tuple[str, ...], decode: bool = False) -> dict[str, list[float]]:
    """Seconds of steps of every arm, in turn, so that the machine's mood falls on all alike."""
    steps = {arm: stepper(arm, size, decode) for arm in names}
    for step in steps.values():
        step(0)
    seconds: dict[str, list[float]] = {arm: [] for arm in names}
    for number in range(size.rounds):
        for arm in names if number % 2 else names[::-1]:
            began = time.perf_counter()
            steps[arm](1 + number)
            seconds[arm].append(time.perf_counter() - began)
    return seconds


def ratios_of_time(size: Size) -> dict[str, Any]:
    """Pairs a second of `reinforced` over those of `clip`, and how much slower a live teacher makes a step."""
    held = throughput(size, ("clip", "reinforced", "live_teacher"))
    decoded = throughput(size, ("clip", "reinforced"), decode=True)
    return {
        "throughput_reinforced_over_clip": ratio([a / b for a, b in zip(held["clip"], held["reinforced"])]),
        "throughput_reinforced_over_clip_from_jpegs": ratio([a / b for a, b in zip(decoded["clip"], decoded["reinforced"])]),
        "step_time_live_teacher_over_clip": ratio([a / b for a, b in zip(held["live_teacher"], held["clip"])]),
        "step_time_live_teacher_over_reinforced": ratio([a / b for a, b in zip(held["live_teacher"], held["reinforced"])]),
    }


# Bytes


def bytes_by_storage(size: Size) -> dict[str, Any]:
    """Bytes a pair beside its picture, of shards that are written: of this teacher, and of rows and counts as DataCompDR has them."""
    found: dict[str, Any] = {}
    few = size.folder / "few.tar"
    throughput_source(size)
    for storage in ("fp32", "fp16", "int8"):
        with tempfile.TemporaryDirectory() as folder:
            made = clipling.reinforce(
                str(few), teacher=(str(TEACHER),), out=Path(folder) / "out", storage=storage, gate="off", threads=1, json=True, **REINFORCE
            )
        found[storage] = {
            "bytes_a_pair": round((made["bytes"] - made["picture_bytes"]) / made["pairs"], 1),
            "picture_bytes_a_pair": round(made["picture_bytes"] / made["pairs"], 1),
            "errors": made["errors"],
            **{f"datacompdr_{n}": as_datacompdr(storage, augmentations) for n, augmentations in (("12M", 30), ("1B", 10))},
        }
    return found


def as_datacompdr(storage: str, augmentations: int, pairs: int = 200) -> float:
    """Bytes a pair, without picture, of a shard as DataCompDR has them: two teachers of 768, one real and five synthetic captions."""
    import io
    import os

    import numpy as np

    from clipling.data.reinforced import Sample, TeacherInfo, members
    from clipling.data.replay import draw_records
    from clipling.data.views import Augment

    rng = np.random.default_rng(0)
    teachers = [TeacherInfo("first", 768, 70.0, "0" * 16), TeacherInfo("second", 768, 60.0, "0" * 16)]
    caption = "a man riding a wave on top of a surfboard"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "00000.tar"
        with tarfile.open(path, "w") as tar:
            for number in range(pairs):
                rows = {
                    name: rng.normal(size=(n, 1536)).astype(np.float32) / 27.7
                    for name, n in (("image", augmentations), ("text", 1), ("", 5))
                }
                records = [
                    draw_records(Augment(scale=(0.08, 1.0)), True, 0, k, np.array([number]), [(640, 480)])[0] for k in range(augmentations)
                ]
                sample = Sample(
                    records, (640, 480), "0" * 32, teachers, {"": [caption] * 5}, rows, digests={"text": "0" * 16, "": "0" * 16}
                )
                plain = {"txt": caption.encode(), "json": f'{{"captions":["{caption}"],"key":"{number:09d}"}}'.encode()}
                for suffix, data in (plain | members(sample, storage, False)).items():  # type: ignore[arg-type]
                    info = tarfile.TarInfo(f"{number:09d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        return round(os.path.getsize(path) / pairs, 1)


# Results


def one_run(folder: Path, batch: int) -> dict[str, Any]:
    dev, summary = read_json(folder / "dev.json")["metrics"], read_json(folder / "summary.json")
    points = [[step * batch, round(seconds, 1), round(value, 6)] for step, seconds, value in curve(folder)]
    return {
        "dev": {m: round(100 * dev[m], 3) for m in METRICS},
        "seconds": summary["seconds"],
        "seen": summary["samples_seen"],
        "curve": points,
    }


def collect(size: Size, name: str) -> None:
    """Gathers the finished runs; what the file holds of other seeds of the same teacher stays."""
    result = load(name)
    weights = weights_hash(TEACHER / "model")
    earlier = result["arms"] if result.get("teacher") == weights else {}
    targets = dict(result.get("targets", {})) if earlier else {}
    result["teacher"] = weights
    runs = {arm: {int(p.parent.name[5:]): one_run(p.parent, batch_of(arm, size)) for p in finished(arm, size)} for arm in arms()}
    targets |= {str(seed): round(100 * max(value for _, _, value in run["curve"]), 3) for seed, run in runs[LONGEST].items()}
    fresh = {arm: gathered(seeds, targets) for arm, seeds in runs.items()}
    result["targets"] = targets
    result["arms"] = {arm: rows for arm, rows in merged(earlier, fresh).items() if rows}
    result["curves"] = {**result.get("curves", {}), **{f"{a} {s}": r["curve"] for a, seeds in runs.items() for s, r in seeds.items()}}
    result["ratios"] = {**result.get("ratios", {}), **savings(result["arms"])}
    result["settings"] = {arm: {"recipe": recipe, **plain(settings)} for arm, (recipe, settings) in arms().items()}
    if (size.folder / "source.json").is_file():
        result["source"] = read_json(size.folder / "source.json")
    save(result)
    for arm, values in result["arms"].items():
        print(arm, {k: values[k] for k in ("samples_to_target", "seconds_to_target", "i2t_recall@10", "t2i_recall@10", "seconds")})
    print("targets", targets, "ratios", {k: round(v["value"], 3) for k, v in result["ratios"].items()}, "bytes", result.get("bytes"))


def batch_of(arm: str, size: Size) -> int:
    return {**arms()[arm][1], **size.settings}["optimiser.batch"]


def finished(arm: str, size: Size) -> list[Path]:
    files = sorted((size.folder / arm).glob("seed-*/dev.json"))
    return [path for path in files if (size.folder / LONGEST / path.parent.name / "dev.json").is_file()]


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: str(value).replace(f"{RUNS}", "runs") if "teacher" in key else value for key, value in settings.items()}


def gathered(runs: dict[int, dict[str, Any]], targets: dict[str, float]) -> dict[str, list[Any]]:
    """An arm's values, one a seed."""
    values: dict[str, list[Any]] = {}
    for seed, run in sorted(runs.items()):
        passed = [(seen, seconds) for seen, seconds, value in run["curve"] if seen and round(100 * value, 3) >= targets[str(seed)]]
        reached = passed[0] if passed else (None, None)
        row = {"samples_to_target": reached[0], "seconds_to_target": reached[1], **run["dev"], "samples_seen": run["seen"]}
        for key, value in {**row, "seconds": run["seconds"], "seed": seed}.items():
            values.setdefault(key, []).append(value)
    return values


def savings(made: dict[str, dict[str, list[Any]]]) -> dict[str, Any]:
    """Samples (and seconds) of clip to its best over those of each arm to the same recall, seed by seed."""
    ratios = {}
    for unit in ("samples", "seconds"):
        whole = dict(zip(made.get(LONGEST, {}).get("seed", []), made.get(LONGEST, {}).get(f"{unit}_to_target", [])))
        for arm, values in made.items():
            pairs = [(whole[seed], own) for seed, own in zip(values["seed"], values[f"{unit}_to_target"]) if own and seed in whole]
            if arm != LONGEST and pairs:
                ratios[f"{unit} {LONGEST} over {arm}"] = ratio([a / b for a, b in pairs])
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default=",".join(arms()))
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--at-once", type=int, default=2, help="runs that go on at a time, one thread each")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--tune", nargs="*", metavar="SETTING", help=f"of: {', '.join(TUNING)}; none: all")
    parser.add_argument("--collect", action="store_true", help="only gather what is finished")
    parser.add_argument("--only", choices=("runs", "throughput", "bytes"), help="one part")
    parser.add_argument("--one", nargs=2, metavar=("ARM", "SEED"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    size = size_of(given.small)
    name = "reinforced_efficiency" + ("_small" if given.small else "")
    if given.one:
        run_one(given.one[0], int(given.one[1]), size)
        return
    student_config()
    if not given.collect:
        make_source(size)
    if given.tune is not None:
        for setting in given.tune or TUNING:
            tune(setting, size)
        return
    if not given.collect and given.only in (None, "bytes"):
        save({**load(name), "bytes": bytes_by_storage(size)})
    if not given.collect and given.only in (None, "throughput"):  # alone: nothing else may run meanwhile
        result = load(name)
        save({**result, "ratios": {**result["ratios"], **ratios_of_time(size)}})
    if not given.collect and given.only in (None, "runs"):
        small = ["--small"] if given.small else []
        in_parallel(
            __file__, [[*small, "--one", arm, seed] for seed in given.seeds.split(",") for arm in given.arms.split(",")], given.at_once
        )
    collect(size, name)


if __name__ == "__main__":
    main()
