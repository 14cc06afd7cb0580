"""How well a layer tells concepts: R² of a linear regression, as in the paper and held out.

Graziani et al. regress a concept on the spatial mean of a layer's maps and report R² on the very
tiles that the regression was fitted to. With p channels and n tiles that is p/(n − 1) on average
for a concept that has nothing to do with the tiles. So beside it stand this null, R² of permuted
values, and R² on slides that the regression never saw.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.probes.folds import make_folds

FOLDS = 3  # Graziani et al. 2018
PENALTIES = np.logspace(-1, 6, 8)  # of ridge regression on standardised features
LEAST_SQUARES, RIDGE = "ols", "ridge"


@dataclass(frozen=True)
class Line:
    """A linear function of features, for K concepts: `slopes` (p, K), `at_zero` (K,)."""

    slopes: np.ndarray
    at_zero: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Return what it predicts of features (n, p), (n, K)."""
        return features @ self.slopes + self.at_zero


@dataclass(frozen=True)
class Fits:
    """R² of K concepts in S splits, each (S, K); `null` is (S,).

    `in_sample` is of least squares on the tiles fitted to, `permuted` the same of values in random
    order, and `null` what that is on average: means over a split's folds. `held_out` is of least
    squares and `ridge` of ridge regression, for all tiles together, each told by a fit to the other
    folds: R² of a fold by itself would hang on how little its few slides differ.
    """

    in_sample: np.ndarray
    permuted: np.ndarray
    held_out: np.ndarray
    ridge: np.ndarray
    null: np.ndarray


def make_splits(groups: Sequence[str | None], count: int = 10, seed: int = 0) -> np.ndarray:
    """Return the fold of each tile in `count` random splits, (count, N): three folds of groups.

    Ten splits are figure 3's. Tiles without a group stand for themselves; of two groups there are
    two folds. Raises TiaftError with less than four tiles, or with one group only.
    """
    if len(groups) < 4:
        raise TiaftError(f"{len(groups)} tiles: a regression needs four or more, better hundreds")
    named = np.array([group or f"tile {row}" for row, group in enumerate(groups)])
    count_of_groups = len(set(named.tolist()))
    if count_of_groups < 2:
        raise TiaftError(
            f"all tiles are of one slide or patient ({named[0]}): none can be held out; bring "
            "tiles of more, or leave out the manifest's column group"
        )
    return make_folds(named, None, folds=min(FOLDS, count_of_groups), repeats=count, seed=seed)


def regress(features: np.ndarray, values: np.ndarray, splits: np.ndarray, seed: int = 0) -> Fits:
    """Return R² of `values` (N, K) regressed on `features` (N, p) in each of `splits` (S, N)."""
    features = features.astype(np.float64)
    rng = np.random.default_rng(seed)
    found = [_one_split(features, values, folds, rng) for folds in splits]
    return Fits(*(np.array(column) for column in zip(*found, strict=True)))


def _one_split(
    features: np.ndarray, values: np.ndarray, folds: np.ndarray, rng: np.random.Generator
) -> tuple:
    told = {how: np.empty_like(values) for how in (LEAST_SQUARES, RIDGE)}
    inside, nulls, known = [], [], values.shape[1]
    for fold in np.unique(folds):
        test, x, y = folds == fold, features[folds != fold], values[folds != fold]
        both = np.hstack([y, rng.permutation(y, axis=0)])
        plain = fit(x, both)
        inside.append(r2(both, plain(x)))
        nulls.append(expected_r2(x))
        told[LEAST_SQUARES][test] = plain(features[test])[:, :known]
        told[RIDGE][test] = fit(x, y, RIDGE)(features[test])
    here = np.mean(inside, axis=0)
    outside = (r2(values, told[how]) for how in (LEAST_SQUARES, RIDGE))
    return here[:known], here[known:], *outside, np.mean(nulls)


def fit(features: np.ndarray, values: np.ndarray, how: str = LEAST_SQUARES) -> Line:
    """Return the line that tells `values` (n, K) from `features` (n, p) float64.

    "ols" is least squares with an intercept, as in the paper (of many solutions, the shortest);
    "ridge" shrinks it, each concept with the penalty that leaving one tile out prefers.
    """
    if how == LEAST_SQUARES:
        plain = LinearRegression().fit(features, values)
        return Line(plain.coef_.T, plain.intercept_)
    scaler = StandardScaler().fit(features)
    ridge = RidgeCV(PENALTIES, alpha_per_target=True).fit(scaler.transform(features), values)
    slopes = (np.atleast_2d(ridge.coef_) / scaler.scale_).T
    return Line(slopes, ridge.intercept_ - scaler.mean_ @ slopes)


def expected_r2(features: np.ndarray) -> float:
    """Return the mean in-sample R² of numbers that have nothing to do with features (n, p).

    That is p/(n − 1), with the features' rank as p: dead channels do not count.
    """
    return float(np.linalg.matrix_rank(features - features.mean(axis=0)) / (len(features) - 1))


def r2(values: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return R² (K,) of predictions (n, K); below 0 where the mean would predict better."""
    return r2_score(values, predicted, multioutput="raw_values")


def standard_error(values: np.ndarray) -> np.ndarray:
    """Return the standard error of the mean of `values` (S, …) over splits, figure 3's: s/√S.

    Splits share tiles, so that it is too small to be one of the means of other slides.
    """
    return values.std(axis=0, ddof=1) / np.sqrt(len(values))
