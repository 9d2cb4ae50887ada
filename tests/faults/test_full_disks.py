"""Disks that are full while packing, caching pixels or saving checkpoints: one message, no half file, and the same command goes on."""

from __future__ import annotations

import subprocess
import sys

import pytest

from clipling.data.pack import pack
from clipling.data.pixels import Pixels
from clipling.data.reading import Options
from clipling.data.remote import Fetch
from clipling.data.source import open_pairs
from clipling.errors import UserError
from clipling.recipe import load_recipe, with_settings
from clipling.run import train
from tests.data.making import encode, put
from tests.faults.test_kill_training import content
from tests.faults.test_loading import batches_of, check_no_shift, members
from tests.toy import toy_folder

pytestmark = pytest.mark.faults


class SmallDisk:
    """A tmpfs that can be made larger."""

    def __init__(self, place, size: str) -> None:
        self.place = place
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if sys.platform != "linux" or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("cannot mount a small disk here")

    def grow(self, size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.place)], check=True)


@pytest.fixture
def small(tmp_path):
    made = []

    def make(size: str) -> SmallDisk:
        made.append(SmallDisk(tmp_path / f"disk-{size}", size))
        return made[-1]

    yield make
    for disk in made:
        subprocess.run(["umount", "-l", str(disk.place)], check=False)


def leftovers(folder) -> list:
    return [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


def test_packing_onto_a_full_disk(tmp_path, fresh_cache, small, capsys):
    from PIL import Image

    from tests.data.making import pixels

    rows = ["filepath,title"]
    for n in range(40):
        put(tmp_path / "in" / f"{n}.png", encode(Image.fromarray(pixels(n, 120, 100)), "PNG"))
        rows.append(f"{n}.png,number {n}")
    table = put(tmp_path / "in" / "t.csv", "\n".join(rows))
    settings = {"size": None, "quality": 90, "shard": 5, "fetch": Fetch(), "at_once": 2}
    disk = small("900k")
    with pytest.raises(UserError, match="no space left on the disk") as stopped:
        pack(str(table), disk.place / "out", Options(), **settings)
    assert str(disk.place) in str(stopped.value)
    assert not leftovers(disk.place)
    done = sorted(path.name for path in (disk.place / "out").glob("*.tar"))
    assert 1 <= len(done) < 8
    assert 5 * len(done) - 5 <= len(open_pairs(str(disk.place / "out"))) <= 5 * len(done), "what is there is whole"
    assert "holds a part of" in capsys.readouterr().err
    disk.grow("8m")
    again = pack(str(table), disk.place / "out", Options(), **settings)
    assert again["pairs"] == 40
    assert len(open_pairs(str(disk.place / "out"))) == 40
    assert "holds a part of" not in capsys.readouterr().err
    assert again["made_now"] < 8
    pack(str(table), tmp_path / "whole", Options(), **settings)
    for path in (tmp_path / "whole").glob("*"):
        if path.name != "pack.json":
            assert path.read_bytes() == (disk.place / "out" / path.name).read_bytes()


def test_a_cache_on_a_full_disk(tmp_path, fresh_cache, small, monkeypatch):
    from tests.data.making import tar

    path = tar(tmp_path / "a.tar", list(members(range(300))))
    disk = small("300k")
    monkeypatch.setenv("CLIPLING_CACHE", str(disk.place))
    pairs = open_pairs(str(path))
    with pytest.raises(UserError, match=r"no space left on the disk(.|\n)*CLIPLING_CACHE"):
        Pixels.open(pairs, 20)
    assert not leftovers(disk.place)
    disk.grow("8m")
    batches = batches_of(open_pairs(str(path)))
    assert check_no_shift(batches[step] for step in range(batches.steps_per_epoch)) == 288


def test_checkpoints_on_a_full_disk(tmp_path, fresh_cache, small):
    toy, val = toy_folder(tmp_path / "toy", count=48), toy_folder(tmp_path / "val", count=24, seed=1)
    own = {
        "data.source": str(toy),
        "data.val": str(val),
        "data.workers": 0,
        "optimiser.batch": 16,
        "max_steps": None,
        "stages.0.epochs": 2.0,
    }
    recipe = with_settings(load_recipe("clip", smoke=True), own)
    train(recipe, tmp_path / "whole", quiet=True)
    disk = small("3m")
    with pytest.raises(UserError, match="no space left on the disk"):
        train(recipe, disk.place / "run", quiet=True)
    assert not leftovers(disk.place)
    disk.grow("200m")
    train(recipe, disk.place / "run", resume=True, quiet=True)
    assert content(disk.place / "run") == content(tmp_path / "whole")
