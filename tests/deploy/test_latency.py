"""`clipling latency`: the shape of what it says, and that arms are processes of their own."""

from __future__ import annotations

import json

import numpy as np
import pytest

from clipling import printing
from clipling.deploy import latency as timing
from clipling.deploy.precisions import add_precisions
from clipling.deploy.samples import take
from clipling.errors import UserError
from clipling.runtime.manifest import read_manifest
from clipling.verbs.latency import latency
from tests.deploy import handmade


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = handmade.folder(tmp_path_factory.mktemp("latency") / "mine", handmade.matrix_products)
    add_precisions(made, ("int8",), take(read_manifest(made).image))
    return made


def test_rows_of_a_folder(folder, tmp_path):
    found = latency((str(folder),), batch="1,4", rounds=3, out=tmp_path / "latency.json")
    rows = found["rows"]
    assert {(r["precision"], r["side"], r["batch"]) for r in rows} == {
        (p, s, b) for p in ("fp32", "int8") for s in ("image", "text") for b in (1, 4)
    }
    for row in rows:
        assert 0 < row["least_ms"] <= row["p50_ms"] <= row["p95_ms"]
        assert row["per_s"] == pytest.approx(1000 * row["batch"] / row["p50_ms"])
        assert row["p50_ms"] == pytest.approx(float(np.median(row["times_ms"])))
        assert len(row["times_ms"]) == 3
        assert 20 < row["peak_mb"] < 2000
        assert row["threads"] == 1
    sizes = {(r["precision"], r["side"]): r["file_mb"] for r in rows}
    assert sizes["fp32", "text"] == (folder / "text.onnx").stat().st_size / 1e6
    assert sizes["int8", "text"] < 0.4 * sizes["fp32", "text"]
    by_hand = 2 * (48 * (64 * 48 + 48 * 48 + 48 * 48) + 48 * 24) / 1e9
    assert next(r["gflops"] for r in rows if r["side"] == "image") == pytest.approx(by_hand)
    assert "VNNI" in found["machine"]["processor"]
    assert json.loads((tmp_path / "latency.json").read_text())["rows"] == rows
    shown = printing.text("latency", found)
    assert "p95 ms" in shown
    assert shown.count("int8") >= 4


def test_what_is_said_of_int8_is_what_the_table_shows():
    def row(precision, side, per_s, batch=1):
        return {"model": "m", "backend": "onnx", "precision": precision, "side": side, "threads": 1, "batch": batch, "per_s": per_s}

    rows = [row("fp32", "image", 100), row("int8", "image", 80), row("fp32", "image", 10, 16), row("int8", "image", 25, 16)]
    said = "\n".join(timing.notes("a processor", rows))
    assert "image 0.80 to 2.50 times" in said
    assert "text" not in said.partition("int8 over fp32")[2].partition("times")[0].replace("texts", "")
    assert "fp16" not in said
    assert "int8" not in "\n".join(timing.notes("a processor", rows[:1]))


def test_a_mistake_in_a_worker_has_no_name_of_a_class(folder):
    with pytest.raises(UserError) as told:
        latency([str(folder / "nowhere")])
    assert "UserError" not in str(told.value)


def test_arms_take_turns(folder, monkeypatch):
    asked: list[str] = []
    ask = timing.Worker.ask
    monkeypatch.setattr(timing.Worker, "ask", lambda self, r: asked.append(self.arm.precision + r["do"]) or ask(self, r))
    timing.latency([str(folder)], batches=(1,), rounds=2)
    runs = [name for name in asked if name.endswith("run")]
    assert runs == ["fp32run", "int8run"] * (len(runs) // 2)


def test_mistakes_are_named(folder, tmp_path):
    for arguments, message in (
        ({}, "needs a model"),
        ({"models": (str(folder),), "threads": "one"}, "--threads is 'one'"),
        ({"models": (str(folder),), "batch": "0"}, "--batch is"),
        ({"models": (str(tmp_path / "nothing"),), "rounds": 1}, "cannot be timed"),
    ):
        with pytest.raises(UserError, match=message):
            latency(arguments.pop("models", ()), **arguments)
    with pytest.raises(UserError, match="no architecture is called"):
        latency((), reference="ViT-B-33")


def test_a_worker_that_dies_is_told(folder):
    arm = timing.arms_of(str(folder))[0]
    with timing.Worker(arm, 1) as worker:
        worker.process.kill()
        worker.process.wait()
        with pytest.raises(UserError, match="ended with code"):
            worker.ask({"do": "memory"})


def test_two_folders_of_one_name_are_told_apart(folder, tmp_path):
    """Each has its own arithmetic and its own rows."""
    other = handmade.folder(tmp_path / "elsewhere" / folder.name, handmade.convolutional)
    found = latency((str(folder), str(other)), batch="1", rounds=1)
    names = {row["model"] for row in found["rows"]}
    assert len(names) == 2
    for path in (folder, other):
        label = next(name for name in names if name.startswith(path.parent.name))
        assert {row["gflops"] for row in found["rows"] if row["model"] == label and row["side"] == "image"} == {
            timing.gflops(str(path))["image"]
        }
    with pytest.raises(UserError, match="one model twice"):
        latency((str(folder), str(folder)))


def test_a_folder_without_fp32_has_nothing_to_be_compared_with(tmp_path):
    made = handmade.folder(tmp_path / "mine", handmade.convolutional)
    content = json.loads((made / "clipling.json").read_text())
    content["image"]["files"] = {"int8": "image.onnx"}
    (made / "clipling.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="no fp32 graphs of both towers"):
        latency((str(made),))
