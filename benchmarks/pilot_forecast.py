"""Does the pilot's forecast hold? Pilots on at most 30 % of Flickr8k train, then the full run, for three recipes.

    python benchmarks/pilot_forecast.py [--small]

A hit: the recall@10 on dev (mean of both directions) that the full run reaches lies within the 90 % interval that `clipling plan --pilot`
stated. Pilots and full runs are measured once, at their end. Each (arm, seed) is made once; two go on at a time, one thread each.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import FLICKR, RESULTS, RUNS, in_parallel, load, merged, save
from ping_gain import COMMON, GUIDANCE, at_64_px

from clipling.models.hub import open_student
from clipling.planning.forecast import Rung, forecast
from clipling.planning.pilot import METRICS, measured, run_pilot
from clipling.recipe import Recipe, load_recipe, with_settings
from clipling.run import open_data, threads, train
from clipling.store import read_json, write_json

TRAIN, DEV = str(FLICKR / "train-{00000..00005}.tar"), str(FLICKR / "dev-00000.tar")
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("clip", {}),
    "ping": ("ping", GUIDANCE),
    "lit": ("lit", {"student.config": "", "stages.0.epochs": 8.0}),  # at_64_px, when it is asked for; it has learned by then
}
NO_CLOCK = 1e9  # seconds: the ladder is bounded by the share of the pairs, not by time
SMALL = {"data.source": str(FLICKR / "train-00000.tar"), "student.config": "tiny_vit_32", "optimiser.batch": 32, "stages.0.epochs": 3}


def recipe_of(arm: str, seed: int, small: bool) -> Recipe:
    name, changes = ARMS[arm]
    changes = {**changes, "student.config": at_64_px("efficientnet_lite0_text128")} if arm == "lit" else changes
    settings = {**COMMON, **changes, "data.source": TRAIN, "data.val": DEV, "seed": seed, "evaluation.every": 1e6}
    return with_settings(load_recipe(name), {**settings, **(SMALL if small else {})})


def folder(arm: str, seed: int, small: bool) -> Path:
    return RUNS / ("pilot_forecast_small" if small else "pilot_forecast") / f"{arm}-{seed}"


def one(arm: str, seed: int, small: bool) -> None:
    """Pilots first, then the run that they forecast."""
    threads(1)
    recipe, out = recipe_of(arm, seed, small), folder(arm, seed, small)
    pilot = run_pilot(recipe, out / "pilot", NO_CLOCK)
    summary = train(recipe, out / "full", resume=(out / "full").exists(), quiet=True)
    reached = float(measured(open_student(out / "full" / "model"), open_data(recipe.data).val)[0])
    stated = pilot["forecasts"][0]
    write_json(
        out / "outcome.json",
        {
            "seed": seed,
            "forecast": 100 * stated["recall"],
            "low": 100 * stated["low"],
            "high": 100 * stated["high"],
            "reached": 100 * reached,
            "hit": int(stated["low"] <= reached <= stated["high"]),
            "largest_pilot": 100 * pilot["pilots"][-1]["recall"],
            "share_of_pairs": 100 * max(p["pairs"] for p in pilot["pilots"]) / summary["train_pairs"],
            "pilot_samples": sum(p["samples_seen"] for p in pilot["pilots"]),
            "samples_seen": summary["samples_seen"],
        },
    )


def again(arm: str, seed: int, small: bool) -> None:
    """The forecast anew, by today's method, of pilots and a full run that are there."""
    out = folder(arm, seed, small)
    made, outcome = read_json(out / "pilot" / "pilot.json"), read_json(out / "outcome.json")
    val = open_data(recipe_of(arm, seed, small).data).val
    rungs = [
        Rung(one["pairs"], one["samples_seen"], measured(open_student(out / "pilot" / one["name"] / "model"), val))
        for one in made["pilots"]
    ]
    whole = made["forecasts"][0]
    stated = forecast(rungs, whole["pairs"], whole["pairs"] * whole["epochs"], made["chance"]).described()
    outcome |= {key: 100 * stated[name] for key, name in (("forecast", "recall"), ("low", "low"), ("high", "high"))}
    outcome["hit"] = int(outcome["low"] <= outcome["reached"] <= outcome["high"])
    write_json(out / "outcome.json", outcome)


def collect(small: bool) -> dict[str, Any]:
    """What is finished, into benchmarks/results/pilot_forecast.json."""
    result = load("pilot_forecast")
    found: dict[str, dict[str, list[Any]]] = {}
    for arm in ARMS:
        for path in sorted(folder(arm, 0, small).parent.glob(f"{arm}-*/outcome.json")):
            for key, value in read_json(path).items():
                found.setdefault(arm, {}).setdefault(key, []).append(value)
    result["arms"] = merged(result["arms"], found)
    hits = [hit for values in result["arms"].values() for hit in values["hit"]]
    if hits:
        share = sum(hits) / len(hits)
        result["ratios"] = {"hits": {"value": share, "low": share, "high": share, "samples": 1}}
    return result


def draw(small: bool, path: Path) -> None:
    """Pilots, forecast and outcome, a panel an arm."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    done = [arm for arm in ARMS if (folder(arm, 0, small) / "outcome.json").is_file()]
    figure, axes = plt.subplots(1, max(1, len(done)), figsize=(4 * max(1, len(done)), 3.4), squeeze=False)
    for axis, arm in zip(axes[0], done):
        out, outcome = folder(arm, 0, small), read_json(folder(arm, 0, small) / "outcome.json")
        pilots = read_json(out / "pilot" / "pilot.json")["pilots"]
        axis.errorbar(
            [p["samples_seen"] for p in pilots],
            [100 * p["recall"] for p in pilots],
            yerr=[[100 * (p["recall"] - p["low"]) for p in pilots], [100 * (p["high"] - p["recall"]) for p in pilots]],
            fmt="o",
            label="pilots (90 %)",
        )
        at = outcome["samples_seen"]
        off = [[max(0.0, outcome["forecast"] - outcome["low"])], [max(0.0, outcome["high"] - outcome["forecast"])]]
        axis.errorbar([at], [outcome["forecast"]], yerr=off, fmt="s", capsize=4, label="forecast (90 %)")
        axis.plot([at], [outcome["reached"]], "k*", markersize=11, label="reached")
        axis.set(title=arm, xlabel="samples seen", ylabel="recall@10 on dev, %", xscale="log")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, metavar=("ARM", "SEED"), help=argparse.SUPPRESS)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="make the forecasts anew of the pilots that are there")
    parser.add_argument("--collect", action="store_true", help="only gather what is finished")
    parser.add_argument("--small", action="store_true", help="to try it: one tar, a tiny student, the arm clip; nothing saved")
    given = parser.parse_args()
    if given.one:
        one(given.one[0], int(given.one[1]), given.small)
        return
    arms = ["clip"] if given.small else given.arms.split(",")
    if given.again:
        for path in sorted(folder("clip", 0, given.small).parent.glob("*/outcome.json")):
            arm, _, seed = path.parent.name.partition("-")
            again(arm, int(seed), given.small)
        given.collect = True
    if not given.collect:
        if "ping" in arms:
            from clipling.data.source import open_pairs
            from clipling.guides.bank import bank_for

            bank_for(open_pairs(TRAIN), image_size=GUIDANCE["guide.image_size"])  # once, before two runs want it
        small = ["--small"] if given.small else []
        jobs = [["--one", arm, seed, *small] for seed in given.seeds.split(",") for arm in arms]
        in_parallel(__file__, jobs, given.at_once)
    result = collect(given.small)
    for arm, values in result["arms"].items():
        print(arm, {key: [round(v, 2) for v in column] for key, column in values.items()}, f"({' and '.join(METRICS)})")
    if not given.small:
        draw(given.small, RESULTS / "pilot_forecast.png")
        save(result)


if __name__ == "__main__":
    main()
