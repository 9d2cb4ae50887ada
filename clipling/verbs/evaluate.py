"""`clipling eval MODEL --data SRC`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from clipling.errors import UserError


def evaluate(
    model: Positional[str],
    /,
    data: str | None = None,
    task: Literal["auto", "retrieval", "zeroshot"] = "auto",
    suite: str | None = None,
    classes: Path | None = None,
    templates: Path | None = None,
    descriptions: Path | None = None,
    groups: Path | None = None,
    outside: tuple[str, ...] = (),
    queries: Path | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    group: str | None = None,
    language: str | None = None,
    ready: tuple[str, ...] | None = None,
    untrained: bool = True,
    pictures: bool = True,
    out: Path | None = None,
    threads: int | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """Measures a model on your own pairs (retrieval) or labelled pictures (zero-shot classification), or by a whole suite.

    Args:
        model: A run folder, a folder in open_clip layout, or an open_clip name such as ViT-B-32@laion2b_s34b_b79k.
        data: Pairs as in `clipling train`; for zero-shot: class folders, CLIP_benchmark's layout, or demo:emoji.
        task: retrieval, zeroshot, or auto (zeroshot where the source has classes and no captions).
        suite: quick, reliability, full, or a .yaml file with datasets and settings: many evaluators, and a report to read.
        classes: Zero-shot: a file with one class name a line, in the order of the classes.
        templates: Zero-shot: a file with one prompt a line, {c} where the class name goes.
        descriptions: Suite, zero-shot: a .json file from class name to visual descriptions of it.
        groups: Suite, zero-shot: a .csv file with the columns key and group, such as the background of each picture.
        outside: Suite, zero-shot: sources of pictures that belong to none of the classes (may be several).
        queries: Suite, retrieval: your own queries, a .csv, .tsv or .jsonl with query, key and, if you like, grade.
        image_column: Column of the picture's path, when it cannot be guessed.
        caption_column: Column of the caption, when it cannot be guessed.
        group: Column that names a product; its pictures are right answers to each other's captions.
        language: Suite: language of captions or class names (default: en).
        ready: Suite: ready-made models to measure beside it (default: the strongest small one in the hub's cache, if any).
        untrained: Suite: measure what training began with, too (--no-untrained to leave it out).
        pictures: Suite: show pictures in the report (--no-pictures for private data).
        out: The result as CLIP_benchmark-compatible JSON; of a suite, the folder of results and report (default: results/).
        threads: Threads of torch (default: all cores).
        json: Print as JSON.
    """
    from clipling.run import threads as set_threads

    beside = {"descriptions": descriptions, "groups": groups, "outside": outside, "queries": queries, "language": language}
    given = {name: value for name, value in beside.items() if value}
    if suite is None and given:
        suite = "quick"
    if task == "retrieval" and (classes or templates):
        raise UserError("--classes and --templates are for --task zeroshot: retrieval would ignore them")
    set_threads(threads)
    columns = {"image_column": image_column, "caption_column": caption_column, "group": group}
    if suite is not None:
        files = {"classes": classes, "templates": templates, **given}
        spec = {key: value for key, value in {"task": task, **files, **columns}.items() if value and value != "auto"}
        return _suite(model, suite, data, spec, out or Path("results"), ready, untrained, pictures)
    if data is None:
        raise UserError("eval needs --data SRC, or --suite FILE.yaml that names datasets")
    ignored = [name for name, value in (("--ready", ready), ("--no-untrained", not untrained), ("--no-pictures", not pictures)) if value]
    if ignored:
        raise UserError(f"{' and '.join(ignored)} would be ignored without --suite. Add --suite quick, or leave it out.")
    from clipling.assess import assess
    from clipling.engine.runtime import start

    with start() as runtime:
        return assess(model, data, task, classes=classes, templates=templates, columns=columns, out=out, runtime=runtime)


def _suite(
    model: str,
    suite: str,
    data: str | None,
    spec: dict[str, Any],
    out: Path,
    ready: tuple[str, ...] | None,
    untrained: bool,
    pictures: bool,
) -> dict[str, Any]:
    from clipling.engine.runtime import start
    from clipling.evals.suite.plan import DatasetSpec
    from clipling.suites import Beside, plan_of, run_suite

    if out.suffix:
        raise UserError(f"--out {out} names a file; a suite writes a folder of results and a report")
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in spec.items()}
    if data is None and plain:
        raise UserError(
            f"{', '.join('--' + key.replace('_', '-') for key in plain)} would be ignored without --data: write it into {suite}"
        )
    plan = plan_of(suite, [DatasetSpec(data=data, **plain)] if data is not None else [])
    with start() as runtime:
        say = lambda line: print(line, file=sys.stderr, flush=True) if runtime.first else None  # noqa: E731 - a name for one expression
        return run_suite(model, plan, out, beside=Beside(untrained, ready), pictures=pictures, say=say, runtime=runtime)
