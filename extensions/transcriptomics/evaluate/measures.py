"""What a model scores in a task, what it gains over its base, and what that is over all tasks."""

from collections.abc import Callable, Iterator, Sequence
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
    reuse,
    training_means,
)

BLOCK = 25_000_000  # weights handled at a time: 100 MB


@dataclass(frozen=True)
class Drawn:
    """A bootstrap of patients: how often each was drawn, `times` (B, C) int32.

    `of_row` (n,) is each row's place among the C patients.
    """

    times: np.ndarray
    of_row: np.ndarray

    def weights(self) -> Iterator[np.ndarray]:
        """Give how often rows were drawn, (b, n) int32, some draws after the others."""
        step = max(1, BLOCK // len(self.of_row))
        for start in range(0, len(self.times), step):
            yield self.times[start : start + step, self.of_row]


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


Pair = tuple[Measured, Measured]  # a model's, and its base's, in one task


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
    protocol = result.summary["protocol"]
    return measure_scores(problem, average, metric, protocol["draws"], protocol["seed"])


def measure_scores(
    problem: Problem, scores: np.ndarray, metric: str, draws: int, seed: int
) -> Measured:
    """Measure scores (n, C), or predictions (n, G), of a problem's rows."""

    def measure(weights: np.ndarray | None = None) -> Any:
        if metric == PEARSON:
            return np.nanmean(correlations(scores, problem.targets, weights), axis=-1)
        return class_metrics(scores, problem.targets, problem.classes, weights)[metric, ""]

    drawn = draw_patients([problem.groups], draws, seed)[0]
    return Measured(problem, measure, float(measure()), _over(measure, drawn))


def comparable(one: Measured, other: Measured) -> bool:
    """Tell whether two were measured on the same rows and folds."""
    a, b = one.problem, other.problem
    alike = all(
        np.array_equal(x, y, equal_nan=x.dtype.kind == "f")
        for x, y in ((a.groups, b.groups), (a.targets, b.targets), (a.folds, b.folds))
    )
    return alike and a.classes == b.classes


def difference(one: Measured, base: Measured) -> Difference:
    """Return what a model scores more than its base: paired by rows, folds and drawn patients.

    Raises TiaftError where they were not measured on the same rows and folds.
    """
    if not comparable(one, base):
        raise TiaftError("the model and its base have other rows, so that nothing can be compared")
    a = one.problem
    return paired_bootstrap(one.value - base.value, one.draws - base.draws, a.clusters, a.count)


def mean_difference(pairs: Sequence[Pair], draws: int, seed: int) -> Mean:
    """Return the mean of the differences (model, base) over tasks, each task counting once.

    Of these tasks: patients are drawn in every task, those that several tasks share in all of them
    at once, and the variance is widened as in the probes, for the fewest patients that a task
    has, and the folds that widen most. Of other tasks: Student's t over the tasks' differences.
    """
    return _mean([(pair,) for pair in pairs], draws, seed)


def gain_difference(pairs: Sequence[tuple[Pair, Pair]], draws: int, seed: int) -> Mean:
    """Return how much more one model gains over its base than another over its own.

    Both in each task, on the same rows, folds and drawn patients; else as `mean_difference`.
    """
    return _mean(pairs, draws, seed)


def _mean(tasks: Sequence[Sequence[Pair]], draws: int, seed: int) -> Mean:
    """Return the mean over tasks of the first pair's difference, less the second's, if any."""

    def gain(pairs: Sequence[Pair], of: Callable[[Measured], Any]) -> Any:
        first, *second = (of(one) - of(base) for one, base in pairs)
        return first - second[0] if second else first

    def drawn_gain(pairs: Sequence[Pair], own: Drawn | None) -> np.ndarray:
        return gain(pairs, lambda its: its.draws if own is None else _over(its.measure, own))

    firsts = [pairs[0][0] for pairs in tasks]
    values = np.array([gain(pairs, lambda its: its.value) for pairs in tasks])
    joint = joint_draws([one.problem.groups for one in firsts], draws, seed)
    drawn = np.stack([drawn_gain(pairs, own) for pairs, own in zip(tasks, joint, strict=True)])
    rng = np.random.default_rng(seed)
    for together in _sharing([set(one.problem.groups.tolist()) for one in firsts]):
        # Of other patients, but as many, draws are the same by number: not to be taken for pairs.
        drawn[together] = drawn[together][:, rng.permutation(drawn.shape[1])]
    clusters = min(one.problem.clusters for one in firsts)
    folds = max((one.problem.count for one in firsts), key=reuse)
    value = float(values.mean())
    patients = paired_bootstrap(value, drawn.mean(axis=0), clusters, folds)
    return Mean(value, patients, corrected_t(values, 0, 1), len(tasks))


def _over(measure: Callable[..., Any], drawn: Drawn) -> np.ndarray:
    """Return what is measured in each draw, (B,)."""
    return np.concatenate([measure(weights) for weights in drawn.weights()])


def draw_patients(groups: Sequence[np.ndarray], draws: int, seed: int) -> list[Drawn]:
    """Return a bootstrap of the patients that are in any of the tasks' `groups` (n,), for each."""
    names = np.unique(np.concatenate(groups))
    times = cluster_weights(names, draws, seed)
    return [Drawn(times, np.searchsorted(names, its)) for its in groups]


def joint_draws(groups: Sequence[np.ndarray], draws: int, seed: int) -> list[Drawn | None]:
    """Return a bootstrap for each task's `groups` (n,); None where no other shares a patient.

    Tasks that share patients, also by way of a third, draw from all of theirs together.
    """
    found: list[Drawn | None] = [None] * len(groups)
    for together in _sharing([set(its.tolist()) for its in groups]):
        if len(together) > 1:
            drawn = draw_patients([groups[task] for task in together], draws, seed)
            for task, its in zip(together, drawn, strict=True):
                found[task] = its
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
