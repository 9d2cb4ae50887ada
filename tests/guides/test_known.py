"""A bank brought up to date: what is unchanged is taken over bit for bit, what changed under its old key is encoded again. About 2 s."""

from __future__ import annotations

import copy

import numpy as np

from clipling.data.pairs import Location, Pairs, hash_bytes
from clipling.guides.bank import build_bank
from tests.guides.making import ToyImages, ToyTexts, source


def test_what_changed_under_its_key_is_encoded_again(tmp_path):
    encoders = {"image_encoder": ToyImages(), "text_encoder": ToyTexts()}
    pairs = source(tmp_path / "source", 30, broken=(8,))
    before = Pairs.from_rows("toy", [pairs.row(i) for i in range(30)], pairs.hashes)
    rows, hashes = [copy.deepcopy(pairs.row(i)) for i in range(30)], list(pairs.hashes)
    old = build_bank(before, tmp_path / "old", **encoders)
    # Another picture of pair 4; that of 8 could not be read before and can be now, of the same hash, as of a file server that was away.
    rows[4].location, hashes[4] = Location(str(tmp_path / "source" / "009.png")), hash_bytes((tmp_path / "source" / "009.png").read_bytes())
    (tmp_path / "source" / "008.png").write_bytes((tmp_path / "source" / "013.png").read_bytes())
    rows[11].captions = ["words that nobody said before"] * len(rows[11].captions)
    rows[14].captions = [*rows[14].captions, "and one more"]
    now = Pairs.from_rows("toy", rows, hashes)
    made = build_bank(now, tmp_path / "new", update=tmp_path / "old", **encoders)
    fresh = build_bank(now, tmp_path / "fresh", **encoders)
    same = np.setdiff1d(np.arange(30), [4, 8, 11, 14])
    assert not old.valid[8]
    assert made.valid.all()
    assert made.image[same].tobytes() == old.image[same].tobytes()
    near = lambda a, b: (a.astype(float) * b.astype(float)).sum(1)  # noqa: E731
    for i in (4, 8):
        assert near(made.image[[i]], fresh.image[[i]])[0] > 0.999
        assert near(made.image[[i]], old.image[[i]])[0] < 0.99
    mine = lambda bank, i: bank.text[np.arange(bank.offsets[i], bank.offsets[i + 1])]  # noqa: E731
    for i in range(30):
        assert (near(mine(made, i), mine(fresh, i)) > 0.999).all()
    assert (near(mine(made, 11), mine(old, 11)) < 0.9).all()
