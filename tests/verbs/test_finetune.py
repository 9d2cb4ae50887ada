"""`clipling finetune` from the command line: what is kept, what is measured, what is left alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from clipling import printing
from clipling.cli import main
from clipling.models.hub import open_student
from tests.toy import toy_folder
from tests.verbs.test_mistakes import call

SHARES = [n / 10 for n in range(11)]


def tune(model, pairs, val, out, *more, settings=()) -> list[str]:
    common = ["finetune", model, "--data", pairs, "--val", val, "--out", out, "--epochs", "2", "--batch", "16", "--threads", "1"]
    return [str(a) for a in [*common, *more, "--set", "data.workers=0", *settings]]


def state_of(model: Path | str) -> dict[str, torch.Tensor]:
    return open_student(model).model.state_dict()


def best_of(run: Path) -> dict[str, torch.Tensor]:
    return {k.removeprefix("model."): v for k, v in torch.load(run / "checkpoints" / "best.pt", weights_only=True).items()}


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> Path:
    return toy_folder(tmp_path_factory.mktemp("watched") / "else", count=16, seed=2)


@pytest.fixture(scope="module")
def tuned(teacher, pairs, val, watched, tmp_path_factory) -> tuple[Path, dict]:
    """(run, what --json printed)"""
    import contextlib
    import io

    run, said = tmp_path_factory.mktemp("tuned") / "run", io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(tune(teacher, pairs, val, run, "--watch", watched, "--lr", "1e-3", "--json")) == 0
    return run, json.loads(said.getvalue())


def test_the_summary_tells_what_every_share_gives(tuned):
    run, said = tuned
    assert said.pop("model") == str(run / "model")
    assert said == json.loads((run / "summary.json").read_text())
    found = said["interpolation"]
    assert [row["share"] for row in found["rows"]] == SHARES
    kept = next(row for row in found["rows"] if row["share"] == found["share"])
    assert {name: kept[name] for name in said["val"]} == said["val"]
    assert {name for name in kept if name.startswith("watch/")} == {
        f"watch/else/{w}_recall@{k}" for w in ("i2t", "t2i") for k in (1, 5, 10)
    }
    start = {name: value for name, value in found["rows"][0].items() if name in said["untrained"]}
    assert start == pytest.approx(said["untrained"])


def test_what_is_watched_is_measured_at_every_evaluation(tuned):
    events = [json.loads(line) for line in (tuned[0] / "metrics.jsonl").read_text().splitlines()]
    evaluations = [event for event in events if event["kind"] == "val"]
    assert len(evaluations) == 4  # of the start, then after every second of six steps: half an epoch
    assert all("watch/else/t2i_recall@1" in event["metrics"] for event in evaluations)


def test_the_model_lies_between_start_and_best_weights(tuned, teacher):
    run, said = tuned
    start, best, kept, share = state_of(teacher), best_of(run), state_of(run), said["interpolation"]["share"]
    assert any(not torch.equal(best[name], start[name]) for name in start)
    for name, value in kept.items():
        assert torch.allclose(value, start[name] + share * (best[name] - start[name]), atol=1e-6), name


def test_no_wise_keeps_the_tuned_weights_and_freezing_the_start_s(teacher, pairs, val, tmp_path, capsys):
    before = {p: p.read_bytes() for p in Path(teacher).iterdir()}
    code, out, _ = call(capsys, *tune(teacher, pairs, val, tmp_path / "run", "--no-wise", "--freeze", "image", "--layer-decay", "1"))
    assert code == 0
    assert {p: p.read_bytes() for p in Path(teacher).iterdir()} == before
    assert "share of new weights" not in out
    assert "interpolation" not in json.loads((tmp_path / "run" / "summary.json").read_text())
    kept, best, start = state_of(tmp_path / "run"), best_of(tmp_path / "run"), state_of(teacher)
    assert all(torch.equal(value, best[name]) for name, value in kept.items())
    visual = [name for name in kept if name.startswith("visual.") and name != "visual.proj"]
    assert all(torch.equal(kept[name], start[name]) for name in visual)
    assert not torch.equal(kept["text.transformer.resblocks.0.mlp.c_fc.weight"], start["text.transformer.resblocks.0.mlp.c_fc.weight"])
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert recipe["optimiser"]["layer_decay"] == 1
    assert recipe["evaluation"]["interpolate"] == []


def test_a_run_goes_on_and_stops_early(tuned, teacher, pairs, val, watched, tmp_path, capsys):
    run = tuned[0]
    weights = (run / "model" / "open_clip_model.safetensors").read_bytes()
    code, out, _ = call(capsys, *tune(teacher, pairs, val, run, "--watch", watched, "--lr", "1e-3", "--resume"))
    assert code == 0
    assert (run / "model" / "open_clip_model.safetensors").read_bytes() == weights
    for said in (
        " start ",
        "share of new weights",
        "<- kept",
        "watch/else/i2t_recall@10",
        "Best on val at share",
        f"clipling eval {run} ",
    ):
        assert said in out
    code, out, _ = call(capsys, *tune(teacher, pairs, val, tmp_path / "run", "--lr", "1e-9", "--patience", "1", "--epochs", "9"))
    assert code == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["stopped_early"]
    assert summary["steps"] < 27
    assert "stopped early" in out


def test_a_start_of_another_shape_keeps_its_own(other_teacher, pairs, val, tmp_path):
    assert main(tune(other_teacher, pairs, val, tmp_path / "run", "--smoke")) == 0
    student = open_student(tmp_path / "run")
    assert (student.embed_dim, student.context_length, student.image_size) == (48, 24, 48)


RESULT = {
    **{"name": "finetune", "seed": 0, "train_pairs": 900, "val_pairs": 100, "samples_seen": 1000, "seconds": 1.0, "best_step": 7},
    "parameters": {"total_without_token_rows": 1e6},
    "val": {"i2t_recall@1": 0.5},
    "untrained": {"i2t_recall@1": 0.4},
    "model": "runs/finetune/model",
}


@pytest.mark.parametrize(("share", "unchanged"), [(0.0, True), (0.5, False)])
def test_it_is_said_when_nothing_of_the_tuning_was_kept(share, unchanged):
    rows = [{"share": s, "score": 0.4, "watch/x/acc1": 0.25} for s in (0.0, 0.5, 1.0)]
    said = printing.text("finetune", {**RESULT, "interpolation": {"share": share, "reason": "because", "rows": rows}})
    assert ("The model is the start, unchanged" in said) == unchanged
    assert said.index("Because") < said.index("model: runs/finetune/model")
    marked = [line for line in said.splitlines() if "<- kept" in line]
    assert len(marked) == 1
    assert marked[0].startswith(f"{share:g} ")
    assert "25.0" in marked[0]
