"""What `clipling demo` does, step by step, with what a stranger should know at each."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from clipling.assess import assess
from clipling.data.emoji import LICENCES
from clipling.data.inspect import inspect
from clipling.data.source import open_pairs
from clipling.errors import UserError
from clipling.evals.compare import compare
from clipling.evals.suite.levels import level
from clipling.guides.progress import duration
from clipling.printing import in_order, percent, table
from clipling.recipe import load_recipe, with_settings
from clipling.run import train
from clipling.store import atomic_write, read_json, write_json

SOURCE = "demo:emoji"
TEST = "demo:emoji/test"
# Drawings of one concept are right answers to each other's names, so they are positives of each other.
COMMON = {
    "data.source": SOURCE,
    "objective.clip.options": {"same": "positive"},
    "student.config": "mobilenetv3_small_64_text128",
    "data.workers": 1,
    "data.crop": [0.6, 1.0],
    "optimiser.batch": 256,
    "evaluation.every": 2,
}


def walk(out: Path, *, epochs: float, seed: int, resume: bool, overwrite: bool, quiet: bool) -> dict[str, Any]:
    """Both runs, their test figures and the report. Finished parts are kept with `resume`."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out expects a folder")
    began = time.monotonic()
    say = _silent if quiet else _say
    pairs = open_pairs(SOURCE)
    info = inspect(pairs)
    say(
        "1/4  pairs",
        f"{info['pairs']:,} pictures of emoji with {info['captions']:,} names: two drawings of each concept (twemoji, OpenMoji). "
        "A tenth is for validation, a tenth is kept for the test at the end.",
    )
    runs = []
    for number, name in ((2, "clip"), (3, "ping")):
        kept = resume and (out / name / "summary.json").is_file()
        say(f"{number}/4  {name}", WHAT[name] + (" It is finished and kept." if kept else ""))
        own = {"guide.image_size": 128} if name == "ping" else {}  # drawings of 72 px: more pixels show no more
        recipe = with_settings(load_recipe(name), {**COMMON, **own, "stages.0.epochs": epochs, "seed": seed})
        train(recipe, out / name, resume=resume, overwrite=overwrite, quiet=quiet)
        runs.append(out / name)
    say("4/4  test", "on drawings of concepts that neither student has seen.")
    measured = {run.name: measure(run, resume) for run in runs}
    levels = guessing(runs[0])
    made = compare(runs, out / "report.html", test=open_pairs(TEST), credits=LICENCES)
    atomic_write(out / "LICENCES.txt", LICENCES)
    spent = time.monotonic() - began
    result = {"runs": [str(r) for r in runs], "test": measured, "report": str(out / "report.html"), "seconds": round(spent, 1)}
    return {**result, "chance": levels, "verdict": made["verdict"], "text": closing(result, made["verdict"], levels, spent)}


WHAT = {
    "clip": "a small student trained with the contrastive loss alone: what guidance has to beat.",
    "ping": "the same student on the same budget, guided by two frozen encoders and each pair's nearest neighbours.",
}


def measure(run: Path, resume: bool) -> dict[str, float]:
    """Retrieval and zero-shot on the test split, read once a run; kept in the run's `eval/` folder."""
    metrics: dict[str, float] = {}
    for task, source in (("retrieval", TEST), ("zeroshot", TEST)):
        path = run / "eval" / f"emoji_test_{task}.json"
        if not (resume and path.is_file()):
            write_json(path, assess(str(run), source, task))
        metrics |= read_json(path)["metrics"]
    return {k: v for k, v in metrics.items() if "retrieval_recall" not in k}


def guessing(run: Path) -> dict[str, float]:
    """What guessing reaches in each figure of the test split."""
    found = {}
    for task, of in (("retrieval", "zeroshot_retrieval"), ("zeroshot", "zeroshot_classification")):
        read = read_json(run / "eval" / f"emoji_test_{task}.json")
        found |= {name: value for name in read["metrics"] if (value := level(of, name, read["size"])) is not None}
    return found


def closing(result: dict[str, Any], verdict: str, levels: dict[str, float], seconds: float) -> str:
    """What was made, how good it is, and what to do next with one's own data."""
    test = result["test"]
    rows = [
        [name, percent(levels[name]) if name in levels else "", *(percent(test[arm][name]) for arm in test)]
        for name in in_order(test["ping"])
    ]
    run = result["runs"][1]
    return "\n".join(
        [
            "",
            table(["test split, %", "chance", *test], rows),
            "",
            verdict,
            "",
            f"Made in {duration(seconds)}:",
            f"  {result['report']}    open it in a browser",
            f"  {run}/model    the guided student; opens in stock open_clip too",
            f"  {result['runs'][0]}, {run}    both run folders: settings, metrics, checkpoints",
            f"  {Path(result['report']).parent / 'LICENCES.txt'}    who drew the pictures (CC-BY 4.0, CC-BY-SA 4.0)",
            "",
            "Next, with your own captioned pictures (a folder with .txt beside the images, .csv, .jsonl or .tar):",
            "  clipling data inspect YOUR_FOLDER",
            "  clipling train clip --data YOUR_FOLDER --out runs/clip",
            "  clipling train ping --data YOUR_FOLDER --out runs/ping",
            "  clipling compare runs/clip runs/ping --out report.html",
        ]
    )


def _say(head: str, text: str) -> None:
    print(f"\n{head}: {text}", file=sys.stderr, flush=True)


def _silent(head: str, text: str) -> None: ...
