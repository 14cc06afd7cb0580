"""Metrics of one feature set on one problem: the value, its interval, its spread, its folds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tiaft_plugin.probes.crossval import Problem
from tiaft_plugin.probes.statistics import corrected_t, interval, paired_bootstrap, paper_t

BY_FOLD = ("accuracy", "balanced accuracy", "macro F1", "F1")

Key = tuple[str, str]  # metric, and the class or gene it is of; "" where it is of all
Metrics = Callable[..., dict[Key, Any]]  # (scores, targets, weights=None or (B, n))


@dataclass(frozen=True)
class Trace:
    """What is kept of all repeats of a feature set on a problem.

    `average` (n, …) are the scores averaged over repeats; `repeats` (R,) and `folds` (R, K) the
    metrics of each; NaN where one has no value, such as that of a class which a fold does not test.
    """

    average: np.ndarray
    repeats: dict[Key, np.ndarray]
    folds: dict[Key, np.ndarray]


@dataclass(frozen=True)
class Measured:
    """A trace with its metrics: `values` of the average, `draws` (B,) of the bootstrap."""

    trace: Trace
    values: dict[Key, float]
    draws: dict[Key, np.ndarray]


def trace(metrics: Metrics, scores: np.ndarray, problem: Problem) -> Trace:
    """Return what is kept of `scores` (R, n, …)."""
    targets = problem.targets
    by_repeat = [metrics(one, targets) for one in scores]
    keys, count = list(by_repeat[0]), problem.count
    by_fold = {key: np.full((len(scores), count), np.nan) for key in keys}
    for repeat, (one, folds) in enumerate(zip(scores, problem.folds, strict=True)):
        for fold in range(count):
            test = folds == fold
            for key, value in metrics(one[test], targets[test]).items():
                by_fold[key][repeat, fold] = value
    repeats = {key: np.array([found[key] for found in by_repeat]) for key in keys}
    return Trace(scores.mean(axis=0), repeats, by_fold)


def measure(metrics: Metrics, kept: Trace, problem: Problem, weights: np.ndarray) -> Measured:
    """Measure predictions averaged over repeats; `weights` (B, n) are the bootstrap's draws."""
    average, targets = kept.average, problem.targets
    return Measured(kept, metrics(average, targets), metrics(average, targets, weights))


def score_row(measured: Measured, key: Key, problem: Problem, **names: Any) -> dict[str, Any]:
    """Return a row of "scores": `names` are its features, target and variant."""
    low, high = interval(measured.draws[key], problem.clusters, problem.count)
    return {
        **names,
        "metric": key[0],
        "value": float(measured.values[key]),
        "low": float(low),
        "high": float(high),
        "split_sd": split_sd(measured.trace.repeats[key]),
    }


def comparison_row(
    one: Measured, other: Measured, key: Key, problem: Problem, **names: Any
) -> dict[str, Any]:
    """Return a row of "comparisons": what the other set has more than the one.

    Shares of rows that are right have a value in each fold: there the corrected t test holds, and
    the difference is the mean over folds. Rankings are pooled, and tested by the bootstrap: a
    fold's AUROC, of few rows, is too coarse. ``benchmarks/calibration.py`` shows that both hold.
    """
    by_fold = key[0] in BY_FOLD
    value = float(other.values[key] - one.values[key])
    if by_fold:
        differences = (other.trace.folds[key] - one.trace.folds[key]).ravel()
        tested = problem.clusters / problem.count  # on average over the folds, whatever their sizes
        test = corrected_t(differences, tested, problem.clusters - tested)
    else:
        draws = other.draws[key] - one.draws[key]
        test = paired_bootstrap(value, draws, problem.clusters, problem.count)
    return {
        **names,
        "metric": key[0],
        "difference": float(test.value),
        "low": float(test.low),
        "high": float(test.high),
        "p_bootstrap": None if by_fold else float(test.p),
        "p_corrected": float(test.p) if by_fold else None,
        "p_paper": float(paper_t(other.trace.repeats[key] - one.trace.repeats[key]).p),
    }


def split_sd(repeats: np.ndarray) -> float | None:
    """Return the spread over repeats: the noise of how rows were split, and no more than that."""
    return float(np.std(repeats, ddof=1)) if len(repeats) > 1 else None
