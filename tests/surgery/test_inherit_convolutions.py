"""Manual inheritance of convolutional towers: a cut tower equals the full one whose other channels are silent."""

from __future__ import annotations

import copy

import open_clip
import pytest
import torch

from clipling.errors import UserError
from clipling.models.hub import open_student, save_student
from clipling.surgery.inherit import inherit
from clipling.surgery.inherit_plan import kept_layers, layout_of
from tests.surgery.small import changed, config, embeddings, images, source, timm

RESNET = config({"layers": [1, 2, 1, 1], "width": 8, "head_width": 64})
PAIRS = {
    "resnet": (RESNET, changed(RESNET, vision={"width": 4})),
    "lite0": (timm("tf_efficientnet_lite0"), timm("tf_efficientnet_lite0_035")),
    "mobilenetv3": (timm("mobilenetv3_small_100"), timm("mobilenetv3_small_060")),
    "mobilenetv4": (timm("mobilenetv4_conv_small"), timm("mobilenetv4_conv_small_050")),
    "projected by open_clip": (
        config({"timm_model_name": "tf_efficientnet_lite0_050", "timm_proj": "linear"}),
        config({"timm_model_name": "tf_efficientnet_lite0_030", "timm_proj": "linear"}),
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
@torch.no_grad()
def test_cut_towers_equal_silenced_ones(pair):
    made, target = PAIRS[pair]
    teacher = source(made)
    student, report = inherit(teacher, target)
    own = student.model.visual.state_dict()
    silenced = copy.deepcopy(teacher)
    for name, value in silenced.model.visual.state_dict().items():
        if "running" in name or value.ndim == 0:
            continue
        keep = torch.zeros_like(value)
        keep[tuple(slice(size) for size in own[name].shape)] = 1  # leading channels, every axis (core.md section 1.2)
        value *= keep
    expected = silenced.encode_image(images())
    found = embeddings(student)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.std() > 1e-3
    assert not torch.allclose(found, embeddings(teacher)[0], atol=1e-3)
    assert report.image.inherited == sum(value.numel() for value in own.values())


@pytest.mark.parametrize("pair", ["resnet", "mobilenetv3"])
def test_the_same_shape_is_the_source(pair):
    teacher = source(PAIRS[pair][0])
    student, _ = inherit(teacher, PAIRS[pair][0], width="magnitude")
    assert torch.equal(embeddings(student)[0], embeddings(teacher)[0])


def test_chosen_channels_are_the_same_in_every_tensor_that_they_touch():
    teacher = source(timm("tf_efficientnet_lite0"))
    with torch.no_grad():
        teacher.model.visual.trunk.bn1.num_batches_tracked.fill_(17)
    student, report = inherit(teacher, timm("tf_efficientnet_lite0_035"), width="magnitude")
    ours, theirs = (s.model.visual.trunk for s in (student, teacher))
    unit = {name.removeprefix("trunk.blocks."): kept for name, kept in report.image.units.items()}
    a, wide, b = unit["1"], unit["2.0.expanded"], unit["2"]
    assert not torch.equal(wide, torch.arange(len(wide)))
    new, old = ours.blocks[2][0], theirs.blocks[2][0]
    assert torch.equal(new.conv_pw.weight, old.conv_pw.weight[wide][:, a])
    assert torch.equal(new.conv_dw.weight, old.conv_dw.weight[wide])  # one filter a channel: its second axis is not cut
    assert torch.equal(new.bn2.running_var, old.bn2.running_var[wide])
    assert torch.equal(new.conv_pwl.weight, old.conv_pwl.weight[b][:, wide])
    assert torch.equal(ours.blocks[2][1].bn3.bias, theirs.blocks[2][1].bn3.bias[b])
    assert ours.bn1.num_batches_tracked == 17


def test_magnitude_counts_normalisation_in():
    """A channel whose normalisation is scaled up is kept, however small its filters are."""
    teacher = source(timm("tf_efficientnet_lite0"))
    block = teacher.model.visual.trunk.blocks[2][0]
    with torch.no_grad():
        block.bn1.weight[-1], block.bn1.weight[0] = 1e3, 1e-3
        block.conv_pw.weight[-1] *= 0.1
    _, report = inherit(teacher, timm("tf_efficientnet_lite0_035"), width="magnitude")
    kept = report.image.units["trunk.blocks.2.0.expanded"]
    assert len(old := block.bn1.weight) - 1 in kept
    assert len(kept) < len(old)


@pytest.mark.parametrize("depth", ["interval_front", "uniform"])
def test_depth_within_stages(depth):
    deep = timm("tf_efficientnet_lite2")
    teacher = source(deep)
    student, report = inherit(teacher, timm("tf_efficientnet_lite0"), depth=depth)
    for s, (new, old) in enumerate(zip(student.model.visual.trunk.blocks, teacher.model.visual.trunk.blocks)):
        kept = kept_layers(len(old), len(new), depth)
        assert report.image.layers[s] == kept
        for block, i in zip(new, kept):
            c = block.conv_dw.weight.shape[0]
            assert torch.equal(block.conv_dw.weight, old[i].conv_dw.weight[:c])


def test_fewer_blocks_of_a_resnet():
    teacher = source(RESNET)
    student, _ = inherit(teacher, changed(RESNET, vision={"layers": [1, 1, 1, 1]}))
    assert torch.equal(student.model.visual.layer2[0].conv2.weight, teacher.model.visual.layer2[0].conv2.weight)
    assert torch.equal(student.model.visual.layer3[0].conv1.weight, teacher.model.visual.layer3[0].conv1.weight)


def test_a_resnet_at_another_picture_size():
    teacher = source(RESNET)
    student, _ = inherit(teacher, changed(RESNET, vision={"image_size": 64}))
    table, new = teacher.model.visual.attnpool.positional_embedding, student.model.visual.attnpool.positional_embedding
    assert new.shape[0] == 5
    assert torch.equal(new[0], table[0])
    torch.testing.assert_close(new[1:], table[1:].expand(4, -1))  # one place, spread over two by two


def test_blocks_that_add_their_input_in_one_of_the_two_only():
    """MobileNetV3-small at 50 % has two stages of equal width, so that the block between them adds its input."""
    teacher = source(timm("mobilenetv3_small_100"))
    for width in ("position", "magnitude"):
        _, report = inherit(teacher, timm("mobilenetv3_small_050"), width=width)
        assert any("trunk.blocks.3.0.* adds its input" in note for note in report.image.notes)
        assert any("trunk.blocks.3.0.* adds its input" in line for line in report.lines())
    skips = layout_of(teacher.model.visual).skips
    assert skips["trunk.blocks.3.1."]
    assert not skips["trunk.blocks.3.0."]


@pytest.mark.parametrize(
    ("given", "wanted", "message"),
    [
        ("mobilenetv3_small_050", "tf_efficientnet_lite0", "stages|kinds|kind"),
        ("tf_efficientnet_lite0", "efficientnet_lite0", "are of different kinds"),  # other padding and epsilon
        ("mobilenetv3_small_050", "mobilenetv3_small_075", "units, but the source has|must not be larger"),
        ("test_resnet", "test_byobnet", "different|cannot be cut|built differently"),
    ],
)
def test_other_families_and_wider_ones(given, wanted, message):
    with pytest.raises(UserError, match=message):
        inherit(source(timm(given)), timm(wanted))


def test_a_tower_of_an_unknown_kind_is_inherited_as_a_whole():
    teacher = source(timm("test_resnet"))
    student, report = inherit(teacher, timm("test_resnet", layers=2))
    assert torch.equal(embeddings(student)[0], embeddings(teacher)[0])
    assert report.text.layers == [[0, 2]]


def test_saved_lite_students_open_again(tmp_path):
    student, _ = inherit(source(timm("tf_efficientnet_lite0")), timm("tf_efficientnet_lite0_025"))
    save_student(student, tmp_path)
    ours, again = embeddings(student), embeddings(open_student(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(ours, again))
    stock = open_clip.create_model(f"local-dir:{tmp_path}").eval()  # clipling.models.lite is imported here
    with torch.no_grad():
        torch.testing.assert_close(stock.encode_image(images(), normalize=True), ours[0], rtol=1e-4, atol=1e-6)
