"""Pictures beside the numbers: galleries and failures, from rows that evaluators named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from clipling.data.classes import LabelledImages, open_labelled
from clipling.data.pairs import Pairs
from clipling.data.source import open_pairs
from clipling.errors import UserError
from clipling.evals.gallery import Thumbnails
from clipling.evals.public import public
from clipling.evals.results import CLASSIFICATION, Result
from clipling.evals.suite.blocks import Answer, Asked, Folded, Gallery, Guess, Mistake, Mistakes, Tile
from clipling.evals.suite.compared import ModelResults
from clipling.evals.suite.sources import reopened

Of = tuple[ModelResults, Result]
MOST_ANSWERS = 3  # models in a gallery: more cannot be taken in
MISTAKES, QUERIES = 10, 6
PRIVATE = "Pictures were left out of this page, and with them all that is about single ones: galleries, worst failures, captions, queries."


class Pictures:
    """The pictures of one dataset. `note` says why there are none, and is empty when there are.

    Where they are not `wanted`, the data is private: nothing is shown of a single picture, nor its captions, queries and key.
    """

    def __init__(self, results: Sequence[Result], wanted: bool = True) -> None:
        self.wanted = wanted
        self.source, self.note = _open(results) if wanted else (None, PRIVATE)
        self.thumbnails = Thumbnails(self.source, self.source is not None)

    def __bool__(self) -> bool:
        return self.source is not None

    def tile(self, row: int, right: bool = False) -> Tile | None:
        """None where there are no pictures, and for a row that the source does not have."""
        if self.source is None or not 0 <= row < len(self.source):
            return None
        return {"thumbnail": self.thumbnails(row), "caption": self._caption(row), "right": right}

    def tiles(self, rows: Sequence[int], right: int | None = None) -> list[Tile]:
        """The pictures found for a query whose own picture is `right`; others of its group are right, too."""
        found = (self.tile(row, right is not None and self._same(row, right)) for row in rows)
        return [tile for tile in found if tile is not None]

    def _same(self, a: int, b: int) -> bool:
        groups = self.source.groups if isinstance(self.source, Pairs) else []
        return a == b or (max(a, b) < len(groups) and groups[a] != "" and groups[a] == groups[b])

    def _caption(self, row: int) -> str:
        if isinstance(self.source, LabelledImages):
            return self.source.classnames[int(self.source.labels[row])]
        captions = self.source.captions_of(row)
        return captions[0] if captions else self.source.keys[row]


def _open(results: Sequence[Result]) -> tuple[Any, str]:
    """The source of a dataset and why there is none. A source that changed since it was measured would show wrong pictures."""
    named = next((r for r in results if r.spec), None)
    if named is None:
        return None, "No pictures: these results do not say which source they were made on."
    labelled, wanted = "classes" in results[0].size, {r.data_hash for r in results if r.data_hash}
    if len(wanted) > 1:
        return None, "No pictures: the models were not measured on the same pictures, so rows of one are not those of the other."
    try:
        source = reopened(named) or (_labelled(named.spec, results, wanted) if labelled else open_pairs(named.spec))
    except (UserError, OSError, ValueError):  # what is wrong with it may name paths, which are nobody else's business
        return None, f"No pictures: {public(named.spec)} cannot be opened here."
    if wanted and source.fingerprint not in wanted:
        return None, f"No pictures: {public(named.spec)} is not what it was when this was measured."
    return source, ""


def _labelled(spec: str, results: Sequence[Result], wanted: set[str]) -> LabelledImages:
    """Class names may have come from a file that the spec does not name; the results know them."""
    known = next((r.details.get("classes", []) for r in results if r.task == CLASSIFICATION), [])
    names = [str(each["name"]) for each in known]
    if spec.startswith("demo:") or len(names) != results[0].size.get("classes"):
        return open_labelled(spec)
    try:
        source = open_labelled(spec)
    except UserError:
        return open_labelled(spec, names)
    named = replace(source, classnames=names) if len(names) == len(source.classnames) else source
    return named if named.fingerprint in wanted else source


def retrieval_galleries(of: Sequence[Of], pictures: Pictures) -> list[Any]:
    """Captions drawn by a hash with what every model finds, then where the first model is furthest off."""
    if not pictures.wanted:
        return []
    blocks: list[Any] = []
    if pictures:
        asked = _asked(of[:MOST_ANSWERS], pictures)
        if asked:
            more = f" Of {len(of)} models the first {MOST_ANSWERS} are shown." if len(of) > MOST_ANSWERS else ""
            note = "Captions drawn at random, so that they stand for all. The small picture is the caption's own; where found it is framed."
            blocks.append(Gallery("Asked with a caption", note + more, asked))
    for number, (model, result) in enumerate(of):
        worst = [block for block in (_worst_captions(model, result, pictures), _worst_pictures(model, result, pictures)) if block]
        if worst:
            blocks += worst if number == 0 else [Folded(f"Where {model.label} is furthest off", worst)]
    return blocks


def _asked(of: Sequence[Of], pictures: Pictures) -> list[Asked]:
    found = []
    tables = [{(e["caption"], e["row"]): e for e in result.details.get("gallery", [])} for _, result in of]
    for key in list(tables[0])[:QUERIES]:
        answers = []
        for (model, _), table in zip(of, tables):
            if key in table:
                tiles = pictures.tiles(table[key]["found"], key[1])
                answers.append(Answer(model.label, model.colour, place(table[key].get("rank")), tiles))
        found.append(Asked(key[0], pictures.tile(key[1]), answers))
    return found


def _worst_captions(model: ModelResults, result: Result, pictures: Pictures) -> Gallery | None:
    worst = result.details.get("failures", [])
    if not worst:
        return None
    asked = [
        Asked(
            e["caption"],
            pictures.tile(e["row"]),
            [Answer(model.label, model.colour, place(e["rank"]), pictures.tiles(e["found"], e["row"]))],
        )
        for e in worst[:QUERIES]
    ]
    return Gallery(
        "Captions furthest from their picture", "What came first instead, and at which place the caption's own picture came.", asked
    )


def _worst_pictures(model: ModelResults, result: Result, pictures: Pictures) -> Gallery | None:
    worst = result.details.get("failures_i2t", [])
    if not worst or not pictures:
        return None
    asked = [
        Asked("", pictures.tile(e["row"]), [Answer(model.label, model.colour, place(e["rank"]), lines=[(c, False) for c in e["captions"]])])
        for e in worst[:QUERIES]
    ]
    return Gallery("Pictures furthest from their captions", "The captions that came first instead.", asked)


def class_mistakes(of: Sequence[Of], pictures: Pictures) -> list[Any]:
    """The most confident mistakes of every model, those of the first open."""
    if not pictures.wanted:
        return []
    blocks: list[Any] = []
    for number, (model, result) in enumerate(of):
        worst = [
            Mistake(pictures.tile(e["row"]), f"{e['true']}", [Guess(n, f"{100 * p:.0f} %", p, n == e["true"]) for n, p in e["guesses"]])
            for e in result.details.get("failures", [])[:MISTAKES]
        ]
        if worst:
            note = "The true class stands first; under it the three likeliest guesses with their probability."
            made = Mistakes(f"The most confident mistakes of {model.label}", note, worst, model.colour)
            blocks.append(made if number == 0 else Folded(made.title, [replace(made, title="")]))
    return blocks


def negative_examples(of: Sequence[Of], pictures: Pictures) -> list[Any]:
    """Captions against their hard negatives: the most wrongly and the most rightly decided ones of the first model."""
    if not pictures.wanted:
        return []
    model, result = of[0]
    asked = []
    for kind in result.details.get("kinds", []):
        for e in kind.get("examples", [])[:4]:
            lines = [(e["caption"], True), (e["negative"], False)]
            text = f"{_margin(e['margin'])}, {kind['kind'].replace('_', ' ')}"
            asked.append(Asked("", pictures.tile(e["row"]), [Answer(model.label, model.colour, text, lines=lines)]))
    if not asked:
        return []
    note = f"The true caption is ticked, the false one is below it; the margin is how much nearer the true one is, by {model.label}."
    return [Folded("Examples, wrongly and rightly decided", [Gallery("", note, asked)])]


def worst_queries(of: Sequence[Of], pictures: Pictures) -> list[Any]:
    """Own queries that the first model answers worst."""
    if not pictures.wanted:
        return []
    model, result = of[0]
    asked = []
    for e in result.details.get("worst", [])[:QUERIES]:
        relevant = set(e.get("relevant", []))
        tiles = [tile for row in e["found"] if (tile := pictures.tile(row, row in relevant)) is not None]
        first = next(iter(e.get("relevant", [])), None)
        note = f"nDCG@10 {100 * e['ndcg']:.0f} %, {len(relevant)} relevant"
        asked.append(Asked(e["query"], None if first is None else pictures.tile(first), [Answer(model.label, model.colour, note, tiles)]))
    if not asked:
        return []
    return [
        Gallery("Queries answered worst", "What comes first; relevant pictures are framed. The small picture is a relevant one.", asked)
    ]


def explained_pictures(of: Sequence[Of], pictures: Pictures) -> list[Any]:
    """Which descriptions a picture of a class is nearest to."""
    if not pictures.wanted:
        return []
    model, result = of[0]
    found = []
    for e in result.details.get("explained", []):
        top = max((abs(s) for _, s in e["descriptions"]), default=1) or 1
        lines = [Guess(text, f"{similarity:.2f}", max(0.0, similarity / top)) for text, similarity in e["descriptions"]]
        found.append(Mistake(pictures.tile(e["row"]), str(e["class"]), lines))
    if not found:
        return []
    return [
        Mistakes(f"What {model.label} goes by", "Descriptions of the class, with their similarity to the picture.", found, model.colour)
    ]


def place(rank: float | None) -> str:
    """Where the right answer came, counted from 1."""
    return "" if rank is None else f"right answer at place {rank:,.0f}"


def _margin(margin: float) -> str:
    return f"margin {margin:+.3f}".replace("-", "−")
