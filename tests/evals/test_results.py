"""Result files: the keys that CLIP_benchmark writes and reads, and what ours add."""

from __future__ import annotations

import hashlib
import json

import pytest

from clipling.errors import UserError
from clipling.evals.results import RETRIEVAL, Result, read_result, read_results, weights_hash, write_result


def result(**changes) -> Result:
    return Result(
        **{
            "dataset": "my/photos",
            "model": "ping student",
            "pretrained": "run",
            "task": RETRIEVAL,
            "metrics": {"i2t_recall@5": 0.25, "t2i_recall@5": 0.5},
            "data_hash": "abc",
            "intervals": {"i2t_recall@5": (0.2, 0.3)},
            "budget": {"samples_seen": 1000},
            **changes,
        }
    )


def test_file_holds_clip_benchmarks_keys_and_names(tmp_path):
    path = write_result(result(), tmp_path)
    content = json.loads(path.read_text())
    assert {"dataset", "model", "pretrained", "task", "metrics", "language"} <= set(content)
    assert content["metrics"]["text_retrieval_recall@5"] == 0.25, "i2t retrieves text"
    assert content["metrics"]["image_retrieval_recall@5"] == 0.5, "t2i retrieves images"
    assert content["metrics"]["i2t_recall@5"] == 0.25
    assert path.name == "my-photos_run_ping-student_en_zeroshot_retrieval.json"
    assert list(tmp_path.iterdir()) == [path], "no temporary file is left"


def test_what_is_written_is_read_back(tmp_path):
    assert read_result(write_result(result(), tmp_path)) == result()
    assert [r.model for r in read_results(tmp_path)] == ["ping student"]
    assert read_results(tmp_path / "missing") == []


def test_results_of_clip_benchmark_are_read(tmp_path):
    theirs = {
        "dataset": "flickr8k",
        "model": "ViT-B-32",
        "pretrained": "openai",
        "task": RETRIEVAL,
        "metrics": {"image_retrieval_recall@5": 0.6, "text_retrieval_recall@5": 0.7, "acc5": None},
        "language": "en",
    }
    (tmp_path / "theirs.json").write_text(json.dumps(theirs))
    assert read_result(tmp_path / "theirs.json").metrics == {"t2i_recall@5": 0.6, "i2t_recall@5": 0.7}


@pytest.mark.parametrize(
    ("content", "message"),
    [("[]", "not a result file"), ('{"dataset": "x"}', "model, task, metrics"), ("{", "not valid JSON")],
)
def test_other_files_are_explained(tmp_path, content, message):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_result(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('"metrics": []', "metrics is []"),
        ('"metrics": {"acc1": 1e999}', "metrics.acc1 is inf: expected a finite number"),
        ('"intervals": [1]', "intervals is [1]"),
        ('"intervals": {"acc1": [1]}', "intervals.acc1"),
        ('"made": []', "made is []: expected a mapping"),
        ('"size": []', "size is []"),
        ('"details": []', "details is []"),
        ('"dataset": 1', "dataset is 1: expected text"),
        ('"prompts": "a"', "prompts is 'a': expected a list of texts"),
    ],
)
def test_damaged_results_are_explained(tmp_path, change, said):
    content = '{"dataset": "d", "model": "m", "task": "zeroshot_classification", "metrics": {"acc1": 0.5}, '
    (tmp_path / "x.json").write_text(content + change + "}")
    with pytest.raises(UserError) as error:
        read_result(tmp_path / "x.json")
    assert f"x.json is damaged: {said}" in str(error.value)


@pytest.mark.parametrize("letter", ["a", "\u6f22", "\U0001d538"])
def test_long_names_are_cut_by_bytes_and_stay_apart(tmp_path, letter):
    names = [letter * 90 + end for end in ("x", "y")]
    paths = [write_result(result(dataset=name, model=name, pretrained=name), tmp_path) for name in names]
    assert len(set(paths)) == 2
    assert max(len(path.name.encode()) for path in paths) <= 240, "room for what a temporary file adds, within 255"
    assert [read_result(path).dataset for path in paths] == names


def test_unknown_task():
    with pytest.raises(ValueError, match="zeroshot_retrieval"):
        result(task="retrieval")


def test_weights_hash_is_the_files(tmp_path):
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"weights")
    assert weights_hash(tmp_path) == hashlib.sha256(b"weights").hexdigest()
    assert weights_hash(tmp_path / "none") == ""
