"""SIGKILL at any instant leaves an index that is usable, true in all it holds, and resumes to what one run would have made."""

from __future__ import annotations

import io
import random
import time
from hashlib import blake2b

import numpy as np
import pytest
from PIL import Image

from clipling.deploy.search import index
from clipling.deploy.search.catalogue import Catalogue
from clipling.deploy.search.index import update
from clipling.deploy.search.search import Search
from clipling.errors import UserError
from tests.deploy.search.making import ABOUT, COLOURS, ColourModel, folder_of, picture
from tests.faults.killing import run_in_child

pytestmark = pytest.mark.faults
KILLS = 20


class Slow(ColourModel):
    def encode_image(self, images):
        time.sleep(0.004 * len(images))
        return super().encode_image(images)


def check(out, photos) -> int:
    """Everything in the catalogue is whole and true; how many pictures there are."""
    if not (out / "catalogue.sqlite").exists():
        return 0
    catalogue = Catalogue(out)
    ids, rows = catalogue.embeddings()
    shown, compared = catalogue.shown(ids.tolist()), 0
    assert [s.id for s in shown] == ids.tolist()
    for s, row in zip(shown, rows):
        with Image.open(io.BytesIO(catalogue.thumbnail(s.id))) as small:
            assert small.size == (s.width, s.height)
        for file in s.files:
            path = photos / file.path
            # A file that has changed since is the next run's; what is held is of the bytes it was made of.
            if path.exists() and blake2b(path.read_bytes(), digest_size=16).hexdigest() == s.hash:
                compared += 1
                assert row == pytest.approx(ColourModel().encode_image([Image.open(path)])[0], abs=1e-6)
    catalogue.close()
    assert compared >= 0.4 * len(ids)
    if len(ids):
        assert len(Search(out, model=ColourModel()).query("red", 5)) == min(5, len(ids))
    else:
        with pytest.raises(UserError, match="no picture yet"):
            Search(out, model=ColourModel())
    return len(ids)


def state(out):
    catalogue = Catalogue(out)
    ids, rows = catalogue.embeddings()
    found = sorted((file.key, s.hash, row.tobytes()) for s, row in zip(catalogue.shown(ids.tolist()), rows) for file in s.files)
    catalogue.close()
    return found


def test_kills_while_building_and_while_updating(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "PICTURES", 4)
    photos, out = folder_of(tmp_path / "photos", 60), tmp_path / "index"
    rng, kills, counts = random.Random(0), 0, []

    def work():
        update(Slow(), ABOUT, str(photos), out, threads=2, exact_up_to=20)

    begun = time.monotonic()
    run_in_child(work, None)
    whole = time.monotonic() - begun
    wanted = state(out)
    out = tmp_path / "killed"
    while kills < KILLS:
        # Half of them early: starting up, claiming, first transactions. Later rounds resume, finish and update.
        limit = whole * (0.25 if rng.random() < 0.5 else 1.0)
        if run_in_child(work, rng.uniform(0.002, limit)):
            # It was done: changes, so that there is something to be killed in again.
            picture(photos / f"later{kills}.png", COLOURS["cyan"], mark=400 + kills)
            picture(photos / "red" / "0.png", COLOURS["green"], mark=500 + kills)
            (photos / "blue").rename(photos / "b") if (photos / "blue").exists() else (photos / "b").rename(photos / "blue")
        else:
            kills += 1
        counts.append(check(out, photos))
    assert run_in_child(work, None)
    check(out, photos)
    assert len({count for count in counts if count}) > 3, "the kills fell into few states"
    # What resuming made equals what one run makes of the same files.
    run_in_child(lambda: update(Slow(), ABOUT, str(photos), tmp_path / "fresh", exact_up_to=20), None)
    assert state(out) == state(tmp_path / "fresh")
    assert len(wanted) == 60


def test_kills_while_overwriting(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "PICTURES", 4)
    photos, out = folder_of(tmp_path / "photos", 30), tmp_path / "index"
    rng = random.Random(1)
    run_in_child(lambda: update(ColourModel(), {"fingerprint": "old", "model": "old"}, str(photos), out, exact_up_to=10), None)

    def work():
        update(Slow(), ABOUT, str(photos), out, threads=2, exact_up_to=10, overwrite=True)

    for _ in range(8):
        run_in_child(work, rng.uniform(0.002, 0.3))
        check(out, photos)
    run_in_child(lambda: update(Slow(), ABOUT, str(photos), out, exact_up_to=10, overwrite=True), None)
    assert check(out, photos) == 30
    _, rows = Catalogue(out).embeddings()
    assert np.isfinite(rows).all()
