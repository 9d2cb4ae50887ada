"""Look-ups: pure functions of (seed, epoch, pair) that give the bank's rows of the neighbours drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clipling.errors import UserError
from clipling.guides.bank import BankRows
from clipling.guides.guidance import BankGuide, open_tables
from clipling.guides.hubness import in_degrees
from clipling.guides.open import open_guide
from clipling.guides.stored import caption_rows
from clipling.objectives.term import Neighbours
from tests.guides.making import ToyImages, ToyTexts, rows_of, source, unit_rows
from tests.guides.test_bank import build

PAIRS = 90
MANIFEST = {"licences": {"a": "x"}, "image": {"encoder": "a"}, "text": {"encoder": "a"}, "views": None}


class Source:
    """The little of `Pairs` that tables and descriptions need."""

    def __init__(self, links):
        self.name, self.keys, self.ids = "toy", [f"k{i}" for i in range(PAIRS)], links

    def links(self):
        return self.ids


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(1, 5, PAIRS))])
    image, text = unit_rows(PAIRS, 12, 1), unit_rows(offsets[-1], 7, 2)
    valid = np.ones(PAIRS, bool)
    valid[[3, 30]] = False
    image[3], text[offsets[30]] = 0, 0
    bank = BankRows(rows_of(image), rows_of(text), offsets, valid, MANIFEST)
    pairs = Source([[i // 3] if i % 5 == 0 else [] for i in range(PAIRS)])
    rows = np.arange(0, PAIRS - 10)
    folder = tmp_path_factory.mktemp("tables")
    tables = open_tables(bank, pairs, rows, folder, k=4)
    by_caption = open_tables(bank, pairs, rows, folder, k=4, query="caption")
    return bank, pairs, tables, by_caption


def batch(bank, seed=0, size=40):
    rng = np.random.default_rng(seed)
    pair = rng.permutation(PAIRS)[:size]
    return pair, bank.offsets[pair] + rng.integers(0, np.diff(bank.offsets)[pair])


def equal(one: dict[str, Neighbours], other: dict[str, Neighbours]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(getattr(one[s], f), getattr(other[s], f)) for s in one for f in ("ids", "others", "image", "text")
    )


@pytest.mark.parametrize("caption", ["random", "mean", "nearest"])
def test_rows_are_those_of_the_pair_drawn(made, caption):
    bank, _, tables, _ = made
    guide = BankGuide(bank, tables["image"], tables["text"], caption=caption, seed=5)
    assert guide.provides == {"neighbours.image", "neighbours.text", "neighbours.self"}
    assert guide.dims == {"image": 12, "text": 7}
    pair, drawn = batch(bank)
    found = guide.lookup(pair, 2, drawn)
    for space in ("image", "text"):
        got = found[space]
        assert np.array_equal(got.others.numpy(), tables[space].ids[pair])
        for j in range(len(pair)):
            target = int(got.ids[j])
            if target < 0:
                assert (got.others[j] == -1).all()
                assert not got.image[j].any()
                assert not got.text[j].any()
                continue
            assert target in got.others[j].tolist()
            assert np.array_equal(got.image[j].numpy(), bank.image[[target]][0].astype(np.float32))
            captions = bank.text[bank.offsets[target] : bank.offsets[target + 1]].astype(np.float32)
            if caption == "mean":
                mean = captions.sum(0) / np.linalg.norm(captions.sum(0))
                np.testing.assert_allclose(got.text[j].numpy(), mean, atol=1e-3)
            elif caption == "nearest":
                own = bank.text[[drawn[j]]][0].astype(np.float32)
                assert np.array_equal(got.text[j].numpy(), captions[(captions @ own).argmax()])
            else:
                assert any(np.array_equal(got.text[j].numpy(), row) for row in captions)
    alone = found["self"]
    assert np.array_equal(alone.ids.numpy(), np.where(bank.valid[pair], pair, -1))
    assert alone.others.shape == (40, 1)
    ok = bank.valid[pair]
    assert np.array_equal(alone.text.numpy()[ok], bank.text[drawn[ok]].astype(np.float32))
    assert np.array_equal(alone.image.numpy()[ok], bank.image[pair[ok]].astype(np.float32))
    assert not alone.image[~torch.from_numpy(ok)].any()
    assert not alone.text[~torch.from_numpy(ok)].any()


def test_a_look_up_is_a_pure_function_of_seed_epoch_and_pair(made):
    bank, _, tables, _ = made
    guide = BankGuide(bank, tables["image"], tables["text"], seed=1)
    pair, drawn = batch(bank)
    first = guide.lookup(pair, 3, drawn)
    guide.lookup(pair[::-1], 9, drawn[::-1])
    assert equal(first, guide.lookup(pair, 3, drawn))
    assert equal(first, BankGuide(bank, tables["image"], tables["text"], seed=1).lookup(pair, 3, drawn))
    order = np.random.default_rng(0).permutation(len(pair))
    mixed = guide.lookup(pair[order], 3, drawn[order])
    for space, rows in first.items():
        assert torch.equal(rows.ids[order], mixed[space].ids)
        assert torch.equal(rows.text[order], mixed[space].text)
    assert not torch.equal(first["image"].ids, guide.lookup(pair, 4, drawn)["image"].ids)
    other = BankGuide(bank, tables["image"], tables["text"], seed=2).lookup(pair, 3, drawn)
    assert not torch.equal(first["image"].ids, other["image"].ids)


def test_all_neighbours_and_all_captions_are_drawn_about_equally(made):
    bank, _, tables, _ = made
    guide = BankGuide(bank, tables["image"], tables["text"])
    pair = np.arange(60)
    slots, numbers = np.zeros(4), []
    for epoch in range(60):
        found = guide.lookup(pair, epoch)["image"]
        for j in np.flatnonzero(found.ids.numpy() >= 0):
            slots[found.others[j].tolist().index(int(found.ids[j]))] += 1
            target = int(found.ids[j])
            rows = bank.text[bank.offsets[target] : bank.offsets[target + 1]].astype(np.float32)
            if len(rows) == 4:
                numbers.append(int((rows == found.text[j].numpy()).all(1).argmax()))
    assert slots.min() > 0.9 * slots.mean()
    assert np.bincount(numbers, minlength=4).min() > 0.8 * len(numbers) / 4


def test_fewer_neighbours_and_fewer_spaces(made):
    bank, _, tables, _ = made
    guide = BankGuide(bank, tables["image"], tables["text"], k=1, spaces=("image",))
    found = guide.lookup(np.arange(PAIRS), 0)
    assert found.keys() == {"image"}
    assert np.array_equal(found["image"].ids.numpy(), tables["image"].ids[:, 0])
    assert found["image"].others.shape == (PAIRS, 1)
    held_out = np.arange(PAIRS - 10, PAIRS)
    assert (found["image"].ids.numpy()[held_out] == -1).all()
    assert not np.isin(found["image"].ids.numpy(), held_out).any()
    for wrong in ({"k": 9}, {"control": "best"}, {"caption": "all"}, {"spaces": ("sound",)}, {"control": "random"}):
        with pytest.raises(ValueError, match=r"."):
            BankGuide(bank, tables["image"], tables["text"], **wrong)


def test_neighbours_of_the_caption_that_was_drawn(made):
    bank, _, _, tables = made
    guide = BankGuide(bank, tables["image"], tables["text"])
    pair, drawn = batch(bank)
    assert np.array_equal(guide.lookup(pair, 0, drawn)["text"].others.numpy(), tables["text"].ids[drawn])
    assert np.array_equal(guide.lookup(pair, 0)["text"].others.numpy(), tables["text"].ids[bank.offsets[pair]])


def test_the_random_control(made):
    bank, pairs, tables, _ = made
    guide = BankGuide(bank, tables["image"], tables["text"], control="random", links=pairs.links(), seed=0)
    found = guide.lookup(np.arange(PAIRS), 0)
    for space in ("image", "text"):
        others = found[space].others.numpy()
        assert np.array_equal(in_degrees(others, PAIRS), in_degrees(tables[space].ids, PAIRS))
        assert (others != np.arange(PAIRS)[:, None]).all()
        assert (others == tables[space].ids).all(axis=1).mean() < 0.2
    assert np.array_equal(found["self"].ids.numpy(), np.where(bank.valid, np.arange(PAIRS), -1))
    about = guide.describe(pairs)
    assert about["control"] == "random"
    assert about["control_left"] == {"forbidden": 0}


@pytest.mark.parametrize("by_caption", [False, True])
def test_a_guide_describes_itself(made, by_caption):
    import json

    bank, pairs, tables, captions = made
    tables = captions if by_caption else tables
    about = BankGuide(bank, tables["image"], tables["text"], k=2).describe(pairs)
    json.dumps(about)
    assert about["kind"] == "BankGuide"
    assert about["pairs_without_features"] == 2
    assert about["hubness"]["image"]["largest"] == in_degrees(tables["image"].ids, PAIRS).max()
    assert len(about["neighbours_sample"]) == 12
    sample = about["neighbours_sample"][5]
    pair = pairs.keys.index(sample["pair"])
    assert sample["image_neighbours"] == [f"k{i}" for i in tables["image"].ids[pair, :2]]


def test_caption_rows():
    offsets = np.array([0, 2, 2, 5, 6])
    assert caption_rows(offsets, [2, 0, 1, 3]).tolist() == [2, 3, 4, 0, 1, 5]
    assert caption_rows(offsets, []).tolist() == []


def test_from_a_source_to_a_guide(tmp_path):
    pairs = source(tmp_path / "p", 40, broken=(5,))
    bank = build(pairs, tmp_path / "bank", image_encoder=ToyImages(), text_encoder=ToyTexts())
    train = pairs.subset(range(4, 40))
    guide = open_guide(train, bank.folder, k=3, cap=8, seed=1)
    assert len(list((bank.folder / "tables").glob("*.npz"))) == 2
    assert guide.describe(train)["centred"]
    found = guide.lookup(np.arange(36), 0)["image"]
    assert int(found.ids[1]) == -1  # picture 5 is pair 1 here
    assert 1 not in found.others
    plain = open_guide(train, bank.folder, k=3, centre=False, seed=1, tables=tmp_path / "elsewhere")
    assert not plain.describe(train)["centred"]
    assert torch.equal(plain.lookup(np.array([0]), 0)["self"].image, torch.from_numpy(bank.image[[4]].astype(np.float32)))
    # the mean is that of the training rows: a held-out row moves nothing
    less = open_guide(train, bank.folder, rows=np.arange(20), k=3)
    assert not np.isin(less.tables["image"].ids, np.arange(20, 36)).any()
    assert (less.tables["image"].ids[20:] == -1).all()
    with pytest.raises(UserError, match="another source"):
        open_guide(source(tmp_path / "q", 10, seed=5), bank.folder)
    few = open_guide(train, bank.folder, rows=np.arange(4), k=9)
    assert "k is 9, but no pair has more neighbours than 2 in the image space and 2" in few.describe(train)["note"]
    assert few.lookup(np.arange(36), 0)["image"].others.shape == (36, 9)
    assert "note" not in guide.describe(train)
    with pytest.raises(UserError, match="no training pair"):
        open_guide(train, bank.folder, rows=np.array([0]), k=1)
