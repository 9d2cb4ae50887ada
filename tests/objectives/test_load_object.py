"""Names of modules and files, and what a user reads when one is wrong."""

from __future__ import annotations

import pytest

from clipling.errors import UserError
from clipling.objectives.load import load_object


@pytest.fixture
def file(tmp_path):
    def write(text: str, name: str = "mine.py"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_module_and_file(file):
    from clipling.objectives.ping import Ping

    assert load_object("clipling.objectives.ping:Ping") is Ping
    path = file("from dataclasses import dataclass\n@dataclass\nclass Loss:\n    x: int = 1\n")
    assert load_object(f"{path}:Loss")().x == 1
    assert load_object(f"{path}:Loss") is load_object(f"{path}:Loss")
    file("class Loss:\n    x = 2\n")
    assert load_object(f"{path}:Loss")().x == 2  # a changed file is read again


def test_relative_path_and_a_file_beside_it(file, tmp_path, monkeypatch):
    file("VALUE = 5\n", "beside_mine.py")
    file("import beside_mine\ndef value():\n    return beside_mine.VALUE\n")
    monkeypatch.chdir(tmp_path)
    assert load_object("./mine.py:value")() == 5
    assert load_object("mine.py:value")() == 5


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("nowhere/mine.py:Loss", "there is no file nowhere/mine.py"),
        ("nowhere/mine.py", "there is no file nowhere/mine.py"),
        ("clipling.objectives.pong:Ping", "there is no module 'clipling.objectives.pong'"),
        ("nosuchpackage.thing:Ping", "there is no module 'nosuchpackage'"),
        ("clipling.objectives.ping:Pign", "Did you mean 'Ping'"),
        ("clipling.objectives.ping", "write clipling.objectives.ping:NAME. It defines Ping"),
    ],
)
def test_wrong_names(spec, said):
    with pytest.raises(UserError) as error:
        load_object(spec)
    assert said in str(error.value).replace("\\", "/")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nosuchmodule\n", "ModuleNotFoundError: No module named 'nosuchmodule' (line 1 of mine.py: import nosuchmodule)"),
        ("\n\nx = 1 / 0\n", "ZeroDivisionError: division by zero (line 3 of mine.py: x = 1 / 0)"),
        ("def broken(:\n", "SyntaxError"),
        ("import json\njson.loads('{')\n", "(line 2 of mine.py: json.loads('{'))"),
    ],
)
def test_a_file_that_cannot_be_imported(file, text, said):
    with pytest.raises(UserError) as error:
        load_object(f"{file(text)}:Loss")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_name_in_a_file(file):
    path = file("import math\nclass MyLoss: ...\ndef other(): ...\n_hidden = 1\n")
    with pytest.raises(UserError, match="Did you mean 'MyLoss'"):
        load_object(f"{path}:MyLos")
    with pytest.raises(UserError, match=r"write .*mine.py:NAME. It defines MyLoss, other\."):
        load_object(str(path))
    with pytest.raises(UserError, match="defines no public class or function"):
        load_object(f"{file('x = 1')}:MyLoss")
