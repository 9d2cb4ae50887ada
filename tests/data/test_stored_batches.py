"""Batches from stored knowledge: what is stored belongs to what is shown, for every rank, worker and view."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch

from clipling.data.knowledge import Knowledge
from clipling.data.pixels import Pixels
from clipling.data.replay import replay
from clipling.data.stored_batches import StoredBatches
from clipling.data.views import Augment
from clipling.guides.stored_teacher import stored_teachers
from clipling.models.hub import new_student
from tests.reinforcing import reinforced, teachers

NEEDS = frozenset(f"{who}.{what}" for who in ("student", "teacher") for what in ("image", "text", "text:syn", "text:mix"))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return reinforced(tmp_path_factory.mktemp("source"), captions=("others",), storage="fp32")


@pytest.fixture(scope="module")
def knowledge(pairs):
    return Knowledge(pairs)


def batches(pairs, knowledge, rank: int = 0, world: int = 1, **options) -> StoredBatches:
    student = new_student("tiny_vit_32")
    tokens = student.tokenise(pairs.captions)
    given = {"wanted": NEEDS, "text_tokens": student.tokenise(knowledge.texts), **options}
    place = {"rank": rank, "world": world, "seed": 4}
    return StoredBatches(
        Pixels.open(pairs, 40, "squash"), tokens, Augment(scale=(1, 1)), 32, 8, pairs=pairs, knowledge=knowledge, **given, **place
    )


def drawn(knowledge, host) -> np.ndarray:
    return knowledge.draw(4, host.epoch, host.pair)


def test_the_teacher_saw_the_very_crop_that_the_student_is_shown(pairs, knowledge):
    """The student's size is the second teacher's: its features of the batch's pictures are those that are stored."""
    host = batches(pairs, knowledge, exact=True)[5]
    model = teachers()["second"]
    with torch.no_grad():
        expected = model.encode_image(model.normalise(host.images))
    found = host.stored["image"][:, 48:]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert float((expected[1:] - expected[:-1]).abs().amax(1).min()) > 1e-3
    for crop, pair, row in zip(host.images, host.pair, drawn(knowledge, host)):
        again = replay(np.asarray(pairs.image(int(pair))), knowledge.records[row], 32)
        assert torch.equal(crop, torch.from_numpy(again.copy()).permute(2, 0, 1))


def test_held_pictures_show_nearly_the_same(pairs, knowledge):
    exact, held = (batches(pairs, knowledge, exact=exact)[5] for exact in (True, False))
    assert np.array_equal(exact.pair, held.pair)
    apart = (exact.images.float() - held.images.float()).abs().mean(dim=(1, 2, 3))
    assert float(apart.median()) < 12
    shuffled = (exact.images.float() - held.images.float().roll(1, 0)).abs().mean(dim=(1, 2, 3))
    assert float(shuffled.median()) > 3 * float(apart.median())
    again = batches(pairs, knowledge)[5]
    assert torch.equal(again.images, held.images)


def test_captions_tokens_and_features_belong_together(pairs, knowledge):
    student, model = new_student("tiny_vit_32"), teachers()["first"]
    made = batches(pairs, knowledge)
    seen = set()
    for step in range(6):
        host = made[step]
        own = [pairs.captions[row] for row in host.caption_all]
        texts = knowledge.draw_texts(4, host.epoch, host.pair)
        # a picture with one caption has no others: the real one stands in
        syn = [knowledge.texts[row] if row >= 0 else real for row, real in zip(texts, own)]
        assert torch.equal(host.more_tokens["syn"], student.tokenise(syn))
        mixed = [s if torch.equal(row, student.tokenise([s])[0]) else r for row, s, r in zip(host.more_tokens["mix"], syn, own)]
        assert torch.equal(host.more_tokens["mix"], student.tokenise(mixed))
        for name, said in (("text", own), ("text:syn", syn), ("text:mix", mixed)):
            np.testing.assert_allclose(host.stored[name][:, :48].numpy(), model.encode_texts_in_batches(said), atol=1e-5)
        seen |= {(m == s, m == r) for m, s, r in zip(mixed, syn, own) if s != r}
        assert all((row < 0) == (len(pairs.captions_of(int(pair))) == 1) for row, pair in zip(texts, host.pair))
    assert seen == {(True, False), (False, True)}


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_how_often_a_synthetic_caption_is_shown(pairs, knowledge, share):
    made = batches(pairs, knowledge, mix=share)
    texts = np.concatenate([made._texts("mix", epoch, np.arange(24)) for epoch in range(200)])
    possible = np.concatenate([made._texts("syn", epoch, np.arange(24)) for epoch in range(200)])
    assert np.mean(texts[possible >= 0] >= 0) == pytest.approx(share, abs=0.03)


def test_ranks_share_a_batch(pairs, knowledge):
    whole, halves = batches(pairs, knowledge)[7], [batches(pairs, knowledge, rank, 2)[7] for rank in (0, 1)]
    for name, value in whole.stored.items():
        assert torch.equal(torch.cat([half.stored[name] for half in halves]), value)
    for view, value in whole.more_tokens.items():
        assert torch.equal(torch.cat([half.more_tokens[view] for half in halves]), value)
    assert torch.equal(torch.cat([half.images for half in halves]), whole.images)


def test_nothing_is_read_that_nobody_needs(pairs, knowledge):
    host = batches(pairs, knowledge, wanted=frozenset({"student.image", "student.text:mix"}))[0]
    assert host.stored == {}
    assert set(host.more_tokens) == {"mix"}


def test_stored_teachers_take_their_columns(pairs, knowledge):
    host = batches(pairs, knowledge)[0]
    first, second = stored_teachers(knowledge)
    assert (first.name, first.dims, second.dims) == ("first", {"teacher.first": 48}, {"teacher.second": 64})
    assert first.scale == pytest.approx(1 / 0.07, rel=1e-5)
    assert torch.equal(torch.cat([t.image(host, CPU) for t in (first, second)], dim=1), host.stored["image"])
    assert set(second.more_texts(host, CPU)) == {"syn", "mix"}
    assert torch.equal(second.more_texts(host, CPU)["syn"], host.stored["text:syn"][:, 48:])


class Tracked(np.ndarray):
    """A picture of which can be told whether somebody still holds it."""


def test_one_picture_of_a_batch_is_held_at_a_time(pairs, knowledge):
    """A batch of 256 photographs of 12 megapixels would be 9 GB. A teacher sees the same crops at its own size."""
    made = batches(pairs, knowledge, exact=True, more={48: Pixels.open(pairs, 60, "squash")})
    held, most = [], []

    class Source:
        def image(self, i: int) -> np.ndarray:
            most.append(sum(ref() is not None for ref in held))
            pixels = np.asarray(pairs.image(i))
            picture = Tracked(pixels.shape, np.uint8)  # owns its memory: arrays made of it hold it
            picture[:] = pixels
            held.append(weakref.ref(picture))
            return picture

    expected = made[3]
    made.source = Source()
    host = made[3]
    assert len(most) == 8
    assert max(most) <= 1
    assert torch.equal(host.images, expected.images)
    for crop, pair, row in zip(host.at_size[48], host.pair, drawn(knowledge, host)):
        again = replay(np.asarray(pairs.image(int(pair))), knowledge.records[row], 48)
        assert torch.equal(crop, torch.from_numpy(again.copy()).permute(2, 0, 1))
    assert host.images.is_contiguous(memory_format=torch.channels_last)
