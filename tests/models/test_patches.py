"""Pictures of which some patches are seen."""

from __future__ import annotations

import pytest
import torch

from clipling.errors import UserError
from clipling.models.hub import new_student
from clipling.models.patches import patches_left_out
from tests.models.making import pictures, small_conv, tiny
from tests.surgery import small

PATCHES = 16  # of 8 pixels in 32


@pytest.fixture
def student():
    return new_student(tiny())


def lengths_seen(student, images) -> list[int]:
    """Positions that every layer is given."""
    found = []
    hooks = [
        b.register_forward_hook(lambda _, given, __: found.append(given[0].shape[1])) for b in student.model.visual.transformer.resblocks
    ]
    student.encode_image(images)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.7, 0.75, 0.99])
def test_the_number_of_patches_that_are_seen(student, share):
    images = student.normalise(pictures(3, 32))
    with patches_left_out(student.model.visual, share):
        assert lengths_seen(student, images) == [1 + max(1, int(PATCHES * (1 - share)))] * 3
    assert lengths_seen(student, images) == [1 + PATCHES] * 3


def test_what_is_left_out_is_another_part_of_every_picture_and_every_draw(student):
    images = student.normalise(pictures(1, 32)).expand(4, -1, -1, -1)
    whole = student.encode_image(images)
    torch.testing.assert_close(whole[0], whole[3])

    def drawn(seed: int):
        torch.manual_seed(seed)
        with patches_left_out(student.model.visual, 0.75):
            return student.encode_image(images)

    one, again, other = drawn(0), drawn(0), drawn(1)
    assert torch.equal(one, again)
    for a, b in ((one, whole), (one, other), (one[:1], one[1:2])):
        assert float((a - b).detach().abs().max()) > 1e-3
    one.sum().backward()
    assert float(student.model.visual.class_embedding.grad.abs().sum()) > 0


def test_positions_are_added_before_patches_go(student):
    """A picture of equal patches: what is left can only tell where it was."""
    images = student.normalise(torch.full((2, 3, 32, 32), 90, dtype=torch.uint8))
    with patches_left_out(student.model.visual, 0.75):
        features = student.encode_image(images)
    assert float((features[0] - features[1]).detach().abs().max()) > 1e-4


def test_nothing_is_left_out_at_0_nor_outside_of_training_nor_afterwards(student):
    images = student.normalise(pictures(3, 32))
    before = student.model.visual.patch_dropout
    whole = student.encode_image(images)
    with patches_left_out(student.model.visual, 0.0):
        assert torch.equal(student.encode_image(images), whole)
    with student.evaluating(), patches_left_out(student.model.visual, 0.75):
        torch.testing.assert_close(student.encode_image(images), whole.detach(), atol=1e-6, rtol=0)
    with pytest.raises(KeyError), patches_left_out(student.model.visual, 0.75):
        raise KeyError
    assert student.model.visual.patch_dropout is before
    assert torch.equal(student.encode_image(images), whole)


@pytest.mark.parametrize("config", [small_conv(), small.config({"layers": [1, 1, 1, 1], "width": 16, "head_width": 32})])
def test_a_tower_without_patches_is_refused(config):
    student = new_student(config)
    with pytest.raises(UserError, match=f"{type(student.model.visual).__name__}.*vit_xs_16"), patches_left_out(student.model.visual, 0.75):
        pass
