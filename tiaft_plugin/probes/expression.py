"""Gene expression of patients from their features: support vector regression as in the paper."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.probes.interface import Kind, Predict, Unit


class Expression:
    """The paper's second experiment (section 3.3): epsilon-SVR with the defaults of R's e1071.

    RBF kernel with gamma 1/D, where D counts the columns that are left; features and expression
    scaled by mean and standard deviation (n − 1) of the training rows. A column that is constant
    in the training rows is dropped: where there is one, e1071 turns all scaling off. A gene that
    is constant in the training rows is predicted as that constant.

    The kernel of a fold is the same for all genes, so it is computed once.
    """

    kind: Kind = "numbers"
    unit: Unit = "patient"
    title = "Gene expression of patients"

    def __init__(self, cost: float = 1.0, epsilon: float = 0.1, tolerance: float = 0.001) -> None:
        """`epsilon` is in standard deviations of a gene; defaults are those of ``e1071::svm``."""
        self._svr = {"C": cost, "epsilon": epsilon, "tol": tolerance, "shrinking": True}
        self.settings: Mapping[str, Any] = {
            "model": "epsilon-SVR",
            "kernel": "RBF",
            "cost": cost,
            "epsilon": epsilon,
            "gamma": "1 / columns that are not constant in the training rows",
            "tolerance": tolerance,
            "shrinking": True,
            "scaling": "features and expression, by mean and sd (n - 1) of the training rows",
            "library": "scikit-learn",
        }

    def fit(
        self, features: np.ndarray, targets: np.ndarray, groups: np.ndarray, seed: int
    ) -> Predict:
        """Fit one regression a gene to features (n, D) and expression (n, G); nothing is drawn.

        The predictions (m, G) are float64, in the units of `targets`. Raises TiaftError where a
        value is not finite, or where there are fewer than two rows.
        """
        if len(features) < 2:
            raise TiaftError(f"{len(features)} training rows: regression needs at least 2")
        for what, values in (("features", features), ("expression values", targets)):
            if not np.isfinite(values).all():  # libsvm would not end
                raise TiaftError(f"the {what} hold NaN or infinity: leave those rows out")
        scale = _Scale(features)
        rows = scale(features)
        mean, sd = targets.mean(axis=0), targets.std(axis=0, ddof=1)
        constant = (targets == targets[0]).all(axis=0) | (sd == 0)
        mean[constant], sd[constant] = targets[0, constant], 1.0
        scaled = np.where(constant, 0.0, (targets - mean) / sd)
        weights, intercepts = self._solve(_kernel(rows, rows), scaled)
        return partial(_predict, scale, rows, weights * sd, mean + intercepts * sd)

    def _solve(self, kernel: np.ndarray, scaled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return each gene's weights of the training rows (n, G) and intercept (G,)."""
        import sklearn
        from sklearn.svm import SVR

        weights, intercepts = np.zeros(scaled.shape), np.zeros(scaled.shape[1])
        model = SVR(kernel="precomputed", **self._svr)
        model.random_state = 0  # else each fit takes a number it has no use for from numpy's global
        # A fit takes two milliseconds: checking the same kernel for each gene would cost as much.
        with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
            for gene in np.flatnonzero(scaled.any(axis=0)):
                model.fit(kernel, scaled[:, gene])
                weights[model.support_, gene] = model.dual_coef_[0]
                intercepts[gene] = model.intercept_[0]
        return weights, intercepts


class _Scale:
    """Standardises float32 features to float64 as e1071 does; constant columns are dropped."""

    def __init__(self, features: np.ndarray):
        self.kept = (features != features[0]).any(axis=0)
        columns = features[:, self.kept].astype(np.float64)
        self.mean, self.sd = columns.mean(axis=0), columns.std(axis=0, ddof=1)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return (features[:, self.kept] - self.mean) / self.sd


def _kernel(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return exp(−|a − b|² / D) for each row a of `one` and b of `other`."""
    columns = one.shape[1]
    if not columns:  # no column varies, so all rows are the same one
        return np.ones((len(one), len(other)))
    from sklearn.metrics.pairwise import rbf_kernel

    return rbf_kernel(one, other, gamma=1 / columns)


def _predict(
    scale: _Scale,
    rows: np.ndarray,
    weights: np.ndarray,
    intercepts: np.ndarray,
    features: np.ndarray,
) -> np.ndarray:
    """Return (m, G) predictions for features (m, D)."""
    return _kernel(scale(features), rows) @ weights + intercepts
