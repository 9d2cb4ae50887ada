"""Images with classes: class folders, CLIP_benchmark's layout, tars with `.cls`."""

from __future__ import annotations

import json

import numpy as np
import pytest

from clipling.data.classes import open_labelled
from clipling.data.pairs import hash_bytes
from clipling.errors import UserError
from tests.data.making import picture, put, tar

pytestmark = pytest.mark.usefixtures("fresh_cache")


def class_folders(folder):
    for n, name in enumerate(["tabby_cat/1.jpg", "dog/deep/2.jpg", "dog/1.jpg", "empty/readme.md", "ant/x.png"]):
        put(folder / name, picture(n, "PNG" if name.endswith("png") else "JPEG"))
    return folder


def benchmark(folder, split="test", odd="x"):
    put(folder / "classnames.txt", "cat\ndog\n")
    put(folder / "zeroshot_classification_templates.txt", "a {c}.\nthe {c}.\n")
    put(folder / split / "nshards.txt", "2\n")
    tar(folder / split / "0.tar", {"a.jpg": picture(0), "a.cls": "1", "b.jpg": picture(1), "b.cls": "0"})
    tar(folder / split / "1.tar", {"c.jpg": picture(2), "c.cls": "1", "d.jpg": picture(3), "d.cls": odd, "e.jpg": picture(4)})
    return folder


def test_class_folders(tmp_path):
    found = open_labelled(str(class_folders(tmp_path / "x")))
    assert found.classnames == ["ant", "dog", "tabby cat"]
    assert dict(zip(found.keys, found.labels.tolist())) == {"ant/x.png": 0, "dog/1.jpg": 1, "dog/deep/2.jpg": 1, "tabby_cat/1.jpg": 2}
    assert found.labels.dtype == np.int64
    assert found.templates == ["a photo of a {c}."]
    i = found.keys.index("dog/deep/2.jpg")
    assert found.image_bytes(i) == picture(1)
    assert found.image(i).size == (12, 9)
    assert found.hashes[i] == hash_bytes(picture(1))
    again = open_labelled(str(tmp_path / "x"), ["Ant", "Dog", "Cat"], ["a {}", "the {c}"])
    assert (again.classnames, again.templates) == (["Ant", "Dog", "Cat"], ["a {c}", "the {c}"])
    assert again.fingerprint != found.fingerprint
    table = put(tmp_path / "names.json", json.dumps({"dog": "hound", "ant": "ant", "tabby_cat": "tabby"}))
    assert open_labelled(str(tmp_path / "x"), table).classnames == ["ant", "hound", "tabby"]


@pytest.mark.parametrize("part", ["", "test"])
def test_clip_benchmark(tmp_path, part):
    found = open_labelled(str(benchmark(tmp_path / "x") / part), max_bad=0.5)
    assert (found.keys, found.labels.tolist()) == (["a", "b", "c"], [1, 0, 1])
    assert (found.classnames, found.templates) == (["cat", "dog"], ["a {c}.", "the {c}."])
    assert found.problems.counts() == {"no class": 2}
    with pytest.raises(UserError, match="2 of 5"):
        open_labelled(str(tmp_path / "x" / part))


def test_tars(tmp_path):
    spec = str(benchmark(tmp_path / "x", odd="2") / "test" / "{0..1}.tar")
    names = put(tmp_path / "names.txt", "k\nl\nm\n")
    found = open_labelled(spec, names, max_bad=0.5)
    assert (found.labels.tolist(), found.classnames) == ([1, 0, 1, 2], ["k", "l", "m"])
    with pytest.raises(UserError, match="--classes"):
        open_labelled(spec)


def test_hashes_are_made_when_they_were_not_given(tmp_path):
    found = open_labelled(str(class_folders(tmp_path / "x")))
    fingerprint, hashes = found.fingerprint, found.hashes
    del found.fingerprint
    found.hashes = []
    assert found.fingerprint == fingerprint
    assert found.hashes == hashes


def test_mistakes(tmp_path):
    folder = str(class_folders(tmp_path / "x"))
    put(tmp_path / "flat" / "1.jpg", picture(1))
    put(tmp_path / "t.csv", "filepath,title\n")
    bad = benchmark(tmp_path / "y")
    put(bad / "test" / "nshards.txt", "3")
    odd = benchmark(tmp_path / "z", "train")
    put(odd / "val" / "nshards.txt", "x")
    for spec, how, message in [
        (folder, {"classes": ["a", "b"]}, "2 class names for 3 class folders"),
        (folder, {"classes": tmp_path / "no.txt"}, "cannot be read"),
        (folder, {"classes": put(tmp_path / "n.json", '{"ant": "a"}')}, r"missing: \['dog', 'tabby_cat'\]"),
        (folder, {"templates": ["a photo"]}, "needs {c}"),
        (folder, {"templates": []}, "no templates"),
        (tmp_path / "flat", {}, "one folder a class"),
        (tmp_path / "t.csv", {}, "has no classes"),
        (tmp_path / "nothere", {}, "does not exist"),
        (bad, {}, "1 of 3 tars are missing"),
        (odd, {}, "splits train, val"),
        (odd / "val", {}, "number of tars"),
    ]:
        with pytest.raises(UserError, match=message):
            open_labelled(str(spec), **how)


def test_names_that_are_too_few_are_refused_whatever_share_they_spoil(tmp_path):
    spec = benchmark(tmp_path / "x", odd="2")
    with pytest.raises(UserError, match="2 class names, but the label 2 occurs: 3 classes or more"):
        open_labelled(str(spec), max_bad=0.5)
    with pytest.raises(UserError, match="1 class names, but the label 2 occurs"):
        open_labelled(str(spec / "test" / "{0..1}.tar"), ["k"], max_bad=0.9)


def test_names_must_be_as_many_as_the_source_states(tmp_path):
    spec = str(benchmark(tmp_path / "x"))
    with pytest.raises(UserError, match=r"3 class names for the 2 classes that .*classnames\.txt states"):
        open_labelled(spec, ["a", "b", "c"], max_bad=0.5)
    assert open_labelled(spec, ["a", "b"], max_bad=0.5).classnames == ["a", "b"]


def test_two_classes_of_one_name(tmp_path):
    folder, tars = str(class_folders(tmp_path / "x")), benchmark(tmp_path / "y")
    for how in (
        ["a", "b", "a"],
        put(tmp_path / "n.txt", "a\nb\na\n"),
        put(tmp_path / "n.json", '{"ant": "a", "dog": "b", "tabby_cat": "a"}'),
    ):
        with pytest.raises(UserError, match="two classes have the name 'a'"):
            open_labelled(folder, how)
    put(tars / "classnames.txt", "cat\ncat\n")
    assert open_labelled(str(tars), max_bad=0.5).classnames == ["cat", "cat"], "published lists do this"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["a {c}.", "the {c}.", "a {c}."], r"two templates 'a \{c\}\.'"),
        (["a {c} of {x}."], r"has the place \{x\}, which nothing fills"),
        (["a {}.", "a {c}."], "two templates"),
    ],
)
def test_templates_that_would_count_wrongly(tmp_path, lines, said):
    folder = str(class_folders(tmp_path / "x"))
    for templates in (lines, put(tmp_path / "t.txt", "\n".join(lines))):
        with pytest.raises(UserError, match=said):
            open_labelled(folder, templates=templates)


def test_cifar10(shared_data):
    found = open_labelled(str(shared_data / "cifar10"))
    assert (len(found), np.bincount(found.labels).tolist()) == (2000, [200] * 10)
    assert found.classnames[1] == "automobile"
    assert found.templates[3] == "a photo of the {c}."
    assert found.image(0).size == (32, 32)
