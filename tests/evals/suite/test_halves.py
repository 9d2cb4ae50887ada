"""Parts by key hash: sizes, independence, and the choice of a setting on a fifth."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipling.evals.suite.halves import choose, halves, learning, share
from tests.evals.suite.fakes import FakeSubject, labelled_dataset


def test_too_few_to_choose_on_takes_the_middle_value():
    keys = [k for k in map(str, range(200)) if not share([k], 0.2, "choice")[0]]
    some = labelled_dataset(40, 2, keys=keys[:40])
    on = learning(FakeSubject(np.eye(2)[some.labelled.labels]), some, None, None, None)
    assert choose([1, 2, 3], lambda *_: None, on) == (2, [])
    assert on.notes[-1].startswith("Too few pictures")


@given(st.lists(st.text(st.characters(codec=None)), max_size=20), st.text("abc", max_size=8))
def test_the_part_of_a_key_is_its_own(keys, salt):
    mask = halves(keys, salt)
    assert mask.tolist() == [bool(halves([key], salt)[0]) for key in keys]
    data = [key.encode("utf-8", "surrogatepass") for key in keys]
    assert mask.tolist() == [not blake2b(d, digest_size=8, salt=salt.encode()).digest()[-1] & 1 for d in data]
    small, large = share(keys, 0.3, salt), share(keys, 0.6, salt)
    assert not (small & ~large).any()
    assert share(keys, 1.0).all()
    assert not share(keys, 0.0).any()


def test_parts_have_their_sizes_and_are_independent():
    keys = [f"pictures/{i}.jpg" for i in range(8000)]
    first, second, fifth = halves(keys), halves(keys, "other"), share(keys, 0.2, "choice")
    assert first.mean() == pytest.approx(0.5, abs=0.03)
    assert fifth.mean() == pytest.approx(0.2, abs=0.02)
    for part in (second, fifth, share(keys, 0.2)):
        assert part[first].mean() == pytest.approx(part.mean(), abs=0.03)
    with pytest.raises(ValueError, match="salt"):
        halves(keys, "a salt that is far too long")
