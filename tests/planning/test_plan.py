"""Which limit breaks first, and what the verb says."""

from __future__ import annotations

import dataclasses
import json

import pytest

from clipling import cli
from clipling.errors import UserError
from clipling.planning import calibrate as calibrating
from clipling.planning.calibrate import Calibration, calibrate
from clipling.planning.limits import Limit, limits
from clipling.planning.machines import STATED, machine
from clipling.planning.plan import broken_first, counts, make_plan, number
from clipling.planning.shown import count, pilot_text, plan_text, size, time
from clipling.recipe import load_recipe, with_settings
from tests.planning.test_sizes import RATES, SHAPE

MEASURED = Calibration(SHAPE, RATES, "cpu", 2)


def test_the_largest_number_that_fits_is_exact():
    for have in (10_000.5, 123_456, 9.99e9):
        limit = Limit("x", "bytes", have, lambda pairs: 3.0 * pairs, "")
        assert limit.most_pairs() == int(have / 3)
    assert Limit("x", "bytes", 1e30, float, "").most_pairs() is None
    assert Limit("x", "bytes", 1.0, float, "").most_pairs() == 1


def test_a_need_that_falls_again_breaks_where_it_first_does():
    bump = Limit("x", "bytes", 100.0, lambda pairs: 200.0 if 50_000 <= pairs <= 80_000 else 1.0, "")
    assert bump.most_pairs() == 49_999


@pytest.mark.parametrize(
    ("less", "first"),
    [({"disk": 1e9}, "disk"), ({"memory": 1.6e9}, "memory"), ({"disk": 1e18, "memory": 1e18}, "exact neighbours")],
)
def test_what_there_is_least_of_breaks_first(less, first):
    here = dataclasses.replace(STATED["a100"], **less)
    ordered = broken_first(limits(SHAPE, RATES.on(here), here, 20, 168))
    most = [pairs for _, pairs in ordered if pairs is not None]
    assert ordered[0][0].name == first
    assert most == sorted(most)


def test_too_little_device_memory_breaks_at_once_and_names_the_mend():
    here = dataclasses.replace(STATED["t4"], device_memory=1e8)
    limit, most = broken_first(limits(SHAPE, RATES.on(here), here, 20, 168))[0]
    assert (limit.name, most) == ("device memory", 0)
    assert "micro_batch" in limit.advice


def test_a_batch_that_does_not_fit_into_ram_is_not_blamed_on_the_pairs():
    """On a CPU activations are in RAM too."""
    here = dataclasses.replace(STATED["t4"], device_memory=0)
    wide = dataclasses.replace(SHAPE, batch=10**6)
    advice = {shape: broken_first(limits(shape, RATES, here, 20, 168)) for shape in (SHAPE, wide)}
    said = {shape: next(limit.advice for limit, _ in found if limit.name == "memory") for shape, found in advice.items()}
    assert "micro_batch" in said[wide]
    assert "fewer tars" in said[SHAPE]
    assert "train on a part at a time (data.limit)" not in said[SHAPE], "pairs are read before they are limited"


def test_a_batch_of_more_than_all_pairs_is_noted():
    for batch, noted in ((1000, False), (1001, True)):
        recipe = with_settings(load_recipe("clip"), {"optimiser.batch": batch})
        made = make_plan(recipe, MEASURED, machine("a100"), [50_000, 1000], 168)
        assert any("is more than 1,000 pairs" in note for note in made["notes"]) == noted


def test_what_does_not_apply_is_said_and_not_blank():
    made = make_plan(load_recipe("ping"), MEASURED, machine("a100"), counts("10k,5B"), 168)
    header, rows = [], []

    def table(names, lines):
        header.extend(names)
        rows.extend(lines)
        return ""

    said = plan_text(made, table)
    assert all(cell.strip() for row in rows for cell in row)
    found = {row[0]: row[1:] for row in rows}
    assert found["time: decoding, once"][1] == "–"
    assert found["too much: disk"] == ["no", "yes"]
    assert "5 ms at least, and 20 s go by before the first one: guesses of ours" in said


@pytest.mark.parametrize("why", ["the interval is wide", None])
def test_that_nothing_can_be_forecast_comes_before_the_numbers(why):
    numbers = {"recall": 0.2, "low": 0.1, "high": 0.9}
    row = {"what": "all", "pairs": 9, "epochs": 1.0, **numbers, **({"why_not": why} if why else {})}
    made = {"pilots": [{"pairs": 9, "epochs": 1.0, **numbers}], "forecasts": [row], "against": {"M": numbers}, "verdict": "VERDICT"}
    rows = []
    said = pilot_text(made, lambda names, lines: rows.extend(lines) or "TABLE")
    assert (said.index("VERDICT") < said.index("TABLE")) == (why is not None)
    assert rows[1] == ["all", "9", "1", *(["–", "–"] if why else ["20.0", "10.0 - 90.0"])]
    assert all(cell.strip() for row in rows for cell in row)


def test_a_plan_from_ten_thousand_to_five_billion():
    pairs = counts("10k,1M,5B")
    made = make_plan(load_recipe("ping"), MEASURED, machine("a100"), pairs, 168, price=2.0)
    small, middle, large = made["plans"]
    assert [p["pairs"] for p in made["plans"]] == [10_000, 1_000_000, 5_000_000_000]
    assert not small["broken"]
    assert {"disk", "memory", "hours of neighbours"} <= set(large["broken"])
    assert small["exact_neighbours"]
    assert not large["exact_neighbours"]
    assert small["bytes"]["all"] < middle["bytes"]["all"] < large["bytes"]["all"]
    assert large["bytes"]["bank"] == pytest.approx(5e9 * (1280 * 2 + 2 * 384 * 2 + 131))
    assert middle["money"] == pytest.approx(2.0 * middle["hours"]["all"])
    assert any("20 % of the stated peak" in note for note in made["notes"])
    json.dumps(made)


def test_calibration_measures_this_machine(monkeypatch):
    monkeypatch.setattr(calibrating, "SEARCH", (512, 64, 16))
    recipe = with_settings(load_recipe("clip"), {"student.config": "tiny_vit_32", "optimiser.batch": 16, "student.vocabulary": "full"})
    found = calibrate(recipe, captions=2.0, seconds=0.01)
    assert found.shape.captions == 2.0
    assert not found.shape.guided
    assert found.shape.parameters > 1e6
    rates = found.rates
    assert min(rates.train, rates.search, rates.decode, rates.train_flop, found.shape.sample_bytes) > 0
    # A matrix of weights costs at least 6 FLOP a position, forward and backward: 4 patches and a class token, several words.
    dense = found.shape.parameters - 49408 * 64
    assert rates.train_flop > 6 * dense


def test_a_student_that_is_cut_out_of_a_teacher_is_not_guessed():
    with pytest.raises(UserError, match="a student of its size"):
        calibrate(load_recipe("tinyclip_manual"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "clip"], "how many pairs"),
        (["plan", "clip", "--pairs", "many"], "expected a number above 0"),
        (["plan", "clip", "--pairs", "10"], "1,000 to"),
        (["plan", "clip", "--pairs", "10k", "--machine", "a10"], "Did you mean 'a100'"),
        (["plan", "clip", "--pairs", "10k", "--data", "x"], "--data would be ignored without --pilot"),
        (["plan", "clip", "--pairs", "10k", "--guidance"], "--guidance would be ignored"),
        (["plan", "clip", "--pilot", "10m"], "give --data"),
        (["plan", "clip", "--pilot", "ten", "--data", "x"], "expected a time"),
        (["plan", "clip", "--pairs", "10k", "--captions", "0"], "above 0"),
        (["plan", "clip", "--pairs", "10k", "--captions", "nan"], "above 0"),
        (["plan", "clip", "--pairs", "10k", "--captions", "1e9"], "at most 10,000"),
        (["plan", "clip", "--pairs", "10k", "--hours", "nan"], "hours above 0"),
        (["plan", "clip", "--pairs", "10k", "--hours", "inf"], "hours above 0"),
        (["plan", "clip", "--pairs", "10k", "--price", "nan"], "a price of 0"),
        (["plan", "clip", "--pairs", "10k", "--price", "inf"], "a price of 0"),
    ],
)
def test_mistakes_are_named(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(calibrating, "calibrate", lambda *a, **k: MEASURED)
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_the_verb_prints_what_breaks_first_and_what_to_change(capsys, monkeypatch):
    monkeypatch.setattr(calibrating, "calibrate", lambda *a, **k: MEASURED)
    assert cli.main(["plan", "ping", "--pairs", "10k,5B", "--machine", "8xa100", "--disk", "100T"]) == 0
    shown = capsys.readouterr().out
    assert "breaks first: " in shown
    assert "5 B" in shown
    assert "disk: bank" in shown
    assert [line.split()[-1] for line in shown.splitlines() if line.startswith("too much: disk")] == ["yes"]


def test_money_is_of_all_devices():
    made = make_plan(load_recipe("ping"), MEASURED, machine("8xa100"), [1_000_000], 168, price=3.0)["plans"][0]
    assert made["money"] == pytest.approx(3.0 * 8 * made["hours"]["all"])


def test_numbers_with_suffixes():
    assert [number(text, "x") for text in ("20000", "10k", "1.5M", "5B", "2T", "64 G")] == [20000, 1e4, 1.5e6, 5e9, 2e12, 64e9]
    for text in ("", "k", "-3", "0", "1e400", "nan"):
        with pytest.raises(UserError):
            number(text, "x")


def test_numbers_are_shown_for_people():
    assert [size(v) for v in (12, 3.2e9, 2.5e13)] == ["12 B", "3.2 GB", "25 TB"]
    assert [time(v) for v in (1 / 3600, 0.5, 5, 240, 24 * 3652.5)] == ["1 s", "30 min", "5 h", "10 days", "10 years"]
    assert [count(v) for v in (999, 10_000, 5e9)] == ["999", "10 k", "5 B"]
