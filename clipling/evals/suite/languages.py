"""Datasets that are one in several languages, side by side: does the model know each language as well?"""

from __future__ import annotations

from collections.abc import Sequence

from clipling.evals.results import RETRIEVAL, Result
from clipling.evals.suite.blocks import Cell, Section, Table
from clipling.evals.suite.compared import ModelResults
from clipling.evals.suite.tables import heading, model_head, number_cell

METRICS = ("i2t_recall@10", "t2i_recall@10")
HOW = "The same pictures with captions in each language, recall@10 both ways in percent; under each number its 95 % interval."


def by_language(models: Sequence[ModelResults]) -> Section | None:
    """A table a family of datasets, with a row for each language and direction; None where there are no such datasets."""
    found = [r for model in models for r in model.results if r.family and r.task == RETRIEVAL]
    families = dict.fromkeys(r.family for r in found)
    tables = [_table(family, [r for r in found if r.family == family], models) for family in families]
    return Section("languages", "By language", HOW, tables) if tables else None


def _table(family: str, results: Sequence[Result], models: Sequence[ModelResults]) -> Table:
    rows = []
    for dataset, language in dict.fromkeys((r.dataset, r.language) for r in results):
        for metric in METRICS:
            cells = [_cell(model, dataset, metric) for model in models]
            rows.append([Cell(heading(RETRIEVAL, metric), language if metric == METRICS[0] else "", "metric"), *cells])
    return Table(["", *map(model_head, models)], rows, family)


def _cell(model: ModelResults, dataset: str, metric: str) -> Cell:
    result = next((r for r in model.results if (r.dataset, r.task) == (dataset, RETRIEVAL)), None)
    return Cell("–") if result is None else number_cell(result, metric)
