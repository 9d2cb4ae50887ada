"""Synthetic run folders: logs of a made-up training, with a tiny student that is real but untrained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

METRICS = [f"{direction}_recall@{k}" for direction in ("i2t", "t2i") for k in (1, 5, 10)]


def make_run(
    folder: Path,
    *,
    name: str = "clip",
    seed: int = 0,
    source: str = "photos",
    level: float = 0.2,
    guide: dict[str, Any] | None = None,
    student: Any = None,
    samples: int = 6400,
    summary: dict[str, Any] | None = None,
    recipe: dict[str, Any] | None = None,
) -> Path:
    """A finished run whose val recalls are `level` plus 0.01 for each metric in turn; `student` is saved as its model."""
    folder.mkdir(parents=True)
    terms = ["clip"] if guide is None else ["clip", "ping/nn", "ping/xnn"]
    content = {"name": name, "seed": seed, "data": {"source": source}, "guide": guide, "objective": dict.fromkeys(terms)}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**content, **(recipe or {})}))
    (folder / "environment.json").write_text(json.dumps({"packages": {"torch": "2.99.1"}, "commit": "abc123"}))
    final = {metric: level + 0.01 * i for i, metric in enumerate(METRICS)}
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(0, 101, 5):
            share = step / 100
            where = {"step": step, "epoch": step / 20, "samples_seen": step * samples // 100, "seconds": step * 0.6}
            values = {term: 5 - 2 * share - 0.1 * i for i, term in enumerate(terms)}
            gradient = {t: {"norm": 1.0} if t == "clip" else {"norm": 0.5, "cosine": 0.3 - share} for t in terms}
            train = {"kind": "train", **where, "loss": sum(values.values()), "terms": values, "gradient": gradient}
            file.write(json.dumps(train) + "\n")
            if step % 20 == 0:
                val = {metric: value * (0.1 + 0.9 * share) for metric, value in final.items()}
                file.write(json.dumps({"kind": "val", **where, "metrics": val}) + "\n")
    if student is not None:
        from clipling.models.hub import save_student

        save_student(student, folder / "model")
    content = {
        "name": name,
        "recipe": name,
        "seed": seed,
        "steps": 100,
        "samples_seen": samples,
        "seconds": 60.0,
        "best_step": 80,
        "val": final,
        "untrained": dict.fromkeys(METRICS, 0.01),
        "parameters": {"image": 1, "text": 1, "token_rows": 1, "total": 1_234_567, "total_without_token_rows": 345_678},
        "train_pairs": 640,
        "val_pairs": 400,
        "data": source,
    }
    (folder / "summary.json").write_text(json.dumps({**content, **(summary or {})}))
    return folder
