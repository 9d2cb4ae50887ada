"""What a reinforced source takes, against tars that the generator wrote, and the plan of recipes that read one."""

from __future__ import annotations

import dataclasses
import json
import tarfile

import numpy as np
import pytest

from clipling import cli
from clipling.data.stored_arrays import npz_bytes
from clipling.engine.runtime import Runtime
from clipling.errors import UserError
from clipling.models.hub import new_student, save_student
from clipling.planning import calibrate as calibrating
from clipling.planning import hours, sizes, stored
from clipling.planning.calibrate import calibrate
from clipling.planning.machines import STATED
from clipling.planning.stored import StoredPlan, stored_plan
from clipling.recipe import load_recipe, with_settings
from tests.planning.test_sizes import RATES, SHAPE
from tests.reinforcing import reinforced, teachers

TINY = {"student.config": "tiny_vit_32", "optimiser.batch": 16}
RECIPES = ("mobileclip", "mobileclip2", "reinforced_ping")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Encoders that are not opened, and short measurements."""
    monkeypatch.setattr(calibrating, "SEARCH", (512, 64, 16))
    dims = {"image": 1280, "text": 384}
    real = calibrating.encoders
    monkeypatch.setattr(
        calibrating, "encoders", lambda recipe, s: (40.0, 300.0, dims, (4e8, 5e8)) if recipe.guide is not None else real(recipe, s)
    )


def of_knowledge(folder) -> int:
    """Bytes in tars of the members that are no plain pair, with their headers and padding, read by tarfile."""
    total = 0
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            total += sum(512 + -(-m.size // 512) * 512 for m in tar if m.name.endswith((".paug.json", ".syn.json", ".npz")))
    return total


@pytest.mark.parametrize("storage", ["fp32", "int8"])
def test_a_pair_takes_what_the_formula_says(tmp_path, storage):
    pairs = reinforced(tmp_path, 24, storage=storage, captions=("rules",), augmentations=12)
    records = [json.loads(data) for data in read(tmp_path / "out", ".syn.json")]
    synthetic = sum(len(texts) for record in records for texts in record.values()) / 24
    dims = {name: model.embed_dim for name, model in teachers().items()}
    plan = StoredPlan(dims, captions=len(pairs.captions) / 24, synthetic=synthetic, augmentations=12, storage=storage)
    assert 24 * plan.bytes_a_pair(storage) == pytest.approx(of_knowledge(tmp_path / "out"), rel=0.05)


def read(folder, ending: str) -> list[bytes]:
    found = []
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            found += [tar.extractfile(m).read() for m in tar if m.name.endswith(ending)]
    return found


def test_datacompdrs_pairs():
    """core.md section 3.1: 16 embeddings of 1536 numbers are 98 KB in fp32, 49 KB in 16 bits; 36 are 221 KB and 111 KB. A little more with
    records and headers."""
    for augmentations, fp32, fp16 in ((10, 98e3, 49e3), (30, 221e3, 111e3)):
        plan = StoredPlan(stored.DATACOMPDR, augmentations=augmentations)
        assert fp32 < plan.bytes_a_pair("fp32") < 1.05 * fp32
        assert fp16 < plan.bytes_a_pair("fp16") < 1.1 * fp16
        assert plan.bytes_a_pair("fp16") / 2 < plan.bytes_a_pair("int8") < 0.6 * plan.bytes_a_pair("fp16")
    half = dataclasses.replace(plan, captions=1.5).bytes_a_pair("fp32")
    assert half == pytest.approx((plan.bytes_a_pair("fp32") + dataclasses.replace(plan, captions=2).bytes_a_pair("fp32")) / 2)


def test_the_teachers_time_is_the_sum_of_their_crops_and_texts():
    """Everything is done once a second: of 12 crops 16 are done, of 1 + 5 texts 64, by each of two teachers."""
    models = teachers()
    plan = StoredPlan({name: model.embed_dim for name, model in models.items()}, captions=1, synthetic=5, augmentations=12)
    found = stored.measured(plan, models, lambda call, count, seconds: count, 1.0)
    assert found.teacher_seconds == pytest.approx(2 * (12 / 16 + 6 / 64))
    assert found.replay_seconds == pytest.approx(len({model.image_size for model in models.values()}) * 12 / 16)
    one = stored.measured(dataclasses.replace(plan, augmentations=24), models, lambda call, count, seconds: count, 1.0)
    two = stored.measured(dataclasses.replace(plan, augmentations=48), models, lambda call, count, seconds: count, 1.0)
    assert two.teacher_flop - one.teacher_flop == pytest.approx(2 * (one.teacher_flop - found.teacher_flop))


def test_hours_and_bytes_grow_with_the_pairs():
    shape = dataclasses.replace(SHAPE, stored_bytes=1e4, augmentations=10, synthetic=5.0)
    rates = dataclasses.replace(RATES, stored_seconds=0.1, stored_flop=1e9, crop_seconds=0.02)
    assert sizes.disk(shape, 7200)["stored knowledge"] == 7.2e7
    assert hours.hours(shape, rates, 8, 7200, 1)["reinforcing"] == pytest.approx(7200 * 0.12 / 3600)
    assert "reinforcing" not in hours.hours(shape, RATES, 8, 7200, 1), "not known"
    eight = rates.on(STATED["8xa100"])
    assert hours.hours(shape, eight, 96, 7200, 1)["reinforcing"] == pytest.approx(7200 * (1e9 / (8 * 312e12 * 0.2) + 0.02 / 8) / 3600)
    many = 10**9
    assert sizes.peak_memory(shape, many, True) - sizes.peak_memory(SHAPE, many, True) > 100 * 10 * many
    assert "stored knowledge" not in sizes.memory(SHAPE, many)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_that_read_stored_knowledge_are_planned(name):
    recipe = with_settings(load_recipe(name), TINY)
    found = calibrate(recipe, seconds=0.01)
    assert found.stored.assumed
    assert found.stored.dims == {"teacher": 768, "teacher2": 768}
    assert found.shape.stored_bytes == found.stored.bytes_a_pair("fp16")
    assert found.rates.stored_seconds == 0
    assert found.rates.train > 0
    assert (found.shape.image_dim > 0) == (name == "reinforced_ping")
    known = calibrate(recipe, seconds=0.01, stored=stored_plan(recipe, 1.0, teachers(), 3), teachers=teachers())
    assert known.stored.dims == {"first": 48, "second": 64}
    assert known.rates.stored_seconds > 0
    assert known.rates.stored_flop > 0
    assert known.rates.crop_seconds > known.stored.replay_seconds > 0


def test_a_step_is_measured_with_the_teachers_of_the_source(tmp_path):
    """What a pilot measures: a term that learns from one teacher by name finds it."""
    reinforced(tmp_path, 4)
    fd = {"objective.fd": {"use": "clipling.objectives.clip_kd:FD", "options": {"teacher": "second"}}}
    recipe = with_settings(load_recipe("mobileclip2"), {**TINY, **fd, "data.source": str(tmp_path / "out")})
    assert stored.sizes_of_teachers(recipe) == {"first": 48, "second": 64}
    student = new_student("tiny_vit_32")
    speed, held = calibrating.training(student, recipe, Runtime(), 0.01)
    assert speed > 0
    assert held > 0


def test_two_texts_a_step_are_two_texts_of_work():
    work = {}
    for captions in ("real", "mix", "both"):
        recipe = with_settings(load_recipe("mobileclip2"), {**TINY, "objective.reinforced.options": {"captions": captions}})
        found = calibrate(recipe, seconds=0.01)
        work[captions] = found.rates.train_flop, found.shape.sample_bytes
        assert found.shape.synthetic == (0 if captions == "real" else 5)
    assert work["real"][0] == work["mix"][0] < work["both"][0] < 2 * work["real"][0]
    assert work["mix"][1] == pytest.approx(work["real"][1])
    assert work["both"][1] > 1.05 * work["real"][1]


def test_the_verb_says_bytes_by_storage_and_hours_of_both(tmp_path, capsys):
    save_student(teachers()["first"], tmp_path / "one")
    given = ["--student", "tiny_vit_32", "--batch", "16", "--pairs", "10k,1M", "--threads", "1"]
    assert cli.main(["plan", "mobileclip2", *given, "--teacher", str(tmp_path / "one"), "--storage", "int8", "--augmentations", "4"]) == 0
    shown = capsys.readouterr().out
    assert "disk: stored knowledge" in shown
    assert "time: reinforcing" in shown
    assert "time: training" in shown
    assert "(4 augmentations, 1 own and 5 synthetic captions, embeddings of 48; planned with int8)" in shown
    assert "bytes a pair: fp32 " in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clip", "--storage", "int8"], "the recipe 'clip' reads no reinforced source"),
        (["clip", "--teacher", "x"], "--teacher would be ignored"),
        (["mobileclip", "--augmentations", "0"], "expected at least 1"),
        (["mobileclip", "--synthetic", "-1"], "--synthetic -1"),
        (
            ["mobileclip", "--scale", "paper", "--set", "objective.reinforced.options.scales=[1.0]"],
            "1 number for the 2",
        ),
    ],
)
def test_mistakes_are_named(arguments, message, capsys):
    assert cli.main(["plan", *arguments, "--pairs", "10k"]) == 2
    assert message in capsys.readouterr().err


def test_sizes_are_said_once(tmp_path):
    recipe = with_settings(load_recipe("mobileclip"), {"reinforced.teachers": {"a": 4}})
    with pytest.raises(UserError, match=r"reinforced\.teachers would be ignored"):
        stored_plan(recipe, 1.0, teachers())
    assert stored_plan(recipe).dims == {"a": 4}
    assert stored_plan(load_recipe("clip")) is None


def test_identities_and_digests_are_counted(tmp_path):
    """Of nine augmentations they take the record of every pair into one more block of a tar."""
    pairs = reinforced(tmp_path, 6, captions=(), augmentations=9, storage="fp32")
    plan = StoredPlan({name: model.embed_dim for name, model in teachers().items()}, captions=1, synthetic=0, augmentations=9)
    of_records = sum(512 + -(-len(data) // 512) * 512 for data in read(tmp_path / "out", ".paug.json"))
    of_arrays = 512 + -(-len(npz_bytes({n: np.zeros((k, 112), np.float32) for n, k in (("image_emb", 9), ("text_emb", 1))})) // 512) * 512
    assert plan.bytes_a_pair("fp32") - of_arrays == pytest.approx(of_records / len(pairs), abs=100)
