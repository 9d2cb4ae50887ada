"""The verbs shared by 1, 2 and 4 processes give the same; one of two that is killed loses its unfinished files only. About 60 s."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from clipling.cli import main
from clipling.engine import trainer
from clipling.engine.runtime import Runtime
from clipling.evals.suite import subject
from clipling.guides import bank, job, neighbours
from clipling.models.hub import new_student, save_student
from tests.distributed.launching import at_call, launch
from tests.faults.test_kill_training import content
from tests.guides.making import ToyImages, ToyTexts, files_of
from tests.toy import toy_folder

pytestmark = [pytest.mark.faults, pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")]
MORE = ("--batch", "16", "--epochs", "2")
LOST = ("another one is lost", "process 2 of 2 died")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Pairs, a student, and a bank with its tables by one process."""
    folder = tmp_path_factory.mktemp("processes")
    toy_folder(folder / "toy", count=60)
    toy_folder(folder / "val", count=20, seed=1)
    save_student(new_student("tiny_vit_32", seed=5), folder / "student")
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Quick encoders and small files, so that there is something to share."""
    torch.set_num_threads(1)
    monkeypatch.setenv("CLIPLING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bank, "open_image_encoder", lambda name, size=None: ToyImages())
    monkeypatch.setattr(bank, "open_text_encoder", lambda name: ToyTexts())
    monkeypatch.setattr(bank.build_bank, "__kwdefaults__", {**bank.build_bank.__kwdefaults__, "block": 5})
    monkeypatch.setattr(neighbours.build_table, "__defaults__", (7, None))
    monkeypatch.setattr(subject, "BLOCK", 8)


def call(*arguments: object):
    def work() -> int:
        with contextlib.redirect_stdout(io.StringIO()):
            return main([str(a) for a in arguments])

    return work


def ends_well(ended) -> None:
    assert [e.code for e in ended] == [0] * len(ended), "\n".join(e.said[-2000:] for e in ended)


def one_is_killed(ended) -> None:
    """The other says so and ends at once."""
    left, killed = ended
    assert killed.code == -9
    assert left.code == 2, left.said[-2000:]
    assert any(words in left.said for words in LOST), left.said[-2000:]
    assert left.seconds < killed.seconds + 20


def bank_of(place: Path, out: Path, world: int, **die):
    return launch(out.parent, world, call("bank", place / "toy", "--out", out, "--threads", "1", "--json"), **die)


def tables_of(place: Path, folder: Path, world: int, **die):
    return launch(folder.parent, world, call("neighbours", folder, "--data", place / "toy", "--k", "3", "--threads", "1", "--json"), **die)


def test_one_bank_whatever_the_number_of_processes(place, tmp_path):
    for world in (1, 2, 4):
        ends_well(bank_of(place, tmp_path / str(world) / "bank", world))
    one, two, four = (files_of(tmp_path / str(world) / "bank") for world in (1, 2, 4))
    assert one == two == four
    assert "building" not in {Path(name).parts[0] for name in one}


def test_a_bank_of_which_one_process_was_killed(place, tmp_path):
    ends_well(bank_of(place, tmp_path / "whole" / "bank", 1))
    out = tmp_path / "killed" / "bank"
    one_is_killed(bank_of(place, out, 2, die=at_call(bank, "save_array", 3)))
    kept = {p: p.stat().st_mtime_ns for p in (out / "building").glob("*-*.npy")}
    assert len(kept) >= 3
    ends_well(bank_of(place, out, 2))
    assert files_of(out) == files_of(tmp_path / "whole" / "bank")


def test_tables_whatever_the_number_of_processes_and_after_a_kill(place, tmp_path):
    ends_well(bank_of(place, tmp_path / "bank", 1))
    for name in ("1", "2", "4", "killed"):
        shutil.copytree(tmp_path / "bank", tmp_path / name / "bank")
    for world in (1, 2, 4):
        ends_well(tables_of(place, tmp_path / str(world) / "bank", world))
    one, two, four = (files_of(tmp_path / str(world) / "bank") for world in (1, 2, 4))
    assert one == two == four
    assert sum(Path(name).suffix == ".npz" for name in one) == 3  # two tables and the means
    folder = tmp_path / "killed" / "bank"
    one_is_killed(tables_of(place, folder, 2, die=at_call(job, "save_arrays", 2)))
    assert not [name for name in files_of(folder) if name.endswith(".parquet") and "tables" in name]
    ends_well(tables_of(place, folder, 2))
    assert files_of(folder) == one


WHEN = ("seconds", "date", "command", "packages", "commit", "made", "time")


def results_of(folder: Path) -> dict[str, object]:
    """All results of a folder, without when and how they were made; per-item values as arrays."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*.json")):
        read = json.loads(path.read_text())
        found[str(path.relative_to(folder))] = {key: value for key, value in read.items() if key not in WHEN}
    for path in sorted(folder.rglob("*.npz")):
        with np.load(path) as file:
            found[str(path.relative_to(folder))] = {name: file[name].tolist() for name in file.files}
    return found


def evaluated(place: Path, tmp_path: Path, name: str, world: int, *more: object, **die):
    cache = tmp_path / name / "cache"
    work = call("eval", place / "student", "--data", place / "toy", "--out", tmp_path / name / "out", "--threads", "1", "--json", *more)

    def with_cache() -> int:
        os.environ["CLIPLING_CACHE"] = str(cache)
        return work()

    return launch(tmp_path / name, world, with_cache, **die)


def test_one_result_whatever_the_number_of_processes(place, tmp_path):
    for world in (1, 2, 4):
        ends_well(evaluated(place, tmp_path, str(world), world))
    one, two, four = (results_of(tmp_path / str(world) / "out") for world in (1, 2, 4))
    assert one
    assert one == two == four


def test_a_suite_by_two_processes_and_after_a_kill(place, tmp_path):
    (tmp_path / "suite.yaml").write_text(
        f"tasks: [zeroshot_retrieval, geometry]\ndatasets:\n  toy: {{data: {place / 'toy'}}}\n  val: {{data: {place / 'val'}}}\n"
    )

    def suite(name: str, world: int, **die):
        arguments = ("eval", place / "student", "--suite", tmp_path / "suite.yaml", "--out", tmp_path / name / "out", "--threads", "1")
        return launch(tmp_path / name, world, call(*arguments, "--json", "--no-pictures"), **die)

    ends_well(suite("one", 1))
    one = results_of(tmp_path / "one" / "out")
    assert len(one) >= 4
    shutil.rmtree(tmp_path / "cache" / "features")
    ends_well(suite("two", 2))
    assert results_of(tmp_path / "two" / "out") == one
    shutil.rmtree(tmp_path / "cache" / "features")
    one_is_killed(suite("killed", 2, die=at_call(subject, "_save", 3)))
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "features").rglob("*.npy")}
    assert len(kept) >= 3
    ends_well(suite("killed", 2))
    assert results_of(tmp_path / "killed" / "out") == one
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_training_of_which_one_process_was_killed(place, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)  # a checkpoint after every step

    def trained(name: str, *more: str, **die):
        settings = ("--set", "student.config=tiny_vit_32", "data.workers=0", "evaluation.log_every=1", "evaluation.every=10")
        arguments = ("train", "clip", "--data", place / "toy", "--val", place / "val", "--out", tmp_path / name / "run", *more)
        return launch(tmp_path / name, 2, call(*arguments, "--batch", "16", "--epochs", "4", "--threads", "1", "--json", *settings), **die)

    ends_well(trained("whole"))
    one_is_killed(trained("killed", die=at_call(Runtime, "average_gradients", 7)))
    ends_well(trained("killed", "--resume"))
    assert content(tmp_path / "killed" / "run") == content(tmp_path / "whole" / "run")


def test_processes_with_different_settings_refuse_to_train(place, tmp_path):
    def work() -> int:
        of_its_own = ("--batch", "16", "--seed", "0") if os.environ["RANK"] == "0" else ("--batch", "8", "--seed", "1")
        arguments = (
            "train",
            "clip",
            "--data",
            place / "toy",
            "--val",
            place / "val",
            "--out",
            tmp_path / "run",
            "--epochs",
            "1",
            *of_its_own,
        )
        return call(*arguments, "--json", "--set", "student.config=tiny_vit_32", "data.workers=0")()

    ended = launch(tmp_path, 2, work)
    assert [e.code for e in ended] == [2, 2]
    assert "different settings" in ended[0].said
    assert "seed is 0 in process 1, 1 in process 2" in ended[1].said
    assert "optimiser.batch is 16 in process 1, 8 in process 2" in ended[1].said
    assert not (tmp_path / "run").exists()


def test_a_bank_and_tables_of_more_pairs_are_brought_up_to_date(place, tmp_path):
    """Toy encoders whose rows depend on their company, as real ones' last bits do."""
    more = tmp_path / "more"
    shutil.copytree(place / "toy", more)
    toy_folder(tmp_path / "others", count=25, seed=7)
    for path in (tmp_path / "others").iterdir():
        shutil.copy(path, more / f"z-{path.name}")
    ends_well(bank_of(place, tmp_path / "old", 1))
    ends_well(tables_of(place, tmp_path / "old", 1))
    (old,) = (tmp_path / "old" / "tables").iterdir()
    new = ("--data", more, "--k", "3", "--threads", "1", "--json")
    ends_well(launch(tmp_path, 2, call("bank", more, "--out", tmp_path / "new", "--update", tmp_path / "old", "--threads", "1", "--json")))
    kept, grown = bank.Bank.open(tmp_path / "old"), bank.Bank.open(tmp_path / "new")
    place_of = {key: i for i, key in enumerate(grown.keys)}
    rows = np.array([place_of[key] for key in kept.keys])
    assert grown.image[rows].tobytes() == kept.image[:].tobytes()
    assert len(grown) > len(kept)
    ends_well(launch(tmp_path, 2, call("neighbours", tmp_path / "new", *new, "--update", old)))
    updated = files_of(tmp_path / "new" / "tables")
    (made,) = (tmp_path / "new" / "tables").iterdir()
    for path in made.glob("*-*.npz"):
        path.unlink()
    ends_well(launch(tmp_path, 1, call("neighbours", tmp_path / "new", *new)))  # anew, less the means that lie there
    assert files_of(tmp_path / "new" / "tables") == updated


def test_a_guided_run_whose_bank_and_tables_the_processes_make_together(place, tmp_path):
    settings = ("--set", "student.config=tiny_vit_32", "data.workers=0", "evaluation.log_every=1", "evaluation.every=2")
    losses = {}
    for world in (1, 2):
        cache = tmp_path / f"cache-{world}"
        run = tmp_path / str(world) / "run"
        work = call(
            "train", "ping", "--data", place / "toy", "--val", place / "val", "--out", run, "--threads", "1", "--json", *MORE, *settings
        )

        def with_cache(cache=cache, work=work) -> int:
            os.environ["CLIPLING_CACHE"] = str(cache)
            return work()

        ends_well(launch(tmp_path / str(world), world, with_cache))
        losses[world] = [
            line["loss"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if line["kind"] == "train"
        ]
    assert len(losses[1]) >= 4
    assert losses[2] == pytest.approx(losses[1], rel=1e-5)
    assert files_of(tmp_path / "cache-1" / "banks") == files_of(tmp_path / "cache-2" / "banks")
