"""The command line does not change by accident: a flag that comes or goes is a line here."""

from __future__ import annotations

import inspect

import pytest

from clipling.cli import verbs

COLUMNS = "image_column caption_column"
SURFACE = {
    "demo": "out epochs seed resume overwrite threads json",
    "data inspect": f"source {COLUMNS} separator group problems json",
    "train": f"recipe data out val guide student epochs batch lr seed seeds {COLUMNS} group set scale smoke resume overwrite threads json",
    "eval": f"model data task classes templates {COLUMNS} group out threads json",
    "compare": "runs out pictures json",
    "bank": f"source out image_encoder text_encoder image_size {COLUMNS} group threads json",
    "check": "file json",
    "show": "what json",
}


def test_the_verbs_and_their_flags():
    assert {name: " ".join(inspect.signature(verb).parameters) for name, verb in verbs().items()} == SURFACE


@pytest.mark.parametrize("name", SURFACE)
def test_every_argument_has_help(name):
    doc = inspect.getdoc(verbs()[name])
    for argument in SURFACE[name].split():
        assert f"{argument}:" in doc, f"{name}: {argument} has no help"
