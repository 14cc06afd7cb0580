"""One repeat of cross-validation: the same way for every probe and every feature set."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tiaft_plugin.errors import Stopped, TiaftError, reason
from tiaft_plugin.probes.folds import make_folds
from tiaft_plugin.probes.interface import Experiment, Kind, Probe


@dataclass(frozen=True)
class Problem:
    """What is cross-validated at once: n rows that share their folds.

    `name` is "" for all classes or all numbers, a gene where each has folds of its own ("binary").
    `rows` (n,) are indices into the experiment's rows. `targets` are codes (n,) int64 of `classes`,
    which are sorted as np.unique sorts them, (n, G) float64, or 0 and 1 (n,) int64. `folds` is
    (repeats, n) int16.
    """

    name: str
    kind: Kind
    rows: np.ndarray
    targets: np.ndarray
    groups: np.ndarray
    folds: np.ndarray
    classes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many folds there are."""
        return int(self.folds.max()) + 1

    @property
    def clusters(self) -> int:
        """How many groups (patients, slides) there are: that many independent things."""
        return len(np.unique(self.groups))

    @property
    def labels(self) -> np.ndarray | None:
        """What folds are stratified by: classes; None where there are none."""
        return None if self.kind == "numbers" else self.targets


def problems_of(
    experiment: Experiment, *, folds: int, repeats: int, seed: int, grouped: bool
) -> list[Problem]:
    """Split an experiment into problems: one, or one a gene where rows are stratified by gene.

    With ``grouped=False`` every row is its own group, as in the paper.
    """
    units = experiment.groups if grouped else experiment.keys

    def problem(name: str, rows: np.ndarray, targets: np.ndarray) -> Problem:
        labels = None if experiment.kind == "numbers" else targets
        try:
            plan = make_folds(units[rows], labels, folds=folds, repeats=repeats, seed=seed)
        except TiaftError as error:
            raise TiaftError(f"{name}: {error}" if name else str(error)) from error
        classes = experiment.names if experiment.kind == "classes" else ()
        groups = experiment.groups[rows]
        return Problem(name, experiment.kind, rows, targets, groups, plan, classes)

    everything = np.arange(len(experiment.keys))
    if experiment.kind == "classes":
        index = {name: code for code, name in enumerate(experiment.names)}
        return [problem("", everything, np.array([index[label] for label in experiment.values]))]
    if experiment.kind == "numbers":
        return [problem("", everything, experiment.values)]
    return [
        problem(gene, rows, experiment.values[rows, column].astype(np.int64))
        for column, gene in enumerate(experiment.names)
        for rows in [np.flatnonzero(np.isfinite(experiment.values[:, column]))]
    ]


def predict_repeat(
    probe: Probe, features: np.ndarray, problem: Problem, folds: np.ndarray, seed: int
) -> np.ndarray:
    """Return out-of-fold scores of a problem's n rows: (n, C), (n, G) or (n, V) float64.

    `features` (n, D) are the problem's rows; `folds` (n,) one repeat. A class that a training fold
    lacks cannot be predicted there: its score stands 1 below the row's lowest.
    """
    scores: np.ndarray | None = None
    for fold in range(int(folds.max()) + 1):
        test = folds == fold
        if not test.any():
            continue
        found = _predict_fold(probe, features, problem, test, fold_seed(seed, fold))
        if scores is None:
            scores = np.full((len(folds), found.shape[1]), np.nan)
        scores[test] = found
    assert scores is not None
    return scores


def fold_seed(*parts: int) -> int:
    """Return a 32-bit seed that the parts alone decide."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def _predict_fold(
    probe: Probe, features: np.ndarray, problem: Problem, test: np.ndarray, seed: int
) -> np.ndarray:
    train = ~test
    targets, rows = problem.targets[train], int(test.sum())
    if problem.kind == "classes":
        names = np.array(problem.classes)[targets]
        present = np.unique(targets)
        if len(present) == 1:  # nothing to learn: always the only class
            return np.where(np.arange(len(problem.classes)) == present[0], 0.0, -1.0)[None].repeat(
                rows, axis=0
            )
        found = _scores(probe, features, names, problem, test, seed, (rows, len(present)))
        scores = np.full((rows, len(problem.classes)), np.nan)
        scores[:, present] = found
        lowest = found.min(axis=1, keepdims=True) - 1
        return np.where(np.isnan(scores), lowest, scores)
    if problem.kind == "numbers":
        return _scores(probe, features, targets, problem, test, seed, (rows, targets.shape[1]))
    width = max(1, len(getattr(probe, "variants", ())))
    if len(np.unique(targets)) == 1:  # an empty model
        return np.zeros((rows, width))
    return _scores(probe, features, targets, problem, test, seed, (rows, width))


def _scores(
    probe: Probe,
    features: np.ndarray,
    targets: np.ndarray,
    problem: Problem,
    test: np.ndarray,
    seed: int,
    shape: tuple[int, int],
) -> np.ndarray:
    """Fit and predict; TiaftError where the probe fails or gives anything else than it promised."""
    where = f" for {problem.name}" if problem.name else ""
    try:
        predict = probe.fit(features[~test], targets, problem.groups[~test], seed)
        scores: Any = np.asarray(predict(features[test]), dtype=np.float64)
    except TiaftError:
        raise
    except Exception as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # in numba's code it comes as that
            raise KeyboardInterrupt from error
        raise Stopped(f"the probe fails{where}: {reason(error)}") from error
    if scores.ndim == 1 and shape[1] == 1:
        scores = scores[:, None]
    if scores.shape != shape:
        raise Stopped(
            f"the probe gives scores of shape {scores.shape}{where}, {shape} was expected: "
            "check_probe says what it has to give"
        )
    if not np.isfinite(scores).all():
        raise Stopped(f"the probe gives NaN or infinity{where}")
    return scores
