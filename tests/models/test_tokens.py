"""Our tokens are stock open_clip's."""

from __future__ import annotations

import copy

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from clipling.models.tokens import EOT, SOT, ClipTokens, tokenizer
from tests.models.making import CAPTIONS, ODD

STOCK = SimpleTokenizer(context_length=77)
OURS = ClipTokens(77)
WORDS = st.sampled_from(["dog", "Don't", "&amp;", "<start_of_text>", "ſ", "é", "\u00a0", "½", "'S", "a\tb", "7", "👩‍🚀", "ﬁ"])


def test_captions_and_odd_texts():
    assert torch.equal(OURS(CAPTIONS + ODD), STOCK(CAPTIONS + ODD))


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(max_size=60), st.text(st.characters(max_codepoint=127), max_size=60), st.lists(WORDS).map(" ".join)))
def test_any_text(text):
    assert torch.equal(OURS([text]), STOCK([text]))


def test_long_texts_are_cut_as_stock_cuts_them():
    text = "dog " * 100
    for length in (2, 3, 8, 77):
        expected = SimpleTokenizer(context_length=length)([text])
        assert torch.equal(ClipTokens(length)([text]), expected)
        assert expected[0, 0] == SOT
        assert expected[0, -1] == EOT


def test_options_of_the_config_reach_the_stock_tokenizer():
    made = tokenizer({"context_length": 16, "tokenizer_kwargs": {"clean": "canonicalize"}}, None)
    assert torch.equal(made(["A dog!"]), ClipTokens(16)(["a dog"]))


def test_copies_share_what_is_remembered():
    assert copy.deepcopy(OURS) is OURS
