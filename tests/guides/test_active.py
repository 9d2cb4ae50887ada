"""A-CLIP-PING: with the bank's own pictures it agrees with the fixed tables; with crops it follows the student."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from clipling.data.pixels import Pixels
from clipling.data.views import Augment, crops, render_batch, view_number
from clipling.errors import UserError
from clipling.guides.active import ActiveGuide, OnlineQueries, ViewQueries
from clipling.guides.bank import build_bank
from clipling.guides.encoders import open_image_encoder
from clipling.guides.open import open_guide
from tests.guides.making import ToyImages, ToyTexts, source
from tests.guides.test_bank import build

WHOLE = Augment(scale=(1.0, 1.0))
COUNT = 240


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A source with a failed and a held-out part, and its bank by a small timm model with random weights."""
    folder = tmp_path_factory.mktemp("active")
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=0)
    save_file(model.state_dict(), folder / "w.safetensors")
    name = f"timm:mobilenetv3_small_050@{folder / 'w.safetensors'}"
    pairs = source(folder / "p", COUNT, size=32, broken=(9,))
    build_bank(pairs, folder / "bank", image_encoder=name, text_encoder=ToyTexts(), image_size=32, block=64)
    return pairs, folder / "bank", name


def agreement(one, other, epochs=range(4)) -> float:
    """Share of the neighbours (ids and all others) of two guides that are equal."""
    same = total = 0
    for epoch in epochs:
        for batch in np.array_split(np.random.default_rng(epoch).permutation(COUNT), 5):
            a, b = one.lookup(batch, epoch)["image"], other.lookup(batch, epoch)["image"]
            same += int((a.ids == b.ids).sum() + (a.others == b.others).sum())
            total += a.ids.numel() + a.others.numel()
    return same / total


@pytest.mark.parametrize("centre", [False, True])
def test_agrees_with_the_bank_when_fed_by_its_own_preprocessing(small, centre, fresh_cache):
    pairs, bank, _ = small
    rows = np.arange(0, COUNT - 20)
    options = {"rows": rows, "k": 3, "centre": centre, "seed": 2}
    fixed = open_guide(pairs.subset(range(COUNT)), bank, **options)
    pairs = readable(pairs)
    active = open_guide(pairs, bank, active="online", augment=WHOLE, **options)
    assert isinstance(active, ActiveGuide)
    assert isinstance(active.queries, OnlineQueries)
    assert agreement(fixed, active) >= 0.999
    found = active.lookup(np.arange(COUNT), 0)["image"]
    assert not np.isin(found.others.numpy(), [9, *range(COUNT - 20, COUNT)]).any()
    assert found.ids[9] == -1
    assert (found.ids[COUNT - 20 :] == -1).all()


def readable(pairs):
    """The same source, whose broken picture gives grey pixels: reading a source would have left it out."""
    from PIL import Image

    found = pairs.subset(range(len(pairs)))
    plain = type(found).image
    found.image = lambda i: Image.new("RGB", (32, 32)) if i == 9 else plain(found, i)
    return found


def test_follows_the_crop(small, fresh_cache):
    pairs, bank, name = small
    pairs = readable(pairs)
    augment = Augment(scale=(0.2, 0.5), flip=0.5)
    options = {"k": 3, "seed": 2, "centre": False}
    fixed = open_guide(pairs, bank, **options)
    active = open_guide(pairs, bank, active="online", augment=augment, **options)
    assert agreement(fixed, active) < 0.9
    pair = np.array([4, 50, 51, 120])
    found = active.lookup(pair, 1)["image"].others.numpy()
    encoder = open_image_encoder(name, 32)
    pixels = Pixels.open(pairs, 40, "squash")
    boxes, flips = crops(augment, 2, 1, pair, pixels.aspect[pair])
    query = encoder.encode(render_batch(pixels[pair], boxes, flips, 32)).numpy().astype(np.float16).astype(float)
    rows = active.bank.image[:].astype(float)
    for j, i in enumerate(pair):
        dots = rows @ query[j]
        dots[[i, 9]] = -9
        assert found[j].tolist() == np.argsort(-dots, kind="stable")[:3].tolist()


def test_text_and_self_are_those_of_the_bank_guide(small, fresh_cache):
    pairs, bank, _ = small
    fixed = open_guide(pairs, bank, k=2)
    active = open_guide(readable(pairs), bank, k=2, active="online", augment=WHOLE)
    pair = np.arange(30)
    one, other = fixed.lookup(pair, 0), active.lookup(pair, 0)
    for space in ("text", "self"):
        assert torch.equal(one[space].ids, other[space].ids)
        assert torch.equal(one[space].text, other[space].text)


def test_views_of_the_bank_are_the_queries(tmp_path):
    pairs = source(tmp_path / "p", 60, broken=(9,))
    augment = Augment(scale=(0.3, 0.8), views=3)
    bank = build(pairs, tmp_path / "b", image_encoder=ToyImages(), views=3, augment=augment, seed=4)
    active = open_guide(pairs, tmp_path / "b", k=2, centre=False, active="views", augment=augment, seed=4)
    assert isinstance(active.queries, ViewQueries)
    pair = np.arange(60)
    for epoch in range(4):
        view = view_number(augment, 4, epoch, pair)
        found = active.lookup(pair, epoch)["image"].others.numpy()
        rows = bank.image[:].astype(float)
        for i in range(60):
            dots = rows @ bank.views[[3 * i + view[i]]][0].astype(float)
            dots[[i, 9]] = -9
            expected = [-1, -1] if i == 9 else np.argsort(-dots, kind="stable")[:2].tolist()
            assert found[i].tolist() == expected
    whole = Augment(scale=(1.0, 1.0), views=1)
    build(pairs, tmp_path / "w", image_encoder=ToyImages(), views=1, augment=whole, block=60)
    fixed = open_guide(pairs, tmp_path / "w", k=2)
    active = open_guide(pairs, tmp_path / "w", k=2, active="views", augment=whole)
    assert np.array_equal(fixed.lookup(pair, 0)["image"].others, active.lookup(pair, 0)["image"].others)


def test_crops_of_another_training_are_refused(tmp_path, small):
    pairs = source(tmp_path / "p", 30)
    augment = Augment(scale=(0.3, 0.8), views=2)
    build(pairs, tmp_path / "b", views=2, augment=augment, seed=4)
    build(pairs, tmp_path / "plain")

    def opened(folder="b", of=pairs, **options):
        return open_guide(of, tmp_path / folder, k=2, active="views", **{"augment": augment, "seed": 4, **options})

    opened()
    with pytest.raises(UserError, match="no views") as refused:
        opened("plain")
    for way in ("--guide", "--set guide.active=online"):  # what a user can do: no verb builds a bank with views
        assert way in str(refused.value)
    assert "views=K" not in str(refused.value)
    with pytest.raises(UserError, match="in their order"):
        opened(of=pairs.subset(range(20)))
    with pytest.raises(UserError, match="another augmentation or seed"):
        opened(seed=5)
    with pytest.raises(UserError, match="another augmentation or seed"):
        opened(augment=Augment(scale=(0.4, 0.8), views=2))
    with pytest.raises(UserError, match="holds 2 views"):
        opened(augment=Augment(scale=(0.3, 0.8), views=3))
    with pytest.raises(UserError, match="has none"):
        opened(control="random")
    with pytest.raises(ValueError, match="augmentation"):
        opened(augment=None)
    joined = open_guide(pairs, tmp_path / "b", k=2).bank
    with pytest.raises(UserError, match="another image encoder"):
        OnlineQueries(joined, ToyImages(size=12), None, augment, 0, np.arange(30), pairs.links(), 2)
