"""Repeated K-fold: which rows are tested together, the same for every feature set compared."""

import hashlib

import numpy as np

from tiaft_plugin.errors import TiaftError


def make_folds(
    groups: np.ndarray, labels: np.ndarray | None, *, folds: int, repeats: int, seed: int
) -> np.ndarray:
    """Return the fold of each row in each repeat, (repeats, N) int16.

    `groups` (N,): rows of one group are in one fold, whole. `labels` (N,) int, or None: classes are
    spread evenly over the folds as far as the groups allow. Groups are dealt in random order, each
    to the fold where it disturbs the balance least; scikit-learn's StratifiedGroupKFold deals the
    most uneven group first, so that with few groups all its repeats are one and the same split.
    Raises TiaftError where there are fewer groups than folds.
    """
    names, group_of = np.unique(groups, return_inverse=True)
    if len(names) < folds:
        raise TiaftError(
            f"{len(names)} groups (patients or slides) cannot be split into {folds} folds: "
            f"pass --folds {len(names)} or fewer, or bring more groups"
            if len(names) > 1
            else "all rows are of one group (patient or slide): folds by group need two or more"
        )
    codes = np.zeros(len(groups), dtype=np.int64)
    if labels is not None:
        codes = np.unique(labels, return_inverse=True)[1]
    counts = np.zeros((len(names), codes.max() + 1))
    np.add.at(counts, (group_of, codes), 1)
    plan = [
        _deal(counts, folds, np.random.default_rng([seed, r]))[group_of] for r in range(repeats)
    ]
    return np.array(plan, dtype=np.int16)


def sha256_of_folds(plan: np.ndarray) -> str:
    """Return the hash of a plan: two runs with the same one were split alike."""
    return hashlib.sha256(np.ascontiguousarray(plan, dtype="<i2").tobytes()).hexdigest()


def _deal(counts: np.ndarray, folds: int, rng: np.random.Generator) -> np.ndarray:
    """Deal groups, (G, C) rows of each class, to folds; return the fold of each group."""
    weights = 1 / counts.sum(axis=0) ** 2  # a rare class must be spread as evenly as a common one
    held = np.zeros((folds, counts.shape[1]))
    sizes = np.zeros(folds)  # rows
    dealt = np.empty(len(counts), dtype=np.int64)
    weighted, rows = counts * weights, counts.sum(axis=1)
    order = rng.permutation(len(counts))
    for place, group in enumerate(order):
        # What a group adds to the sum of squares of the classes' shares; then the smaller fold.
        cost = held @ weighted[group]
        # The last groups go where there is none yet: every fold must have something to test.
        empty = sizes == 0
        if np.count_nonzero(empty) >= len(order) - place:
            cost[~empty] = np.inf
        fold = np.lexsort((sizes, cost))[0]
        dealt[group] = fold
        held[fold] += counts[group]
        sizes[fold] += rows[group]
    return rng.permutation(folds)[dealt]
