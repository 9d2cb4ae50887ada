"""What others are shown of paths and command lines: results and pages are passed on."""

from __future__ import annotations


def public(spec: str) -> str:
    """What is shown of a path or a source: its last part. Demo sources stay; several that are joined are cut one by one."""
    return "::".join(map(_last, spec.split("::")))


def _last(part: str) -> str:
    if part.startswith("demo:"):
        return part
    for prefix in ("local-dir:", "transformers:"):
        if part.startswith(prefix):
            return prefix + _last(part.removeprefix(prefix))
    parts = [each for each in part.replace("\\", "/").split("/") if each]
    return parts[-1] if parts else part


def public_command(program: str, arguments: list[str]) -> str:
    """A command line with every path cut to its last part, those behind `--option=` too."""
    made = [public(program)]
    for argument in arguments:
        name, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        made.append(f"{name}{equals}{public(value)}")
    return " ".join(made)
