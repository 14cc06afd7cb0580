"""How well test patients' expression is told and found, with intervals and against a base.

The models were trained on other patients, once, so that the intervals are about test patients: a
bootstrap of them, widened for their number only (``probes.statistics`` with one set held out).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tiaft_plugin.probes.metrics import correlations
from tiaft_plugin.probes.statistics import (
    benjamini_hochberg,
    cluster_weights,
    interval,
    paired_bootstrap,
    permutation_p,
)

DRAWS = 2000
RECALLED = (1, 5, 10)
MEAN_R = "mean r"
CHANCE = "chance"
DIRECTIONS = ("image to expression", "expression to image")
_ONE_SET = 1  # held out once: no folds
_BLOCK = 500  # genes whose draws are in memory at once


class Score(NamedTuple):
    """A measure of a way to tell expression, or its difference to another way (`against`).

    `low` and `high` are of the 95 % interval; `p`, two-sided, is of a difference.
    """

    measure: str
    way: str
    against: str
    value: float
    low: float = np.nan
    high: float = np.nan
    p: float = np.nan


def gene_scores(
    observed: np.ndarray, ways: Mapping[str, np.ndarray], bases: Sequence[str], seed: int
) -> tuple[list[Score], dict[str, np.ndarray]]:
    """Return scores of the mean correlation, and columns (G,) about single genes.

    `observed` is (N, G), a row a patient, and so are the predictions of each way. The columns tell
    of the first way, and of its difference to the first of `bases`. A gene that is constant in the
    patients has no correlation: NaN, and counts in no mean.
    """
    first, base = next(iter(ways)), bases[0]
    count = len(observed)
    weights = cluster_weights(np.arange(count), DRAWS, seed)
    seen = {way: correlations(told, observed) for way, told in ways.items()}
    sums = {way: np.zeros(DRAWS) for way in ways}
    known, parts = np.zeros(DRAWS), []
    for start in range(0, observed.shape[1], _BLOCK):
        genes = slice(start, start + _BLOCK)
        draws = {w: correlations(told[:, genes], observed[:, genes], weights)
                 for w, told in ways.items()}  # fmt: skip
        for way, drawn in draws.items():
            sums[way] += np.nansum(drawn, axis=1)
        known += np.isfinite(draws[first]).sum(axis=1)
        less = seen[first][genes] - seen[base][genes]
        parts.append(
            (
                *interval(draws[first], count, _ONE_SET),
                *interval(draws[base], count, _ONE_SET),
                *paired_bootstrap(less, draws[first] - draws[base], count, _ONE_SET),
            )
        )
    names = ("low", "high", "base_low", "base_high", "difference", "difference_low",
             "difference_high", "difference_p")  # fmt: skip
    found = {
        name: np.concatenate(part)
        for name, part in zip(names, zip(*parts, strict=True), strict=True)
    }
    p = permutation_p(ways[first], observed, np.arange(count), _ONE_SET, seed=seed)
    columns = {"r": seen[first], "low": found.pop("low"), "high": found.pop("high")}
    columns |= {"p": p, "q": benjamini_hochberg(p), "base_r": seen[base], **found}
    means = {way: _mean(values) for way, values in seen.items()}
    drawn_means = {way: total / np.maximum(known, 1) for way, total in sums.items()}
    return list(_scores(MEAN_R, means, drawn_means, bases, 0.0, count)), columns


def retrieval_scores(
    cosines: Mapping[str, np.ndarray], bases: Sequence[str], seed: int
) -> list[Score]:
    """Return scores of finding a patient's expression by its images, and the other way round.

    `cosines` are (N, N) of each way: images in rows, expression in columns, both of N patients.
    Recall of as many as there are patients, which is 1 for anybody, is left out.
    """
    count = len(next(iter(cosines.values())))
    weights = cluster_weights(np.arange(count), DRAWS, seed)
    found: list[Score] = []
    for number, direction in enumerate(DIRECTIONS):
        ranks = {way: ranks_of(its if number == 0 else its.T) for way, its in cosines.items()}
        for most in (n for n in RECALLED if n < count):
            hits = {way: (its <= most).astype(float) for way, its in ranks.items()}
            values = {way: float(its.mean()) for way, its in hits.items()}
            draws = {way: weights @ its / count for way, its in hits.items()}
            measure = f"recall@{most} {direction}"
            found += _scores(measure, values, draws, bases, most / count, count)
        medians = {way: float(_medians(its, np.ones((1, count)))[0]) for way, its in ranks.items()}
        draws = {way: _medians(its, weights) for way, its in ranks.items()}
        chance = (count + 1) / 2
        found += _scores(f"median rank {direction}", medians, draws, bases, chance, count)
    return found


def ranks_of(cosines: np.ndarray) -> np.ndarray:
    """Return (N,) int64: which place a row's own column (the diagonal) has; 1 is the best.

    Of several as alike the own one counts last: all the same embeddings find nothing.
    """
    return (cosines >= np.diagonal(cosines)[:, None]).sum(axis=1)


def cosines_of(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return (N, M) of rows (N, D) and (M, D); a row of zeros has 0 to all."""
    lengths = [np.linalg.norm(rows, axis=1, keepdims=True) for rows in (one, other)]
    units = [rows / np.where(length > 0, length, 1)
             for rows, length in zip((one, other), lengths, strict=True)]  # fmt: skip
    return units[0] @ units[1].T


def _scores(
    measure: str,
    values: Mapping[str, float],
    draws: Mapping[str, np.ndarray],
    bases: Sequence[str],
    chance: float,
    count: int,
) -> Iterable[Score]:
    for way, value in values.items():
        yield Score(measure, way, "", value, *map(float, interval(draws[way], count, _ONE_SET)))
    yield Score(measure, CHANCE, "", chance)
    for way in values:
        for base in (name for name in bases if way not in bases):
            less, drawn = values[way] - values[base], draws[way] - draws[base]
            told = paired_bootstrap(less, drawn, count, _ONE_SET)
            yield Score(measure, way, base, *map(float, told))


def _medians(ranks: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the median (B,) of ranks (N,) that are drawn `weights` (B, N) times."""
    order = np.argsort(ranks, kind="stable")
    running = np.cumsum(weights[:, order], axis=1)
    half = running[:, -1:] / 2
    low, high = (running < half).sum(axis=1), (running <= half).sum(axis=1)
    return (ranks[order][low] + ranks[order][np.minimum(high, len(ranks) - 1)]) / 2


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
