"""Tissue of tiles from their features: a linear support vector classifier as in the paper."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.probes.interface import Kind, Predict, Unit


class Tissue:
    """The paper's first experiment (section 3.3): linear support vector classifiers, one a class.

    scikit-learn's LinearSVC, each class against the rest, on features standardised by the training
    rows; columns that are constant there are dropped. The paper names neither cost nor solver.

    The dual problem is solved, also where rows are more than columns: on features as correlated as
    a network's, the primal solver needs hundreds of steps to come near the same boundary. The
    tolerance is looser than scikit-learn's and predicts the same; ``benchmarks/tissue.py``
    compares them.
    """

    kind: Kind = "classes"
    unit: Unit = "tile"
    title = "Tissue of tiles"

    def __init__(self, cost: float = 1.0, tolerance: float = 0.01, max_iter: int = 10_000) -> None:
        """`cost` is scikit-learn's default; after `max_iter` rounds the solver gives up."""
        self._svc = {"C": cost, "tol": tolerance, "max_iter": max_iter, "dual": True}
        self.settings: Mapping[str, Any] = {
            "model": "linear SVC, one against the rest",
            "penalty": "L2",
            "loss": "squared hinge",
            "cost": cost,
            "solver": "liblinear, dual",
            "tolerance": tolerance,
            "max_iter": max_iter,
            "scaling": "mean and sd of the training rows",
            "library": "scikit-learn",
        }

    def fit(
        self, features: np.ndarray, targets: np.ndarray, groups: np.ndarray, seed: int
    ) -> Predict:
        """Fit to features (n, D) and classes (n,); `seed` orders the rows for the solver.

        Scores (m, C) are float64, positive on a class's side of its boundary. Raises TiaftError
        where a feature is not finite, or where there is one class only. Where the solver gives
        up, scikit-learn's ConvergenceWarning comes through, which Python shows once a process.
        """
        import sklearn
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import LinearSVC

        classes = np.unique(targets)
        if len(classes) < 2:
            raise TiaftError(
                f"all {len(targets)} training rows are {str(classes[0])!r}: two classes are needed"
            )
        if not np.isfinite(features).all():
            raise TiaftError("the features hold NaN or infinity: leave those rows out")
        kept = (features != features[0]).any(axis=0)
        if not kept.any():
            kept[0] = True  # is 0 once centred: how common each class is remains
        scaler = StandardScaler()
        svc = LinearSVC(random_state=seed, **self._svc)
        # On few rows, checking everything again takes longer than the fit.
        with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
            rows = scaler.fit_transform(features[:, kept].astype(np.float64))
            if len(rows) < rows.shape[1]:
                # Weights lie in the span of the rows: there it is the same problem, but smaller.
                basis = np.linalg.qr(rows.T)[0]  # (D, n)
                weights = svc.fit(rows @ basis, targets).coef_ @ basis.T
            else:
                weights = svc.fit(rows, targets).coef_
        return partial(_scores, scaler, kept, weights, svc.intercept_)


def _scores(
    scaler: Any, kept: np.ndarray, weights: np.ndarray, intercept: np.ndarray, features: np.ndarray
) -> np.ndarray:
    """Return (m, C) scores; for two classes there are the second's weights only."""
    found = scaler.transform(features[:, kept].astype(np.float64)) @ weights.T + intercept
    return found if found.shape[1] > 1 else np.hstack([-found, found])
