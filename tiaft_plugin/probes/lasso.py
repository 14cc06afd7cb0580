"""L1-penalised logistic regression along a path of penalties, as glmnet 4.1 fits it.

Written from J. Friedman, T. Hastie, R. Tibshirani, "Regularization paths for generalized linear
models via coordinate descent" (J. Stat. Softw. 33, 2010) and from glmnet's manual.

Why not a library: ``python benchmarks/mutation.py`` sets them side by side. liblinear penalises the
intercept and starts each penalty anew, saga is slow, celer has no intercept. skglm comes nearest:
at its own tolerance it is several times slower and less exact than this, with a smaller one it is
slower still, and each process compiles it anew. None ends a path as glmnet does; ``adelie`` needs
numpy < 2.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numba import njit

POINTS = 100  # penalties along a path
LEAST_SHARE = 1e-4  # the last penalty over the first; WIDE_SHARE where rows are fewer than columns
WIDE_SHARE = 1e-2
TOLERANCE = 1e-7  # a step that would change less of the null deviance is none
LEAST_GAIN = 1e-5  # the path ends where a step explains less than this more of the deviance
MOST_EXPLAINED = 0.999  # or where so much is explained
LEAST_POINTS = 5  # but not before this many penalties
MOST_PASSES = 100_000  # over the columns, a path; it ends where they are spent
CLIP = 1e-5  # probabilities are kept this far from 0 and 1 when deviances are measured
_LEAST_WEIGHT = 1e-5  # of p(1 − p): a row that is fitted perfectly stays in the quadratic


@dataclass(frozen=True)
class Path:
    """Models along a path: `lambdas` (L,) falling, `intercepts` (L,), `coefficients` (L, D).

    All float64, coefficients in units of the features as they were given; `explained` (L,) is the
    share of the null deviance that each model explains. The first model is empty.
    """

    lambdas: np.ndarray
    intercepts: np.ndarray
    coefficients: np.ndarray
    explained: np.ndarray

    def link(self, features: np.ndarray, lambdas: np.ndarray) -> np.ndarray:
        """Return log odds (n, len(lambdas)) of rows (n, D), linear between the path's penalties.

        Beyond the ends of the path its last models hold, as with glmnet.
        """
        used = np.flatnonzero(self.coefficients.any(axis=0))
        own = features[:, used].astype(np.float64) @ self.coefficients[:, used].T + self.intercepts
        rising = self.lambdas[::-1]
        place = np.interp(lambdas, rising, np.arange(len(rising), dtype=np.float64))
        low = np.minimum(place.astype(int), max(len(rising) - 2, 0))
        high = np.minimum(low + 1, len(rising) - 1)
        share = place - low
        own = own[:, ::-1]
        return own[:, low] * (1 - share) + own[:, high] * share


@dataclass(frozen=True)
class Choice:
    """What inner cross-validation chose: `path`, and per penalty the mean deviance and its error.

    `deviance` and `error` are (L,), glmnet's cvm and cvsd; `minimum` and `one_error` the positions
    of lambda.min and lambda.1se.
    """

    path: Path
    deviance: np.ndarray
    error: np.ndarray
    minimum: int
    one_error: int


def fit_path(features: np.ndarray, targets: np.ndarray) -> Path:
    """Fit the models of a path to features (n, D) and targets (n,) of 0 and 1, both present.

    Features are standardised inside (ddof 0); constant columns get no coefficient.
    """
    n, width = features.shape
    kept = np.flatnonzero(features.max(axis=0) != features.min(axis=0))
    columns = np.ascontiguousarray(features[:, kept].T, dtype=np.float64)
    means = columns.mean(axis=1)
    columns -= means[:, None]
    scales = np.sqrt((columns**2).mean(axis=1))
    columns /= scales[:, None]
    y = targets.astype(np.float64)
    lambdas = _grid(columns, y, WIDE_SHARE if n < width else LEAST_SHARE)
    intercepts, found, explained = _follow(columns, y, lambdas, TOLERANCE, MOST_PASSES)
    reached = len(intercepts)
    found /= scales
    coefficients = np.zeros((reached, width))
    coefficients[:, kept] = found
    return Path(lambdas[:reached], intercepts - found @ means, coefficients, explained)


def choose(features: np.ndarray, targets: np.ndarray, folds: np.ndarray) -> Choice:
    """Fit a path and choose of it by the deviance in inner folds (n,) numbered from 0.

    As cv.glmnet: each fold's models follow a path of their own and are read at the whole path's
    penalties; folds count by their rows. With fewer than three rows a fold, rows take the place
    of folds in the standard error.
    """
    path = fit_path(features, targets)
    n, count = len(targets), int(folds.max()) + 1
    raw = np.empty((n, len(path.lambdas)))
    for fold in range(count):
        held = folds == fold
        inner = fit_path(features[~held], targets[~held])
        raw[held] = _deviance(targets[held], inner.link(features[held], path.lambdas))
    weights = np.ones(n)
    if n / count >= 3:
        raw = np.stack([raw[folds == fold].mean(axis=0) for fold in range(count)])
        weights = np.bincount(folds, minlength=count).astype(np.float64)
    mean = np.average(raw, axis=0, weights=weights)
    error = np.sqrt(np.average((raw - mean) ** 2, axis=0, weights=weights) / (len(raw) - 1))
    minimum = int(mean.argmin())  # the first of equals has the largest penalty
    one_error = int((mean <= mean[minimum] + error[minimum]).argmax())
    return Choice(path, mean, error, minimum, one_error)


def _grid(columns: np.ndarray, y: np.ndarray, least: float) -> np.ndarray:
    """Return the penalties, from the smallest one that leaves the model empty; (1,) if it is 0."""
    largest = np.abs(columns @ (y - y.mean())).max(initial=0.0) / len(y)
    if largest == 0:
        return np.zeros(1)
    return largest * least ** (np.arange(POINTS) / (POINTS - 1))


def _deviance(targets: np.ndarray, link: np.ndarray) -> np.ndarray:
    """Return the deviance of each row under each model, (n, L), from log odds (n, L)."""
    limit = np.log(1 / CLIP - 1)
    likely = np.clip(np.where(targets[:, None] == 1, link, -link), -limit, limit)
    return 2 * np.log1p(np.exp(-likely))


def _compiled(function: Callable) -> Callable:
    """Compile with numba, and keep the result on disk where a folder can be written."""
    try:
        return njit(cache=True)(function)
    except RuntimeError:  # numba found no folder for its cache: compile in each process
        return njit(function)


# What follows is compiled; loops are written out because numba takes long over array expressions.
# x is (p, n), a standardised column a row, so that a column's values lie side by side.


@njit
def _dot(a, b):
    """Sum in four strands, which processors add at once, and in an order that never changes."""
    end = len(a) // 4 * 4
    s0 = s1 = s2 = s3 = 0.0
    for i in range(0, end, 4):
        s0 += a[i] * b[i]
        s1 += a[i + 1] * b[i + 1]
        s2 += a[i + 2] * b[i + 2]
        s3 += a[i + 3] * b[i + 3]
    for i in range(end, len(a)):
        s0 += a[i] * b[i]
    return (s0 + s1) + (s2 + s3)


@njit
def _sweep(x, weights, curvature, residual, beta, which, penalty):
    """Move each coefficient in `which` to its best place; return the largest gain, twice.

    `residual` (n,) is what is left to explain, times `weights`; it is updated, as is `beta`.
    """
    most = 0.0
    for j in which:
        old, column = beta[j], x[j]
        pull = _dot(residual, column) + curvature[j] * old
        size = abs(pull) - penalty
        new = 0.0
        if size > 0:
            new = (size if pull > 0 else -size) / curvature[j]
        step = new - old
        if step != 0:
            beta[j] = new
            for i in range(len(residual)):
                residual[i] -= step * weights[i] * column[i]
            most = max(most, curvature[j] * step * step)
    return most


@njit
def _quadratic(x, weights, curvature, residual, beta, which, penalty, small, passes):
    """Minimise the quadratic approximation over the columns in `which`.

    All of `which` are swept, then those that are not 0 until they rest, and again until a sweep
    over all finds nothing to do. Returns the intercept's step and the passes that are left.
    """
    total, shift = 0.0, 0.0
    for weight in weights:
        total += weight
    swept, over_all = which, True
    active = np.empty_like(which)
    while passes > 0:
        passes -= 1
        most = _sweep(x, weights, curvature, residual, beta, swept, penalty)
        step = 0.0
        for value in residual:
            step += value / total
        for i in range(len(residual)):
            residual[i] -= step * weights[i]
        shift += step
        if max(most, total * step * step) < small:
            if over_all:
                break
            swept, over_all = which, True
        elif over_all:
            count = 0
            for j in which:
                if beta[j] != 0:
                    active[count] = j
                    count += 1
            swept, over_all = active[:count], False
    return shift, passes


@njit
def _approximate(y, link, weights, residual):
    """Set `weights` and `residual` (n,) of the quadratic approximation at `link`."""
    n = len(y)
    for i in range(n):
        likely = 1 / (1 + np.exp(-link[i]))
        weights[i] = max(likely * (1 - likely), _LEAST_WEIGHT) / n
        residual[i] = (y[i] - likely) / n


@njit
def _newton(x, y, beta, link, which, penalty, small, passes):
    """Minimise over the columns in `which` and the intercept by Newton steps.

    `beta` (p,) and `link` (n,) are updated. Returns the intercept's step and the passes left.
    """
    n, shift = len(y), 0.0
    weights, residual, product = np.empty(n), np.empty(n), np.empty(n)
    curvature, before = np.empty(len(beta)), np.empty(len(beta))
    most = small
    while most >= small and passes > 0:
        _approximate(y, link, weights, residual)
        for j in which:
            for i in range(n):
                product[i] = weights[i] * x[j, i]
            curvature[j], before[j] = _dot(product, x[j]), beta[j]
        step, passes = _quadratic(
            x, weights, curvature, residual, beta, which, penalty, small, passes
        )
        shift += step
        total = 0.0
        for i in range(n):
            total += weights[i]
            link[i] += step
        most = total * step * step
        for j in which:
            moved = beta[j] - before[j]
            if moved != 0:
                most = max(most, curvature[j] * moved * moved)
                for i in range(n):
                    link[i] += moved * x[j, i]
    return shift, passes


@njit
def _point(x, y, beta, link, gradient, last, penalty, small, passes):
    """Solve for one penalty, starting with the solution for the `last` one.

    The strong rule says which columns to try; those that the optimality conditions call in
    afterwards follow. `beta`, `link` and `gradient` (p,) are updated. Returns as `_newton`.
    """
    p, n, count, shift = len(beta), len(y), 0, 0.0
    weights, residual = np.empty(n), np.empty(n)
    which, inside = np.empty(p, np.int64), np.zeros(p, np.bool_)
    for j in range(p):
        if abs(gradient[j]) >= 2 * penalty - last or beta[j] != 0:
            which[count], inside[j] = j, True
            count += 1
    while passes > 0:
        step, passes = _newton(x, y, beta, link, which[:count], penalty, small, passes)
        shift += step
        _approximate(y, link, weights, residual)
        tried = count
        for j in range(p):
            gradient[j] = _dot(x[j], residual)
            if not inside[j] and abs(gradient[j]) > penalty:
                which[count], inside[j] = j, True
                count += 1
        if count == tried:
            break
    return shift, passes


@_compiled
def _follow(x, y, lambdas, tolerance, passes):
    """Follow the path; return intercepts (L,), coefficients (L, p), explained (L,) of its models.

    These are fewer than `lambdas` where the path ends before.
    """
    p, n, points = x.shape[0], x.shape[1], len(lambdas)
    share = 0.0
    for value in y:
        share += value / n
    null = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    intercepts, coefficients = np.empty(points), np.zeros((points, p))
    explained = np.zeros(points)
    intercepts[0] = np.log(share / (1 - share))
    beta, gradient = np.zeros(p), np.empty(p)
    link, weights, residual = np.empty(n), np.empty(n), np.empty(n)
    for i in range(n):
        link[i] = intercepts[0]
    _approximate(y, link, weights, residual)
    for j in range(p):
        gradient[j] = _dot(x[j], residual)
    reached = 1
    for k in range(1, points):
        shift, passes = _point(
            x, y, beta, link, gradient, lambdas[k - 1], lambdas[k], tolerance * null, passes
        )
        if passes == 0:
            break
        loss = 0.0
        for i in range(n):
            loss += np.log1p(np.exp(-abs(link[i]))) + max(link[i], 0.0) - y[i] * link[i]
        intercepts[k], explained[k] = intercepts[k - 1] + shift, 1 - loss / n / null
        for j in range(p):
            coefficients[k, j] = beta[j]
        reached = k + 1
        gain = explained[k] - explained[k - 1]
        if reached >= LEAST_POINTS and (explained[k] > MOST_EXPLAINED or gain < LEAST_GAIN):
            break
    return intercepts[:reached], coefficients[:reached], explained[:reached]
