"""Accuracy under attack against the closed form of a linear model, and the checks for masked gradients."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import TypeAdapter
from torch import nn

from clipling.data.classes import LabelledImages
from clipling.data.pairs import Location
from clipling.errors import UserError
from clipling.evals.suite.attacks import Attacks
from clipling.evals.suite.dataset import Dataset
from clipling.evals.suite.subject import Subject
from clipling.models.dual import Student
from clipling.models.hub import new_student
from tests.models.making import small_conv

SIZE, COUNT = 8, 60
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


class Toy(nn.Module):
    """A student whose feature of a picture is the unit row of (t, 1), t linear in its pixels; its classes are (1, 0) and (-1, 0)."""

    normalise = Student.normalise
    evaluating = Student.evaluating
    encode_images_in_batches = Student.encode_images_in_batches
    image_size, embed_dim, device = SIZE, 2, torch.device("cpu")
    preprocess_cfg = {"size": SIZE, "resize_mode": "squash", "interpolation": "bicubic", "mean": MEAN, "std": STD}  # noqa: RUF012

    def __init__(self, change=lambda x: x) -> None:
        super().__init__()
        signs = np.random.default_rng(1).choice([-1.0, 1.0], (3, SIZE, SIZE))
        self.weight = nn.Parameter(torch.tensor(signs, dtype=torch.float32))
        self.logit_scale = nn.Parameter(torch.tensor(3.0))
        self.change = change

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        t = (self.change(images) * self.weight).sum((1, 2, 3))
        return F.normalize(torch.stack([t, torch.ones_like(t)], 1), dim=1)

    def encode_texts_in_batches(self, texts, batch=256) -> np.ndarray:
        return np.array([[1, 0] if "plus" in text else [-1, 0] for text in texts], np.float32)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    """Pictures far from black and white; five in six have the class that the toy gives them."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    pixels = rng.integers(64, 192, (COUNT, SIZE, SIZE, 3), dtype=np.uint8)
    names = [f"{i:03d}.png" for i in range(COUNT)]
    for name, square in zip(names, pixels):
        Image.fromarray(square).save(folder / name)
    labels = np.where(np.arange(COUNT) % 6 == 0, margins(pixels) > 0, margins(pixels) <= 0).astype(np.int64)
    source = LabelledImages("toy", names, [Location(str(folder / name)) for name in names], labels, ["plus", "minus"], ["{c}"])
    return Dataset("toy", source)


def margins(pixels: np.ndarray) -> np.ndarray:
    """The toy's t of pixels uint8 [n, s, s, 3], by hand."""
    x = (pixels.astype(np.float64) / 255 - MEAN) / STD
    return (x.transpose(0, 3, 1, 2) * Toy().weight.detach().numpy()).sum((1, 2, 3))


def subject(student, tmp_path, **options) -> Subject:
    return Subject(student, "toy", cache=tmp_path, **options)


@pytest.fixture
def caches(fresh_cache, tmp_path):
    return tmp_path


def checks(found) -> dict[str, bool]:
    return {check["name"]: check["passed"] for check in found.details["checks"]}


def test_a_linear_models_robust_accuracy_is_the_closed_form(caches, dataset):
    found = Attacks(epsilons=(0.5, 1, 2, 4), sample=None)(subject(Toy(), caches), dataset)
    pixels = np.stack([np.asarray(dataset.source.image(i)) for i in range(COUNT)])
    right = margins(pixels) * np.where(dataset.source.labels == 0, 1, -1)
    np.testing.assert_array_equal(found.items["clean"], right > 0)
    assert found.metrics["clean"] == pytest.approx(5 / 6)
    reach = sum(SIZE * SIZE / std for std in STD)  # the weights are +-1, so t moves by epsilon * sum of 1 / std
    for number in (0.5, 1, 2, 4):
        for attack in ("fgsm", "pgd"):
            np.testing.assert_array_equal(found.items[f"{attack}@{number:g}"], right > reach * number / 255, err_msg=f"{attack} {number}")
    assert 0 < found.metrics["pgd@4"] < found.metrics["pgd@2"] < found.metrics["pgd@0.5"] < found.metrics["clean"]
    assert set(found.metrics) == {"clean", *(f"{a}@{e}" for a in ("fgsm", "pgd") for e in ("0.5", "1", "2", "4"))} == set(found.items)
    assert all(found.metrics[name] == items.mean() for name, items in found.items.items())


def test_a_plain_model_passes_the_checks_and_the_details_are_json(caches, dataset):
    found = Attacks(sample=None)(subject(Toy(), caches), dataset)
    assert checks(found) == dict.fromkeys(("pgd_beats_fgsm", "falls_with_epsilon", "large_epsilon", "noise_is_weaker", "gradients"), True)
    assert not any("Checks" in note for note in found.notes)
    assert json.loads(json.dumps(found.details, allow_nan=False)) == found.details
    assert found.details["pgd"] == [found.metrics[f"pgd@{e}"] for e in ("0.5", "1", "2", "4")]


def test_masked_gradients_are_found(caches, dataset):
    quantised = Toy(lambda x: torch.round(4 * x) / 4)
    found = Attacks(sample=None)(subject(quantised, caches), dataset)
    assert found.metrics["fgsm@4"] == found.metrics["clean"] > 0.5, "the attack has no direction"
    assert found.metrics["pgd@4"] < found.metrics["clean"], "its random starts hit some pictures"
    more = Attacks(sample=None, restarts=4)(subject(quantised, caches), dataset)
    assert more.metrics["pgd@4"] < found.metrics["pgd@4"]
    assert (more.items["pgd@4"] <= found.items["pgd@4"]).all()
    failed = {name for name, passed in checks(found).items() if not passed}
    assert {"gradients", "large_epsilon", "noise_is_weaker"} <= failed
    assert any("gradients" in note and "masked" in note for note in found.notes)


def test_gradients_of_the_wrong_sign_are_found(caches, dataset):
    """A model that answers as the toy, but whose backward pass lies."""
    found = Attacks(sample=None)(subject(Toy(lambda x: 2 * x.detach() - x), caches), dataset)
    assert found.metrics["clean"] > 0.5
    assert not checks(found)["large_epsilon"]
    assert checks(found)["gradients"], "they are not zero"


def test_a_constant_model_scores_chance_under_every_attack(caches, dataset):
    found = Attacks(sample=None, steps=2)(subject(Toy(lambda x: 0 * x), caches), dataset)
    assert set(found.metrics.values()) == {0.5}
    assert not checks(found)["gradients"]


def test_order_per_picture_for_a_real_student(caches, dataset):
    student = new_student(small_conv(), seed=0)
    source = LabelledImages(**{**vars(dataset.source), "classnames": ["dog", "cat", "a house", "tree"], "templates": ["a {c}"]})
    labelled = Dataset("four", source)
    examined = subject(student, caches)
    # Labels that the student gives itself, so that there is something to lose.
    source.labels = (examined.images(labelled) @ examined.classes(labelled).T).argmax(1)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    found = Attacks(epsilons=(0.1, 0.5, 2), steps=2, sample=12, batch=12)(examined, labelled)
    names = ["clean", "pgd@0.1", "pgd@0.5", "pgd@2"]
    for higher, lower in pairwise(names):
        assert (found.items[lower] <= found.items[higher]).all(), lower
    for number in ("0.1", "0.5", "2"):
        assert (found.items[f"pgd@{number}"] <= found.items[f"fgsm@{number}"]).all()
    assert found.metrics["clean"] == 1 > found.metrics["pgd@2"]
    assert student.training
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert all(parameter.grad is None for parameter in student.parameters())
    small = Attacks(epsilons=(0.1, 0.5, 2), steps=2, sample=12, batch=5)(examined, labelled)
    assert all(np.array_equal(small.items[name], found.items[name]) for name in found.items), "the batch changes nothing"
    assert small.details == found.details


def test_a_larger_epsilon_never_helps_a_model_whose_answers_alternate(caches, dataset, monkeypatch):
    """One coarse step lands anywhere, so that a search at each epsilon alone is sometimes luckier at a smaller one."""
    student = Toy()
    monkeypatch.setattr(
        student, "change", lambda x: torch.sin(40 * (x * student.weight).sum((1, 2, 3)))[:, None, None, None] * student.weight
    )
    epsilons = (0.02, 0.05, 0.11, 0.23, 0.5, 1)
    found = Attacks(epsilons=epsilons, steps=1, sample=None)(subject(student, caches), dataset)
    assert not all((found.items[f"fgsm@{b:g}"] <= found.items[f"fgsm@{a:g}"]).all() for a, b in pairwise(epsilons)), "it alternates"
    names = ["clean", *(f"pgd@{e:g}" for e in epsilons)]
    for higher, lower in pairwise(names):
        assert (found.items[lower] <= found.items[higher]).all(), lower
    for e in epsilons:
        assert (found.items[f"pgd@{e:g}"] <= found.items[f"fgsm@{e:g}"]).all()


def test_epsilon_zero_is_the_clean_accuracy_and_the_sample_is_by_key(caches, dataset):
    found = Attacks(epsilons=(0, 1), sample=17)(subject(Toy(), caches), dataset)
    assert found.metrics["pgd@0"] == found.metrics["fgsm@0"] == found.metrics["clean"]
    assert len(found.items["clean"]) == found.details["pictures"] == 17
    whole = Attacks(epsilons=(0, 1), sample=None)(subject(Toy(), caches), dataset)
    rows = dataset.sample(17)
    np.testing.assert_array_equal(whole.items["pgd@1"][rows], found.items["pgd@1"])


def test_features_that_are_not_finite_are_refused(caches, dataset):
    student = Toy()
    student.weight.data[0, 0, 0] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        Attacks(sample=4)(subject(student, caches), dataset)


def test_settings_come_from_a_mapping_and_are_checked(dataset):
    read = TypeAdapter(Attacks).validate_python
    assert read({"epsilons": [1, 8], "sample": None}) == Attacks(epsilons=(1.0, 8.0), sample=None)
    for wrong in ({"epsilons": []}, {"epsilons": [2, 1]}, {"epsilons": [-1]}, {"epsilons": [300]}, {"epsilons": [1, 1.00000001]}):
        with pytest.raises(UserError, match="expected rising numbers"):
            read(wrong)
    for name in ("steps", "restarts", "sample", "batch"):
        with pytest.raises(UserError, match=f"{name} is 0"):
            read({name: 0})
    one = LabelledImages(**{**vars(dataset.source), "classnames": ["plus"]})
    assert Attacks().skipped(Dataset("one", one)) == "it has fewer than two classes"
    assert Attacks().skipped(dataset) is None
