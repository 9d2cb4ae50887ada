"""`clipling compress` from the command line: stages, table, resuming, and what is left on the disk."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import yaml

from clipling.cli import main
from clipling.data.source import open_pairs
from clipling.engine import checkpoint, trainer
from clipling.evals.evaluators import Retrieval
from clipling.models.hub import open_student
from clipling.models.licences import licences_of
from tests.verbs.test_mistakes import call

RECALLS = [f"{way}_recall@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)]
WEIGHTS = "model/open_clip_model.safetensors"


def flags(pairs, val, out, *more) -> list[str]:
    common = ["--data", pairs, "--val", val, "--out", out, "--batch", "16", "--threads", "1", *more]
    return [str(a) for a in [*common, "--set", "data.workers=0"]]


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def two_stages(teacher, pairs, val, out, *more) -> list[str]:
    return ["compress", teacher, "--to", "50%", "--stages", "2", *flags(pairs, val, out, "--epochs", "2", *more)]


def by_masks(teacher, pairs, val, out, *more) -> list[str]:
    return ["compress", teacher, "--to", "50%", "--method", "auto", *flags(pairs, val, out, "--epochs", "4", *more)]


@pytest.fixture(scope="module")
def manual(teacher, pairs, val, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("manual") / "out"
    assert main(two_stages(teacher, pairs, val, out, "--json")) == 0
    return out


@pytest.fixture(scope="module")
def auto(teacher, pairs, val, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("auto") / "out"
    assert main(by_masks(teacher, pairs, val, out)) == 0
    return out


def check_table(out: Path, teacher: str, val: Path) -> dict:
    """Every number of the table against the models as they lie on the disk."""
    found = json.loads((out / "table.json").read_text())
    evaluator = Retrieval(open_pairs(str(val)))
    names = ["teacher", *sorted(p.name for p in out.glob("stage-*"))]
    assert [row["name"] for row in found["rows"]] == names
    means = []
    for row in found["rows"]:
        student = open_student(teacher if row["name"] == "teacher" else out / row["name"])
        assert row["parameters"] == sum(p.numel() for p in student.parameters()) - student.model.text.token_embedding.weight.numel()
        assert row["parameters_with_token_rows"] == sum(p.numel() for p in student.parameters())
        measured = dict(evaluator(student))
        assert {name: row[name] for name in RECALLS} == pytest.approx({name: measured[name] for name in RECALLS})
        means.append(np.mean([measured[name] for name in RECALLS]))
        assert row["relative_recall"] == pytest.approx(means[-1] / means[0])
        assert row["image_ms"] > 0
        assert row["text_ms"] > 0
        assert abs(row["parameters"] / row["asked"] - 1) < 0.12
    assert found["val_pairs"] == 20
    assert found["teacher"] == teacher
    assert found["model"] == str(out / "model")
    sizes = [row["parameters"] for row in found["rows"]]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)
    return found


def test_the_table_of_two_stages(manual, teacher, val):
    found = check_table(manual, teacher, val)
    whole = found["rows"][0]["parameters"]
    assert [row["asked"] for row in found["rows"]] == pytest.approx([whole, 0.75 * whole, 0.5 * whole], abs=1)


def test_every_stage_is_taught_by_the_original_teacher(manual, teacher):
    recipes = [yaml.safe_load((manual / f"stage-{n}" / "recipe.yaml").read_text()) for n in (1, 2)]
    assert [r["teachers"]["teacher"]["model"] for r in recipes] == [teacher, teacher]
    assert [r["student"]["inherit"]["source"] for r in recipes] == ["teacher", str(manual / "stage-1")]


def test_the_last_student_is_put_where_stock_open_clip_opens_it(manual):
    assert (manual / WEIGHTS).read_bytes() == (manual / "stage-2" / WEIGHTS).read_bytes()
    student, pictures = open_student(manual), torch.randn(2, 3, 32, 32)
    stock, _, _ = open_clip.create_model_and_transforms(f"local-dir:{manual / 'model'}")
    with torch.no_grad():
        assert torch.allclose(stock.eval().encode_image(pictures, normalize=True), student.encode_image(pictures), atol=1e-5)
    assert "at the start" in (manual / "model" / "README.md").read_text()


def test_a_finished_compression_is_returned_as_it_is(manual, teacher, pairs, val, capsys):
    before = files(manual)
    code, out, _ = call(capsys, *two_stages(teacher, pairs, val, manual, "--resume", "--json"))
    assert code == 0
    assert json.loads(out) == json.loads((manual / "table.json").read_text())
    assert files(manual) == before


def test_a_compression_is_printed_for_people(manual, teacher, pairs, val, capsys):
    code, out, _ = call(capsys, *two_stages(teacher, pairs, val, manual, "--resume"))
    assert code == 0
    rows = json.loads((manual / "table.json").read_text())["rows"]
    line = next(line for line in out.splitlines() if line.startswith("stage-2"))
    assert f"{rows[2]['parameters'] / 1e6:.2f} M" in line
    assert f"{100 * rows[2]['relative_recall']:.0f} %" in line
    assert "With 20 pairs, chance alone" in out
    assert f"clipling eval {manual} --data" in out


def test_masks_leave_an_irregular_student_of_about_the_size(auto, teacher, val):
    check_table(auto, teacher, val)
    assert (auto / "model" / "clipling_config.json").is_file()
    student = open_student(auto)
    assert student.config["pruned"]
    assert student.sizes()["total_without_token_rows"] == pytest.approx(
        0.5 * open_student(teacher).sizes()["total_without_token_rows"], rel=0.05
    )


@pytest.mark.parametrize("verb", ["finetune", "distill"])
def test_an_irregular_student_can_be_gone_on_with(auto, verb, pairs, val, tmp_path):
    more = ["--captions", "ignore"] if verb == "distill" else []
    assert main([verb, str(auto), *flags(pairs, val, tmp_path / "run", "--smoke", *more)]) == 0
    text = open_student(auto).model.text.state_dict()
    if verb == "distill":
        kept = open_student(tmp_path / "run").model.text.state_dict()
        assert all(torch.equal(value, kept[name]) for name, value in text.items())
    else:
        assert open_student(tmp_path / "run").config["pruned"] == open_student(auto).config["pruned"]


def killed(arguments: list[str], folder: Path, step: int, monkeypatch) -> None:
    """Runs the command in a child that is killed -9 while its run in `folder` saves the checkpoint of a step."""
    whole = checkpoint.save

    def save(place, at, state):
        whole(place, at, state)
        if place.parent == folder and at >= step:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(checkpoint, "save", save)
        monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
        main(arguments)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status)
    assert not (folder / "summary.json").exists()


def metrics(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.mark.faults
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_a_kill_inside_the_second_stage_changes_nothing(manual, teacher, pairs, val, tmp_path, monkeypatch):
    out = tmp_path / "out"
    killed(two_stages(teacher, pairs, val, out), out / "stage-2", 4, monkeypatch)
    assert (out / "stage-1" / "summary.json").is_file()
    first = files(out / "stage-1")
    assert main(two_stages(teacher, pairs, val, out, "--resume")) == 0
    assert files(out / "stage-1") == first
    assert (out / WEIGHTS).read_bytes() == (manual / WEIGHTS).read_bytes()
    assert metrics(out / "stage-2") == metrics(manual / "stage-2")


@pytest.mark.faults
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
@pytest.mark.parametrize("step", [3, 8])  # while masks are learned; after the surgery of step 6
def test_a_kill_of_an_automatic_compression_changes_nothing(auto, step, teacher, pairs, val, tmp_path, monkeypatch):
    out = tmp_path / "out"
    killed(by_masks(teacher, pairs, val, out), out / "stage-1", step, monkeypatch)
    assert main(by_masks(teacher, pairs, val, out, "--resume")) == 0
    assert (out / WEIGHTS).read_bytes() == (auto / WEIGHTS).read_bytes()
    assert metrics(out / "stage-1") == metrics(auto / "stage-1")


def test_the_teacher_is_left_as_it_was(teacher, pairs, val, tmp_path):
    before = files(Path(teacher))
    assert main(["compress", teacher, "--to", "300k", *flags(pairs, val, tmp_path / "out", "--epochs", "1", "--width", "first_order")]) == 0
    assert files(Path(teacher)) == before
    rows = json.loads((tmp_path / "out" / "table.json").read_text())["rows"]
    assert rows[1]["asked"] == 300_000
    assert abs(rows[1]["parameters"] - 300_000) < 30_000
    assert yaml.safe_load((tmp_path / "out" / "stage-1" / "recipe.yaml").read_text())["student"]["inherit"]["width"] == "first_order"


def test_a_teacher_of_another_shape_works(other_teacher, pairs, val, tmp_path):
    assert main(["compress", other_teacher, "--to", "60%", *flags(pairs, val, tmp_path / "out", "--epochs", "1")]) == 0
    student = open_student(tmp_path / "out")
    assert (student.embed_dim, student.context_length, student.image_size) == (48, 24, 48)


def test_licences_travel_with_a_compression(manual, teacher):
    """From the run to the table, and from there to whatever starts from the folder."""
    table = json.loads((manual / "table.json").read_text())
    assert table["licences"] == json.loads((manual / "stage-2" / "summary.json").read_text())["licences"]
    assert Path(teacher).name in table["licences"]
    for place in (manual, manual / "model"):
        assert {name: licence.text for name, licence in licences_of(str(place)).items()} == table["licences"]
