"""From the scores of all repeats to tidy tables: what each kind of probe is measured by."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from tiaft_plugin.probes.crossval import Problem
from tiaft_plugin.probes.measured import (
    Measured,
    Metrics,
    Trace,
    comparison_row,
    measure,
    score_row,
    trace,
)
from tiaft_plugin.probes.metrics import binary_metrics, class_metrics, confusion, correlations
from tiaft_plugin.probes.numbers import analyse_numbers
from tiaft_plugin.probes.settings import COLOUR, Analysis, Settings
from tiaft_plugin.probes.statistics import cluster_weights, training_means

Traces = Mapping[tuple[str, int, int], Trace]  # of a set, a problem and a variant


def trace_of(problem: Problem, scores: np.ndarray) -> Trace:
    """Return what is kept of a set's `scores` on a problem, (R, n, C), (R, n, G) or (R, n)."""
    if problem.kind != "numbers":
        return trace(_metrics(problem), scores, problem)
    rs = np.array(
        [
            correlations(one - training_means(problem.targets, folds[None]), problem.targets)
            for one, folds in zip(scores, problem.folds, strict=True)
        ]
    )
    repeats = {("r", str(gene)): rs[:, gene] for gene in range(rs.shape[1])}
    return Trace(scores.mean(axis=0), repeats, {})


def analyse(
    names: tuple[str, ...],
    problems: list[Problem],
    traces: Traces,
    settings: Settings,
    variants: tuple[str, ...] = ("",),
) -> Analysis:
    """Return tables of every set; `names` are the classes or genes."""
    sets = list(dict.fromkeys(name for name, _, _ in traces))
    if problems[0].kind == "numbers":
        own = {name: traces[name, 0, 0] for name in sets}
        return analyse_numbers(names, problems[0], own, settings)
    found = Analysis()
    for p, problem in enumerate(problems):
        weights = cluster_weights(problem.groups, settings.draws, settings.seed)
        for v, variant in enumerate(variants):
            measured = {
                name: measure(_metrics(problem), traces[name, p, v], problem, weights)
                for name in sets
            }
            for name, one in measured.items():
                found.scores += _score_rows(one, problem, name, variant)
                found.rows += _fold_rows(one, problem, name, variant)
                if problem.kind == "classes":
                    table = confusion(one.trace.average, problem.targets)
                    found.extra.setdefault("confusion", {})[name] = table.tolist()
            found.comparisons += _comparisons(measured, problem, settings, variant)
    return found


def empty_models(scores: np.ndarray, problem: Problem) -> list[int]:
    """Count the models that gave every row (R, n) of their fold the same score, and all models."""
    tests = [
        one[folds == fold]
        for one, folds in zip(scores, problem.folds, strict=True)
        for fold in range(problem.count)
    ]
    return [sum(len(test) > 1 and bool((test == test[0]).all()) for test in tests), len(tests)]


def _metrics(problem: Problem) -> Metrics:
    """Return the function that measures scores of a problem."""
    how = (
        partial(class_metrics, names=problem.classes)
        if problem.kind == "classes"
        else binary_metrics
    )

    def metrics(scores: np.ndarray, targets: np.ndarray, weights: Any = None) -> dict:
        # The prevalence stands beside AUPRC, and is no result; a gene's metrics get its name.
        return {
            (metric, target or problem.name): value
            for (metric, target), value in how(scores, targets, weights=weights).items()
            if metric != "prevalence"
        }

    return metrics


def _score_rows(
    measured: Measured, problem: Problem, name: str, variant: str
) -> list[dict[str, Any]]:
    rows = []
    for metric, target in measured.values:
        row = score_row(
            measured, (metric, target), problem, features=name, target=target, variant=variant
        )
        row["n"] = len(problem.rows)
        if target:
            row["positive"] = int(_positive(problem, target).sum())
        if target or metric == "AUPRC":
            row["prevalence"] = _prevalence(problem, target)
        rows.append(row)
    return rows


def _positive(problem: Problem, target: str) -> np.ndarray:
    """Return which rows are of a class, or have 1 where there are none, (n,) bool."""
    return problem.targets == (problem.classes.index(target) if problem.classes else 1)


def _prevalence(problem: Problem, target: str, rows: Any = slice(None)) -> float:
    """Return what guessing reaches in AUPRC; over all classes, the mean of those there are."""
    if target:
        return float(_positive(problem, target)[rows].mean())
    return 1 / len(np.unique(problem.targets[rows]))


def _fold_rows(measured: Measured, problem: Problem, name: str, variant: str) -> list[dict]:
    """Return a row a repeat and fold for each target, its metrics in columns."""
    found = measured.trace.folds
    targets = dict.fromkeys(target for _, target in found)
    metrics = dict.fromkeys(metric for metric, _ in found)
    rows: list[dict[str, Any]] = []
    for target in targets:
        for repeat, folds in enumerate(problem.folds):
            for fold in range(problem.count):
                row: dict[str, Any] = {"features": name, "target": target, "variant": variant}
                row |= {"repeat": repeat, "fold": fold, "n": int((folds == fold).sum())}
                for metric in metrics:
                    values = found.get((metric, target))
                    row[metric] = None if values is None else float(values[repeat, fold])
                row["prevalence"] = _prevalence(problem, target, folds == fold)
                rows.append(row)
    return rows


def _comparisons(
    measured: Mapping[str, Measured], problem: Problem, settings: Settings, variant: str
) -> list[dict[str, Any]]:
    """Return what each feature set has more than the reference, for every metric."""
    a = settings.reference
    return [
        comparison_row(
            measured[a], measured[b], key, problem, a=a, b=b, target=key[1], variant=variant
        )
        for b in measured
        if b not in (a, COLOUR)
        for key in measured[b].values
    ]
