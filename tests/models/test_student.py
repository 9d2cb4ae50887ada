"""The student against stock open_clip, and what it keeps still."""

from __future__ import annotations

import random

import numpy as np
import open_clip
import pytest
import torch
from torch import nn

from clipling.errors import UserError
from clipling.models.hub import new_student, save_student
from tests.models.making import CAPTIONS, ODD, pictures, small_conv, tiny, tokens


def train_a_little(student):
    """A few plain steps, so that no weight and no statistic is at its start value."""
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-3)
    images, ids = pictures(8, student.image_size), student.tokenise((CAPTIONS + ODD)[:8])
    for _ in range(2):
        similarity = student.encode_image(student.normalise(images)) @ student.encode_text(ids).T
        nn.functional.cross_entropy(similarity * student.logit_scale.exp(), torch.arange(8)).backward()
        optimiser.step()
        optimiser.zero_grad()


@pytest.mark.parametrize("vocabulary", [None, CAPTIONS])
@pytest.mark.parametrize("config", [tiny, small_conv])
def test_stock_open_clip_opens_it_with_equal_embeddings(tmp_path, config, vocabulary):
    student = new_student(config(), vocabulary=vocabulary)
    train_a_little(student)
    save_student(student.eval(), tmp_path)
    stock, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    stock.eval()
    texts = CAPTIONS + ODD + ["quixotic zebras vandalise 東京"]  # tokens that training never showed
    images = pictures(5, student.image_size)
    assert torch.equal(tokenizer(texts), student.tokenise(texts))
    with torch.no_grad():
        for ours, theirs in (
            (student.encode_text(student.tokenise(texts)), stock.encode_text(tokenizer(texts), normalize=True)),
            (student.encode_image(student.normalise(images)), stock.encode_image(student.normalise(images), normalize=True)),
        ):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        assert torch.equal(student.logit_scale, stock.logit_scale)
    assert list(preprocess.transforms[-1].mean) == student.preprocess_cfg["mean"]


@pytest.mark.parametrize("at_once", [3, 1000])
def test_tokens_that_are_kept_are_short_and_give_the_same(monkeypatch, at_once):
    from clipling.models import dual

    monkeypatch.setattr(dual, "TOKENISED_AT_ONCE", at_once)
    student = new_student(tiny()).eval()
    kept, whole = student.tokenise_all(CAPTIONS), student.tokenise(CAPTIONS)
    assert kept.dtype == torch.int32
    assert kept.shape == (len(CAPTIONS), int((whole.argmax(dim=1) + 1).max()))
    assert torch.equal(kept.long(), whole[:, : kept.shape[1]])
    with torch.no_grad():
        torch.testing.assert_close(student.encode_text(kept.long()), student.encode_text(whole), atol=1e-6, rtol=0)
    assert student.tokenise_all([]).shape[0] == 0


def test_tokens_of_a_tower_that_sees_padding_are_not_cut():
    student = new_student(tiny(no_causal_mask=True, pool_type="last"))
    assert student.tokenise_all(CAPTIONS).shape[1] == student.context_length


def test_normalise_is_what_stock_preprocessing_does():
    from torchvision.transforms import Compose, Normalize, ToTensor

    student = new_student(tiny())
    images = pictures(3, 32)
    stock = Compose([ToTensor(), Normalize(student.preprocess_cfg["mean"], student.preprocess_cfg["std"])])
    expected = torch.stack([stock(image.permute(1, 2, 0).numpy()) for image in images])
    for given in (images, images.contiguous(memory_format=torch.channels_last)):
        got = student.normalise(given)
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)
        assert got.is_contiguous(memory_format=torch.channels_last)


def test_seed_decides_and_global_generators_are_left_alone():
    def state():
        return torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()

    torch.manual_seed(1)
    before = state()
    first = new_student(small_conv(), seed=3).state_dict()
    after = state()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    torch.manual_seed(2)
    random.seed(2)
    second = new_student(small_conv(), seed=3).state_dict()
    other = new_student(small_conv(), seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["model.visual.trunk.conv_stem.weight"], other["model.visual.trunk.conv_stem.weight"])


def test_in_batches_equals_at_once_and_restores_the_mode():
    student = new_student(small_conv())
    pixels = pictures(7, 32).permute(0, 2, 3, 1).numpy()
    statistics = student.model.visual.trunk.bn1.running_mean.clone()
    images = student.encode_images_in_batches(pixels, batch=3)
    texts = student.encode_texts_in_batches(CAPTIONS, batch=4)
    assert student.training
    assert student.model.visual.trunk.bn1.training
    assert torch.equal(student.model.visual.trunk.bn1.running_mean, statistics)
    assert images.dtype == texts.dtype == np.float32
    student.eval()
    with torch.no_grad():
        whole = student.encode_image(student.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2)))
        np.testing.assert_allclose(images, whole.numpy(), atol=1e-6)
        np.testing.assert_allclose(texts, student.encode_text(student.tokenise(CAPTIONS)).numpy(), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-6)
    student.encode_texts_in_batches([])
    assert not student.training


def test_sizes_add_up():
    student = new_student(small_conv())
    sizes = student.sizes()
    assert sizes["total"] == sum(p.numel() for p in student.parameters())
    assert sizes["image"] + sizes["text"] + sizes["token_rows"] + 1 == sizes["total"]  # 1: the logit scale
    assert sizes["token_rows"] == 49408 * 64 == sizes["total"] - sizes["total_without_token_rows"]


def test_attributes():
    student = new_student({**tiny(), "model_cfg": {**tiny()["model_cfg"], "init_logit_bias": -10.0}})
    assert (student.image_size, student.embed_dim, student.context_length) == (32, 64, 77)
    assert float(student.logit_scale.detach()) == pytest.approx(np.log(1 / 0.07))
    assert float(student.logit_bias.detach()) == -10
    assert new_student(tiny()).logit_bias is None


def gradients(student):
    student.zero_grad()
    images, ids = student.normalise(pictures(4, 32)), tokens(4)
    (student.encode_image(images)[:, 0].sum() + student.encode_text(ids)[:, 0].sum()).backward()
    return {name.removeprefix("model.") for name, p in student.named_parameters() if p.grad is not None and bool(p.grad.any())}


def test_a_frozen_tower_stays_in_evaluation_mode_and_its_projection_learns():
    student = new_student(small_conv()).train()
    student.freeze(image=True)
    student.train()
    trunk = student.model.visual.trunk
    assert not any(module.training for name, module in trunk.named_modules() if name != "classifier")
    assert student.model.text.training
    before = trunk.bn1.running_mean.clone()
    learned = gradients(student)
    assert torch.equal(trunk.bn1.running_mean, before)
    assert {name for name in learned if name.startswith("visual.")} == {"visual.trunk.classifier.weight", "visual.trunk.classifier.bias"}
    assert any(name.startswith("text.transformer") for name in learned)
    student.freeze(image=True, projections=True)
    assert not any(name.startswith("visual.") for name in gradients(student))
    student.freeze(text=True)
    assert student.model.visual.training
    assert trunk.bn1.training
    learned = gradients(student)
    assert {name for name in learned if name.startswith("text.")} == {"text.text_projection"}
    assert "visual.trunk.conv_stem.weight" in learned
    student.freeze()
    assert "text.token_embedding.weight" in gradients(student)


def test_a_frozen_vit():
    student = new_student(tiny())
    student.freeze(image=True, text=True)
    assert gradients(student) == {"visual.proj", "text.text_projection"}
    assert not student.model.visual.training


def test_frozen_batch_norm():
    student = new_student(small_conv()).train()
    student.set_norm("frozen")
    student.train()
    before = {name: b.clone() for name, b in student.named_buffers()}
    learned = gradients(student)
    assert all(torch.equal(before[name], b) for name, b in student.named_buffers())
    assert "visual.trunk.bn1.weight" in learned
    assert student.model.visual.trunk.conv_stem.training
    student.set_norm("local")
    assert student.model.visual.trunk.bn1.training
    gradients(student)
    assert not torch.equal(before["model.visual.trunk.bn1.running_mean"], student.model.visual.trunk.bn1.running_mean)


def test_norm_mistakes():
    student = new_student(tiny())
    with pytest.raises(UserError, match="Did you mean 'local'"):
        student.set_norm("locl")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="CUDA"):
            student.set_norm("sync")


def test_fixed_positions_stay_fixed():
    config = tiny()
    config["model_cfg"]["vision_cfg"]["pos_embed_type"] = "sin_cos_2d"
    student = new_student(config)
    for image in (True, False):
        student.freeze(image=image)
        assert not student.model.visual.positional_embedding.requires_grad
    assert student.model.visual.class_embedding.requires_grad


def test_bfloat16_autocast_gives_unit_rows_in_fp32():
    student = new_student(small_conv())
    with torch.autocast("cpu", torch.bfloat16):
        image = student.encode_image(student.normalise(pictures(4, 32)))
        text = student.encode_text(tokens(4))
    for rows in (image, text):
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows.norm(dim=-1), torch.ones(4))
