"""ToyWorld against its pixels, its closed forms, and a reader of captions that knows nothing of how they are made."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from dataclasses import replace
from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import chisquare

from clipling.data import toyworld as module
from clipling.data.classes import open_labelled
from clipling.data.source import fitting_options, open_pairs
from clipling.data.split import split
from clipling.data.toyworld import World, groups_of, open_world, open_world_labelled, parse_world, png, record, write
from clipling.data.toyworld_draw import background, boxes, draw, masks
from clipling.data.toyworld_language import dictionary, translate, translate_back
from clipling.data.toyworld_scene import BACKGROUNDS, COLOURS, GAP, SHAPES, Thing, apart, own_background, square_of, within
from clipling.data.toyworld_text import captions
from clipling.data.toyworld_words import vocabulary
from clipling.errors import UserError
from tests.data.toyworld_meaning import seen, true_of

FULL = World(pairs=400, objects=(1, 4), seed=5)
FROZEN = {
    "objects": [("small", "pink", "heart")],
    "background": ("dots", 0),
    "caption": "a small pink heart on a dotted background",
    "tova": "naku susi zoni moba temu veza zoni",
}


def scenes(count: int, **knobs):
    world = replace(FULL, **knobs)
    return [world.scene(i) for i in range(count)]


def within_three_sigma(count: int, p: float, n: int) -> bool:
    return abs(count - n * p) <= 3 * (n * p * (1 - p)) ** 0.5 + 1e-9


def recoloured(scene, k: int, colour: str):
    return replace(scene, objects=tuple(replace(t, colour=colour) if j == k else t for j, t in enumerate(scene.objects)))


# Pixels


@pytest.mark.parametrize(("size", "count"), [(32, 60), (64, 30), (97, 8)])
def test_masks_are_what_changes_with_an_objects_colour(size, count):
    for scene in scenes(count, size=size):
        image, found = np.asarray(draw(scene)), masks(scene)
        assert image.shape == (size, size, 3)
        assert found.shape == (len(scene.objects), size, size)
        assert found.sum(axis=0).max() == 1
        for k, mask in enumerate(found):
            white, black = (np.asarray(draw(recoloured(scene, k, colour))).astype(float) for colour in ("white", "black"))
            share = (white - black)[..., 0] / (COLOURS["white"][0] - COLOURS["black"][0])
            sure = abs(share - 0.5) > 0.02
            assert np.array_equal(mask[sure], share[sure] > 0.5)
            exact = (image == COLOURS[scene.objects[k].colour]).all(axis=-1)
            assert not (exact & ~mask).any()
            assert (exact & mask).sum() >= (0.3 if size >= 64 else 0.1) * mask.sum() > 0
            rows, columns = np.where(mask)
            assert boxes(scene)[k] == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            thing = scene.objects[k]
            centre = np.array([columns.min() + columns.max() + 1, rows.min() + rows.max() + 1]) / 2
            assert abs(centre - np.array([thing.x, thing.y]) * size).max() <= 1.01


def test_relations_agree_with_the_centres_of_boxes():
    found = Counter()
    for scene in scenes(150):
        assert [(i, j) for i, _, j in scene.triples] == list(combinations(range(len(scene.objects)), 2))
        box = np.array(boxes(scene), dtype=float)
        centres = (box[:, :2] + box[:, 2:]) / 2
        for i, name, j in scene.triples:
            found[name] += 1
            dx, dy = centres[i] - centres[j]
            if name == "around":
                assert (box[j, :2] >= box[i, :2]).all()
                assert (box[j, 2:] <= box[i, 2:]).all()
                continue
            along, across = (dx, dy) if name in ("left of", "right of") else (dy, dx)
            assert abs(along) >= abs(across) - 2  # pixels
            assert (along < 0) == (name in ("left of", "above"))
    assert set(found) == {"left of", "right of", "above", "below", "around"}


def test_every_colour_stands_out_from_every_background():
    tones = {tuple(pixel) for s in scenes(120) for pixel in np.asarray(draw(replace(s, objects=()))).reshape(-1, 3)[::7]}
    distance = np.linalg.norm(np.array(sorted(tones))[:, None] - np.array(list(COLOURS.values()))[None], axis=-1)
    assert distance.min() > 60


def test_backgrounds_look_like_their_names():
    patterns = {name: background(name, 96, (9000, 21000), 77) for name in BACKGROUNDS}
    for pattern in patterns.values():
        assert pattern.shape == (96, 96)
        assert 0 <= pattern.min() <= pattern.max() <= 1
    assert np.ptp(patterns["plain"]) == 0
    assert np.ptp(patterns["stripes"], axis=0).max() == 0
    assert np.ptp(patterns["stripes"], axis=1).min() == 1
    assert np.ptp(patterns["gradient"], axis=1).max() == 0
    assert (np.diff(patterns["gradient"][:, 0]) > 0).all()
    assert np.allclose(patterns["checks"][16:], 1 - patterns["checks"][:-16])  # six cells a side, of 16 pixels
    for name in ("dots", "grid", "stripes"):
        assert np.allclose(patterns[name][:, 16:], patterns[name][:, :-16])
    noise = patterns["noise"] - patterns["noise"].mean()
    assert abs((noise[:, 1:] * noise[:, :-1]).mean() / noise.var()) < 0.05
    assert abs(noise.var() - 1 / 12) < 0.005
    flat = [pattern.ravel() - pattern.mean() for pattern in patterns.values()]
    assert all(np.abs(a - b).mean() > 0.1 for i, a in enumerate(flat) for b in flat[:i])


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_have_their_areas(shape):
    """The share of the square that a shape covers, unturned, from geometry."""
    scene = scenes(1, size=224)[0]
    scene = replace(scene, objects=(Thing(shape, "red", "large", 0.5, 0.5, 0.4),))
    heart = np.pi * 180 / (32 * (11.9683 + 17))  # 180 pi is its area, 32 its width, 28.97 its height
    triangle, hexagon = 3 * 3**0.5 / 4, 3 * 3**0.5 / 2
    moon_cut = _lens(1.0, np.hypot(np.cos(np.radians(50)) - 0.45, np.sin(np.radians(50))), 0.45)
    areas = {
        **{"circle": np.pi, "square": 4, "diamond": 1.5, "cross": 4 * (1 - 0.66**2), "ring": np.pi * 0.75},
        # The last three do not reach all four sides: scaled by the longer one.
        **{"triangle": triangle * (2 / 3**0.5) ** 2, "hexagon": hexagon, "moon": np.pi - moon_cut},
        **{"star": 5 * 0.42 * np.sin(np.pi / 5) * (2 / (2 * np.sin(0.4 * np.pi))) ** 2, "heart": heart * 4 * 28.9683 / 32},
    }
    measured = masks(scene)[0].sum() / (0.4 * 224) ** 2
    assert measured == pytest.approx(areas[shape], rel=0.03)


def _lens(r: float, s: float, d: float) -> float:
    """The area that two discs share."""
    a = r**2 * np.arccos((d**2 + r**2 - s**2) / (2 * d * r)) + s**2 * np.arccos((d**2 + s**2 - r**2) / (2 * d * s))
    return a - 0.5 * np.sqrt((-d + r + s) * (d + r - s) * (d - r + s) * (d + r + s))


# Knobs


@pytest.mark.parametrize(("rho", "view"), [(0.0, "usual"), (0.6, "usual"), (0.6, "swapped"), (1.0, "usual"), (1.0, "swapped")])
def test_correlation_has_its_closed_form(rho, view):
    world = World(pairs=1200, correlation=rho, view=view, objects=(1, 1))
    found = [world.scene(i) for i in range(world.pairs)]
    own, counter = rho * (view == "usual") + (1 - rho) / 10, rho * (view == "swapped") + (1 - rho) / 10
    assert world.own_probability == pytest.approx(own)
    assert within_three_sigma(sum(s.background == own_background(s.label) for s in found), own, len(found))
    assert within_three_sigma(sum(s.background == BACKGROUNDS[(s.label + 5) % 10] for s in found), counter, len(found))
    assert len({own_background(label) for label in range(10)}) == 10
    if rho == 0:
        table = np.zeros((10, 10))
        np.add.at(table, ([s.label for s in found], [BACKGROUNDS.index(s.background) for s in found]), 1)
        assert chisquare(table.ravel()).pvalue > 0.01


def test_a_knob_leaves_everything_else_as_it_is():
    usual = scenes(60)
    for before, after in zip(usual, scenes(60, correlation=0.8)):
        assert replace(after, background=before.background) == before
    pairs = list(zip(scenes(60, correlation=0.8), scenes(60, correlation=0.8, view="swapped")))
    assert all(replace(b, background=a.background) == a for a, b in pairs)
    changed = [(a, b) for a, b in pairs if a.background != b.background]
    assert 30 < len(changed) < 60
    assert all(a.background == own_background(a.label) and b.background == own_background(a.label + 5) for a, b in changed)
    for before, after in zip(usual, scenes(60, size=100)):
        assert replace(after, size=64) == before
    for before, after in zip(usual, scenes(60, objects=(1, 1))):
        main, alone = before.objects[0], after.objects[0]
        assert (main.shape, main.colour, main.x, main.y, main.turn) == (alone.shape, alone.colour, alone.x, alone.y, alone.turn)
        assert (before.background, before.label, before.tone) == (after.background, after.label, after.tone)
    assert usual == scenes(60, caption_noise=0.9)
    more, fewer = (replace(FULL, caption_noise=share) for share in (0.5, 0.2))
    assert {i for i in range(400) if fewer.noisy(i)} < {i for i in range(400) if more.noisy(i)}


def test_long_tail_is_zipfs():
    world = World(pairs=1500, long_tail=1.2, objects=(1, 1), seed=2)
    counts = np.bincount([world.scene(i).label for i in range(world.pairs)], minlength=10)
    zipf = np.arange(1, 11) ** -1.2
    assert chisquare(counts, 1500 * zipf / zipf.sum()).pvalue > 0.01
    flat = np.bincount([s.label for s in scenes(400)], minlength=10)
    assert chisquare(flat).pvalue > 0.01


def test_numbers_of_objects_are_equally_frequent():
    assert chisquare(np.bincount([len(s.objects) for s in scenes(400)])[1:]).pvalue > 0.01
    assert {len(s.objects) for s in scenes(30, objects=(2, 2))} == {2}


def test_duplicates(fresh_cache):
    world = World(pairs=300, duplicates=0.3, seed=3, size=32, caption_noise=0.2)
    pairs = open_world(world)
    number = {key: i for i, key in enumerate(pairs.keys)}
    repeats = {i: number[extras["repeats"]] for i, extras in enumerate(pairs.extras) if "repeats" in extras}
    assert within_three_sigma(len(repeats), 0.3, 299)
    for i, earlier in repeats.items():
        assert earlier < i
        assert earlier not in repeats
        assert pairs.image_bytes(i) == pairs.image_bytes(earlier)
        assert not set(pairs.captions_of(i)) & set(pairs.captions_of(earlier))
        assert pairs.extras[i]["boxes"] == pairs.extras[earlier]["boxes"]
    assert len(set(pairs.hashes)) == 300 - len(repeats)
    assert not any(set(pairs.links()[i]).isdisjoint(pairs.links()[j]) for i, j in repeats.items())


def test_noise_tells_of_another_scene():
    world = replace(FULL, caption_noise=0.25)
    noisy = [i for i in range(400) if world.noisy(i)]
    assert within_three_sigma(len(noisy), 0.25, 400)
    for i in range(60):
        what, said = seen(world.scene(i), boxes(world.scene(i))), world.captions(i)
        told = seen(world.told(i), boxes(world.told(i)))
        for caption in (*said.true, *said.synonyms, said.short, said.long):
            if not (caption == said.long and len(told.names) != len(what.names)):
                assert true_of(caption, what, strict=i not in noisy) == (i not in noisy), caption
            assert true_of(caption, told, strict=True), caption
        for caption in chain(*said.negatives.values()):
            assert not true_of(caption, what, strict=False), caption
            assert not true_of(caption, told, strict=False), caption


def test_negatives_are_false_of_a_picture_that_they_were_not_made_for():
    told = next(s for s in scenes(100, objects=(1, 1)) if s.objects[0].size == "small")
    picture = replace(told, objects=(replace(told.objects[0], size="large"),))
    free, kept = captions(told), captions(told, picture=picture)
    gone = set(chain(*free.negatives.values())) - set(chain(*kept.negatives.values()))
    assert [true_of(caption, seen(picture, boxes(picture)), strict=True) for caption in gone] == [True]
    assert kept.true == free.true


# Words


def test_captions_are_true_and_negatives_are_false():
    kinds = Counter()
    for i in range(120):
        scene, said = FULL.scene(i), FULL.captions(i)
        what = seen(scene, boxes(scene))
        for caption in (*said.true, *said.synonyms, said.short, said.long):
            assert true_of(caption, what, strict=True), (caption, what)
        for kind, texts in said.negatives.items():
            kinds[kind, len(scene.objects) > 1] += 1
            for caption in texts:
                assert not true_of(caption, what, strict=False), (caption, what)
                same_words = sorted(caption.split()) == sorted(said.true[0].split())
                assert same_words == (kind == "word_order" or (kind == "attribute" and len(scene.objects) > 1))
                assert len(caption.split()) == len(said.true[0].split())
        assert len(set(said.true)) == 3
        assert all(len(a.split()) <= len(b.split()) and a != b for a, b in zip(said.true, said.synonyms))
        assert len(said.short.split()) == 3
    several = sum(len(FULL.scene(i).objects) > 1 for i in range(120))
    assert kinds["object", True] == kinds["attribute", True] == kinds["relation", True] == kinds["word_order", True] == several
    assert kinds["object", False] == kinds["attribute", False] == 120 - several
    assert kinds["relation", False] == kinds["word_order", False] == 0


def test_the_reader_of_captions_can_say_no():
    scene = next(s for s in scenes(100) if len(s.objects) == 3)
    what = seen(scene, boxes(scene))
    for wrong in ("a red", "red circle", "a circle on a tartan background", "a red circle near a blue square", "a a circle"):
        with pytest.raises(ValueError, match="no caption"):
            true_of(wrong, what, strict=True)
    text = captions(scene).long
    assert true_of(text, what, strict=True)
    assert not true_of(text.replace("three", "two"), what, strict=True)
    turned = text.replace("above", "X").replace("below", "above").replace("X", "below").replace("left of", "X")
    assert not true_of(turned.replace("right of", "left of").replace("X", "right of"), what, strict=False)


def test_phrasings_vary():
    firsts = {captions(FULL.scene(7), wording).true[0] for wording in range(60)}
    assert len(firsts) >= 6
    assert captions(FULL.scene(7), 4) == captions(FULL.scene(7), 4)


def test_the_second_language_is_a_bijection():
    words = dictionary()
    assert set(words) == set(vocabulary())
    assert len(set(words.values())) == len(words) > 80
    assert not set(words) & set(words.values())
    for i in range(80):
        said = FULL.captions(i)
        assert said.second == tuple(map(translate, said.true))
        for caption in (*said.true, *said.synonyms, said.short, said.long, *chain(*said.negatives.values())):
            tova = translate(caption)
            assert translate_back(tova) == caption
            assert len(tova.split()) == len(caption.split())
    back = {tova: english for english, tova in words.items()}
    said = [back[word] for word in translate("a small red circle above a blue star").split()]
    assert " ".join(said) == "star blue a above circle red small a"
    with pytest.raises(ValueError, match="'tartan'"):
        translate("a tartan circle")
    with pytest.raises(ValueError, match="'circle'"):
        translate_back("circle")


# Twins


@pytest.mark.parametrize("size", [32, 64])
def test_twins_differ_inside_the_edited_object_only(size):
    world, found = replace(FULL, size=size), Counter()
    for i in range(60):
        scene = world.scene(i)
        before = np.asarray(draw(scene)).astype(int)
        for edit, twin in world.twins(i).items():
            found[edit] += 1
            changed = (np.asarray(draw(twin.scene)) != before).any(axis=-1)
            region = np.zeros((size, size), dtype=bool)
            for side in (scene, twin.scene):
                for thing in side.objects[twin.object : twin.object + 1]:
                    low = [int(np.floor((c - thing.radius) * size - 0.5)) for c in (thing.x, thing.y)]
                    high = [int(np.ceil((c + thing.radius) * size + 0.5)) for c in (thing.x, thing.y)]
                    assert min(low) >= 0
                    assert max(high) <= size
                    region[low[1] : high[1], low[0] : high[0]] = True
            assert changed.any()
            assert not (changed & ~region).any()
            one, other = seen(scene, boxes(scene)), seen(twin.scene, boxes(twin.scene))
            assert true_of(twin.caption, one, strict=True), (edit, twin.caption)
            assert true_of(twin.twin_caption, other, strict=True), (edit, twin.twin_caption)
            assert not true_of(twin.caption, other, strict=False), (edit, twin.caption)
            assert not true_of(twin.twin_caption, one, strict=False), (edit, twin.twin_caption)
            differs = {name for name in ("colour", "size", "x", "y", "shape") if _differs(scene, twin.scene, name)}
            expected = {"colour": {"colour"}, "size": {"size"}, "count": set()}.get(edit)
            assert differs == expected if expected is not None else differs <= {"x", "y"} and differs
    assert found["colour"] == found["count"] == 60
    assert min(found["size"], found["position"]) >= 50


def _differs(a, b, name: str) -> bool:
    return any(getattr(p, name) != getattr(q, name) for p, q in zip(a.objects, b.objects))


# Always the same


def test_frozen():
    """Another answer means that worlds which people have trained on are gone: raise FORMAT, and say so."""
    scene = World().scene(12)
    assert [(t.size, t.colour, t.shape) for t in scene.objects] == FROZEN["objects"]
    assert (scene.background, scene.tone) == FROZEN["background"]
    assert World().captions(12).true[0] == FROZEN["caption"]
    assert translate("a red circle above a blue star") == FROZEN["tova"]


def test_the_same_bytes_and_a_longer_world_begins_with_the_shorter(tmp_path):
    long, short = (World(pairs=n, duplicates=0.2, caption_noise=0.2, size=32) for n in (60, 10))
    assert [record(short, i) for i in range(10)] == [record(long, i) for i in range(10)]
    first, again = (write(short, tmp_path / name, extra_pictures=True) for name in "ab")
    files = sorted(path.name for path in first.iterdir())
    assert files == ["00000.tar", "classnames.txt", "templates.txt", "world.json"]
    for name in files:
        assert (first / name).read_bytes() == (again / name).read_bytes()
    write(long, tmp_path / "c")
    a, b = open_pairs(str(first)), open_pairs(str(tmp_path / "c"))
    assert b.hashes[:10] == a.hashes
    assert b.captions[: len(a.captions)] == a.captions
    assert World(pairs=10, seed=1, size=32).scene(0) != short.scene(0)


def test_written_samples(tmp_path):
    world = World(pairs=12, size=48, objects=(1, 4), seed=9)
    folder = write(world, tmp_path / "w", extra_pictures=True)
    with tarfile.open(folder / "00000.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    for i in range(12):
        scene, key = world.scene(i), world.key(i)
        assert members[f"{key}.png"] == png(draw(scene))
        assert members[f"{key}.cls"] == str(scene.label).encode()
        numbers = np.asarray(Image.open(io.BytesIO(members[f"{key}.masks.png"])))
        assert np.array_equal(numbers[None] == np.arange(1, len(scene.objects) + 1)[:, None, None], masks(scene))
        for edit, twin in world.twins(i).items():
            assert members[f"{key}.twin-{edit}.png"] == png(draw(twin.scene))
    labelled = open_labelled(str(folder / "*.tar"), folder / "classnames.txt", folder / "templates.txt")
    assert labelled.labels.tolist() == [world.scene(i).label for i in range(12)]
    pairs = open_pairs(str(folder))
    assert len(pairs) == 12
    assert pairs.extras[3]["triples"] == [list(triple) for triple in world.scene(3).triples]


def test_several_tars(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD", 4)
    folder = write(World(pairs=10, size=32), tmp_path / "w")
    assert sorted(path.name for path in folder.glob("*.tar")) == ["00000.tar", "00001.tar", "00002.tar"]
    assert open_pairs(str(folder)).keys == [f"{i:08d}" for i in range(10)]


def test_whole_or_absent(tmp_path, monkeypatch):
    world, folder = World(pairs=5, size=32), tmp_path / "deep" / "w"
    real = module.record

    def broken(world, i):
        if i == 4:
            raise KeyboardInterrupt
        return real(world, i)

    monkeypatch.setattr(module, "record", broken)
    with pytest.raises(KeyboardInterrupt):
        write(world, folder)
    assert list(folder.parent.iterdir()) == []
    monkeypatch.undo()
    write(world, folder)
    stamp = (folder / "00000.tar").stat().st_mtime_ns
    assert write(world, folder) == folder
    assert (folder / "00000.tar").stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match="other settings"):
        write(replace(world, seed=1), folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    for taken in (tmp_path / "full", tmp_path / "full" / "x"):
        with pytest.raises(UserError, match="not a ToyWorld"):
            write(world, taken)
    (tmp_path / "empty").mkdir()
    assert len(open_pairs(str(write(world, tmp_path / "empty")))) == 5


# As a source


def test_opened_by_its_spec(fresh_cache):
    spec = "demo:toyworld?pairs=40&correlation=0.95&seed=3&size=32"
    pairs, world = open_pairs(spec), World(pairs=40, correlation=0.95, seed=3, size=32)
    assert (pairs.name, len(pairs), len(pairs.problems)) == (spec, 40, 0)
    assert pairs.fingerprint == open_world(world).fingerprint
    assert pairs.image(5).size == (32, 32)
    assert pairs.captions_of(7) == list(world.captions(7).true)
    assert {"label", "class", "background", "boxes", "triples", "long", "negatives", "lang", "noisy"} <= set(pairs.extras[0])
    assert len(split(pairs)[1]) == 2
    assert open_world(world, caption_column="lang.tova").captions_of(7) == list(world.captions(7).second)
    assert open_world(world, caption_column="long").captions_of(7) == [world.captions(7).long]
    assert open_world(world, group="background").groups[7] == world.scene(7).background
    with pytest.raises(UserError, match="leave the options for columns out"):
        open_pairs(spec, caption_column="long")
    assert not any(fitting_options(spec, {"caption_column": "long"}, spec).values())
    assert len(list(fresh_cache.glob("demo-toyworld-*"))) == 1


def test_several_worlds_in_one_source(fresh_cache):
    both = open_pairs("demo:toyworld?pairs=5&size=32::demo:toyworld?pairs=6&size=32&seed=1&long_tail=0.5")
    assert len(both) == len(set(both.keys)) == 11


def test_opened_as_labelled(fresh_cache):
    spec = "demo:toyworld?pairs=30&correlation=0.9&size=32"
    labelled, groups = open_world_labelled(parse_world(spec))
    assert labelled.classnames == list(SHAPES)
    assert "a {c}" in labelled.templates
    world = parse_world(spec)
    assert labelled.labels.tolist() == [world.scene(i).label for i in range(30)]
    assert groups == [world.scene(i).background for i in range(30)] == groups_of(spec, labelled.keys)
    again = open_labelled(spec)
    assert (again.name, again.fingerprint) == (spec, labelled.fingerprint)
    with pytest.raises(UserError, match="demo:toyworld has its own classes"):
        open_labelled(spec, ["a"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("demo:toyworld?correlatoin=0.5", r"no knob 'correlatoin'. Did you mean 'correlation'"),
        ("demo:toyworld?x=0.5", r"no knob 'x'. Allowed: caption_noise, correlation"),
        ("demo:toyworld?correlation=high", "correlation is 'high'; expected a number"),
        ("demo:toyworld?correlation=1.5", "correlation is 1.5; expected a number from 0 to 1"),
        ("demo:toyworld?correlation=nan", "correlation is nan; expected"),
        ("demo:toyworld?pairs=2e3", "pairs is '2e3'; expected a whole number"),
        ("demo:toyworld?pairs=0", "pairs is 0; expected a whole number from 1"),
        ("demo:toyworld?pairs=", "pairs is ''; expected"),
        ("demo:toyworld?pairs", "'pairs' is not KNOB=VALUE"),
        ("demo:toyworld?", "'' is not KNOB=VALUE"),
        ("demo:toyworld?pairs=1&&seed=2", "'' is not KNOB=VALUE"),
        ("demo:toyworld?seed=1&seed=1", "seed is given twice"),
        ("demo:toyworld?objects=3-1", r"objects is \(3, 1\); expected 1 to 4"),
        ("demo:toyworld?objects=1-2-3", "objects is '1-2-3'; expected how many"),
        ("demo:toyworld?view=other&correlation=1", "view is 'other'. Allowed: swapped, usual"),
        ("demo:toyworld?view=swapped", "changes nothing without a correlation"),
        ("demo:toyworlds", "Did you mean 'demo:toyworld'"),
        ("demo:toyworld/test", "Did you mean 'demo:toyworld'"),
    ],
)
def test_mistakes_in_specs(fresh_cache, spec, message):
    for opened in (open_pairs, open_labelled, lambda text: open_pairs(f"{text}::demo:toyworld?pairs=1")):
        with pytest.raises(UserError, match=message):
            opened(spec)
    assert not list(fresh_cache.glob("demo-*"))


@pytest.mark.parametrize(
    "knobs",
    [
        *({"pairs": value} for value in (0, -1, 1.0, True, "5", 10**7)),
        *({"size": value} for value in (31, 225, 64.0)),
        *({"seed": value} for value in (-1, 2**63, 0.5)),
        *({"objects": value} for value in (2, (0, 1), (1, 5), (2, 1), (1,), (1, 2.0), (True, 2), "12")),
        *({name: value} for name in ("correlation", "caption_noise") for value in (-0.1, 1.1, float("nan"), True, "1", None)),
        *({"long_tail": value} for value in (-1, 11, float("inf"))),
        {"duplicates": 1.0},
        {"view": "train"},
    ],
)
def test_bad_knobs_are_named(knobs):
    with pytest.raises(UserError, match=f"demo:toyworld: {next(iter(knobs))} is "):
        World(**knobs)


def test_a_pair_that_is_not_there():
    for i in (-1, 400):
        with pytest.raises(IndexError):
            FULL.scene(i)


worlds = st.builds(
    World,
    pairs=st.integers(12, 10**6),
    seed=st.integers(0, 2**63 - 1),
    size=st.sampled_from([32, 33, 50]),
    objects=st.tuples(st.integers(1, 4), st.integers(1, 4)).map(lambda pair: tuple(sorted(pair))),
    correlation=st.floats(0.01, 1),
    caption_noise=st.floats(0, 1),
    long_tail=st.floats(0, 10),
    duplicates=st.floats(0, 0.99),
    view=st.sampled_from(["usual", "swapped"]),
)


@settings(max_examples=25, deadline=None)
@given(worlds, st.integers(0, 11))
def test_any_knobs(world, i):
    assert parse_world(world.spec) == world
    assert json.loads(json.dumps(world.settings())) == world.settings()
    shorter = replace(world, pairs=i + 1)
    assert record(shorter, i) == record(world, i)
    scene = world.scene(i)
    things = scene.objects
    assert world.objects[0] <= len(things) <= world.objects[1]
    assert len({t.shape for t in things}) == len({t.colour for t in things}) == len(things)
    assert SHAPES[scene.label] == things[0].shape
    assert [t.size for t in things[1:]] == ["small"] * (len(things) - 1)
    assert len(things) == 1 or things[0].size == "large"
    for a, thing in enumerate(things):
        assert all(c - thing.radius >= GAP and c + thing.radius <= 1 - GAP + 1e-9 for c in (thing.x, thing.y))
        for b in range(a):
            assert apart(square_of(thing), square_of(things[b])) or (a == 1 and b == 0 and within(thing, things[0]))
    assert (masks(scene).sum(axis=(1, 2)) > 0).all()
    said = world.captions(i)
    what, told = (seen(s, boxes(s)) for s in (scene, world.told(i)))
    assert all(true_of(caption, told, strict=True) for caption in (*said.true, said.long))
    assert all(true_of(caption, what, strict=False) != world.noisy(i) for caption in said.true)
    assert not any(true_of(caption, what, strict=False) for texts in said.negatives.values() for caption in texts)
