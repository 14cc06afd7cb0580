"""Gene mutations of patients from their features: the LASSO, as in the paper."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.probes.folds import make_folds
from tiaft_plugin.probes.interface import Kind, Predict, Unit

VARIANTS = ("lambda.min", "lambda.1se")
FOLDS = 10  # cv.glmnet's default
LEAST_FOLDS = 3  # cv.glmnet refuses fewer


class Mutation:
    """The paper's third experiment (section 3.3): logistic LASSO with the defaults of R's glmnet.

    The penalty is chosen by the deviance in ten inner folds of the training rows: `lambda.min` has
    the smallest, `lambda.1se` the largest penalty within one standard error of it. Inner folds are
    random, not stratified, as cv.glmnet's, but hold whole groups; with fewer than ten groups there
    are as many folds as groups. Where they leave the training rows of a fold with one class only,
    they are stratified instead; where that does not help either, or there are fewer than three
    groups, no penalty can be chosen and the model is empty.

    Scores are log odds less their mean over the training rows, so that those of several folds can
    be pooled: an empty model gives 0 to every row. A column that is constant in the training rows
    is not used.
    """

    kind: Kind = "binary"
    unit: Unit = "patient"
    title = "Gene mutations of patients"
    variants = VARIANTS

    def __init__(self) -> None:
        from tiaft_plugin.probes import lasso

        self.settings: Mapping[str, Any] = {
            "model": "logistic regression, L1 penalty, as R's glmnet 4.1",
            "penalties": lasso.POINTS,
            "smallest penalty": f"{lasso.WIDE_SHARE} of the largest where rows are fewer than "
            f"columns, else {lasso.LEAST_SHARE}",
            "tolerance": lasso.TOLERANCE,
            "inner folds": f"{FOLDS}, by group, random; stratified where one class would be "
            f"missing; one a group where groups are fewer; at least {LEAST_FOLDS}",
            "measure": "deviance",
            "scaling": "features, by mean and sd (n) of the training rows",
            "scores": "log odds less their mean over the training rows",
        }

    def fit(
        self, features: np.ndarray, targets: np.ndarray, groups: np.ndarray, seed: int
    ) -> Predict:
        """Fit to features (n, D) and targets (n,) of 0 and 1; scores are (m, 2), as `variants`.

        Raises TiaftError where a feature is not finite.
        """
        from tiaft_plugin.probes.lasso import choose

        if not np.isfinite(features).all():
            raise TiaftError("the features hold NaN or infinity: leave those rows out")
        coefficients = np.zeros((len(VARIANTS), features.shape[1]))
        folds = inner_folds(targets, groups, seed)
        if folds is not None:
            choice = choose(features, targets, folds)
            coefficients[:] = choice.path.coefficients[[choice.minimum, choice.one_error]]
        return Model(features.mean(axis=0, dtype=np.float64), coefficients)


@dataclass(frozen=True)
class Model:
    """Scores rows by `coefficients` (V, D) after the training rows' `means` (D,); float64."""

    means: np.ndarray
    coefficients: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Return the scores (m, V) of features (m, D)."""
        scores = np.zeros((len(features), len(self.coefficients)))
        for column, weights in enumerate(self.coefficients):
            used = np.flatnonzero(weights)
            # No matrix product: its last bits depend on how many rows there are.
            centred = np.ascontiguousarray(features[:, used], dtype=np.float64) - self.means[used]
            scores[:, column] = (centred * weights[used]).sum(axis=1)
        return scores


def inner_folds(targets: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray | None:
    """Return each row's inner fold (n,), numbered from 0; None where no penalty can be chosen.

    `Mutation` says how they are made.
    """
    count = min(FOLDS, len(np.unique(groups)))
    if count < LEAST_FOLDS:
        return None
    for labels in (None, targets):
        folds = make_folds(groups, labels, folds=count, repeats=1, seed=seed)[0]
        if all(len(np.unique(targets[folds != fold])) == 2 for fold in range(count)):
            return folds
    return None
