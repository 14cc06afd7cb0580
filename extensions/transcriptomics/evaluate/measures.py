"""What a model scores in a task, what it gains over its base, and what that is over all tasks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tiaft_extensions.transcriptomics.evaluate.tasks import PEARSON
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.probes.crossval import Problem
from tiaft_plugin.probes.interface import Result
from tiaft_plugin.probes.metrics import class_metrics, correlations
from tiaft_plugin.probes.packing import unpack
from tiaft_plugin.probes.statistics import (
    Difference,
    cluster_weights,
    corrected_t,
    interval,
    paired_bootstrap,
    training_means,
)


@dataclass(frozen=True)
class Measured:
    """A task by one feature set: its `value`, and `draws` (B,) of the bootstrap of patients.

    `measure` gives the value for weights (B, n) of the problem's rows.
    """

    problem: Problem
    measure: Callable[..., Any]
    value: float
    draws: np.ndarray

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval, as the probe's own report has it."""
        low, high = interval(self.draws, self.problem.clusters, self.problem.count)
        return float(low), float(high)


class Mean(NamedTuple):
    """The mean difference over tasks, its two intervals, and how many tasks it is of.

    `patients` is for these tasks, had other patients been in them; `tasks` for other tasks.
    """

    value: float
    patients: Difference
    tasks: Difference
    number: int


def measured(result: Result, metric: str, features: str) -> Measured:
    """Measure a feature set of a probe's result, or "colour", from the predictions that it keeps.

    `mean Pearson` is the mean over genes of what the probe's table has as r (the poster's "average
    correlation"); a gene that a draw leaves constant is left out of that draw.
    """
    problems, traces = unpack(result.predictions, result.summary)
    problem, average = problems[0], traces[features, 0, 0].average
    if metric == PEARSON:
        average = average - training_means(problem.targets, problem.folds)

    def measure(weights: np.ndarray | None = None) -> Any:
        if metric == PEARSON:
            return np.nanmean(correlations(average, problem.targets, weights), axis=-1)
        return class_metrics(average, problem.targets, problem.classes, weights)[metric, ""]

    protocol = result.summary["protocol"]
    weights = cluster_weights(problem.groups, protocol["draws"], protocol["seed"])
    return Measured(problem, measure, float(measure()), measure(weights))


def difference(one: Measured, base: Measured) -> Difference:
    """Return what a model scores more than its base: paired by rows, folds and drawn patients.

    Raises TiaftError where they were not measured on the same rows and folds.
    """
    a, b = one.problem, base.problem
    alike = all(
        np.array_equal(x, y, equal_nan=x.dtype.kind == "f")
        for x, y in ((a.groups, b.groups), (a.targets, b.targets), (a.folds, b.folds))
    )
    if not alike or a.classes != b.classes:
        raise TiaftError("the model and its base have other rows, so that nothing can be compared")
    return paired_bootstrap(one.value - base.value, one.draws - base.draws, a.clusters, a.count)


def mean_difference(pairs: Sequence[tuple[Measured, Measured]], draws: int, seed: int) -> Mean:
    """Return the mean of the differences (model, base) over tasks, each task counting once.

    Of these tasks: patients are drawn in every task, those that several tasks share in all of them
    at once, and the variance is widened as in the probes, for the fewest patients and folds that
    a task has. Of other tasks: Student's t over the tasks' differences.
    """
    values = np.array([one.value - base.value for one, base in pairs])
    joint = joint_weights([one.problem.groups for one, _ in pairs], draws, seed)
    drawn = np.stack([
        one.draws - base.draws if weights is None else one.measure(weights) - base.measure(weights)
        for (one, base), weights in zip(pairs, joint, strict=True)
    ])  # fmt: skip
    clusters = min(one.problem.clusters for one, _ in pairs)
    folds = min(one.problem.count for one, _ in pairs)
    value = float(values.mean())
    patients = paired_bootstrap(value, drawn.mean(axis=0), clusters, folds)
    return Mean(value, patients, corrected_t(values, 0, 1), len(pairs))


def joint_weights(groups: Sequence[np.ndarray], draws: int, seed: int) -> list[np.ndarray | None]:
    """Return (B, n) for each task's `groups` (n,); None where no other task shares a patient.

    Tasks that share patients, also by way of a third, draw from all of theirs together.
    """
    found: list[np.ndarray | None] = [None] * len(groups)
    for together in _sharing([set(its.tolist()) for its in groups]):
        if len(together) > 1:
            every = cluster_weights(np.concatenate([groups[t] for t in together]), draws, seed)
            ends = np.cumsum([len(groups[t]) for t in together])[:-1]
            for task, weights in zip(together, np.split(every, ends, axis=1), strict=True):
                found[task] = weights
    return found


def _sharing(patients: Sequence[set[str]]) -> list[list[int]]:
    """Return the tasks that share patients, each task in one list."""
    found: list[tuple[list[int], set[str]]] = []
    for task, its in enumerate(patients):
        own = [each for each in found if each[1] & its]
        found = [each for each in found if not each[1] & its]
        tasks = sorted([task, *(t for each in own for t in each[0])])
        found.append((tasks, its.union(*(each[1] for each in own))))
    return [tasks for tasks, _ in found]
