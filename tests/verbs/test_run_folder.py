"""The run folder: nothing is lost unasked, nothing foreign is touched, and a run goes on with its own pairs only."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clipling import runfolder
from clipling.errors import UserError
from clipling.recipe import Data, load_recipe
from clipling.run import check_batch, open_data
from clipling.runfolder import locked, run_folder
from clipling.store import atomic_write, disk_error
from tests.data.making import put, tar
from tests.toy import toy_folder
from tests.verbs.test_mistakes import SET, SMALL, call, refused, table


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    return toy_folder(tmp_path_factory.mktemp("toy") / "pairs", count=48)


@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory) -> tuple[Path, Path]:
    """(pairs, run): one finished run, to be copied."""
    from clipling.cli import main

    base = tmp_path_factory.mktemp("trained")
    shutil.copytree(toy, base / "pairs")
    arguments = ["train", "clip", "--data", str(base / "pairs"), "--out", str(base / "run"), *SMALL, *SET]
    assert main(arguments) == 0
    return base / "pairs", base / "run"


def run_of(trained: tuple[Path, Path], tmp_path: Path, finished: bool = False) -> Path:
    shutil.copytree(trained[1], tmp_path / "run")
    if not finished:
        (tmp_path / "run" / "summary.json").unlink()
    return tmp_path / "run"


def command(data: Path, run: Path, *more: str) -> list:
    return ["train", "clip", "--data", data, "--out", run, *SMALL, *more, *SET]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def test_a_run_goes_on_with_its_own_pairs_only(trained, tmp_path, capsys):
    data = tmp_path / "pairs"
    run = run_of(trained, tmp_path)
    recipe = (run / "recipe.yaml").read_text()
    shutil.copytree(trained[0], data)
    (run / "recipe.yaml").write_text(recipe.replace(str(trained[0]), str(data)))
    assert {"train", "val"} == json.loads((run / "inputs.json").read_text()).keys()
    assert call(capsys, *command(data, run, "--resume"))[0] == 0  # a copy of the same pairs
    (run / "summary.json").unlink()
    put(run / "checkpoints" / ".step-1.pt.ab.tmp", b"half")
    before = files(run)
    put(data / "0003.txt", "other words")
    message = refused(capsys, *command(data, run, "--resume"))
    assert "the pairs differ from those that began the run" in message
    assert "the keys are the same" in message
    (data / "0003.png").unlink()
    (data / "0003.txt").unlink()
    assert "the keys are the same" not in refused(capsys, *command(data, run, "--resume"))
    assert files(run) == before


def test_leftovers_of_a_kill_are_removed_on_resume(trained, tmp_path, capsys):
    run = run_of(trained, tmp_path)
    left = [put(run / folder / f".{name}.0a.tmp", b"half") for folder, name in (("checkpoints", "best.pt"), ("model", "x.safetensors"))]
    assert call(capsys, *command(trained[0], run, "--resume"))[0] == 0
    assert not any(path.exists() for path in left)
    assert list((run / "checkpoints").glob("*.pt"))


def test_overwrite_loses_nothing_when_the_new_run_is_refused(trained, tmp_path, capsys):
    run = run_of(trained, tmp_path, finished=True)
    before = files(run)
    assert "999" in refused(capsys, *command(trained[0], run, "--overwrite", "--batch", "999"))
    refused(capsys, *command(tmp_path / "nowhere", run, "--overwrite"))
    assert files(run) == before
    steps = ["--overwrite", "--seed", "5", "--epochs", "2"]
    assert call(capsys, *command(trained[0], run, *steps))[0] == 0
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["seed"], summary["steps"]) == (5, 2 * json.loads(before["summary.json"])["steps"])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 0  # from its beginning, not from the checkpoint of the old run


@pytest.mark.parametrize("name", ["model/weights.bin", "checkpoints/step-000000001.pt", "eval/x.json", "report.html", "summary.json"])
@pytest.mark.parametrize("how", ["--overwrite", "--resume", None])
def test_folders_of_another_origin_are_refused(toy, tmp_path, capsys, name, how):
    (tmp_path / "run" / name).parent.mkdir(parents=True)
    put(tmp_path / "run" / name, b"{}")
    before = files(tmp_path / "run")
    refused(capsys, *command(toy, tmp_path / "run", *([how] if how else [])))
    assert files(tmp_path / "run") == before
    assert not (tmp_path / "run" / ".lock").exists()


def test_other_settings_are_named_with_both_values_and_a_finished_run_says_so(trained, tmp_path, capsys):
    run = run_of(trained, tmp_path, finished=True)
    said = refused(capsys, *command(trained[0], run, "--resume", "--epochs", "5"))
    assert "(stages.0.epochs was 1.0, is 5.0)" in said
    assert f"clipling finetune {run} --out" in said
    shutil.rmtree(run / "model")
    said = refused(capsys, *command(trained[0], run, "--resume", "--epochs", "5", "--seed", "3"))
    assert "(seed was 0, is 3; stages.0.epochs was 1.0, is 5.0)" in said
    assert "finetune" not in said
    code, _, said = call(capsys, *command(trained[0], run, "--resume"))
    assert code == 0
    assert said == f"the run {run} was already finished: nothing was trained. Its results are those of then.\n"


@pytest.mark.parametrize("inside", ["model", "more/deep"])
def test_no_run_inside_another_run(trained, tmp_path, capsys, inside):
    run = run_of(trained, tmp_path, finished=True)
    shutil.rmtree(run / "model")
    before = files(run)
    assert f"is inside the run {run}" in refused(capsys, *command(trained[0], run / inside))
    assert files(run) == before
    assert call(capsys, *command(trained[0], tmp_path / "beside"))[0] == 0


def test_resume_into_a_folder_that_is_no_run(toy, tmp_path, capsys):
    put(tmp_path / "notes.txt", b"mine")
    assert "notes.txt" in refused(capsys, *command(toy, tmp_path, "--resume"))
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_start_that_came_to_nothing_can_be_made_again(trained, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    for name in ("recipe.yaml", "environment.json", "metrics.jsonl"):
        shutil.copy(trained[1] / name, run)
    put(run / "guides.json", b"{}")
    recipe = load_recipe("clip")
    with run_folder(run, recipe, resume=False, overwrite=False):
        assert (run / "guides.json").exists()
    runfolder.clear(run, resume=False, overwrite=False)
    assert not (run / "guides.json").exists()  # it would be untrue of the new run
    shutil.copy(trained[1] / "recipe.yaml", run)
    put(run / "checkpoints" / "best.pt", b"")
    with pytest.raises(UserError, match="already exists"), run_folder(run, recipe, resume=False, overwrite=False):
        pass


HOLD = "import sys; from pathlib import Path; from clipling.runfolder import locked\n"
HOLD += "with locked(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"


@pytest.mark.skipif(runfolder.fcntl is None, reason="no fcntl")
def test_two_processes_never_share_a_run_folder(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process"), locked(tmp_path):
            pass
        other.kill()
        other.wait()
    with locked(tmp_path):
        child = os.fork()  # a loader worker that outlives its parent must not hold the folder
        if child == 0:
            os._exit(1 if runfolder._HELD else 0)
        assert os.waitpid(child, 0)[1] == 0
        with pytest.raises(UserError, match="another process"), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass


def test_the_batch_that_is_proposed_can_be_used():
    for pairs in range(40):
        for world in (1, 2, 3, 4):
            with pytest.raises(UserError) as error:
                check_batch(48, pairs, world)
            if "--batch" in str(error.value):
                proposed = int(str(error.value).split("--batch ")[1].split()[0])
                assert 2 <= proposed <= pairs
                check_batch(proposed, pairs, world)
            else:
                assert "Give more pairs" in str(error.value)
                assert pairs < max(2, world)


def test_pairs_of_groups_in_the_validation_source_are_left_out(toy, tmp_path, capsys):
    source = table(tmp_path / "a.csv", ["filepath", "caption", "place"], toy)
    val = tmp_path / "val.csv"
    with val.open("w", newline="", encoding="utf-8") as file:
        rows = [[str(toy / f"{i:04d}.png"), f"val {i}", "shelf 3" if i == 40 else ""] for i in range(40, 48)]
        csv.writer(file).writerows([["filepath", "caption", "place"], *rows])
    opened = open_data(Data(source=str(source), val=str(val), group="place"))
    assert "shelf 3" not in opened.train.groups
    assert opened.left_out == opened.source.groups.count("shelf 3") > 0
    assert len(opened.train) + opened.left_out == 40
    code, _, err = call(capsys, *command(source, tmp_path / "run", "--val", val, "--group", "place"))
    assert code == 0
    assert f"{opened.left_out} training pairs left out: also in the validation source" in err


def test_columns_of_the_source_are_not_forced_on_another_validation_source(toy, tmp_path):
    source = table(tmp_path / "a.csv", ["picture", "words", "place"], toy)
    data = {"source": str(source), "image_column": "picture", "caption_column": "words", "group": "place"}
    folder = toy_folder(tmp_path / "val", count=10, seed=7)
    assert len(open_data(Data(**data, val=str(folder))).val) == 10
    shards = tar(tmp_path / "v.tar", {"a.png": (folder / "0000.png").read_bytes(), "a.txt": b"in a tar"})
    assert open_data(Data(**data, val=str(shards))).val.captions == ["in a tar"]
    other = table(tmp_path / "b.csv", ["filepath", "title", "x"], folder, delimiter=";", count=9)
    assert len(open_data(Data(**data, separator="comma", val=str(other))).val) == 9
    lines = put(tmp_path / "c.jsonl", 'not json\n{"image": "val/0001.png", "caption": "no", "words": "yes"}\n')
    assert open_data(Data(**data, max_bad=0.5, val=str(lines))).val.captions == ["yes"]  # what fits is used


def test_disk_errors_name_the_setting_that_helps(tmp_path, fresh_cache):
    denied = PermissionError(13, "denied")
    assert "CLIPLING_CACHE" in str(disk_error(denied, fresh_cache / "index" / "x"))
    assert "--out" not in str(disk_error(denied, fresh_cache / "index" / "x"))
    assert "--out" in str(disk_error(denied, tmp_path / "run" / "x"))
    assert "CLIPLING_CACHE" not in str(disk_error(denied, tmp_path / "run" / "x"))


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX modes and names")
def test_writes_take_any_name_and_respect_the_umask(tmp_path):
    for mask in (0o022, 0o077, 0o002):
        before = os.umask(mask)
        try:
            atomic_write(tmp_path / "x", os.fsdecode(b"caf\xe9.png"))
        finally:
            os.umask(before)
        assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "x").read_bytes() == rb"caf\udce9.png"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
