"""The batch that is taken where nobody asked for one: by brute force, and in the folder of a run."""

from __future__ import annotations

import pytest
import yaml

from clipling.batchsize import as_begun, check_batch, fitted, fitting_batch
from clipling.errors import UserError
from clipling.recipe import load_recipe, to_yaml, with_settings


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_largest_power_of_two_with_four_steps_an_epoch(world):
    for pairs in range(1, 400):
        found = fitting_batch(pairs, world)
        smallest = max(2, world)
        if pairs < smallest:
            assert found is None
            continue
        check_batch(found, pairs, world)  # can be drawn and divided
        candidates = [world * 2**n for n in range(9) if world * 2**n >= smallest and pairs // (world * 2**n) >= 4]
        assert found == max(candidates, default=smallest)


@pytest.mark.parametrize("pairs", [1, 95])
def test_that_a_source_is_half_made_comes_before_the_batch(pairs):
    with pytest.raises(UserError, match=r"^half is made\.\n(.|\n)*training pairs"):
        check_batch(256, pairs, 1, also=["half is made"])


def test_only_a_batch_that_is_too_large_is_replaced(capsys):
    recipe = load_recipe("distill")
    assert fitted(recipe, 256) is recipe
    assert capsys.readouterr().err == ""
    small = fitted(recipe, 190)
    assert small.optimiser.batch == 32
    assert small == with_settings(recipe, {"optimiser.batch": 32})
    assert (
        capsys.readouterr().err
        == "batch    32 photos, not the recipe's 256: of 190 for training that makes 5 steps an epoch (--batch decides)\n"
    )
    fitted(recipe, 190, quiet=True)
    assert capsys.readouterr().err == ""
    assert fitted(recipe, 1) is recipe  # check_batch says what is wrong


def test_a_resumed_run_keeps_the_batch_that_it_began_with(tmp_path):
    recipe = load_recipe("finetune")
    assert as_begun(recipe, tmp_path) is recipe
    (tmp_path / "recipe.yaml").write_text(to_yaml(with_settings(recipe, {"optimiser.batch": 16})))
    assert as_begun(recipe, tmp_path).optimiser.batch == 16
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"name": 3}))
    assert as_begun(recipe, tmp_path) is recipe
