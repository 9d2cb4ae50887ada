"""What others are shown of paths and command lines."""

from __future__ import annotations

import pytest

from clipling.evals.public import public, public_command


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("/home/me/secret/photos", "photos"),
        ("secret/photos/", "photos"),
        ("demo:emoji/val", "demo:emoji/val"),
        ("/a/b.tar::c/d.tar::demo:emoji", "b.tar::d.tar::demo:emoji"),
        ("local-dir:/home/me/model", "local-dir:model"),
        ("C:\\Users\\me\\photos", "photos"),
        ("ViT-B-32@openai", "ViT-B-32@openai"),
        ("/", "/"),
        ("", ""),
    ],
)
def test_paths_are_cut_to_their_last_part(given, shown):
    assert public(given) == shown


def test_a_command_line():
    arguments = ["eval", "runs/secret/ping", "--data=/x/photos", "--queries", "../me/q.csv", "--suite=full", "--no-pictures"]
    said = public_command("/usr/bin/clipling", arguments)
    assert said == "clipling eval ping --data=photos --queries q.csv --suite=full --no-pictures"
