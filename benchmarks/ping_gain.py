"""What does neighbour guidance add to plain CLIP at the same number of samples seen? Flickr8k train to dev.

    python benchmarks/ping_gain.py --tune        settings, measured on 1,000 pairs of train that are not trained on
    python benchmarks/ping_gain.py               the arms on all of train, dev read once a run, at its end
    python benchmarks/ping_gain.py --arms clip,self --seeds 0,1

Every (arm, seed) is a run of its own: what is finished is not done again. Two runs go on at a time, with one thread each.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import FLICKR, RUNS, in_parallel, load, mean_and_spread, paired, save

import clipling
from clipling.assess import assess
from clipling.data.source import open_pairs
from clipling.guides.bank import bank_for
from clipling.models.hub import zoo_config
from clipling.store import read_json, write_json

TRAIN = str(FLICKR / "train-{00000..00005}.tar")
TUNE_TRAIN = str(FLICKR / "train-{00000..00004}.tar")
TUNE_VAL = str(FLICKR / "train-00005.tar")
DEV = str(FLICKR / "dev-00000.tar")
METRICS = [f"{way}_recall@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)]
BASELINES = ("clip", "random", "self")  # each arm is compared with those before it
LONGER = "@40"  # the same arm at 40 epochs, twice the samples: where guidance is worth most, as the tuning found
SEEDED = ("clip", "random", "self", "nn+xnn", "self+nn+xnn", "clip@40", "self@40", "self+nn+xnn@40")

# Common to all arms, tuned for `clip` (see results/ping_gain_tuning.json).
COMMON: dict[str, Any] = {
    "student.config": "mobilenetv3_small_64_text128",
    "stages.0.epochs": 20,
    "stages.0.learning_rate": 1e-3,
    "stages.0.warmup": 1,
    "optimiser.batch": 256,
    "optimiser.weight_decay": 0.2,
    "data.crop": [0.5, 1.0],
    "data.workers": 0,
    "evaluation.best": "last",
}
# Guidance, tuned for `self+nn+xnn` and used by every guided arm.
GUIDANCE: dict[str, Any] = {"guide.image_size": 160, "guide.k": 5, "guide.centre": True}
WEIGHT = 1.0


def weights(**parts: float) -> dict[str, Any]:
    return {"objective.ping.weight": {"self": 0.0, "nn": 0.0, "xnn": 0.0, **{k: v * WEIGHT for k, v in parts.items()}}}


def at_64_px(name: str) -> str:
    """A student of the zoo that sees the pixels that the other arms see: the path of its config."""
    path = RUNS / "ping_gain" / f"{name}_64.json"
    config = zoo_config(name)
    config["model_cfg"]["vision_cfg"]["image_size"] = config["preprocess_cfg"]["size"] = 64
    if not path.is_file():
        write_json(path, config)
    return str(path)


def arms() -> dict[str, tuple[str, dict[str, Any]]]:
    """Each arm: a recipe of the package and what it changes."""
    both = {"nn": 1.0, "xnn": 1.0}
    # A quarter of the samples of the other arms: a step of these towers costs six times as much, and they need fewer.
    pretrained = {"student.config": at_64_px("efficientnet_lite0_minilm"), "student.vocabulary": "full", "stages.0.epochs": 5}
    made = {
        "clip": ("clip", {}),
        "clip_pretrained": ("clip", {**pretrained, "student.init": {"image": "efficientnet_lite0", "text": "all-MiniLM-L6-v2"}}),
        "lit": ("lit", {"student.config": at_64_px("efficientnet_lite0_text128")}),
        "self": ("ping", {**GUIDANCE, **weights(self=1.0)}),
        "random": ("ping", {**GUIDANCE, **weights(**both), "guide.control": "random"}),
        "nn": ("ping", {**GUIDANCE, **weights(nn=1.0)}),
        "xnn": ("ping", {**GUIDANCE, **weights(xnn=1.0)}),
        "nn+xnn": ("ping", {**GUIDANCE, **weights(**both)}),
        "self+nn+xnn": ("ping", {**GUIDANCE, **weights(self=1.0, **both)}),
        "a_ping": ("a_ping", {**GUIDANCE, **weights(**both), "guide.views": 8}),
    }
    longer = {"stages.0.epochs": 40}
    return made | {arm + LONGER: (made[arm][0], {**made[arm][1], **longer}) for arm in ("clip", "self", "self+nn+xnn")}


def settings_of(arm: str) -> tuple[str, dict[str, Any]]:
    recipe, changes = arms()[arm]
    return recipe, {**COMMON, **changes}


TUNING: dict[str, tuple[str, dict[str, Any]]] = {
    "clip lr=1e-3": ("clip", {}),
    "clip lr=2e-3": ("clip", {"stages.0.learning_rate": 2e-3}),
    "clip lr=5e-4": ("clip", {"stages.0.learning_rate": 5e-4}),
    "clip crop=0.25": ("clip", {"data.crop": [0.25, 1.0]}),
    "clip decay=0.5": ("clip", {"optimiser.weight_decay": 0.5}),
    "mixture w=1": ("ping", {**GUIDANCE, "objective.ping.weight": {"self": 1.0, "nn": 1.0, "xnn": 1.0}}),
    "mixture w=3": ("ping", {**GUIDANCE, "objective.ping.weight": {"self": 3.0, "nn": 3.0, "xnn": 3.0}}),
    "mixture w=0.5": ("ping", {**GUIDANCE, "objective.ping.weight": {"self": 0.5, "nn": 0.5, "xnn": 0.5}}),
    "mixture no centre": ("ping", {**GUIDANCE, "guide.centre": False}),
    "mixture k=1": ("ping", {**GUIDANCE, "guide.k": 1}),
    "mixture mean caption": ("ping", {**GUIDANCE, "guide.caption": "mean"}),
    "1,500 pairs clip": ("clip", {"data.limit": 1500, "stages.0.epochs": 40}),
    "1,500 pairs mixture": ("ping", {**GUIDANCE, "data.limit": 1500, "stages.0.epochs": 40}),
    "40 epochs clip": ("clip", {"stages.0.epochs": 40}),
    "40 epochs mixture": ("ping", {**GUIDANCE, "stages.0.epochs": 40}),
    "mixture k=10": ("ping", {**GUIDANCE, "guide.k": 10}),
}


def folder_name(setting: str) -> str:
    return setting.replace(" ", "_").replace("=", "").replace(",", "")


def tune_one(name: str) -> None:
    """One setting: trained on five of the six files of train, measured on the sixth."""
    recipe, changes = TUNING[name]
    out = RUNS / "ping_gain_tuning" / folder_name(name)
    if recipe == "ping":  # the bank of all of train is joined by key: only its rows of the five files are used
        changes = {k: v for k, v in changes.items() if k != "guide.image_size"}
        changes["guide.bank"] = str(bank_for(open_pairs(TRAIN), image_size=GUIDANCE["guide.image_size"]))
    train(recipe, {**COMMON, **changes}, TUNE_TRAIN, TUNE_VAL, 0, out)


def collect_tuning() -> None:
    """Gathers the finished settings into benchmarks/results/ping_gain_tuning.json."""
    result = load("ping_gain_tuning")
    for name in TUNING:
        path = RUNS / "ping_gain_tuning" / folder_name(name) / "summary.json"
        if path.is_file():
            summary = read_json(path)
            values = {m: [round(100 * summary["val"][m], 3)] for m in METRICS}
            result["arms"][name] = {**values, "samples_seen": [summary["samples_seen"]], "seconds": [summary["seconds"]], "seed": [0]}
    save(result)
    show(result)


def run_one(arm: str, seed: int) -> None:
    """Trains one arm with one seed on all of train (a fixed 5 % is held out for the curve), then reads dev once."""
    recipe, settings = settings_of(arm)
    out = RUNS / "ping_gain" / arm.replace("+", "_") / f"seed-{seed}"
    train(recipe, settings, TRAIN, None, seed, out)
    if not (out / "dev.json").is_file():
        write_json(out / "dev.json", assess(str(out), DEV))


def train(recipe: str, settings: dict[str, Any], data: str, val: str | None, seed: int, out: Path) -> dict[str, Any]:
    pairs = tuple(f"{key}={as_yaml(value)}" for key, value in settings.items())
    return clipling.train(recipe, data=data, val=val, seed=seed, out=out, set=pairs, resume=True, threads=1, json=True)


def as_yaml(value: Any) -> str:
    import yaml

    return yaml.safe_dump(value, default_flow_style=True).replace("\n...", "").strip()


def collect() -> None:
    """Gathers the finished runs into benchmarks/results/ping_gain.json, beside runs of the same settings from another day."""
    result = load("ping_gain")
    before, settings = result["arms"], result.get("settings", {})
    result["arms"] = {}
    for arm in arms():
        found = sorted((RUNS / "ping_gain" / arm.replace("+", "_")).glob("seed-*/dev.json"))
        same = settings.get(arm) == as_json(without_paths(settings_of(arm)[1]))
        values = merged(before.get(arm) if same else None, gather(found))
        if values["seed"]:
            result["arms"][arm] = values
    result["paired"] = {}
    for arm, values in result["arms"].items():
        name, longer, _ = arm.partition(LONGER)
        for other in BASELINES[: BASELINES.index(name)] if name in BASELINES else BASELINES:
            if other + longer in result["arms"]:
                result["paired"][f"{arm} - {other}{longer}"] = differences(values, result["arms"][other + longer])
    result["budget"] = (
        "the same samples seen in every arm, but a quarter of them in clip_pretrained and twice as many in arms that end in @40"
    )
    result["settings"] = {arm: without_paths(settings_of(arm)[1]) for arm in arms()}
    print(save(result).name)
    show(result)


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def merged(old: dict[str, list] | None, new: dict[str, list]) -> dict[str, list]:
    """Values by seed: those of `new`, and of `old` where `new` has no such seed."""
    if old is None:
        return new
    kept = [n for n, seed in enumerate(old["seed"]) if seed not in new["seed"]]
    joined = {name: [old[name][n] for n in kept] + values for name, values in new.items()}
    order = sorted(range(len(joined["seed"])), key=joined["seed"].__getitem__)
    return {name: [values[n] for n in order] for name, values in joined.items()}


def without_paths(settings: dict[str, Any]) -> dict[str, Any]:
    return {k: Path(v).name if str(v).endswith(".json") else v for k, v in settings.items()}


def gather(found: list[Path]) -> dict[str, list[Any]]:
    values: dict[str, list[Any]] = {m: [] for m in METRICS}
    values |= {"seed": [], "samples_seen": [], "seconds": [], "parameters": []}
    for path in found:
        dev, summary = read_json(path), read_json(path.parent / "summary.json")
        for metric in METRICS:
            values[metric].append(round(100 * dev["metrics"][metric], 3))
        values["seed"].append(summary["seed"])
        values["samples_seen"].append(summary["samples_seen"])
        values["seconds"].append(summary["seconds"])
        values["parameters"].append(summary["parameters"]["total_without_token_rows"])
    return values


def differences(a: dict[str, list], b: dict[str, list]) -> dict[str, Any]:
    """Paired over the seeds that both arms have."""
    common = [s for s in a["seed"] if s in b["seed"]]
    pick = lambda arm, metric: [arm[metric][arm["seed"].index(s)] for s in common]  # noqa: E731
    return {m: paired(pick(a, m), pick(b, m)) for m in ("i2t_recall@1", "t2i_recall@1", "i2t_recall@10", "t2i_recall@10")}


def show(result: dict[str, Any]) -> None:
    for arm, values in result["arms"].items():
        cells = [f"{m.replace('_recall', '')} {mean_and_spread(values[m])[0]:5.1f}" for m in METRICS]
        print(f"{arm:16s} {'  '.join(cells)}  ({len(values['seed'])} seeds)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default=",".join(arms()))
    parser.add_argument("--seeds", default=None, help="default: 0,1,2 for the main arms, 0 for the others")
    parser.add_argument("--one", nargs=2, metavar=("ARM", "SEED"), help=argparse.SUPPRESS)
    parser.add_argument("--collect", action="store_true", help="only gather what is finished")
    parser.add_argument("--tune", nargs="*", metavar="NAME", help=f"settings to measure: {', '.join(TUNING)}")
    parser.add_argument("--at-once", type=int, default=2, help="runs that go on at a time, one thread each")
    parser.add_argument("--one-tune", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one_tune:
        tune_one(given.one_tune)
        return
    if given.tune is not None:
        in_parallel(__file__, [["--one-tune", name] for name in given.tune or TUNING], given.at_once)
        collect_tuning()
        return
    if given.one:
        run_one(given.one[0], int(given.one[1]))
        return
    if not given.collect:
        wanted = given.arms.split(",")
        seeds = {a: given.seeds.split(",") if given.seeds else ["0", "1", "2"] if a in SEEDED else ["0"] for a in wanted}
        jobs = [(seed, ["--one", arm, seed]) for arm in wanted for seed in seeds[arm]]
        in_parallel(__file__, [job for _, job in sorted(jobs, key=lambda j: j[0])], given.at_once)
    collect()


if __name__ == "__main__":
    main()
