"""A hostile day for loading: processes killed, broken pictures, cut tars, full disks. Training goes on, or stops with one message, and
never sees a caption with another pair's picture."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from clipling.data.loader import TrainBatches
from clipling.data.pixels import Pixels
from clipling.data.source import open_pairs
from clipling.data.views import Augment
from clipling.data.workers import MOST_DEATHS, loader
from clipling.errors import UserError
from clipling.recipe import load_recipe, with_settings
from clipling.run import train
from tests.data.making import encode, put, tar
from tests.faults.test_kill_training import content

pytestmark = [pytest.mark.faults, pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL and /proc")]


def colour_of(n: int) -> tuple[int, int, int]:
    """One colour a pair, at least 20 apart from every other in some channel: a picture tells its number."""
    return 20 * (n % 12) + 10, 20 * (n // 12 % 12) + 10, 20 * (n // 144 % 12) + 10


def numbered(n: int) -> bytes:
    return encode(Image.new("RGB", (48, 40), colour_of(n)), "PNG" if n % 3 else "JPEG", **({} if n % 3 else {"quality": 95}))


def number_shown(picture: np.ndarray) -> int:
    """The number of the pair whose picture [3, h, w] this is."""
    r, g, b = np.rint((picture.reshape(3, -1).mean(1) - 10) / 20).astype(int)
    return int(r + 12 * g + 144 * b)


def members(numbers, broken=()):
    for n in numbers:
        yield f"{n:05d}.{'png' if n % 3 else 'jpg'}", b"broken" if n in broken else numbered(n)
        yield f"{n:05d}.txt", f"number {n}"


def batches_of(pairs, batch=16, **how) -> TrainBatches:
    """Batches whose token rows are the numbers that captions name."""
    tokens = torch.tensor([[int(caption.split()[1])] * 4 for caption in pairs.captions])
    pixels = Pixels.open(pairs, 20, **how)
    return TrainBatches(np.arange(len(pairs)), pairs, pixels, tokens, Augment(scale=(0.5, 1.0)), 16, batch, seed=3)


def check_no_shift(found) -> int:
    """Every picture shows the number that its caption names. Returns how many pictures were looked at."""
    seen = 0
    for host in found:
        shown = [number_shown(picture.astype(np.float64)) for picture in host.images.numpy()]
        assert shown == host.tokens[:, 0].tolist(), f"step {host.step} has captions of other pairs"
        seen += len(shown)
    return seen


def test_the_check_catches_a_shift(tmp_path, fresh_cache):
    pairs = open_pairs(str(tar(tmp_path / "a.tar", list(members(range(40))))))
    batches = batches_of(pairs)
    assert check_no_shift([batches[0], batches[1]]) == 32
    pairs.locations = pairs.locations[1:] + pairs.locations[:1]
    with pytest.raises(AssertionError, match="captions of other pairs"):
        check_no_shift([batches_of(pairs, limit_bytes=0)[0]])


@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_five_percent_broken_pictures_and_a_tar_that_ends_early(tmp_path, fresh_cache, decode):
    tar(tmp_path / "a.tar", list(members(range(200), broken=range(0, 200, 20))))
    tar(tmp_path / "b.tar", list(members(range(200, 300))))
    whole = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[: int(len(whole) * 0.7)])
    pairs = open_pairs(str(tmp_path), max_bad=0.1)
    assert pairs.problems.counts() == {"broken image": 10, "truncated tar": 1}
    assert 190 + 60 < len(pairs) < 190 + 80
    batches = batches_of(pairs, decode=decode)
    assert check_no_shift(batches[step] for step in range(batches.steps_per_epoch)) >= 240
    with pytest.raises(UserError, match=r"broken image(.|\n)*listed in"):
        open_pairs(str(tmp_path), max_bad=0.02)


def children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(child) for child in file.read().split()]


def same(a, b) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.tokens, b.tokens) and np.array_equal(a.pair_all, b.pair_all)


def test_a_killed_worker_costs_nothing_but_time(tmp_path, fresh_cache, capfd):
    pairs = open_pairs(str(tar(tmp_path / "a.tar", list(members(range(120))))))
    batches = batches_of(pairs, limit_bytes=0)
    before = set(children())
    found = []
    for host in loader(batches, 2, 40, workers=2):
        found.append(host)
        if len(found) in (3, 20):
            os.kill(next(child for child in children() if child not in before), signal.SIGKILL)
    assert capfd.readouterr().err.count("was killed; the batches from step") == 2
    assert [host.step for host in found] == list(range(2, 40))
    assert all(same(host, batches[host.step]) for host in found)
    assert check_no_shift(found) == 38 * 16
    assert set(children()) <= before, "no process is left behind"


def test_a_run_on_a_hostile_day_ends_in_the_same_bits(tmp_path, fresh_cache, capfd):
    """Broken pictures, a cut tar, and loader processes that are killed, in one real run."""
    tar(tmp_path / "src" / "a.tar", list(members(range(100), broken=range(0, 100, 20))))
    tar(tmp_path / "src" / "b.tar", list(members(range(100, 160))))
    whole = (tmp_path / "src" / "b.tar").read_bytes()
    (tmp_path / "src" / "b.tar").write_bytes(whole[: int(len(whole) * 0.8)])
    own = {"data.source": str(tmp_path / "src"), "data.workers": 1, "data.cache_gb": 0.0, "optimiser.batch": 16}
    recipe = with_settings(load_recipe("clip", smoke=True), {**own, "max_steps": None, "stages.0.epochs": 3.0})
    train(recipe, tmp_path / "calm", quiet=True)
    before, stop, killed = set(children()), threading.Event(), []

    def kill() -> None:
        while not stop.wait(0.15) and len(killed) < 2:
            for child in set(children()) - before - set(killed):
                os.kill(child, signal.SIGKILL)
                killed.append(child)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        train(recipe, tmp_path / "hostile", quiet=True)
    finally:
        stop.set()
        thread.join()
    assert len(killed) >= 1
    assert "was killed; the batches from step" in capfd.readouterr().err
    assert content(tmp_path / "hostile") == content(tmp_path / "calm")
    listed = (tmp_path / "hostile" / "problems.tsv").read_text()
    assert listed.count("broken image") == 5
    assert "truncated tar" in listed


def test_workers_that_always_die_end_in_one_message(tmp_path, fresh_cache, monkeypatch):
    pairs = open_pairs(str(tar(tmp_path / "a.tar", list(members(range(40))))))
    batches, main = batches_of(pairs), os.getpid()

    def die(self, step):
        if os.getpid() != main and step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, step)

    original = TrainBatches.__getitem__
    monkeypatch.setattr(TrainBatches, "__getitem__", die)
    with pytest.raises(UserError, match=rf"killed for the {MOST_DEATHS + 1}th time, last before step [0-3]"):
        list(loader(batches, 0, 8, workers=1))


def test_a_picture_that_goes_away_ends_in_one_message(tmp_path, fresh_cache):
    for n in range(24):
        put(tmp_path / "in" / f"{n}.png", numbered(n + 1))
        put(tmp_path / "in" / f"{n}.txt", f"number {n + 1}")
    pairs = open_pairs(str(tmp_path / "in"))
    batches = batches_of(pairs, batch=8, limit_bytes=0)
    (tmp_path / "in" / "7.png").unlink()
    for workers in (0, 2):
        with pytest.raises(UserError, match=r"^the image of '7\.png' can no longer be read") as stopped:
            list(loader(batches, 0, 3, workers=workers))
        assert "Traceback" not in str(stopped.value)


@pytest.mark.parametrize(("tars", "steps", "workers"), [(1, 3, 6), (2, 1, 4)])
def test_fewer_tars_and_steps_than_workers(tmp_path, fresh_cache, tars, steps, workers):
    for shard in range(tars):
        tar(tmp_path / "in" / f"{shard}.tar", list(members(range(40 * shard, 40 * shard + 40))))
    batches = batches_of(open_pairs(str(tmp_path / "in")), limit_bytes=0)
    began = time.monotonic()
    assert check_no_shift(loader(batches, 0, steps, workers=workers)) == 16 * steps
    assert time.monotonic() - began < 60
