"""The formulas against what real pixels, banks, tables, checkpoints and sources take, and what must hold for any number of pairs."""

from __future__ import annotations

import dataclasses
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipling.data import pixels as pixels_module
from clipling.data.pixels import Pixels
from clipling.data.source import open_pairs
from clipling.engine.runtime import Runtime
from clipling.engine.trainer import Trainer
from clipling.guides import approximate, candidates, columns, neighbours
from clipling.guides.bank import build_bank
from clipling.guides.neighbours import build_table
from clipling.planning import hours, machines, sizes
from clipling.planning.hours import Rates
from clipling.planning.machines import Machine
from clipling.planning.sizes import Shape
from clipling.recipe import with_settings
from clipling.run import make_job
from tests.guides.making import ToyImages, ToyTexts, source
from tests.toy import toy_folder

SHAPE = Shape(
    parameters=2_000_000,
    heads=400_000,
    image_size=64,
    context_length=77,
    batch=256,
    sample_bytes=2e6,
    captions=2.0,
    image_dim=1280,
    text_dim=384,
    k=5,
)
RATES = Rates(train=400.0, search=5e10, decode=500.0, train_flop=1e8, image=40.0, text=300.0, image_flop=4e8, text_flop=5e8)
COUNTS = st.integers(1_000, 5_000_000_000)


def bytes_below(folder) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_decoded_pictures_take_what_the_formula_says(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPLING_CACHE", str(tmp_path / "cache"))
    pairs = source(tmp_path / "pictures", count=40)
    opened = Pixels.open(pairs, 80, "squash")
    kept = sum((opened.folder / name).stat().st_size for name in ("pixels.npy", "aspect.npy"))
    assert kept == pytest.approx(sizes.decoded(SHAPE, 40), abs=2 * 128)
    assert sizes.DECODED_LIMIT == pixels_module.LIMIT_BYTES


def test_a_bank_takes_what_the_formula_says(tmp_path):
    pairs = source(tmp_path / "pictures", count=300)
    build_bank(pairs, tmp_path / "bank", image_encoder=ToyImages(640), text_encoder=ToyTexts(384))
    shape = dataclasses.replace(SHAPE, captions=len(pairs.captions) / 300, image_dim=640, text_dim=384)
    assert bytes_below(tmp_path / "bank") == pytest.approx(sizes.bank(shape, 300), rel=0.03)


@pytest.mark.parametrize("by_caption", [False, True])
def test_neighbour_tables_take_what_the_formula_says(tmp_path, by_caption):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(800, 16))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    links, valid = [[] for _ in range(400)], np.ones(400, dtype=bool)
    image = build_table(rows[:400], np.arange(400), links, valid, 5)
    owner = np.repeat(np.arange(400), 2) if by_caption else None
    text = build_table(rows if by_caption else rows[:400], np.arange(400), links, valid, 5, owner=owner)
    image.save(tmp_path / "image.npz")
    text.save(tmp_path / "text.npz")
    expected = sizes.tables(dataclasses.replace(SHAPE, by_caption=by_caption), 400)
    assert bytes_below(tmp_path) == pytest.approx(expected, abs=2 * 2_500), "apart from what each table says about itself"


@pytest.mark.parametrize("ema", [False, True])
def test_checkpoints_take_what_the_formula_says(tmp_path, toy, ema):
    changes = {
        "student.config": "tiny_vit_32",
        "student.vocabulary": "full",
        "optimiser.batch": 16,
        "data.source": str(toy),
        "data.workers": 0,
    }
    recipe = with_settings(load("clip"), {**changes, "stages.0.epochs": 3, "optimiser.ema": 0.9 if ema else None})
    job = make_job(recipe, tmp_path / "run", Runtime(), quiet=True)
    job.folder.mkdir(parents=True)
    Trainer(job).run()
    kept = bytes_below(tmp_path / "run")
    shape = dataclasses.replace(SHAPE, parameters=job.student.sizes()["total"], heads=0, ema=ema)
    # The formula has room for one checkpoint while it is written, and for the model that is saved at the end.
    writing = sizes.checkpoints(shape) - 4 * shape.parameters - 4 * shape.parameters * (4 if ema else 3)
    assert kept == pytest.approx(writing, rel=0.03)


def load(name):
    from clipling.recipe import load_recipe

    return load_recipe(name)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return toy_folder(tmp_path_factory.mktemp("toy") / "pairs")


def test_pairs_in_memory_take_about_what_the_formula_says(tmp_path):
    count = 3000
    (tmp_path / "a.png").write_bytes((toy_folder(tmp_path / "one", count=1) / "0000.png").read_bytes())
    from PIL import Image

    lines = ["filepath,caption"]
    for i in range(count):
        Image.new("RGB", (8, 8), (i % 256, i // 256, 7)).save(tmp_path / f"{i:05d}.png")
        lines.append(f"{i:05d}.png,a picture of one plain colour and number {i} of many")
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    (tmp_path / "few.csv").write_text("\n".join(lines[:9]))
    open_pairs(str(tmp_path / "few.csv")).links()  # modules that are imported for the first time are no pairs
    tracemalloc.start()
    pairs = open_pairs(str(tmp_path / "pairs.csv"))
    links = pairs.links()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(pairs) == len(links) == count
    formula = count * (sizes.PAIR_OBJECTS + sizes.CAPTION_OBJECTS)
    assert 0.5 * formula < held < 1.3 * formula, f"{held / count:.0f} bytes a pair"


def test_the_plan_knows_the_numbers_of_the_search():
    assert neighbours.EXACT_UP_TO == hours.EXACT_UP_TO
    assert hours.CELLS == approximate.CELLS
    assert approximate.LEAST_PROBES <= hours.PROBES <= hours.CELLS * hours.PROBED**0.5 / approximate.MOST_SHARE
    assert (sizes.SCORE_BYTES, sizes.TILE) == (candidates.SCORE_BYTES, columns.TILE)


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.integers(1, 10**9), st.booleans())
def test_more_pairs_never_take_less(pairs, more, guided):
    shape = SHAPE if guided else dataclasses.replace(SHAPE, image_dim=0, text_dim=0, k=0)
    one, other = sizes.disk(shape, pairs), sizes.disk(shape, pairs + more)
    for name in one.keys() - {"decoded pictures"}:  # kept up to a limit and then not at all
        assert other[name] >= one[name], name
    for name, value in sizes.memory(shape, pairs).items():
        assert sizes.memory(shape, pairs + more)[name] >= value, name
    before, after = (hours.hours(shape, RATES, 8, p, 20) for p in (pairs, pairs + more))
    assert after["training"] >= before["training"]
    assert guided == ("neighbours" in before)
    if guided:
        assert after["bank"] >= before["bank"]
        if (pairs <= RATES.exact_up_to) == (pairs + more <= RATES.exact_up_to):
            assert after["neighbours"] >= before["neighbours"]


def test_exact_tables_take_time_with_the_square_of_the_pairs():
    seconds = hours.search_seconds(SHAPE, RATES, 100_000)
    assert seconds == pytest.approx(4 * hours.search_seconds(SHAPE, RATES, 50_000))
    assert seconds == pytest.approx(2 * 1e10 * (1280 + 384) / 5e10)
    # On a GPU tables are exact for longer, and above that a CPU like this one searches its cells.
    there = RATES.on(machines.STATED["a100"])
    assert hours.search_seconds(SHAPE, there, 4_000_000) == pytest.approx(2 * 1.6e13 * (1280 + 384) / there.search)
    assert hours.search_seconds(SHAPE, there, 5_000_000) == pytest.approx(hours.search_seconds(SHAPE, RATES, 5_000_000))


def test_another_machine_has_the_stated_share_of_its_peak():
    a_machine = Machine("m", "a data sheet", 8, 1e11, 1e12, peak=100e12, devices=2)
    there = RATES.on(a_machine)
    assert there.train == pytest.approx(2 * 100e12 * 0.2 / 1e8)
    assert there.decode == RATES.decode
    assert there.search == pytest.approx(0.7 * 100e12 / 16), "one device, not in bf16"
    assert RATES.on(dataclasses.replace(a_machine, peak=None)) is RATES


@pytest.mark.parametrize(("flop", "longer"), [(1e3, True), (1e12, False)])
def test_a_stated_machine_takes_a_floor_a_step_and_a_start(flop, longer):
    """Of 100,000 pairs in 10 epochs at a batch of 256: 3,906.25 steps of 5 ms where arithmetic takes less, and 20 s."""
    shape = dataclasses.replace(SHAPE, batch=256)
    there = dataclasses.replace(RATES, train_flop=flop, decode=1e9).on(Machine("m", "a data sheet", 8, 1e11, 1e12, peak=100e12))
    spent = 3600 * hours.hours(shape, there, 8, 100_000, 10)["training"]
    assert spent == pytest.approx(20 + (3906.25 * 0.005 if longer else 10 * 100_000 * flop / 20e12))
    here = 3600 * hours.hours(shape, dataclasses.replace(RATES, decode=1e9), 8, 100_000, 10)["training"]
    assert here == pytest.approx(10 * 100_000 / RATES.train), "measured steps have it in them"


def test_loading_starves_a_device_that_is_quicker_than_the_cores():
    large = 100_000_000
    assert hours.starving(SHAPE, dataclasses.replace(RATES, train=1e5), 8, large)
    assert not hours.starving(SHAPE, RATES, 8, large)
    slow = hours.hours(SHAPE, dataclasses.replace(RATES, train=1e5), 8, large, 10)["training"]
    assert slow == pytest.approx(10 * large / (500 * 8) / 3600)


def test_a_bank_takes_as_long_as_the_slower_of_decoding_and_encoding():
    quick = dataclasses.replace(RATES, image=1e9, text=1e9, decode=10.0)
    assert hours.hours(SHAPE, quick, 2, 72_000, 1)["bank"] == pytest.approx(1.0, rel=1e-3)
    slow = dataclasses.replace(RATES, image=10.0, text=1e9, decode=1e9)
    assert hours.hours(SHAPE, slow, 2, 36_000, 1)["bank"] == pytest.approx(1.0 * (1 + SHAPE.views), rel=1e-3)
