"""How programs end: one line and a code for a user's mistake, for words that do not fit, for a missing package and for Ctrl-C."""

from __future__ import annotations

import sys

import pytest

from clipling.errors import UserError
from clipling.mistakes import ending, script


def example(source: str, out: str = "runs/x", *settings: str) -> None:
    if source == "bad":
        raise UserError("there is no bad")
    print(source, out, *settings)


def run(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["/a/b/example.py", *words])
    with pytest.raises(SystemExit) as end:
        script(example)
    return end.value.code


def test_a_script_gets_the_words_of_the_command_line(monkeypatch, capsys):
    assert run(monkeypatch, "a", "b", "c=1", "d=2") == 0
    assert capsys.readouterr().out == "a b c=1 d=2\n"


def test_a_users_mistake_is_one_line(monkeypatch, capsys):
    assert run(monkeypatch, "bad") == 2
    assert capsys.readouterr().err == "example.py: there is no bad\n"


def test_words_that_do_not_fit_show_how_to_call_it(monkeypatch, capsys):
    assert run(monkeypatch) == 2
    said = capsys.readouterr().err
    assert said.startswith("example.py: missing a required argument: 'source'")
    assert __doc__.strip() in said
    assert said.endswith("arguments: source [out=runs/x] [settings ...]\n")


def test_a_fault_of_ours_keeps_its_traceback():
    def call() -> int:
        raise TypeError("ours")

    with pytest.raises(TypeError, match="ours"):
        ending("x", call)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ModuleNotFoundError("no", name="faiss"), None, ""),
        (ModuleNotFoundError("no", name="onnxruntime.tools"), 2, "pip install 'clipling[runtime]'"),
        (KeyboardInterrupt("All is kept."), 130, "x: stopped. All is kept."),
    ],
)
def test_other_endings(error, code, said, capsys):
    def call() -> int:
        raise error

    if code is None:
        with pytest.raises(ModuleNotFoundError):
            ending("x", call)
        return
    assert ending("x", call) == code
    assert said in capsys.readouterr().err
