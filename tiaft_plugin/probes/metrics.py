"""What is measured on predictions, for one weighting of the rows or for a whole bootstrap.

`weights` are either absent (every row counts once; the results are floats) or (B, N), one row a
bootstrap draw, each entry how often that row was drawn (the results are (B,) arrays; see
`tiaft_plugin.probes.statistics.cluster_weights`). Ties count as in scikit-learn.

Stated rules. A class with no (weighted) row has NaN as its own metrics and is left out of the
means over classes. AUROC is NaN where all rows are of one class. Constant scores have AUROC 0.5
and AUPRC equal to the prevalence; constant predictions correlate 0; a constant target has no
correlation: NaN. Where scores tie for the largest, the first class is predicted.
"""

from collections.abc import Sequence

import numpy as np

BLOCK = 4_000_000  # weights handled at a time: 32 MB
Metrics = dict[tuple[str, str], np.ndarray]


def class_metrics(
    scores: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    weights: np.ndarray | None = None,
) -> Metrics:
    """Return the metrics of (N, C) scores for (N,) codes 0…C−1, by (metric, target).

    Target "" is overall: "accuracy", "balanced accuracy", "macro F1", and "AUROC" and "AUPRC" as
    the mean over classes, each against the rest. Target a class's name: "accuracy" (the share of
    its rows that are predicted to be it: recall), "F1", "AUROC", "AUPRC", "prevalence".
    """
    return _blockwise(lambda w: _class_metrics(scores, labels, names, w), len(labels), weights)


def binary_metrics(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> Metrics:
    """Return "AUROC", "AUPRC" and "prevalence" (target "") of (N,) scores for (N,) 0 and 1."""

    def measure(block: np.ndarray) -> Metrics:
        found = _ranking(scores, labels == 1, block)
        return {(name, ""): value for name, value in found.items()}

    return _blockwise(measure, len(labels), weights)


def correlations(
    predicted: np.ndarray, observed: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return Pearson's r of each column of (N, G) predictions: (G,), or (B, G) with weights.

    Rows where a gene's observed value is NaN are left out for that gene.
    """
    known = np.isfinite(observed)
    x, y = _standard(predicted, known), _standard(observed, known)
    rows = np.ones((1, len(x))) if weights is None else weights
    found = np.empty((len(rows), x.shape[1]))
    step = max(1, BLOCK // max(x.shape))
    products = (known.astype(float), x, y, x * x, y * y, x * y)
    for start in range(0, len(rows), step):
        block = rows[start : start + step].astype(float)
        found[start : start + step] = _pearson(*(block @ product for product in products))
    return found[0] if weights is None else found


def confusion(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return (C, C) int64 counts: rows are the true classes, columns the predicted ones."""
    count = scores.shape[1]
    pairs = labels.astype(np.int64) * count + scores.argmax(1)
    return np.bincount(pairs, minlength=count * count).reshape(count, count)


def _blockwise(measure, count: int, weights: np.ndarray | None) -> Metrics:
    """Measure a block of draws at a time, and join what was found."""
    if weights is None:
        return {key: value[0] for key, value in measure(np.ones((1, count))).items()}
    step = max(1, BLOCK // max(1, count))
    parts = [
        measure(weights[start : start + step].astype(float))
        for start in range(0, len(weights), step)
    ]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _class_metrics(
    scores: np.ndarray, labels: np.ndarray, names: Sequence[str], weights: np.ndarray
) -> Metrics:
    predicted = scores.argmax(1)
    found: Metrics = {}
    right = np.zeros(len(weights))
    for code, name in enumerate(names):
        own, called = labels == code, predicted == code
        of_class, calls = weights[:, own].sum(1), weights[:, called].sum(1)
        hits = weights[:, own & called].sum(1)
        right += hits
        found["accuracy", name] = _ratio(hits, of_class)
        found["F1", name] = np.where(of_class > 0, _ratio(2 * hits, of_class + calls), np.nan)
        for metric, value in _ranking(scores[:, code], own, weights).items():
            found[metric, name] = value
    found["accuracy", ""] = _ratio(right, weights.sum(1))
    means = {"balanced accuracy": "accuracy", "macro F1": "F1", "AUROC": "AUROC", "AUPRC": "AUPRC"}
    for metric, own_metric in means.items():
        found[metric, ""] = _mean(np.stack([found[own_metric, name] for name in names]))
    return found


def _ranking(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> dict:
    """Return AUROC, AUPRC and prevalence, each (B,), of (B, N) weights."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # of each tie
    weights, positive = weights[:, order], positive[order]
    true = np.cumsum(weights * positive, 1)[:, last]
    called = np.cumsum(weights, 1)[:, last]
    gained = np.diff(true, prepend=0)
    false = called - true
    area = (np.diff(false, prepend=0) * (true - gained / 2)).sum(1)
    return {
        "AUROC": _ratio(area, true[:, -1] * false[:, -1]),
        "AUPRC": _ratio((gained * np.nan_to_num(_ratio(true, called))).sum(1), true[:, -1]),
        "prevalence": _ratio(true[:, -1], called[:, -1]),
    }


def _standard(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Centre and scale columns, so that sums of squares lose no digits; 0 where unknown."""
    values = np.where(known, values, 0.0)
    count = np.maximum(known.sum(0), 1)
    centred = np.where(known, values - values.sum(0) / count, 0.0)
    spread = np.sqrt((centred**2).sum(0) / count)
    # What is left of a constant is rounding; scaled up, it would look like something.
    flat = spread <= 1e-12 * np.abs(values).max(0, initial=0.0)
    return np.where(flat, 0.0, centred / np.where(flat, 1.0, spread))


def _pearson(n, x, y, xx, yy, xy) -> np.ndarray:
    """Return r from weighted sums; 0 where x is constant, NaN where y is."""
    varied = (xx - _ratio(x * x, n), yy - _ratio(y * y, n))
    flat_x, flat_y = (
        v <= 1e-12 * np.maximum(s, 1e-300) for v, s in zip(varied, (xx, yy), strict=True)
    )
    scale = np.sqrt(np.where(flat_x | flat_y, 1.0, varied[0] * varied[1]))
    r = np.clip((xy - _ratio(x * y, n)) / scale, -1, 1)
    return np.where(flat_y, np.nan, np.where(flat_x, 0.0, r))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide; NaN where there is nothing to divide by."""
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)


def _mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over the first axis of what is not NaN; NaN where nothing is left."""
    there = np.isfinite(values)
    return _ratio(np.where(there, values, 0).sum(0), there.sum(0))
