"""What a result must be held against: labels permuted by group, and a control for leaks."""

from dataclasses import replace

import numpy as np

from tiaft_plugin.probes.crossval import Problem, fold_seed, predict_repeat
from tiaft_plugin.probes.folds import make_folds
from tiaft_plugin.probes.interface import Probe
from tiaft_plugin.probes.metrics import binary_metrics, class_metrics, correlations
from tiaft_plugin.probes.statistics import blocks_of, training_means

SAMPLED_ROWS = 2000  # of these baselines: labels that mean nothing take a classifier very long
LEAK_DRAWS = 10  # random labellings of the groups; their mean is shown
_PERMUTED, _LEAK, _SAMPLE = 1, 2, 3  # keep the baselines' random numbers apart


def statistic(scores: np.ndarray, problem: Problem) -> np.ndarray:
    """Return what the permutations compare: balanced accuracy (1,), r (G,) or AUROC (V,).

    `scores` are those of one repeat, the problem's only one.
    """
    if problem.kind == "classes":
        return np.array(
            [class_metrics(scores, problem.targets, problem.classes)["balanced accuracy", ""]]
        )
    if problem.kind == "numbers":
        means = training_means(problem.targets, problem.folds)
        return correlations(scores - means, problem.targets)
    return np.array([binary_metrics(column, problem.targets)["AUROC", ""] for column in scores.T])


def permuted_statistic(
    probe: Probe, features: np.ndarray, problem: Problem, draw: int, *, grouped: bool, seed: int
) -> np.ndarray:
    """Cross-validate once with labels permuted by group; draw 0 leaves them as they are.

    Every draw has folds of its own, stratified by the labels it got: draw 0 is treated as all the
    others, so that its rank among them is an exact p value. Of more than SAMPLED_ROWS rows, all
    draws use the same sample.
    """
    count = problem.count
    features, problem = _sampled(features, problem, seed)
    if draw:
        rng = np.random.default_rng([seed, _PERMUTED, draw])
        targets = permute_by_group(problem.targets, problem.groups, rng)
        problem = replace(problem, targets=targets)
    own = fold_seed(seed, _PERMUTED, draw)
    problem = _one_repeat(problem, count, grouped, own)
    return statistic(predict_repeat(probe, features, problem, problem.folds[0], own), problem)


def permute_by_group(
    targets: np.ndarray, groups: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Let the groups' blocks of targets change places; inside a block their order is shuffled.

    Targets of one group stay together, so that what only tells groups apart gains nothing. Where
    every row is its own group, this is a plain permutation.
    """
    blocks = blocks_of(groups)
    moved = [rng.permutation(blocks[number]) for number in rng.permutation(len(blocks))]
    permuted = np.empty_like(targets)
    permuted[np.concatenate(blocks)] = targets[np.concatenate(moved)]
    return permuted


def can_leak(problem: Problem) -> bool:
    """Whether a leak control has anything to find: two groups or more, some of several rows."""
    return 1 < problem.clusters < len(problem.groups)


def leak_statistic(
    probe: Probe, features: np.ndarray, problem: Problem, draw: int, *, grouped: bool, seed: int
) -> float:
    """Give each group one random label, and cross-validate: with whole groups, or with rows.

    The labels mean nothing: chance is all there is. Folds of rows look good all the same if the
    features tell groups apart, since a tile's neighbours are then in the training part. Of more
    than SAMPLED_ROWS rows, all draws use the same sample.
    """
    count = problem.count
    features, problem = _sampled(features, problem, seed)
    names, group_of = np.unique(problem.groups, return_inverse=True)
    rng = np.random.default_rng([seed, _LEAK, draw])
    if problem.kind == "numbers":
        targets = rng.normal(size=len(names))[group_of][:, None]
    else:
        targets = rng.permutation(np.arange(len(names)) % 2)[group_of]
    control = replace(problem, targets=targets, classes=("A", "B") if problem.classes else ())
    own = fold_seed(seed, _LEAK, draw)
    control = _one_repeat(control, min(count, len(names)), grouped, own)
    scores = predict_repeat(probe, features, control, control.folds[0], own)
    return float(statistic(scores, control)[0])


def _sampled(features: np.ndarray, problem: Problem, seed: int) -> tuple[np.ndarray, Problem]:
    """Return SAMPLED_ROWS rows at random, one of each group first; or all, where there are no more.

    Without any row of a small group there could be fewer groups than folds.
    """
    count = len(problem.targets)
    if count <= SAMPLED_ROWS:
        return features, problem
    rng = np.random.default_rng([seed, _SAMPLE])
    order = rng.permutation(count)
    firsts = np.sort(np.unique(problem.groups[order], return_index=True)[1])
    order = np.concatenate([order[firsts], np.delete(order, firsts)])
    rows = np.sort(order[:SAMPLED_ROWS])
    return features[rows], replace(
        problem,
        rows=problem.rows[rows],
        targets=problem.targets[rows],
        groups=problem.groups[rows],
        folds=problem.folds[:, rows],
    )


def _one_repeat(problem: Problem, folds: int, grouped: bool, seed: int) -> Problem:
    """Return a problem with one repeat of new folds."""
    units = problem.groups if grouped else np.arange(len(problem.groups))
    plan = make_folds(units, problem.labels, folds=folds, repeats=1, seed=seed)
    return replace(problem, folds=plan)
