"""`clipling <verb>`: parses, calls the facade, prints. No logic."""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

import clipling
from clipling import printing
from clipling.errors import UserError, near
from clipling.mistakes import ending

DESCRIPTION = "Grow small CLIP models from your own image-text pairs. Start with: clipling demo"


def verbs() -> dict[str, Callable[..., Any]]:
    """Every verb by the words that call it, in the order in which a new user needs them."""
    return {
        "demo": clipling.demo,
        "data inspect": clipling.inspect,
        "data pack": clipling.pack,
        "plan": clipling.plan,
        "train": clipling.train,
        "finetune": clipling.finetune,
        "distill": clipling.distill,
        "compress": clipling.compress,
        "reinforce": clipling.reinforce,
        "eval": clipling.evaluate,
        "report": clipling.report,
        "compare": clipling.compare,
        "convert": clipling.convert,
        "export": clipling.export,
        "latency": clipling.latency,
        "predict": clipling.predict,
        "embed": clipling.embed,
        "search index": clipling.search_index,
        "search serve": clipling.search_serve,
        "bank": clipling.bank,
        "neighbours": clipling.neighbours,
        "check": clipling.check,
        "show": clipling.show,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 a check failed, 2 a user's mistake, 130 stopped by Ctrl-C (state saved where the verb has any)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] in (["data"], ["search"]) and len(arguments) > 1:
        if arguments[1] in ("-h", "--help"):
            arguments.insert(1, "inspect" if arguments[0] == "data" else "index")  # the first verb about data, the first of search
        arguments[:2] = [" ".join(arguments[:2])]  # tyro takes one word for a subcommand
    return ending("clipling", lambda: _run(arguments))


def _run(arguments: list[str]) -> int:
    if arguments == ["data"]:
        raise UserError("data: what about it? Say: clipling data inspect SOURCE, or clipling data pack SOURCE FOLDER")
    if arguments == ["search"]:
        raise UserError("search: what about it? Say: clipling search index MODEL IMAGES --out INDEX, then: clipling search serve INDEX")
    _known(arguments)
    _flags_known(arguments)
    name, result, as_json = _call(_together(arguments))
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps(result, indent=2, ensure_ascii=False) if as_json else printing.text(name, result), flush=True)
    return 1 if isinstance(result, dict) and result.get("failed") else 0


REPEATABLE = ("--teacher", "--captions", "--watch", "--freeze", "--precision", "--outside", "--ready", "--against", "--name")


def _together(arguments: Sequence[str]) -> list[str]:
    """`--teacher A --teacher B` as `--teacher A B`: of a repeated flag with several values tyro keeps the last alone."""
    made: list[str] = []
    values: dict[str, list[str]] = {}
    taking: list[str] | None = None
    for argument in arguments:
        if argument.startswith("-"):
            name, equals, value = argument.partition("=")
            taking = None
            if name in REPEATABLE:
                again = name in values
                taking = values.setdefault(name, [])
                taking += [value] if equals else []
                made += [] if again else [name]
                continue
        (made if taking is None else taking).append(argument)
    return [part for argument in made for part in ([argument, *values[argument]] if argument in values else [argument])]


def _known(arguments: Sequence[str]) -> None:
    """UserError for a first word that is no verb: half of one of two words, one with a second word that is none, or a mistyped one."""
    first, names = next(iter(arguments), "-h"), list(verbs())
    groups = {name.partition(" ")[0] for name in names if " " in name}
    if first.startswith("-") or first in names:
        return
    halves = [name for name in names if " " in name and name.endswith(f" {first}")]
    head = first.partition(" ")[0]
    if halves:
        raise UserError(f"{first} is said with the word before it: clipling {halves[0]} ...")
    if head in groups:
        raise UserError(f"{first!r} is no verb. There is: {', '.join(name for name in names if name.startswith(f'{head} '))}")
    raise UserError(f"{first!r} is no verb. {near(first, names)} Help: clipling --help")


def _flags_known(arguments: Sequence[str]) -> None:
    """UserError for a flag that the verb does not have: tyro's own answer lists the flags of all verbs that resemble it."""
    verb = verbs().get(arguments[0]) if arguments else None
    if verb is None:
        return
    named = ((name, given) for name, given in inspect.signature(verb).parameters.items() if "Positional[" not in str(given.annotation))
    # What is on by default is switched off by `--no-...`, as tyro has it.
    flags = ["--help", *(f"--{'no-' if given.default is True else ''}{name.replace('_', '-')}" for name, given in named)]
    for argument in arguments[1:]:
        flag = argument.partition("=")[0]
        if flag.startswith("--") and flag.replace("_", "-") not in flags:
            raise UserError(f"{arguments[0]} has no {flag}. {near(flag, flags)} Help: clipling {arguments[0]} --help")


def _call(arguments: list[str]) -> tuple[str, Any, bool]:
    recording = {name: _recording(name, verb) for name, verb in verbs().items()}
    return tyro.extras.subcommand_cli_from_dict(
        recording, args=arguments, prog="clipling", description=DESCRIPTION, config=(tyro.conf.FlagCreatePairsOff,)
    )


def _recording(name: str, verb: Callable[..., Any]) -> Callable[..., tuple[str, Any, bool]]:
    """The verb, returning what has to be printed and how."""

    @functools.wraps(verb)
    def call(*args: Any, **options: Any) -> tuple[str, Any, bool]:
        return name, verb(*args, **options), bool(options.get("json", False))

    return call


if __name__ == "__main__":
    sys.exit(main())
