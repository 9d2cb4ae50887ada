"""The command line does not change by accident: a flag that comes or goes is a line here."""

from __future__ import annotations

import inspect

import pytest

from clipling.cli import _together, main, verbs

COLUMNS = "image_column caption_column"
RUN = "smoke resume overwrite threads json"
SURFACE = {
    "demo": "out epochs seed resume overwrite threads json",
    "data inspect": f"source {COLUMNS} separator group problems size rate workers json",
    "data pack": f"source out size quality shard {COLUMNS} separator group photos at_once timeout retries most_mb retry json",
    "plan": "recipe pairs machine hours disk memory captions price student epochs batch set scale pilot data val out larger guidance"
    " against teacher augmentations synthetic storage threads json",
    "train": f"recipe data out val guide teacher student epochs batch lr seed seeds {COLUMNS} group set scale {RUN}",
    "finetune": f"model data out val watch epochs batch lr layer_decay freeze patience wise seed {COLUMNS} group set {RUN}",
    "distill": f"teacher data out val student text text_size texts captions epochs batch lr seed {COLUMNS} group set {RUN}",
    "compress": f"teacher to data out method stages width depth val epochs batch lr seed {COLUMNS} group set {RUN.removeprefix('smoke ')}",
    "reinforce": f"source teacher out captions augmentations crop flip operations storage shard seed gate check {COLUMNS} group"
    " threads json",
    "eval": f"model data task suite classes templates descriptions groups outside queries {COLUMNS} group language ready untrained pictures"
    " out threads json",
    "report": "results out first pictures json",
    "compare": "runs out pictures json",
    "convert": "model to out config overwrite json",
    "export": "model out to precision data labelled max_drop min_cosine web_runtime overwrite json",
    "latency": "models reference threads batch rounds out json",
    "predict": "model images classes templates top out image_column threads json",
    "embed": f"model source out {COLUMNS} threads json",
    "search index": "model images out threads overwrite json",
    "search serve": "index host port threads name",
    "bank": f"source out image_encoder text_encoder image_size update {COLUMNS} group threads json",
    "neighbours": f"bank data val k max_in_degree query centre method update {COLUMNS} group threads json",
    "check": "file json",
    "show": "what name json",
}


def test_the_verbs_and_their_flags():
    assert {name: " ".join(inspect.signature(verb).parameters) for name, verb in verbs().items()} == SURFACE


@pytest.mark.parametrize("name", SURFACE)
def test_every_argument_has_help(name):
    doc = inspect.getdoc(verbs()[name])
    for argument in SURFACE[name].split():
        assert f"{argument}:" in doc, f"{name}: {argument} has no help"


def test_verbs_stand_in_the_order_of_their_use():
    assert list(verbs()) == list(SURFACE)


def test_every_verb_is_a_function_of_the_package():
    import clipling

    assert {verb.__name__ for verb in verbs().values()} | {"__version__", "load", "Search"} == set(clipling.__all__)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("inspect photos/", "clipling data inspect"),
        ("serve index/", "clipling search serve"),
        ("data photos/", "There is: data inspect"),
        ("search photos/", "search index, search serve"),
        ("trian clip", "Did you mean 'train'"),
    ],
)
def test_words_that_are_no_verb(words, said, capsys):
    assert main(words.split()) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "together"),
    [
        ("reinforce s --teacher a --teacher b --out o", "reinforce s --teacher a b --out o"),
        ("reinforce s --teacher a b --captions rules --teacher=c --captions others", "reinforce s --teacher a b c --captions rules others"),
        ("train clip --set a=1 --set b=2", "train clip --set a=1 --set b=2"),
    ],
)
def test_a_repeated_flag_keeps_all_its_values(given, together):
    assert _together(given.split()) == together.split()
