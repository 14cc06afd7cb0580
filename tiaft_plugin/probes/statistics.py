"""Intervals and p values for predictions that were made by cross-validation.

Rows that belong together (a patient's, a slide's) are drawn and permuted together: the number of
independent things is that of groups, not of rows.

What all of this has to respect besides: in cross-validation every group is predicted by models
that the others trained, and trains theirs. Without any signal each pair of groups so comes twice
into a pooled correlation, and the variance is up to twice that of predictions by models from
elsewhere. What takes the predictions as given (permuting the observed against them, or a
bootstrap of them) does not see this; p values from it are therefore computed with the variance
times `reuse`. ``python benchmarks/calibration.py`` prints which p values hold, and which do not.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special, stats

from tiaft_plugin.probes.metrics import correlations

BLOCK = 100_000  # permuted values handled at a time: what caches hold
Seed = int | Sequence[int]


class Difference(NamedTuple):
    """Differences, their 95 % intervals and two-sided p values: floats, or (G,) each."""

    value: Any
    low: Any
    high: Any
    p: Any


def reuse(folds: int) -> float:
    """Return what the variance of a pooled K-fold result is multiplied by: 1 + K/(K − 1).

    This is Nadeau and Bengio's correction, 1/K + n_test/n_train in place of 1/K, for one round of
    K folds: 2.25 for 5, and towards 2, the bound of the module's text, for many. For one, a
    held-out part that taught nobody, it is 1.
    """
    return 1 + folds / (folds - 1) if folds > 1 else 1.0


def cluster_weights(groups: np.ndarray, draws: int = 2000, seed: Seed = 0) -> np.ndarray:
    """Return (B, N) int32: how often each row is drawn when whole groups are, with replacement."""
    names, of_row = np.unique(groups, return_inverse=True)
    rng, count = np.random.default_rng(seed), len(names)
    drawn = rng.integers(count, size=(draws, count)) + count * np.arange(draws)[:, None]
    times = np.bincount(drawn.ravel(), minlength=draws * count).reshape(draws, count)
    return times.astype(np.int32)[:, of_row]


def interval(values: np.ndarray, clusters: int, folds: int) -> tuple[Any, Any]:
    """Return the 95 % interval of bootstrap draws (B, …) of a score, over the first axis.

    An expanded percentile interval (Hesterberg, 2015): the percentiles are those of ±t·√(`reuse`
    of `folds` · C/(C − 1)) on the normal curve, t being Student's with C − 1 degrees of freedom for
    C `clusters`. The plain 2.5 and 97.5 % percentiles take the trained models as given and C as
    large, and hold the expected score far less often than said. Draws that are NaN (a class was
    not drawn) are left out; NaN where all are, or with one cluster.
    """
    values = np.asarray(values, dtype=float)
    low, high = (np.full(values.shape[1:], np.nan) for _ in range(2))
    there = np.isfinite(values).any(0)
    if clusters > 1 and there.any():
        wide = special.stdtrit(clusters - 1, 0.975) * _widening(clusters, folds)
        tails = special.ndtr(-wide), special.ndtr(wide)
        low[there], high[there] = np.nanquantile(values[:, there], tails, axis=0)
    return low[()], high[()]


def blocks_of(groups: np.ndarray) -> list[np.ndarray]:
    """Return the rows of each group, (n,) int64 each and ascending; groups are sorted."""
    _, of_row = np.unique(groups, return_inverse=True)
    line = np.argsort(of_row, kind="stable")
    return np.split(line, np.flatnonzero(np.diff(of_row[line])) + 1)


def group_permutations(groups: np.ndarray, draws: int, seed: Seed = 0) -> np.ndarray:
    """Return (B, N) row numbers: each draw puts whole groups in a new order.

    The rows of a group stay together and in their order: the groups' rows are laid end to end in
    a random order, and row i of that line takes the place of row i of the original line. Groups of
    one size are so exchanged whole. Where sizes differ, a place of one group may be filled
    from two; what the rows of a group share still stays together but at those seams.
    """
    blocks = blocks_of(groups)
    line = np.concatenate(blocks)
    stacked = np.stack(blocks) if len({len(block) for block in blocks}) == 1 else None
    rng = np.random.default_rng(seed)
    found = np.empty((draws, len(line)), dtype=np.int64)
    for draw in found:
        order = rng.permutation(len(blocks))
        if stacked is None:
            draw[line] = np.concatenate([blocks[i] for i in order])
        else:  # many times as fast
            draw[line] = stacked[order].ravel()
    return found


def permutation_p(
    predicted: np.ndarray,
    observed: np.ndarray,
    groups: np.ndarray,
    folds: int,
    draws: int = 9999,
    seed: Seed = 0,
) -> np.ndarray:
    """Return one-sided p values (G,) of the correlations of (N, G) predictions, by permutation.

    `predicted` are averaged over repeats, without their `training_means`. Observed values are
    permuted by group against them; permuted correlations are widened by √`reuse` of `folds`;
    p = (1 + how many of them reach the correlation seen) / (1 + draws). NaN where the observed
    values are constant; rows where they are NaN are left out for that gene.
    """
    p = np.full(predicted.shape[1], np.nan)
    known = np.isfinite(observed)
    patterns, of_gene = np.unique(known, axis=1, return_inverse=True)
    for number, rows in enumerate(patterns.T):
        genes = np.flatnonzero(of_gene.ravel() == number)
        x, y = predicted[np.ix_(rows, genes)], observed[np.ix_(rows, genes)]
        orders = group_permutations(groups[rows], draws, seed)
        p[genes] = _permutation_p(x, y, orders, math.sqrt(reuse(folds)))
    return p


def _permutation_p(x: np.ndarray, y: np.ndarray, orders: np.ndarray, widen: float) -> np.ndarray:
    seen = correlations(x, y)
    x, y = _unit(x), _unit(y)
    reached = np.ones(x.shape[1])
    step = max(1, BLOCK // max(1, x.size))
    for start in range(0, len(orders), step):
        r = widen * np.einsum("ng,bng->bg", x, y[orders[start : start + step]])
        # Exact ties (constant predictions) count, whatever the last digit says.
        reached += (r >= seen - 1e-12).sum(axis=0)
    return np.where(np.isfinite(seen), reached / (1 + len(orders)), np.nan)


def _unit(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean(0)
    length = np.sqrt((centred**2).sum(0))
    flat = length <= 1e-12 * np.abs(values).max(0, initial=1e-300)
    return np.where(flat, 0.0, centred / np.where(flat, 1.0, length))


def training_means(observed: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Return (N, G): the mean of what each row's models were trained on, averaged over repeats.

    `folds` are (R, N). Whoever is above the mean is left out of a mean that is the lower for it;
    a model that knows nothing but the mean so predicts the wrong way round, and the more surely
    the more repeats are averaged. Predictions minus these means are free of that.
    """
    values, known = np.nan_to_num(observed), np.isfinite(observed).astype(float)
    total, count = values.sum(0), known.sum(0)
    means = np.zeros(observed.shape)
    for repeat in folds:
        tested = np.eye(repeat.max() + 1)[repeat]
        sums, counts = total - tested.T @ values, count - tested.T @ known
        means += (sums / np.maximum(counts, 1))[repeat]
    return means / len(folds)


def permuted_p(value: Any, permuted: np.ndarray) -> Any:
    """Return the one-sided p value of a score (…) against those of permuted labels (B, …).

    (1 + how many are at least as large) / (1 + B): exact, if everything that looked at the labels
    (stratified folds, too) was done again with the permuted ones, with as many repeats.
    """
    return (1 + (permuted >= np.asarray(value) - 1e-12).sum(0)) / (1 + len(permuted))


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Return q values of (G,) p values; NaN stays NaN and counts for nothing."""
    q = np.full(len(p), np.nan)
    there = np.isfinite(p)
    if there.any():
        q[there] = stats.false_discovery_control(p[there], method="bh")
    return q


def paired_bootstrap(value: Any, draws: np.ndarray, clusters: int, folds: int) -> Difference:
    """Test differences (…) with bootstrap draws (B, …) of them, paired by the same weights.

    Student's t with the draws' standard deviation, its variance times `reuse` of `folds` and
    C/(C − 1), and C − 1 degrees of freedom for C `clusters`. (A percentile p value of such draws
    rejects far too often: it takes the trained models as given, and C as large.)
    """
    usable = np.isfinite(draws)
    count = np.maximum(usable.sum(0), 1)
    mean = np.where(usable, draws, 0).sum(0) / count
    variance = np.where(usable, (draws - mean) ** 2, 0).sum(0) / np.maximum(count - 1, 1)
    variance = np.where(count > 1, variance, np.nan)
    if clusters < 2:
        return Difference(value, *[np.full(np.shape(value), np.nan)[()]] * 3)
    return _student(value, np.sqrt(variance) * _widening(clusters, folds), clusters - 1)


def _widening(clusters: int, folds: int) -> float:
    """Return what a bootstrap's standard deviation is multiplied by."""
    return math.sqrt(reuse(folds) * clusters / (clusters - 1))


def corrected_t(differences: np.ndarray, n_test: float, n_train: float) -> Difference:
    """Test the (R·K,) differences of R repeats of K folds by the corrected resampled t test.

    Nadeau and Bengio (2003): the variance of the mean is s² · (1/(RK) + n_test/n_train), with
    RK − 1 degrees of freedom; n are counted in groups. Folds without a value (NaN) are left out.
    """
    values = differences[np.isfinite(differences)]
    return _t_test(values, 1 / max(1, len(values)) + n_test / n_train)


def paper_t(differences: np.ndarray) -> Difference:
    """Test the (R,) differences of R repeats as if they were R independent experiments.

    As in the paper (section 4), and invalid: its p goes to 0 as repeats grow.
    """
    values = differences[np.isfinite(differences)]
    return _t_test(values, 1 / max(1, len(values)))


def _t_test(values: np.ndarray, factor: float) -> Difference:
    if len(values) < 2:
        return Difference(float(values.mean()) if len(values) else math.nan, *[math.nan] * 3)
    error = math.sqrt(factor * float(values.var(ddof=1)))
    return _student(float(values.mean()), error, len(values) - 1)


def _student(value: Any, error: Any, freedom: float) -> Difference:
    """Test values with these standard errors; without any error only 0 is compatible with 0."""
    size = np.abs(value)
    exact = np.asarray(error) <= 1e-12 * np.maximum(size, 1e-300)
    p = 2 * special.stdtr(freedom, -size / np.where(exact, 1, error))
    half = np.where(exact, 0, error) * special.stdtrit(freedom, 0.975)
    p = np.where(exact, np.where(size == 0, 1.0, 0.0), p)
    return Difference(value, (value - half)[()], (value + half)[()], p[()])
