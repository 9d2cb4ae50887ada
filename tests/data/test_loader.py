"""Batches as a function of (seed, step): against a plain loop, whatever the workers, ranks and starting step."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from clipling.data import draw
from clipling.data.loader import HostBatch, TrainBatches
from clipling.data.pairs import Location, Pairs, Row, hash_bytes
from clipling.data.pixels import Pixels
from clipling.data.views import Augment, crops, render
from clipling.data.workers import loader
from clipling.errors import UserError

COUNT = 37
SETTINGS = {"augment": Augment(scale=(0.4, 1.0), flip=0.5), "size": 12, "batch": 8, "seed": 5}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> tuple[Pairs, Pixels, torch.Tensor]:
    """37 pairs of 1 to 4 captions; token row t holds t everywhere."""
    folder = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    rows, hashes = [], []
    for i in range(COUNT):
        path = folder / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (20, 20 + i, 3), dtype=np.uint8)).save(path)
        rows.append(Row(path.name, [f"caption {k}" for k in range(1 + i % 4)], Location(str(path))))
        hashes.append(hash_bytes(path.read_bytes()))
    pairs = Pairs.from_rows("made", rows, hashes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPLING_CACHE", str(folder / "cache"))
        pixels = Pixels.open(pairs, 16)
        assert pixels.aspect.shape == (COUNT,)
    tokens = torch.arange(len(pairs.captions), dtype=torch.int32)[:, None].repeat(1, 6)
    return pairs, pixels, tokens


def make(source, rows=None, **changes) -> TrainBatches:
    pairs, pixels, tokens = source
    rows = np.arange(COUNT) if rows is None else rows
    return TrainBatches(rows, pairs, pixels, tokens, **{**SETTINGS, **changes})


def assert_same(a: HostBatch, b: HostBatch) -> None:
    for field in dataclasses.fields(HostBatch):
        x, y = getattr(a, field.name), getattr(b, field.name)
        assert type(x) is type(y), field.name
        if isinstance(x, torch.Tensor):
            assert torch.equal(x, y), field.name
        else:
            assert np.array_equal(x, y), field.name


def test_a_batch_equals_a_plain_loop(source):
    pairs, pixels, _ = source
    rows = np.array([i for i in range(COUNT) if i % 5])
    batches = make(source, rows)
    assert batches.steps_per_epoch == len(rows) // 8 == 3
    assert len(batches) > 10**12
    for step in (0, 2, 3, 10):
        batch = batches[step]
        epoch = step // 3
        assert (batch.step, batch.epoch, batch.epoch_fraction) == (step, epoch, pytest.approx(step / 3))
        order = draw.order(5, epoch, len(rows))
        assert batch.pair.tolist() == [rows[order[step % 3 * 8 + k]] for k in range(8)]
        for k, pair in enumerate(batch.pair.tolist()):
            own = pairs.caption_rows(pair)
            caption = own[int(draw.uniform(5, epoch, pair, "caption")[0] * len(own))]
            assert batch.caption_all[k] == caption
            assert batch.tokens[k].tolist() == [caption] * 6
            aspect = np.array([pairs.image(pair).width / pairs.image(pair).height])
            boxes, flips = crops(SETTINGS["augment"], 5, epoch, np.array([pair]), aspect)
            assert np.array_equal(batch.boxes[k], boxes[0])
            assert batch.flips[k] == flips[0]
            expected = render(pixels[pair], boxes[0], flips[0], 12)
            assert np.array_equal(batch.images[k].permute(1, 2, 0).numpy(), expected)
    assert batch.tokens.dtype == torch.int64
    assert batch.images.shape == (8, 3, 12, 12)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_an_epoch_shows_each_pair_once_and_drops_the_short_batch(source):
    batches = make(source)
    for epoch in range(3):
        seen = np.concatenate([batches[step].pair_all for step in range(epoch * 4, epoch * 4 + 4)])
        assert len(set(seen.tolist())) == 32
    assert not np.array_equal(batches[0].pair_all, batches[4].pair_all)


def test_all_captions_get_their_turn(source):
    pairs = source[0]
    batches = make(source)
    seen = {int(row) for epoch in range(60) for row in batches.captions(epoch, np.arange(COUNT))}
    assert seen == set(range(len(pairs.captions)))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_and_the_starting_step_change_nothing(source, workers):
    expected = [make(source)[step] for step in range(3, 11)]
    state = torch.random.get_rng_state()
    found = list(loader(make(source), 3, 11, workers=workers))
    assert torch.equal(torch.random.get_rng_state(), state)  # dropout of a resumed run stays as it was
    assert len(found) == 8
    for ours, theirs in zip(found, expected):
        assert_same(ours, theirs)
    assert_same(next(iter(loader(make(source), 7, 8, workers=workers))), expected[4])


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_make_up_the_batch_of_one_process(source, world):
    for step in (0, 5):
        whole = make(source)[step]
        parts = [make(source, rank=rank, world=world)[step] for rank in range(world)]
        for name in ("pair", "boxes", "flips"):
            assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
        for name in ("tokens", "images"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
        for part in parts:
            assert np.array_equal(part.pair_all, whole.pair_all)
            assert np.array_equal(part.caption_all, whole.caption_all)


def test_on_demand_pixels_give_the_same_batches(source, monkeypatch):
    pairs, pixels, tokens = source
    monkeypatch.setenv("CLIPLING_CACHE", str(pixels.folder.parents[1]))
    demand = Pixels.open(pairs, 16, limit_bytes=0)
    assert not demand.stored
    found = next(iter(loader(make((pairs, demand, tokens)), 2, 3, workers=1)))
    assert_same(found, make(source)[2])


def test_seeds_differ(source):
    one, other = make(source, seed=1)[0], make(source, seed=2)[0]
    assert not np.array_equal(one.pair_all, other.pair_all)


def test_settings_that_cannot_work(source):
    pairs, pixels, tokens = source
    with pytest.raises(UserError, match="38 but there are 37"):
        make(source, batch=38)
    with pytest.raises(UserError, match="3 processes"):
        make(source, world=3)
    with pytest.raises(ValueError, match="captions"):
        make((pairs, pixels, tokens[1:]))
    bare = Pairs.from_rows("bare", [Row(key, [], Location("x")) for key in pairs.keys], pairs.hashes)
    with pytest.raises(UserError, match="37 of 37 training pairs have no caption"):
        TrainBatches(np.arange(COUNT), bare, pixels, tokens[:0], **SETTINGS)
